"""Lines of files and streams: a line ends at a newline alone, and what cannot be read is one error with its place.

Other characters that Unicode counts as line ends (U+2028, NEL, vertical tab, form feed) may stand inside a text.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError

# How files begin whose name says something else.
_MAGIC = {
    b"\x1f\x8b": (".gz", "is compressed with gzip; add .gz to its name"),
    b"PAR1": (".parquet", "is Parquet; name it .parquet"),
    b"\x28\xb5\x2f\xfd": (".zst", "is compressed with zstd; unpack it first"),
    b"PK\x03\x04": (".zip", "is a zip archive; unpack it first"),
    b"\xff\xfe": (None, "is UTF-16; save it as UTF-8, e.g. with `iconv -f UTF-16 -t UTF-8`"),
    b"\xfe\xff": (None, "is UTF-16; save it as UTF-8, e.g. with `iconv -f UTF-16 -t UTF-8`"),
}


def check_file(path: Path, kinds: str) -> None:
    """Raise a PivotuneError unless this is a file that can be read, and is no other kind than its name says.

    Args:
        path: the file.
        kinds: what may be given instead, for the message.
    """
    try:
        if path.is_dir():
            raise PivotuneError(f"{path}: is a folder; name its files: {kinds}")
        if not path.exists():
            raise PivotuneError(f"{path}: no such file; give {kinds}")
        if not path.is_file():
            raise PivotuneError(f"{path}: is a pipe or a device, but files are read more than once; write it to a file")
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise PivotuneError(f"{path}: cannot be read: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    if suffix == ".gz" and start and not start.startswith(b"\x1f\x8b"):
        raise PivotuneError(f"{path}: is not compressed with gzip; take .gz from its name")
    for magic, (own, problem) in _MAGIC.items():
        if start.startswith(magic) and suffix != own:
            raise PivotuneError(f"{path}: {problem}")


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, which may be .gz, as bytes: at one bad byte text mode would stop instead of naming its line.

    Raises:
        PivotuneError: it cannot be read, from some line on.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for line in file:
                number += 1
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise PivotuneError(
            f"{path}: cannot be read behind line {number}: {error}. It may be cut or damaged: make or get it again."
        ) from error


def text_lines(lines: Iterable[bytes], name: str, encoding: str = "utf-8") -> Iterator[tuple[str, str]]:
    """Lines as text, each with its place "name:number", without a byte order mark and the line's end.

    Raises:
        DataError: a line that is not in the encoding, or holds a NUL, as UTF-16 and binary files do.
    """
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            wanted = encoding.upper()
            raise DataError(
                where, "malformed text", f"not {wanted} at byte {error.start}", f"save it as {wanted}"
            ) from error
        if "\0" in text:
            raise DataError(where, "malformed text", "holds a NUL byte, as UTF-16 or a binary file", "save it as UTF-8")
        if number == 1:
            text = text.removeprefix("\ufeff")
        yield where, text.removesuffix("\n").removesuffix("\r")
