"""RESULTS.md and docs/results are what the scripts write, as far as that can be known without the recorded cells."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from experiments import pages, results
from experiments.lab import tables
from experiments.lab.grids import RATES
from pivotune.errors import PivotuneError

PAGES = results.folder_of(results.ROOT / "RESULTS.md")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    return pages.sections(PAGES)


def test_the_summary_is_what_the_script_writes_and_one_page(sections: dict[str, str]) -> None:
    text = (results.ROOT / "RESULTS.md").read_text("utf-8")
    assert text == f"{results.NOTE}\n\n{results.filled(results.TEMPLATE, sections)}"
    readme = (results.ROOT / "README.md").read_text("utf-8")
    assert results.filled(results.README, sections).strip() in readme
    assert len(text.splitlines()) < 150 and "{{" not in text


def test_no_number_of_the_summary_is_typed() -> None:
    """Outside of its references the template has numbers of the setting only: how the findings are counted, intervals
    and tests, layers, weights, steps and bases."""
    text = re.sub(r"{{.*?}}", "", results.TEMPLATE.read_text("utf-8"), flags=re.DOTALL)
    text = re.sub(r"^\d+\. ", "", text, flags=re.MULTILINE)
    assert set(NUMBER.findall(text)) == {"95", "0.05", "1", "6", "4", "3", "0.3", "11", "-3", "-270"}


def test_the_plot_is_what_the_script_draws(sections: dict[str, str], tmp_path: Path) -> None:
    results.draw(sections, tmp_path / results.PLOT)
    kept, drawn = ((folder / results.PLOT).read_text("utf-8") for folder in (PAGES, tmp_path))
    version = re.compile(r"Matplotlib v[\d.]+")
    if version.findall(kept) != version.findall(drawn):
        pytest.skip("drawn by another matplotlib")
    assert NUMBER.sub("", kept) == NUMBER.sub("", drawn)
    for one, other in zip(NUMBER.findall(kept), NUMBER.findall(drawn), strict=True):
        assert float(one) == pytest.approx(float(other), abs=0.01)
    assert len(kept) < 30_000


def test_every_section_names_what_made_it(sections: dict[str, str]) -> None:
    assert len(sections) > 10
    for name, section in sections.items():
        assert section.startswith("    python -m experiments."), name
        assert pages.sentence(section, "python -m", "* commit:"), name


def test_learning_rates_are_those_on_record(sections: dict[str, str]) -> None:
    """The one table whose scores are in the repository."""
    for subject, of_subject in json.loads(RATES.read_text("utf-8")).items():
        task = subject.split(":")[0]
        scores = {
            name: {float(rate): score for rate, score in row.items()}
            for name, row in of_subject["development_scores"].items()
        }
        section = sections["learning_rate" if task == "facts" else f"{task} learning_rate"]
        assert section.endswith(tables.learning_rates(scores, of_subject["chosen"], task)), subject
        assert of_subject["command"] in section


def test_pages_link_to_what_is_there() -> None:
    for path in (results.ROOT / "RESULTS.md", *PAGES.glob("*.md")):
        for link in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
            file, _, heading = link.partition("#")
            assert (path.parent / file).is_file(), f"{path}: {link}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", (path.parent / file).read_text("utf-8"), flags=re.MULTILINE)
                assert heading in {title.lower().replace(" ", "-") for title in titles}, f"{path}: {link}"


def test_the_index_names_every_page() -> None:
    index = (PAGES / "README.md").read_text("utf-8")
    for path in PAGES.glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index, path.name


SECTIONS = {"a": "### Scores\n\n| | x |\n|---|---|\n| r | +1.0 [+0.5, +1.5]* |\n\nGain: none."}


def test_references_are_filled_in(tmp_path: Path) -> None:
    template = tmp_path / "summary.md"
    template.write_text("# T\n\n| {{a > Scores > r > x}} |\n\nGain: {{a > Scores >\n  Gain:}}.\n")
    assert results.filled(template, SECTIONS) == "# T\n\n| +1.0 [+0.5, +1.5]\\* |\n\nGain: none.\n"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("b > c > d", "no section 'b'"),
        ("a > c", "give SECTION"),
        ("a > Scores > s > x", "no table"),
        ("a > b > c", "no s"),
    ],
)
def test_a_reference_that_leads_nowhere_is_an_error(reference: str, why: str, tmp_path: Path) -> None:
    template = tmp_path / "summary.md"
    template.write_text(f"{{{{{reference}}}}}")
    with pytest.raises(PivotuneError, match=rf"summary\.md: {{{{{reference}}}}}: .*{why}"):
        results.filled(template, SECTIONS)


def test_a_section_is_recorded_on_its_page_and_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template, summary = tmp_path / "summary.md", tmp_path / "RESULTS.md"
    template.write_text("Best: {{a > Scores > r > x}}.\n")
    monkeypatch.setattr(results, "TEMPLATE", template)
    monkeypatch.setattr(results, "draw", lambda *_: None)
    page = results.record(summary, "page", "a", SECTIONS["a"])
    assert page == tmp_path / "docs" / "results" / "page.md" and not summary.exists()
    summary.write_text("old")
    results.record(summary, "page", "a", SECTIONS["a"].replace("1.0", "1.2"))
    assert "Best: +1.2 [" in summary.read_text()
