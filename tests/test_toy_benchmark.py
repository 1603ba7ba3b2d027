"""A benchmark is one definition and one entry in the table: these are defined here, and everything works with them.

The first has a reader, a prompt and a scorer of its own. The second is nothing but tasks of lm-evaluation-harness.
Nothing of `src/` knows their names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest

from benchmarks.harness_equality import write_hub
from pivotune.cli import main
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import BENCHMARKS, PRESETS, Benchmark, Item, harness_task, load
from pivotune.evaluation.benchmarks.files import Folder, read_jsonl, text
from pivotune.evaluation.benchmarks.harness import TaskData
from pivotune.evaluation.benchmarks.items import Located
from pivotune.evaluation.results import ItemResult, read_items
from tests.evaluation.benchmarks.made_up import folder, put_lines
from tests.runs import write_base

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra pivotune[evaluation]")

__all__ = ["folder"]


def read(folder: Folder, language: str, split: str) -> list[Located]:
    return [
        (
            where,
            Item(
                id=text(row, "id", where),
                benchmark="riddles",
                language=language,
                prompt=f"{text(row, 'riddle', where)} =",
                answers=(text(row, "answer", where),),
            ),
        )
        for where, row in read_jsonl(folder.find(f"riddles/{language}.jsonl"), dict)
    ]


def score(item: Item, answer: str) -> ItemResult:
    """The length of the answer, which any model has."""
    return ItemResult(id=item.id, score=min(len(answer), 100) / 100, prediction=answer, scores={"letters": len(answer)})


RIDDLES = Benchmark(
    name="riddles",
    title="Riddles of the Sphinx",
    citation="Sphinx, Questions to Travellers",
    languages=("en", "vi"),
    score=score,
    first_line=True,
    read=read,
    splits=("test",),
    source="https://riddles.example",
    paper="dft",
    reported=("vi",),
    figures={"TFT": (12.5,)},
)

TASKS = TaskData({"vi": "xcopa_vi", "en": "copa"})
CAUSES = Benchmark(
    name="causes", title="Causes", citation="-", languages=("en", "vi"), chance=1 / 2, task=TASKS.task, hub=TASKS
)


@pytest.fixture(autouse=True)
def in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for benchmark in (RIDDLES, CAUSES):
        monkeypatch.setitem(BENCHMARKS, benchmark.name, benchmark)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_base(tmp_path_factory.mktemp("base"), max_position_embeddings=1024))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for language in RIDDLES.languages:
        rows = [{"id": f"r{n}", "riddle": f"{language} {n} + {n}", "answer": str(2 * n)} for n in range(5)]
        put_lines(tmp_path / "data/riddles" / f"{language}.jsonl", rows)
    return tmp_path / "data"


def test_the_command_evaluates_it(base: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    options = ["--data_dir", str(data), "--output", str(output), "--max_new_tokens", "4"]
    main(["evaluate", base, "--benchmarks", "riddles", "--limit", "2", *options])
    path = output / "items/generation.riddles.vi.none.jsonl"
    first, second = read_items(path)[0]
    assert first.scores["letters"] == len(first.prediction or "") and "\n" not in f"{first.prediction}"
    main(["evaluate", base, "--benchmarks", "riddles", "--languages", "vi,en", *options])
    found = read_items(path)[0]
    assert len(found) == 5 and found[:2] == [first, second]
    printed = capsys.readouterr().out
    assert "riddles" in printed
    cells = json.loads((output / "scores.json").read_text("utf-8"))["protocols"]["generation"]["cells"]
    assert {(cell["benchmark"], cell["language"]) for cell in cells} == {("riddles", "vi"), ("riddles", "en")}
    (mean,) = (cell["mean"] for cell in cells if cell["language"] == "vi")
    assert mean == pytest.approx(sum(one.score for one in found) / 5)

    shutil.copytree(output, tmp_path / "other")
    main(
        ["compare", f"a={output}", f"b={tmp_path / 'other'}", "--preset", "dft", "--output", str(tmp_path / "compared")]
    )
    page = (tmp_path / "compared/compare.md").read_text("utf-8")
    assert "Riddles of the Sphinx (riddles)" in page and "12.5" in page


def test_it_has_its_english_its_checks_and_its_figures(data: Path, tmp_path: Path) -> None:
    first = load("riddles", "vi", data)[0]
    assert first.english is not None and first.english.prompt == "en 0 + 0 ="
    with pytest.raises(PivotuneError, match="riddles is not available in 'ar'; choose among en, vi"):
        load("riddles", "ar", data)
    with pytest.raises(PivotuneError, match=r"holds riddles: put https://riddles\.example into a folder"):
        load("riddles", "vi")
    with pytest.raises(PivotuneError, match=r"riddles/vi\.jsonl: no such file. Get it from https://riddles\.example"):
        (data / "riddles/vi.jsonl").unlink()
        load("riddles", "vi", data)
    assert PRESETS["dft"].languages["riddles"] == ("vi",)
    (figure,) = (one for one in PRESETS["dft"].published if one.benchmark == "riddles")
    assert (figure.method, figure.language, figure.value) == ("TFT", "vi", 12.5)
    with pytest.raises(ValueError, match="riddles: give a task"):
        Benchmark(name="riddles", title="", citation="", languages=("en",), read=read)
    with pytest.raises(ValueError, match="riddles: give read, hub or both"):
        Benchmark(name="riddles", title="", citation="", languages=("en",), score=score)


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XCOPA's and COPA's data sets in the working directory, where `datasets` looks first."""
    write_hub(folder, [("xcopa", "vi"), ("xcopa", "en")], tmp_path / "hub")
    monkeypatch.chdir(tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("language", ["vi", "en"])
def test_tasks_of_the_harness_are_a_benchmark(language: str, base: str, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    output = tmp_path / "out"
    main(["evaluate", base, "--benchmarks", "causes", "--languages", language, "--output", str(output)])
    ours, _ = read_items(output / "items" / f"likelihood.causes.{language}.none.jsonl")
    lm = HFLM(base, device="cpu", batch_size=16)
    name = TASKS.tasks[language]
    theirs = lm_eval.simple_evaluate(model=lm, tasks=[name], bootstrap_iters=0)["samples"][name]
    assert sorted(one.id for one in ours) == [f"{language}/{n}" for n in (1, 2, 3)]
    for one, sample in zip(sorted(ours, key=lambda one: one.id), theirs, strict=True):
        assert one.loglikelihoods == pytest.approx([answer[0][0] for answer in sample["resps"]], rel=1e-5)
        assert one.score == sample["acc"] and one.gold == sample["doc"]["label"]


@pytest.mark.usefixtures("hub")
def test_what_a_task_cannot_be_read_from(data: Path) -> None:
    items = load("causes", "vi")
    assert harness_task(items).name == "xcopa_vi" and all(item.english is None for item in items)
    with pytest.raises(PivotuneError, match="causes cannot be read from files"):
        load("causes", "vi", data)
    with pytest.raises(PivotuneError, match="split: got 'val', but from the hub it is 'that of the task'"):
        load("causes", "vi", split="val")
    for task, message in (("xcopa_xx", "cannot load its task"), ("gsm8k", "cannot load its task")):
        with pytest.raises(PivotuneError, match=f"causes: lm-evaluation-harness {message} {task}"):
            TaskData({"vi": task}).items("causes", "vi")
