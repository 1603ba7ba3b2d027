"""Options of CC-Tuning, and the Decision Maker that chooses what is lent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class CCTuningConfig:
    """Options of CC-Tuning. The defaults compute what the released implementation computes.

    Args:
        english_gradient: let the loss reach the model through the English pass too; otherwise that pass is fixed.
        temperature: of the Gumbel-softmax; lower is closer to a hard choice in the gradient.
        selection: hard picks one layer (straight-through gradient); soft mixes all of them.
        connection_layer: decoder layer (1..L) behind which the pick is added.
        connection_tokens: how many of the prompt's last tokens receive it.
        relative_norm: scale the pick to this share of the norm of the state that it joins, e.g. 0.1; null adds it as it
            is. Models whose feed-forward outputs grow with depth, such as Gemma-3, are thrown off by a pick as it is.
        gate: multiply what is lent, once it is scaled, by a number that is learned and starts at 0.1.
        matrix: one Transform Matrix shared by all layers, or one per_layer.
        ridge: strength of the ridge penalty of the Transform Matrix, relative to the mean squared activation; 0 is
            plain least squares; auto takes what does best on pairs kept for that, layer by layer with per_layer.
        matrix_pairs: how many parallel question pairs the Transform Matrix is fitted on, at most.
    """

    english_gradient: bool = True
    temperature: float = 1.0
    selection: Literal["hard", "soft"] = "hard"
    connection_layer: int = 1
    connection_tokens: int = 1
    relative_norm: float | None = None
    gate: bool = False
    matrix: Literal["shared", "per_layer"] = "shared"
    ridge: float | Literal["auto"] = 0.01
    matrix_pairs: int = 1000


class Gate(nn.Module):
    """What is lent is multiplied by `tanh(100 g)`; `g`, (1,), is learned.

    It starts near 0, so that at first the model is hardly disturbed, and not at 0, where what is lent would have no
    gradient. An optimizer like Adam moves a parameter by about the learning rate at each step, which is made for the
    many small weights of a model; 100 lets one number get somewhere in some hundred steps.
    """

    START, SPEED = 0.1, 100.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), math.atanh(self.START) / self.SPEED))

    def forward(self) -> Tensor:
        """(1,)"""
        return torch.tanh(self.SPEED * self.weight)


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
