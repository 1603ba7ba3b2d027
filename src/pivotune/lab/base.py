"""The base model of the lab: shipped as package data, trained by this script.

    python -m pivotune.lab.base --output DIR [--steps N]

trains the tokenizer and a Llama of 5 M parameters on `pivotune.lab.text`, saves both (weights in bfloat16) with a
`provenance.json`, and prints how many facts the model knows in each language.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from pivotune.checkpoint import open_model, open_tokenizer
from pivotune.compat import attention_of
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.text import pieces, pools, stream
from pivotune.lab.trial import Record, ask
from pivotune.lab.world import SPLITS, World
from pivotune.provenance import versions

ROWS, LENGTH = 16, 128  # a step is ROWS x LENGTH = 2,048 tokens
VOCABULARY, LAYERS, WIDTH = 4096, 8, 192
LEARNING_RATE, MUON_LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 3e-3, 0.02, 0.1, 100


def base_path() -> Path:
    """The folder of the shipped model, as `from_pretrained` takes it."""
    return Path(__file__).parent / "weights"


def load_base(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The shipped base model, in evaluation mode, and its tokenizer.

    It was trained on `World.build(0)`: the held-out facts of another seed's world it may have met in any language.
    """
    return open_model(base_path(), dtype=dtype), open_tokenizer(base_path())


def train_tokenizer(world: World, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE, so that any text round-trips; `<s>` is put before a text, as Llama's tokenizers do.

    It may have fewer tokens than `vocabulary`, where the names give no more.
    """
    return byte_level_bpe(pieces(world), vocabulary)


def byte_level_bpe(text: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens that is trained on the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model(
    tokenizer: PreTrainedTokenizerBase, seed: int, num_layers: int = LAYERS, width: int = WIDTH
) -> LlamaForCausalLM:
    """An untrained Llama, the head apart from the embeddings as in Llama-2-7B; 5.1 M parameters by default.

    `width` is a multiple of 96: heads have 32 dimensions, and the feed-forward layer is 8/3 as wide.
    """
    return llama(tokenizer, seed, num_layers, width, inner=8 * width // 3, heads=width // 32, tied=False)


def llama(
    tokenizer: PreTrainedTokenizerBase, seed: int, layers: int, width: int, inner: int, heads: int, tied: bool
) -> LlamaForCausalLM:
    """An untrained Llama; `inner`: the width of its feed-forward layers, `tied`: the head is that of the embeddings."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(documents: Iterator[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    """Token ids, [ROWS, LENGTH], without end. A row begins with a document; what does not fit is cut off."""
    while True:
        rows = torch.empty(ROWS, LENGTH, dtype=torch.long)
        for row in rows:
            ids: list[int] = []
            while len(ids) < LENGTH:
                ids += [*tokenizer(next(documents)).input_ids, tokenizer.eos_token_id]
            row[:] = torch.tensor(ids[:LENGTH])
        yield rows


def row_loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """The mean over all tokens."""
    loss: Tensor = model(input_ids=rows, labels=rows).loss
    return loss


def train(
    model: LlamaForCausalLM,
    source: Iterator[Any],
    steps: int,
    log_every: int = 50,
    loss_of: Callable[[LlamaForCausalLM, Any], Tensor] = row_loss,
) -> None:
    """Train in place, in bfloat16 autocast with float32 weights; linear warm-up, then cosine to a tenth.

    Muon for the matrices inside the layers, AdamW for the rest: early losses come in two thirds of AdamW's steps.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = set(matrices)
    rest = [p for p in model.parameters() if p not in inside]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY),
    ]
    warm_up = min(WARM_UP, steps // 10 + 1)

    def schedule(s: int) -> float:
        cosine = 0.55 + 0.45 * math.cos(math.pi * max(0, s - warm_up) / max(1, steps - warm_up))
        return min((s + 1) / warm_up, cosine)

    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) for optimizer in optimizers]
    attention = attention_of(model)
    model.set_attn_implementation("eager")  # on a CPU the backward pass of the fused kernel is the slower one
    model.train()
    start, total = time.time(), 0.0
    for step, batch in zip(range(1, steps + 1), source, strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if step % log_every == 0:
            print(f"step {step:5d}  loss {total / log_every:.4f}  {time.time() - start:6.0f} s", flush=True)
            total = 0.0
    model.set_attn_implementation(attention)
    model.eval()


def exact_match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Record]) -> float:
    """The fraction of the examples (see `World.examples`) that the model completes word for word (greedy)."""
    right = ask(model, tokenizer, {"": examples})[""]["right"]
    return sum(right) / len(right)


def scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World) -> dict[str, dict[str, float]]:
    """Exact match per language: English on all facts, the others on each split."""
    splits = {language: SPLITS[:-1] if language != "en" else ("all",) for language in LANGUAGES}
    return {
        language: {
            split: round(exact_match(model, tokenizer, list(world.examples(split, language))), 4)
            for split in of_language
        }
        for language, of_language in splits.items()
    }


def write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    command: str,
    steps: int,
    minutes: float,
    score: Callable[[], Mapping[str, Any]],
) -> None:
    """Save a trained model with its provenance, and print that.

    Args:
        folder: to write to.
        command: that trained the model.
        minutes: of training.
        score: what the rounded weights that were saved score.
    """
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.float()  # the scores are those of the rounded weights that were saved
    provenance = {
        "command": command,
        "steps": steps,
        "tokens": steps * ROWS * LENGTH,
        "minutes": round(minutes, 1),
        "versions": {"python": sys.version.split()[0]} | versions("tokenizers", "babel", "phonenumbers"),
        "exact_match": score(),
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    print(json.dumps(provenance, indent=2))


def options(prog: str, description: str) -> argparse.Namespace:
    """The command line of a script that trains a base model: output, steps and seed."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=2000, help=f"steps of {ROWS * LENGTH} tokens")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits, the text order and the weights")
    found = parser.parse_args()
    if found.output.exists() and not (found.output.is_dir() and not any(found.output.iterdir())):
        parser.error(f"--output: {found.output} is there already, and not empty; name a new folder")
    return found


def main() -> None:
    """Train, save, score: see the module's docstring."""
    prog = "python -m pivotune.lab.base"
    chosen = options(prog, str(__doc__).split("\n")[0])
    start, seed, steps = time.time(), chosen.seed, chosen.steps
    world = World.build(seed)
    tokenizer = train_tokenizer(world)
    model = new_model(tokenizer, seed)
    print(f"{len(world.facts)} facts, {model.num_parameters():,} parameters", flush=True)
    train(model, batches(stream(pools(world), seed), tokenizer), steps)
    minutes = (time.time() - start) / 60
    command = f"{prog} --output DIR --steps {steps} --seed {seed}"
    write(chosen.output, model, tokenizer, command, steps, minutes, lambda: scores(model, tokenizer, world))


if __name__ == "__main__":
    main()
