"""XQuAD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness_equality import ROWS
from pivotune.evaluation.benchmarks import BENCHMARKS, Item, load
from pivotune.evaluation.benchmarks.files import Folder
from pivotune.evaluation.benchmarks.xquad import instructed_prompt, passage_prompt
from tests.evaluation.benchmarks.made_up import put_cc

COMMON: dict[str, Any] = dict(context="vi1 is in the context.", question="vi question 1?", answers=("vi1",))


def test_fields(folder: Path) -> None:
    prompt = passage_prompt("vi1 is in the context.", "vi question 1?", "vi")
    assert prompt == "Bối cảnh: vi1 is in the context.\n\nCâu hỏi: vi question 1?\n\nTrả lời:"
    second = load("xquad", "vi", folder, english=False)[1]
    assert second == Item(id="q1", benchmark="xquad", language="vi", prompt=prompt, **COMMON)


def test_fields_of_cc(folder: Path) -> None:
    prompt = instructed_prompt("vi1 is in the context.", "vi question 1?", "vi")
    assert prompt.endswith("\n\nNgữ cảnh: vi1 is in the context.\nCâu hỏi: vi question 1?\n\nCâu trả lời của bạn:")
    second = load("cc_xquad", "vi", folder, english=False)[1]
    assert second == Item(id="q1", benchmark="cc_xquad", language="vi", prompt=prompt, **COMMON)


def test_published_xquad_prompts_are_used_where_they_are(folder: Path) -> None:
    for language in ("en", "vi"):
        put_cc(folder, "XQuAD", "split", "ans", language, [f"{language} asks {n}" for n in range(3)], ["a", "b", "c"])
    item = load("cc_xquad", "vi", folder)[1]
    assert (item.id, item.prompt, item.answers) == ("2", "vi asks 1", ("b",))


def test_xquad_is_asked_as_the_harness_asks_it() -> None:
    """Our words for XQuAD against the harness's own files, whose code transformers 5 cannot import."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    yaml = pytest.importorskip("yaml")
    for language in BENCHMARKS["xquad"].languages:
        text = (Path(lm_eval.__file__).parent / f"tasks/xquad/xquad_{language}.yaml").read_text("utf-8")
        template = yaml.safe_load(text)["doc_to_text"]
        asked = template.replace("{{context}}", "C").replace("{{question}}", "Q")
        assert passage_prompt("C", "Q", language) == asked


@pytest.mark.parametrize("language", BENCHMARKS["xquad"].languages)
def test_every_prompt_of_xquad_is_made_of_the_rows_on_the_hub(language: str, bench: Path) -> None:
    """They lack the white space at the ends of the publisher's contexts and questions."""
    rows = ROWS["xquad"](Folder(bench, ""), language)
    prompts = {row["id"]: passage_prompt(row["context"], row["question"], language) for row in rows}
    assert prompts == {item.id: item.prompt for item in load("xquad", language, bench, english=False)}
