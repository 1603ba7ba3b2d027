"""Files that commands write and read: nothing of the user's is replaced unasked, nothing half-written is left behind,
and what is damaged is named."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from pivotune.errors import PivotuneError

logger = logging.getLogger(__name__)

LOCK = "pivotune.lock"
"""Lies in a folder that a process is writing into; a process that was killed leaves it behind, unlocked."""


LONGEST_NAME = 240
"""Bytes of a file's name: file systems take 255, and while a file is written its name is longer."""
_OF_A_MODEL = ("config.json", "adapter_config.json", "pivotune.json")


def check_output_file(option: str, path: str | Path, *, overwrite: bool = False, new_folder: bool = False) -> Path:
    """The path, if a file can be written there: checked before the work that makes its content.

    Args:
        option: the option that names the file, for the message.
        path: the file to be written.
        overwrite: whether an existing file may be replaced.
        new_folder: whether the file's folder will be created where it does not exist.

    Raises:
        PivotuneError: a folder, an existing file without `overwrite`, or a place where nothing can be written.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, it does not raise where permission is missing
        raise PivotuneError(f"{option}: {path} is a folder; name a file.")
    if os.path.lexists(path) and not overwrite:
        raise PivotuneError(
            f"{option}: {path} already exists. Name another place, or replace it with --overwrite true."
        )
    folder = Path(os.path.realpath(path)).parent
    if not os.path.isdir(folder) and not new_folder:
        raise PivotuneError(f"{option}: the folder of {path} does not exist; create it first.")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise PivotuneError(f"{option}: the name of {path} is too long; give one of at most {LONGEST_NAME} bytes.")
    if os.path.lexists(path) and any(os.path.exists(folder / name) for name in _OF_A_MODEL):
        raise PivotuneError(f"{option}: {path} is a file in the folder of a model or run; name another place.")
    there = _nearest(folder)
    if not os.path.isdir(there):
        raise PivotuneError(f"{option}: {there} is a file, so {path} cannot be created in it; name another place.")
    if not os.access(path if os.path.exists(path) else there, os.W_OK):
        raise PivotuneError(f"{option}: {path} cannot be written (no permission); name another place.")
    return path


def check_output_files(
    option: str, folder: str | Path, names: Iterable[str | Path], *, overwrite: bool = False
) -> Path:
    """The folder, if these files can be written into it, as `check_output_file`; it need not exist."""
    folder = Path(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise PivotuneError(f"{option}: {folder} is a file; name a folder.")
    for name in names:
        check_output_file(option, folder / name, overwrite=overwrite, new_folder=True)
    return folder


def write_text(path: str | Path, content: str) -> None:
    """Write a whole file as UTF-8, or leave what was there.

    Raises:
        PivotuneError: the file cannot be written.
    """
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """As `write_text`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # no file of the user's has that name
    try:
        with writing(path):
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def as_json(value: Any) -> Any:
    """The `default` of json.dumps: NumPy's numbers as the numbers that they are, anything else as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def read_json(path: str | Path) -> Any:
    """The content of a file.

    Raises:
        PivotuneError: it cannot be read, or is no JSON; with the line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PivotuneError(f"{path}: cannot be read: {reason(error)}.") from error
    except ValueError as error:
        place = f"{path}:{getattr(error, 'lineno', 1)}"
        raise PivotuneError(f"{place}: is not valid JSON, as if damaged or not written to its end: {error}.") from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it does not exist."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """One line, instead of a traceback, where something cannot be written: a full disk, no permission, a broken device.

    Raises:
        PivotuneError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise PivotuneError(
            f"{place}: cannot be written: {reason(error)}. Name another place, or make room."
        ) from error


def reason(error: BaseException) -> str:
    """Why something failed, in one line: what the system says, else the first line of the error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def locked_file(option: str, path: str | Path) -> Iterator[None]:
    """Keep other processes from writing this file. The lock lies elsewhere: it leaves nothing beside the file.

    Raises:
        PivotuneError: another process is writing it.
    """
    place = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    try:
        with FileLock(Path(tempfile.gettempdir(), f"pivotune-{place}.lock"), timeout=0):
            yield
    except Timeout:
        raise PivotuneError(f"{option}: another process is writing into {path}. Wait for its end.") from None


@contextmanager
def locked(option: str, folder: Path) -> Iterator[None]:
    """Keep other processes from writing into the folder, which is made where it does not exist.

    Raises:
        PivotuneError: another process is writing into it, or it cannot be written.
    """
    new = not folder.exists()
    make_folder(folder)
    with writing(folder):
        (folder / LOCK).touch()
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise PivotuneError(
            f"{option}: another process is writing into {folder}. Wait for its end, or name another folder."
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.warning("%s: cannot be locked against a second process: %s.", folder, reason(error))
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # before the release: afterwards it might be another's
        lock.release()
        if new and not any(folder.iterdir()):
            folder.rmdir()  # nothing came of it


def free_bytes(place: Path) -> int:
    """The free space where `place` is, or will be."""
    return shutil.disk_usage(_nearest(Path(os.path.realpath(place)))).free


def size(count: int) -> str:
    """A number of bytes, as people read it."""
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(one for one in (path, *path.parents) if os.path.exists(one))
