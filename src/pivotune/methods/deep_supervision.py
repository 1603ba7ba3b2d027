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

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError, check_choice, check_flags, check_number
from pivotune.losses import IGNORE, chunked_cross_entropy, cosine_distance, pool_span
from pivotune.methods.base import Batch, Method, Pass, Wants, pair_rows, unobtrusive
from pivotune.taps import Tap

Signal = Literal["logits", "feature", "off"]
TERMS = ("language_conversion", "english_thinking")


@dataclass
class DeepSupervisionConfig:
    """Options of deep supervision. The paper: both terms, weight 1, layers 2 and 15 of LLaMA-2-7B's 32.

    Args:
        language_conversion: signal at the conversion layer (LC): logits, feature or off.
        english_thinking: signal at the thinking layer (ET): logits, feature or off.
        conversion_layer: i, the decoder layer (1..L) that LC supervises; auto finds it by the entropy of the layers.
        thinking_layer: j, the decoder layer (1..L) that ET supervises; auto finds it in the same way.
        conversion_weight: weight of LC in the loss; 0 measures it without training on it.
        thinking_weight: weight of ET in the loss; 0 measures it without training on it.
        reading: where the logits signal reads the English tokens. teacher_forced: after the target prompt, token by
            token, a proper likelihood for an extra pass through layers 1..i (1..j). position_wise: from the states that
            the ordinary pass already has at the question's (answer's) positions, in order, cut to the shorter text.
        pooling: what stands for a question in the feature signal: the mean over its tokens, or its last token.
        stop_gradient: keep the English side of the feature signal fixed. Without it both sides move and may collapse.
        final_norm: apply the model's final norm before the head when reading an inner layer, as the logit lens does.
    """

    language_conversion: Signal = "logits"
    english_thinking: Signal = "logits"
    conversion_layer: int | Literal["auto"] | None = None
    thinking_layer: int | Literal["auto"] | None = None
    conversion_weight: float = 1.0
    thinking_weight: float = 1.0
    reading: Literal["teacher_forced", "position_wise"] = "teacher_forced"
    pooling: Literal["mean", "last_token"] = "mean"
    stop_gradient: bool = True
    final_norm: bool = True


@dataclass(frozen=True)
class _Supervised:
    """One of the two terms, ready to compute."""

    name: str
    signal: Signal
    layer: int
    english_layer: int  # feature signal: the layer of the English question that is pointed at
    weight: float

    @property
    def logits(self) -> bool:
        return self.signal == "logits"


class DeepSupervision(Method):
    """Fine-tuning with language conversion at layer i and English thinking at layer j.

    Args:
        model: a causal LM, possibly wrapped by PEFT.
        config: the options; every one that the paper leaves open is explicit.

    Raises:
        PivotuneError: a layer outside 1..L, a negative weight, or both terms off.

    Inputs need English counterparts; examples without one take part in the ordinary loss only.

    Example:
        >>> config = DeepSupervisionConfig(conversion_layer=2, thinking_layer=15)
        >>> output = DeepSupervision(model, config)(batch)
        >>> output["loss"].backward(); output["terms"]["english_thinking"]
    """

    def __init__(self, model: nn.Module, config: DeepSupervisionConfig):
        super().__init__(model)
        self._supervise(config)

    def _supervise(self, config: DeepSupervisionConfig) -> None:
        self.deep_supervision = config
        self._supervised = _resolve(config, self.anatomy)

    @property
    def weights(self) -> dict[str, float]:
        return super().weights | {term.name: term.weight for term in self._supervised}

    def target_wants(self) -> Wants:
        needed = {t.layer for t in self._supervised if not (t.logits and self._teacher_forced)}
        return super().target_wants() | Wants(hidden=frozenset(needed), gradient=True)

    def english_wants(self) -> Wants:
        needed = [t for t in self._supervised if not t.logits]
        gradient = not self.deep_supervision.stop_gradient and any(t.weight for t in needed)
        return super().english_wants() | Wants(frozenset(t.english_layer for t in needed), gradient=gradient)

    def auxiliary(self, batch: Batch, target: Pass, english: Pass | None) -> dict[str, Tensor]:
        sums = super().auxiliary(batch, target, english)
        for term in self._supervised:
            with unobtrusive(batch["input_ids"].device, active=term.weight == 0):
                if term.logits:
                    sums[term.name] = self._logits_signal(term, batch, target)
                else:
                    assert english is not None
                    sums[term.name] = self._feature_signal(term, batch, target, english)
        return sums

    def auxiliary_counts(self, batch: Batch) -> dict[str, Tensor]:
        counts = super().auxiliary_counts(batch)
        for term in self._supervised:
            counts[term.name] = (self._supervised_tokens(term, batch) if term.logits else pair_rows(batch)[1]).sum()
        return counts

    # The strict signal -----------------------------------------------------------------------------------------

    def _logits_signal(self, term: _Supervised, batch: Batch, target: Pass) -> Tensor:
        """`-log P(English text | target question; layers 1..l, W_out)`, summed over English tokens."""
        english_PK = english_question(batch) if term.name == "language_conversion" else batch["english_answer_ids"]
        if self._teacher_forced:
            text = continue_in_english(batch, english_PK)
            with self.anatomy.truncated(term.layer), Tap(self.anatomy, hidden=[term.layer]) as tap:
                self._decode(text.input_ids, text.attention_mask)
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
            lambda h: self.anatomy.frozen_lens(h, final_norm=self.deep_supervision.final_norm),
            vocab_size=self.anatomy.vocab_size,
        )

    @property
    def _teacher_forced(self) -> bool:
        return self.deep_supervision.reading == "teacher_forced"

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
        """`1 - cos(h of the English question, h of the target question)`, summed over pairs."""
        how = self.deep_supervision.pooling
        rows, is_pair = pair_rows(batch)
        own_BD = pool_span(target.hidden[term.layer], batch["question_start"], batch["question_end"], how)
        english_PD = pool_span(
            english.hidden[term.english_layer], batch["english_question_start"], batch["english_question_end"], how
        )
        if self.deep_supervision.stop_gradient:
            english_PD = english_PD.detach()
        return cosine_distance(english_PD, own_BD[rows], is_pair)


