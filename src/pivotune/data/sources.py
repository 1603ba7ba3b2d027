"""Read examples from JSONL, JSON, Parquet and the hub; every row is kept, raised or counted."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pivotune.data.examples import ParallelExample, check_columns, is_among, is_english
from pivotune.data.languages import read_languages
from pivotune.data.lines import check_file, read_lines
from pivotune.data.report import DataError, Report
from pivotune.errors import PivotuneError, check_choice

logger = logging.getLogger(__name__)

HUB = "hub:"
_SUFFIXES = ".jsonl, .jsonl.gz, .json, .json.gz, .parquet or hub:owner/name[/configuration][:split]"
_FIXES = {
    "csv": "pandas.read_csv({path!r}).to_json('rows.jsonl', orient='records', lines=True) makes one",
    "tsv": "pandas.read_csv({path!r}, sep='\\t').to_json('rows.jsonl', orient='records', lines=True) makes one",
    **dict.fromkeys(("zst", "bz2", "xz", "zip", "tar"), "unpack it first"),
    "txt": "plain text holds no answers; `pivotune generate --prompts_file` alone reads it",
}

# (place for messages, number of the row, the row, or what is wrong with it)
Row = tuple[str, int, Any]


def read_examples(
    source: str | Path | Sequence[str | Path],
    *,
    on_bad: str = "error",
    require_english: bool = False,
    english_answer_for: str | None = None,
    languages: Sequence[str] | None = None,
    language: str | None = None,
    columns: Mapping[str, str | None] | None = None,
) -> tuple[list[ParallelExample], Report]:
    """Read and validate all examples of one or several sources.

    Args:
        source: path or paths (.jsonl, .json, each also .gz, and .parquet), or `hub:owner/name[/configuration][:split]`
            for a dataset that `datasets.load_dataset` finds; the split is "train" unless given.
        on_bad: "error" raises at the first bad row; "skip" counts it in the report and goes on.
        require_english: whether a non-English row without its English counterpart is bad.
        english_answer_for: the option that makes an English side without an answer bad, for the message; none where
            None.
        languages: the languages to expect; a row in another one is bad. "pt" admits "pt-BR" too.
        language: of rows that name none; where None, they are bad.
        columns: other names of fields, {theirs: ours, or None to leave it out}; see `ParallelExample.from_dict`.

    Returns:
        The examples in their order, and the report of what was kept and skipped. The id of a row without one is
        its line number; when there are several sources, "source:line". Empty lines are no rows.

    Raises:
        DataError: a bad row, under on_bad="error".
        PivotuneError: a source that cannot be read, or that leaves no example.
    """
    check_choice("on_bad", on_bad, ("error", "skip"))
    check_columns("columns", columns or {})
    if languages is not None:
        languages = read_languages("languages", languages)
    if language is not None:
        (language,) = read_languages("language", [language])
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    examples: list[ParallelExample] = []
    report = Report()
    seen: dict[tuple[str, str], str] = {}
    for name in map(str, sources):
        for where, number, row in _rows(name):
            notes: list[str] = []
            try:
                if isinstance(row, DataError):
                    raise row
                default_id = str(number) if len(sources) == 1 else f"{name}:{number}"
                example = ParallelExample.from_dict(
                    row, where, default_id, language=language, columns=columns, notes=notes
                )
                _check_wanted(example, require_english, english_answer_for, languages)
                _check_new(example, seen)
            except DataError as error:
                if on_bad == "error":
                    raise
                report.skip(error)
                continue
            examples.append(example)
            report.keep(example.language, example.english is not None)
            for note in dict.fromkeys(notes):
                report.note(note, where)
    if not examples:
        raise PivotuneError(f"{', '.join(map(str, sources)) or 'no source'}: no example to use: {report}")
    return examples, report


def read_prompts(source: str | Path, *, columns: Mapping[str, str | None] | None = None) -> list[ParallelExample]:
    """Read questions to be answered: rows in the layouts of training data, their answers and languages optional.

    Args:
        source: as for `read_examples`.
        columns: as for `read_examples`.

    Raises:
        DataError: a bad row. PivotuneError: a source that cannot be read, or that holds no row.
    """
    notes: Counter[str] = Counter()
    prompts = list(stream_prompts(source, columns=columns, notes=notes))
    log_notes(source, notes)
    return prompts


def stream_prompts(
    source: str | Path, *, columns: Mapping[str, str | None] | None = None, notes: Counter[str] | None = None
) -> Iterator[ParallelExample]:
    """As `read_prompts`, row by row: nothing is kept. `notes` counts what was not read, or otherwise than written."""
    check_columns("columns", columns or {})
    number = None
    for where, number, row in _rows(str(source)):
        if isinstance(row, DataError):
            raise row
        said: list[str] = []
        yield ParallelExample.from_dict(row, where, str(number), answered=False, columns=columns, notes=said)
        if notes is not None:
            notes.update(set(said))
    if number is None:
        raise PivotuneError(f"{source}: holds no prompt")


def log_notes(source: str | Path, notes: Counter[str]) -> None:
    """Say what `stream_prompts` counted."""
    for note, count in notes.items():
        logger.warning("%s: rows with %s: %d.", source, note, count)


def _check_wanted(
    example: ParallelExample, require_english: bool, english_answer_for: str | None, languages: Sequence[str] | None
) -> None:
    language = example.language
    if languages is not None and not is_among(language, languages):
        problem = f"field 'language' is {language!r}, expected {', '.join(map(repr, languages))}"
        raise DataError(example.where, "wrong language", problem, "add it to 'languages', or remove the row")
    if require_english and example.english is None and not is_english(language):
        problem = f"field 'english' is missing in the {language!r} row {example.id!r}"
        raise DataError(example.where, "missing English", problem, "add it, or do not require English")
    if english_answer_for and example.english is not None and not example.english.answer.strip():
        problem = (
            f"the English side of the {language!r} row {example.id!r} has no answer, which {english_answer_for} reads"
        )
        fix = "add it, or choose feature or off there, which need none"
        raise DataError(example.where, "missing English answer", problem, fix)


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
    check_file(path, _SUFFIXES)
    suffixes = path.name.lower().removesuffix(".gz")
    if suffixes.endswith(".jsonl"):
        return _jsonl_rows(path)
    if suffixes.endswith(".json"):
        return _jsonl_rows(path) if _has_objects_line_by_line(path) else _json_rows(path)
    if path.name.lower().endswith(".parquet"):
        return _parquet_rows(path)
    kind = path.suffix.lower().removeprefix(".")
    fix = f" ({_FIXES[kind].format(path=path.name)})" if kind in _FIXES else ""
    raise PivotuneError(f"{source}: unknown file type {path.suffix!r}; give {_SUFFIXES}{fix}")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, number, _parse(line, where)


def _parse(line: bytes, where: str) -> Any:
    """The value of one line of JSON, or the DataError it deserves."""
    fix = "write one JSON object per line"
    if ".gz:" in where:
        fix += "; or, if that is what it holds, the file is damaged: get it anew"
    try:
        return _loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DataError(where, "malformed line", f"not UTF-8 at byte {error.start}", "save the file as UTF-8")
    except json.JSONDecodeError as error:
        shown = line.decode("utf-8", "replace").strip()[:60]
        return DataError(where, "malformed line", f"{error.msg} at column {error.colno} of {shown!r}", fix)
    except (ValueError, RecursionError) as error:
        return DataError(where, "malformed line", str(error), fix)


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ; of two fields with one name Python would keep the last without a word."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice in one object")
    return fields


def _refuse_constant(name: str) -> None:
    # Python reads NaN and Infinity, which JSON does not have and no field here may hold.
    raise ValueError(f"the value {name} is not JSON")


def _has_objects_line_by_line(path: Path) -> bool:
    """Whether a .json file is JSON lines in truth, as benchmarks often are: its first line is a whole object."""
    first, *more = [line for _, line in zip(range(2), filter(bytes.strip, read_lines(path)), strict=False)] or [b""]
    return bool(more) and first.startswith(b"{") and isinstance(_parse(first, str(path)), dict)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        rows = _loads(b"".join(read_lines(path)).decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        fix = "a file with one object per line is named .jsonl"
        raise DataError(f"{path}:{error.lineno}", "malformed JSON", error.msg, fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), "malformed JSON", str(error), "write valid JSON in UTF-8") from error
    if not isinstance(rows, list):
        names = f" with the fields {', '.join(map(repr, list(rows)[:5]))}" if isinstance(rows, dict) else ""
        problem = f"holds one {type(rows).__name__}{names}"
        fix = "write a list of objects, or one object per line as .jsonl"
        lists = [name for name, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
        if len(lists) == 1:
            fix += f"; `jq .{lists[0]} {path.name} > rows.json` takes the list out"
        raise DataError(str(path), "malformed JSON", problem, fix)
    return _numbered(str(path), rows)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        # Batches, so that only one row group's worth of Python objects is alive at a time.
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", number, row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: text that is not UTF-8
        said = " ".join(str(error).split())
        raise PivotuneError(
            f"{path}: cannot be read as Parquet behind row {number}: {said}. It is damaged, or no Parquet file."
        ) from error


def _hub_rows(source: str) -> Iterator[Row]:
    import datasets

    path, _, split = source.removeprefix(HUB).partition(":")
    split = split or "train"
    owner, _, rest = path.partition("/")
    name, _, config = rest.partition("/")
    name = f"{owner}/{name}" if name else owner
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # datasets raises many kinds: network, unknown name, unknown split, bad script
        said = " ".join(str(error).split())
        hint = f" Write {HUB}{name}/CONFIGURATION:{split}." if "config" in said.lower() else ""
        asked = f"{name!r}, {config!r}, " if config else f"{name!r}, "
        raise PivotuneError(
            f"{source}: datasets.load_dataset({asked}split={split!r}) failed: {said.removesuffix('.')}.{hint}"
        ) from error
    return _numbered(f"{HUB}{path}:{split}", rows)


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Row]:
    return ((f"{name}: row {number}", number, row) for number, row in enumerate(rows, start=1))
