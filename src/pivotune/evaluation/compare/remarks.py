"""What limits a comparison: settings, files and versions that differ between its runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from pivotune.evaluation.compare.entries import Entry, Member, listed

_UNREMARKABLE = {"output", "batch_size", "device", "connection", "run", "benchmarks", "languages", "data_dir"}


def warnings(entries: Sequence[Entry]) -> list[str]:
    """What makes the entries less comparable."""
    several = [entry for entry in entries if len({member.recipe for member in entry.members}) > 1]
    return [
        *(f"{entry.name}: its runs differ in more than the seed." for entry in several),
        *_on_connections(entries),
        *_on_options(entries),
        *_on_data(_members(entries)),
        *(
            f"{path}: ends in a line without its end, left out. Its evaluation is unfinished."
            for member in _members(entries)
            for path in member.evaluation.torn
        ),
    ]


def notes(entries: Sequence[Entry]) -> list[str]:
    """What a reader should know: which seeds are summarised, and versions that differ."""
    found = []
    for entry in entries:
        if len(entry.members) > 1:
            seeds = [str(member.given if member.seed is None else member.seed) for member in entry.members]
            found.append(f"{entry.name}: {len(seeds)} seeds ({', '.join(seeds)}), summarised.")
    of_all = (item for member in _members(entries) for item in member.evaluation.versions.items())
    for package, versions in _values(of_all).items():
        if len(versions) > 1:
            found.append(f"{package}: versions {', '.join(sorted(versions))}.")
    return found


def _on_connections(entries: Sequence[Entry]) -> list[str]:
    connections = {entry.name: entry.connection for entry in entries}
    found = [f"connection differs: {listed(connections)}."] if len(set(connections.values())) > 1 else []
    if "english" in connections.values():
        found.append('Under connection "english" a model is shown each question in English as well.')
    return found


def _on_options(entries: Sequence[Entry]) -> list[str]:
    configs = [(entry.name, member.evaluation.config) for entry in entries for member in entry.members]
    found = []
    for option in sorted({key for _, config in configs for key in config} - _UNREMARKABLE):
        by_entry: dict[str, list[str]] = {}
        for name, config in configs:
            by_entry.setdefault(name, []).append(json.dumps(config.get(option), ensure_ascii=False))
        if len({value for values in by_entry.values() for value in values}) > 1:
            shown = {name: " and ".join(dict.fromkeys(values)) for name, values in by_entry.items()}
            found.append(f"{option} differs: {listed(shown)}.")
    return found


def _on_data(members: Iterable[Member]) -> list[str]:
    sources = [member.evaluation.config.get("data_dir") for member in members]
    digests = _values(
        item for source in sources if isinstance(source, dict) for item in (source.get("digests") or {}).items()
    )
    differ = [part for part, found in digests.items() if len(found) > 1]
    return [f"The benchmark files differ between the runs: {', '.join(differ)}."] if differ else []


def _members(entries: Iterable[Entry]) -> list[Member]:
    return [member for entry in entries for member in entry.members]


def _values(items: Iterable[tuple[str, object]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for key, value in items:
        found.setdefault(key, set()).add(str(value))
    return found
