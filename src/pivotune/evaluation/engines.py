"""The two protocols as engines: items in, results out, one batch at a time.

Engines keep nothing between batches, so whoever writes each batch as it comes loses at most one to a crash. The same
items give the same batches.

Generation is ours. Likelihood is lm-evaluation-harness: its tasks word the items, its model class sums the
log-probabilities, its metrics score them; here they are only paired with the items again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from pivotune.compat import encode_pair, without_bars_of_tasks
from pivotune.data.examples import ParallelExample, Text, is_english
from pivotune.data.prompts import without_reasoning
from pivotune.errors import PivotuneError
from pivotune.evaluation.adherence import LanguageIdentifier
from pivotune.evaluation.benchmarks import Item, benchmark_of, harness_task, task_specs
from pivotune.evaluation.benchmarks.harness import task_manager
from pivotune.evaluation.metrics import need
from pivotune.evaluation.results import ItemResult
from pivotune.generation import Answer, generate_batches
from pivotune.tokens import context_length


class Engine(Protocol):
    """Answers items of one benchmark and language, longest first.

    Attributes:
        max_length: tokens that the model takes, prompt and answer together; None where it says no limit.
        cut: items so far that did not fit and lost their beginning.
    """

    max_length: int | None
    cut: int

    def __call__(self, items: Sequence[Item]) -> Iterator[list[ItemResult]]:
        """Batches of results, each item in one of them."""
        ...


# Generation ------------------------------------------------------------------------------------------------------


class GenerationEngine:
    """Greedy answers to the items' prompts, scored by the benchmark's metric.

    Args:
        model, tokenizer: as from `pivotune.load`, connected where it should be.
        style: plain, alpaca or chat: what is put around the prompts, which are whole ones in the target language.
        connection: none, english or matrix; English items are not connected.
        batch_size: items per call of generate().
        max_new_tokens: of an answer.
        max_length: of prompt and answer together, in tokens; the model's own context where None.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        style: str = "plain",
        connection: str = "none",
        batch_size: int = 16,
        max_new_tokens: int = 40,
        max_length: int | None = None,
    ):
        self.cut = 0
        self._style = style
        self._identifier = LanguageIdentifier()
        length = self.max_length = max_length or context_length(model, tokenizer)
        if length is not None and length <= max_new_tokens:
            raise PivotuneError(
                f"max_new_tokens: got {max_new_tokens}, but the model's context has {length} tokens for prompt and "
                "answer. Give fewer."
            )
        self._answers: Callable[[Sequence[ParallelExample]], Iterator[list[Answer]]] = partial(
            generate_batches,
            model,
            tokenizer,
            style=style,
            connection=connection,
            batch_size=batch_size,
            max_prompt_tokens=None if length is None else length - max_new_tokens,
            max_new_tokens=max_new_tokens,
            # Greedy whatever the model's own generation_config.json says of sampling.
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
        )

    def __call__(self, items: Sequence[Item]) -> Iterator[list[ItemResult]]:
        """Results of the items; `english` of each must be there under connection="english"."""
        for batch in self._answers([_example(item) for item in items]):
            self.cut += sum(answer.cut for answer in batch)
            yield [self._result(items[answer.question], answer.text) for answer in batch]

    def _result(self, item: Item, text: str) -> ItemResult:
        answer = answer_text(item, text, self._style)
        kind = self._identifier.judge(answer, item.language).kind
        return replace(
            score_answer(item, answer), in_language=None if kind == "undetermined" else kind == "in language"
        )


def answer_text(item: Item, text: str, style: str = "plain") -> str:
    """The answer within what was generated, without white space at its ends.

    To benchmarks of short questions it is the first line, as in the harness, whose tasks stop at a line break. So
    nothing is left of a text that begins with one; except inside a template, where that only ends the template's last
    line. Elsewhere it is all that was generated. Reasoning (<think>...</think>) is no part of an answer; where it has
    not ended, there is none.
    """
    text = without_reasoning(text)
    if not benchmark_of(item.benchmark).first_line:
        return text.strip()
    return (text if style == "plain" else text.lstrip()).partition("\n")[0].strip()


def score_answer(item: Item, answer: str) -> ItemResult:
    """The result of a generated answer by its benchmark's scorer, but for its language."""
    score = benchmark_of(item.benchmark).score
    assert score is not None, f"{item.name}: options are ranked, and nothing is generated"
    return score(item, answer)


def _example(item: Item) -> ParallelExample:
    """The item's prompt as a question that `generate_batches` takes: raw, so that only a template may surround it."""
    english = item.english
    return ParallelExample(
        id=item.id,
        language=item.language,
        text=Text(prompt=item.prompt),
        english=None if english is None else Text(prompt=english.prompt),
        where=item.name,
    )


