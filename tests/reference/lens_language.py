"""The language of each layer, one prompt, one layer and one token of the vocabulary at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tests.reference.passes import frozen_logits, run


def byte_ids(tokenizer: Any) -> list[int]:
    """The ids of the 256 single bytes, whichever way the vocabulary writes them."""
    vocabulary = tokenizer.get_vocab()
    if "<0x00>" in vocabulary:
        return [vocabulary[f"<0x{byte:02X}>"] for byte in range(256)]
    return [vocabulary[_byte_level(byte)] for byte in range(256)]


def _byte_level(byte: int) -> str:
    """How byte-level BPE writes a byte: itself where it prints in Latin-1, else the next free character from 256."""

    def prints(b: int) -> bool:
        return 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255

    return chr(byte) if prints(byte) else chr(256 + sum(not prints(b) for b in range(byte)))


def begins(tokenizer: Any, token: int, text: str, single: Sequence[int]) -> bool:
    """Whether some bytes (`single`, their ids) behind the token complete it to `text`, as the tokenizer decodes."""
    content = text.encode()
    anchor = [single[byte] for byte in b"|"]
    for used in range(1, len(content) + 1):
        ids = [*anchor, token, *(single[byte] for byte in content[used:])]
        if tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == f"|{text}":
            return True
    return False


def beginning(tokenizer: Any, text: str) -> set[int]:
    """All ids of the vocabulary that begin the text, with or without a leading space."""
    special, single = set(tokenizer.added_tokens_decoder), byte_ids(tokenizer)
    return {
        token
        for token in range(len(tokenizer))
        if token not in special and any(begins(tokenizer, token, spelt, single) for spelt in (text, f" {text}"))
    }


def masses(
    model: nn.Module, tokens: list[int], answers: Mapping[str, set[int]], final_norm: bool = True
) -> dict[str, list[float]]:
    """Per category and layer, for one prompt."""
    found: dict[str, list[float]] = {name: [] for name in (*answers, "shared", "rest")}
    for hidden in run(model, tokens).hidden[1:]:
        probabilities = torch.softmax(frozen_logits(model, hidden[-1], final_norm), dim=-1).tolist()
        sums = dict.fromkeys(found, 0.0)
        for token, probability in enumerate(probabilities):
            owners = [name for name, ids in answers.items() if token in ids]
            sums[owners[0] if len(owners) == 1 else "shared" if owners else "rest"] += probability
        for name, value in sums.items():
            found[name].append(value)
    return found


def mean_and_interval(values: Sequence[float], quantile: float) -> tuple[float, float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = quantile * (variance / len(values)) ** 0.5
    return mean, mean - half, mean + half
