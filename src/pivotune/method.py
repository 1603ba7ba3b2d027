"""The method: one module that owns the model and the objectives of a run, and runs one forward per step.

Everything that a step needs happens inside `Method.forward`: the pass over the English text, the pass over the target
text, the objectives' losses. DistributedDataParallel and FSDP2 then see a single module with a single forward.

Without objectives it is plain supervised fine-tuning: on translated instructions the TFT baseline of DFT (AAAI 2025),
on English data alone their SFT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.compat import no_split_modules
from pivotune.data import Batch
from pivotune.errors import PivotuneError
from pivotune.losses import IGNORE, chunked_cross_entropy
from pivotune.objectives import OBJECTIVES, objective_of
from pivotune.objectives.base import Objective, Pass, Wants, decode, english_pass
from pivotune.taps import Injection, Tap


class Term(NamedTuple):
    """One named loss of a step: the sum over its items and how many there were, on this rank."""

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here

    @property
    def mean(self) -> Tensor:
        """Over its items; 0 where there are none."""
        return self.sum / self.count.clamp(min=1)


class MethodOutput(TypedDict):
    """`loss` to call backward on, and the terms it is made of, by name."""

    loss: Tensor
    terms: dict[str, Term]


class Method(nn.Module):
    """Fine-tuning with any objectives.

    Args:
        model: a causal LM that `pivotune.anatomy` knows, possibly wrapped by PEFT.
        objectives: options of each (`pivotune.objectives`), at most one of a kind, in any order; none for plain
            fine-tuning.

    Attributes:
        objectives: by name, in the order of `pivotune.objectives.OBJECTIVES`.
        progress: how far the training is, for weights that change in it; None where that is not known, and then
            nothing changes them.

    Raises:
        PivotuneError: an option that does not fit the model, or two of a kind; and in the forward pass, a weight that
            is still `auto` (`pivotune.proportions.weigh`).

    Example:
        >>> method = Method(model)
        >>> output = method(batch)
        >>> output["loss"].backward()
    """

    accepts_loss_kwargs = True  # tells transformers.Trainer that the loss is already normalised over the window

    def __init__(self, model: nn.Module, objectives: Sequence[Any] = ()):
        super().__init__()
        self.model = model
        self.anatomy = Anatomy(model)
        self.progress: float | None = None
        options: dict[str, Any] = {}
        for one in objectives:
            name = objective_of(one).name
            if name in options:
                raise PivotuneError(f"objectives: {name} is given twice; give it once.")
            options[name] = one
        self.objectives = nn.ModuleDict()
        for name, objective in OBJECTIVES.items():
            if name in options:
                self.objectives[name] = objective(options[name], model)

    @property
    def parts(self) -> list[Objective]:
        """The objectives, in order."""
        return list(self.objectives.values())  # type: ignore[arg-type]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the loss; a term of weight 0 is measured without gradient."""
        return {"lm": 1.0} | {name: weight for part in self.parts for name, weight in part.weights().items()}

    # The step --------------------------------------------------------------------------------------------------

    def forward(
        self, batch: Batch, counts: dict[str, Tensor] | None = None, *, collect: str | None = None
    ) -> MethodOutput | dict[str, Tensor]:
        """One step's loss; or, with `collect`, what that objective collects for its time after training.

        Args:
            batch: see `pivotune.objectives.base`.
            counts: what to divide each term's sum by, e.g. its count over the whole accumulation window and all
                ranks; the batch's own counts where None.
            collect: name of an objective.
        """
        if collect is not None:
            return self.objectives[collect].collect(batch)  # type: ignore[operator]
        self._check_weights()
        terms = self.terms(batch)
        divisors = {name: term.count for name, term in terms.items()} if counts is None else counts
        weighted = [
            weight * terms[name].sum / divisors[name].clamp(min=1) for name, weight in self._weights_now().items()
        ]
        return {"loss": torch.stack(weighted).sum(), "terms": terms}

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms of the loss, whatever their weights."""
        counts = self.counts(batch)
        english = english_pass(self.anatomy, batch, self._english_wants())
        injections = {part.name: part.injection(batch, english) for part in self.parts}
        target = self._target_pass(batch, {name: one for name, one in injections.items() if one is not None})
        sums = {"lm": self._language_modelling(batch, target)}
        for part in self.parts:
            sums |= part.terms(batch, target, english)
        return {name: Term(value, counts[name]) for name, value in sums.items()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many items each term of this batch has: answer tokens, English tokens, or pairs."""
        counts = {"lm": (batch["labels"][:, 1:] != IGNORE).sum()}
        for part in self.parts:
            counts |= part.counts(batch)
        return counts

    def _weights_now(self) -> dict[str, float]:
        """Those that are not 0, as they are at this part of the training."""
        found = {"lm": 1.0}
        for part in self.parts:
            strength = part.strength(self.progress) if self.training and self.progress is not None else 1.0
            found |= {name: strength * weight for name, weight in part.weights().items() if weight}
        return found

    def _check_weights(self) -> None:
        for part in self.parts:
            for name in part.open_weights():
                raise PivotuneError(
                    f"{part.name}: the weight of {name} is still auto. `pivotune train` finds it; in Python, "
                    "pivotune.proportions.weigh does."
                )

    def own_tensors(self) -> dict[str, Tensor]:
        """The objectives' parameters and buffers, beside the model's, by their names in the method's state."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}

    def _english_wants(self) -> Wants:
        return reduce(or_, (part.english_wants() for part in self.parts), Wants())

    def _target_wants(self) -> Wants:
        return reduce(or_, (part.target_wants() for part in self.parts), Wants())

    def _target_pass(self, batch: Batch, injections: Mapping[str, Injection]) -> Pass:
        with Tap(self.anatomy, hidden=self._target_wants().hidden, injections=injections.values()) as tap:
            final = decode(self.anatomy, batch["input_ids"], batch["attention_mask"])
        return Pass(final, tap.hidden, injections=injections)

    def _language_modelling(self, batch: Batch, target: Pass) -> Tensor:
        """`-log P(answer | question)` at the last layer, summed over answer tokens."""
        next_token = batch["labels"][:, 1:]
        keep = next_token != IGNORE
        return chunked_cross_entropy(
            target.final[:, :-1][keep],
            next_token[keep],
            self.anatomy.logits,
            list(self.anatomy.head.parameters()),
            vocab_size=self.anatomy.vocab_size,
        )

    # What transformers.Trainer and accelerate look for on a model ------------------------------------------------

    @property
    def config(self) -> Any:
        return self.anatomy.lm.config

    @property
    def _no_split_modules(self) -> Any:  # FSDP wraps these
        return no_split_modules(self.anatomy.lm)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        self.anatomy.lm.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:  # its name from transformers 5.2x on
        self.anatomy.lm.activation_checkpointing_enable(**options)

    def tie_weights(self) -> None:  # accelerate calls it for FSDP2 with cpu_ram_efficient_loading
        self.anatomy.lm.tie_weights()