# Likelihood ------------------------------------------------------------------------------------------------------


class LikelihoodEngine:
    """The options of the items ranked by lm-evaluation-harness.

    Each batch is an evaluation of its own on `batch_size` items, so the harness passes over two to about a dozen times
    as many rows. That costs about a hundredth of a second more than one evaluation of all.

    Args:
        lm: a model of the harness, such as `pivotune.evaluation.likelihood.PivotuneLM`.
        batch_size: items per batch.
    """

    def __init__(self, lm: Any, batch_size: int = 16):
        self.cut = 0
        self.max_length: int | None = getattr(lm, "max_length", None)
        self._lm = lm
        self._batch_size = batch_size
        self._evaluate = need("lm_eval.evaluator", "lm_eval").evaluate
        self._manager = task_manager()

    def __call__(self, items: Sequence[Item]) -> Iterator[list[ItemResult]]:
        """Results of the items."""
        ordered = sorted(items, key=_characters, reverse=True)
        for start in range(0, len(ordered), self._batch_size):
            yield self._batch(ordered[start : start + self._batch_size])

    def _batch(self, items: list[Item]) -> list[ItemResult]:
        # By language: the names of some English tasks do not say that they are English.
        self._lm.english_tasks = ("*",) if is_english(items[0].language) else ()
        with quiet_harness(), _without_bars(self._lm):
            loaded = self._manager.load(task_specs([harness_task(items)]))
            ((name, task),) = loaded["tasks"].items()
            task.set_config(key="num_fewshot", value=0)
            try:
                samples = self._evaluate(self._lm, loaded, bootstrap_iters=0)["samples"][name]
            except AssertionError:
                self._check_options(task.instances)
                raise
        by_id = {sample["doc"]["id"]: sample for sample in samples}
        return [self._result(item, by_id[item.id]) for item in items]

    def _result(self, item: Item, sample: dict[str, Any]) -> ItemResult:
        assert item.options is not None
        log_p = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert len(log_p) == len(item.options), f"{item.name}: {len(log_p)} log-likelihoods"
        self.cut += self._is_cut(sample["arguments"])
        # Of equal ones the first, as in the harness; none where one is NaN, of which the harness makes a choice too.
        choice = None if any(map(math.isnan, log_p)) else max(range(len(log_p)), key=log_p.__getitem__)
        score = float(choice == item.gold)
        assert choice is None or score == sample["acc"], f"{item.name}: the harness scored another option"
        return ItemResult(
            id=item.id,
            score=score,
            prediction=None if choice is None else item.options[choice],
            choice=choice,
            gold=item.gold,
            loglikelihoods=tuple(value if math.isfinite(value) else None for value in log_p),
        )

    def _check_options(self, requests: Sequence[Any]) -> None:
        """An error for the user where the harness has an assertion: it cuts contexts, but no option."""
        for request in requests:
            _, length = self._tokens(*request.args)
            if self.max_length is not None and length > self.max_length:
                raise PivotuneError(
                    f"{request.task_name}, item {request.doc['id']!r}: an option has {length} tokens, and the model's "
                    f"context {self.max_length}. Leave this language out, or take a model with a longer context."
                )

    def _is_cut(self, requests: Sequence[tuple[str, str]]) -> bool:
        """Whether a context with its option is longer than the model's. The harness cuts its beginning."""
        length = self.max_length
        if length is None:
            return False
        # A token is at least a byte: most texts need no second tokenising.
        long = [request for request in requests if len("".join(request).encode()) > length]
        return any(sum(self._tokens(*request)) > length + 1 for request in long)

    def _tokens(self, context: str, continuation: str) -> tuple[int, int]:
        """How many the harness makes of either; in place of an empty context it puts one."""
        if not context:
            return 1, len(self._lm.tok_encode(continuation))
        context_ids, continuation_ids = encode_pair(self._lm, context, continuation)
        return len(context_ids), len(continuation_ids)


def _characters(item: Item) -> int:
    return len(item.context) + len(item.question) + max(map(len, item.options or ("",)))


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Without the harness's messages, which are meant for one evaluation of all and would come with every batch."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "pivotune.evaluation.likelihood")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


@contextmanager
def _without_bars(lm: Any) -> Iterator[None]:
    """Without the progress bars of the harness and of datasets, for the same reason."""
    import datasets

    bars_of_datasets = datasets.is_progress_bar_enabled()
    try:
        lm.loglikelihood = partial(lm.loglikelihood, disable_tqdm=True)
        datasets.disable_progress_bar()
        with without_bars_of_tasks():
            yield
    finally:
        vars(lm).pop("loglikelihood", None)
        if bars_of_datasets:
            datasets.enable_progress_bar()
