"""Read the publishers' files, plain or gzipped: every defect is one error that names the file and the line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError

_AGAIN = "download the file again"
CHECK = "check that this is the benchmark's file, or download it again"


@dataclass(frozen=True)
class Folder:
    """The folder of benchmark files of one publisher.

    Attributes:
        root: DATA_DIR, which holds one folder per benchmark.
        source: where its files can be had, for the message about a missing one.
    """

    root: Path
    source: str

    def find(self, relative: str) -> Path:
        """The path of a file, which may carry .gz behind its name.

        Raises:
            PivotuneError: it is missing.
        """
        for path in (self.root / relative, self.root / f"{relative}.gz"):
            try:
                if path.is_file():
                    return path
            except OSError as error:
                raise PivotuneError(f"{path}: cannot be read: {error.strerror or error}") from error
        if (self.root / "bench" / relative).is_file():
            raise PivotuneError(f"data_dir: {self.root} has no {relative}; did you mean {self.root / 'bench'}?")
        raise PivotuneError(f"{self.root / relative}: no such file. Get it from {self.source}")

    def has(self, relative: str) -> bool:
        return (self.root / relative).is_dir()


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file, each with its place "path:number".

    Only a line feed ends a line (a carriage return before it goes too): what else Unicode
    counts as a line separator may occur inside texts. Empty lines are dropped at the end of the file only: elsewhere
    that would shift files read in parallel.
    """
    lines = _read(path).split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(str(path), "empty file", "holds no line", _AGAIN)
    return [(f"{path}:{n}", _decode(line.rstrip(b"\r"), f"{path}:{n}")) for n, line in enumerate(lines, start=1)]


def read_jsonl(path: Path, kind: type) -> list[tuple[str, Any]]:
    """One JSON value of type `kind` per line, each with its place."""
    values = []
    for where, line in read_lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of thousands of digits
            shown = line.strip()[:60]
            raise DataError(where, "malformed line", f"{error} in {shown!r}", f"{_AGAIN}: it may be cut") from error
        values.append((where, _of_kind(value, kind, where)))
    return values


def read_json(path: Path, kind: type) -> Any:
    """The one JSON value of a file, of type `kind`."""
    try:
        value = json.loads(_decode(_read(path), str(path)))
    except (ValueError, RecursionError) as error:
        place = f"{path}:{getattr(error, 'lineno', 1)}"
        raise DataError(place, "malformed JSON", str(error), f"{_AGAIN}: it may be cut") from error
    return _of_kind(value, kind, str(path))


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list, each with its place "path: record number" (from 1)."""
    records = read_json(path, list)
    places = [f"{path}: record {number}" for number in range(1, len(records) + 1)]
    if not records:
        raise DataError(str(path), "empty file", "holds no record", _AGAIN)
    return [(where, _of_kind(record, dict, where)) for where, record in zip(places, records, strict=True)]


def read_zipped_csv(path: Path, folder: str) -> Iterator[tuple[str, str, list[list[str]]]]:
    """The CSV files of one folder inside a zip archive: their paths, their names and their rows."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if n.startswith(f"{folder}/") and n.endswith(".csv"))
            for name in names:
                where = f"{path}:{name}"
                text = _decode(archive.read(name), where)
                yield where, Path(name).stem, list(csv.reader(io.StringIO(text), strict=True))
    except DataError:
        raise
    except Exception as error:  # zipfile raises what it likes at damage: NotImplementedError, RuntimeError, ...
        raise DataError(str(path), "malformed archive", str(error), _AGAIN) from error
    if not names:
        raise DataError(str(path), "wrong file", f"the archive has no {folder}/*.csv", _AGAIN)


def text(record: Mapping[str, Any], key: str, where: str) -> str:
    """The field `key`, which must be a string with something in it; white space at its ends is kept."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if key not in record else f"is {value!r}"
        raise DataError(where, "bad field", f"field {key!r} {found}, expected some text", _AGAIN)
    return value


def texts(record: Mapping[str, Any], key: str, where: str) -> list[str]:
    """The field `key`, which must be a list of strings; it and they may be empty."""
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise DataError(where, "bad field", f"field {key!r} is {value!r:.60}, expected a list of texts", _AGAIN)
    return value


def records(record: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """The field `key`, which must be a list of objects."""
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise DataError(where, "bad field", f"field {key!r} is {value!r:.60}, expected a list of objects", _AGAIN)
    return value


def index_of(label: str, labels: Sequence[str], where: str) -> int:
    """The place of a label among those that there are."""
    if label not in labels:
        problem = f"{label!r} is none of {', '.join(map(repr, labels))}"
        raise DataError(where, "gold outside the options", problem, CHECK)
    return labels.index(label)


def gold_of(row: Mapping[str, Any], key: str, allowed: range, where: str) -> int:
    """The field `key`, which must be a number in `allowed`."""
    gold = row.get(key)
    if type(gold) is not int or gold not in allowed:
        problem = f"field {key!r} is {gold!r}, expected {' or '.join(map(str, allowed))}"
        raise DataError(where, "bad gold", problem, CHECK)
    return gold


def aliases(answers: Any, where: str) -> tuple[str, ...]:
    """Distinct answers, stripped, in their order; at least one, none empty."""
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise DataError(where, "bad gold", f"the answers are {answers!r:.60}, expected texts", CHECK)
    return tuple(dict.fromkeys(answer.strip() for answer in answers))


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(path), "unreadable file", str(error), _AGAIN) from error


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        place = where if b"\n" not in data else f"{where}:{line}"
        raise DataError(place, "malformed text", f"not UTF-8 at byte {error.start}", _AGAIN) from error


def _of_kind(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        names: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
        problem = f"holds {value!r:.60}, expected {names[kind]}"
        raise DataError(where, "wrong file", problem, "check that this is the benchmark's file")
    return value
