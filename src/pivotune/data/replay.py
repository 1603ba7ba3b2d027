"""English replay: English sides of pairs as examples of their own, so that English is not forgotten."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pivotune.data.examples import ParallelExample
from pivotune.data.languages import is_english
from pivotune.errors import PivotuneError


def with_replay(examples: Sequence[ParallelExample], share: float, seed: int) -> list[ParallelExample]:
    """The examples and, each behind its pair, the English sides that are drawn.

    Whether a side is drawn depends on its id and the seed alone, so that more rows, or other languages of the same ids,
    draw the same ones. One that is there as an example already, or twice, is not drawn again.

    Args:
        share: of the English sides with an answer that is drawn, in 0..1.

    Raises:
        PivotuneError: there is no English answer.
    """
    found: list[ParallelExample] = []
    known = {one.id for one in examples if is_english(one.language)}
    answered = 0
    for one in examples:
        found.append(one)
        if one.english is None or not one.english.answer:
            continue
        answered += 1
        if one.id not in known and _draw(one.id, seed) < share:
            known.add(one.id)
            found.append(ParallelExample(one.id, "en", one.english, where=one.where))
    if share and not answered:
        raise PivotuneError(
            f"data.english_replay: got {share:g}, but no example has an English answer. Give the field 'english' an "
            "answer (english.output, say), or leave the option out."
        )
    return found


def _draw(number: str, seed: int) -> float:
    """In 0..1, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
