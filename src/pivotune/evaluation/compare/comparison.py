"""The statistics of a comparison: scores, differences from the baseline, tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pivotune import __version__
from pivotune.data.examples import is_english
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import BENCHMARKS
from pivotune.evaluation.benchmarks.presets import Preset
from pivotune.evaluation.compare.entries import CellName, Entry, Member, grouped, listed
from pivotune.evaluation.compare.remarks import notes, warnings
from pivotune.evaluation.page import Change
from pivotune.evaluation.results import ItemResult
from pivotune.uncertainty import ALPHA, FLIPS, Interval, Score, block, difference, holm, paired_test, score


@dataclass
class Found:
    """One entry's score, and its difference from the baseline."""

    score: Score
    difference: Interval | None = None
    p: float = math.nan
    test: str = ""
    adjusted: float = math.nan

    @property
    def change(self) -> Change:
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
        self.metrics = self._metrics()
        self.warnings, self.notes = warnings(self.entries), notes(self.entries)
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
        for member in self.members():
            for name, info in member.evaluation.benchmarks.items():
                protocol, _, benchmark = name.partition(".")
                metric, _ = found.setdefault((protocol, benchmark), (info.metric, info.chance))
                if metric != info.metric:
                    raise PivotuneError(
                        f"{member.folder}: {name} is scored by {info.metric}, elsewhere by {metric}. Evaluate again."
                    )
        return found

    def members(self) -> list[Member]:
        """Of all entries."""
        return [member for entry in self.entries for member in entry.members]

    def _cells(self) -> list[CellName]:
        """All that any entry has: benchmarks and languages in their published order, English first."""
        found = {CellName(*key[:3]) for member in self.members() for key in member.evaluation.items}
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
                self.warnings.append(f"{cell.title}: {entry.name} has it in {len(having)} of {len(lists)} seeds only.")
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
                f"{cell.title}: {listed({name: f'{len(h[0])} items' for name, h in there.items()})}, none of them "
                "the same. They were asked different questions: evaluate them on the same split."
            )
        if len(ids) < len(union):
            counts = listed({name: "/".join(str(len(by_id)) for by_id in having) for name, having in there.items()})
            remark = f"the {len(ids)} items that all have, of {len(union)} ({counts})"
            self._restricted.setdefault(remark, []).append(cell.title)
        _check_gold(cell, ids, every)
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
        shared = self.shared(protocol)
        if len(shared) < len(cells):
            left = [cell.title for cell in cells if cell not in shared]
            self.warnings.append(f"Not in every run, so not in the averages: {', '.join(left)}.")
        foreign = [cell for cell in shared if not is_english(cell.language)]
        by_language = grouped(shared, "language")
        by_benchmark = grouped(foreign, "benchmark")
        found.languages = {key: self._mean(group, flips) for key, group in by_language.items() if len(group) > 1}
        found.benchmarks = {key: self._mean(group, flips) for key, group in by_benchmark.items() if len(group) > 1}
        if len(by_benchmark) > 1:
            found.overall = self._mean(foreign, flips)
        _correct([one for row in found.cells.values() for one in row.values()])
        means = [*found.languages.values(), *found.benchmarks.values(), found.overall]
        _correct([one for row in means for one in row.values()])
        return found

    def shared(self, protocol: str) -> list[CellName]:
        """What all entries have of a protocol: what means are taken over."""
        tables = self.tables.items()
        return [cell for cell, one in tables if cell.protocol == protocol and len(one.of) == len(self.entries)]

    def _mean(self, cells: Sequence[CellName], flips: int) -> dict[str, Found]:
        return self._compared({entry.name: self.blocks(entry.name, cells) for entry in self.entries}, flips)

    def blocks(self, name: str, cells: Sequence[CellName]) -> list[np.ndarray]:
        """One block (S, C, F) for each benchmark: translations of one item are drawn together.

        Of several seeds, those that have every cell.
        """
        seeds = sorted(set.intersection(*(set(self.tables[cell].seeds[name]) for cell in cells)))
        if not seeds:
            raise PivotuneError(
                f"{name}: no seed has all of {', '.join(cell.title for cell in cells)}. Evaluate them all."
            )
        blocks = []
        for group in grouped(cells, "benchmark").values():
            tables = [self.tables[cell] for cell in group]
            rows = [[one.seeds[name].index(seed) for seed in seeds] for one in tables]
            scored = [(one.ids, one.of[name][of_seeds, 0]) for one, of_seeds in zip(tables, rows, strict=True)]
            blocks.append(block(scored))
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


def _check_gold(cell: CellName, ids: Sequence[str], every: Sequence[Mapping[str, ItemResult]]) -> None:
    for name in ids:
        if len({by_id[name].gold for by_id in every}) > 1:
            raise PivotuneError(
                f"{cell.title}: item {name!r} has another right option in another run. They were asked different "
                "questions: evaluate them on the same files."
            )


def _correct(found: Sequence[Found]) -> None:
    for one, adjusted in zip(found, holm([one.p for one in found]), strict=True):
        one.adjusted = adjusted


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
