"""Hand-written miniatures of every publisher's files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from pivotune.evaluation.benchmarks import BENCHMARKS

LETTERS = ("A", "B", "C", "D")


CC_FOLDERS = {
    "cc_xnli": "XNLI/split_sample",
    "cc_xstorycloze": "XStoryCloze/split",
    "cc_mmmlu": "MMMLU/split_sample",
    "cc_mkqa": "MKQA/split_sample",
    "cc_xlsum": "XLSum/split_sample",
}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def put_json(path: Path, value: Any) -> None:
    put(path, json.dumps(value, indent=1))


def put_lines(path: Path, values: list[Any]) -> None:
    put(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def squad(prefix: str, count: int = 3) -> dict[str, Any]:
    def asked(n: int) -> dict[str, Any]:
        answer = {"answer_start": 0, "text": f"{prefix}{n}"}
        return {"id": f"q{n}", "question": f" {prefix} question {n}? ", "answers": [answer, answer]}

    def paragraph(n: int) -> dict[str, Any]:
        return {"context": f"{prefix}{n} is in the context.", "qas": [asked(n)]}

    return {"version": "1", "data": [{"title": "t", "paragraphs": [paragraph(n)]} for n in range(count)]}


def put_cc(
    root: Path, name: str, split: str, golds: str, language: str, prompts: list[str], answers: list[Any]
) -> None:
    put_lines(root / "cctuning" / name / split / f"{language}.json", [{"instruction": p} for p in prompts])
    put_lines(root / "cctuning" / name / golds / f"{language}.json", answers)


def mmlu_row(language: str, key: str, answer: str) -> dict[str, str]:
    options = {f"option_{letter}": f" {language} {letter}" for letter in "abcd"}
    return {"instruction": f"{language} {key}?", **options, "answer": answer, "id": key}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """DATA_DIR with three items of every benchmark in English and in one other language (MMMLU: in two)."""
    root = tmp_path / "bench"
    for language in ("en", "vi"):
        put_json(root / f"xquad/xquad.{language}.json", squad(language))
        # A translation of MLQA holds some of the English questions.
        count = 3 if language == "en" else 2
        put_json(root / f"mlqa_dev/dev-context-{language}-question-{language}.json", squad(language, count))
        labels = ("neutral", "contradiction", "entailment")
        lines = [f"{language} premise {n}\t{language} hypothesis {n}\t{label}\r\n" for n, label in enumerate(labels)]
        put(root / f"xnli_dev/dev-{language}.tsv", "".join(lines))
        choices = {"premise": "It rained.", "choice1": "It got wet.", "choice2": "It got dry.", "question": "effect"}
        put_lines(root / f"xcopa/val-{language}.jsonl", [{**choices, "idx": n, "label": n % 2} for n in range(3)])
        put_lines(root / f"xcopa/test-{language}.jsonl", [{**choices, "idx": n, "label": 0} for n in range(30)])
    wrong = ["wrong one", "", "wrong two", "wrong one", "best"]
    truth = [{"question": f"q{n}", "best_answer": "best", "incorrect_answers": wrong} for n in (1, 2, 3)]
    put_json(root / "truthfulqa/en.json", [{"id": n, **row} for n, row in enumerate(truth, start=1)])
    translated = [{"id": f"generation/validation/{n}", **truth[n]} for n in (2, 0)]
    put_json(root / "truthfulqa/vi_gen.json", translated)
    keys = [("anatomy", 0, "B"), ("anatomy", 1, "D"), ("virology", 0, "A")]
    with zipfile.ZipFile(root / "mmlu_en.zip", "w") as archive:
        for split in ("val", "dev"):
            for subject in ("anatomy", "virology"):
                lines = [f'"{s} {n}, what?",one,two,three,four,{a}' for s, n, a in keys if s == subject]
                archive.writestr(f"data/{split}/{subject}_{split}.csv", "\n".join(lines) + "\n")
    (root / "mmlu").mkdir()
    (root / "mmlu_en.zip").rename(root / "mmlu/en_mmlu.zip")
    for split in ("val", "dev"):
        rows = [mmlu_row("vi", f"{subject}/{split}/{n}", answer) for subject, n, answer in reversed(keys)]
        put_json(root / f"mmlu/vi_{split}.json", rows)
    for language in ("en", "ar"):
        numbered = "What relation?\n\n(1) Entail \n(2) Neutral\n(3) Contradict\n\nAnswer:"
        prompts = [f"{language} premise {n}\nhypothesis\n\n{numbered}" for n in range(3)]
        put_cc(root, "XNLI", "split_sample", "ans_sample", language, prompts, ["1", "3", "2"])
        stories = [f"{language} sun.Rain came. It is 8.30 now.End {n}\n(1) Yes.\n(2) No.\n\nW?\nA:" for n in range(3)]
        put_cc(root, "XStoryCloze", "split", "ans", language, stories, ["2", "1", "2"])
        listed = "\n".join(f"({letter}) option {letter}" for letter in LETTERS)
        prompts = [f"{language}:\n\nIs (A) in\n\nquestion {n}?\n{listed}\n\nAnswer:" for n in range(3)]
        put_cc(root, "MMMLU", "split_sample", "ans_sample", language, prompts, ["A", "C", "D"])
        put_cc(
            root, "XLSum", "split_sample", "ans_sample", language, [f"Sum up.\n{language}{n}" for n in "abc"], ["s"] * 3
        )
        put_lines(
            root / f"cctuning/XLSum/split_sample_en/{language}.json", [{"instruction": f"in en {n}"} for n in "abc"]
        )
        asked = [f"Please answer.\n\n{language} who {n}\n\nAnswer:" for n in range(3)]
        put_cc(root, "MKQA", "split_sample", "ans_sample", language, asked, [["Bo ", "Bo", "Al"], ["3.0"], ["x"]])
    return root


def other(name: str) -> str:
    return "ar" if (name.startswith("cc_") and name != "cc_xquad") or name in ("mkqa", "xstorycloze") else "vi"


def harness_template(path: str) -> Any:
    """The prompt of a task of lm-evaluation-harness, from its own file."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    jinja2, yaml = pytest.importorskip("jinja2"), pytest.importorskip("yaml")
    text = (Path(lm_eval.__file__).parent / "tasks" / path).read_text("utf-8").replace("!function ", "")
    return jinja2.Template(yaml.safe_load(text)["doc_to_text"], keep_trailing_newline=True)


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
