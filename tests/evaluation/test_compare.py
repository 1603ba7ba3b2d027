"""Comparisons of made-up results whose truth is known, and the page they are shown on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pivotune.cli import main
from pivotune.errors import PivotuneError
from pivotune.evaluation.compare import CellName, Comparison, Entry, collect, compare
from pivotune.evaluation.results import BenchmarkInfo, Evaluation, ItemResult, ItemWriter, Key, write_evaluation

INFOS = {
    "likelihood.xnli": BenchmarkInfo(protocol="likelihood", metric="accuracy", chance=1 / 3),
    "likelihood.xcopa": BenchmarkInfo(protocol="likelihood", metric="accuracy", chance=1 / 2),
    "generation.xquad": BenchmarkInfo(protocol="generation", metric="f1", chance=0.0),
    "generation.cc_xnli": BenchmarkInfo(protocol="generation", metric="accuracy", chance=1 / 3),
    "generation.cc_xlsum": BenchmarkInfo(protocol="generation", metric="rouge_l"),
}


def difficulty(cell: CellName, items: int) -> np.ndarray:
    """Of each item, the same for every run."""
    return np.random.default_rng(sum(map(ord, "".join(cell)))).normal(size=items)


def write_run(
    folder: Path,
    skill: Mapping[tuple[str, str], float] | Callable[[str, str], float],
    *,
    benchmarks: Mapping[str, tuple[str, ...]] | None = None,
    seed: int | None = None,
    draw: int = 0,
    items: int = 400,
    connection: str = "none",
    config: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    keep: Callable[[int], bool] = lambda k: True,
) -> Path:
    """An evaluated run folder. `skill` of (benchmark, language): the share of right answers, as a log odds."""
    given = skill if callable(skill) else lambda benchmark, language: skill.get((benchmark, language), 0.0)
    benchmarks = benchmarks or {"likelihood.xnli": ("en", "zh", "vi"), "generation.xquad": ("en", "zh", "vi")}
    folder.mkdir(parents=True, exist_ok=True)
    recorded = {"format": 1, "method": "sft", "base_model": "base", **(info or {})}
    (folder / "pivotune.json").write_text(json.dumps(recorded), encoding="utf-8")
    model = {"base_model": "base", "method": recorded["method"], "seed": seed}
    write_evaluation(
        folder / "evaluation",
        Evaluation(
            run=str(folder),
            model=model,
            connection=connection,
            config={"limit": None, **(config or {})},
            versions={"pivotune": "0.1.0"},
            benchmarks={name: INFOS[name] for name in benchmarks},
        ),
    )
    chance = np.random.default_rng(1000 + draw)
    for name, languages in benchmarks.items():
        protocol, _, benchmark = name.partition(".")
        for language in languages:
            odds = given(benchmark, language) - difficulty(CellName(protocol, benchmark, language), items)
            right = chance.logistic(size=items) < odds
            graded = INFOS[name].metric != "accuracy"
            made = [
                ItemResult(
                    id=f"q{k}",
                    score=round(float(one * chance.uniform(0.4, 1.0)), 3) if graded else float(one),
                    prediction="some answer" if protocol == "generation" else None,
                    choice=None if graded else int(one),
                    gold=None if graded else 1,
                    in_language=None if protocol == "likelihood" or k % 5 == 0 else bool(chance.random() < 0.9),
                )
                for k, one in enumerate(right)
                if keep(k)
            ]
            with ItemWriter(folder / "evaluation", Key(protocol, benchmark, language, connection)) as writer:
                writer.append(*made)
    return folder


def gain(benchmark: str, language: str) -> float:
    """Better at xnli in Chinese, worse in English, else the same."""
    return {("xnli", "zh"): 1.0, ("xnli", "en"): -1.0}.get((benchmark, language), 0.0)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A baseline and a run with one planted gain and one planted loss."""
    return str(write_run(tmp_path / "base", {}, draw=1)), str(write_run(tmp_path / "better", gain, draw=2))


