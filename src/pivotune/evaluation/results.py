"""The files of an evaluation: written by `pivotune evaluate`, read by `pivotune compare`.

    RUN/evaluation/
      evaluation.json                                   what was evaluated, and how
      items/PROTOCOL.BENCHMARK.LANGUAGE.CONNECTION.jsonl    one line for each finished item

evaluation.json:

    {"format": 1, "run": "runs/zh",
     "model": {"base_model": ..., "objectives": ..., "seed": ..., ...},    of the run's pivotune.json
     "connection": "none" | "english" | "matrix",
     "config": {"limit": ..., ...}, "versions": {"pivotune": ..., ...},
     "benchmarks": {"likelihood.NAME": {"protocol": "likelihood", "metric": "accuracy", "chance": 0.333}, ...}}

A line of items: `ItemResult`. Lines are appended as items finish. A process that is killed may leave a line without its
end: it is dropped, with a warning, when the file is opened again. Anything else that is wrong is an error that names
the file and the line.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.files import make_folder, write_text, writing

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER, INFO, ITEMS = "evaluation", "evaluation.json", "items"
TABLE, SCORES = "evaluation.md", "scores.json"
_AGAIN = "evaluate again into an empty folder, or remove this file and resume"
_PART = re.compile(r"[A-Za-z0-9_-]+")


class Key(NamedTuple):
    """What a file of items holds.

    Attributes:
        protocol: "likelihood" or "generation".
        benchmark: its name in `pivotune.evaluation.benchmarks.BENCHMARKS`, or any of letters, digits, "_" and "-".
        language: a BCP-47 tag, "zh-Hant".
        connection: "none", "english" or "matrix".
    """

    protocol: str
    benchmark: str
    language: str
    connection: str

    @property
    def filename(self) -> str:
        for name, part in zip(self._fields, self, strict=True):
            if not _PART.fullmatch(part):
                raise PivotuneError(f"{name}: got {part!r}; give letters, digits, '_' and '-' only.")
        return ".".join(self) + ".jsonl"

    @classmethod
    def of_file(cls, path: Path) -> Key:
        """The key in a file's name."""
        parts = path.name.removesuffix(".jsonl").split(".")
        if len(parts) != 4 or not all(map(_PART.fullmatch, parts)):
            raise PivotuneError(f"{path}: is not named PROTOCOL.BENCHMARK.LANGUAGE.CONNECTION.jsonl. Remove it.")
        return cls(*parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """What became of one item.

    Attributes:
        id: of the item; unique in its file, and the same in every run.
        score: the benchmark's metric for this item, 0 to 1.
        prediction: the generated answer.
        choice: the option that was chosen, from 0; None where there are no options, or none was found in the answer.
        gold: the right option.
        scores: further metrics, by name.
        loglikelihoods: of the options, in nats; None for one that is not finite.
        ambiguous: the answer could be read as several options.
        in_language: whether the answer is in the language of the item; None where it does not tell, or was not asked.
    """

    id: str
    score: float
    prediction: str | None = None
    choice: int | None = None
    gold: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    loglikelihoods: tuple[float | None, ...] | None = None
    ambiguous: bool = False
    in_language: bool | None = None

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(problem)

    def _problem(self) -> str | None:
        index = (int, type(None))
        checks = {
            "id": isinstance(self.id, str) and self.id != "",
            "score": _is_number(self.score) and 0 <= self.score <= 1,
            "prediction": isinstance(self.prediction, str | None),
            "choice": _is_of(self.choice, *index) and (self.choice is None or self.choice >= 0),
            "gold": _is_of(self.gold, *index) and (self.gold is None or self.gold >= 0),
            "scores": isinstance(self.scores, Mapping) and all(map(_is_number, self.scores.values())),
            "loglikelihoods": self.loglikelihoods is None
            or (
                isinstance(self.loglikelihoods, list | tuple)
                and all(value is None or _is_number(value) for value in self.loglikelihoods)
            ),
            "ambiguous": isinstance(self.ambiguous, bool),
            "in_language": isinstance(self.in_language, bool | None),
        }
        bad = next((name for name, good in checks.items() if not good), None)
        return None if bad is None else f"{bad} is {getattr(self, bad)!r}"

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps({name: getattr(self, name) for name in _FIELDS}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str, where: str = "item") -> ItemResult:
        """Of one line.

        Raises:
            DataError: it is no JSON object of these fields; the message names `where`.
        """
        try:
            content = json.loads(line)
        except ValueError as error:
            raise DataError(where, "malformed line", str(error), _AGAIN) from error
        if not isinstance(content, dict):
            raise DataError(where, "malformed line", f"holds a {type(content).__name__}, not an object", _AGAIN)
        if unknown := sorted(content.keys() - set(_FIELDS)):
            raise DataError(where, "unknown field", ", ".join(map(repr, unknown)), _AGAIN)
        if missing := [name for name in ("id", "score") if name not in content]:
            raise DataError(where, "missing field", ", ".join(map(repr, missing)), _AGAIN)
        if isinstance(content.get("loglikelihoods"), list):
            content["loglikelihoods"] = tuple(content["loglikelihoods"])
        try:
            return cls(**content)
        except ValueError as error:
            raise DataError(where, "bad value", str(error), _AGAIN) from error


_FIELDS = tuple(one.name for one in dataclasses.fields(ItemResult))


@dataclass(frozen=True, kw_only=True)
class BenchmarkInfo:
    """A benchmark as it was scored.

    Attributes:
        protocol: see `Key`.
        metric: what `ItemResult.score` is: "accuracy", "f1", "rouge_l", ...
        chance: the expected score of a guess, 0 to 1; None where unknown.
    """

    protocol: str
    metric: str
    chance: float | None = None


@dataclass(kw_only=True)
class Evaluation:
    """An evaluation of one run.

    Attributes:
        run: path or name of the run.
        model: "base_model", "objectives", "seed" and what else identifies it.
        connection: how a connected run was connected.
        config: the options of the evaluation: "limit" and so on.
        versions: of the packages.
        benchmarks: by "PROTOCOL.BENCHMARK".
        items: what was found; filled by `read_evaluation`.
        torn: files with a line without its end, which is left out.
    """

    run: str
    model: dict[str, Any]
    connection: str
    config: dict[str, Any]
    versions: dict[str, Any]
    benchmarks: dict[str, BenchmarkInfo]
    items: dict[Key, list[ItemResult]] = field(default_factory=dict)
    torn: list[Path] = field(default_factory=list)


class ItemWriter:
    """Appends items to their file, so that what is written stays, whatever happens to the process.

    Args:
        folder: of the evaluation.
        key: what the items are of.

    Attributes:
        done: the items that the file holds already, by id; these need no second pass. Grows with `append`.

    Raises:
        DataError: the file has a malformed line. A last line without its end is dropped instead.

    Example:
        >>> with ItemWriter("runs/zh/evaluation", Key("likelihood", "NAME", "zh", "none")) as writer:
        ...     if item.id not in writer.done:
        ...         writer.append(ItemResult(id=item.id, score=1.0))
    """

    def __init__(self, folder: str | Path, key: Key) -> None:
        self.path = Path(folder) / ITEMS / key.filename
        make_folder(self.path.parent)
        self.done: dict[str, ItemResult] = {}
        if self.path.exists():
            found, torn = read_items(self.path)
            self.done = {item.id: item for item in found}
            if torn:
                logger.warning("%s: the last line has no end; it is dropped and its item evaluated again.", self.path)
                with writing(self.path):
                    os.truncate(self.path, torn.offset)
        with writing(self.path):
            self._file = self.path.open("ab")

    def append(self, *items: ItemResult) -> None:
        """Write items; on return they are on the disk.

        Raises:
            PivotuneError: an item of this id is there already, or the file cannot be written.
        """
        for item in items:
            if item.id in self.done:
                raise PivotuneError(f"{self.path}: item {item.id!r} is already there; skip what `done` holds.")
            self.done[item.id] = item
        with writing(self.path):
            self._file.write("".join(item.to_json() + "\n" for item in items).encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self.path):  # what a full disk has not taken is tried again
            self._file.close()

    def __enter__(self) -> ItemWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Torn:
    """A last line without its end: its number, and the byte that it begins at."""

    line: int
    offset: int


def read_items(path: str | Path) -> tuple[list[ItemResult], Torn | None]:
    """The items of a file in their order, and where its torn last line begins, if there is one.

    Raises:
        DataError: a malformed line, or an id that came before.
    """
    path = Path(path)
    *lines, rest = path.read_bytes().split(b"\n")
    items: list[ItemResult] = []
    first: dict[str, int] = {}
    for number, raw in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            item = ItemResult.from_json(raw.decode(), where)
        except UnicodeDecodeError as error:
            raise DataError(where, "malformed line", str(error), _AGAIN) from error
        if item.id in first:
            raise DataError(where, "duplicate id", f"{item.id!r}, as in line {first[item.id]}", _AGAIN)
        first[item.id] = number
        items.append(item)
    torn = Torn(len(lines) + 1, sum(len(line) + 1 for line in lines)) if rest else None
    return items, torn


def write_evaluation(folder: str | Path, evaluation: Evaluation) -> Path:
    """Write evaluation.json: all of it, or nothing. Items are written by `ItemWriter`."""
    folder = Path(folder)
    make_folder(folder)
    content = {
        "format": FORMAT,
        **{name: getattr(evaluation, name) for name in _SECTIONS},
        "benchmarks": {name: dataclasses.asdict(info) for name, info in evaluation.benchmarks.items()},
    }
    write_text(folder / INFO, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return folder / INFO


_SECTIONS: dict[str, type] = {"run": str, "model": dict, "connection": str, "config": dict, "versions": dict}


def read_evaluation(folder: str | Path, *, items: bool = True) -> Evaluation:
    """An evaluation folder, checked.

    Args:
        folder: the one that holds evaluation.json.
        items: read the items too.

    Raises:
        PivotuneError: it is missing or malformed, of a newer format, or a file of items is of no benchmark in it.
    """
    folder = Path(folder)
    path = folder / INFO
    if not path.is_file():
        raise PivotuneError(f"{folder}: holds no evaluation ({INFO}). Make one with `pivotune evaluate`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}:{line}", "malformed file", str(error), "evaluate again") from error
    evaluation = _evaluation(path, content)
    for file in sorted((folder / ITEMS).glob("*.jsonl")) if items else ():
        key = Key.of_file(file)
        if f"{key.protocol}.{key.benchmark}" not in evaluation.benchmarks:
            raise PivotuneError(f"{file}: {path} has no benchmark {key.protocol}.{key.benchmark}. Remove one of them.")
        evaluation.items[key], torn = read_items(file)
        if torn:
            logger.warning("%s:%d: the last line has no end and is left out.", file, torn.line)
            evaluation.torn.append(file)
    return evaluation


def _evaluation(path: Path, content: Any) -> Evaluation:
    def wrong(problem: str) -> PivotuneError:
        return PivotuneError(f"{path}: {problem}. Evaluate again, or correct the file.")

    if not isinstance(content, dict):
        raise wrong(f"holds a {type(content).__name__}, not an object")
    if not _is_of(content.get("format"), int):
        raise wrong(f"format is {content.get('format')!r}, not a whole number")
    if content["format"] > FORMAT:
        raise PivotuneError(f"{path}: was written by a newer Pivotune (format {content['format']}). Upgrade.")
    for name, kind in {**_SECTIONS, "benchmarks": dict}.items():
        if not isinstance(content.get(name), kind):
            raise wrong(f"{name} is {content.get(name)!r}, but has to be {'an object' if kind is dict else 'a string'}")
    if unknown := sorted(content.keys() - {"format", "benchmarks", *_SECTIONS}):
        raise wrong(f"unknown keys {', '.join(map(repr, unknown))}")
    known = {one.name for one in dataclasses.fields(BenchmarkInfo)}
    benchmarks = {}
    for name, found in content["benchmarks"].items():
        if not isinstance(found, dict) or not {"protocol", "metric"} <= found.keys() <= known:
            raise wrong(f"benchmarks.{name} is {found!r}, but has to hold {', '.join(sorted(known))}")
        info = BenchmarkInfo(**found)
        if not (isinstance(info.metric, str) and isinstance(info.protocol, str)):
            raise wrong(f"benchmarks.{name}: protocol and metric have to be strings")
        if not (info.chance is None or (_is_number(info.chance) and 0 <= info.chance <= 1)):
            raise wrong(f"benchmarks.{name}.chance is {info.chance!r}, not between 0 and 1")
        if name.split(".")[0] != info.protocol or len(name.split(".")) != 2:
            raise wrong(f"benchmarks.{name}: is not {info.protocol}.BENCHMARK")
        benchmarks[name] = info
    return Evaluation(**{name: content[name] for name in _SECTIONS}, benchmarks=benchmarks)


def evaluation_folder(path: str | Path) -> Path:
    """The evaluation of a run folder, or the folder itself where it is one."""
    path = Path(path)
    return path if (path / INFO).is_file() else path / FOLDER


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_of(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
