"""The page of a comparison: what stands in which section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pivotune.data.examples import is_english
from pivotune.evaluation.compare.comparison import Comparison, Found
from pivotune.evaluation.compare.entries import grouped
from pivotune.evaluation.compare.lens import lens_sections
from pivotune.evaluation.compare.plots import score_plots
from pivotune.evaluation.compare.training import training_sections
from pivotune.evaluation.labels import benchmark_title, metric_name, percent, signed
from pivotune.evaluation.page import (
    Figures,
    Fold,
    Heading,
    Page,
    Paragraph,
    Part,
    Points,
    Preformatted,
    Section,
    Table,
    TableCell,
)
from pivotune.evaluation.published import published_tables, source

_TESTS = {
    "mcnemar": "exact McNemar test",
    "sign-flip": "paired sign-flip permutation test",
    "crossed": "t-test over seeds and items (crossed design)",
}


def make_page(comparison: Comparison, folder: Path, title: str) -> Page:
    """The whole page; its plots are drawn into `folder`/plots."""
    plots = folder / "plots"
    sections = [
        Section("English retention", _english_parts(comparison)),
        *_protocol_sections(comparison, plots),
        *_averages(comparison),
        *_published(comparison),
        *_adherence(comparison),
        *training_sections(comparison, plots),
        *lens_sections(comparison, plots),
        Section("How to read this", _reading(comparison)),
    ]
    lead: list[Part] = []
    if comparison.others:
        lead.append(
            Paragraph(f"Differences are from {comparison.baseline.name}. Scores in percent, with 95 % intervals.")
        )
    else:
        lead.append(Paragraph("Scores in percent, with 95 % intervals."))
    if comparison.warnings:
        lead.append(Points(comparison.warnings, important=True))
    if comparison.notes:
        lead.append(Points(comparison.notes))
    return Page(title, lead, sections)


def without_pictures(page: Page) -> Page:
    """For the terminal: nothing folded either."""
    shown = []
    for section in page.sections:
        parts = [part for part in section.parts if not isinstance(part, Figures | Fold | Preformatted)]
        if any(isinstance(part, Table | Paragraph | Points) for part in parts):
            shown.append(Section(section.title, parts))
    return Page(page.title, page.lead, shown)


def _cell(found: Found | None) -> TableCell:
    if found is None:
        return TableCell("–")
    own = found.score
    small = f"[{percent(own.low)}, {percent(own.high)}]"
    if own.sd is not None:
        small += f" ±{percent(own.sd)}"
    delta = ""
    if (apart := found.difference) is not None:
        delta = f"{signed(apart.mean)} [{signed(apart.low)}, {signed(apart.high)}]"
    return TableCell(percent(own.mean), small, delta, found.change)


def _row(comparison: Comparison, head: TableCell, found: Mapping[str, Found]) -> list[TableCell]:
    return [head, *(_cell(found.get(entry.name)) for entry in comparison.entries)]


def _heads(comparison: Comparison, first: str) -> list[str]:
    baseline = " (baseline)" if comparison.others else ""
    return [first, comparison.baseline.name + baseline, *(entry.name for entry in comparison.others)]


def _what(comparison: Comparison, protocol: str, benchmark: str) -> str:
    metric, chance = comparison.metrics[protocol, benchmark]
    what = metric_name(metric)
    return f"{what}, %" + (f"; a guess scores {percent(chance)}" if chance else "")


def _language(code: str, small: str = "") -> TableCell:
    return TableCell(language=code, small=small)


def _count(found: Mapping[str, Found]) -> str:
    return f"n = {next(iter(found.values())).score.items:,}"


def _english_parts(comparison: Comparison) -> list[Part]:
    parts: list[Part] = []
    for protocol, results in comparison.results.items():
        rows = [
            _row(comparison, TableCell(cell.benchmark, _count(found)), found)
            for cell, found in results.cells.items()
            if is_english(cell.language)
        ]
        if rows:
            parts.append(Table(_heads(comparison, "English"), rows, f"English, by {protocol}. * significant."))
    lost = [
        f"{name} loses English on {cell.benchmark}: {signed(one.difference.mean)}."
        for results in comparison.results.values()
        for cell, found in results.cells.items()
        for name, one in found.items()
        if is_english(cell.language) and one.change == "down" and one.difference
    ]
    if not parts:
        return [Paragraph("No English items were evaluated.")]
    if comparison.others:
        none = "No significant loss of English. An interval says how large a loss could have gone unseen."
        parts.insert(0, Points(lost) if lost else Paragraph(none))
    return parts


def _protocol_sections(comparison: Comparison, plots: Path) -> list[Section]:
    sections = []
    for protocol, results in comparison.results.items():
        parts: list[Part] = []
        for benchmark, cells in grouped(results.cells, "benchmark").items():
            parts.append(Heading(benchmark_title(benchmark)))
            rows = [
                _row(comparison, _language(cell.language, _count(results.cells[cell])), results.cells[cell])
                for cell in cells
            ]
            if mean := results.benchmarks.get(benchmark):
                averaged = [cell for cell in comparison.shared(protocol) if cell.benchmark == benchmark]
                number = sum(not is_english(cell.language) for cell in averaged)
                rows.append(_row(comparison, TableCell("Mean", f"of {number}, without English"), mean))
            heads = _heads(comparison, "language")
            parts.append(Table(heads, rows, _what(comparison, protocol, benchmark)))
            found = {cell.language: results.cells[cell] for cell in cells}
            parts.append(Figures(score_plots(comparison, protocol, benchmark, found, plots)))
        sections.append(Section(f"By benchmark and language: {protocol}", parts))
    return sections


def _averages(comparison: Comparison) -> list[Section]:
    parts: list[Part] = []
    for protocol, results in comparison.results.items():
        rows = [_row(comparison, _language(code), found) for code, found in results.languages.items()]
        if results.overall:
            rows.append(_row(comparison, TableCell("All", "without English"), results.overall))
        if rows:
            names = dict.fromkeys(cell.benchmark for cell in results.cells)
            caption = f"By {protocol}: each language's mean over those of {', '.join(names)} that it has, %"
            parts.append(Table(_heads(comparison, "language"), rows, caption))
    return [Section("Averages of each language", parts)] if parts else []


def _published(comparison: Comparison) -> list[Section]:
    if comparison.preset is None:
        return []
    parts: list[Part] = [Paragraph(source(comparison.preset))]
    for protocol, results in comparison.results.items():
        scores = {
            entry.name: {
                (cell.benchmark, cell.language): found[entry.name].score.mean
                for cell, found in results.cells.items()
                if entry.name in found
            }
            for entry in comparison.entries
        }
        for title, table in published_tables(comparison.preset, protocol, scores):
            parts += [Heading(title), table]
    return [Section("Beside the published figures", parts)]


def _adherence(comparison: Comparison) -> list[Section]:
    counts = comparison.adherence()
    if not counts:
        return []
    parts: list[Part] = [
        Paragraph("The share of generated answers in the language of the question, of those that tell.")
    ]
    for benchmark, cells in grouped(counts, "benchmark").items():
        rows = []
        for cell in cells:
            row = [_language(cell.language)]
            for entry in comparison.entries:
                count = counts[cell].get(entry.name, Counter())
                told = count[True] + count[False]
                share = percent(count[True] / told) if told else "–"
                row.append(
                    TableCell(share, f"{count[True]} yes, {count[False]} no, {count[None]} open" if count else "")
                )
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
