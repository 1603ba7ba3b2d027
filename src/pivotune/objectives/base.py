"""What an objective is: something that a run teaches beside the ordinary loss, and everything that belongs to it.

`pivotune.method.Method` runs the step; an objective says what it needs of it. Its folder holds all that knows its
name: options and their checks, what it wants captured and adds, its terms and their counts, its own tensors, what
happens before and after training, what it does at inference, and what the lens measures of it. `pivotune.objectives`
lists them.

The batch is what `pivotune.data.ParallelCollator` makes; its docstring lists the tensors and their shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data.collate import Batch, last_token
from pivotune.errors import PivotuneError
from pivotune.taps import Injection, Tap

if TYPE_CHECKING:
    from pivotune.lens.activations import Measure


@dataclass(frozen=True)
class Wants:
    """Activations to keep from a pass: the outputs of `hidden` layers, every layer's feed-forward output at the last
    prompt token, and whether gradients must flow into them."""

    hidden: frozenset[int] = frozenset()
    feed_forward: bool = False
    gradient: bool = False

    def __or__(self, other: Wants) -> Wants:
        return Wants(
            self.hidden | other.hidden, self.feed_forward or other.feed_forward, self.gradient or other.gradient
        )

    def __bool__(self) -> bool:
        return bool(self.hidden) or self.feed_forward


@dataclass
class Pass:
    """What one pass left: `final` (B, T, d) states behind the final norm, `hidden` by layer (B, T, d), and
    `feed_forward` (B, L, d) at the last prompt token. `injections`, by objective, are what was added on its way."""

    final: Tensor
    hidden: dict[int, Tensor] = field(default_factory=dict)
    feed_forward: Tensor | None = None
    injections: Mapping[str, Injection] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """What the size of a term is compared with (`pivotune.proportions`).

    Attributes:
        layer: that it supervises.
        guess: from its number of items, what guessing gives; None where that means nothing.
        advice: a sentence, what to do where it is worse than guessing.
    """

    layer: int
    guess: Callable[[int], float | None]
    advice: str


@dataclass(frozen=True)
class TextRead:
    """A text of each pair, made of its parts, that runs through some layers, where the frozen head reads some tokens.

    Attributes:
        tokens: of each pair's text, (P,).
        read: how many of them are read, (P,).
        layer: up to which it runs; "auto" while that is open.
    """

    tokens: Tensor
    read: Tensor
    layer: int | str


@dataclass(frozen=True)
class BeforeTraining:
    """What an objective may look at when it settles options that are left to it, such as a layer that is `auto`.

    Attributes:
        model: the causal LM, not yet wrapped for distributed training.
        rows: the tokenised training set.
        args: of the training.
        record: what this objective recorded in the checkpoint that is resumed, and the options it had; else None.
        title: of pictures.
    """

    model: nn.Module
    rows: Any
    args: Any
    record: tuple[dict[str, Any], dict[str, Any]] | None = None
    title: str = ""


@dataclass(frozen=True)
class Settled:
    """What `Objective.settle` gives back.

    Attributes:
        options: with values for all that was left open.
        record: what `pivotune.json` should say of it, by name.
        write: writes files about it into the run folder; None where there are none, and in all but the first process.
    """

    options: Any
    record: dict[str, Any] = field(default_factory=dict)
    write: Callable[[Path], object] | None = None


@dataclass(frozen=True)
class AfterTraining:
    """What an objective may use once the model is trained.

    Attributes:
        method: the whole trained method, as the distributed wrapper's root sees it; call it, not its parts.
        rows: the tokenised training set.
        collator: makes a batch of rows.
        batch_size, seed: of the training's evaluation batches, and its seed.
        is_main: whether this process prints.
    """

    method: Any
    rows: Any
    collator: Callable[[Sequence[Mapping[str, Any]]], Batch]
    batch_size: int
    seed: int
    is_main: bool = True


class Connection(ABC):
    """What an objective adds to the model's passes at inference.

    Attributes:
        modes: how it can be made, the default first. `none` is always among them: the model alone.
    """

    modes: tuple[str, ...]

    def check(self, mode: str) -> None:
        """Raise a PivotuneError unless `mode` is one of `modes`."""
        if mode not in self.modes:
            raise PivotuneError(f"connection: got {mode!r}; this run can be connected by {', '.join(self.modes)}.")

    @abstractmethod
    def generating(
        self, mode: str, connected: Tensor | None, english: Mapping[str, Tensor]
    ) -> AbstractContextManager[None]:
        """A context around one call of the model's generate().

        Args:
            mode: one of `modes`, not `none`.
            connected: (B,) bool, the rows to connect; None for all.
            english: input_ids and attention_mask, (B, S), of the prompts' English counterparts; may be empty.
        """

    @abstractmethod
    def lend(self, input_ids: Tensor, attention_mask: Tensor) -> Sequence[Any] | Tensor:
        """What each of these contexts, padded on either side, is given, for `at`: B of whatever it is."""

    @abstractmethod
    def at(self, lent: Sequence[Any], last_B: Tensor) -> AbstractContextManager[None]:
        """A context in which forward passes over whole rows are connected; `last_B` is where each context ends."""


class Objective(nn.Module):
    """One objective of a run. Subclasses override what they need; all of it is optional but the names.

    Args:
        options: an instance of `Options`, all of it settled.
        model: the causal LM, possibly wrapped by PEFT.

    Class attributes:
        name: its section in the YAML file and its key in `pivotune.json`.
        title: its name in prose.
        summary: one line of help.
        citation: of its source, BibTeX.
        Options: dataclass of its options.
        fewest_pairs: how many examples with an English counterpart it needs at least; 0 where it needs none.
        read_after_training: options that only `after_training` reads, so that a resumed run may change them.
        connects: it changes the model's passes at inference too.
        lens_columns: (head, table, factor) of the columns in the lens's tables.
        lens_plots: names of the files that `figures` writes, without their endings.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str] = ""
    Options: ClassVar[type]
    fewest_pairs: ClassVar[int] = 1
    read_after_training: ClassVar[Sequence[str]] = ()
    connects: ClassVar[bool] = False
    lens_columns: ClassVar[Sequence[tuple[str, str, float]]] = ()
    lens_plots: ClassVar[Sequence[str]] = ()

    def __init__(self, options: Any, model: nn.Module):
        super().__init__()
        self.options, self.anatomy = options, Anatomy(model)
        self.fitted: dict[str, Tensor] = {}
        """Own tensors that come after training, whole on every rank; saved beside the parameters."""

    # Before training -------------------------------------------------------------------------------------------

    @classmethod
    def on_skeleton(cls, options: Any, model: nn.Module) -> Objective:
        """Itself on a model without weights, before anything is settled: raises what is wrong with the options."""
        return cls(options, model)

    @classmethod
    def needs_english_answer(cls, options: Any) -> str | None:
        """The option, with its value, for which examples with English must have the English answer too."""
        return None

    @classmethod
    def texts_read(cls, options: Any, lengths: Mapping[str, Tensor]) -> list[TextRead]:
        """Further texts that it sends through the model with a gradient, beside prompts with their answers.

        Args:
            lengths: of each pair, in tokens: `prompt`, `english_question` and `english_answer`.
        """
        return []

    @classmethod
    def remarks(cls, options: Any) -> list[str]:
        """Warnings about these options."""
        return []

    @classmethod
    def settle(cls, options: Any, before: BeforeTraining) -> Settled:
        """Values for options that are left to the run. Every rank calls this and gets the same."""
        return Settled(options)

    def prepare(self, before: BeforeTraining) -> dict[str, Any]:
        """What remains to be done on the plain model before the first step: fill own tensors, the same on every rank,
        and return what `pivotune.json` should say of it, by name. In a resumed run they are restored before this."""
        return {}

    # Training --------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, float]:
        """Weight of each of its terms in the loss; a term of weight 0 is measured without gradient."""
        return {}

    def strength(self, progress: float) -> float:
        """What its weights are multiplied by in training, 0..1.

        Args:
            progress: the step's number over that of all steps, above 0 and at most 1.
        """
        return 1.0

    def scales(self) -> dict[str, Scale]:
        """What each of its terms is compared with in the first step."""
        return {}

    def first_remarks(self, means: Mapping[str, float]) -> list[str]:
        """Warnings after the first step's look at its terms; `means` of these, by name."""
        return []

    def open_weights(self) -> dict[str, float]:
        """Terms whose weight is `auto`, and what the norm of their gradient should be over that of the ordinary loss,
        at the layer that they supervise (`scales`). `pivotune.proportions.weigh` finds the weights."""
        return {}

    def set_weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Give these terms their weights; returns the options that hold them now."""
        raise NotImplementedError

    def english_wants(self) -> Wants:
        return Wants()

    def target_wants(self) -> Wants:
        return Wants()

    def injection(self, batch: Batch, english: Pass | None) -> Injection | None:
        """What to add to the target pass on its way."""
        return None

    def terms(self, batch: Batch, target: Pass, english: Pass | None) -> dict[str, Tensor]:
        """The sums of its terms."""
        return {}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The number of items in each of those sums, from the batch alone."""
        return {}

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        """Activations for `after_training`. They come through the method's forward (`collect=name`), because FSDP2
        knows only the root's."""
        raise NotImplementedError

    def after_training(self, after: AfterTraining) -> dict[str, Any]:
        """What remains to be done once the model is trained: fill `fitted`, and return what `pivotune.json` should say
        of it, by name. Every rank calls this."""
        return {}

    # Inference -------------------------------------------------------------------------------------------------

    @classmethod
    def modes(cls, tensors: Sequence[str]) -> tuple[str, ...]:
        """How a run with these own tensors can be connected, the default first."""
        return ("none",)

    @classmethod
    def connection(cls, model: nn.Module, options: Any, tensors: Mapping[str, Tensor]) -> Connection | None:
        """What it adds at inference, made of a run's options and own tensors; None for nothing."""
        return None

    # The lens --------------------------------------------------------------------------------------------------

    @classmethod
    def marked_layers(cls, options: Any) -> tuple[int, int] | None:
        """The two layers that tables and plots of a run should mark."""
        return None

    @classmethod
    def measure(
        cls, anatomy: Anatomy, options: Any | None, connection: Connection | None
    ) -> Callable[[], Measure] | None:
        """Makes the measure of this objective anew for each language; None where there is nothing to measure.

        Args:
            anatomy: of the model that is read.
            options: those it was trained with; None where it was not trained with this objective.
            connection: as from `connection`.
        """
        return None

    @classmethod
    def lens_lines(cls, found: Mapping[str, Any]) -> list[str]:
        """Sentences below the table of one language, from what the measure found."""
        return []

    @classmethod
    def figures(cls, report: Mapping[str, Any], folder: Path) -> list[Path]:
        """Plots of a lens report; returns the files."""
        return []

    # For subclasses ----------------------------------------------------------------------------------------------

    def decode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """A pass through the decoder without a cache: (B, T, d) states behind the final norm."""
        return decode(self.anatomy, input_ids, attention_mask)


def decode(anatomy: Anatomy, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return anatomy.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def english_pass(anatomy: Anatomy, batch: Batch, wants: Wants) -> Pass | None:
    """The English prompts through the layers that somebody needs; None where nothing is wanted."""
    if not wants:
        return None
    mask = batch["english_attention_mask"]
    depth = anatomy.num_layers if wants.feed_forward else max(wants.hidden)
    last = last_token(mask) if wants.feed_forward else None
    with (
        unobtrusive(mask.device, not wants.gradient),
        anatomy.truncated(depth),
        Tap(anatomy, hidden=wants.hidden, at=last) as tap,
    ):
        final = decode(anatomy, batch["english_input_ids"], mask)
    if not wants.feed_forward:
        return Pass(final, tap.hidden)
    # FSDP2 gathers a layer's parameters for the backward pass when a gradient reaches the layer's OUTPUT. Of the
    # last layer only the inside is used here; so a gradient of zero is sent through its output.
    return Pass(final, tap.hidden, tap.states("feed_forward") + 0.0 * final[0, 0, 0])


@contextmanager
def unobtrusive(device: torch.device, active: bool = True) -> Iterator[None]:
    """Without gradient, and without a trace in the random state: measuring must not change the training."""
    if not active:
        yield
        return
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