def test_a_planted_gain_and_loss_are_marked_and_noise_is_not(two: tuple[str, str]) -> None:
    comparison = Comparison(collect(two))
    changes = {
        (cell.benchmark, cell.language): row["better"].change
        for results in comparison.results.values()
        for cell, row in results.cells.items()
    }
    assert changes.pop(("xnli", "zh")) == "up"
    assert changes.pop(("xnli", "en")) == "down"
    assert set(changes.values()) == {""}
    tests = {cell.benchmark: row["better"].test for r in comparison.results.values() for cell, row in r.cells.items()}
    assert tests == {"xnli": "mcnemar", "xquad": "sign-flip"}


def test_the_baseline_can_be_chosen_by_name_and_by_folder(two: tuple[str, str]) -> None:
    for baseline in ("better", two[1]):
        comparison = Comparison(collect(two), baseline)
        cell = CellName("likelihood", "xnli", "zh")
        assert [entry.name for entry in comparison.entries] == ["better", "base"]
        assert comparison.results["likelihood"].cells[cell]["base"].change == "down"
    with pytest.raises(PivotuneError, match="baseline: got 'nobody'; choose one of the compared runs: base, better"):
        Comparison(collect(two), "nobody")


def test_seeds_of_one_run_are_summarised(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / "base", {}, draw=50))]
    runs += [
        str(write_run(tmp_path / f"zh-seed{s}", gain, seed=s, draw=s, info={"method": "both", "seed": s}))
        for s in (2, 0, 1)
    ]
    comparison = Comparison(collect(runs))
    assert [entry.name for entry in comparison.entries] == ["base", "zh"]
    assert [member.seed for member in comparison.entries[1].members] == [0, 1, 2]
    found = comparison.results["likelihood"].cells[CellName("likelihood", "xnli", "zh")]["zh"]
    assert len(found.score.seeds) == 3 and found.test == "crossed" and found.change == "up"
    assert found.score.mean == pytest.approx(np.mean(found.score.seeds))
    assert found.score.sd == pytest.approx(np.std(found.score.seeds, ddof=1))
    assert found.score.minimum <= found.score.mean <= found.score.maximum
    assert any("3 seeds (0, 1, 2)" in note for note in comparison.notes)


def test_runs_that_differ_in_more_than_the_seed_stay_apart(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {}, seed=0, info={"deep_supervision": {"thinking_weight": 1.0}})
    b = write_run(tmp_path / "b", {}, seed=1, info={"deep_supervision": {"thinking_weight": 0.5}})
    c = write_run(tmp_path / "c", {})
    assert [entry.name for entry in collect([str(a), str(b), str(c)])] == ["a", "b", "c"]
    together = Comparison(collect([f"mine={a},{b}", str(c)]))
    assert [len(entry.members) for entry in together.entries] == [2, 1]
    assert "mine: its runs differ in more than the seed." in together.warnings


def test_a_run_given_twice_is_an_error(two: tuple[str, str]) -> None:
    with pytest.raises(PivotuneError, match="given twice"):
        collect([two[0], f"{two[0]}/evaluation"])


def test_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / parent / "run", {}, items=20)) for parent in ("sft", "deep")]
    assert [entry.name for entry in collect(runs)] == ["sft/run", "deep/run"]


def test_missing_items_are_left_out_on_both_sides_and_counted(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {})
    b = write_run(tmp_path / "b", {}, keep=lambda k: k >= 100, config={"limit": 300})
    comparison = Comparison(collect([str(a), str(b)]))
    for row in comparison.results["likelihood"].cells.values():
        assert {one.score.items for one in row.values()} == {300}
    remark = "Compared on the 300 items that all have, of 400 (a: 400, b: 300): xquad en, xquad vi, xquad zh, xnli en"
    assert any(one.startswith(remark) for one in comparison.warnings)
    assert "limit differs: a: null, b: 300." in comparison.warnings


def test_runs_without_a_common_item_are_an_error(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {}, keep=lambda k: k < 200)
    b = write_run(tmp_path / "b", {}, keep=lambda k: k >= 200)
    with pytest.raises(PivotuneError, match="xquad en: a: 200 items, b: 200 items, none of them the same"):
        Comparison(collect([str(a), str(b)]))


def test_another_right_option_for_an_id_is_an_error(two: tuple[str, str]) -> None:
    path = Path(two[1]) / "evaluation" / "items" / "likelihood.xnli.zh.none.jsonl"
    path.write_text(path.read_text().replace('"gold": 1', '"gold": 0', 1))
    with pytest.raises(PivotuneError, match="xnli zh: item 'q0' has another right option in another run"):
        Comparison(collect(two))


