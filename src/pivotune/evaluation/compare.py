"""`pivotune compare`: evaluations of several runs side by side, with paired tests, as one page.

What is compared is an *entry*: one run, or several seeds of it, under one connection. Per benchmark and language,
entries are compared on the items that all of them have. Benchmarks under different protocols never share a table; the
differences from the baseline in the tables of one protocol are one family of tests, corrected after Holm.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pivotune import __version__
from pivotune.checkpoint import INFO as RUN_INFO
from pivotune.data.examples import is_english
from pivotune.errors import PivotuneError, check_choice
from pivotune.evaluation import page as pages
from pivotune.evaluation.benchmarks import BENCHMARKS, PRESETS
from pivotune.evaluation.benchmarks.presets import Preset
from pivotune.evaluation.page import (
    Cell,
    Figures,
    Fold,
    Heading,
    Page,
    Part,
    Points,
    Preformatted,
    Section,
    Table,
    Text,
)
from pivotune.evaluation.results import FOLDER, Evaluation, ItemResult, Key, evaluation_folder, read_evaluation
from pivotune.evaluation.statistics import ALPHA, FLIPS, Interval, Score, difference, holm, paired_test, score
from pivotune.evaluation.summary import METRICS
from pivotune.lens.plots import COLORS, GREY, LEFT_TO_RIGHT, language_name, new_figure, save

logger = logging.getLogger(__name__)

_SEED_KEYS = {"seed", "data_seed", "output", "output_dir", "logging_dir", "run_name", "resume_from_checkpoint"}
_RESULT_KEYS = {"versions", "terms", "transform_matrix", "layers"}
_UNREMARKABLE = {"output", "batch_size", "device", "connection", "run", "benchmarks", "languages", "data_dir"}
_NO_TERMS = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
_TESTS = {
    "mcnemar": "exact McNemar test",
    "sign-flip": "paired sign-flip permutation test",
    "crossed": "t-test over seeds and items (crossed design)",
}


def compare(
    runs: list[str],
    *,
    baseline: str | None = None,
    output: str = "comparison",
    preset: str | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """`pivotune compare`: evaluated runs side by side, with paired statistics.

    Args:
        runs: run folders that `pivotune evaluate` has been through, or evaluation folders. Runs that differ in nothing
            but the seed are summarised; NAME=RUN or NAME=RUN1,RUN2 names an entry and its seeds.
        baseline: which of them the others are compared with, by name or folder; the first by default.
        output: folder for compare.html, compare.md, compare.json and the plots.
        preset: dft or cc: a paper's benchmarks and languages only, with its published figures beside.
        title: of the report.

    Returns:
        Scores and differences, as in compare.json.

    Raises:
        PivotuneError: nothing to compare, a malformed file (named, with its line), or runs that were asked different
            questions.
    """
    if preset is not None:
        check_choice("preset", preset, PRESETS)
    comparison = Comparison(collect(runs), baseline, PRESETS[preset] if preset else None)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    page = _page(comparison, folder, title or "Comparison of " + ", ".join(one.name for one in comparison.entries))
    result = comparison.as_json()
    files = {
        "compare.html": pages.html(page),
        "compare.md": pages.markdown(page, folder),
        "compare.json": json.dumps(result, indent=1, ensure_ascii=False) + "\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    print(pages.markdown(Page(page.title, page.lead, _short(page.sections)), folder))
    print(f"Written: {', '.join(str(folder / name) for name in files)} and the plots in {folder / 'plots'}")
    return result


# Which runs ----------------------------------------------------------------------------------------------------------


@dataclass
class Member:
    """One evaluated folder.

    Attributes:
        given: as on the command line.
        folder: of the evaluation.
        run: the run folder; None where there is none on this machine.
        evaluation: what was found there.
        info: the run's pivotune.json; empty where there is none.
    """

    given: str
    folder: Path
    run: Path | None
    evaluation: Evaluation
    info: dict[str, Any]

    @property
    def seed(self) -> Any:
        return self.evaluation.model.get("seed")

    @cached_property
    def connections(self) -> list[str]:
        """English is not connected, so it decides only where there is nothing else."""
        keys = self.evaluation.items
        found = [key.connection for key in keys if not is_english(key.language)] or [key.connection for key in keys]
        return list(dict.fromkeys(found))

    @cached_property
    def recipe(self) -> str:
        """All that is recorded of how the run was made but its seed and what came out."""
        return json.dumps([_stripped(self.evaluation.model), _stripped(self.info)], sort_keys=True, default=str)

    def items(self, cell: CellName, connection: str) -> list[ItemResult] | None:
        found = self.evaluation.items.get(Key(*cell, connection))
        if found is None and is_english(cell.language):
            found = self.evaluation.items.get(Key(*cell, "none"))
        return found


@dataclass
class Entry:
    """What is compared: one run, or several seeds of it, under one connection."""

    name: str
    members: list[Member]
    connection: str
    named: bool = False


class CellName(NamedTuple):
    """A benchmark under its protocol, in one language."""

    protocol: str
    benchmark: str
    language: str


def collect(runs: Sequence[str]) -> list[Entry]:
    """Open evaluations and put the seeds of one run together.

    Seeds are recognised where both runs record one, the seeds differ, and everything else that is recorded about their
    making is the same. `NAME=RUN1,RUN2` puts together whatever it names.
    """
    if not runs:
        raise PivotuneError("runs: none given. Name at least one evaluated run folder.")
    entries: list[Entry] = []
    seen: dict[Path, str] = {}
    for given in runs:
        name, paths = _specification(given)
        members = [_member(path) for path in paths]
        for member in members:
            if (resolved := member.folder.resolve()) in seen:
                raise PivotuneError(f"runs: {member.given} is given twice (also as {seen[resolved]}). Remove one.")
            seen[resolved] = member.given
        connections = list(dict.fromkeys(one for member in members for one in member.connections))
        for connection in connections:
            having = [member for member in members if connection in member.connections]
            suffix = f" ({connection})" if len(connections) > 1 else ""
            _place(entries, Entry((name or _name_of(having[0])) + suffix, having, connection, name is not None))
    for entry in entries:
        if all(isinstance(member.seed, int) for member in entry.members):
            entry.members.sort(key=lambda member: member.seed)  # the same seeds are paired
        if not entry.named and len(entry.members) > 1:
            entry.name = _name_of_seeds(entry.members)
    _make_unique(entries)
    return entries


def _specification(given: str) -> tuple[str | None, list[str]]:
    name, equals, rest = given.partition("=")
    if not equals or Path(given).exists():
        return None, [given]
    paths = [path.strip() for path in rest.split(",") if path.strip()]
    if not name.strip() or not paths:
        raise PivotuneError(f"runs: got {given!r}; write NAME=RUN or NAME=RUN1,RUN2.")
    return name.strip(), paths


def _member(given: str) -> Member:
    if not Path(given).is_dir():
        raise PivotuneError(f"runs: {given}: no such folder.")
    folder = evaluation_folder(given)
    evaluation = read_evaluation(folder)
    if not any(evaluation.items.values()):
        raise PivotuneError(f"{folder}: holds no finished item. Run `pivotune evaluate` on it first.")
    candidates = (Path(given), folder.parent, Path(evaluation.run))
    run = next((path for path in candidates if (path / RUN_INFO).is_file()), None)
    info = {} if run is None else _read_json(run / RUN_INFO)
    if not isinstance(info, dict):
        raise PivotuneError(f"{run}/{RUN_INFO}: holds a {type(info).__name__}, not an object.")
    return Member(given, folder, run, evaluation, info)


def _place(entries: list[Entry], new: Entry) -> None:
    """Beside its other seeds, or as an entry of its own."""
    for entry in () if new.named else entries:
        seeds = [member.seed for member in entry.members]
        (member,) = new.members
        same = entry.connection == new.connection and entry.members[0].recipe == member.recipe
        if same and not entry.named and member.seed is not None and None not in seeds and member.seed not in seeds:
            entry.members.append(member)
            return
    entries.append(new)


def _stripped(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _stripped(value) for key, value in content.items() if key not in _SEED_KEYS | _RESULT_KEYS}
    return content


def _name_of(member: Member) -> str:
    """The run's, also where its evaluation lies elsewhere."""
    path = Path(member.given).resolve()
    if path == member.folder.resolve():
        path = path.parent if path.name == FOLDER else Path(member.evaluation.run)
    return path.name or member.evaluation.run


