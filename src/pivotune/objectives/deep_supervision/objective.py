"""Deep supervision (DFT, Huo et al., AAAI 2025, arXiv 2503.01275): supervise the bottom and the middle layers too.

    L = L_TFT + w_LC * L_LC + w_ET * L_ET

    language conversion (LC), layer i:  what the bottom layers have made of the question is its English translation
    English thinking (ET), layer j:     what the middle layers have thought of is the English answer

Each is supervised by one of two signals. `logits` (strict): the output head, frozen, must read the English tokens from
the layer. `feature` (relaxed): the layer's representation of the question must point where that of the English question
does - the same layer for LC, the last layer for ET.

("DFT" also names Dynamic Fine-Tuning in other trainers; here it is always called deep supervision.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.data.collate import Batch, pair_rows
from pivotune.data.continuation import continue_in_english, english_question
from pivotune.errors import PivotuneError, check_choice, check_flags, check_number
from pivotune.lens.rule import paper_layers
from pivotune.lens.tuned import TunedLens
from pivotune.losses import (
    IGNORE,
    at_least_float32,
    chunked_cross_entropy,
    contrastive,
    cosine_distance,
    pool_span,
)
from pivotune.objectives.base import (
    BeforeTraining,
    Connection,
    Objective,
    Pass,
    Scale,
    Settled,
    TextRead,
    Wants,
    unobtrusive,
)
from pivotune.objectives.deep_supervision.centres import fit_centres
from pivotune.objectives.deep_supervision.measure import SupervisionMeasure, supervision_figure
from pivotune.objectives.deep_supervision.reader import fit_reader
from pivotune.objectives.deep_supervision.settle import automatic, settle_layers
from pivotune.taps import Tap

CITATION = """@inproceedings{huo2025deep,
  title     = {Enhancing Non-English Capabilities of English-Centric Large Language Models through Deep Supervision
               Fine-Tuning},
  author    = {Huo, Wenshuai and Feng, Xiaocheng and Huang, Yichong and Fu, Chengpeng and Li, Baohang and Ye, Yangfan
               and Zhang, Zhirui and Tu, Dandan and Tang, Duyu and Lu, Yunfei and Wang, Hui and Qin, Bing},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2025},
  note      = {arXiv:2503.01275}
}"""

Signal = Literal["logits", "feature", "off"]
TERMS = {"language_conversion": "conversion", "english_thinking": "thinking"}
"""Term -> what its options for layer and weight begin with."""


@dataclass
class DeepSupervisionConfig:
    """Options of deep supervision. The paper: both terms, weight 1, layers 2 and 15 of LLaMA-2-7B's 32.

    Args:
        language_conversion: signal at the conversion layer (LC): logits, feature or off.
        english_thinking: signal at the thinking layer (ET): logits, feature or off.
        conversion_layer: i, the decoder layer (1..L) that LC supervises; auto finds it in the model, by the entropy
            of the layers or by a rule of the signal.
        thinking_layer: j, the decoder layer (1..L) that ET supervises; auto finds it in the same way.
        conversion_weight: weight of LC in the loss; 0 measures it without training on it. auto finds it before the
            first step, by gradient_share, and keeps it.
        thinking_weight: the same of ET.
        gradient_share: what the norm of a term's gradient should be over that of the ordinary loss, at the layer that
            the term supervises, where its weight is auto.
        weight_warmup: the share of the training in which both weights rise from 0, at its beginning.
        weight_cooldown: the share in which they fall to 0, at its end.
        reading: where the logits signal reads the English tokens. teacher_forced: after the target prompt, token by
            token, a proper likelihood for an extra pass through layers 1..i (1..j). position_wise: from the states that
            the ordinary pass already has at the question's (answer's) positions, in order, cut to the shorter text.
        pooling: what stands for a question in the feature signal: the mean over its tokens, or its last token.
        feature_loss: of the feature signal. cosine, 1 - cos, pulls the two questions together. Where any two questions
            have a cosine near 1, centred_cosine takes it of states less their mean, each side's own, as the model has
            it before training; and contrast (InfoNCE) asks besides that the English question be nearer than those of
            the other pairs of the batch, on each device, so that its value depends on the size of that batch.
        temperature: of contrast.
        english_layer: the layer of the English question that ET's feature signal points at: last as in the paper, same
            (as the thinking layer), or a number.
        stop_gradient: keep the English side of the feature signal fixed. Without it both sides move and may collapse.
        final_norm: apply the model's final norm before the head when reading an inner layer, as the logit lens does.
        reader: of the logits signal. logit_lens: the model's own norm and head, as in the paper. tuned_lens: an affine
            map before them, fitted per supervised layer on the model's own final distribution before training, then
            frozen: of use where the logit lens reads a layer worse than by guessing.
    """

    language_conversion: Signal = "logits"
    english_thinking: Signal = "logits"
    conversion_layer: int | Literal["auto"] = "auto"
    thinking_layer: int | Literal["auto"] = "auto"
    conversion_weight: float | Literal["auto"] = 1.0
    thinking_weight: float | Literal["auto"] = 1.0
    gradient_share: float = 0.1
    weight_warmup: float = 0.0
    weight_cooldown: float = 0.0
    reading: Literal["teacher_forced", "position_wise"] = "teacher_forced"
    pooling: Literal["mean", "last_token"] = "mean"
    feature_loss: Literal["cosine", "centred_cosine", "contrast"] = "cosine"
    temperature: float = 0.1
    english_layer: int | Literal["last", "same"] = "last"
    stop_gradient: bool = True
    final_norm: bool = True
    reader: Literal["logit_lens", "tuned_lens"] = "logit_lens"


@dataclass(frozen=True)
class _Supervised:
    """One of the two terms, ready to compute."""

    name: str
    signal: Signal
    layer: int
    english_layer: int  # feature signal: the layer of the English question that is pointed at
    weight: float | None  # None while it is open

    @property
    def logits(self) -> bool:
        return self.signal == "logits"


class DeepSupervision(Objective):
    """Language conversion at layer i and English thinking at layer j.

    In a run with a connection too, the states read from the ordinary pass (feature, position_wise) are those of the
    connected pass; the extra passes of the teacher-forced logits signal run without a connection. Examples without
    English take part in the ordinary loss only.

    Args:
        options: every one that the paper leaves open is explicit.
        model: the causal LM.

    Raises:
        PivotuneError: a layer outside 1..L, a negative weight, or both terms off.
    """

    name = "deep_supervision"
    title = "deep supervision"
    summary = "supervise the question's English at a lower layer and the English answer at a middle one (DFT)"
    citation = CITATION
    Options = DeepSupervisionConfig
    lens_columns = (
        ("question, nats", "question_nats", 1),
        ("answer, nats", "answer_nats", 1),
        ("question, cos", "question_cosine", 1),
        ("answer, cos", "answer_cosine", 1),
    )
    lens_plots = ("supervision",)
    centres: Tensor | None

    def __init__(self, options: DeepSupervisionConfig, model: nn.Module):
        super().__init__(options, model)
        self._supervised = _resolve(options, self.anatomy)
        self.reader: TunedLens | None = None
        if options.reader == "tuned_lens":
            read = sorted({term.layer for term in self._supervised if term.logits})
            self.reader = TunedLens(read, self.anatomy.hidden_size, next(model.parameters()))
        centres = None  # (terms, 2, d): the mean target and English question of each term
        if options.feature_loss == "centred_cosine":
            like, shape = next(model.parameters()), (len(self._supervised), 2, self.anatomy.hidden_size)
            centres = torch.zeros(shape, dtype=at_least_float32(like.dtype), device=like.device)
        self.register_buffer("centres", centres)

    @classmethod
    def on_skeleton(cls, options: DeepSupervisionConfig, model: nn.Module) -> DeepSupervision:
        numbers: dict[str, Any] = dict.fromkeys(automatic(options), 1)  # any will do
        return cls(replace(options, **numbers), model)

    @classmethod
    def needs_english_answer(cls, options: DeepSupervisionConfig) -> str | None:
        return "deep_supervision.english_thinking: logits" if options.english_thinking == "logits" else None

    @classmethod
    def texts_read(cls, options: DeepSupervisionConfig, lengths: Mapping[str, Tensor]) -> list[TextRead]:
        if options.reading != "teacher_forced":
            return []
        sides = {
            "english_question": (options.language_conversion, options.conversion_layer),
            "english_answer": (options.english_thinking, options.thinking_layer),
        }
        return [
            TextRead(lengths["prompt"] + lengths[side], lengths[side], layer)
            for side, (signal, layer) in sides.items()
            if signal == "logits"
        ]

    @classmethod
    def remarks(cls, options: DeepSupervisionConfig) -> list[str]:
        signals = {"conversion": options.language_conversion, "thinking": options.english_thinking}
        if any(getattr(options, f"{name}_weight") for name, signal in signals.items() if signal != "off"):
            return []
        return ["deep_supervision: its weights are 0, so its terms are measured and not trained."]

    @classmethod
    def settle(cls, options: DeepSupervisionConfig, before: BeforeTraining) -> Settled:
        settled = settle_layers(options, before)
        if before.record is None:
            return settled
        # A resumed run keeps its weights.
        names = (f"{short}_weight" for short in TERMS.values())
        known = {name: before.record[0][name] for name in names if getattr(options, name) == "auto"}
        weights = {name: value for name, value in before.record[1].items() if name == "weights"}
        return replace(settled, options=replace(settled.options, **known), record={**settled.record, **weights})

    def prepare(self, before: BeforeTraining) -> dict[str, Any]:
        if self.centres is not None and before.record is None:
            layers = [(term.layer, term.english_layer) for term in self._supervised]
            self.centres.copy_(fit_centres(self.anatomy, layers, self.options.pooling, before))
        return {} if self.reader is None else fit_reader(self.reader, before)

    def weights(self) -> dict[str, float]:
        return {term.name: 1.0 if term.weight is None else term.weight for term in self._supervised}

    def open_weights(self) -> dict[str, float]:
        return {term.name: self.options.gradient_share for term in self._supervised if term.weight is None}

    def set_weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        changed = {f"{TERMS[name]}_weight": weight for name, weight in weights.items()}
        self.options = replace(self.options, **changed)
        self._supervised = _resolve(self.options, self.anatomy)
        return changed

    def strength(self, progress: float) -> float:
        rise, fall = self.options.weight_warmup, self.options.weight_cooldown
        return min(1.0, progress / rise if rise else 1.0, (1.0 - progress) / fall if fall else 1.0)

    def scales(self) -> dict[str, Scale]:
        return {term.name: Scale(term.layer, self._guess(term), self._advice(term)) for term in self._supervised}

    def _guess(self, term: _Supervised) -> Callable[[int], float | None]:
        """Nats of a uniform guess; of the cosine, the distance of vectors that have nothing to do with each other."""
        if term.logits:
            return lambda items: math.log(self.anatomy.vocab_size)
        if self.options.feature_loss == "contrast":
            return lambda items: math.log(items) if items > 1 else None
        return lambda items: 1.0

    def _advice(self, term: _Supervised) -> str:
        short = TERMS[term.name]
        if not term.logits:
            return (
                f"Supervise another layer (deep_supervision.{short}_layer; `pivotune layers` says which) or lower "
                f"deep_supervision.{short}_weight."
            )
        return (
            f"The head cannot read layer {term.layer}: leave deep_supervision.{short}_layer to auto, read by "
            f"deep_supervision.reader: tuned_lens, or lower deep_supervision.{short}_weight."
        )

    def target_wants(self) -> Wants:
        needed = {t.layer for t in self._supervised if not (t.logits and self._teacher_forced)}
        return Wants(hidden=frozenset(needed), gradient=True)

    def english_wants(self) -> Wants:
        needed = [t for t in self._supervised if not t.logits]
        gradient = not self.options.stop_gradient and any(t.weight != 0 for t in needed)
        return Wants(frozenset(t.english_layer for t in needed), gradient=gradient)

    def terms(self, batch: Batch, target: Pass, english: Pass | None) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for term in self._supervised:
            with unobtrusive(batch["input_ids"].device, active=term.weight == 0):
                if term.logits:
                    sums[term.name] = self._logits_signal(term, batch, target)
                else:
                    assert english is not None
                    sums[term.name] = self._feature_signal(term, batch, target, english)
        return sums

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {
            term.name: (self._supervised_tokens(term, batch) if term.logits else pair_rows(batch)[1]).sum()
            for term in self._supervised
        }

    @classmethod
    def marked_layers(cls, options: DeepSupervisionConfig) -> tuple[int, int] | None:
        suggested = options.conversion_layer, options.thinking_layer
        return suggested if all(isinstance(layer, int) for layer in suggested) else None  # type: ignore[return-value]

    @classmethod
    def measure(
        cls, anatomy: Anatomy, options: DeepSupervisionConfig | None, connection: Connection | None
    ) -> Callable[[], SupervisionMeasure]:
        """Of any model: a base too is more or less near to what the objective asks for."""
        options = options or DeepSupervisionConfig()
        return lambda: SupervisionMeasure(anatomy, pooling=options.pooling, final_norm=options.final_norm)

    @classmethod
    def figures(cls, report: Mapping[str, Any], folder: Path) -> list[Path]:
        return supervision_figure(report, folder / "supervision")

    # The strict signal -----------------------------------------------------------------------------------------

    def _logits_signal(self, term: _Supervised, batch: Batch, target: Pass) -> Tensor:
        """`-log P(English text | target question; layers 1..l, W_out)`, summed over English tokens."""
        english_PK = english_question(batch) if term.name == "language_conversion" else batch["english_answer_ids"]
        if self._teacher_forced:
            text = continue_in_english(batch, english_PK)
            with self.anatomy.truncated(term.layer), Tap(self.anatomy, hidden=[term.layer]) as tap:
                self.decode(text.input_ids, text.attention_mask)
            states_ND, token_N = tap.hidden[term.layer][text.pair, text.position], text.token
        else:
            k_1K = torch.arange(english_PK.shape[1], device=english_PK.device)
            pair, k = (k_1K < self._supervised_tokens(term, batch)[:, None]).nonzero(as_tuple=True)
            rows, _ = pair_rows(batch)
            first, _ = _own_positions(term.name, batch)
            states_ND, token_N = target.hidden[term.layer][rows[pair], first[rows][pair] + k], english_PK[pair, k]
        return chunked_cross_entropy(
            states_ND,
            token_N,
            lambda h: self._read(term.layer, h),
            vocab_size=self.anatomy.vocab_size,
        )

    def _read(self, layer: int, states_ND: Tensor) -> Tensor:
        if self.reader is not None:
            return self.reader.logits(self.anatomy, layer, states_ND)
        return self.anatomy.frozen_lens(states_ND, final_norm=self.options.final_norm)

    @property
    def _teacher_forced(self) -> bool:
        return self.options.reading == "teacher_forced"

    def _supervised_tokens(self, term: _Supervised, batch: Batch) -> Tensor:
        """How many of each row's English tokens are read: (P,), 0 for the stand-in.

        From lengths alone: building the texts would make the host wait for the device, and counts are asked for often.
        """
        rows, is_pair = pair_rows(batch)
        if term.name == "language_conversion":
            length_P = batch["english_question_end"] - batch["english_question_start"]
        else:
            length_P = (batch["english_answer_ids"] != IGNORE).sum(dim=1)
        if not self._teacher_forced:
            _, own_length = _own_positions(term.name, batch)
            length_P = torch.minimum(length_P, own_length[rows])
        return torch.where(is_pair, length_P, 0)

    # The relaxed signal ----------------------------------------------------------------------------------------

    def _feature_signal(self, term: _Supervised, batch: Batch, target: Pass, english: Pass) -> Tensor:
        """`1 - cos(h of the English question, h of the target question)`, or the contrast, summed over pairs."""
        how = self.options.pooling
        rows, is_pair = pair_rows(batch)
        own_BD = pool_span(target.hidden[term.layer], batch["question_start"], batch["question_end"], how)
        english_PD = pool_span(
            english.hidden[term.english_layer], batch["english_question_start"], batch["english_question_end"], how
        )
        if self.options.stop_gradient:
            english_PD = english_PD.detach()
        if self.centres is not None:
            own_D, english_D = self.centres[self._supervised.index(term)]
            own_BD, english_PD = own_BD - own_D, english_PD - english_D
        if self.options.feature_loss == "contrast":
            return contrastive(own_BD[rows], english_PD, is_pair, self.options.temperature)
        return cosine_distance(english_PD, own_BD[rows], is_pair)


def _own_positions(name: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Position-wise reading: the first position of each example that is read, and how many there are; (B,) each.

    Conversion reads where the question's tokens are; thinking reads where the answer's tokens are predicted.
    """
    if name == "language_conversion":
        return batch["question_start"], batch["question_end"] - batch["question_start"]
    return batch["prompt_length"] - 1, (batch["labels"] != IGNORE).sum(dim=1)


