"""Read examples from JSONL, JSON, Parquet and the hub; every row is kept, raised or counted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pivotune.data.examples import ParallelExample, is_among, is_english
from pivotune.data.report import DataError, Report
from pivotune.errors import PivotuneError, check_choice

HUB = "hub:"
_SUFFIXES = ".jsonl, .jsonl.gz, .json, .json.gz, .parquet or hub:owner/name[:split]"

# (place for messages, number of the row, the row, or what is wrong with it)
Row = tuple[str, int, Any]


def read_examples(
    source: str | Path | Sequence[str | Path],
    *,
    on_bad: str = "error",
    require_english: bool = False,
    languages: Sequence[str] | None = None,
) -> tuple[list[ParallelExample], Report]:
    """Read and validate all examples of one or several sources.

    Args:
        source: path or paths (.jsonl, .json, each also .gz, and .parquet), or "hub:owner/name[:split]" for a
            dataset that `datasets.load_dataset` finds; the split is "train" unless given.
        on_bad: "error" raises at the first bad row; "skip" counts it in the report and goes on.
        require_english: whether a non-English row without its English counterpart is bad.
        languages: the languages to expect; a row in another one is bad. "pt" admits "pt-BR" too.

    Returns:
        The examples in their order, and the report of what was kept and skipped. The id of a row without one is
        its line number; when there are several sources, "source:line". Empty lines are no rows.

    Raises:
        DataError: a bad row, under on_bad="error".
        PivotuneError: a source that cannot be read, or that leaves no example.
    """
    check_choice("on_bad", on_bad, ("error", "skip"))
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    examples: list[ParallelExample] = []
    report = Report()
    seen: dict[tuple[str, str], str] = {}
    for name in map(str, sources):
        for where, number, row in _rows(name):
            try:
                if isinstance(row, DataError):
                    raise row
                default_id = str(number) if len(sources) == 1 else f"{name}:{number}"
                example = ParallelExample.from_dict(row, where, default_id)
                _check_wanted(example, require_english, languages)
                _check_new(example, seen)
            except DataError as error:
                if on_bad == "error":
                    raise
                report.skip(error)
                continue
            examples.append(example)
            report.keep(example.language, example.english is not None)
    if not examples:
        raise PivotuneError(f"{', '.join(map(str, sources)) or 'no source'}: no example to use: {report}")
    return examples, report


def read_prompts(source: str | Path) -> list[ParallelExample]:
    """Read questions to be answered: rows in the layouts of training data, their answers and languages optional.

    Raises:
        DataError: a bad row. PivotuneError: a source that cannot be read, or that holds no row.
    """
    return list(stream_prompts(source))


def stream_prompts(source: str | Path) -> Iterator[ParallelExample]:
    """As `read_prompts`, row by row: nothing is kept."""
    number = None
    for where, number, row in _rows(str(source)):
        if isinstance(row, DataError):
            raise row
        yield ParallelExample.from_dict(row, where, str(number), answered=False)
    if number is None:
        raise PivotuneError(f"{source}: holds no prompt")


def _check_wanted(example: ParallelExample, require_english: bool, languages: Sequence[str] | None) -> None:
    language = example.language
    if languages is not None and not is_among(language, languages):
        problem = f"field 'language' is {language!r}, expected {', '.join(map(repr, languages))}"
        raise DataError(example.where, "wrong language", problem, "add it to 'languages', or remove the row")
    if require_english and example.english is None and not is_english(language):
        problem = f"field 'english' is missing in the {language!r} row {example.id!r}"
        raise DataError(example.where, "missing English", problem, "add it, or do not require English")


def _check_new(example: ParallelExample, seen: dict[tuple[str, str], str]) -> None:
    # Translations of one data set share their ids, so an id has to be unique within its language only.
    key = (example.language, example.id)
    if key in seen:
        problem = f"field 'id' is {example.id!r}, as in {seen[key]} (language {example.language!r})"
        raise DataError(example.where, "duplicate id", problem, "give each row of a language its own id")
    seen[key] = example.where


def _rows(source: str) -> Iterator[Row]:
    if source.startswith(HUB):
        return _hub_rows(source)
    path = Path(source)
    if not path.is_file():
        raise PivotuneError(f"{source}: no such file; give {_SUFFIXES}")
    suffixes = path.name.lower().removesuffix(".gz")
    if suffixes.endswith(".jsonl"):
        return _jsonl_rows(path)
    if suffixes.endswith(".json"):
        return _jsonl_rows(path) if _has_objects_line_by_line(path) else _json_rows(path)
    if path.name.lower().endswith(".parquet"):
        return _parquet_rows(path)
    raise PivotuneError(f"{source}: unknown file type {path.suffix!r}; give {_SUFFIXES}")


def _read_lines(path: Path) -> Iterator[bytes]:
    # Bytes, because text mode would stop the whole file at one bad byte instead of naming its line.
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError) as error:
        raise PivotuneError(f"{path}: cannot be read: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, number, _parse(line, where)


def _parse(line: bytes, where: str) -> Any:
    """The value of one line of JSON, or the DataError it deserves."""
    fix = "write one JSON object per line"
    try:
        return json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return DataError(where, "malformed line", f"not UTF-8 at byte {error.start}", "save the file as UTF-8")
    except json.JSONDecodeError as error:
        shown = line.decode("utf-8", "replace").strip()[:60]
        return DataError(where, "malformed line", f"{error.msg} at column {error.colno} of {shown!r}", fix)
    except (ValueError, RecursionError) as error:
        return DataError(where, "malformed line", str(error), fix)


def _refuse_constant(name: str) -> None:
    # Python reads NaN and Infinity, which JSON does not have and no field here may hold.
    raise ValueError(f"the value {name} is not JSON")


def _has_objects_line_by_line(path: Path) -> bool:
    """Whether a .json file is JSON lines in truth, as benchmarks often are: its first line is a whole object."""
    first, *more = [line for _, line in zip(range(2), filter(bytes.strip, _read_lines(path)), strict=False)] or [b""]
    return bool(more) and first.startswith(b"{") and isinstance(_parse(first, str(path)), dict)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(b"".join(_read_lines(path)).decode("utf-8-sig"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        fix = "a file with one object per line is named .jsonl"
        raise DataError(f"{path}:{error.lineno}", "malformed JSON", error.msg, fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), "malformed JSON", str(error), "write valid JSON in UTF-8") from error
    if not isinstance(rows, list):
        raise DataError(str(path), "malformed JSON", f"holds one {type(rows).__name__}", "write a list of objects")
    return _numbered(str(path), rows)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Batches, so that only one row group's worth of Python objects is alive at a time.
        with parquet.ParquetFile(path) as file:
            yield from _numbered(str(path), (row for batch in file.iter_batches() for row in batch.to_pylist()))
    except (pa.ArrowException, OSError) as error:
        raise PivotuneError(f"{path}: cannot be read as Parquet: {error}") from error


def _hub_rows(source: str) -> Iterator[Row]:
    import datasets

    name, _, split = source.removeprefix(HUB).partition(":")
    split = split or "train"
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets raises many kinds: network, unknown name, unknown split, bad script
        raise PivotuneError(f"{source}: datasets.load_dataset({name!r}, split={split!r}) failed: {error}") from error
    return _numbered(f"{HUB}{name}:{split}", rows)


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Row]:
    return ((f"{name}: row {number}", number, row) for number, row in enumerate(rows, start=1))
