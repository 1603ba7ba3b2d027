"""Examples to token ids: one Arrow row per example, both sides of a pair in the same row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import Dataset

from pivotune.data.examples import ParallelExample
from pivotune.data.prompts import Encoded, PromptEncoder
from pivotune.data.report import DataError, Report
from pivotune.errors import PivotuneError, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Large enough for the tokenizer's threads, small enough that Python lists of it cost little memory.
_BATCH = 1000

_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "language": pa.string(),
        "input_ids": _IDS,
        "prompt_length": pa.int32(),
        "question_start": pa.int32(),
        "question_end": pa.int32(),
        "english_prompt_ids": _IDS,
        "english_question_start": pa.int32(),
        "english_question_end": pa.int32(),
        "english_answer_ids": _IDS,
    }
)


def paired(rows: Any) -> list[int]:
    """Which of these tokenised rows have an English counterpart: their numbers."""
    return [number for number, ids in enumerate(rows["english_prompt_ids"]) if ids]


def tokenize_examples(
    examples: Iterable[ParallelExample],
    tokenizer: PreTrainedTokenizerBase,
    style: str = "auto",
    max_length: int = 512,
    overlong: str = "error",
    on_bad: str = "error",
) -> tuple[Dataset, Report]:
    """Tokenise examples, cutting long answers at their end.

    Args:
        examples: validated examples, in any number; only their tokens stay in memory.
        tokenizer: a fast tokenizer.
        style: "auto", "alpaca", "chat" or "plain", see `PromptEncoder`.
        max_length: the most tokens that prompt and answer of one side may have together. An answer that exceeds it
            keeps its start, loses its end and its EOS, and is counted in the report.
        overlong: what to do when the prompt of EITHER side leaves no room for one answer token: "error" raises,
            "skip" leaves out the whole pair and counts it. Never is one side left out alone.
        on_bad: the same for a pair of which a side cannot be rendered: its turns have no place in the prompt, the chat
            template refuses or changes them, or the tokenizer makes nothing of the question.

    Returns:
        The dataset and the report. Columns: id, language, input_ids (prompt and answer), prompt_length,
        question_start, question_end (token positions, end exclusive), english_prompt_ids, english_question_start,
        english_question_end, english_answer_ids; the last four are None where there is no English counterpart.

    Raises:
        DataError: an over-long prompt under overlong="error", or an example that cannot be rendered under
            on_bad="error".
        PivotuneError: a wrong option or tokenizer, or no example left.
    """
    check_choice("overlong", overlong, ("error", "skip"))
    check_choice("on_bad", on_bad, ("error", "skip"))
    if max_length < 2:
        raise PivotuneError(f"max_length: got {max_length}; a prompt and its answer need at least 2 tokens")
    encoder = PromptEncoder(tokenizer, style)
    report = Report()
    batches = []
    rows = (row for _, row in tokenize_stream(examples, encoder, max_length, overlong, report, on_bad))
    while batch := list(islice(rows, _BATCH)):
        batches.append(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))
    if not report.kept:
        raise PivotuneError(f"no example to train on: {report}")
    if encoder.dated():
        report.remarks.append(
            "the chat template writes today's date into every prompt, so a prompt asked on another day differs from "
            "these. Fix the date with data.chat_template_kwargs, such as {date_string: 26 Jul 2024}, under the name "
            "that the template reads"
        )
    return Dataset(pa.Table.from_batches(batches, schema=_SCHEMA)), report


def tokenize_stream(
    examples: Iterable[ParallelExample],
    encoder: PromptEncoder,
    max_length: int,
    overlong: str,
    report: Report,
    on_bad: str = "error",
) -> Iterator[tuple[ParallelExample, dict[str, Any]]]:
    """Each example that is kept, with its row of `tokenize_examples`, as they come; `report` is kept up to date."""
    remaining = iter(examples)
    while batch := list(islice(remaining, _BATCH)):
        yield from _rows(batch, encoder, max_length, overlong, report, on_bad)
        del batch  # or it would stay until the next one is whole


def _rows(
    batch: list[ParallelExample], encoder: PromptEncoder, max_length: int, overlong: str, report: Report, on_bad: str
) -> Iterator[tuple[ParallelExample, dict[str, Any]]]:
    targets = encoder.encode_all((example.text, example.where) for example in batch)
    counterparts = iter(
        encoder.encode_all((example.english, example.where) for example in batch if example.english is not None)
    )
    for example, found in zip(batch, targets, strict=True):
        sides = [found] if example.english is None else [found, next(counterparts)]
        problem = next((side for side in sides if isinstance(side, DataError)), None)
        if problem is not None:
            if on_bad == "error":
                raise problem
            report.skip(problem)
            continue
        target, *more = [side for side in sides if isinstance(side, Encoded)]
        english = more[0] if more else None
        try:
            _check_length(example, target, "prompt", max_length)
            if english is not None:
                _check_length(example, english, "English prompt", max_length)
        except DataError as error:
            if overlong == "error":
                raise
            report.skip(error)
            continue
        report.keep(example.language, english is not None)
        for note in sorted({note for side in (target, *more) for note in side.notes}):
            report.note(note, example.where)
        ends = encoder.tokenizer.convert_ids_to_tokens(
            [side.answer_ids[-1] for side in (target, *more) if side.answer_ids]
        )
        report.ends.update(ends)
        report.truncated += len(target.prompt_ids) + len(target.answer_ids) > max_length
        if english is not None:
            report.english_truncated += len(english.prompt_ids) + len(english.answer_ids) > max_length
        tokens = token_row(*(_cut(side, max_length) for side in (target, *more)))
        yield example, {"id": example.id, "language": example.language, **tokens}


def token_row(target: Encoded, english: Encoded | None = None) -> dict[str, Any]:
    """The columns of an example that hold tokens, or say where they are: what a collator makes a batch of."""
    row: dict[str, Any] = {
        "input_ids": target.prompt_ids + target.answer_ids,
        "prompt_length": len(target.prompt_ids),
        "question_start": target.question_start,
        "question_end": target.question_end,
    }
    if english is not None:
        row |= {
            "english_prompt_ids": english.prompt_ids,
            "english_question_start": english.question_start,
            "english_question_end": english.question_end,
            "english_answer_ids": english.answer_ids,
        }
    return row


def _cut(side: Encoded, max_length: int) -> Encoded:
    """With as much of the answer as there is room for behind the prompt."""
    return replace(side, answer_ids=side.answer_ids[: max_length - len(side.prompt_ids)])


def _check_length(example: ParallelExample, side: Encoded, name: str, max_length: int) -> None:
    if len(side.prompt_ids) >= max_length:
        problem = (
            f"the {name} of id {example.id!r} has {len(side.prompt_ids)} tokens, so max_length {max_length} "
            "leaves no room for an answer"
        )
        raise DataError(
            example.where, "over-long prompt", problem, "raise max_length, shorten the row, or set overlong='skip'"
        )
