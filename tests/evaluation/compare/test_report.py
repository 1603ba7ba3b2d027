"""The page that a comparison is shown on: its files, its sections, and how it looks in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pivotune.cli import main
from pivotune.errors import PivotuneError
from pivotune.evaluation.compare import compare
from tests.evaluation.compare.browser import Tables
from tests.evaluation.compare.made_up import write_run


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


def test_a_single_run_has_scores_and_no_tests(two: tuple[str, str], tmp_path: Path) -> None:
    content = compare([two[0]], output=str(tmp_path / "out"))
    for results in content["protocols"].values():
        assert all("p" not in cell["entries"]["base"] for cell in results["cells"])
    assert "Holm" not in (tmp_path / "out" / "compare.md").read_text()
