"""Readers of the benchmarks on hand-written miniatures of every publisher's format, and every way to break them."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import (
    BENCHMARKS,
    PRESETS,
    Item,
    benchmark_of,
    chance_level,
    harness_task,
    load,
    task_specs,
)
from pivotune.evaluation.benchmarks.files import read_jsonl, read_zipped_csv
from pivotune.evaluation.benchmarks.prompts import instructed_prompt, passage_prompt, question_prompt
from pivotune.evaluation.benchmarks.readers import _respaced, _split_options

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


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
def test_every_benchmark_is_read_with_its_english(name: str, zipped: bool, folder: Path) -> None:
    if zipped:
        for path in [*folder.rglob("*.json*"), *folder.rglob("*.tsv")]:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    items, english = load(name, other(name), folder), load(name, "en", folder)
    assert len(english) == 3 and len(items) == (2 if name in ("mlqa", "truthfulqa") else 3)
    by_id = {item.id: item for item in english}
    for item in items:
        assert (item.benchmark, item.language) == (name, other(name))
        assert item.english is not None and item.english.language == "en" and item.english.english is None
        if name != "cc_xlsum":
            assert item.english == by_id[item.id]
        assert item.answers and (item.prompt is not None) == (BENCHMARKS[name].protocol == "generation")
        if item.options is not None and item.gold is not None:
            assert item.answers == ((item.labels or item.options)[item.gold],)
    assert chance_level(items) == pytest.approx(BENCHMARKS[name].chance or (0 if name != "truthfulqa" else 1 / 3))
    assert load(name, other(name), folder, limit=2) == items[:2]
    assert all(item.english is None for item in load(name, other(name), folder, english=False))


def test_fields_of_each_format(folder: Path) -> None:
    def second(name: str, language: str) -> Item:
        return load(name, language, folder, english=False)[1]

    common: dict[str, Any] = dict(context="vi1 is in the context.", question="vi question 1?", answers=("vi1",))
    prompt = passage_prompt("vi1 is in the context.", "vi question 1?", "vi")
    assert prompt == "Bối cảnh: vi1 is in the context.\n\nCâu hỏi: vi question 1?\n\nTrả lời:"
    assert second("xquad", "vi") == Item(id="q1", benchmark="xquad", language="vi", prompt=prompt, **common)
    prompt = "Context: vi1 is in the context.\n\nQuestion:  vi question 1? \n\nAnswer:"  # as the harness prints it
    raw = {**common, "question": " vi question 1? "}
    assert second("mlqa", "vi") == Item(id="q1", benchmark="mlqa", language="vi", prompt=prompt, **raw)
    prompt = instructed_prompt("vi1 is in the context.", "vi question 1?", "vi")
    assert prompt.endswith("\n\nNgữ cảnh: vi1 is in the context.\nCâu hỏi: vi question 1?\n\nCâu trả lời của bạn:")
    assert second("cc_xquad", "vi") == Item(id="q1", benchmark="cc_xquad", language="vi", prompt=prompt, **common)
    assert second("xnli", "vi") == Item(
        id="2",
        benchmark="xnli",
        language="vi",
        context="vi premise 1",
        question="vi hypothesis 1",
        options=("entailment", "neutral", "contradiction"),
        gold=2,
        answers=("contradiction",),
    )
    copa = second("xcopa", "vi")
    assert (copa.id, copa.context, copa.question, copa.gold) == ("1", "It rained.", "effect", 1)
    assert copa.options == ("It got wet.", "It got dry.")
    mmlu = second("mmlu", "vi")
    assert (mmlu.id, mmlu.subject, mmlu.labels, mmlu.gold) == ("anatomy/val/1", "anatomy", LETTERS, 3)
    assert mmlu.options == (" vi a", " vi b", " vi c", " vi d")
    assert load("mmlu", "en", folder)[0].question == "anatomy 0, what?"
    assert load("mmlu", "en", folder, split="dev")[2].id == "virology/dev/0"
    mkqa = load("mkqa", "ar", folder)[0]
    assert (mkqa.question, mkqa.answers) == ("ar who 0", ("Bo", "Al"))
    assert mkqa.prompt == question_prompt("ar who 0", "ar") == "سؤال: ar who 0\n\nإجابة:"
    assert load("cc_mkqa", "ar", folder)[0].prompt == "Please answer.\n\nar who 0\n\nAnswer:"
    story = load("xstorycloze", "ar", folder)[0]
    assert story.context == "ar sun. Rain came. It is 8.30 now. End 0" and story.options == ("Yes.", "No.")
    choice = second("cc_mmmlu", "ar")
    assert choice.question.endswith("question 1?") and choice.options == tuple(f"option {x}" for x in LETTERS)
    assert (choice.gold, choice.answers) == (2, ("C",))
    assert second("cc_xnli", "ar").options == ("Entail", "Neutral", "Contradict")
    summary = load("cc_xlsum", "ar", folder)[0]
    assert summary.english is not None and (summary.english.prompt, summary.english.answers) == ("in en a", ())


def test_published_xquad_prompts_are_used_where_they_are(folder: Path) -> None:
    for language in ("en", "vi"):
        put_cc(folder, "XQuAD", "split", "ans", language, [f"{language} asks {n}" for n in range(3)], ["a", "b", "c"])
    item = load("cc_xquad", "vi", folder)[1]
    assert (item.id, item.prompt, item.answers) == ("2", "vi asks 1", ("b",))


def test_truthfulqa_options(folder: Path) -> None:
    english = load("truthfulqa", "en", folder)
    # Rotated by the id; neither the empty wrong answer nor the repeated one nor the right one among the wrong.
    assert [item.options for item in english] == [
        ("wrong two", "best", "wrong one"),
        ("wrong one", "wrong two", "best"),
        ("best", "wrong one", "wrong two"),
    ]
    assert [item.id for item in load("truthfulqa", "vi", folder)] == ["3", "1"]  # the English id minus 1
    assert all(item.options and item.gold is not None and item.options[item.gold] == "best" for item in english)


def test_the_shifted_korean_lines_have_no_english(folder: Path) -> None:
    listed = "\n".join(f"({letter}) option {letter}" for letter in LETTERS)
    for language in ("en", "ko"):
        prompts = [f"p\n\nq{n}\n{listed}\n\nAnswer:" for n in range(430)]
        golds = ["A" if language == "en" or not 417 <= n < 427 else "B" for n in range(430)]
        put_cc(folder, "MMMLU", "split_sample", "ans_sample", language, prompts, golds)
    items = load("cc_mmmlu", "ko", folder)
    assert [int(item.id) for item in items if item.english is None] == list(range(418, 428))


def test_the_catalogue_is_consistent() -> None:
    assert len(BENCHMARKS) == 14
    assert [len(preset.benchmarks) for preset in PRESETS.values()] == [8, 6]
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())
    for preset in PRESETS.values():
        for name, languages in preset.languages.items():
            benchmark = BENCHMARKS[name]
            assert benchmark.paper == preset.name and set(languages) <= set(benchmark.languages)
            assert "en" in benchmark.languages and list(benchmark.languages) == sorted(set(benchmark.languages))
        for figure in preset.published:
            assert figure.language in (None, *preset.languages[figure.benchmark]) and 0 < figure.value < 100
    assert all(len(languages) == 10 for languages in PRESETS["cc"].languages.values())
    assert len({language for codes in PRESETS["cc"].languages.values() for language in codes}) == 22
    figures = {(f.method, f.benchmark, f.language): f.value for f in PRESETS["dft"].published}
    assert figures["DFT feature", "xcopa", "zh"] == 68.6 and figures["TFT", "xstorycloze", "ar"] == 57.51
    assert BENCHMARKS["xcopa"].hub is not None
    assert BENCHMARKS["xcopa"].hub.of("en") == ("aps/super_glue", "copa", "validation")
    assert BENCHMARKS["xcopa"].hub.of("vi") == ("cambridgeltl/xcopa", "vi", "test")


def broken(text: str | bytes, *parts: str) -> Callable[[Path], tuple[str, ...]]:
    """Write `text` over the file parts[0]; the message must hold it and the other parts."""

    def do(folder: Path) -> tuple[str, ...]:
        (folder / parts[0]).write_bytes(text if isinstance(text, bytes) else text.encode())
        return parts

    return do


def without(path: str, *parts: str) -> Callable[[Path], tuple[str, ...]]:
    def do(folder: Path) -> tuple[str, ...]:
        (folder / path).unlink()
        return (path, "no such file", *parts)

    return do


def edited(path: str, old: str, new: str, *parts: str) -> Callable[[Path], tuple[str, ...]]:
    def do(folder: Path) -> tuple[str, ...]:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new, 1))
        return (path, *parts)

    return do


CC = "cctuning/XNLI/split_sample/ar.json"
GOLD = "cctuning/XNLI/ans_sample/ar.json"
DEFECTS: dict[str, tuple[str, Callable[[Path], tuple[str, ...]]]] = {
    "missing file": ("xquad", without("xquad/xquad.vi.json", "https://github.com/google-deepmind/xquad")),
    "missing English": ("xquad", without("xquad/xquad.en.json")),
    "missing archive": ("mmlu", without("mmlu/en_mmlu.zip", "https://github.com/hendrycks/test")),
    "missing golds": ("cc_xnli", without(GOLD, "CC-Tuning")),
    "cut JSON": ("xquad", broken('{"data": [\n{"par', "xquad/xquad.vi.json", ":2: malformed JSON")),
    "empty JSON": ("xquad", broken("", "xquad/xquad.vi.json", ":1: malformed JSON")),
    "other JSON": ("xquad", broken("[]", "xquad/xquad.vi.json", "expected an object")),
    "no data": ("xquad", broken('{"a": 1}', "xquad/xquad.vi.json", "field 'data'", "list of objects")),
    "no article": ("xquad", broken('{"data": []}', "xquad/xquad.vi.json", "no article")),
    "empty question": ("xquad", edited("xquad/xquad.vi.json", " vi question 1? ", " ", "question 2", "'question'")),
    "empty answer": ("xquad", edited("xquad/xquad.vi.json", '"vi1"', '""', "question 2", "field 'text'")),
    "same id": ("xquad", edited("xquad/xquad.vi.json", '"q1"', '"q0"', "question 2: duplicate id")),
    "id without English": ("xquad", edited("xquad/xquad.vi.json", '"q1"', '"x"', "question 2: no English", "'x'")),
    "fewer than English": ("xquad", broken(json.dumps(squad("vi", 2)), "xquad/xquad.vi.json", "after 2 items")),
    "not UTF-8": ("xnli", broken(b"a\tb\tneutral\n\xff\tb\tneutral\n", "xnli_dev/dev-vi.tsv", ":2:", "not UTF-8")),
    "not UTF-8 in JSON": ("xquad", broken(b'{"data":\n"\xff"}', "xquad/xquad.vi.json", ":2:", "not UTF-8")),
    "two columns": ("xnli", broken("a\tb\tneutral\na\tb\n", "xnli_dev/dev-vi.tsv", ":2:", "2 columns")),
    "empty column": ("xnli", broken("a\t \tneutral\n", "xnli_dev/dev-vi.tsv", ":1:", "expected premise")),
    "cut label": ("xnli", broken("a\tb\tneutr", "xnli_dev/dev-vi.tsv", ":1:", "gold outside", "'neutr'")),
    "empty line": ("xnli", broken("a\tb\tneutral\n\na\tb\tneutral\n", "xnli_dev/dev-vi.tsv", ":2:")),
    "empty file": ("xnli", broken("\n\n", "xnli_dev/dev-vi.tsv", "holds no line")),
    "fewer lines": (
        "xnli",
        edited("xnli_dev/dev-vi.tsv", "vi premise 2\tvi hypothesis 2\tentailment", "", "after 2 items"),
    ),
    "other order": ("xnli", edited("xnli_dev/dev-vi.tsv", "neutral", "entailment", ":1: files do not match")),
    "cut line": ("xcopa", broken('{"premise": "a", "cho', "xcopa/val-vi.jsonl", ":1: malformed line")),
    "label 2": ("xcopa", edited("xcopa/val-vi.jsonl", '"label": 1', '"label": 2', ":2: bad gold", "0 or 1")),
    "label true": ("xcopa", edited("xcopa/val-vi.jsonl", '"label": 1', '"label": true', ":2: bad gold")),
    "no idx": ("xcopa", edited("xcopa/val-vi.jsonl", '"idx": 1', '"i": 1', ":2:", "'idx'")),
    "question kind": ("xcopa", edited("xcopa/val-vi.jsonl", "effect", "why", ":1:", "'why'")),
    "no choice": ("xcopa", edited("xcopa/val-vi.jsonl", "choice2", "choice3", ":1:", "'choice2' is missing")),
    "cut list": ("truthfulqa", broken("[", "truthfulqa/vi_gen.json", "malformed JSON")),
    "empty list": ("truthfulqa", broken("[]", "truthfulqa/vi_gen.json", "no record")),
    "record kind": ("truthfulqa", broken("[1]", "truthfulqa/vi_gen.json", "record 1", "expected an object")),
    "English id": ("truthfulqa", edited("truthfulqa/vi_gen.json", "generation/validation/2", "2", "record 1", "'id'")),
    "unknown id": ("truthfulqa", edited("truthfulqa/vi_gen.json", "validation/2", "validation/7", "'8' is not in")),
    "no wrong answer": (
        "truthfulqa",
        broken(
            '[{"id": "generation/validation/0", "question": "q", "best_answer": "b", "incorrect_answers": ["", "b"]}]',
            "truthfulqa/vi_gen.json",
            "no incorrect answer",
        ),
    ),
    "answers kind": ("truthfulqa", edited("truthfulqa/vi_gen.json", '"wrong two"', "2", "record 1", "list of texts")),
    "answer E": ("mmlu", edited("mmlu/vi_val.json", '"answer": "D"', '"answer": "E"', "record 2", "outside", "'E'")),
    "other gold": ("mmlu", edited("mmlu/vi_val.json", '"answer": "D"', '"answer": "A"', "record 2", "in English")),
    "other split": ("mmlu", edited("mmlu/vi_val.json", '"anatomy/val/1"', '"anatomy/dev/1"', "record 2", "val/<row>")),
    "no archive": ("mmlu", broken("PK", "mmlu/en_mmlu.zip", "malformed archive")),
    "cut prompt": ("cc_xnli", broken('{"instruction": "a', CC, ":1: malformed line", "may be cut")),
    "prompt kind": ("cc_xnli", broken('"a"\n', CC, "", "")),
    "empty prompt": ("cc_xnli", broken('{"instruction": " "}\n' * 3, CC, ":1:", "'instruction'")),
    "prompts and golds": ("cc_xnli", broken('"1"\n"2"\n', GOLD, "3 prompts, but 2 golds", CC)),
    "gold 4": ("cc_xnli", edited(GOLD, '"3"', '"4"', ":2: gold outside the options", "'4'")),
    "gold kind": ("cc_xnli", edited(GOLD, '"3"', "3", ":2:", "expected a text")),
    "no option": ("cc_xnli", edited(CC, "(2)", "2.", ":1: wrong file", "no option (2)")),
    "no alias": ("cc_mkqa", edited("cctuning/MKQA/ans_sample/ar.json", '["3.0"]', "[]", ":2: bad gold")),
    "empty option": ("mmlu", edited("mmlu/vi_val.json", '" vi a"', '" "', "'option_a'")),
    "empty alias": ("mkqa", edited("cctuning/MKQA/ans_sample/ar.json", '"3.0"', '""', ":2: bad gold")),
    "no question": ("mkqa", edited("cctuning/MKQA/split_sample/ar.json", "\\n\\nAnswer", "", ":1: wrong file")),
    "empty summary": ("cc_xlsum", edited("cctuning/XLSum/ans_sample/ar.json", '"s"', '""', ":1: bad gold")),
    "no English prompts": ("cc_xlsum", without("cctuning/XLSum/split_sample_en/ar.json")),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_one_clear_error(defect: str, folder: Path) -> None:
    name, do = DEFECTS[defect]
    parts = do(folder)
    with pytest.raises(PivotuneError) as caught:
        load(name, other(name), folder, limit=1)  # the whole file is checked all the same
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and len(message) < 500


def test_withheld_golds_are_not_taken_for_golds(folder: Path) -> None:
    with pytest.raises(DataError, match=r"all 30 labels are 0.*use split 'val'"):
        load("xcopa", "vi", folder, split="test")


def test_arguments(folder: Path) -> None:
    with pytest.raises(PivotuneError, match="unknown benchmark 'xnil'; did you mean 'xnli'"):
        load("xnil", "vi", folder)
    with pytest.raises(PivotuneError, match="did you mean 'cc_mmmlu'"):
        benchmark_of("CC-MMLU")
    with pytest.raises(PivotuneError, match="unknown benchmark 'glue'; choose among xquad, mlqa"):
        benchmark_of("glue")
    with pytest.raises(PivotuneError, match="mlqa is not available in 'ru'; choose among ar, de, en, es, hi, vi, zh"):
        load("mlqa", "ru", folder)
    with pytest.raises(PivotuneError, match="split: got 'train'; choose one of 'val', 'test'"):
        load("xcopa", "vi", folder, split="train")
    with pytest.raises(PivotuneError, match="limit: got 0"):
        load("xnli", "vi", folder, limit=0)
    with pytest.raises(PivotuneError, match=r"data_dir: .*none is no folder"):
        load("xnli", "vi", folder / "none")
    with pytest.raises(PivotuneError, match=r"did you mean .*bench"):
        load("xnli", "vi", folder.parent)
    with pytest.raises(ValueError, match="no items"):
        chance_level([])


def test_items_are_frozen_and_checked() -> None:
    item = Item(id="1", benchmark="b", language="vi", question="q", options=("a", "b"), gold=1)
    with pytest.raises(FrozenInstanceError):
        item.gold = 0  # type: ignore[misc]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"gold": 2}, "gold 2 is outside the 2 options"),
        ({"gold": None}, "options and gold, or neither"),
        ({"labels": ("A",)}, "1 labels for 2 options"),
        ({"question": ""}, "nothing is asked"),
        ({"english": item}, "is not its English"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            replace(item, **changes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_file_cut_anywhere_is_an_error(data: st.DataObject, folder: Path) -> None:
    name, relative = data.draw(
        st.sampled_from(
            [
                ("xquad", "xquad/xquad.vi.json"),
                ("xnli", "xnli_dev/dev-vi.tsv"),
                ("xcopa", "xcopa/val-vi.jsonl"),
                ("truthfulqa", "truthfulqa/vi_gen.json"),
                ("mmlu", "mmlu/vi_val.json"),
                ("mmlu", "mmlu/en_mmlu.zip"),
                *((name, f"cctuning/{split}/ar.json") for name, split in CC_FOLDERS.items()),
                *((name, f"cctuning/{CC_FOLDERS[name]}/ar.json".replace("split", "ans")) for name in CC_FOLDERS),
            ]
        )
    )
    path = folder / relative
    whole = path.read_bytes()
    end = data.draw(st.integers(0, len(whole.rstrip()) - 1))
    try:
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=path.name.split(".")[0]):
            load(name, other(name), folder)
    finally:
        path.write_bytes(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_flipped_bytes_are_one_error(data: st.DataObject, tmp_path: Path) -> None:
    """zipfile raises whatever it likes at damage; what it does not notice is no error."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/dev/a.csv", "".join(f'"question {n} é",a,b,c,d,A\n' for n in range(20)))
    lines = "".join(json.dumps({"n": n}) + "\n" for n in range(20)).encode()
    name, whole, read = data.draw(
        st.sampled_from(
            [
                ("a.zip", packed.getvalue(), lambda path: list(read_zipped_csv(path, "data/dev"))),
                ("a.jsonl.gz", gzip.compress(lines, mtime=0), lambda path: read_jsonl(path, dict)),
                ("a.jsonl", lines, lambda path: read_jsonl(path, dict)),
            ]
        )
    )
    content = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / name
    path.write_bytes(content)
    try:
        read(path)
    except DataError as error:
        assert str(error).startswith(str(path))


