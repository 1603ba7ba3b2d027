"""Which language each layer is about to answer in, read by the logit lens.

    languages = measure_language(anatomy, tokenizer, read_examples("zh.jsonl"))
    languages.masses["english"]             # one Interval (mean and bounds) per layer 1..L

At the last token of the target-language prompt, where the first answer token is predicted, the lens (final norm and
output head on the residual stream; nostalgebraist 2020) gives every layer a distribution over the vocabulary. Its mass
is split by which answer a token could begin: the English one, the target-language one, both, or neither (the measure
of Wendler et al. 2024, arXiv 2402.10588, "Do Llamas Work in English?").

A token begins an answer when its bytes are a non-empty prefix of the answer's, with or without a leading space. In
bytes, because tokenizers cut rare characters into several tokens, the first of which is no text by itself.

Shapes in names: N examples, L layers, M examples times layers, d hidden size, K tokens that begin an answer, V
vocabulary, n rows of a chunk, C categories.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.data.collate import padded
from pivotune.data.examples import ParallelExample
from pivotune.errors import PivotuneError, check_number
from pivotune.lens.activations import Activations, PairActivations, PairStream, lens_logits, run_measure
from pivotune.losses import LOGITS_PER_CHUNK
from pivotune.uncertainty import Interval, Tables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARED, REST = "shared", "rest"
_RESERVED = ("english", "target", SHARED, REST)

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Others = Callable[[ParallelExample], Mapping[str, str]]
"""Gives for an example the answer in further languages, {"fr": "fleur", ...}, the same languages for every example."""


@dataclass
class LanguageOfLayers:
    """What `measure_language` found.

    Attributes:
        masses: by category, one Interval per layer 1..L. The categories partition the vocabulary, so their means add up
            to 1: "english" and "target", tokens that begin that answer alone; each further language, likewise;
            "shared", tokens that begin several of the answers; "rest", all others.
        examples: how many examples were measured.
        skipped: how many were left out, by reason.
    """

    masses: dict[str, list[Interval]]
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
    others: Others | None = None,
    style: str = "auto",
    max_length: int = 512,
    batch_size: int = 8,
    after_blank: bool = False,
    final_norm: bool = True,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> LanguageOfLayers:
    """The language of each layer, in one pass over the data, each batch read as `pivotune.lens.activations` does.

    Nothing is stored per example. The vocabulary's index takes one entry per token.

    Args:
        anatomy: the model's parts. The model is put in evaluation mode for the time of the call.
        tokenizer: a fast tokenizer, the model's own.
        examples: with an answer and an English counterpart that has one; the others are skipped and counted. All
            that are not English count as "target": pass one language at a time to tell them apart.
        others, after_blank, final_norm, logits_per_chunk: as in `LanguageMeasure`.
        style: of the prompt, see `pivotune.data.PromptEncoder`.
        max_length, batch_size: as in `pivotune.lens.activations.PairStream`.

    Raises:
        PivotuneError: a wrong option, a slow tokenizer, no example to measure, or logits that are not finite.
    """
    stream = PairStream(tokenizer, style, batch_size, max_length)
    measure = LanguageMeasure(
        anatomy,
        BeginningIndex(tokenizer, anatomy.vocab_size),
        others=others,
        after_blank=after_blank,
        final_norm=final_norm,
        logits_per_chunk=logits_per_chunk,
    )
    means = run_measure(anatomy, measure, stream, examples)
    skipped = stream.skipped | measure.skipped
    if not means:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "no example was given"
        raise PivotuneError(f"language of layers: no example to measure: {reasons}.")
    masses = {name: mean.estimates() for name, mean in means.items()}
    return LanguageOfLayers(masses, means["target"].count, skipped)


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


# The measure ---------------------------------------------------------------------------------------------------------


@dataclass
class _Item:
    """One example to look at.

    Attributes:
        row: its row of the batch.
        position: the token at which the lens reads.
        ids, categories: the ids that begin an answer, and the category (column) of each.
    """

    row: int
    position: int
    ids: list[int]
    categories: list[int]


class LanguageMeasure:
    """The language of each layer (a `pivotune.lens.activations.Measure`).

    Its tables are the masses by category, "english", "target", each further language, "shared" and "rest": (N, L)
    each, adding up to 1. Examples without an answer on either side, and those with an answer that no token begins, are
    left out and counted.

    Args:
        anatomy: the model's parts.
        index: of the model's own tokenizer. It is read only, so several measures may share one.
        others: the answers in further languages, see `Others`.
        after_blank: read behind the white-space tokens that the target answer begins with, if it does. Many
            vocabularies write a space before Chinese or Arabic as a token of its own, which begins every answer: at
            the prompt's last token nearly all mass is then shared.
        final_norm: apply the model's final norm before the head, as the logit lens does.
        logits_per_chunk: how many logits to hold at a time.

    Attributes:
        skipped: how many examples were left out, by reason.

    Raises:
        PivotuneError: a wrong option; from `add`, `others` that differ between examples, or logits that are not finite.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        index: BeginningIndex,
        *,
        others: Others | None = None,
        after_blank: bool = False,
        final_norm: bool = True,
        logits_per_chunk: int = LOGITS_PER_CHUNK,
    ):
        check_number("logits_per_chunk", logits_per_chunk, 1, whole=True)
        self._anatomy, self._index, self._others = anatomy, index, others
        self._after_blank, self._final_norm, self._logits_per_chunk = after_blank, final_norm, logits_per_chunk
        self._categories: list[str] = []
        self.skipped: dict[str, int] = {}

    def add(self, activations: PairActivations) -> Tables:
        items = []
        for row, example in enumerate(activations.examples):
            item = self._item(example, row, activations.target)
            if isinstance(item, str):
                self.skipped[item] = self.skipped.get(item, 0) + 1
            else:
                items.append(item)
        if not items:
            return {}
        masses_LNC = self._masses(items, activations.target)
        return {name: masses_LNC[..., column].T for column, name in enumerate(self._categories)}

    def finish(self) -> Tables:
        return {}

    def summary(self) -> dict[str, Any]:
        """{"skipped": ...}."""
        return {"skipped": dict(self.skipped)}

    def _item(self, example: ParallelExample, row: int, target: Activations) -> _Item | str:
        """The item, or why there is none."""
        assert example.english is not None  # of pairs only
        answers = {"english": example.english.answer, "target": example.text.answer} | self._further(example)
        if not all(answer.strip() for answer in answers.values()):
            return "without an answer"
        beginnings = [self._index.beginning(answer) for answer in answers.values()]
        if not all(beginnings):
            return "with an answer that no token begins"
        position = int(target.last[row])
        if self._after_blank:
            answer_ids = target.input_ids[row, position + 1 : int(target.attention_mask[row].sum())].tolist()
            position += sum(1 for _ in takewhile(self._index.is_blank, answer_ids))
        column: dict[int, int] = {}
        shared = len(answers)
        for number, ids in enumerate(beginnings):
            column |= {index: shared if index in column else number for index in ids}
        return _Item(row, position, list(column), list(column.values()))

    def _further(self, example: ParallelExample) -> dict[str, str]:
        further = dict(self._others(example)) if self._others is not None else {}
        if clash := [name for name in further if name in _RESERVED]:
            raise PivotuneError(f"others: {clash[0]!r} names a category of its own; call the language by its code.")
        categories = ["english", "target", *sorted(further), SHARED, REST]
        self._categories = self._categories or categories
        if categories != self._categories:
            known = ", ".join(self._categories[2:-2]) or "none"
            raise PivotuneError(
                f"others: got {', '.join(sorted(further)) or 'none'} for example {example.id!r}, but {known} for those "
                "before it. Give the same languages for every example."
            )
        return {name: further[name] for name in sorted(further)}

    def _masses(self, items: Sequence[_Item], target: Activations) -> Tensor:
        """Probability mass per layer, example and category: (L, N, C) in float64, C the last being the rest."""
        row_N, position_N = torch.tensor([i.row for i in items]), torch.tensor([i.position for i in items])
        ids_NK, categories_NK = padded([i.ids for i in items], 0), padded([i.categories for i in items], 0)
        counted_NK = padded([[1] * len(item.ids) for item in items], 0)
        layers = sorted(target.hidden)
        device = target.hidden[layers[-1]].device  # layers may lie on several
        states_Md = torch.cat([target.at(layer, position_N, row_N).to(device) for layer in layers])
        chunks = lens_logits(
            self._anatomy, states_Md, final_norm=self._final_norm, logits_per_chunk=self._logits_per_chunk
        )
        picked: list[Tensor] = []
        start, ids_MK = 0, ids_NK.repeat(len(layers), 1)
        for logits_nV in chunks:
            total_n1 = logits_nV.logsumexp(dim=-1, keepdim=True)
            if not total_n1.isfinite().all():
                layer = (start + int((~total_n1.isfinite()).nonzero()[0, 0])) // len(items) + 1
                raise PivotuneError(
                    f"language of layers: the lens at layer {layer} gives logits that are not finite. If the model "
                    "runs in float16, load it in bfloat16 or float32."
                )
            ids_nK = ids_MK[start : start + len(logits_nV)].to(logits_nV.device)
            picked.append((logits_nV.gather(1, ids_nK) - total_n1).exp().cpu().double())
            start += len(logits_nV)
        probability_LNK = torch.cat(picked).view(len(layers), len(items), -1) * counted_NK
        masses_LNC = torch.zeros(len(layers), len(items), len(self._categories), dtype=torch.float64)
        masses_LNC.scatter_add_(2, categories_NK.expand_as(probability_LNK), probability_LNK)
        masses_LNC[..., -1] = (1.0 - masses_LNC.sum(dim=-1)).clamp(min=0.0)
        return masses_LNC