def _name_of_seeds(members: Sequence[Member]) -> str:
    """Of "zh-seed0" and "zh-seed1": "zh". Of "zh/seed0" and "zh/seed1" too."""
    names = [_name_of(member) for member in members]
    stems = {re.sub(r"(^|[-_. ]+)(seed|s)?[-_. ]*\d+$", "", name) for name in names}
    if stems == {""}:
        stems = {Path(member.given).resolve().parent.name for member in members}
    return stems.pop() if len(stems) == 1 and "" not in stems else names[0]


def _make_unique(entries: list[Entry]) -> None:
    """Evaluations of one run are told apart by their connection, runs of the same name by the folder above."""
    for further in (lambda one: f"{one.name} ({one.connection})", lambda one: f"{_above(one)}/{one.name}"):
        groups: dict[str, list[Entry]] = {}
        for entry in entries:
            groups.setdefault(entry.name, []).append(entry)
        for name, group in groups.items():
            if len(group) > 1 and any(entry.named for entry in group):
                raise PivotuneError(f"runs: two entries are named {name!r}. Give each a name of its own.")
            told_apart = [further(entry) for entry in group]
            if len(set(told_apart)) == len(group) > 1:
                for entry, new in zip(group, told_apart, strict=True):
                    entry.name = new
    names = [entry.name for entry in entries]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise PivotuneError(f"runs: several are called {repeated[0]!r}. Name them: NAME=RUN.")


def _above(entry: Entry) -> str:
    return Path(entry.members[0].given).resolve().parent.name


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PivotuneError(f"{path}:{getattr(error, 'lineno', 1)}: is not valid JSON: {error}") from error


# What they say -------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """One entry's score, and its difference from the baseline."""

    score: Score
    difference: Interval | None = None
    p: float = math.nan
    test: str = ""
    adjusted: float = math.nan

    @property
    def change(self) -> pages.Change:
        """Significant after the correction, and where to."""
        if self.difference is None or not self.adjusted < ALPHA:
            return ""
        return "up" if self.difference.mean > 0 else "down"


@dataclass
class Tables:
    """One cell's answers.

    Attributes:
        ids: the items that all entries have.
        of: by entry, (S, 1, F).
        seeds: by entry, which of its members these are, for some may lack the cell.
    """

    ids: list[str]
    of: dict[str, np.ndarray]
    seeds: dict[str, list[int]]


@dataclass
class Results:
    """Everything of one protocol.

    Attributes:
        cells: by cell and entry.
        languages: the mean over benchmarks, by language and entry.
        benchmarks: the mean over languages but English, by benchmark and entry.
        overall: the mean over all cells but English, by entry.
    """

    cells: dict[CellName, dict[str, Found]] = field(default_factory=dict)
    languages: dict[str, dict[str, Found]] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Found]] = field(default_factory=dict)
    overall: dict[str, Found] = field(default_factory=dict)


