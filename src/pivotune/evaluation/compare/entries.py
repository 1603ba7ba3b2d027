"""What is compared: runs that were evaluated, the seeds of one run together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pivotune.checkpoint import INFO as RUN_INFO
from pivotune.checkpoint import read_info_file
from pivotune.data.examples import is_english
from pivotune.errors import PivotuneError
from pivotune.evaluation.results import FOLDER, Evaluation, ItemResult, Key, evaluation_folder, read_evaluation
from pivotune.options import names_in, similar

# Of pivotune.json, at any depth: what seeds of one run may differ in.
_SEEDS_AND_PLACES = {"seed", "data_seed", "output", "output_dir", "logging_dir", "run_name", "resume_from_checkpoint"}
_RESULTS = {"versions", "terms", "found"}


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
    def recipe(self) -> str | None:
        """All that pivotune.json records of how the run was made, but its seed and what came out; None without it."""
        if not self.info:
            return None
        return json.dumps(_stripped(_as_asked(self.info)), sort_keys=True)

    @property
    def name(self) -> str:
        """The run's, also where its evaluation lies elsewhere."""
        path = Path(self.given).resolve()
        if path == self.folder.resolve():
            path = path.parent if path.name == FOLDER else Path(self.evaluation.run)
        return path.name or self.evaluation.run

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

    @property
    def title(self) -> str:
        """Without the protocol."""
        return f"{self.benchmark} {self.language}"


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
            _place(entries, Entry((name or having[0].name) + suffix, having, connection, name is not None))
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
    paths = names_in(rest)
    if not name.strip() or not paths:
        raise PivotuneError(f"runs: got {given!r}; write NAME=RUN or NAME=RUN1,RUN2.")
    return name.strip(), paths


def _member(given: str) -> Member:
    if not Path(given).is_dir():
        raise PivotuneError(f"runs: {given}: no such folder{similar(given)}")
    folder = evaluation_folder(given)
    evaluation = read_evaluation(folder)
    if not any(evaluation.items.values()):
        raise PivotuneError(f"{folder}: holds no finished item. Run `pivotune evaluate` on it first.")
    candidates = (Path(given), folder.parent, Path(evaluation.run))
    run = next((path for path in candidates if (path / RUN_INFO).is_file()), None)
    info = {} if run is None else read_info_file(run / RUN_INFO)
    return Member(given, folder, run, evaluation, info)


def _place(entries: list[Entry], new: Entry) -> None:
    """Beside its other seeds, or as an entry of its own."""
    for entry in () if new.named else entries:
        seeds = [member.seed for member in entry.members]
        (member,) = new.members
        same = entry.connection == new.connection and entry.members[0].recipe == member.recipe is not None
        if same and not entry.named and member.seed is not None and None not in seeds and member.seed not in seeds:
            entry.members.append(member)
            return
    entries.append(new)


def _as_asked(info: Mapping[str, Any]) -> dict[str, Any]:
    """pivotune.json, with what was asked for, such as `auto`, where the run settled an option itself."""
    asked = info.get("asked", {})
    options = {name: {**settled, **asked.get(name, {})} for name, settled in info.get("objectives", {}).items()}
    return {**info, "objectives": options}


def _stripped(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _stripped(value) for key, value in content.items() if key not in _SEEDS_AND_PLACES | _RESULTS}
    return content


def _name_of_seeds(members: Sequence[Member]) -> str:
    """Of "zh-seed0" and "zh-seed1": "zh". Of "zh/seed0" and "zh/seed1" too."""
    names = [member.name for member in members]
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


def listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def grouped(cells: Iterable[CellName], by: Literal["benchmark", "language"]) -> dict[str, list[CellName]]:
    groups: dict[str, list[CellName]] = {}
    for cell in cells:
        groups.setdefault(getattr(cell, by), []).append(cell)
    return groups
