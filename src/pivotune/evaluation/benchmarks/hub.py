"""Benchmarks on the hub: the rows of a data set -> located items. Which data set, its benchmark says.

For a benchmark that lm-evaluation-harness 0.4.13 has too, it is the one that the harness's task asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks.items import Located, LocatedRow

# (rows, language, split) -> items
RowReader = Callable[[list[LocatedRow], str, str], list[Located]]

FILES = "give the folder of its files with --data_dir (docs/benchmarks.md)"


class Source(Protocol):
    """Whatever gives items without a DATA_DIR."""

    @property
    def parallel(self) -> bool:
        """Whether items of different languages share their ids."""
        ...

    def of(self, language: str) -> tuple[str, str, str]:
        """(path, config, split) of a language."""
        ...

    def items(self, benchmark: str, language: str) -> list[Located]:
        """The items of a language."""
        ...


@dataclass(frozen=True)
class Hub:
    """Where a benchmark is on the hub.

    Attributes:
        path: the data set.
        config: its configuration; "{language}" stands for the language.
        split: the split that is scored.
        read: makes items of the rows.
        english: (path, config, split) of English where it is another data set. Its items then share no ids with those
            of the other languages.
    """

    path: str
    config: str
    split: str
    read: RowReader = field(repr=False)
    english: tuple[str, str, str] | None = None

    @property
    def parallel(self) -> bool:
        """Where English is another data set, its rows are other questions or in another order."""
        return self.english is None

    def of(self, language: str) -> tuple[str, str, str]:
        """(path, config, split) of a language."""
        if language == "en" and self.english is not None:
            return self.english
        return self.path, self.config.format(language=language), self.split

    def items(self, benchmark: str, language: str) -> list[Located]:
        """The items of a language.

        Raises:
            PivotuneError: the data set cannot be had; the message names `benchmark`.
            DataError: a row without what this benchmark's rows have.
        """
        path, config, split = self.of(language)
        rows = _rows(benchmark, path, config, split)
        try:
            return self.read(rows, language, split)
        except (KeyError, TypeError) as error:
            problem = f"its rows have the fields {', '.join(rows[0][1])}, but not as {benchmark} has them ({error!r})"
            raise DataError(f"hub:{path} {config} {split}", "wrong data set", problem, FILES) from error


def _rows(benchmark: str, path: str, config: str, split: str) -> list[LocatedRow]:
    try:
        rows = _loaded(path, config, split)
    except Exception as error:  # datasets raises many kinds: no network, unknown name or split, a broken file
        raise PivotuneError(
            f"data_dir: not given, and the data set of {benchmark} on the hub, {path} ({config}, {split}), cannot be "
            f"read: {' '.join(str(error).split())}. Check the network, or {FILES}."
        ) from error
    place = f"hub:{path} {config} {split}"
    if not rows:
        raise DataError(place, "empty data set", "holds no row", FILES)
    return [(f"{place}: row {number}", row) for number, row in enumerate(rows, start=1)]


def _loaded(path: str, config: str, split: str) -> list[dict[str, Any]]:
    import datasets

    try:
        return list(datasets.load_dataset(path, config, split=split))
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        # Some data sets are scripts, which `datasets` 4 does not run. The hub keeps a copy of their rows as Parquet.
        copy = f"hf://datasets/{path}@refs/convert/parquet/{config}/{split}/*.parquet"
        return list(datasets.load_dataset("parquet", data_files=copy, split="train"))