def _resolve(config: DeepSupervisionConfig, anatomy: Anatomy) -> tuple[_Supervised, ...]:
    """The terms that are on, with their layers checked."""
    check_choice("deep_supervision.reading", config.reading, ("teacher_forced", "position_wise"))
    check_choice("deep_supervision.pooling", config.pooling, ("mean", "last_token"))
    check_choice("deep_supervision.feature_loss", config.feature_loss, ("cosine", "centred_cosine", "contrast"))
    check_number("deep_supervision.temperature", config.temperature, 0, exclusive=True)
    check_number("deep_supervision.gradient_share", config.gradient_share, 0, exclusive=True)
    _check_course(config)
    check_flags("deep_supervision", config, ["stop_gradient", "final_norm"])
    check_choice("deep_supervision.reader", config.reader, ("logit_lens", "tuned_lens"))
    if config.reader == "tuned_lens":
        _check_tuned_lens(config)
    terms = []
    suggested = paper_layers(anatomy.num_layers)
    for (name, short), suggestion in zip(TERMS.items(), suggested, strict=True):
        signal, weight = getattr(config, name), getattr(config, f"{short}_weight")
        check_choice(f"deep_supervision.{name}", signal, get_args(Signal))
        if signal == "off":
            continue
        if weight != "auto":
            check_number(f"deep_supervision.{short}_weight", weight, 0, why="; 0 only measures, auto finds it")
        layer, option = getattr(config, f"{short}_layer"), f"deep_supervision.{short}_layer"
        if layer == "auto":
            raise PivotuneError(
                f"{option}: got {layer!r}, but the method needs a number in 1..{anatomy.num_layers}. `pivotune train` "
                "finds it where the option is auto; in Python, pivotune.lens.choose_layers does. The paper's choice "
                f"for LLaMA-2-7B, at the same relative depth, is {suggestion} here."
            )
        layer = anatomy.check_layer(layer, option)
        english_layer = layer if name == "language_conversion" else _english_layer(config, layer, anatomy)
        terms.append(_Supervised(name, signal, layer, english_layer, None if weight == "auto" else float(weight)))
    if not terms:
        raise PivotuneError(
            "deep_supervision: language_conversion and english_thinking are both off. Turn one on, or leave the "
            "section out for plain fine-tuning."
        )
    return tuple(terms)


