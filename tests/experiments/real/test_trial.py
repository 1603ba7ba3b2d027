"""What a trial measures: nats of answers, with and without activation patching, against one example at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.real import pairs
from experiments.real.patching import patched
from experiments.real.trial import Trial, answer_nats
from pivotune.checkpoint import Run, load_run
from pivotune.data import ParallelExample, tokenize_examples
from tests.runs import ENGLISH, WORDS, write_base


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = write_base(tmp_path_factory.mktemp("base") / "base", max_position_embeddings=512)
    run = load_run(base)
    run.model.double()
    return run


def example(number: int) -> ParallelExample:
    question, answer = "".join(WORDS[: 2 + number]), "".join(WORDS[number : number + 1 + number % 3])
    english = {"instruction": " ".join(ENGLISH[: 1 + number]), "output": ENGLISH[number]}
    row = {"id": str(number), "language": "zh", "instruction": question, "output": answer, "english": english}
    return ParallelExample.from_dict(row, str(number))


EXAMPLES = [example(number) for number in (4, 1, 3, 0, 2)]


def one_by_one(run: Run, asked: ParallelExample, put_in: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
    """The nats of an answer's tokens, from the model's own logits; `put_in`: by layer, what replaces the stream at the
    prompt's last token."""
    dataset, _ = tokenize_examples([asked], run.tokenizer, pairs.STYLE, 384)
    ids, start = torch.tensor(dataset[0]["input_ids"]), dataset[0]["prompt_length"]

    def replacing(vector: torch.Tensor):  # type: ignore[no-untyped-def]
        def hook(module, args, output):  # type: ignore[no-untyped-def]
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[0, start - 1] = vector
            return output

        return hook

    handles = [
        run.model.model.layers[layer - 1].register_forward_hook(replacing(v)) for layer, v in (put_in or {}).items()
    ]
    with torch.no_grad():
        logits = run.model(ids[None]).logits[0]
    for handle in handles:
        handle.remove()
    nats = -logits.log_softmax(dim=-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return nats[start - 1 :]


def last_states(run: Run, prompt: ParallelExample, english: bool) -> torch.Tensor:
    """(L + 1, d): embedding, then the stream behind each layer but the last, at the prompt's last token."""
    dataset, _ = tokenize_examples([prompt], run.tokenizer, pairs.STYLE, 384)
    row = dataset[0]
    ids = row["english_prompt_ids"] if english else row["input_ids"][: row["prompt_length"]]
    with torch.no_grad():
        hidden = run.model(torch.tensor(ids)[None], output_hidden_states=True).hidden_states
    return torch.stack([layer[0, -1] for layer in hidden])


def test_answers_are_scored_in_their_order(run: Run) -> None:
    found = list(answer_nats(run, EXAMPLES, size=2))
    for nats, asked in zip(found, EXAMPLES, strict=True):
        torch.testing.assert_close(nats.double(), one_by_one(run, asked), atol=1e-9, rtol=0)


def test_patched_as_by_hand(run: Run) -> None:
    others = [example(number) for number in (5, 6, 7)]
    found = patched(run, EXAMPLES, others, layers=[1, 2], size=3)
    mean_target, mean_english = (
        torch.stack([last_states(run, one, english) for one in others]).mean(dim=0) for english in (False, True)
    )
    for number, asked in enumerate(EXAMPLES):
        alone = one_by_one(run, asked)
        assert found["alone"]["nats"][number] == pytest.approx(alone.sum().item(), abs=1e-3)
        assert found["alone"]["tokens"][number] == len(alone)
        for layer in (1, 2):
            vector = last_states(run, asked, True)[layer] - mean_english[layer] + mean_target[layer]
            lent = one_by_one(run, asked, {layer: vector})
            assert found[f"lent {layer}"]["nats"][number] == pytest.approx(lent.sum().item(), abs=1e-3)
            assert found[f"lent {layer}"]["first"][number] == pytest.approx(lent[0].item(), abs=1e-3)
            assert found[f"shuffled {layer}"]["nats"][number] != pytest.approx(lent.sum().item(), abs=1e-3)
        assert asked.english is not None
        both = f"{asked.english.instruction}\n{asked.text.instruction}"
        context = one_by_one(run, replace(asked, text=replace(asked.text, instruction=both)))
        assert found["context"]["nats"][number] == pytest.approx(context.sum().item(), abs=1e-3)


def test_a_cell_has_a_place_of_its_own(tmp_path: Path) -> None:
    trials = [
        Trial("tft", "gemma", "vi"),
        Trial("tft", "gemma", "vi", rate=1e-4),
        Trial("tft", "gemma", "vi", seed=1),
        Trial("tft", "gemma", "zh"),
        Trial("base", "gemma", "vi"),
    ]
    assert len({one.cell(tmp_path) for one in trials}) == len(trials)
    assert Trial("base", "gemma", "vi", seed=1, rate=1.0).cell() == Trial("base", "gemma", "vi").cell()
    assert not trials[0].done(tmp_path)
