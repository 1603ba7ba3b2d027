"""CC-Tuning (Ye et al., ACL 2025, arXiv 2506.00875): lend a question the activations of its English translation.

    v_l = feed-forward output of layer l at the last token of the English prompt           l = 1..L
    e   = input embedding of the target prompt's last token
    a   = Gumbel-softmax(D mean_l(v_l + e)),  D the Decision Maker, d -> L without bias    (hard, straight-through)
    h_1[last prompt token of the target] += sum_l a_l v_l

The rest of the target pass and its loss are ordinary fine-tuning; model and Decision Maker train together. At
inference, where no English text exists, a linear map of the question's own activations stands in for v:
`pivotune.objectives.cc_tuning.connection`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data.collate import Batch, pair_rows
from pivotune.errors import check_choice, check_flags, check_number
from pivotune.objectives.base import AfterTraining, Connection, Objective, Pass, Wants, english_pass
from pivotune.objectives.cc_tuning.connection import LinearConnection, injection, modes
from pivotune.objectives.cc_tuning.decision_maker import CCTuningConfig, DecisionMaker, Gate
from pivotune.objectives.cc_tuning.measure import ConnectionMeasure, connection_figure, connection_lines
from pivotune.objectives.cc_tuning.transform_matrix import fit_transform_matrix
from pivotune.taps import Injection, Tap

CITATION = """@inproceedings{ye2025cctuning,
  title     = {CC-Tuning: A Cross-Lingual Connection Mechanism for Improving Joint Multilingual Supervised Fine-Tuning},
  author    = {Ye, Yangfan and Feng, Xiaocheng and Yuan, Zekun and Feng, Xiachong and Qin, Libo and Huang, Lei
               and Ma, Weitao and Huang, Yichong and Zhang, Zhirui and Lu, Yunfei and Yan, Xiaohui and Tang, Duyu
               and Tu, Dandan and Qin, Bing},
  booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics},
  year      = {2025},
  note      = {arXiv:2506.00875}
}"""


NORM = "connection_norm"
"""Logged: the norm of what is lent over that of the state that it joins, averaged over pairs."""


DROWNED = 3.0
"""A mean norm above it is warned of."""


class CCTuning(Objective):
    """Fine-tuning with a cross-lingual connection. Examples without English counterparts, and English ones, get none.

    Args:
        options: see `CCTuningConfig`.
        model: the causal LM.

    Raises:
        PivotuneError: connection_layer outside 1..L, or a value that makes no sense.
    """

    name = "cc_tuning"
    title = "CC-Tuning"
    summary = "lend the question the feed-forward activations of its English translation (CC-Tuning)"
    citation = CITATION
    Options = CCTuningConfig
    fewest_pairs = 2
    read_after_training = ("matrix", "ridge", "matrix_pairs")
    connects = True
    lens_plots = ("connection",)

    def __init__(self, options: CCTuningConfig, model: nn.Module):
        super().__init__(options, model)
        check_config(options, self.anatomy)
        self.decision_maker = DecisionMaker(
            self.anatomy.num_layers,
            self.anatomy.hidden_size,
            options,
            std=getattr(self.anatomy.lm.config, "initializer_range", 0.02),
        )
        # A LoRA run keeps its few trained parameters in float32 over a bfloat16 base; so does the Decision Maker.
        trained = [p for p in model.parameters() if p.requires_grad] or list(model.parameters())
        self.decision_maker.to(device=trained[0].device, dtype=trained[0].dtype)
        self.gate = Gate().to(device=trained[0].device, dtype=trained[0].dtype) if options.gate else None

    # Training --------------------------------------------------------------------------------------------------

    def english_wants(self) -> Wants:
        return Wants(feed_forward=True, gradient=self.options.english_gradient)

    def injection(self, batch: Batch, english: Pass | None) -> Injection:
        assert english is not None and english.feed_forward is not None
        v_PLd = english.feed_forward if self.options.english_gradient else english.feed_forward.detach()
        rows, is_pair = pair_rows(batch)
        last_P = batch["input_ids"][rows, batch["prompt_length"][rows] - 1]
        pick_Pd = self.decision_maker(v_PLd, self.anatomy.embeddings(last_P))
        vectors_BD = pick_Pd.new_zeros(len(batch["input_ids"]), pick_Pd.shape[1])
        vectors_BD = vectors_BD.index_add(0, rows, torch.where(is_pair[:, None], pick_Pd, 0.0))
        factor = None if self.gate is None else self.gate()
        return injection(self.options, vectors_BD, self._positions(batch["prompt_length"]), factor)

    def weights(self) -> dict[str, float]:
        return {NORM: 0.0}

    def terms(self, batch: Batch, target: Pass, english: Pass | None) -> dict[str, Tensor]:
        """What is lent, beside the state that it joins: not a loss, but it has to be in scale."""
        rows, is_pair = pair_rows(batch)
        ratio_B = target.injections[self.name].ratio_B
        assert ratio_B is not None
        return {NORM: torch.where(is_pair, ratio_B[rows], 0.0).sum()}

    def first_remarks(self, means: Mapping[str, float]) -> list[str]:
        if means[NORM] <= DROWNED:
            return []
        return [
            f"cc_tuning: what is lent is {means[NORM]:.1f} times as long as the state that it joins, of which little "
            "is left. Set cc_tuning.relative_norm: 0.1, or connect behind a later layer (cc_tuning.connection_layer)."
        ]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {NORM: pair_rows(batch)[1].sum()}

    def _positions(self, prompt_length_B: Tensor) -> Tensor:
        """The prompt's last `connection_tokens` positions, (B, K); negative where the prompt is shorter."""
        return (
            prompt_length_B[:, None] - 1 - torch.arange(self.options.connection_tokens, device=prompt_length_B.device)
        )

    # After training ----------------------------------------------------------------------------------------------

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        """What the Transform Matrix is fitted on: `target` and `english`, (P, L, d), the feed-forward outputs at the
        last prompt token of either side, without a connection."""
        english = english_pass(self.anatomy, batch, self.english_wants())
        assert english is not None and english.feed_forward is not None
        rows, is_pair = pair_rows(batch)
        length_P = batch["prompt_length"][rows]
        ids_PT = batch["input_ids"][rows, : int(length_P.max())]
        mask_PT = torch.arange(ids_PT.shape[1], device=ids_PT.device) < length_P[:, None]
        with Tap(self.anatomy, at=length_P - 1) as tap:
            self.decode(ids_PT, mask_PT.long())
        return {"target": tap.states("feed_forward")[is_pair], "english": english.feed_forward[is_pair]}

    def after_training(self, after: AfterTraining) -> dict[str, Any]:
        found = fit_transform_matrix(
            after.method, after.rows, after.collator, batch_size=after.batch_size, seed=after.seed
        )
        self.fitted = {"transform_matrix": found.weight}
        if after.is_main:
            print(found, flush=True)
        return {"transform_matrix": found.report}

    # Inference -------------------------------------------------------------------------------------------------

    @classmethod
    def modes(cls, tensors: Sequence[str]) -> tuple[str, ...]:
        return modes("transform_matrix" in tensors)

    @classmethod
    def connection(cls, model: nn.Module, options: CCTuningConfig, tensors: Mapping[str, Tensor]) -> LinearConnection:
        weights = (tensors.get(name) for name in ("transform_matrix", "gate.weight"))
        return LinearConnection(model, options, tensors["decision_maker.weight"], *weights)

    # The lens --------------------------------------------------------------------------------------------------

    @classmethod
    def measure(
        cls, anatomy: Anatomy, options: CCTuningConfig | None, connection: Connection | None
    ) -> Callable[[], ConnectionMeasure] | None:
        if not isinstance(connection, LinearConnection):
            return None
        return lambda: ConnectionMeasure(connection)

    @classmethod
    def lens_lines(cls, found: Mapping[str, Any]) -> list[str]:
        return connection_lines(found)

    @classmethod
    def figures(cls, report: Mapping[str, Any], folder: Path) -> list[Path]:
        return connection_figure(report, folder / "connection")


def check_config(config: CCTuningConfig, anatomy: Anatomy) -> None:
    """Raise a PivotuneError for a value that makes no sense for this model."""
    anatomy.check_layer(config.connection_layer, "cc_tuning.connection_layer")
    check_choice("cc_tuning.selection", config.selection, ("hard", "soft"))
    check_choice("cc_tuning.matrix", config.matrix, ("shared", "per_layer"))
    check_flags("cc_tuning", config, ["english_gradient", "gate"])
    check_number("cc_tuning.connection_tokens", config.connection_tokens, 1, whole=True)
    if config.relative_norm is not None:
        check_number("cc_tuning.relative_norm", config.relative_norm, 0, exclusive=True)
    check_number("cc_tuning.temperature", config.temperature, 0, exclusive=True)
    if config.ridge != "auto":
        check_number("cc_tuning.ridge", config.ridge, 0, why="; auto finds it")
    check_number("cc_tuning.matrix_pairs", config.matrix_pairs, 2, whole=True, why="; some 1000 are usual")