# Text with the separators that some readers take for ends of lines.
line = st.text(st.sampled_from("ab(A) .\x85\u2028\x0b\x1c।。"), min_size=1).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(line, min_size=1, max_size=5))
def test_only_line_feeds_end_lines(prompts: list[str], tmp_path: Path) -> None:
    (tmp_path / "cctuning").mkdir(exist_ok=True)
    put_cc(tmp_path, "XLSum", "split_sample", "ans_sample", "en", prompts, ["s"] * len(prompts))
    assert [item.prompt for item in load("cc_xlsum", "en", tmp_path)] == prompts


@given(question=line, options=st.lists(line.filter(lambda text: "(" not in text), min_size=4, max_size=4), tail=line)
def test_options_are_found_behind_any_question(question: str, options: list[str], tail: str) -> None:
    listed = "".join(f"\n({label}) {option}" for label, option in zip(LETTERS, options, strict=True))
    found = _split_options(f"Do.\n\n{question}\n(A) in the question{listed}\n\n{tail}", LETTERS, "here")
    assert found[0] == f"Do.\n\n{question}\n(A) in the question".strip()
    assert found[1] == tuple(option.strip() for option in options)


@given(st.text(st.sampled_from("aB8.!?。।\"' ,") | st.characters()))
def test_respacing_adds_spaces_only(story: str) -> None:
    respaced = _respaced(story)
    assert "".join(respaced.split()) == "".join(story.split())
    assert _respaced(respaced) == respaced


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ("I ran.He fell!She saw?We left.", "I ran. He fell! She saw? We left."),
        ('He said "No."Then he left.', 'He said "No." Then he left.'),
        ("At 8 P.M.He slept till 8.30 a.m.12 men came.", "At 8 P.M. He slept till 8.30 a.m. 12 men came."),
        ("他来了。她走了！30分钟后", "他来了。 她走了！ 30分钟后"),
        ("वह आया।वह गया।", "वह आया। वह गया।"),
        ("Wait... what?!No.", "Wait... what?! No."),
    ],
)
def test_respacing(story: str, expected: str) -> None:
    assert _respaced(story) == expected


