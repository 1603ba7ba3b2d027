"""Results on disk: one JSON file per cell, named by a hash of all that its numbers depend on, and complete where it is.

So an interrupted experiment goes on where it stopped, and nothing is reused after its model, data or options changed.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from pivotune.files import write_text
from pivotune.provenance import versions


def content_hash(content: Any) -> str:
    """SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def result_file(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def read_result(folder: Path, key: str) -> dict[str, Any] | None:
    """The finished result of a cell; None where there is none."""
    path = result_file(folder, key)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_result(folder: Path, key: str, result: dict[str, Any]) -> None:
    """The whole file at once: a result that exists is complete."""
    write_text(result_file(folder, key), json.dumps(result, ensure_ascii=False) + "\n")


def environment() -> dict[str, Any]:
    """Commit, versions and machine, for the head of a table."""

    def git(*words: str) -> str:
        try:
            answer = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        except OSError:
            return ""
        return answer.stdout.strip() if answer.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", ".")
    return {
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else ""),
        "versions": {"python": platform.python_version()} | versions("numpy", "scipy"),
        "machine": platform.machine(),
    }
