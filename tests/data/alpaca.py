"""Joined Alpaca rows in this project's JSONL format, for tests with real data."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any


def alpaca_rows(language: str, count: int, folder: Path) -> list[dict[str, Any]]:
    """The first `count` rows that exist in `language` and in English.

    Chinese is in the instruction layout. Vietnamese is in the prompt layout, because its translation merges
    instruction and input; its English side is instruction, newline, input.

    Args:
        language: "zh" or "vi".
        count: rows to give, fewer where the file ends.
        folder: holds alpaca_{en,zh,vi}.jsonl.gz with the ids in common ("instruct" of the shared data sets).
    """
    english = {row["id"]: row for row in _read(folder / "alpaca_en.jsonl.gz")}
    targets = (row for row in _read(folder / f"alpaca_{language}.jsonl.gz") if row["id"] in english)
    join = {"zh": _instruction_row, "vi": _prompt_row}[language]
    return [join(row, english[row["id"]]) for row in islice(targets, count)]


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _instruction_row(row: dict[str, Any], english: dict[str, Any]) -> dict[str, Any]:
    fields = ("instruction", "input", "output")
    return {
        "id": row["id"],
        "language": "zh",
        **{name: row[name] for name in fields},
        "english": {name: english[name] for name in fields},
    }


def _prompt_row(row: dict[str, Any], english: dict[str, Any]) -> dict[str, Any]:
    prompt = "\n".join(part for part in (english["instruction"], english["input"]) if part)
    return {
        "id": row["id"],
        "language": "vi",
        "prompt": row["prompt"],
        "completion": row["response"],
        "english": {"prompt": prompt, "completion": english["output"]},
    }
