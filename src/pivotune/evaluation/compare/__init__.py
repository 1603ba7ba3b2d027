"""`pivotune compare`: evaluations of several runs side by side, with paired tests, as one page.

What is compared is an *entry*: one run, or several seeds of it, under one connection. Per benchmark and language,
entries are compared on the items that all of them have. Benchmarks under different protocols never share a table; the
differences from the baseline in the tables of one protocol are one family of tests, corrected after Holm.

Data flows from the first of these files to the last:

    entries.py       opens the evaluations and puts the seeds of one run together
    remarks.py       what limits the comparison: settings, files and versions that differ
    comparison.py    scores, differences and tests
    plots.py         pictures of these
    training.py      the sections on the training of the runs
    lens.py          and on `pivotune lens`
    report.py        all sections of the page; `pivotune.evaluation.page` writes it as HTML and Markdown
"""

from __future__ import annotations

import json
from typing import Any

from pivotune.errors import check_choice
from pivotune.evaluation import page as pages
from pivotune.evaluation.benchmarks import PRESETS
from pivotune.evaluation.compare.comparison import Comparison
from pivotune.evaluation.compare.entries import CellName, Entry, Member, collect
from pivotune.evaluation.compare.report import make_page, without_pictures
from pivotune.files import check_output_files, make_folder, write_text

FILES = ("compare.html", "compare.md", "compare.json")

__all__ = ["CellName", "Comparison", "Entry", "Member", "collect", "compare"]


def compare(
    runs: list[str],
    *,
    baseline: str | None = None,
    output: str = "comparison",
    overwrite: bool = False,
    preset: str | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """`pivotune compare`: evaluated runs side by side, with paired statistics.

    Args:
        runs: run folders that `pivotune evaluate` has been through, or evaluation folders. Runs that differ in nothing
            but the seed are summarised; NAME=RUN or NAME=RUN1,RUN2 names an entry and its seeds.
        baseline: which of them the others are compared with, by name or folder; the first by default.
        output: folder for compare.html, compare.md, compare.json and the plots.
        overwrite: replace files that are there already.
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
    folder = check_output_files("output", output, FILES, overwrite=overwrite)
    plots = folder / "plots"
    drawn = (path.relative_to(plots) for path in plots.rglob("*") if path.is_file())
    check_output_files("output", plots, drawn, overwrite=overwrite)
    comparison = Comparison(collect(runs), baseline, PRESETS[preset] if preset else None)
    page = make_page(comparison, folder, title or "Comparison of " + ", ".join(one.name for one in comparison.entries))
    result = comparison.as_json()
    print(pages.markdown(without_pictures(page), folder))
    contents = (
        pages.html(page),
        pages.markdown(page, folder),
        json.dumps(result, indent=1, ensure_ascii=False) + "\n",
    )
    make_folder(folder)
    for name, content in zip(FILES, contents, strict=True):
        write_text(folder / name, content)
    print(f"Written: {', '.join(str(folder / name) for name in FILES)} and the plots in {plots}")
    return result
