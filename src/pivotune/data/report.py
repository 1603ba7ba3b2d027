"""What happened to every row: a bad one is either raised as a DataError or counted in a Report, never dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pivotune.errors import PivotuneError

PLACES_SHOWN = 5


class DataError(PivotuneError):
    """A row that cannot be used.

    Attributes:
        reason: a few words under which a `Report` counts it, such as "duplicate id".
        where: the place, such as "train.jsonl:17".
    """

    def __init__(self, where: str, reason: str, problem: str, fix: str) -> None:
        super().__init__(f"{where}: {reason}: {problem}. Fix: {fix}")
        self.where = where
        self.reason = reason


@dataclass
class Report:
    """Counts of one pass over the data; `print(report)` shows them all.

    Attributes:
        rows: kept rows per language.
        pairs: kept rows with an English counterpart, per language.
        skipped: skipped rows per reason.
        notes: kept rows with something to know about, per note.
        places: the first few places per reason of a skip, and per note.
        truncated: answers whose end was cut to fit `max_length`.
        english_truncated: the same, of the English answers.
        ends: answers per token that ends them, English ones included, whether or not their end was cut.
        remarks: what holds for all rows.
    """

    rows: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    truncated: int = 0
    english_truncated: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.rows.total()

    def keep(self, language: str, paired: bool) -> None:
        self.rows[language] += 1
        self.pairs[language] += paired

    def skip(self, error: DataError) -> None:
        self.skipped[error.reason] += 1
        self._place(error.reason, error.where)

    def note(self, note: str, where: str) -> None:
        self.notes[note] += 1
        self._place(note, where)

    def _place(self, reason: str, where: str) -> None:
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES_SHOWN:
            places.append(where)

    def take_notes(self, earlier: Report) -> None:
        """The notes of an earlier pass over the same rows, too."""
        self.notes.update(earlier.notes)
        self.places |= {note: earlier.places[note] for note in earlier.notes}

    def pair_share(self, language: str) -> float:
        """Share (0..1) of the kept rows of `language` that have an English counterpart."""
        return self.pairs[language] / self.rows[language] if self.rows[language] else 0.0

    def __str__(self) -> str:
        lines = [f"{self.kept} kept, {self.skipped.total()} skipped"]
        for language, rows in self.rows.most_common():
            share = self.pair_share(language)
            lines.append(f"  {language}: {rows} rows, {self.pairs[language]} with English ({share:.1%})")
        counted = [(f"skipped, {reason}", reason, count) for reason, count in self.skipped.most_common()]
        counted += [(f"rows with {note}", note, count) for note, count in self.notes.most_common()]
        for title, reason, count in counted:
            more = ", ..." if count > len(self.places[reason]) else ""
            lines.append(f"  {title}: {count} ({', '.join(self.places[reason])}{more})")
        if self.truncated or self.english_truncated:
            lines.append(f"  answers cut at the end: {self.truncated} target, {self.english_truncated} English")
        if self.ends:
            lines.append(
                f"  answers end with {', '.join(f'{end} ({count})' for end, count in self.ends.most_common())}"
            )
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])
