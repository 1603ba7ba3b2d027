"""Connections at inference: what a run's objectives add to the passes of its model, turned on and off.

connect(model, connection, "matrix")    # from pivotune.checkpoint.Run.connection(), say
model.generate(...)                     # as usual, connected
disconnect(model)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy, unwrap
from pivotune.objectives.base import Connection


class Together(Connection):
    """Several connections as one. Each is made in the mode that is asked for, or in its own default where it has not
    got that one; `none` turns all of them off.

    Args:
        parts: one or more, all of the same model.
    """

    def __init__(self, parts: Sequence[Connection]):
        self.parts = tuple(parts)
        self.modes = tuple(dict.fromkeys(mode for part in parts for mode in part.modes))

    def _modes(self, mode: str) -> list[tuple[Connection, str]]:
        chosen = [(part, mode if mode in part.modes else part.modes[0]) for part in self.parts]
        return [(part, its) for part, its in chosen if its != "none"]

    @contextmanager
    def generating(self, mode: str, connected: Tensor | None, english: Mapping[str, Tensor]) -> Iterator[None]:
        with ExitStack() as stack:
            for part, its in self._modes(mode):
                stack.enter_context(part.generating(its, connected, english))
            yield

    def lend(self, input_ids: Tensor, attention_mask: Tensor) -> list[Any]:
        return list(zip(*(part.lend(input_ids, attention_mask) for part in self.parts), strict=True))

    @contextmanager
    def at(self, lent: Sequence[Any], last_B: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            for part, its in zip(self.parts, zip(*lent, strict=True), strict=True):
                stack.enter_context(part.at(its, last_B))
            yield


def connect(model: nn.Module, connection: Connection, mode: str | None = None) -> None:
    """Make `model.generate()` use the connection.

    generate() then takes four more arguments:
        connection: one of the connection's modes; `mode` where it is not given.
        english_input_ids, english_attention_mask: (B, S) the prompts' English counterparts, for `english`.
        connected: (B,) bool, rows to connect; all where it is not given. English prompts should not be connected: that
            lowered the scores in the paper of CC-Tuning.

    Args:
        model: the causal LM, possibly wrapped by PEFT.
        connection: made for this very model.
        mode: the default; the connection's own where None.

    Raises:
        PivotuneError: a mode that the connection has not got.
    """
    mode = mode or connection.modes[0]
    connection.check(mode)
    disconnect(model)
    lm = Anatomy(model).lm
    # Instance attributes shadow the class's methods: reversible, and invisible to save_pretrained.
    lm.generate = partial(_generate, connection, mode, lm.generate)


def disconnect(model: nn.Module) -> None:
    """Undo `connect`; nothing happens to a model that is not connected."""
    vars(Anatomy(model).lm).pop("generate", None)


def is_connected(model: nn.Module) -> bool:
    return "generate" in vars(unwrap(model))


def _generate(
    lent: Connection,
    default: str,
    plain_generate: Callable,
    *args: Any,
    connection: str | None = None,
    english_input_ids: Tensor | None = None,
    english_attention_mask: Tensor | None = None,
    connected: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    mode = connection or default
    lent.check(mode)
    english = {"input_ids": english_input_ids, "attention_mask": english_attention_mask}
    given = {name: tensor for name, tensor in english.items() if tensor is not None}
    with torch.no_grad():
        if mode == "none":
            return plain_generate(*args, **kwargs)
        with lent.generating(mode, connected, given):
            return plain_generate(*args, **kwargs)