def test_a_broken_line_is_named(two: tuple[str, str]) -> None:
    path = Path(two[1]) / "evaluation" / "items" / "likelihood.xnli.zh.none.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = lines[6][:20]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(PivotuneError, match=re.escape(f"{path}:7: malformed line")):
        collect(two)


def test_a_torn_line_is_left_out_and_reported(two: tuple[str, str]) -> None:
    path = Path(two[1]) / "evaluation" / "items" / "likelihood.xnli.zh.none.jsonl"
    path.write_text(path.read_text()[:-10])
    warnings = Comparison(collect(two)).warnings
    assert any(f"{path}: ends in a line without its end" in one for one in warnings)
    assert "Compared on the 399 items that all have, of 400 (base: 400, better: 399): xnli zh." in warnings


def test_connections_are_entries_of_their_own_and_share_english(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", {})
    run = write_run(tmp_path / "cc", {}, connection="matrix", draw=3)
    for path in list((run / "evaluation" / "items").iterdir()):
        key = Key.of_file(path)
        if key.language == "en":
            path.rename(path.with_name(key._replace(connection="none").filename))
        else:
            shutil.copy(path, path.with_name(key._replace(connection="english").filename))
    comparison = Comparison(collect([str(base), str(run)]))
    assert sorted(entry.name for entry in comparison.others) == ["cc (english)", "cc (matrix)"]
    for name in ("cc (english)", "cc (matrix)"):
        assert name in comparison.results["likelihood"].cells[CellName("likelihood", "xnli", "en")]
    assert any(one.startswith("connection differs: base: none") for one in comparison.warnings)


def test_evaluations_beside_a_run_are_named_after_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "cc", {}, connection="matrix", items=20)
    write_run(tmp_path / "elsewhere", {}, connection="none", items=20)
    (tmp_path / "elsewhere" / "evaluation").rename(tmp_path / "cc-none")
    path = tmp_path / "cc-none" / "evaluation.json"
    path.write_text(path.read_text().replace(str(tmp_path / "elsewhere"), str(run)))
    entries = collect([str(run), str(path.parent)])
    assert [entry.name for entry in entries] == ["cc (matrix)", "cc (none)"]
    assert all(member.run == run for entry in entries for member in entry.members)
    with pytest.raises(PivotuneError, match="two entries are named 'a'"):
        collect([f"a={run}", f"a={path.parent}"])


def test_files_that_differ_are_reported(tmp_path: Path) -> None:
    data = [{"data_dir": {"path": "data", "digests": {"xnli.zh": digest}}} for digest in ("1", "2")]
    runs = [str(write_run(tmp_path / str(k), {}, items=20, config=one)) for k, one in enumerate(data)]
    assert "The benchmark files differ between the runs: xnli.zh." in Comparison(collect(runs)).warnings


def test_averages_are_means_of_cells_and_leave_english_out(tmp_path: Path) -> None:
    benchmarks = {"likelihood.xnli": ("en", "zh", "vi"), "likelihood.xcopa": ("en", "zh")}
    runs = [write_run(tmp_path / name, {}, benchmarks=benchmarks, draw=d) for d, name in enumerate("ab")]
    results = Comparison(collect(list(map(str, runs)))).results["likelihood"]
    score = {(c.benchmark, c.language): row["b"].score.mean for c, row in results.cells.items()}
    assert results.benchmarks["xnli"]["b"].score.mean == pytest.approx((score["xnli", "zh"] + score["xnli", "vi"]) / 2)
    assert results.languages["zh"]["b"].score.mean == pytest.approx((score["xnli", "zh"] + score["xcopa", "zh"]) / 2)
    assert "vi" not in results.languages  # a single benchmark: its own row says it
    foreign = [value for (_, language), value in score.items() if language != "en"]
    assert results.overall["b"].score.mean == pytest.approx(np.mean(foreign))