def _check_course(config: DeepSupervisionConfig) -> None:
    """Of the weights, over the training."""
    names = ("weight_warmup", "weight_cooldown")
    for name in names:
        check_number(f"deep_supervision.{name}", getattr(config, name), 0, why="; a share of the training")
    if (together := config.weight_warmup + config.weight_cooldown) > 1:
        raise PivotuneError(
            f"deep_supervision.weight_warmup, weight_cooldown: {together:g} together; they are shares of the training. "
            "Give numbers whose sum is at most 1."
        )


def _check_tuned_lens(config: DeepSupervisionConfig) -> None:
    if "logits" not in (config.language_conversion, config.english_thinking):
        raise PivotuneError(
            "deep_supervision.reader: tuned_lens is of the logits signal, and no term has it. Leave the option out, or "
            "set language_conversion or english_thinking to logits."
        )
    if not config.final_norm:
        raise PivotuneError(
            "deep_supervision.final_norm: got false, but reader: tuned_lens maps to the last layer's states, which the "
            "final norm follows. Leave it true, or take reader: logit_lens."
        )


def _english_layer(config: DeepSupervisionConfig, layer: int, anatomy: Anatomy) -> int:
    """The layer of the English question that the thinking layer's feature signal points at."""
    named = {"last": anatomy.num_layers, "same": layer}
    if config.english_layer in named:
        return named[config.english_layer]
    return anatomy.check_layer(config.english_layer, "deep_supervision.english_layer")
