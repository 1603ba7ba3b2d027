"""One look at all layers of a model, for the choice of layers: entropy, MEXA and how well English is read.

The cost is bounded, because the head of a large vocabulary costs more than all layers below it: it reads a fixed number
of tokens for each curve, drawn evenly from the texts; and English texts are read behind a few prompts only.

Shapes in names: N examples, L layers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data import Encoded, ParallelCollator
from pivotune.data.continuation import english_question
from pivotune.data.tokenize import token_row
from pivotune.errors import PivotuneError
from pivotune.lens.activations import PairActivations
from pivotune.lens.entropy import read_prompts, side_entropies
from pivotune.lens.reading import Reader, english_nats, has_tokens
from pivotune.lens.similarity import SimilarityMeasure
from pivotune.uncertainty import Tables

T = TypeVar("T")

logger = logging.getLogger(__name__)

TOKENS = 512
"""That the head reads for each curve, at each layer."""
READ_PAIRS = 64
"""Behind whose prompts English is read: each takes two more passes."""
MEXA = {"mean": "MEXA, mean", "last_token": "MEXA, last token"}
"""Curves by the pooling that they are of."""
MEASURES = ("similarity", "reading")
"""Beside the entropy."""


@dataclass(frozen=True)
class Question:
    """An encoded prompt that is not English and, where there is one, its English counterpart with its answer."""

    language: str
    target: Encoded
    english: Encoded | None = None


def survey(
    anatomy: Anatomy,
    questions: Sequence[Question],
    contrast: Sequence[Encoded] = (),
    *,
    measures: Sequence[str] = MEASURES,
    reader: Reader | None = None,
    tokens: int | None = TOKENS,
    batch_size: int = 8,
    max_length: int = 512,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, np.ndarray]:
    """What each layer says: (N, L) of each curve, with as many examples as it has.

    Args:
        anatomy: the model's parts; in evaluation mode and without gradient (`pivotune.taps.evaluating`).
        questions: MEXA compares those of one language with each other.
        contrast: English prompts.
        measures: of `MEASURES`.
        reader: reads English from a layer; the logit lens where None. The entropy is always that of the logit lens.
        tokens: how many tokens the head reads for each curve at each layer; None reads all.
        batch_size: prompts per forward pass.
        max_length: longer prompts are read up to this many tokens; those whose question begins later are left out. Both
            are counted in a warning. English is read only behind prompts that leave room for the question.
        seed: of the tokens' drawing.
        progress: is told how many texts have been read; `work` says of how many.

    Returns:
        "entropy", "entropy, English": nats, the mean over each question's tokens. "MEXA, mean", "MEXA, last token":
        truth values, whether a question and its translation found each other. "question", "answer": nats per English
        token behind the prompt. A curve without examples is left out.

    Raises:
        PivotuneError: no question is left to read, or states that are not finite.
    """
    draw = torch.Generator().manual_seed(seed)
    rows: dict[str, list[Tensor]] = {}
    left_out = cut = 0

    def take_in(tables: Tables) -> None:
        for name, table in tables.items():
            rows.setdefault(name, []).append(table)

    def readable(*prompts: Encoded) -> bool:
        nonlocal left_out, cut
        late = any(prompt.question_start >= max_length for prompt in prompts)
        left_out += late
        cut += not late and any(prompt.question_end > max_length for prompt in prompts)
        return not late

    alone = [one.target for one in questions if one.english is None and readable(one.target)]
    paired = [one for one in questions if one.english is not None and readable(one.target, one.english)]
    contrast = [one for one in contrast if readable(one)]
    if not alone and not paired:
        raise PivotuneError("layers: there is no question to read.")
    if left_out or cut:
        logger.warning(
            "%d questions were read up to token %d only, and %d begin later and were left out; see max_length.",
            *(cut, max_length, left_out),
        )
    each = {
        "entropy": _share(tokens, len(alone) + len(paired)),
        "entropy, English": _share(tokens, len(contrast) + len(paired)),
    }
    for name, prompts in (("entropy", alone), ("entropy, English", contrast)):
        for batch in _batches(prompts, batch_size):
            side = read_prompts(anatomy, batch, max_length)
            take_in({name: side_entropies(anatomy, side, tokens=each[name], draw=draw)})
            progress(len(batch))

    similarity: dict[str, SimilarityMeasure] = {}
    for language in sorted({one.language for one in paired}):
        if "similarity" in measures:
            similarity[language] = SimilarityMeasure(anatomy, cka_layers=())
        for pairs in _batches([one for one in paired if one.language == language], batch_size):
            target, english = (
                read_prompts(anatomy, [getattr(one, side) for one in pairs], max_length)
                for side in ("target", "english")
            )
            for name, side in (("entropy", target), ("entropy, English", english)):
                take_in({name: side_entropies(anatomy, side, tokens=each[name], draw=draw)})
            if language in similarity:
                take_in(_mexa(similarity[language].add(PairActivations((), {}, target, english))))
            progress(2 * len(pairs))
    for measure in similarity.values():
        take_in(_mexa(measure.finish()))
    if "reading" in measures:
        chosen = _to_read(paired, max_length, seed)
        device = next(anatomy.embed.parameters()).device
        for pairs in _batches(chosen, batch_size):
            made = ParallelCollator(0)([token_row(one.target, one.english) for one in pairs])  # padding is masked
            on_device = {name: one.to(device) for name, one in made.items()}
            take_in(_reading(anatomy, on_device, reader, _share(tokens, len(chosen)), draw))
            progress(2 * len(pairs))
    return {name: torch.cat(tables).cpu().numpy() for name, tables in rows.items()}


def work(questions: Sequence[Question], contrast: Sequence[Encoded], measures: Sequence[str]) -> int:
    """How many texts `survey` reads, at most."""
    pairs = sum(one.english is not None for one in questions)
    return len(questions) + pairs + len(contrast) + 2 * min(pairs, READ_PAIRS) * ("reading" in measures)


def _share(tokens: int | None, texts: int) -> int | None:
    return None if tokens is None else math.ceil(tokens / max(1, texts))


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _mexa(tables: Tables) -> Tables:
    return {name: tables[f"{pooling}/mexa"] for pooling, name in MEXA.items() if f"{pooling}/mexa" in tables}


def _to_read(paired: Sequence[Question], max_length: int, seed: int) -> list[Question]:
    """Some of the pairs, drawn at random, with answers cut to the room there is."""
    found = []
    for one in paired:
        assert one.english is not None
        room = max_length - len(one.target.prompt_ids)
        if room >= one.english.question_end - one.english.question_start:
            found.append(replace(one, english=replace(one.english, answer_ids=one.english.answer_ids[:room])))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:READ_PAIRS]
    return [found[number] for number in sorted(order.tolist())]


def _reading(
    anatomy: Anatomy, batch: dict[str, Tensor], reader: Reader | None, tokens: int | None, draw: torch.Generator
) -> dict[str, Tensor]:
    layers = range(1, anatomy.num_layers + 1)
    texts = {"question": english_question(batch), "answer": batch["english_answer_ids"]}
    return {
        name: english_nats(anatomy, batch, text, layers, reader=reader, tokens=tokens, draw=draw)[has_tokens(text)]
        for name, text in texts.items()
        if has_tokens(text).any()
    }
