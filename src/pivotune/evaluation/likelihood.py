r"""The `likelihood` protocol: lm-evaluation-harness runs its own tasks on a run of Pivotune, connection included.

    lm = PivotuneLM("runs/zh", connection="matrix", batch_size=16)
    lm_eval.simple_evaluate(model=lm, tasks=["TASK", "OTHER"])

or, with everything that the harness's own command takes,

    python -m pivotune.evaluation.likelihood run --model pivotune --model_args pretrained=runs/zh connection=matrix \
        --tasks TASK OTHER --batch_size 16

Without a connection nothing of `HFLM` is overridden: its tokens, batches and sums, bit for bit. With one, an option is
ranked by log P(continuation | context) with the connection made at the context's last token(s), and the continuation's
tokens are then ordinary, as in the target pass of training. Context and continuation are the harness's own tokens: it
moves white space at the context's end into the continuation, so the connection is made at the last token before it.

This needs one pass over each context, shared by all of its continuations, and one over each context with continuation;
`HFLM` needs the latter alone. Continuations that differ in their last token only share the second pass too.

Not connected are: English tasks, because connecting English to itself lowered the scores in the paper; requests whose
context is empty, because then the text to rank follows no prompt; and `loglikelihood_rolling`, which has no context.

Some tasks of the harness are written with empty contexts: of a pair of sentences both are continuation. Their scores
are the same with and without a connection, and with few-shot examples the connection is made behind the last of these.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.logging import tqdm

from pivotune import compat
from pivotune.checkpoint import Run, load_run
from pivotune.connection import connect
from pivotune.data.collate import padded_ids
from pivotune.errors import PivotuneError
from pivotune.evaluation.metrics import SQUAD, squad_em, squad_f1
from pivotune.objectives import Connection
from pivotune.tokens import end_ids, fit_padding, rows_of

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise PivotuneError(
        "evaluation: the likelihood protocol runs on lm-evaluation-harness, which is not installed. "
        "Install it with: pip install 'pivotune[evaluation]'"
    ) from error

logger = logging.getLogger(__name__)

compat.check("pivotune.evaluation.likelihood")  # whose __name__ is another one where it is run

ENGLISH_TASKS = ("*_en", "*_eng_Latn")
"""Names of English tasks: what the harness calls the English part of a multilingual benchmark."""

_OF_HFLM = (
    "max_length",
    "max_batch_size",
    "softmax_dtype",
    "mixed_precision_dtype",
    "truncation",
    "logits_cache",
    "add_bos_token",
    "prefix_token_id",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)

_Tokens = tuple[int, ...]
_Request = tuple[tuple[str, str] | None, list[int], list[int]]  # (texts), context and continuation


@register_model("pivotune")
class PivotuneLM(HFLM):
    """A run of Pivotune, or any causal LM, as a model of lm-evaluation-harness.

    Args:
        pretrained: a run folder, a checkpoint of it, or what `AutoModelForCausalLM.from_pretrained` takes.
        connection: e.g. none or matrix. None takes the run's own default: matrix where it has one, else none.
        english_tasks: names of English tasks, which are not connected; patterns with * and ?. As one string they are
            separated by colons, because the harness separates its arguments by commas: hellaswag:arc_*. Tasks
            whose names do not end in the language have to be named.
        device: where to put the model; a GPU if there is one.
        dtype: of the weights; auto keeps the saved one.
        batch_size: rows per pass; auto only without a connection.
        run: what `pretrained` names, already loaded; device and dtype then say nothing.
        options: of `HFLM`: max_length, softmax_dtype, mixed_precision_dtype, add_bos_token, prefix_token_id, ...

    Raises:
        PivotuneError: no such run, a connection that it does not have, an option that only `HFLM`'s own loading has,
            or several processes: the harness shards its requests over models that it opened itself.

    Attributes:
        connection_mode: none or matrix.
    """

    def __init__(
        self,
        pretrained: str,
        connection: str | None = None,
        english_tasks: str | Sequence[str] = ENGLISH_TASKS,
        device: str | None = None,
        dtype: str | torch.dtype = "auto",
        batch_size: int | str = 1,
        run: Run | None = None,
        **options: Any,
    ):
        self._check(connection, options)
        run = load_run(pretrained, dtype=dtype, device=device) if run is None else run
        made = run.connection()
        if made is None and connection not in (None, "none"):
            raise PivotuneError(
                f"connection: got {connection!r}, but {pretrained} was not trained with a connection. "
                "Leave the option out."
            )
        self.connection_mode = connection or (made.modes[0] if made else "none")
        self.english_tasks = tuple(english_tasks.split(":") if isinstance(english_tasks, str) else english_tasks)
        self._connection: Connection | None = None
        self._connecting = False
        if self.connection_mode != "none":
            if str(batch_size).startswith("auto"):
                raise PivotuneError(
                    f"batch_size: got {batch_size!r}, which is not supported with a connection. Give a whole number."
                )
            assert made is not None
            self._connection = made
            connect(run.model, self._connection, self.connection_mode)
        # The tokenizer by its name: the harness then opens it with its own options.
        file = Path(pretrained)
        named = {"gguf_file": file.name} if file.suffix == ".gguf" else {"tokenizer": str(pretrained)}
        super().__init__(run.model, batch_size=batch_size, **named, **options)
        fit_padding(self.tokenizer, rows_of(run.model))
        if self.tokenizer.eos_token is None and (ends := end_ids(run.model, self.tokenizer)):  # the harness needs one
            self.tokenizer.eos_token = self.tokenizer.convert_ids_to_tokens(ends[0])

    @staticmethod
    def _check(connection: Any, options: dict[str, Any]) -> None:
        if connection == "english":
            raise PivotuneError(
                "connection: 'english' needs the English counterpart of every context, and the tasks of "
                "lm-evaluation-harness hold none. Choose matrix or none."
            )
        if unknown := sorted(set(options) - set(_OF_HFLM)):
            raise PivotuneError(
                f"model_args: got {', '.join(unknown)}; besides pretrained, connection, english_tasks, device, dtype "
                f"and batch_size these are known: {', '.join(_OF_HFLM)}."
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise PivotuneError(
                "evaluation: the likelihood protocol runs in one process; several would all do the same. "
                "Start it without accelerate launch or torchrun."
            )

    # What the harness asks -----------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log P(continuation | context) in nats, whether greedy decoding would give it) of each request."""
        return self._connected_or_not("loglikelihood", requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers, by the connected generate()."""
        return self._connected_or_not("generate_until", requests, disable_tqdm)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results about the model."""
        info = {"connection": self.connection_mode, "english_tasks": list(self.english_tasks)}
        return {**super().get_model_info(), **info}

    def _connected_or_not(self, name: str, requests: list[Any], disable_tqdm: bool) -> list[Any]:
        """HFLM's own method `name`, once for the requests to connect and once for the others."""
        run = getattr(super(), name)
        if self._connection is None:
            return run(requests, disable_tqdm=disable_tqdm)
        connected = [self._is_connected(request) for request in requests]
        answers: list[Any] = [None] * len(requests)
        for choice in (True, False):
            rows = [row for row, value in enumerate(connected) if value is choice]
            if not rows:
                continue
            with self._connecting_is(choice):
                for row, answer in zip(rows, run([requests[row] for row in rows], disable_tqdm), strict=True):
                    answers[row] = answer
        self._log_what_is_connected(requests, connected)
        return answers

    def _is_connected(self, request: Any) -> bool:
        return bool(request.args[0].strip()) and not self._is_english(request.task_name)

    def _is_english(self, task: str | None) -> bool:
        return task is not None and any(fnmatchcase(task, pattern) for pattern in self.english_tasks)

    def _log_what_is_connected(self, requests: list[Any], connected: list[bool]) -> None:
        for task in sorted({str(request.task_name) for request in requests}):
            made = [c for request, c in zip(requests, connected, strict=True) if str(request.task_name) == task]
            if self._is_english(task):
                logger.info("connection: %s is English and not connected.", task)
            elif all(made):
                logger.info("connection: made in all %d requests of %s.", len(made), task)
            else:
                logger.warning(
                    "connection: %d of the %d requests of %s have no context to connect, and were not connected.",
                    len(made) - sum(made),
                    len(made),
                    task,
                )

    @contextmanager
    def _connecting_is(self, value: bool) -> Iterator[None]:
        self._connecting = value
        try:
            yield
        finally:
            self._connecting = False

    # How HFLM answers ----------------------------------------------------------------------------------------------

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        if self._connection is not None and not self._connecting:
            options["connection"] = "none"
        return super()._model_generate(context, max_length, stop, **options)

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not self._connecting:
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        return self._connected_tokens(requests, disable_tqdm)

    def _connected_tokens(self, requests: Sequence[_Request], disable_tqdm: bool) -> list[tuple[float, bool]]:
        # Equal rows with the connection at the same place are computed once. HFLM too shares a row among options that
        # differ in their last token; but its key leaves out where the context ends.
        rows: dict[tuple[_Tokens, _Tokens], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            assert context and continuation and len(continuation) <= self.max_length
            tokens = (context + continuation)[-(self.max_length + 1) :][:-1]  # too long: cut on the left, as in HFLM
            length = len(tokens) - len(continuation) + 1
            rows.setdefault((tuple(tokens[:length]), tuple(tokens[length:])), []).append(number)

        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running connected loglikelihood requests")
        lent = self._lend(list(dict.fromkeys(context for context, _ in rows)))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for part in self._batches(list(rows), key=lambda row: row[0] + row[1]):
            inputs, _ = padded_ids([context + begun for context, begun in part], 0, device=self.device)
            last = torch.tensor([len(context) - 1 for context, _ in part], device=self.device)
            assert self._connection is not None
            with self._connection.at([lent[context] for context, _ in part], last):
                logits_BTV = self._model_call(inputs)
            for logits_TV, row in zip(logits_BTV, part, strict=True):
                context, begun = row
                span = slice(len(context) - 1, len(context) + len(begun))
                log_p_CV = F.log_softmax(logits_TV[span], dim=-1, dtype=self.softmax_dtype)
                greedy = log_p_CV.argmax(dim=-1)
                for number in rows[row]:
                    texts, _, continuation = requests[number]
                    token = torch.tensor(continuation, device=self.device)
                    log_p = log_p_CV.gather(1, token[:, None]).sum()
                    answers[number] = (float(log_p), bool((greedy == token).all()))
                    if texts is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, answers[number])
                    bar.update(1)
        bar.close()
        return answers

    def _lend(self, contexts: list[_Tokens]) -> dict[_Tokens, Any]:
        """What each context is lent."""
        assert self._connection is not None
        lent: dict[_Tokens, Any] = {}
        for part in self._batches(contexts, key=lambda context: context):
            mixed = self.mixed_precision_dtype
            with torch.no_grad(), torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
                vectors = self._connection.lend(*padded_ids(part, 0, device=self.device))
            lent |= zip(part, vectors, strict=True)
        return lent

    def _batches(self, items: list[Any], key: Any) -> Iterator[list[Any]]:
        """Batches of `batch_size`, the longest first: memory fails early, not late."""
        ordered = sorted(items, key=lambda item: (-len(key(item)), key(item)))
        for start in range(0, len(ordered), int(self.batch_size)):
            yield ordered[start : start + int(self.batch_size)]


def _compute_exact(gold: str, prediction: str) -> int:
    return int(squad_em(prediction, [gold], "en", normalization=SQUAD))


def _compute_f1(gold: str, prediction: str) -> float:
    # Two empty answers agree here, as in SQuAD 2; in SQuAD 1 they score 0.
    return max(_compute_exact(gold, prediction), squad_f1(prediction, [gold], "en", normalization=SQUAD))


compat.provide_squad_metrics(_compute_exact, _compute_f1)

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
