"""Which language each layer is about to answer in, read by the logit lens.

    languages = measure_language(anatomy, tokenizer, read_examples("zh.jsonl"))
    languages.masses["english"]             # one Mass (mean and interval) per layer 1..L

At the last token of the target-language prompt, where the first answer token is predicted, the lens (final norm and
output head on the residual stream; nostalgebraist 2020) gives every layer a distribution over the vocabulary. Its mass
is split by which answer a token could begin: the English one, the target-language one, both, or neither (the measure
of Wendler et al. 2024, arXiv 2402.10588, "Do Llamas Work in English?").

A token begins an answer when its bytes are a non-empty prefix of the answer's, with or without a leading space. In
bytes, because tokenizers cut rare characters into several tokens, the first of which is no text by itself.

Shapes in names: B rows, T tokens, N rows times layers, K tokens that begin an answer, V vocabulary, C categories.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data.collate import right_padded
from pivotune.data.examples import ParallelExample
from pivotune.data.prompts import PromptEncoder, prompt_only
from pivotune.errors import PivotuneError, check_number
from pivotune.lens.similarity import every_layer
from pivotune.losses import LOGITS_PER_CHUNK
from pivotune.taps import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARED, REST = "shared", "rest"
_RESERVED = ("english", "target", SHARED, REST)

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONFIDENCE = 0.95


class Mass(NamedTuple):
    """Mean probability over the examples, and its 95 % interval (Student's t, cut to 0..1)."""

    mean: float
    low: float
    high: float


@dataclass
class LanguageOfLayers:
    """What `measure_language` found.

    Attributes:
        masses: by category, one Mass per layer 1..L. The categories partition the vocabulary, so their means add up to
            1: "english" and "target", tokens that begin that answer alone; each further language, likewise; "shared",
            tokens that begin several of the answers; "rest", all others.
        examples: how many examples were measured.
        skipped: how many were left out, by reason.
    """

    masses: dict[str, list[Mass]]
    examples: int
    skipped: dict[str, int]

    def share(self, name: str) -> list[float]:
        """Per layer, the mean mass of `name` relative to that of all languages, shared and rest left aside.

        NaN where no language has any mass. Where all have little, this is a ratio of two small numbers: read the
        masses beside it.
        """
        named = [masses for category, masses in self.masses.items() if category not in (SHARED, REST)]
        totals = [sum(mass.mean for mass in layer) for layer in zip(*named, strict=True)]
        return [mass.mean / total if total else math.nan for mass, total in zip(self.masses[name], totals, strict=True)]


def measure_language(
    anatomy: Anatomy,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[ParallelExample],
    *,
    others: Callable[[ParallelExample], Mapping[str, str]] | None = None,
    style: str = "auto",
    max_length: int = 512,
    batch_size: int = 8,
    after_blank: bool = False,
    final_norm: bool = True,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> LanguageOfLayers:
    """The language of each layer, in one pass over the data: one forward per batch of prompts.

    Nothing is stored per example. The vocabulary's index takes one entry per token; logits are held for
    `logits_per_chunk // V` rows (examples times layers) at a time.

    Args:
        anatomy: the model's parts. The model is put in evaluation mode for the time of the call.
        tokenizer: a fast tokenizer, the model's own.
        examples: with an answer and an English counterpart that has one; the others are skipped and counted. All
            that are not English count as "target": pass one language at a time to tell them apart.
        others: gives for an example the answer in further languages, {"fr": "fleur", ...}, the same languages for
            every example.
        style: of the prompt, see `pivotune.data.PromptEncoder`.
        max_length: prompts of more tokens are skipped and counted.
        batch_size: prompts per forward pass.
        after_blank: read behind the white-space tokens that the target answer begins with, if it does. Many
            vocabularies write a space before Chinese or Arabic as a token of its own, which begins every answer: at
            the prompt's last token nearly all mass is then shared.
        final_norm: apply the model's final norm before the head, as the logit lens does.
        logits_per_chunk: how many logits to hold at a time.

    Raises:
        PivotuneError: a wrong option, a slow tokenizer, no example to measure, or logits that are not finite.
    """
    for option, value in (
        ("batch_size", batch_size),
        ("max_length", max_length),
        ("logits_per_chunk", logits_per_chunk),
    ):
        check_number(option, value, 1, whole=True)
    encoder, index = PromptEncoder(tokenizer, style), BeginningIndex(tokenizer, anatomy.vocab_size)
    reader = _Reader(encoder, index, others, max_length, after_blank)
    masses: _RunningMass | None = None
    with evaluating(anatomy.lm):
        for items in _batched(reader.items(examples), batch_size):
            measured_BLC = _layer_masses(anatomy, items, len(reader.categories), final_norm, logits_per_chunk)
            masses = masses or _RunningMass(anatomy.num_layers, len(reader.categories))
            masses.add(measured_BLC)
    if masses is None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in reader.skipped.items()) or "no example was given"
        raise PivotuneError(f"language of layers: no example to measure: {reasons}.")
    return LanguageOfLayers(masses.result(reader.categories), masses.count, reader.skipped)


# Tokens as bytes -----------------------------------------------------------------------------------------------------


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """What each token id contributes to a text, in UTF-8 bytes that may be part of a character; None for special
    tokens and ids without a token.

    The tokenizer's own decoder says how: byte-level BPE spells each byte as a character; others decode a piece in the
    middle of a text (so that a leading space stays), and with byte fallback a piece like <0xE4> is that byte.

    Raises:
        PivotuneError: a slow tokenizer.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise PivotuneError(f"tokenizer: {name} has no decoder to ask for single tokens; load it with use_fast=True")
    decoder = tokenizer.backend_tokenizer.decoder

    def decode(*pieces: str) -> str:
        return "".join(pieces) if decoder is None else decoder.decode(list(pieces))

    byte_level = decode("Ġ") == " "  # the space of byte-level BPE
    byte_fallback = decode("<0x41>") == "A"
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}

    def contribution(piece: str) -> bytes | None:
        if byte_level:
            if all(character in _BYTE_OF for character in piece):
                return bytes(_BYTE_OF[character] for character in piece)
            return piece.encode()
        if byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        text = decode("a", piece, "a")  # between two letters nothing is stripped
        return text[1:-1].encode() if len(text) > 1 and text[0] == text[-1] == "a" else None

    found: list[bytes | None] = [None] * len(tokenizer)
    for piece, index in tokenizer.get_vocab().items():
        if index in special or index >= len(found):
            continue
        found[index] = added[index].content.encode() if index in added else contribution(piece)
    return found


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes with (Radford et al. 2019), which define that encoding."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class BeginningIndex:
    """Finds the token ids that may begin a text. Built once per tokenizer, in time and memory linear in its size.

    Args:
        tokenizer: a fast tokenizer.
        vocab_size: of the model; ids beyond it have no logit and are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None):
        self._tokenizer = tokenizer
        self._bytes = token_bytes(tokenizer)
        self._ids: dict[bytes, list[int]] = {}
        for index, spelled in enumerate(self._bytes[:vocab_size]):
            if spelled:
                self._ids.setdefault(spelled, []).append(index)
        self._longest = max(map(len, self._ids), default=0)

    def beginning(self, text: str) -> frozenset[int]:
        """Ids of the tokens whose bytes are a non-empty prefix of `text`, with or without one leading space.

        White space around the text is no part of it. Where the tokenizer normalises text (full-width forms, say), the
        text as its tokens spell it counts as well.
        """
        found: set[int] = set()
        for spelling in {text.strip().encode(), self._as_tokenized(text.strip())} - {b""}:
            for candidate in (spelling, b" " + spelling):
                for length in range(1, min(len(candidate), self._longest) + 1):
                    found.update(self._ids.get(candidate[:length], ()))
        return frozenset(found)

    def is_blank(self, index: int) -> bool:
        """Whether this token is white space and nothing else."""
        spelled = self._bytes[index]
        return spelled is not None and spelled.isspace()

    def _as_tokenized(self, text: str) -> bytes:
        """What the text's own tokens spell, up to the first unknown one."""
        spelled = b""
        for index in self._tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
            part = self._bytes[index]
            if part is None:
                break
            spelled += part
        return spelled.lstrip(b" ")