class Comparison:
    """The statistics of several entries.

    Args:
        entries: of `collect`.
        baseline: name or folder of the entry that the others are compared with; the first where None.
        preset: restricts benchmarks and languages to a paper's (and English).

    Attributes:
        entries: the baseline first.
        warnings: what limits the comparison; notes: what a reader should know.
        tables: the answers, by cell.
        results: by protocol.
    """

    def __init__(self, entries: Sequence[Entry], baseline: str | None = None, preset: Preset | None = None) -> None:
        self.preset = preset
        self.baseline = _chosen(entries, baseline)
        self.entries = [self.baseline, *(entry for entry in entries if entry is not self.baseline)]
        self.others = self.entries[1:]
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.metrics = self._metrics()
        self._remark_on_settings()
        self._restricted: dict[str, list[str]] = {}
        self.tables = {cell: tables for cell in self._cells() if (tables := self._paired(cell)) is not None}
        for remark, titles in self._restricted.items():
            self.warnings.append(f"Compared on {remark}: {', '.join(titles)}.")
        if not self.tables:
            raise PivotuneError("compare: no benchmark and language with an item to show.")
        self.results = {
            protocol: self._results(protocol) for protocol in dict.fromkeys(c.protocol for c in self.tables)
        }
        if not any(is_english(cell.language) for cell in self.tables):
            self.warnings.append("No English items were evaluated: whether English is retained is not known.")

    # Reading

    def _metrics(self) -> dict[tuple[str, str], tuple[str, float | None]]:
        """Metric and chance by protocol and benchmark, the same in all evaluations."""
        found: dict[tuple[str, str], tuple[str, float | None]] = {}
        for member in self._members():
            for name, info in member.evaluation.benchmarks.items():
                protocol, _, benchmark = name.partition(".")
                metric, _ = found.setdefault((protocol, benchmark), (info.metric, info.chance))
                if metric != info.metric:
                    raise PivotuneError(
                        f"{member.folder}: {name} is scored by {info.metric}, elsewhere by {metric}. Evaluate again."
                    )
        return found

    def _members(self) -> list[Member]:
        return [member for entry in self.entries for member in entry.members]

    def _remark_on_settings(self) -> None:
        for entry in self.entries:
            if len(entry.members) > 1:
                seeds = [str(member.given if member.seed is None else member.seed) for member in entry.members]
                self.notes.append(f"{entry.name}: {len(seeds)} seeds ({', '.join(seeds)}), summarised.")
                if len({member.recipe for member in entry.members}) > 1:
                    self.warnings.append(f"{entry.name}: its runs differ in more than the seed.")
        connections = {entry.name: entry.connection for entry in self.entries}
        if len(set(connections.values())) > 1:
            self.warnings.append(f"connection differs: {_listed(connections)}.")
        if "english" in connections.values():
            self.warnings.append('Under connection "english" a model is shown each question in English as well.')
        configs = [(entry.name, member.evaluation.config) for entry in self.entries for member in entry.members]
        for option in sorted({key for _, config in configs for key in config} - _UNREMARKABLE):
            values: dict[str, str] = {}
            for name, config in configs:
                value = json.dumps(config.get(option), ensure_ascii=False)
                values[name] = value if values.get(name, value) == value else f"{values[name]} and {value}"
            if len(set(values.values())) > 1 or " and " in next(iter(values.values())):
                self.warnings.append(f"{option} differs: {_listed(values)}.")
        digests: dict[str, set[str]] = {}
        for _, config in configs:
            data = config.get("data_dir")
            for part, digest in (data.get("digests") or {}).items() if isinstance(data, dict) else ():
                digests.setdefault(part, set()).add(str(digest))
        if differ := [part for part, found in digests.items() if len(found) > 1]:
            self.warnings.append(f"The benchmark files differ between the runs: {', '.join(differ)}.")
        versions: dict[str, set[str]] = {}
        for member in self._members():
            for package, version in member.evaluation.versions.items():
                versions.setdefault(package, set()).add(str(version))
        for package, found in versions.items():
            if len(found) > 1:
                self.notes.append(f"{package}: versions {', '.join(sorted(found))}.")
        for member in self._members():
            for path in member.evaluation.torn:
                self.warnings.append(f"{path}: ends in a line without its end, left out. Its evaluation is unfinished.")

    def _cells(self) -> list[CellName]:
        """All that any entry has: benchmarks and languages in their published order, English first."""
        found = {CellName(*key[:3]) for member in self._members() for key in member.evaluation.items}
        if self.preset:
            wanted = self.preset.languages
            kept = {
                cell
                for cell in found
                if cell.benchmark in wanted and (cell.language in wanted[cell.benchmark] or is_english(cell.language))
            }
            if not kept:
                raise PivotuneError(f"preset: {self.preset.name} has {', '.join(wanted)}, none of which was evaluated.")
            if found - kept:
                self.notes.append(f"{len(found - kept)} evaluated tables are not in the preset and left out.")
            found = kept
        order = list(self.preset.languages if self.preset else BENCHMARKS)

        def position(cell: CellName) -> tuple[Any, ...]:
            known = order.index(cell.benchmark) if cell.benchmark in order else len(order)
            languages = self.preset.languages[cell.benchmark] if self.preset else ()
            place = languages.index(cell.language) if cell.language in languages else len(languages)
            return cell.protocol, known, cell.benchmark, not is_english(cell.language), place, cell.language

        return sorted(found, key=position)

    def _paired(self, cell: CellName) -> Tables | None:
        """The answers of all entries that have the cell, on the items that all of these have."""
        there: dict[str, list[dict[str, ItemResult]]] = {}
        seeds: dict[str, list[int]] = {}
        for entry in self.entries:
            lists = [member.items(cell, entry.connection) for member in entry.members]
            having = [{item.id: item for item in items} for items in lists if items]
            if having and len(having) < len(lists):
                self.warnings.append(
                    f"{_title(cell)}: {entry.name} has it in {len(having)} of {len(lists)} seeds only."
                )
            if having:
                there[entry.name] = having
                seeds[entry.name] = [k for k, items in enumerate(lists) if items]
        if not there:
            return None
        every = [by_id for having in there.values() for by_id in having]
        ids = [name for name in every[0] if all(name in by_id for by_id in every)]
        union = {name for by_id in every for name in by_id}
        if not ids:
            raise PivotuneError(
                f"{_title(cell)}: {_listed({name: f'{len(h[0])} items' for name, h in there.items()})}, none of them "
                "the same. They were asked different questions: evaluate them on the same split."
            )
        if len(ids) < len(union):
            counts = _listed({name: "/".join(str(len(by_id)) for by_id in having) for name, having in there.items()})
            remark = f"the {len(ids)} items that all have, of {len(union)} ({counts})"
            self._restricted.setdefault(remark, []).append(_title(cell))
        for name in ids:
            if len({by_id[name].gold for by_id in every}) > 1:
                raise PivotuneError(
                    f"{_title(cell)}: item {name!r} has another right option in another run. They were asked different "
                    "questions: evaluate them on the same files."
                )
        tables = {
            name: np.array([[[by_id[one].score for one in ids]] for by_id in having]) for name, having in there.items()
        }
        return Tables(ids, tables, seeds)

    # Statistics

    def _results(self, protocol: str) -> Results:
        cells = {cell: tables for cell, tables in self.tables.items() if cell.protocol == protocol}
        flips = max(FLIPS, 100 * len(cells) * len(self.others))  # enough for the correction to leave something over
        found = Results()
        for cell, tables in cells.items():
            found.cells[cell] = self._compared({name: [table] for name, table in tables.of.items()}, flips)
        # Means over cells are of the same cells for every entry.
        shared = {cell for cell, tables in cells.items() if len(tables.of) == len(self.entries)}
        if len(shared) < len(cells):
            left = [_title(cell) for cell in cells if cell not in shared]
            self.warnings.append(f"Not in every run, so not in the averages: {', '.join(left)}.")
        foreign = [cell for cell in cells if cell in shared and not is_english(cell.language)]
        by_language = _grouped([cell for cell in cells if cell in shared], "language")
        by_benchmark = _grouped(foreign, "benchmark")
        found.languages = {key: self._mean(group, flips) for key, group in by_language.items() if len(group) > 1}
        found.benchmarks = {key: self._mean(group, flips) for key, group in by_benchmark.items() if len(group) > 1}
        if len(by_benchmark) > 1:
            found.overall = self._mean(foreign, flips)
        _correct([one for row in found.cells.values() for one in row.values()])
        means = [*found.languages.values(), *found.benchmarks.values(), found.overall]
        _correct([one for row in means for one in row.values()])
        return found

    def _mean(self, cells: Sequence[CellName], flips: int) -> dict[str, Found]:
        return self._compared({entry.name: self.blocks(entry.name, cells) for entry in self.entries}, flips)

    def blocks(self, name: str, cells: Sequence[CellName]) -> list[np.ndarray]:
        """One block (S, C, F) for each benchmark: translations of one item are drawn together.

        Of several seeds, those that have every cell.
        """
        seeds = sorted(set.intersection(*(set(self.tables[cell].seeds[name]) for cell in cells)))
        if not seeds:
            raise PivotuneError(f"{name}: no seed has all of {', '.join(map(_title, cells))}. Evaluate them all.")
        blocks = []
        for group in _grouped(cells, "benchmark").values():
            ids = list(dict.fromkeys(one for cell in group for one in self.tables[cell].ids))
            column = {one: k for k, one in enumerate(ids)}
            block = np.full((len(seeds), len(group), len(ids)), np.nan)
            for c, cell in enumerate(group):
                tables = self.tables[cell]
                rows = [tables.seeds[name].index(seed) for seed in seeds]
                block[:, c, [column[one] for one in tables.ids]] = tables.of[name][rows, 0]
            blocks.append(block)
        return blocks

    def _compared(self, blocks: Mapping[str, list[np.ndarray]], flips: int) -> dict[str, Found]:
        found = {name: Found(score(own)) for name, own in blocks.items()}
        base = blocks.get(self.baseline.name)
        for name, own in blocks.items():
            if base is not None and name != self.baseline.name:
                found[name].difference = difference(own, base)
                found[name].p, found[name].test = paired_test(own, base, flips=flips)
        return found

    def adherence(self) -> dict[CellName, dict[str, Counter[bool | None]]]:
        """How many answers are in the asked language, by cell and entry, over all seeds and items."""
        counts: dict[CellName, dict[str, Counter[bool | None]]] = {}
        for cell, tables in self.tables.items():
            ids = set(tables.ids)
            row: dict[str, Counter[bool | None]] = {}
            for entry in self.entries:
                for member in entry.members:
                    items = member.items(cell, entry.connection) or ()
                    row.setdefault(entry.name, Counter()).update(i.in_language for i in items if i.id in ids)
            if any(count[True] + count[False] for count in row.values()):
                counts[cell] = row
        return counts

    def tests(self) -> list[str]:
        """The names of the tests that were made."""
        rows = [row for results in self.results.values() for row in results.cells.values()]
        return sorted({one.test for row in rows for one in row.values() if one.test})

    def as_json(self) -> dict[str, Any]:
        """The numbers, for programs."""

        def row(found: Mapping[str, Found]) -> dict[str, Any]:
            return {name: _as_json(one) for name, one in found.items()}

        return {
            "versions": {"pivotune": __version__},
            "baseline": self.baseline.name,
            "entries": {
                entry.name: {"runs": [m.given for m in entry.members], "connection": entry.connection}
                for entry in self.entries
            },
            "preset": self.preset and self.preset.name,
            "warnings": self.warnings,
            "notes": self.notes,
            "protocols": {
                protocol: {
                    "cells": [cell._asdict() | {"entries": row(found)} for cell, found in results.cells.items()],
                    "languages": {key: row(found) for key, found in results.languages.items()},
                    "benchmarks": {key: row(found) for key, found in results.benchmarks.items()},
                    "overall": row(results.overall),
                }
                for protocol, results in self.results.items()
            },
        }


