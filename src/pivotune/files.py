"""Files that commands write: nothing of the user's is replaced unasked, and nothing half-written is left behind."""

from __future__ import annotations

import os
from pathlib import Path

from pivotune.errors import PivotuneError


def check_output_file(option: str, path: str | Path, *, overwrite: bool = False) -> Path:
    """The path, if a file can be written there: checked before the work that makes its content.

    Args:
        option: the option that names the file, for the message.
        path: the file to be written.
        overwrite: whether an existing file may be replaced.

    Raises:
        PivotuneError: a folder, an existing file without `overwrite`, or a place where nothing can be written.
    """
    path = Path(path)
    if path.is_dir():
        raise PivotuneError(f"{option}: {path} is a folder; name a file.")
    if path.exists() and not overwrite:
        raise PivotuneError(f"{option}: {path} already exists. Name another file, or replace it with --overwrite true.")
    if not path.resolve().parent.is_dir():
        raise PivotuneError(f"{option}: the folder of {path} does not exist; create it first.")
    if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
        raise PivotuneError(f"{option}: {path} cannot be written (no permission); name another place.")
    return path


def write_text(path: str | Path, content: str) -> None:
    """Write a whole file as UTF-8, or leave what was there."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)