def test_rows_for_the_harness(folder: Path) -> None:
    task = harness_task(load("xnli", "vi", folder))
    assert (task.name, task.reused, list(task.rows)) == ("xnli_vi", True, ["validation"])
    assert task.rows["validation"][0] == {
        "id": "1",
        "language": "vi",
        "premise": "vi premise 0",
        "hypothesis": "vi hypothesis 0",
        "label": 1,
    }
    assert harness_task(load("xcopa", "en", folder)).name == "copa"
    asked = harness_task(load("cc_xnli", "ar", folder))
    assert (asked.name, asked.reused) == ("cc_xnli_ar", False)
    assert asked.settings["generation_kwargs"] == {"max_gen_toks": 40, "do_sample": False, "until": []}
    assert asked.rows["test"][1]["answers"] == ["3"]
    group, own = task_specs([asked, task])
    assert [member["task"] for member in group["task"]] == ["xnli_vi"] and own["task"] == "cc_xnli_ar"
    assert [spec["task"] for spec in task_specs([asked])] == ["cc_xnli_ar"]
    with pytest.raises(PivotuneError, match="one benchmark and language"):
        harness_task(load("xnli", "vi", folder) + load("xnli", "en", folder))
    with pytest.raises(PivotuneError, match="items: got none"):
        harness_task([])
    with pytest.raises(PivotuneError, match="xnli has no split for few-shot"):
        harness_task(load("xnli", "vi", folder), load("xnli", "vi", folder))


