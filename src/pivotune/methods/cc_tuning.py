"""CC-Tuning (Ye et al., ACL 2025, arXiv 2506.00875): lend a question the activations of its English translation.

    v_l = feed-forward output of layer l at the last token of the English prompt           l = 1..L
    e   = input embedding of the target prompt's last token
    a   = Gumbel-softmax(D mean_l(v_l + e)),  D the Decision Maker, d -> L without bias    (hard, straight-through)
    h_1[last prompt token of the target] += sum_l a_l v_l

The rest of the target pass and its loss are ordinary fine-tuning; model and Decision Maker train together. At
inference, where no English text exists, a linear map of the question's own activations stands in for v:
`pivotune.connection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.errors import check_choice, check_flags, check_number
from pivotune.methods.base import Batch, Method, MethodOutput, Pass, Wants, pair_rows
from pivotune.taps import Injection, Tap


@dataclass
class CCTuningConfig:
    """Options of CC-Tuning. The defaults compute what the released implementation computes.

    Args:
        english_gradient: let the loss reach the model through the English pass too; otherwise that pass is fixed.
        temperature: of the Gumbel-softmax; lower is closer to a hard choice in the gradient.
        selection: hard picks one layer (straight-through gradient); soft mixes all of them.
        connection_layer: decoder layer (1..L) behind which the pick is added.
        connection_tokens: how many of the prompt's last tokens receive it.
        matrix: one Transform Matrix shared by all layers, or one per_layer.
        ridge: strength of the ridge penalty of the Transform Matrix, relative to the mean squared activation; 0 is
            plain least squares.
        matrix_pairs: how many parallel question pairs the Transform Matrix is fitted on, at most.
    """

    english_gradient: bool = True
    temperature: float = 1.0
    selection: Literal["hard", "soft"] = "hard"
    connection_layer: int = 1
    connection_tokens: int = 1
    matrix: Literal["shared", "per_layer"] = "shared"
    ridge: float = 0.01
    matrix_pairs: int = 1000


class DecisionMaker(nn.Module):
    """Chooses the layer whose English activation is lent. Its weight is (L, d).

    Args:
        num_layers, hidden_size: L and d of the model.
        config: temperature and selection.
    """

    def __init__(self, num_layers: int, hidden_size: int, config: CCTuningConfig, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_layers, hidden_size).normal_(std=std))
        self.temperature, self.hard = config.temperature, config.selection == "hard"

    def forward(self, v_PLd: Tensor, e_Pd: Tensor) -> Tensor:
        """The pick, (P, d). Gumbel noise in training only: nothing is random at inference."""
        return torch.einsum("pl,pld->pd", self.shares(v_PLd, e_Pd).to(v_PLd.dtype), v_PLd)

    def shares(self, v_PLd: Tensor, e_Pd: Tensor) -> Tensor:
        """What part of the pick is which layer's, (P, L), in float32 or better: one 1 per row where selection is hard.

        Args:
            v_PLd: every layer's activation.
            e_Pd: input embedding of the target prompt's last token.
        """
        summary_Pd = (v_PLd + e_Pd[:, None, :]).mean(dim=1)
        # At least float32, also under autocast: bfloat16 scores and noise would tie, and change which layer wins.
        dtype = torch.promote_types(summary_Pd.dtype, torch.float32)
        with torch.autocast(summary_Pd.device.type, enabled=False):
            scores_PL = F.linear(summary_Pd.to(dtype), self.weight.to(dtype))
        if self.training:
            return F.gumbel_softmax(scores_PL, tau=self.temperature, hard=self.hard, dim=-1)
        if self.hard:
            return F.one_hot(scores_PL.argmax(dim=-1), scores_PL.shape[-1]).to(dtype)
        return torch.softmax(scores_PL / self.temperature, dim=-1)


class CCTuning(Method):
    """Fine-tuning with a cross-lingual connection.

    Args:
        model: a causal LM, possibly wrapped by PEFT.
        config: the options.

    Raises:
        PivotuneError: connection_layer outside 1..L, or a value that makes no sense.

    Inputs need English counterparts; examples without one (English ones among them) get no connection.

    Example:
        >>> method = CCTuning(model, CCTuningConfig())
        >>> method(batch)["loss"].backward()
    """

    def __init__(self, model: nn.Module, config: CCTuningConfig):
        super().__init__(model)
        self._connect(config)

    def _connect(self, config: CCTuningConfig) -> None:
        check_config(config, self.anatomy)
        self.cc_tuning = config
        self.decision_maker = DecisionMaker(
            self.anatomy.num_layers,
            self.anatomy.hidden_size,
            config,
            std=getattr(self.config, "initializer_range", 0.02),
        )
        # A LoRA run keeps its few trained parameters in float32 over a bfloat16 base; so does the Decision Maker.
        trained = [p for p in self.model.parameters() if p.requires_grad] or list(self.model.parameters())
        self.decision_maker.to(device=trained[0].device, dtype=trained[0].dtype)

    def forward(  # type: ignore[override]
        self, batch: Batch, counts: dict[str, Tensor] | None = None, *, activations: bool = False
    ) -> MethodOutput | dict[str, Tensor]:
        """The step's loss; or, with `activations`, what the Transform Matrix is fitted on.

        Returns:
            With `activations`: `target` and `english`, (P, L, d), the feed-forward outputs at the last prompt token of
            either side, without a connection. They come through here because FSDP2 knows only the root's forward.
        """
        if not activations:
            return super().forward(batch, counts)
        english = self._english_pass(batch)
        assert english is not None and english.feed_forward is not None
        rows, is_pair = pair_rows(batch)
        length_P = batch["prompt_length"][rows]
        ids_PT = batch["input_ids"][rows, : int(length_P.max())]
        mask_PT = torch.arange(ids_PT.shape[1], device=ids_PT.device) < length_P[:, None]
        with Tap(self.anatomy, feed_forward_at=length_P - 1) as tap:
            self._decode(ids_PT, mask_PT.long())
        return {"target": tap.feed_forward()[is_pair], "english": english.feed_forward[is_pair]}

    def english_wants(self) -> Wants:
        return super().english_wants() | Wants(feed_forward=True, gradient=self.cc_tuning.english_gradient)

    def injection(self, batch: Batch, english: Pass | None) -> Injection:
        assert english is not None and english.feed_forward is not None
        v_PLd = english.feed_forward if self.cc_tuning.english_gradient else english.feed_forward.detach()
        rows, is_pair = pair_rows(batch)
        last_P = batch["input_ids"][rows, batch["prompt_length"][rows] - 1]
        pick_Pd = self.decision_maker(v_PLd, self.anatomy.embeddings(last_P))
        vectors_BD = pick_Pd.new_zeros(len(batch["input_ids"]), pick_Pd.shape[1])
        vectors_BD = vectors_BD.index_add(0, rows, torch.where(is_pair[:, None], pick_Pd, 0.0))
        return Injection(self.cc_tuning.connection_layer, vectors_BD, self._positions(batch["prompt_length"]))

    def _positions(self, prompt_length_B: Tensor) -> Tensor:
        """The prompt's last `connection_tokens` positions, (B, K); negative where the prompt is shorter."""
        return (
            prompt_length_B[:, None] - 1 - torch.arange(self.cc_tuning.connection_tokens, device=prompt_length_B.device)
        )


def check_config(config: CCTuningConfig, anatomy: Anatomy) -> None:
    """Raise a PivotuneError for a value that makes no sense for this model."""
    anatomy.check_layer(config.connection_layer, "cc_tuning.connection_layer")
    check_choice("cc_tuning.selection", config.selection, ("hard", "soft"))
    check_choice("cc_tuning.matrix", config.matrix, ("shared", "per_layer"))
    check_flags("cc_tuning", config, ["english_gradient"])
    check_number("cc_tuning.connection_tokens", config.connection_tokens, 1, whole=True)
    check_number("cc_tuning.temperature", config.temperature, 0, exclusive=True)
    check_number("cc_tuning.ridge", config.ridge, 0)
    check_number("cc_tuning.matrix_pairs", config.matrix_pairs, 2, whole=True, why="; some 1000 are usual")
