"""The benchmarks from the hub: its rows, made of the publishers' miniature files, give the items of these files.

The `datasets` library prefers a folder of a data set's name in the working directory to the hub.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from benchmarks.harness_equality import ROWS
from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import BENCHMARKS, PRESETS, Item, load
from pivotune.evaluation.benchmarks.files import Folder
from tests.evaluation.benchmarks.made_up import ON_HUB, Row, mlqa_rows, other


def as_on_the_hub(item: Item) -> Item:
    """An item of the files with the id that it has on the hub."""
    split = {"xcopa": "validation" if item.language == "en" else "test"}.get(item.benchmark)
    key = f"{split}/{item.id}" if split else item.id.replace("/val/", "/test/")
    return replace(item, id=key)


@pytest.mark.parametrize("name", [name for name in ON_HUB if name != "truthfulqa"])
def test_the_hub_gives_the_items_of_the_files(name: str, folder: Path, hub: Path) -> None:
    for language in ("en", other(name)):
        wanted = [as_on_the_hub(item) for item in load(name, language, folder, english=False)]
        assert load(name, language, english=False) == wanted
        assert load(name, language, limit=1, english=False) == wanted[:1]
    english = {item.id: item for item in load(name, "en")}
    for item in load(name, other(name)):
        # English COPA's are other questions.
        assert item.english == (None if name == "xcopa" else english[item.id])


@pytest.mark.parametrize("name", ["xquad", "xnli", "xcopa"])
def test_the_publishers_files_as_rows_of_the_hub(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = shared_data / "bench"
    benchmark = BENCHMARKS[name]
    for language in benchmark.languages:
        rows = list(ROWS[name](Folder(bench, ""), language))
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, rows=rows, **__: rows)
        wanted = [as_on_the_hub(item) for item in load(name, language, bench, english=False)]
        assert load(name, language, english=False) == wanted


@pytest.mark.parametrize("name", [name for name in ON_HUB if name != "mkqa"])
def test_the_data_set_is_that_of_the_harness(name: str) -> None:
    """Data set, configuration and split of the harness's own task. It has no MKQA."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    yaml = pytest.importorskip("yaml")
    tasks = Path(lm_eval.__file__).parent / "tasks"
    places = {
        "xquad": "xquad/xquad_{}.yaml",
        "mlqa": "mlqa/mlqa_{0}_{0}.yaml",
        "truthfulqa": "okapi/truthfulqa_multilingual/truthfulqa_{}_mc1.yaml",
        "xnli": "xnli/xnli_{}.yaml",
        "xcopa": "xcopa/default_{}.yaml",
        "xstorycloze": "xstorycloze/default_{}.yaml",
        "mmlu": "okapi/mmlu_multilingual/m_mmlu_{}.yaml",
    }
    english = {"xcopa": "super_glue/copa/default.yaml", "truthfulqa": "truthfulqa/truthfulqa_mc1.yaml"}

    def settings(path: Path) -> dict[str, Any]:
        own = yaml.safe_load(path.read_text("utf-8").replace("!function ", ""))
        included = settings(path.parent / own.pop("include")) if "include" in own else {}
        return {**included, **own}

    benchmark = BENCHMARKS[name]
    assert benchmark.hub is not None
    for language in benchmark.languages:
        place = english.get(name, places[name]) if language == "en" else places[name]
        task = settings(tasks / place.format(language))
        split = task.get("test_split") or task["validation_split"]
        assert benchmark.hub.of(language) == (task["dataset_path"], task["dataset_name"], split)


@pytest.mark.parametrize("name", ON_HUB)
def test_no_network_is_one_clear_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = BENCHMARKS[name].hub.of(other(name))[0]  # type: ignore[union-attr]
    with pytest.raises(PivotuneError) as caught:
        load(name, other(name))
    message = str(caught.value)
    assert message.startswith(f"data_dir: not given, and the data set of {name} on the hub, {path} (")
    assert "--data_dir" in message and "network" in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("xquad", [], r"hub:google/xquad xquad\.vi validation: empty data set"),
        ("xquad", [{"text": "a"}], r"wrong data set|field 'context' is missing"),
        (
            "xquad",
            [{"id": "1", "context": "c", "question": "q"}],
            r"wrong data set: its rows have the fields id, context",
        ),
        ("mkqa", [{"query": "q"}], r"hub:apple/mkqa mkqa train: wrong data set: .*query.*'answers'"),
        ("xnli", [{"premise": "a", "hypothesis": "b", "label": -1}], r"row 1: bad gold: field 'label' is -1"),
        ("xcopa", [{"premise": "a", "choice1": "b"}], r"row 1: bad field: field 'choice2' is missing"),
        ("xstorycloze", [{f"input_sentence_{n}": "a" for n in range(1, 5)}], r"'sentence_quiz1' is missing"),
        ("mmlu", [{"id": "anatomy/dev/1", "answer": "A"}], r"expected '<subject>/test/<row>'"),
        (
            "truthfulqa",
            [{"question": "q", "mc1_targets_choices": ["a", "b"], "mc1_targets_labels": [1, 1]}],
            r"row 1: bad gold: 2 options with the labels \[1, 1\]",
        ),
        ("truthfulqa", [{"question": "q"}], r"'choices' is None|wrong data set"),
    ],
)
def test_other_rows_are_one_clear_error(
    name: str, rows: list[Row], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    language = "ar" if name == "xstorycloze" else "vi"
    with pytest.raises(DataError, match=message):
        load(name, language)


def test_of_a_script_the_copy_in_parquet_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, *args: Any, **options: Any) -> Any:
        asked.append((path, *args, options))
        if path != "parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found mlqa.py")
        return mlqa_rows(folder, "vi")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("mlqa", "vi", english=False) == load("mlqa", "vi", folder, english=False)
    copy = "hf://datasets/facebook/mlqa@refs/convert/parquet/mlqa.vi.vi/test/*.parquet"
    assert asked == [
        ("facebook/mlqa", "mlqa.vi.vi", {"split": "test"}),
        ("parquet", {"data_files": copy, "split": "train"}),
    ]


def test_what_the_hub_has_not_needs_the_files() -> None:
    assert {name for name in BENCHMARKS if name not in ON_HUB} == set(PRESETS["cc"].benchmarks)
    for name in PRESETS["cc"].benchmarks:
        with pytest.raises(PivotuneError) as caught:
            load(name, "en")
        assert re.match(
            rf"data_dir: not given, and no data set of the hub holds {name}: .*CC-Tuning", str(caught.value)
        )
        assert "docs/benchmarks.md" in str(caught.value) and "--data_dir" in str(caught.value)


def test_the_hubs_split_is_fixed() -> None:
    with pytest.raises(PivotuneError, match=r"split: got 'val', but from the hub it is 'test'; leave it out"):
        load("xcopa", "vi", split="val")
