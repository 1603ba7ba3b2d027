"""Short Alpaca examples that exist in English, Chinese and Vietnamese under one id: training, development and test."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pivotune.data import ParallelExample, PromptEncoder
from pivotune.data.prompts import prompt_only
from pivotune.errors import PivotuneError

DATA = Path(__file__).resolve().parents[3] / "shared/data/instruct"
"""The folder of alpaca_{en,zh,vi}.jsonl.gz; another with --data."""
STYLE: Literal["alpaca"] = "alpaca"
SIZES = {"train": 2000, "dev": 200, "test": 500}
_CHARACTERS = {"en": (160, 320), "vi": (200, 400), "zh": (70, 140)}
"""The most that a question and an answer may have: short pairs, so that more of them can be afforded."""
_FEWEST = {"en": 12, "vi": 12, "zh": 4}
"""Of an answer: a word alone teaches little."""

Row = dict[str, Any]


def check(data: Path) -> None:
    """Raises a PivotuneError where the folder lacks a file."""
    for language in _CHARACTERS:
        file = data / f"alpaca_{language}.jsonl.gz"
        if not file.is_file():
            raise PivotuneError(
                f"--data: {file} is not there. Name the folder that holds alpaca_en.jsonl.gz (Stanford Alpaca: id, "
                "instruction, input, output) and its translations of the same ids, alpaca_zh.jsonl.gz and "
                "alpaca_vi.jsonl.gz."
            )


def _read(data: Path, language: str) -> dict[str, tuple[str, str]]:
    """id -> question and answer."""
    found = {}
    with gzip.open(data / f"alpaca_{language}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            question = row.get("prompt") or "\n".join(filter(None, (row["instruction"], row["input"])))
            found[str(row["id"])] = (question.strip(), (row.get("response") or row.get("output") or "").strip())
    return found


@cache
def splits(data: Path = DATA) -> dict[str, dict[str, dict[str, tuple[str, str]]]]:
    """split -> id -> language -> question and answer. Which split an id belongs to depends on the id alone."""
    sets = {language: _read(data, language) for language in _CHARACTERS}
    short = [
        number
        for number in sets["en"]
        if all(number in rows and _is_short(language, *rows[number]) for language, rows in sets.items())
    ]
    short.sort(key=lambda number: hashlib.sha256(number.encode()).hexdigest())
    found, start = {}, 0
    for split, size in SIZES.items():
        chosen = short[start : start + size]
        if len(chosen) < size:
            raise ValueError(f"{data}: {len(short)} short pairs in all three languages, {sum(SIZES.values())} needed.")
        found[split] = {number: {language: rows[number] for language, rows in sets.items()} for number in chosen}
        start += size
    return found


def _is_short(language: str, question: str, answer: str) -> bool:
    longest_question, longest_answer = _CHARACTERS[language]
    return len(question) <= longest_question and _FEWEST[language] <= len(answer) <= longest_answer


def rows(split: str, language: str, data: Path = DATA, count: int | None = None) -> list[Row]:
    """Examples in a language with their English counterparts; English ones have none."""
    found = []
    for number, sides in list(splits(data)[split].items())[:count]:
        question, answer = sides[language]
        row: Row = {"id": number, "language": language, "instruction": question, "output": answer}
        if language != "en":
            row["english"] = dict(zip(("instruction", "output"), sides["en"], strict=True))
        found.append(row)
    return found


def training_rows(
    language: str, count: int, seed: int, data: Path = DATA, *, replay: float = 0.0, shuffled: bool = False
) -> list[Row]:
    """`count` examples to train on, in the order in which a seed draws them.

    Args:
        replay: the share of them that is English.
        shuffled: give each example the English side of another one: the control for what seems to gain from English.
    """
    draw = random.Random(seed)
    target = rows("train", language, data)
    draw.shuffle(target)
    target = target[:count]
    if shuffled:
        sides = [row["english"] for row in target]
        target = [{**row, "english": side} for row, side in zip(target, sides[1:] + sides[:1], strict=True)]
    english = {row["id"]: row for row in rows("train", "en", data)}
    for place in draw.sample(range(count), round(replay * count)):
        target[place] = english[target[place]["id"]]
    return target


def texts(tokenizer: Any, data: Path = DATA) -> list[str]:
    """Every prompt with its answer, as training tokenises it: what a cut vocabulary has to hold."""
    encoder = PromptEncoder(tokenizer, STYLE)
    found = []
    for split in SIZES:
        for language in _CHARACTERS:
            for row in rows(split, language, data):
                example = ParallelExample.from_dict(row, row["id"])
                found.append(encoder.render(prompt_only(example), row["id"]).prompt + example.text.answer)
                found.append(example.text.answer)
    return found
