"""`load`: the items of a benchmark in one language, from files or the hub, checked and joined with their English."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError, check_choice, check_number
from pivotune.evaluation.benchmarks.benchmark import Benchmark
from pivotune.evaluation.benchmarks.files import Folder
from pivotune.evaluation.benchmarks.items import Item, Located
from pivotune.evaluation.benchmarks.table import benchmark_of


def load(
    name: str,
    language: str,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    split: str | None = None,
    english: bool = True,
) -> list[Item]:
    """The items of a benchmark in one language, in the order of the publishers' files or of the hub's rows.

    Args:
        name: a key of `BENCHMARKS`.
        language: one of its languages, such as "vi".
        data_dir: DATA_DIR, the folder of the publishers' files; docs/benchmarks.md says which file is where. The hub
            where None.
        limit: take the first so many items; all of them are checked all the same.
        split: of the files, one of the benchmark's splits; its default where None. The hub's is that of the harness.
        english: read the English items too and give each item its English counterpart, where there is one.

    Raises:
        DataError: a file that is cut, garbled, not this benchmark's, or does not match its golds or its English.
        PivotuneError: unknown benchmark, language or split; a missing file; a data set that the hub does not give; no
            data_dir for a benchmark that the hub has not.
    """
    benchmark = benchmark_of(name)
    if language not in benchmark.languages:
        raise PivotuneError(
            f"languages: {name} is not available in {language!r}; choose among {', '.join(benchmark.languages)}."
        )
    if limit is not None:
        check_number("limit", limit, 1, whole=True)
    with_english = english and language != "en" and "en" in benchmark.languages
    if data_dir is None:
        items, counterparts = _from_hub(benchmark, language, split, with_english)
    else:
        items, counterparts = _from_files(benchmark, language, Path(data_dir), split, with_english)
    if counterparts is not None:
        items = _with_english(benchmark, items, counterparts, language)
    return [item for _, item in items[:limit]]


def check_data_dir(benchmarks: Iterable[Benchmark], data_dir: str | Path | None) -> None:
    """Whether all of them can be read, as far as that is known without reading.

    Raises:
        PivotuneError: data_dir is no folder, or given for benchmarks without files, or not given for some that the hub
            has not got; the message names all of these.
    """
    chosen = {benchmark.name: benchmark for benchmark in benchmarks}.values()
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise PivotuneError(
                f"data_dir: {data_dir} is no folder; give the one that holds the benchmarks' folders, such as cctuning/"
            )
        if without := [benchmark.name for benchmark in chosen if benchmark.read is None]:
            raise PivotuneError(
                f"data_dir: {', '.join(without)} cannot be read from files. Leave the option out for them."
            )
        return
    missing: dict[str, list[str]] = {}
    for benchmark in chosen:
        if benchmark.hub is None:
            advice = benchmark.advice or f"put {benchmark.source} into a folder, and name that with --data_dir."
            missing.setdefault(advice, []).append(benchmark.name)
    if missing:
        what = " ".join(f"{', '.join(names)}: {advice}" for advice, names in missing.items())
        raise PivotuneError(f"data_dir: not given, and no data set of the hub holds {what}")


def chance_level(items: Iterable[Item]) -> float:
    """The expected accuracy of a uniform guess among each item's options; 0 for free text.

    Raises:
        ValueError: there are no items.
    """
    shares = [1 / len(item.options) if item.options else 0.0 for item in items]
    if not shares:
        raise ValueError("no items: there is no chance level")
    return sum(shares) / len(shares)


def _check_ids(items: Sequence[Located]) -> None:
    seen: dict[str, str] = {}
    for where, item in items:
        if item.id in seen:
            raise DataError(where, "duplicate id", f"{item.id!r}, as in {seen[item.id]}", "download the file again")
        seen[item.id] = where


def _from_hub(
    benchmark: Benchmark, language: str, split: str | None, with_english: bool
) -> tuple[list[Located], list[Located] | None]:
    """The items, and those of English where their ids are shared with it and they are wanted."""
    check_data_dir([benchmark], None)
    assert benchmark.hub is not None
    if split is not None:
        own = benchmark.hub.of(language)[2]
        raise PivotuneError(f"split: got {split!r}, but from the hub it is {own!r}; leave it out, or give data_dir.")
    items = benchmark.hub.items(benchmark.name, language)
    _check_ids(items)
    shared = with_english and benchmark.hub.parallel
    return items, benchmark.hub.items(benchmark.name, "en") if shared else None


def _from_files(
    benchmark: Benchmark, language: str, data_dir: Path, split: str | None, with_english: bool
) -> tuple[list[Located], list[Located] | None]:
    """The items, and those of English where they are wanted."""
    check_data_dir([benchmark], data_dir)
    assert benchmark.read is not None
    split = benchmark.splits[0] if split is None else split
    check_choice("split", split, benchmark.splits)
    folder = Folder(data_dir, benchmark.source)
    items = benchmark.read(folder, language, split)
    _check_ids(items)
    if not with_english:
        return items, None
    if benchmark.read_english is not None:
        found = benchmark.read_english(folder, language, split)
    else:
        found = benchmark.read(folder, "en", split)
    if benchmark.complete and len(items) != len(found):
        problem = f"ends after {len(items)} items, its English after {len(found)} ({found[-1][0]})"
        raise DataError(items[-1][0], "files do not match", problem, "download both again: one may be cut")
    return items, found


def _with_english(benchmark: Benchmark, items: list[Located], found: list[Located], language: str) -> list[Located]:
    counterparts = {item.id: item for _, item in found}
    exceptions = benchmark.not_parallel.get(language, frozenset())
    return [(where, _joined(where, item, counterparts, exceptions)) for where, item in items]


def _joined(where: str, item: Item, counterparts: Mapping[str, Item], exceptions: frozenset[str]) -> Item:
    if item.id in exceptions:
        return item
    english = counterparts.get(item.id)
    fix = "download both again, or load with english=False"
    if english is None:
        raise DataError(where, "no English", f"id {item.id!r} is not in the English file", fix)
    same_options = item.options and english.options and len(item.options) == len(english.options)
    if same_options and item.gold != english.gold:
        problem = f"gold {item.answers[0]!r}, but {english.answers[0]!r} for the same id {item.id!r} in English"
        raise DataError(where, "files do not match", problem, fix)
    return replace(item, english=english)
