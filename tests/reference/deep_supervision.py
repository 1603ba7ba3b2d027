"""Deep supervision (DFT, Huo et al., 2025), slow and obvious: one example, one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.batches import Example, examples_of
from tests.reference.passes import Connection, Pass, answer_loss, frozen_logits, run
from tests.reference.tuned_lens import mapped

Terms = dict[str, tuple[Tensor, int]]


def deep_supervision(
    model: nn.Module,
    batch: dict[str, Tensor],
    *,
    language_conversion: str = "logits",
    english_thinking: str = "logits",
    conversion_layer: int,
    thinking_layer: int,
    reading: str = "teacher_forced",
    pooling: str = "mean",
    feature_loss: str = "cosine",
    temperature: float = 0.1,
    english_layer: int | str = "last",
    stop_gradient: bool = True,
    final_norm: bool = True,
    connections: dict[int, Connection] | None = None,
    readers: dict[int, tuple[Tensor, Tensor]] | None = None,
    centres: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> Terms:
    """The sum and the count of each term that is on, before any weighting.

    Args:
        connections: CC-Tuning's addition to some rows' ordinary pass (both methods in one run). The extra passes of
            the teacher-forced signal ask what the target question alone has become, and get none.
        readers: A and b of the tuned lens at a layer, through which the logits signal reads it.
        centres: of the centred cosine, by term: the mean target question and the mean English one.
    """
    names = ["lm"]
    names += ["language_conversion"] if language_conversion != "off" else []
    names += ["english_thinking"] if english_thinking != "off" else []
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    counts = dict.fromkeys(names, 0)
    questions: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def add(name: str, value: Tensor, count: int = 1) -> None:
        sums[name].append(value)
        counts[name] += count

    for row, example in enumerate(examples_of(batch)):
        connection = (connections or {}).get(row)
        target, english = example.target, example.english
        labels = batch["labels"][row, len(target.prompt) : len(target.prompt + target.answer)].tolist()
        ordinary = run(model, target.prompt + target.answer, connection)
        add("lm", *answer_loss(ordinary, len(target.prompt), labels))
        if english is None:
            continue

        question = english.prompt[slice(*english.question)]
        for name, signal, layer, text in (
            ("language_conversion", language_conversion, conversion_layer, question),
            ("english_thinking", english_thinking, thinking_layer, english.answer),
        ):
            if signal == "logits":
                if reading == "teacher_forced":
                    states = _appended(model, target.prompt, text, layer)
                else:
                    states = _in_place(ordinary, example, labels, name, layer)
                for state, token in zip(states, text, strict=False):  # as many as both have
                    if readers is not None:
                        state = mapped(state, *readers[layer])
                    add(name, -torch.log_softmax(frozen_logits(model, state, final_norm), dim=-1)[token])
            elif signal == "feature":
                other = run(model, english.prompt)
                there = layer
                if name == "english_thinking" and english_layer != "same":
                    there = len(other.hidden) - 1 if english_layer == "last" else int(english_layer)
                theirs = _pooled(other.hidden[there], english.question, pooling)
                ours = _pooled(ordinary.hidden[layer], target.question, pooling)
                questions[name].append((theirs.detach() if stop_gradient else theirs, ours))

    for name, pairs in questions.items():
        for theirs, ours in pairs:
            if feature_loss == "cosine":
                add(name, 1 - _cosine(theirs, ours))
            elif feature_loss == "centred_cosine":
                mean, english_mean = (centres or {})[name]
                add(name, 1 - _cosine(theirs - english_mean, ours - mean))
            else:  # its own English question among those of all pairs
                likeness = [torch.exp(_cosine(other, ours) / temperature) for other, _ in pairs]
                add(name, -torch.log(torch.exp(_cosine(theirs, ours) / temperature) / sum(likeness)))
    zero = next(model.parameters()).sum() * 0.0
    return {name: (torch.stack([zero, *sums[name]]).sum(), counts[name]) for name in names}


def _appended(model: nn.Module, prompt: list[int], text: list[int], layer: int) -> list[Tensor]:
    """`text` behind the target prompt: the states at `layer` that predict its tokens."""
    states = run(model, prompt + text).hidden[layer]
    return [states[len(prompt) + k - 1] for k in range(len(text))]


def _in_place(ordinary: Pass, example: Example, labels: list[int], name: str, layer: int) -> list[Tensor]:
    """The states at `layer` of the ordinary pass that stand where the English tokens are read position by position."""
    states = ordinary.hidden[layer]
    if name == "language_conversion":
        return [states[position] for position in range(*example.target.question)]
    first = len(example.target.prompt)
    return [states[first + k - 1] for k, token in enumerate(labels) if token != -100]


def _pooled(hidden: Tensor, span: tuple[int, int], pooling: str) -> Tensor:
    start, end = span
    if pooling == "last_token":
        return hidden[end - 1]
    total = hidden[start]
    for position in range(start + 1, end):
        total = total + hidden[position]
    return total / (end - start)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())