# From examples to rows -----------------------------------------------------------------------------------------------


@dataclass
class _Item:
    """The tokens up to the position of the lens, the ids that begin an answer, and the category (column) of each."""

    prompt_ids: list[int]
    ids: list[int]
    categories: list[int]


class _Reader:
    """Examples to items; keeps count of those it leaves out."""

    def __init__(
        self,
        encoder: PromptEncoder,
        index: BeginningIndex,
        others: Callable[[ParallelExample], Mapping[str, str]] | None,
        max_length: int,
        after_blank: bool,
    ):
        self._encoder, self._index, self._others = encoder, index, others
        self._max_length, self._after_blank = max_length, after_blank
        self.categories: list[str] = []
        self.skipped: dict[str, int] = {}

    def items(self, examples: Iterable[ParallelExample]) -> Iterator[_Item]:
        for example in examples:
            item = self._item(example)
            if isinstance(item, str):
                self.skipped[item] = self.skipped.get(item, 0) + 1
            else:
                yield item

    def _item(self, example: ParallelExample) -> _Item | str:
        """The item, or why there is none."""
        if example.english is None:
            return "without English"
        answers = {"english": example.english.answer, "target": example.text.answer} | self._further(example)
        if not all(answer.strip() for answer in answers.values()):
            return "without an answer"
        beginnings = [self._index.beginning(answer) for answer in answers.values()]
        if not all(beginnings):
            return "with an answer that no token begins"
        text = example.text if self._after_blank else prompt_only(example)
        encoded = self._encoder.tokenize([self._encoder.render(text, example.where)])[0]
        prompt_ids = encoded.prompt_ids + list(takewhile(self._index.is_blank, encoded.answer_ids))
        if len(prompt_ids) > self._max_length:
            return "over-long"
        column: dict[int, int] = {}
        shared = len(answers)
        for number, ids in enumerate(beginnings):
            column |= {index: shared if index in column else number for index in ids}
        return _Item(prompt_ids, list(column), list(column.values()))

    def _further(self, example: ParallelExample) -> dict[str, str]:
        further = dict(self._others(example)) if self._others is not None else {}
        if clash := [name for name in further if name in _RESERVED]:
            raise PivotuneError(f"others: {clash[0]!r} names a category of its own; call the language by its code.")
        categories = ["english", "target", *sorted(further), SHARED, REST]
        self.categories = self.categories or categories
        if categories != self.categories:
            known = ", ".join(self.categories[2:-2]) or "none"
            raise PivotuneError(
                f"others: got {', '.join(sorted(further)) or 'none'} for example {example.id!r}, but {known} for those "
                "before it. Give the same languages for every example."
            )
        return {name: further[name] for name in sorted(further)}