HARNESS_PROMPTS = {
    # (the end of the prompt, the target, the number of choices) of the first item, in the harness's wording
    ("xnli", "vi"): ("", 1, 3),
    ("xcopa", "vi"): ("It rained vì vậy", 0, 2),
    ("xcopa", "en"): ("It rained therefore", " it got wet.", 2),
    ("xstorycloze", "ar"): ("ar sun. Rain came. It is 8.30 now. End 0", 1, 2),
    ("truthfulqa", "en"): ("Q: q1\nA:", 1, 3),
    ("truthfulqa", "vi"): ("Q: q3\nA:", 0, 3),
    ("mmlu", "vi"): ("\nA.  vi a\nB.  vi b\nC.  vi c\nD.  vi d\nAnswer:", "A", 4),
    ("mlqa", "vi"): ("\n\nQuestion:  vi question 0? \n\nAnswer:", ["vi0"], None),
    ("xquad", "vi"): ("\n\nCâu hỏi: vi question 0?\n\nTrả lời:", ["vi0"], None),
    ("mkqa", "ar"): ("سؤال: ar who 0\n\nإجابة:", ["Bo", "Al"], None),
    ("cc_mkqa", "ar"): ("Please answer.\n\nar who 0\n\nAnswer:", ["Bo", "Al"], None),
}


