"""Several processes of one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from pivotune.errors import PivotuneError

Result = TypeVar("Result")


def on_first_process(args: TrainingArguments, function: Callable[[], Result]) -> Result:
    """What the first process finds, for all of them; and the error, where it finds one."""
    answer: list[Any] = [None]
    failure: Exception | None = None
    if args.process_index == 0:
        try:
            answer = [(function(), None)]
        except Exception as error:
            failure, answer = error, [(None, str(error))]
    if args.world_size > 1:  # the other processes wait for an answer, also for a bad one
        broadcast_object_list(answer)
    found, problem = answer[0]
    if problem is not None:
        raise failure or PivotuneError(problem)
    return found