def _batched(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# The lens ------------------------------------------------------------------------------------------------------------


def _layer_masses(
    anatomy: Anatomy, items: Sequence[_Item], num_categories: int, final_norm: bool, logits_per_chunk: int
) -> Tensor:
    """Probability mass per prompt, layer and category: (B, L, C) in float64, C the last being the rest."""
    input_ids = right_padded([item.prompt_ids for item in items], 0)
    mask = right_padded([[1] * len(item.prompt_ids) for item in items], 0)
    ids_BK, categories_BK = right_padded([i.ids for i in items], 0), right_padded([i.categories for i in items], 0)
    counted_BK = right_padded([[1] * len(item.ids) for item in items], 0)
    hidden = every_layer(anatomy, input_ids, mask)
    last_B = mask.sum(dim=1) - 1
    row_B = torch.arange(len(items))
    layers, rows = len(hidden), max(1, logits_per_chunk // anatomy.vocab_size)
    device = next(anatomy.head.parameters()).device  # layers may lie on several
    states_Nd = torch.cat([_at(hidden.pop(number), row_B, last_B).to(device) for number in sorted(hidden)])

    picked = []
    ids_NK = ids_BK.repeat(layers, 1).to(device)
    for start in range(0, len(states_Nd), rows):
        logits_nV = anatomy.frozen_lens(states_Nd[start : start + rows], final_norm=final_norm)
        logits_nV = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
        total_n1 = logits_nV.logsumexp(dim=-1, keepdim=True)
        if not total_n1.isfinite().all():
            number = (start + int((~total_n1.isfinite()).nonzero()[0, 0])) // len(items) + 1
            raise PivotuneError(
                f"language of layers: the lens at layer {number} gives logits that are not finite. If the model runs "
                "in float16, load it in bfloat16 or float32."
            )
        picked.append((logits_nV.gather(1, ids_NK[start : start + rows]) - total_n1).exp().double().cpu())
    probability_LBK = torch.cat(picked).view(layers, len(items), -1) * counted_BK
    masses_LBC = torch.zeros(layers, len(items), num_categories, dtype=torch.float64)
    masses_LBC.scatter_add_(2, categories_BK.expand_as(probability_LBK), probability_LBK)
    masses_LBC[..., -1] = (1.0 - masses_LBC.sum(dim=-1)).clamp(min=0.0)
    return masses_LBC.transpose(0, 1)


def _at(states_BTd: Tensor, row_B: Tensor, position_B: Tensor) -> Tensor:
    return states_BTd[row_B.to(states_BTd.device), position_B.to(states_BTd.device)]


class _RunningMass:
    """Streaming mean and variance over examples (Welford 1962; by batches, Chan et al. 1979)."""

    def __init__(self, layers: int, categories: int):
        self.count = 0
        self.mean = torch.zeros(layers, categories, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)  # summed squared distances from the mean

    def add(self, masses_BLC: Tensor) -> None:
        added, mean = len(masses_BLC), masses_BLC.mean(dim=0)
        shift, total = mean - self.mean, self.count + added
        self.squares += ((masses_BLC - mean) ** 2).sum(dim=0) + shift**2 * (self.count * added / total)
        self.mean += shift * (added / total)
        self.count = total

    def result(self, categories: Sequence[str]) -> dict[str, list[Mass]]:
        if self.count > 1:
            quantile = float(stdtrit(self.count - 1, (1 + _CONFIDENCE) / 2))
            half = quantile * (self.squares / (self.count - 1) / self.count).sqrt()
        else:
            half = torch.ones_like(self.mean)  # one example says nothing about others
        low, high = (self.mean - half).clamp(min=0.0), (self.mean + half).clamp(max=1.0)
        columns = torch.stack([self.mean, low, high], dim=-1).transpose(0, 1).tolist()
        return {name: [Mass(*values) for values in column] for name, column in zip(categories, columns, strict=True)}