@pytest.mark.slow
def test_the_harness_takes_every_task(folder: Path) -> None:
    """The tasks of lm-evaluation-harness ask our rows, without a download."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="needs lm-evaluation-harness")
    manager = tasks.TaskManager()
    for (name, language), (prompt, target, choices) in HARNESS_PROMPTS.items():
        examples = load("mmlu", language, folder, split="dev") if name == "mmlu" else ()
        ours = harness_task(load(name, language, folder), examples)
        (task,) = manager.load(task_specs([ours]))["tasks"].values()
        docs = list(task.eval_docs)
        assert [doc["id"] for doc in docs] == [item.id for item in load(name, language, folder)]
        assert task.doc_to_text(docs[0]).endswith(prompt) and (prompt or task.doc_to_text(docs[0]) == "")
        assert task.doc_to_target(docs[0]) == target, name
        if choices is not None:
            assert len(task.doc_to_choice(docs[0])) == choices
        if name == "mmlu":
            assert [doc["id"] for doc in task.fewshot_docs()] == [item.id for item in examples]


def test_xquad_is_asked_as_the_harness_asks_it() -> None:
    """Our words for XQuAD against the harness's own files, whose code transformers 5 cannot import."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    yaml = pytest.importorskip("yaml")
    for language in BENCHMARKS["xquad"].languages:
        text = (Path(lm_eval.__file__).parent / f"tasks/xquad/xquad_{language}.yaml").read_text("utf-8")
        template = yaml.safe_load(text)["doc_to_text"]
        asked = template.replace("{{context}}", "C").replace("{{question}}", "Q")
        assert passage_prompt("C", "Q", language) == asked
