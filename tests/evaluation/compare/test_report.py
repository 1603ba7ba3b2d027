"""The page that a comparison is shown on: its files, its sections, and how it looks in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pivotune.cli import main
from pivotune.errors import PivotuneError
from pivotune.evaluation.compare import compare
from tests.evaluation.compare.browser import CONTRAST, chromium
from tests.evaluation.compare.made_up import gain, write_run


class Tables(HTMLParser):
    """The text of each table, and all tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._depth += 1
            self.tables.append("")

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "table"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._depth:
            self.tables[-1] += f" {data}"


def test_the_files_say_what_was_found(two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    main(["compare", *two, "--output", str(output), "--title", "Mine"])
    printed = capsys.readouterr().out
    written = (output / "compare.md").read_text()
    assert written.startswith("# Mine\n")
    headings = re.findall(r"^## (.*)", written, re.M)
    assert headings[0] == "English retention"
    assert headings[1:3] == ["By benchmark and language: generation", "By benchmark and language: likelihood"]
    (line,) = [line for line in printed.splitlines() if line.startswith("| 中文 · Chinese n = 400") and "▲*" in line]
    assert line in written
    assert "better loses English on xnli" in written
    content = json.loads((output / "compare.json").read_text())
    cells = {(c["benchmark"], c["language"]): c["entries"] for c in content["protocols"]["likelihood"]["cells"]}
    assert cells["xnli", "zh"]["better"]["p_holm"] < 0.05 < cells["xnli", "vi"]["better"]["p_holm"]
    assert cells["xnli", "zh"]["better"]["p_holm"] >= cells["xnli", "zh"]["better"]["p"]
    for picture in re.findall(r"\]\(<(.*?)>\)", written):
        assert (output / picture).is_file()
    assert {path.suffix for path in (output / "plots").iterdir()} == {".png", ".svg"}
    found = Tables((output / "compare.html").read_text())
    assert {"lang": "zh"} in [attributes for tag, attributes in found.tags if tag == "bdi"]
    assert not any("▲" in table or "▼" in table for table in found.tables if "loses" in table)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A run that is compared quickly."""
    return str(write_run(tmp_path / "small", {}, benchmarks={"likelihood.xnli": ("zh",)}, items=20))


@pytest.mark.parametrize("name", ["compare.html", "compare.json", "plots/mine.png", "plots/lens-zh/entropy.svg"])
def test_files_that_are_there_are_replaced_only_when_asked(name: str, small: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text("mine")
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(PivotuneError, match=rf"^output: .*{name} already exists.*--overwrite true"):
        compare([small], output=str(output))
    assert {path.read_text() for path in output.rglob("*") if path.is_file()} == {"mine"}
    compare([small], output=str(output), overwrite=True)
    assert (output / "thesis.txt").read_text() == "mine" and (output / "compare.json").stat().st_size > 100
    with pytest.raises(PivotuneError, match="already exists"):  # its own files too
        compare([small], output=str(output))
    with pytest.raises(PivotuneError, match="is a file; name a folder"):
        compare([small], output=str(output / "thesis.txt"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[{", "training_log.json:1: is not valid JSON"),
        ("{}", "a list of objects is expected"),
        ('[{"step": "1", "loss": 2}]', "step of entry 1 is '1', not a number"),
        ('[{"step": 1}, {"train_runtime": []}]', "train_runtime of entry 2"),
    ],
)
def test_a_damaged_training_log_is_named(content: str, problem: str, small: str, tmp_path: Path) -> None:
    Path(small, "training_log.json").write_text(content)
    with pytest.raises(PivotuneError, match=re.escape(problem)):
        compare([small], output=str(tmp_path / "out"))


def test_losses_that_are_no_numbers_are_left_out(small: str, tmp_path: Path) -> None:
    log = [{"step": 1, "loss": None, "lm": None}, {"step": 2, "loss": 1.5, "lm": 1.5}, {"train_runtime": None}]
    Path(small, "training_log.json").write_text(json.dumps(log))
    compare([small], output=str(tmp_path / "out"))
    assert "1.5 → 1.5" in (tmp_path / "out" / "compare.md").read_text()


def test_a_damaged_record_of_a_run_is_named(small: str, tmp_path: Path) -> None:
    damaged = {
        "{": "is not valid JSON",
        "[]": "holds a list",
        '{"format": 1}': "an earlier version",
    }
    for content, problem in damaged.items():
        Path(small, "pivotune.json").write_text(content)
        with pytest.raises(PivotuneError, match=rf"pivotune\.json.*{problem}"):
            compare([small], output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_protocols_are_never_mixed(two: tuple[str, str], tmp_path: Path) -> None:
    compare(list(two), output=str(tmp_path / "out"))
    found = Tables((tmp_path / "out" / "compare.html").read_text())
    for table in found.tables:
        assert not ("generation" in table and "likelihood" in table)
        assert not ("xquad" in table and "xnli" in table)


def test_a_mean_says_how_many_languages_it_is_of(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {}, benchmarks={"likelihood.xnli": ("en", "zh", "vi", "ar")}, items=20)
    b = write_run(tmp_path / "b", {}, benchmarks={"likelihood.xnli": ("en", "zh", "vi")}, items=20)
    compare([str(a), str(b)], output=str(tmp_path / "out"))
    written = (tmp_path / "out" / "compare.md").read_text()
    assert "Mean of 2, without English" in written  # one run lacks Arabic


def test_everything_is_escaped(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script><img>|`a`"
    base, run = write_run(tmp_path / "base", {}), write_run(tmp_path / "x", {}, config={"style": "<b>bold</b>"})
    compare([str(base), f"{nasty}={run}"], output=str(tmp_path / "out"), title="</title><script>alert(1)</script>")
    page = (tmp_path / "out" / "compare.html").read_text()
    found = Tables(page)
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "b"}
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in found.tags if tag == "img")
    assert any(nasty in text for text in found.texts)
    written = (tmp_path / "out" / "compare.md").read_text()
    assert "<img" not in written and "<script" not in written and r"\|\`a\`" in written


def test_published_figures_stand_beside_a_papers_table(tmp_path: Path) -> None:
    benchmarks = {"likelihood.xnli": ("en", "zh", "vi", "ar", "de"), "generation.cc_xnli": ("zh",)}
    runs = [str(write_run(tmp_path / n, {}, benchmarks=benchmarks, draw=d)) for d, n in enumerate("ab")]
    content = compare(runs, output=str(tmp_path / "out"), preset="dft")
    assert list(content["protocols"]) == ["likelihood"]  # cc_xnli is not in the preset, and German neither
    languages = [cell["language"] for cell in content["protocols"]["likelihood"]["cells"]]
    assert languages == ["en", "vi", "ar", "zh"]
    assert "2 evaluated tables are not in the preset and left out." in content["notes"]
    written = (tmp_path / "out" / "compare.md").read_text()
    section = written[written.index("## Beside the published figures") :]
    (row,) = re.findall(r"\| DFT feature, LLaMA-2-7B published *\| 43\.5 *\| 34\.38 *\| 37\.64 *\|.*", section)
    assert row.rstrip("| ").endswith("38.51")
    cells = {cell["language"]: cell["entries"]["b"]["score"] for cell in content["protocols"]["likelihood"]["cells"]}
    values = [f"{100 * cells[code]:.1f}" for code in ("vi", "ar", "zh")]
    assert re.search(r"\| b here *\| " + r" *\| ".join(values), section)


def test_the_other_paper_publishes_averages(tmp_path: Path) -> None:
    languages = ("ar", "el", "en", "hi", "ru", "sw", "th", "tr", "ur", "zh")
    benchmarks = {"generation.cc_xnli": languages, "generation.cc_xlsum": ("ar", "en")}
    run = str(write_run(tmp_path / "a", {}, benchmarks=benchmarks, items=50))
    content = compare([run], output=str(tmp_path / "out"), preset="cc")
    cells = content["protocols"]["generation"]["cells"]
    mean = np.mean([cell["entries"]["a"]["score"] for cell in cells if cell["benchmark"] == "cc_xnli"])
    written = (tmp_path / "out" / "compare.md").read_text()
    assert re.search(rf"\| cc_xnli accuracy *\| 53\.06 \(best average\) *\| {100 * mean:.1f} *\|", written)
    assert re.search(r"\| cc_xlsum ROUGE-L *\| 13\.05 \(best average\) *\| – 2 of 10 languages *\|", written)
    with pytest.raises(PivotuneError, match="preset: got 'both'"):
        compare([run], output=str(tmp_path / "out"), preset="both")


def test_adherence_is_counted(two: tuple[str, str], tmp_path: Path) -> None:
    compare(list(two), output=str(tmp_path / "out"))
    written = (tmp_path / "out" / "compare.md").read_text()
    section = written[written.index("## Answers in the asked language") :]
    counts = re.findall(r"(\d+) yes, (\d+) no, (\d+) open", section)
    assert len(counts) == 6 and all(sum(map(int, one)) == 400 for one in counts)
    assert "### xnli" not in section  # options are ranked there, nothing is answered


def write_log(run: Path, terms: Mapping[str, float]) -> None:
    log: list[dict[str, Any]] = [
        {"loss": 3.0 / k, "grad_norm": 1.0, "learning_rate": 1e-5, "step": 10 * k, "epoch": k / 3}
        | {name: value / k for name, value in terms.items()}
        for k in (1, 2, 3)
    ]
    log.append({"train_runtime": 5400.0, "train_samples_per_second": 12.5, "train_loss": 2.0, "step": 30})
    (run / "training_log.json").write_text(json.dumps(log))


def test_training_is_shown_term_by_term(two: tuple[str, str], tmp_path: Path) -> None:
    write_log(Path(two[0]), {"lm": 2.0})
    write_log(Path(two[1]), {"lm": 2.0, "english_thinking": 4.0})
    compare(list(two), output=str(tmp_path / "out"))
    written = (tmp_path / "out" / "compare.md").read_text()
    row = next(line for line in written.splitlines() if "→" in line and line.startswith("| better"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["better", "30", "90 min", "12.5", "3 → 1", "2 → 0.667", "4 → 1.33"]
    assert (tmp_path / "out" / "plots" / "training.english_thinking.svg").is_file()


def lens_report() -> dict[str, Any]:
    columns = {"mean": [2.0, 1.0], "low": [1.9, 0.9], "high": [2.1, 1.1]}
    tables = {"target": {"run": columns, "baseline": None, "difference": None, "n": 9}}
    summary = {"run": None, "baseline": None}
    return {
        "run": "better",
        "baseline": None,
        "layers": {"conversion": 1, "thinking": 2, "count": 2},
        "languages": {"zh": {"examples": 9, "entropy": {"tables": tables, "summary": summary}}},
        "projection": None,
    }


def test_the_lens_has_a_section(two: tuple[str, str], tmp_path: Path) -> None:
    path = Path(two[1]) / "lens" / "lens.json"
    path.parent.mkdir()
    path.write_text(json.dumps(lens_report()))
    compare(list(two), output=str(tmp_path / "out"))
    written = (tmp_path / "out" / "compare.md").read_text()
    assert "## Layer by layer" in written and "entropy, nats" in written
    assert (tmp_path / "out" / "plots" / "lens-better" / "entropy.png").is_file()
    # Another run of the same name keeps its own pictures.
    other = write_run(tmp_path / "other" / "better", {}, draw=3)
    (other / "lens").mkdir()
    (other / "lens" / "lens.json").write_text(json.dumps(lens_report()))
    compare([*two, str(other)], output=str(tmp_path / "three"))
    assert len(list((tmp_path / "three" / "plots").glob("lens-*better/entropy.png"))) == 2
    path.write_text(json.dumps({"run": "x"}))
    with pytest.raises(PivotuneError, match=re.escape(f"{path}: is no report of `pivotune lens`")):
        compare(list(two), output=str(tmp_path / "out"), overwrite=True)


def test_a_single_run_has_scores_and_no_tests(two: tuple[str, str], tmp_path: Path) -> None:
    content = compare([two[0]], output=str(tmp_path / "out"))
    for results in content["protocols"].values():
        assert all("p" not in cell["entries"]["base"] for cell in results["cells"])
    assert "Holm" not in (tmp_path / "out" / "compare.md").read_text()


def test_the_page_fits_every_screen_and_asks_for_nothing(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / "base", {}, draw=1))]
    runs += [
        f"a-long-name-of-a-run-without-any-place-to-break-{k}={write_run(tmp_path / str(k), gain, draw=k)}"
        for k in (2, 3, 4, 5)
    ]
    write_log(tmp_path / "base", {"lm": 1.0})
    output = tmp_path / "out"
    compare(runs, output=str(output))
    page = output / "compare.html"
    with chromium() as browser:
        for width, height in ((390, 844), (1280, 900)):
            for scheme in ("light", "dark"):
                browser.open(page, width, height, scheme)
                assert browser.ask("document.documentElement.scrollWidth") <= width
                assert browser.ask("document.body.scrollWidth") <= width
                tables = "[...document.querySelectorAll('.scroll')]"
                wide = browser.ask(f"{tables}.some(one => one.scrollWidth > one.clientWidth)")
                assert wide or width > 600  # a wide table scrolls inside itself
                # The first column stays in place.
                place = "getBoundingClientRect().x"
                browser.ask(f"{tables}[0].scrollLeft = 200")
                moved = browser.ask(f"{tables}[0].querySelector('tbody th').{place} - {tables}[0].{place}")
                assert abs(moved) <= 1
                assert browser.ask("document.images.length") > 0
                browser.ask("document.querySelectorAll('img').forEach(one => one.loading = 'eager')")
                asked = [url for url in browser.requests if not url.startswith("data:")]
                assert asked == [page.resolve().as_uri()]
                paper = browser.ask("getComputedStyle(document.body).backgroundColor")
                assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
                assert browser.ask(CONTRAST) >= 4.5
