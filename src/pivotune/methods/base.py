"""What every method shares: one module that owns the model, one forward per step, named terms.

Everything that a step needs happens inside `Method.forward`: the pass over the English text, the pass over the target
text, the extra losses. DistributedDataParallel and FSDP2 then see a single module with a single forward.

A method is written by overriding a few small hooks:

    english_wants / target_wants    which activations to keep from either pass
    injection                       what to add to the target pass on its way
    auxiliary, auxiliary_counts     further terms and what to divide them by

Hooks of different methods do not overlap, so two methods combine by inheriting from both.

The batch (B examples, P >= 1 English rows; right-padded; made by `pivotune.data.ParallelCollator`):

    input_ids, attention_mask, labels   (B, T)  prompt and answer; labels are -100 outside the answer
    prompt_length                       (B,)    the last prompt token is at prompt_length - 1
    question_start, question_end        (B,)    token span of the question within the prompt
    pair_row                            (P,)    the example each English row belongs to; -1 for the row that stands in
                                                when no example has English, so that every rank runs the same passes
    english_input_ids, english_attention_mask     (P, S)  the English prompt, without an answer
    english_question_start, english_question_end  (P,)
    english_answer_ids                  (P, A)  padded with -100
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.losses import IGNORE, chunked_cross_entropy
from pivotune.taps import Injection, Tap

Batch = dict[str, Tensor]


class Term(NamedTuple):
    """One named loss of a step: the sum over its items and how many there were, on this rank."""

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


class MethodOutput(TypedDict):
    """`loss` to call backward on, and the terms it is made of, by name."""

    loss: Tensor
    terms: dict[str, Term]


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
    `feed_forward` (B, L, d) at the last prompt token."""

    final: Tensor
    hidden: dict[int, Tensor] = field(default_factory=dict)
    feed_forward: Tensor | None = None


class Method(nn.Module):
    """Plain fine-tuning, and the frame of every other method.

    Args:
        model: a causal LM that `pivotune.anatomy` knows, possibly wrapped by PEFT.
    """

    accepts_loss_kwargs = True  # tells transformers.Trainer that the loss is already normalised over the window

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.anatomy = Anatomy(model)

    # What a method overrides -----------------------------------------------------------------------------------

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the loss; a term of weight 0 is measured without gradient."""
        return {"lm": 1.0}

    def english_wants(self) -> Wants:
        return Wants()

    def target_wants(self) -> Wants:
        return Wants()

    def injection(self, batch: Batch, english: Pass | None) -> Injection | None:
        return None

    def auxiliary(self, batch: Batch, target: Pass, english: Pass | None) -> dict[str, Tensor]:
        """The sums of this method's own terms."""
        return {}

    def auxiliary_counts(self, batch: Batch) -> dict[str, Tensor]:
        """The number of items in each of those sums, from the batch alone."""
        return {}

    # The step --------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, counts: dict[str, Tensor] | None = None) -> MethodOutput:
        """One step's loss.

        Args:
            batch: see the module's docstring.
            counts: what to divide each term's sum by, e.g. its count over the whole accumulation window and all
                ranks; the batch's own counts where None.
        """
        own_counts = self.counts(batch)
        english = self._english_pass(batch)
        target = self._target_pass(batch, self.injection(batch, english))
        sums = {"lm": self._language_modelling(batch, target), **self.auxiliary(batch, target, english)}

        divisors = own_counts if counts is None else counts
        weighted = [
            weight * sums[name] / divisors[name].clamp(min=1) for name, weight in self.weights.items() if weight
        ]
        terms = {name: Term(value, own_counts[name]) for name, value in sums.items()}
        return {"loss": torch.stack(weighted).sum(), "terms": terms}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many items each term of this batch has: answer tokens, English tokens, or pairs."""
        answer_tokens = (batch["labels"][:, 1:] != IGNORE).sum()
        return {"lm": answer_tokens, **self.auxiliary_counts(batch)}

    def extra_state(self) -> dict[str, Tensor]:
        """The method's own tensors, beside the model's."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}

    def _target_pass(self, batch: Batch, injection: Injection | None) -> Pass:
        with Tap(self.anatomy, hidden=self.target_wants().hidden, injection=injection) as tap:
            final = self._decode(batch["input_ids"], batch["attention_mask"])
        return Pass(final, tap.hidden)

    def _english_pass(self, batch: Batch) -> Pass | None:
        """The English prompts through the layers that somebody needs; None where nobody does."""
        wants = self.english_wants()
        if not wants:
            return None
        mask = batch["english_attention_mask"]
        depth = self.anatomy.num_layers if wants.feed_forward else max(wants.hidden)
        last = last_token(mask) if wants.feed_forward else None
        with (
            unobtrusive(mask.device, not wants.gradient),
            self.anatomy.truncated(depth),
            Tap(self.anatomy, hidden=wants.hidden, feed_forward_at=last) as tap,
        ):
            final = self._decode(batch["english_input_ids"], mask)
        if not wants.feed_forward:
            return Pass(final, tap.hidden)
        # FSDP2 gathers a layer's parameters for the backward pass when a gradient reaches the layer's OUTPUT. Of the
        # last layer only the inside is used here; so a gradient of zero is sent through its output.
        return Pass(final, tap.hidden, tap.feed_forward() + 0.0 * final[0, 0, 0])

    def _decode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.anatomy.decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state

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
        return self.anatomy.lm._no_split_modules

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        self.anatomy.lm.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:  # its name from transformers 5.2x on
        self.anatomy.lm.activation_checkpointing_enable(**options)

    def tie_weights(self) -> None:  # accelerate calls it for FSDP2 with cpu_ram_efficient_loading
        self.anatomy.lm.tie_weights()


def pair_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """For each English row: the example it belongs to (0 for the stand-in), and whether it is a pair. (P,) each."""
    return batch["pair_row"].clamp(min=0), batch["pair_row"] >= 0


def last_token(attention_mask_BT: Tensor) -> Tensor:
    """(B,) position of the last real token of each right-padded row."""
    return attention_mask_BT.sum(dim=1) - 1


@contextmanager
def unobtrusive(device: torch.device, active: bool = True) -> Iterator[None]:
    """Without gradient, and without a trace in the random state: measuring must not change the training."""
    if not active:
        yield
        return
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
