"""The benchmarks from the hub: its rows, made of the publishers' miniature files, give the items of these files.

The `datasets` library prefers a folder of a data set's name in the working directory to the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from benchmarks.harness_equality import ROWS
from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import BENCHMARKS, PRESETS, Item, harness_task, load
from pivotune.evaluation.benchmarks.files import Folder
from tests.evaluation.test_benchmarks import folder as benchmark_files
from tests.evaluation.test_benchmarks import other, put, put_lines

folder = benchmark_files
Row = dict[str, Any]
ON_HUB = [name for name, benchmark in BENCHMARKS.items() if benchmark.hub is not None]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def squad_rows(path: Path, strip: bool) -> list[Row]:
    return [
        {
            "id": asked["id"],
            "context": paragraph["context"],
            "question": asked["question"].strip() if strip else asked["question"],
            "answers": {key: [answer[key] for answer in asked["answers"]] for key in ("answer_start", "text")},
        }
        for article in json.loads(path.read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


def xquad_rows(root: Path, language: str) -> list[Row]:
    return squad_rows(root / f"xquad/xquad.{language}.json", strip=True)


def mlqa_rows(root: Path, language: str) -> list[Row]:
    return squad_rows(root / f"mlqa_dev/dev-context-{language}-question-{language}.json", strip=False)


def mkqa_rows(root: Path, language: str) -> list[Row]:
    """One data set holds all languages; the second question has no answer."""
    rows = []
    for n, golds in enumerate(lines(root / "cctuning/MKQA/ans_sample/ar.json"), start=1):
        answers = [{"type": 0, "entity": "Q1", "text": golds[0], "aliases": golds[1:]}]
        rows.append({"queries": {code: f" {code} who {n - 1}" for code in ("en", "ar", "zh_cn")}, "example_id": str(n)})
        rows[-1]["answers"] = {code: answers for code in ("en", "ar", "zh_cn")}
    without = [{"type": 2, "entity": None, "text": None, "aliases": []}]
    rows.insert(1, {**rows[0], "example_id": "7", "answers": dict.fromkeys(("en", "ar", "zh_cn"), without)})
    return rows


def truthfulqa_rows(root: Path, language: str) -> list[Row]:
    choices, labels = ["wrong one", "best", "wrong two"], [0, 1, 0]
    if language == "en":
        return [{"question": f"q{n}", "mc1_targets": {"choices": choices, "labels": labels}} for n in (1, 2, 3)]
    return [{"question": f"q{n}", "mc1_targets_choices": choices, "mc1_targets_labels": labels} for n in (3, 1)]


def xnli_rows(root: Path, language: str) -> list[Row]:
    names = ("entailment", "neutral", "contradiction")
    table = [line.split("\t") for line in (root / f"xnli_dev/dev-{language}.tsv").read_text("utf-8").splitlines()]
    return [{"premise": a, "hypothesis": b, "label": names.index(label)} for a, b, label in table]


def xcopa_rows(root: Path, language: str) -> list[Row]:
    return [{**row, "changed": False} for row in lines(root / f"xcopa/val-{language}.jsonl")]


def xstorycloze_rows(root: Path, language: str) -> list[Row]:
    rows = []
    for n, gold in enumerate(lines(root / f"cctuning/XStoryCloze/ans/{language}.json")):
        story = (f"{language} sun.", "Rain came.", "It is 8.30 now.", f"End {n}")
        columns = {f"input_sentence_{k}": sentence for k, sentence in enumerate(story, start=1)}
        columns |= {"story_id": f"s{n}", "sentence_quiz1": "Yes.", "sentence_quiz2": "No."}
        rows.append({**columns, "answer_right_ending": int(gold)})
    return rows


def mmlu_rows(root: Path, language: str) -> list[Row]:
    if language == "en":
        keys = (("anatomy", 0, "B"), ("anatomy", 1, "D"), ("virology", 0, "A"))
        options = dict(option_a="one", option_b="two", option_c="three", option_d="four")
        return [{"instruction": f"{s} {n}, what?", **options, "answer": a, "id": f"{s}/test/{n}"} for s, n, a in keys]
    rows = json.loads((root / f"mmlu/{language}_val.json").read_text("utf-8"))
    return [{**row, "id": row["id"].replace("/val/", "/test/")} for row in rows]


ROWS_OF: dict[str, Callable[[Path, str], list[Row]]] = {
    "xquad": xquad_rows,
    "mlqa": mlqa_rows,
    "mkqa": mkqa_rows,
    "truthfulqa": truthfulqa_rows,
    "xnli": xnli_rows,
    "xcopa": xcopa_rows,
    "xstorycloze": xstorycloze_rows,
    "mmlu": mmlu_rows,
}


def write_hub(root: Path, place: Path, names: list[str]) -> None:
    """A folder for each data set of these benchmarks, named as it is on the hub."""
    cards: dict[Path, list[Row]] = {}
    for name in names:
        hub = BENCHMARKS[name].hub
        assert hub is not None
        for language in dict.fromkeys(("en", other(name))):
            path, config, split = hub.of(language)
            file = f"{config}.jsonl"
            put_lines(place / path / file, ROWS_OF[name](root, language))
            card = {"config_name": config, "data_files": [{"split": split, "path": file}]}
            if card not in cards.setdefault(place / path, []):  # of MKQA one for all languages
                cards[place / path].append(card)
    for path, card in cards.items():
        put(path / "README.md", f"---\n{json.dumps({'configs': card})}\n---\n")  # JSON is YAML too


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's data sets in the working directory, of the files in `folder`."""
    place = tmp_path / "hub"
    write_hub(folder, place, ON_HUB)
    monkeypatch.chdir(place)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return place


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


def test_truthfulqa_of_the_hub(hub: Path) -> None:
    """Its rows have no ids, and translations lack some of them."""
    english, translated = load("truthfulqa", "en"), load("truthfulqa", "vi")
    assert [item.id for item in english] == ["en/1", "en/2", "en/3"]
    assert [(item.id, item.question, item.english) for item in translated] == [
        ("vi/1", "q3", None),
        ("vi/2", "q1", None),
    ]
    for items in (english, translated):
        assert [item.gold for item in items] == [1, 2, 0][: len(items)]
        assert [item.options for item in items] == [
            ("wrong two", "best", "wrong one"),
            ("wrong one", "wrong two", "best"),
            ("best", "wrong one", "wrong two"),
        ][: len(items)]


def test_mkqa_of_the_hub_in_chinese_and_without_what_has_no_answer(hub: Path) -> None:
    items = load("mkqa", "zh", english=True)
    assert [(item.id, item.question) for item in items] == [
        ("1", "zh_cn who 0"),
        ("2", "zh_cn who 1"),
        ("3", "zh_cn who 2"),
    ]
    assert items[0].answers == ("Bo", "Al") and items[0].prompt == "问题: zh_cn who 0\n\n回答:"


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


def test_the_harness_task_takes_the_hubs_items(hub: Path) -> None:
    rows = harness_task(load("mmlu", "vi")).rows["test"]
    assert [row["id"] for row in rows] == ["virology/test/0", "anatomy/test/1", "anatomy/test/0"]
    assert rows[0]["option_a"] == " vi a"


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
