"""The results: their pages in docs/results, and RESULTS.md, one page that sums them up.

    python -m experiments.results    # write RESULTS.md and its plot from the pages again

An experiment records each of its sections on a page. RESULTS.md is `experiments/summary.md`, and a section of
README.md `experiments/readme.md`, with their references filled in: {{SECTION > WHERE > ROW > COLUMN}} is a cell of a
table, {{SECTION > WHERE > WORDS}} what follows in a sentence that begins with these words; WHERE is part of a line
above. So no number of them is typed.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments import pages
from pivotune.errors import PivotuneError
from pivotune.plotting import COLORS, GREY, new_figure, save

ROOT = Path(__file__).parents[1]
TEMPLATE, README = (Path(__file__).with_name(name) for name in ("summary.md", "readme.md"))
PLOT = "against-tft.svg"
NOTE = "<!-- Written by `python -m experiments.results`: edit experiments/summary.md, not this file. -->"

NO_BREAK = "\N{NO-BREAK SPACE}"  # inside a number and its interval, until the lines are made

PLOTTED = {
    "deep supervision, logits": "logits",
    "deep supervision, feature": "feature",
    "CC-Tuning": "CC",
    "CC-Tuning, real English": "CC [real English]",
    "CC-Tuning + feature": "CC + feature",
    "logits, shuffled English": "logits, shuffled",
    "feature, shuffled English": "feature, shuffled",
    "CC-Tuning, shuffled English": "CC, shuffled",
}
"""Label -> row of the headline tables."""


def record(summary: Path, page: str, name: str, content: str) -> Path:
    """Write a section to its page, docs/results/PAGE.md beside the summary, and the summary again where it exists.

    Returns:
        The page.
    """
    folder = folder_of(summary)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{page}.md"
    pages.write_section(path, name, content)
    if summary.is_file():
        summarise(summary)
    return path


def publish(
    name: str,
    given: Sequence[str],
    results: Iterable[Mapping[str, Any]],
    about: Iterable[str],
    body: str,
    summary: Path | None,
    section: str | None = None,
) -> None:
    """Print the section of `python -m experiments.NAME GIVEN`; record it, where there is a summary.

    Page and section are called as the experiment, unless `section` gives the section a name. `results` and `about`: see
    `pages.head`.
    """
    text = f"{pages.head(name, given, results, about)}\n\n{body}"
    print(f"\n{text}")
    if summary:
        page = name.rpartition(".")[2]
        print(f"\nWritten: {record(summary, page, section or page, text)}")


def folder_of(summary: Path) -> Path:
    """The pages of a summary."""
    return summary.parent / "docs" / "results"


def summarise(summary: Path) -> None:
    """Write the summary and its plot from the pages."""
    found = pages.sections(folder_of(summary))
    summary.write_text(f"{NOTE}\n\n{filled(TEMPLATE, found)}", encoding="utf-8")
    readme = summary.with_name("README.md")
    if readme.is_file():
        pages.write_section(readme, "results", filled(README, found))
    draw(found, folder_of(summary) / PLOT)


def filled(template: Path, sections: Mapping[str, str]) -> str:
    """The template with its references filled in.

    Raises:
        PivotuneError: one of them leads nowhere.
    """

    def value(match: re.Match[str]) -> str:
        name, *way = (" ".join(part.split()) for part in match[1].split(">"))
        try:
            if name not in sections:
                raise PivotuneError(f"there is no section {name!r}.")
            if len(way) not in (2, 3):
                raise PivotuneError("give SECTION > WHERE > ROW > COLUMN or SECTION > WHERE > WORDS.")
            text = pages.cell(sections[name], *way) if len(way) == 3 else pages.sentence(sections[name], *way)
        except PivotuneError as error:
            raise PivotuneError(f"{template.name}: {match[0]}: {error}") from None
        return text.replace("*", r"\*").replace(" ", NO_BREAK)

    # A reference may go on on the next line.
    text = re.sub(r"{{(.*?)}}", value, template.read_text(encoding="utf-8"), flags=re.DOTALL)
    blocks = map(_wrapped, text.strip().replace(" %", f"{NO_BREAK}%").split("\n\n"))
    return "\n\n".join(blocks).replace(NO_BREAK, " ") + "\n"


def _wrapped(block: str) -> str:
    """A paragraph or a list in lines of even length, whatever has been filled in; anything else as it is."""
    if block.startswith(("#", "|", "!")):
        return block
    return "\n".join(
        textwrap.fill(
            re.sub(r"[ \n]+", " ", item),
            120,
            subsequent_indent="   " if re.match(r"\d+\. |\* ", item) else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in re.split(r"\n(?=\d+\. |\* )", block)
    )


def draw(sections: Mapping[str, str], path: Path) -> None:
    """The difference from TFT of each method, at equal steps and at equal FLOPs, as SVG."""
    figure, axes = new_figure(7.5, 3.4)
    axes.axvline(0, color=GREY, linewidth=1)
    for budget, color, shift in (("steps", COLORS[0], -0.14), ("FLOPs", COLORS[1], 0.14)):
        label: str | None = f"equal {budget}"
        for k, row in enumerate(PLOTTED.values()):
            if budget == "FLOPs" and row.endswith("shuffled"):
                continue  # the controls have a budget of steps only
            text = pages.cell(sections["headline"], f"Against TFT, equal {budget}", row, "all languages")
            mean, low, high = map(float, re.findall(r"[-+][\d.]+", text))
            axes.errorbar(
                mean, k + shift, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=2, label=label
            )
            label = None  # once in the legend
    axes.set_yticks(range(len(PLOTTED)), list(PLOTTED))
    axes.invert_yaxis()
    axes.set_xlabel("held-out facts right: points above plain fine-tuning, 95 % interval")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    write_svg(figure, path)


def write_svg(figure: Figure, path: Path) -> None:
    """A figure as SVG alone, its text as text: a third of the size."""
    with TemporaryDirectory() as folder, rc_context({"svg.fonttype": "none"}):
        svg = save(figure, Path(folder) / path.stem)[1]
        path.write_text(svg.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    summarise(ROOT / "RESULTS.md")