def test_a_cell_that_one_run_lacks_is_shown_but_not_averaged(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {}, benchmarks={"likelihood.xnli": ("zh", "vi", "ar")})
    b = write_run(tmp_path / "b", {}, benchmarks={"likelihood.xnli": ("zh", "vi")})
    comparison = Comparison(collect([str(a), str(b)]))
    results = comparison.results["likelihood"]
    assert set(results.cells[CellName("likelihood", "xnli", "ar")]) == {"a"}
    cells = [results.cells[CellName("likelihood", "xnli", code)]["a"].score.mean for code in ("zh", "vi")]
    assert results.benchmarks["xnli"]["a"].score.mean == pytest.approx(np.mean(cells))
    assert "Not in every run, so not in the averages: xnli ar." in comparison.warnings
    assert any("whether English is retained is not known" in one for one in comparison.warnings)


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


def test_protocols_are_never_mixed(two: tuple[str, str], tmp_path: Path) -> None:
    compare(list(two), output=str(tmp_path / "out"))
    found = Tables((tmp_path / "out" / "compare.html").read_text())
    for table in found.tables:
        assert not ("generation" in table and "likelihood" in table)
        assert not ("xquad" in table and "xnli" in table)


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
    (row,) = re.findall(r"\| DFT feature published, LLaMA-2-7B *\| 43\.5 *\| 34\.38 *\| 37\.64 *\|.*", section)
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
    assert re.search(rf"\| cc_xnli *\| 53\.06 *\| {100 * mean:.1f} *\|", written)
    assert re.search(r"\| cc_xlsum *\| 13\.05 *\| – 2 of 10 languages *\|", written)
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
    tables = {"target": {"run": columns, "against": None, "difference": None, "n": 9}}
    summary = {"run": None, "against": None}
    return {
        "run": "better",
        "against": None,
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
    path.write_text(json.dumps({"run": "x"}))
    with pytest.raises(PivotuneError, match=re.escape(f"{path}: is no report of `pivotune lens`")):
        compare(list(two), output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs: none given"),
        (["nowhere"], "nowhere: no such folder"),
        (["a="], "got 'a='; write NAME=RUN"),
        (["."], "holds no evaluation"),
    ],
)
def test_what_cannot_be_compared(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PivotuneError, match=message):
        compare(arguments)


def test_a_single_run_has_scores_and_no_tests(two: tuple[str, str], tmp_path: Path) -> None:
    content = compare([two[0]], output=str(tmp_path / "out"))
    for results in content["protocols"].values():
        assert all("p" not in cell["entries"]["base"] for cell in results["cells"])
    assert "Holm" not in (tmp_path / "out" / "compare.md").read_text()


# In a browser --------------------------------------------------------------------------------------------------------


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """Headless Chromium by its DevTools protocol, over a pipe: JSON messages that end in a zero byte."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self._commands, self._answers, self._id = commands, answers, 0
        self.requests: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._read()).get("id") != self._id:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        raw = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "Chromium ended"
            raw += byte
        message: dict[str, Any] = json.loads(raw)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def open(self, path: Path, width: int, height: int, scheme: str) -> None:
        self.requests.clear()
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def ask(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


@contextmanager
def chromium() -> Iterator[Browser]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("no chromium or google-chrome on this machine")
    to_read, to_write = os.pipe()
    answer_read, answer_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += ["--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]
        # Chromium reads from file 3 and writes to file 4.
        command = f'exec "$@" 3<&{to_read} 4>&{answer_write}'
        process = subprocess.Popen(
            ["bash", "-c", command, "chromium", binary, *options, f"--user-data-dir={profile}"],
            pass_fds=(to_read, answer_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(answer_write)
        try:
            with os.fdopen(to_write, "wb") as commands, os.fdopen(answer_read, "rb") as answers:
                yield Browser(commands, answers)
        finally:
            process.kill()
            process.wait()


CONTRAST = """(() => {
  const light = color => { const v = color.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const behind = node => { while (node) { const c = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c; node = node.parentElement; } return 'rgb(255, 255, 255)'; };
  let least = 99;
  for (const node of document.querySelectorAll('p, td, th, li, .small, .delta, caption span, a, summary')) {
    const a = light(getComputedStyle(node).color), b = light(behind(node));
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least; })()"""


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


def test_entries_need_no_files(two: tuple[str, str]) -> None:
    """From Python, entries can be put together by hand."""
    base, better = collect(two)
    entries = [Entry("A", base.members, "none"), Entry("B", better.members, "none")]
    assert Comparison(entries).results["likelihood"].cells[CellName("likelihood", "xnli", "zh")]["B"].change == "up"
