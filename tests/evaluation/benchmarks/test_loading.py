"""Readers of the benchmarks on hand-written miniatures of every publisher's format, and every way to break them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import (
    BENCHMARKS,
    benchmark_of,
    chance_level,
    load,
)
from tests.evaluation.benchmarks.made_up import CC_FOLDERS, other, squad


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
