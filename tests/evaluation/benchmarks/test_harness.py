"""Items as tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import harness_task, load, task_specs


def test_what_has_a_task(folder: Path) -> None:
    (group,) = task_specs([harness_task(load("xnli", "vi", folder)), harness_task(load("xcopa", "en", folder))])
    assert [member["task"] for member in group["task"]] == ["xnli_vi", "copa"]
    with pytest.raises(PivotuneError, match="one benchmark and language"):
        harness_task(load("xnli", "vi", folder) + load("xnli", "en", folder))
    with pytest.raises(PivotuneError, match="items: got none"):
        harness_task([])
    with pytest.raises(PivotuneError, match="cc_xnli, which is answered by generation"):
        harness_task(load("cc_xnli", "ar", folder))


HARNESS_PROMPTS = {
    # (the end of the prompt, the target, the number of choices) of the first item, in the harness's wording
    ("xnli", "vi"): ("", 1, 3),
    ("xcopa", "vi"): ("It rained vì vậy", 0, 2),
    ("xcopa", "en"): ("It rained therefore", " it got wet.", 2),
    ("xstorycloze", "ar"): ("ar sun. Rain came. It is 8.30 now. End 0", 1, 2),
    ("truthfulqa", "en"): ("Q: q1\nA:", 1, 3),
    ("truthfulqa", "vi"): ("Q: q3\nA:", 0, 3),
    ("mmlu", "vi"): ("\nA.  vi a\nB.  vi b\nC.  vi c\nD.  vi d\nAnswer:", "A", 4),
}


GENERATED = {
    # (the end of the prompt, the answers) of the first item; the harness's words for XQuAD and MLQA
    ("mlqa", "vi"): ("\n\nQuestion:  vi question 0? \n\nAnswer:", ("vi0",)),
    ("xquad", "vi"): ("\n\nCâu hỏi: vi question 0?\n\nTrả lời:", ("vi0",)),
    ("mkqa", "ar"): ("سؤال: ar who 0\n\nإجابة:", ("Bo", "Al")),
    ("cc_mkqa", "ar"): ("Please answer.\n\nar who 0\n\nAnswer:", ("Bo", "Al")),
}


@pytest.mark.parametrize(("name", "language"), GENERATED)
def test_what_is_generated_for(name: str, language: str, folder: Path) -> None:
    prompt, answers = GENERATED[name, language]
    first = load(name, language, folder)[0]
    assert first.prompt is not None and first.prompt.endswith(prompt) and first.answers == answers


@pytest.mark.slow
def test_the_harness_takes_every_task(folder: Path) -> None:
    """The tasks of lm-evaluation-harness ask our rows, without a download."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="needs lm-evaluation-harness")
    manager = tasks.TaskManager()
    for (name, language), (prompt, target, choices) in HARNESS_PROMPTS.items():
        ours = harness_task(load(name, language, folder))
        (task,) = manager.load(task_specs([ours]))["tasks"].values()
        docs = list(task.eval_docs)
        assert [doc["id"] for doc in docs] == [item.id for item in load(name, language, folder)]
        assert task.doc_to_text(docs[0]).endswith(prompt) and (prompt or task.doc_to_text(docs[0]) == "")
        assert task.doc_to_target(docs[0]) == target, name
        assert len(task.doc_to_choice(docs[0])) == choices


def test_the_harness_task_takes_the_hubs_items(hub: Path) -> None:
    rows = harness_task(load("mmlu", "vi")).rows["test"]
    assert [row["id"] for row in rows] == ["virology/test/0", "anatomy/test/1", "anatomy/test/0"]
    assert rows[0]["option_a"] == " vi a"