class Continuation(NamedTuple):
    """Target prompts, each followed by its English tokens: what teacher forcing runs and reads (N tokens in all).

    `input_ids`, `attention_mask`: (P, W), right-padded. `pair`, `position`, `token`: (N,) each; the state of row `pair`
    at `position` is the one that predicts `token`. Rows that are no pair have no tokens here.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pair: Tensor
    position: Tensor
    token: Tensor


def continue_in_english(batch: Batch, english_PK: Tensor) -> Continuation:
    """Each row's target prompt followed by these English tokens, (P, K) padded behind with -100."""
    rows, is_pair = pair_rows(batch)
    if not english_PK.shape[1]:  # answers of a batch that has none
        english_PK = english_PK.new_full((len(rows), 1), IGNORE)
    prompt_P1 = batch["prompt_length"][rows][:, None]
    english_length_P1 = (english_PK != IGNORE).sum(dim=1, keepdim=True)
    width = int((prompt_P1 + english_length_P1).max())
    position_1W = torch.arange(width, device=english_PK.device)[None, :]
    prompt_PW = batch["input_ids"][rows].gather(
        1, position_1W.clamp(max=batch["input_ids"].shape[1] - 1).expand(len(rows), -1)
    )
    continued_PW = english_PK.gather(1, (position_1W - prompt_P1).clamp(0, english_PK.shape[1] - 1))
    mask_PW = position_1W < prompt_P1 + english_length_P1
    ids_PW = torch.where(position_1W < prompt_P1, prompt_PW, continued_PW)
    ids_PW = torch.where(mask_PW, ids_PW, 0)  # token 0 stands for padding; the mask hides it
    pair, k = ((english_PK != IGNORE) & is_pair[:, None]).nonzero(as_tuple=True)
    return Continuation(ids_PW, mask_PW.long(), pair, prompt_P1[pair, 0] - 1 + k, english_PK[pair, k])


def english_question(batch: Batch) -> Tensor:
    """The tokens of each English question without its template: (P, K), padded with -100."""
    start, end = batch["english_question_start"][:, None], batch["english_question_end"][:, None]
    position_PK = start + torch.arange(int((end - start).max()), device=start.device)
    ids_PK = batch["english_input_ids"].gather(1, position_PK.clamp(max=batch["english_input_ids"].shape[1] - 1))
    return torch.where(position_PK < end, ids_PK, IGNORE)


def _own_positions(name: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Position-wise reading: the first position of each example that is read, and how many there are; (B,) each.

    Conversion reads where the question's tokens are; thinking reads where the answer's tokens are predicted.
    """
    if name == "language_conversion":
        return batch["question_start"], batch["question_end"] - batch["question_start"]
    return batch["prompt_length"] - 1, (batch["labels"] != IGNORE).sum(dim=1)


def paper_layers(num_layers: int) -> tuple[int, int]:
    """The paper's layers, 2 and 15 of LLaMA-2-7B's 32, at the same relative depth of a model with this many layers."""
    conversion = max(1, round(num_layers * 2 / 32))
    return conversion, max(conversion, round(num_layers * 15 / 32))


def _resolve(config: DeepSupervisionConfig, anatomy: Anatomy) -> tuple[_Supervised, ...]:
    """The terms that are on, with their layers checked."""
    check_choice("deep_supervision.reading", config.reading, ("teacher_forced", "position_wise"))
    check_choice("deep_supervision.pooling", config.pooling, ("mean", "last_token"))
    check_flags("deep_supervision", config, ["stop_gradient", "final_norm"])
    terms = []
    suggested = paper_layers(anatomy.num_layers)
    for name, short, suggestion in zip(TERMS, ("conversion", "thinking"), suggested, strict=True):
        signal, weight = getattr(config, name), getattr(config, f"{short}_weight")
        check_choice(f"deep_supervision.{name}", signal, get_args(Signal))
        if signal == "off":
            continue
        check_number(f"deep_supervision.{short}_weight", weight, 0, why="; 0 only measures")
        layer, option = getattr(config, f"{short}_layer"), f"deep_supervision.{short}_layer"
        if layer is None or layer == "auto":
            raise PivotuneError(
                f"{option}: got {layer!r}, but the method needs a number in 1..{anatomy.num_layers}. `pivotune train` "
                "finds it where the option is auto; in Python, pivotune.lens.choose_layers does. The paper's choice "
                f"for LLaMA-2-7B, at the same relative depth, is {suggestion} here."
            )
        layer = anatomy.check_layer(layer, option)
        english_layer = layer if name == "language_conversion" else anatomy.num_layers
        terms.append(_Supervised(name, signal, layer, english_layer, float(weight)))
    if not terms:
        raise PivotuneError(
            "deep_supervision: language_conversion and english_thinking are both off. Turn one on, or use method: sft."
        )
    return tuple(terms)
