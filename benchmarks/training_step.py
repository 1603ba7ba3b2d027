"""One training step of every method over one of plain fine-tuning, beside what its FLOPs alone would cost.

    python -m benchmarks.training_step [--batch 8] [--question 96] [--answer 96] [--hidden 512] [--layers 16]

The floor counts tokens x layers: 1 for a forward pass, 2 more for its backward. It leaves out the output head, whose
share is printed apart: the logits signal reads it once per English token, without a gradient for its weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.timing import DEVICE, interleaved, options, random_llama, ratios, where
from pivotune.lens.rule import paper_layers
from pivotune.method import Method
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig


def main() -> None:
    args = options(__doc__, batch=8, question=96, answer=96, hidden=512, layers=16, vocab=32000, repeats=7)
    model = random_llama(args.hidden, args.layers, args.vocab)
    q, a, L = args.question, args.answer, args.layers
    i, j = paper_layers(L)
    batch = {name: tensor.to(DEVICE) for name, tensor in make_batch(args.batch, q, a, args.vocab).items()}

    def deep(signal: str, **more: str) -> DeepSupervisionConfig:
        return DeepSupervisionConfig(signal, signal, i, j, **more)  # type: ignore[arg-type]

    methods: dict[str, tuple[Method, float]] = {  # floors in passes of tokens x layers; plain: 3 (q + a) L
        "plain fine-tuning": (Method(model), 0),
        "logits, teacher-forced": (Method(model, [deep("logits")]), 3 * ((q + q) * i + (q + a) * j)),
        "logits, position-wise": (Method(model, [deep("logits", reading="position_wise")]), 0),
        "feature": (Method(model, [deep("feature")]), q * L),
        "CC-Tuning": (Method(model, [CCTuningConfig()]), 3 * q * L),
        "CC-Tuning, fixed English": (Method(model, [CCTuningConfig(english_gradient=False)]), q * L),
        "CC-Tuning and feature": (Method(model, [deep("feature"), CCTuningConfig()]), 3 * q * L),
    }

    def step(method: Method) -> Callable[[], None]:
        def run() -> None:
            method.train()
            method.zero_grad()
            with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
                loss = method(batch)["loss"]
            loss.backward()

        return run

    seconds = interleaved({name: step(method) for name, (method, _) in methods.items()}, args.repeats)
    plain = 3 * (q + a) * L
    head = 3 * a * args.vocab * args.hidden / (plain * 16 * args.hidden**2)
    print(f"{where()}\nbatch {args.batch}, question {q}, answer {a} tokens, {L} layers x {args.hidden}; i={i}, j={j}")
    print(f"head of plain fine-tuning: {head:.0%} of its layers' FLOPs; {args.repeats} rounds\n")
    print(f"{'step time over plain fine-tuning':26s} median [range]        floor")
    for name, ratio in ratios(seconds, "plain fine-tuning").items():
        print(f"{name:32s} {ratio}   {1 + methods[name][1] / plain:.2f}")


def make_batch(rows: int, question: int, answer: int, vocab: int) -> dict[str, torch.Tensor]:
    """Every row a pair, all texts of equal length: nothing is padding."""
    ids = torch.randint(3, vocab, (rows, question + answer))
    labels = ids.clone()
    labels[:, :question] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "prompt_length": torch.full((rows,), question),
        "question_start": torch.zeros(rows, dtype=torch.long),
        "question_end": torch.full((rows,), question),
        "pair_row": torch.arange(rows),
        "english_input_ids": torch.randint(3, vocab, (rows, question)),
        "english_attention_mask": torch.ones(rows, question, dtype=torch.long),
        "english_question_start": torch.zeros(rows, dtype=torch.long),
        "english_question_end": torch.full((rows,), question),
        "english_answer_ids": torch.randint(3, vocab, (rows, answer)),
    }


if __name__ == "__main__":
    main()
