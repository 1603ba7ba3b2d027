"""The base model of the skills, `experiments/skills_base`, trained by this script.

    python -m experiments.lab.skill_model --output DIR [--steps N]

trains the tokenizer and a Llama of 1.5 M parameters on the text of `experiments.lab.skills`, saves both (weights in
bfloat16) with a `provenance.json`, and prints the exact match of each skill in each language.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from experiments.lab.skills import SKILLS, Skills, pieces, pools
from pivotune.lab import base
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.text import stream

VOCABULARY = 3072
GIVEN_WEIGHT = 0.1  # of what is given in a document; what follows from it weighs 1

Batch = tuple[Tensor, Tensor, Tensor]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """As that of the facts, on the words and frames of the skills."""
    return base.byte_level_bpe(pieces(), VOCABULARY)


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """An untrained Llama: 6 layers x 128, the head tied to the embeddings; 1.5 M parameters."""
    return base.llama(tokenizer, seed, layers=6, width=128, inner=320, heads=4, tied=True)


def batches(of: Skills, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Batch]:
    """Token ids, their positions in their documents, and their weights in the loss; each [ROWS, LENGTH], without end.

    A row begins with a document; what does not fit is cut off.
    """
    documents = stream(pools(of), seed)
    while True:
        rows: list[list[tuple[int, int, float]]] = []
        for _ in range(base.ROWS):
            row: list[tuple[int, int, float]] = []
            while len(row) < base.LENGTH:
                given, follows = next(documents)
                first = tokenizer(given).input_ids
                rest = [*tokenizer(follows, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                weights = [GIVEN_WEIGHT] * len(first) + [1.0] * len(rest)
                row += zip(first + rest, range(len(weights)), weights, strict=True)
            rows.append(row[: base.LENGTH])
        ids, positions, of_loss = (torch.tensor([[token[k] for token in row] for row in rows]) for k in range(3))
        yield ids, positions, of_loss


def weighted_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The weighted mean over all tokens. A document does not see the one before it in the row.

    Without a cache the model takes positions that start again for the border between two documents. Seen together, the
    people and things of other passages keep a model as small as this one from learning to read at all.
    """
    ids, positions, weights = batch
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1]
    of_token = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (of_token * weights).sum() / weights.sum()


def scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, of: Skills
) -> dict[str, dict[str, dict[str, float]]]:
    """Exact match per language, split and skill."""
    return {
        language: {
            split: {
                skill: round(base.exact_match(model, tokenizer, list(of.examples(split, language, skill))), 4)
                for skill in SKILLS
            }
            for split in ("development", "heldout")
        }
        for language in LANGUAGES
    }


def main() -> None:
    """Train, save, score: see the module's docstring."""
    prog = "python -m experiments.lab.skill_model"
    chosen = base.options(prog, str(__doc__).split("\n")[0])
    start, seed, steps = time.time(), chosen.seed, chosen.steps
    items = Skills.build(seed)
    tokenizer = train_tokenizer()
    model = new_model(tokenizer, seed)
    print(f"{len(SKILLS)} skills, {model.num_parameters():,} parameters", flush=True)
    base.train(model, batches(items, tokenizer, seed), steps, loss_of=weighted_loss)
    minutes = (time.time() - start) / 60
    command = f"{prog} --output DIR --steps {steps} --seed {seed}"
    base.write(chosen.output, model, tokenizer, command, steps, minutes, lambda: scores(model, tokenizer, items))


if __name__ == "__main__":
    main()