def _chosen(entries: Sequence[Entry], baseline: str | None) -> Entry:
    if baseline is None:
        return entries[0]
    for entry in entries:
        folders = {Path(member.given).resolve() for member in entry.members}
        if baseline == entry.name or Path(baseline).resolve() in folders:
            return entry
    names = ", ".join(entry.name for entry in entries)
    raise PivotuneError(f"baseline: got {baseline!r}; choose one of the compared runs: {names}.")


def _correct(found: Sequence[Found]) -> None:
    for one, adjusted in zip(found, holm([one.p for one in found]), strict=True):
        one.adjusted = adjusted


def _grouped(cells: Iterable[CellName], by: str) -> dict[str, list[CellName]]:
    groups: dict[str, list[CellName]] = {}
    for cell in cells:
        groups.setdefault(getattr(cell, by), []).append(cell)
    return groups


def _as_json(found: Found) -> dict[str, Any]:
    def number(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else round(value, 6)

    own = found.score
    content: dict[str, Any] = {
        "score": number(own.mean),
        "interval": [number(own.low), number(own.high)],
        "items": own.items,
        "seeds": [number(value) for value in own.seeds],
        "sd": number(own.sd),
    }
    if (apart := found.difference) is not None:
        content |= {"difference": number(apart.mean), "difference_interval": [number(apart.low), number(apart.high)]}
        content |= {"test": found.test, "p": number(found.p), "p_holm": number(found.adjusted)}
    return content


def _title(cell: CellName) -> str:
    return f"{cell.benchmark} {cell.language}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


# The page ------------------------------------------------------------------------------------------------------------


def _page(comparison: Comparison, folder: Path, title: str) -> Page:
    plots = folder / "plots"
    sections = [
        Section("English retention", _english_parts(comparison)),
        *_protocol_sections(comparison, plots),
        *_averages(comparison),
        *_published(comparison),
        *_adherence(comparison),
        *_training(comparison, plots),
        *_lens(comparison, plots),
        Section("How to read this", _reading(comparison)),
    ]
    lead: list[Part] = []
    if comparison.others:
        lead.append(Text(f"Differences are from {comparison.baseline.name}. Scores in percent, with 95 % intervals."))
    else:
        lead.append(Text("Scores in percent, with 95 % intervals."))
    if comparison.warnings:
        lead.append(Points(comparison.warnings, important=True))
    if comparison.notes:
        lead.append(Points(comparison.notes))
    return Page(title, lead, sections)


def _short(sections: Sequence[Section]) -> list[Section]:
    """For the terminal: no pictures, nothing folded."""
    shown = []
    for section in sections:
        parts = [part for part in section.parts if not isinstance(part, Figures | Fold | Preformatted)]
        if any(isinstance(part, Table | Text | Points) for part in parts):
            shown.append(Section(section.title, parts))
    return shown


def _cell(found: Found | None) -> Cell:
    if found is None:
        return Cell("–")
    own = found.score
    small = f"[{_percent(own.low)}, {_percent(own.high)}]"
    if own.sd is not None:
        small += f" ±{_percent(own.sd)}"
    delta = ""
    if (apart := found.difference) is not None:
        delta = f"{_signed(apart.mean)} [{_signed(apart.low)}, {_signed(apart.high)}]"
    return Cell(_percent(own.mean), small, delta, found.change)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _row(comparison: Comparison, head: Cell, found: Mapping[str, Found]) -> list[Cell]:
    return [head, *(_cell(found.get(entry.name)) for entry in comparison.entries)]


def _heads(comparison: Comparison, first: str) -> list[str]:
    baseline = " (baseline)" if comparison.others else ""
    return [first, comparison.baseline.name + baseline, *(entry.name for entry in comparison.others)]


def _benchmark_title(protocol: str, benchmark: str) -> str:
    known = BENCHMARKS.get(benchmark)
    return f"{known.title} ({benchmark})" if known and known.title.lower() != benchmark else benchmark


def _what(comparison: Comparison, protocol: str, benchmark: str) -> str:
    metric, chance = comparison.metrics[protocol, benchmark]
    what = METRICS.get(metric, metric)
    return f"{what}, %" + (f"; a guess scores {_percent(chance)}" if chance else "")


def _language(code: str, small: str = "") -> Cell:
    return Cell(language=code, small=small)


def _count(found: Mapping[str, Found]) -> str:
    return f"n = {next(iter(found.values())).score.items:,}"


def _english_parts(comparison: Comparison) -> list[Part]:
    parts: list[Part] = []
    for protocol, results in comparison.results.items():
        rows = [
            _row(comparison, Cell(cell.benchmark, _count(found)), found)
            for cell, found in results.cells.items()
            if is_english(cell.language)
        ]
        if rows:
            parts.append(Table(_heads(comparison, "English"), rows, f"English, by {protocol}. * significant."))
    lost = [
        f"{name} loses English on {cell.benchmark}: {_signed(one.difference.mean)}."
        for results in comparison.results.values()
        for cell, found in results.cells.items()
        for name, one in found.items()
        if is_english(cell.language) and one.change == "down" and one.difference
    ]
    if not parts:
        return [Text("No English items were evaluated.")]
    if comparison.others:
        none = "No significant loss of English. An interval says how large a loss could have gone unseen."
        parts.insert(0, Points(lost) if lost else Text(none))
    return parts


def _protocol_sections(comparison: Comparison, plots: Path) -> list[Section]:
    sections = []
    for protocol, results in comparison.results.items():
        parts: list[Part] = []
        for benchmark, cells in _grouped(results.cells, "benchmark").items():
            parts.append(Heading(_benchmark_title(protocol, benchmark)))
            rows = [
                _row(comparison, _language(cell.language, _count(results.cells[cell])), results.cells[cell])
                for cell in cells
            ]
            if mean := results.benchmarks.get(benchmark):
                number = sum(not is_english(cell.language) for cell in cells)
                rows.append(_row(comparison, Cell("Mean", f"of {number}, without English"), mean))
            heads = _heads(comparison, "language")
            parts.append(Table(heads, rows, _what(comparison, protocol, benchmark)))
            found = {cell.language: results.cells[cell] for cell in cells}
            parts.append(Figures(_score_plots(comparison, protocol, benchmark, found, plots)))
        sections.append(Section(f"By benchmark and language: {protocol}", parts))
    return sections


def _averages(comparison: Comparison) -> list[Section]:
    parts: list[Part] = []
    for protocol, results in comparison.results.items():
        rows = [_row(comparison, _language(code), found) for code, found in results.languages.items()]
        if results.overall:
            rows.append(_row(comparison, Cell("All", "without English"), results.overall))
        if rows:
            names = dict.fromkeys(cell.benchmark for cell in results.cells)
            caption = f"By {protocol}: each language's mean over those of {', '.join(names)} that it has, %"
            parts.append(Table(_heads(comparison, "language"), rows, caption))
    return [Section("Averages of each language", parts)] if parts else []


def _published(comparison: Comparison) -> list[Section]:
    """The paper's figures beside ours: a table for each benchmark, or one of averages for each protocol."""
    preset = comparison.preset
    if preset is None:
        return []
    parts: list[Part] = [
        Text(
            f"{preset.paper}. {preset.note} Models, data and prompts differ from ours: a look side by side, not a test."
        )
    ]
    averages: dict[str, list[list[Cell]]] = {}
    sources = dict.fromkeys((one.method, one.model) for one in preset.published if one.language is None)
    published = {(one.method, one.model, one.benchmark, one.language): one.value for one in preset.published}
    for benchmark, languages in preset.languages.items():
        protocol: str = BENCHMARKS[benchmark].protocol
        cells = [CellName(protocol, benchmark, language) for language in languages]
        own = [one for one in preset.published if one.benchmark == benchmark]
        if not own and not any(cell in comparison.tables for cell in cells):
            continue
        if all(one.language is None for one in own) and own:
            row = [Cell(benchmark)]
            row += [Cell(_figure(published.get((*source, benchmark, None)))) for source in sources]
            row += [_preset_mean(comparison, entry, cells) for entry in comparison.entries]
            averages.setdefault(protocol, []).append(row)
            continue
        rows = []
        for source in dict.fromkeys((one.method, one.model) for one in own):
            values = [published.get((*source, benchmark, language)) for language in languages]
            mean = None if None in values else float(np.mean([value for value in values if value is not None]))
            rows.append([Cell(source[0], f"published, {source[1]}"), *(Cell(_figure(v)) for v in (*values, mean))])
        for entry in comparison.entries:
            found = [comparison.results[protocol].cells[c].get(entry.name) if c in comparison.tables else None
                     for c in cells]  # fmt: skip
            if not any(found):
                continue
            shown = [Cell("–") if one is None else Cell(_percent(one.score.mean)) for one in found]
            rows.append([Cell(entry.name, "here"), *shown, _preset_mean(comparison, entry, cells)])
        parts.append(Heading(_benchmark_title(protocol, benchmark)))
        names = [language_name(code, own=False) for code in languages]
        parts.append(Table(["", *names, "mean"], rows, _what_published(benchmark)))
    for protocol, table_rows in averages.items():
        heads = ["benchmark", *(f"published, {method}" for method, _ in sources)]
        heads += [f"{entry.name}, here" for entry in comparison.entries]
        parts.append(Table(heads, table_rows, f"By {protocol}: means over the paper's languages, %"))
    return [Section("Beside the published figures", parts)]


def _what_published(benchmark: str) -> str:
    known = BENCHMARKS[benchmark]
    return f"{METRICS.get(known.metric, known.metric)}, %, by {known.protocol}"


def _figure(value: float | None) -> str:
    """With the digits that were published."""
    return "–" if value is None else f"{value:.2f}".removesuffix("0")


def _preset_mean(comparison: Comparison, entry: Entry, cells: Sequence[CellName]) -> Cell:
    """Over the paper's languages; where some are missing it is not shown, for it would be another average."""
    there = [cell for cell in cells if cell in comparison.tables and entry.name in comparison.tables[cell].of]
    if len(there) < len(cells):
        return Cell("–", f"{len(there)} of {len(cells)} languages")
    return Cell(_percent(float(np.mean([comparison.tables[cell].of[entry.name].mean() for cell in cells]))))


def _adherence(comparison: Comparison) -> list[Section]:
    counts = comparison.adherence()
    if not counts:
        return []
    parts: list[Part] = [Text("The share of generated answers in the language of the question, of those that tell.")]
    for benchmark, cells in _grouped(counts, "benchmark").items():
        rows = []
        for cell in cells:
            row = [_language(cell.language)]
            for entry in comparison.entries:
                count = counts[cell].get(entry.name, Counter())
                told = count[True] + count[False]
                share = _percent(count[True] / told) if told else "–"
                row.append(Cell(share, f"{count[True]} yes, {count[False]} no, {count[None]} open" if count else ""))
            rows.append(row)
        parts += [Heading(benchmark), Table(_heads(comparison, "language"), rows, "answers in the language, %")]
    return [Section("Answers in the asked language", parts)]


def _reading(comparison: Comparison) -> list[Part]:
    points = [
        "Intervals: 95 % percentile bootstrap over items and, where a run has several seeds, seeds. They are of single "
        "numbers, not corrected for their number. ± is the standard deviation over seeds.",
    ]
    if comparison.others:
        used = "; ".join(_TESTS[name] for name in comparison.tests())
        points += [
            f"▲* and ▼*, with colour: significant at 5 % after Holm's correction over all differences in the tables of "
            f"one protocol. Averages are a family of their own. Tests, paired by item: {used or 'none'}.",
            "No mark does not mean no difference: the interval says what is still possible.",
        ]
        if all(len(entry.members) == 1 for entry in comparison.entries):
            points.append("One run of each: a mark says that these models differ, not that another seed would again.")
    points.append("Protocols (likelihood, generation) are never mixed: their scores are not comparable.")
    return [Points(points)]


# Training and the lens -----------------------------------------------------------------------------------------------


def _training(comparison: Comparison, plots: Path) -> list[Section]:
    logs: dict[str, list[list[dict[str, Any]]]] = {}
    seen: set[Path] = set()
    for entry in comparison.entries:
        for member in entry.members:
            path = None if member.run is None else member.run / "training_log.json"
            if path is not None and path.is_file() and path.resolve() not in seen:
                seen.add(path.resolve())  # one run under two connections was trained once
                logs.setdefault(entry.name, []).append(_log(path))
    if not logs:
        return []
    terms = list(dict.fromkeys(term for runs in logs.values() for log in runs for term in _terms(log)))
    rows = []
    for name, runs in logs.items():
        seconds = [sum(one.get("train_runtime") or 0.0 for one in log) for log in runs]
        steps = [max((one.get("step", 0) for one in log), default=0) for log in runs]
        speed = [one["train_samples_per_second"] for log in runs for one in log if "train_samples_per_second" in one]
        row = [Cell(name, f"mean of {len(runs)} seeds" if len(runs) > 1 else ""), Cell(f"{np.mean(steps):,.0f}")]
        row += [Cell(_duration(float(np.mean(seconds)))), Cell(f"{np.mean(speed):.1f}" if speed else "–")]
        for term in terms:
            curves = [curve for log in runs if (curve := _terms(log).get(term))]
            first, last = (np.mean([curve[k][1] for curve in curves]) for k in (0, -1)) if curves else (None, None)
            row.append(Cell("–" if first is None else f"{first:.3g} → {last:.3g}"))
        rows.append(row)
    heads = ["run", "steps", "time", "examples/s", *terms]
    caption = "Training: its cost, and each term of the loss at the first and the last logged step"
    parts: list[Part] = [Table(heads, rows, caption)]
    if any(len(curve) > 1 for runs in logs.values() for log in runs for curve in _terms(log).values()):
        parts.append(Figures(_term_plots(comparison, logs, terms, plots)))
    return [Section("Training", parts)]


def _log(path: Path) -> list[dict[str, Any]]:
    content = _read_json(path)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise PivotuneError(f"{path}: is no training log: a list of objects is expected.")
    return content


def _terms(log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """By term, (step, value) at each logging step."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in log:
        for name, value in one.items() if "loss" in one and "step" in one else ():
            if name == "loss" or (name not in _NO_TERMS and isinstance(value, int | float)):
                found.setdefault(name, []).append((one["step"], float(value)))
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _lens(comparison: Comparison, plots: Path) -> list[Section]:
    parts: list[Part] = []
    seen: set[Path] = set()
    for member in comparison._members():
        path = None if member.run is None else member.run / "lens" / "lens.json"
        if path is not None and path.is_file() and path.resolve() not in seen:
            seen.add(path.resolve())
            parts.append(_lens_part(path, _name_of(member), plots))
    return [Section("Layer by layer", parts)] if parts else []


def _lens_part(path: Path, name: str, plots: Path) -> Fold:
    """The text of `pivotune lens` and its plots, drawn again where they are missing or older than the numbers."""
    from pivotune.lens.figures import draw
    from pivotune.lens.inspect import text

    report = _read_json(path)
    try:
        content = Preformatted(text(report), text(report, markdown=True))
        written = path.stat().st_mtime
        pictures = [one for one in sorted(path.parent.glob("*.svg")) if one.stat().st_mtime >= written]
        if not pictures:
            pictures = [one for one in draw(report, plots / f"lens-{_file_name(name)}") if one.suffix == ".svg"]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise PivotuneError(f"{path}: is no report of `pivotune lens` ({problem}). Run it again.") from error
    described = [(_lighter(one), f"{name}, lens: {one.stem.replace('_', ' ')}") for one in pictures]
    return Fold(f"{name}: language, similarity and calibration of each layer", [content, Figures(described, wide=True)])


def _lighter(svg: Path) -> Path:
    """Of a picture with thousands of points, the PNG is the smaller file."""
    png = svg.with_suffix(".png")
    return png if png.is_file() and png.stat().st_size < svg.stat().st_size else svg


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"


# Plots ---------------------------------------------------------------------------------------------------------------

_MARKERS = "osD^vP<>X"


def _looks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and marker of each entry."""
    return {
        entry.name: (COLORS[k % len(COLORS)], _MARKERS[k % len(_MARKERS)]) for k, entry in enumerate(comparison.entries)
    }


def _score_plots(
    comparison: Comparison, protocol: str, benchmark: str, found: Mapping[str, Mapping[str, Found]], plots: Path
) -> list[tuple[Path, str]]:
    """Scores of each language and, with a baseline, differences from it. Filled markers are significant."""
    metric, chance = comparison.metrics[protocol, benchmark]
    title = f"{_benchmark_title(protocol, benchmark)}, {protocol}"
    scores = {
        code: {name: (Interval(*_three(one.score)), True) for name, one in row.items()} for code, row in found.items()
    }
    stem = f"{_file_name(protocol)}.{_file_name(benchmark)}"
    label = f"{METRICS.get(metric, metric)}, %"
    path = _dots(comparison, scores, title, label, plots / f"scores.{stem}", chance or None, "chance")
    pictures = [(path, f"Scores on {title}, by language, with 95 % intervals")]
    if comparison.others:
        apart = {
            code: {name: (one.difference, one.change != "") for name, one in row.items() if one.difference is not None}
            for code, row in found.items()
        }
        label = f"difference from {_short_name(comparison.baseline.name)}, points\n(filled: significant)"
        path = _dots(comparison, apart, title, label, plots / f"differences.{stem}", 0.0, None)
        pictures.insert(0, (path, f"Differences on {title}, by language, with 95 % intervals; filled: significant"))
    return pictures


def _three(found: Score) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


def _dots(
    comparison: Comparison,
    rows: Mapping[str, Mapping[str, tuple[Interval, bool]]],
    title: str,
    label: str,
    path: Path,
    line: float | None,
    line_label: str | None,
) -> Path:
    """A row for each language, in it a dot with its interval for each entry."""
    from matplotlib.lines import Line2D

    looks = {name: look for name, look in _looks(comparison).items() if any(name in row for row in rows.values())}
    names = list(looks)
    height = len(rows) * (0.22 + 0.15 * max(len(names), 1)) + 1.2 + 0.17 * len(names)
    figure, axes = new_figure(5.0, height)
    for k, row in enumerate(rows.values()):
        for name, (found, filled) in row.items():
            mean, low, high = (100 * value for value in found)
            color, marker = looks[name]
            at = k + (names.index(name) - (len(names) - 1) / 2) * 0.8 / max(len(names), 1)
            axes.plot([low, high], [at, at], color=color, linewidth=1.4)
            axes.plot([mean], [at], marker, color=color, markersize=6, markerfacecolor=color if filled else "white")
    if line is not None:
        axes.axvline(100 * line, color=GREY, linewidth=1, linestyle=":" if line_label else "-", zorder=0)
    axes.set_yticks(range(len(rows)), [LEFT_TO_RIGHT + language_name(code) for code in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=11)
    handles = [Line2D([], [], color=c, marker=m, markersize=6, label=_short_name(n)) for n, (c, m) in looks.items()]
    if line_label and line:
        handles.append(Line2D([], [], color=GREY, linestyle=":", label=line_label))
    figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=9)
    return _svg(save(figure, path))


def _term_plots(
    comparison: Comparison, logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], terms: Iterable[str], plots: Path
) -> list[tuple[Path, str]]:
    """A plot for each term, a curve for each run, the seeds of a run in one colour."""
    from matplotlib.lines import Line2D

    looks = _looks(comparison)
    pictures = []
    for term in terms:
        drawn = {name: [_terms(log).get(term, []) for log in runs] for name, runs in logs.items()}
        drawn = {name: [curve for curve in curves if curve] for name, curves in drawn.items()}
        if term == "pairs" or not any(len(curve) > 1 for curves in drawn.values() for curve in curves):
            continue
        figure, axes = new_figure(5.0, 2.9 + 0.17 * len(drawn))
        for name, curves in drawn.items():
            for curve in curves:
                steps, values = zip(*curve, strict=True)
                axes.plot(steps, values, color=looks[name][0], linewidth=1.4, marker=looks[name][1], markersize=3)
        axes.set_xlabel("step")
        axes.set_ylabel(term.replace("$", r"\$"))
        axes.grid(color="#dddddd", linewidth=0.6)
        figure.suptitle(f"Training: {term}".replace("$", r"\$"), fontsize=11)
        handles = [
            Line2D([], [], color=looks[n][0], marker=looks[n][1], label=_short_name(n)) for n in drawn if drawn[n]
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=9)
        pictures.append((_svg(save(figure, plots / f"training.{_file_name(term)}")), f"Training curves of {term}"))
    return pictures


def _svg(paths: Sequence[Path]) -> Path:
    return next(path for path in paths if path.suffix == ".svg")


def _short_name(name: str, longest: int = 34) -> str:
    """For a legend: no formula, and its middle left out where it is long."""
    name = name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-longest // 2 :]}"
    return name.replace("$", r"\$")
