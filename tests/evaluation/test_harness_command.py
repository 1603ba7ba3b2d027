"""`pivotune evaluate` against lm-evaluation-harness, each by its own command; and that the comparison compares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

pytest.importorskip("lm_eval", reason="needs the extra pivotune[evaluation]")

from benchmarks.harness_equality import HARNESS, Agreement, compare, run_both
from pivotune.evaluation.results import ItemResult
from pivotune.lab.base import base_path
from tests.runs import write_base

RANKED = ["xnli", "xcopa", "xstorycloze"]


@pytest.mark.slow
def test_likelihood_is_the_harness_by_its_own_command(bench: Path, tmp_path: Path) -> None:
    """Bit for bit, one row at a time: other batches pad the rows to other lengths, which changes the last digits."""
    found = run_both(base_path(), bench, RANKED, ["zh", "vi", "ar", "sw", "en"], tmp_path, limit=3)
    assert len(found) == 5 + 4 + 4  # no Arabic XCOPA, no Vietnamese XStoryCloze
    for (name, _), agreement in found.items():
        options = 3 * (3 if name == "xnli" else 2)
        assert agreement == Agreement(items=3, options=options, equal=options, difference=0.0, chosen=3, scored=3)


@pytest.mark.slow
def test_answers_are_those_of_the_harness_by_its_own_command(bench: Path, tmp_path: Path) -> None:
    """Prompts, texts, F1 and exact match."""
    # The harness's XQuAD imports what transformers has no more since 5.20. There its command is started through the
    # module that makes a stand-in; model class, task and generation are the harness's all the same.
    there = (Path(transformers.__file__).parent / "data/metrics").is_dir()
    harness = HARNESS if there else (sys.executable, "-m", "pivotune.evaluation.likelihood")
    # Random weights: the lab's base has little to say here.
    model = write_base(tmp_path / "random", max_position_embeddings=1024)
    found = run_both(model, bench, ["xquad"], ["zh", "vi", "en"], tmp_path, limit=2, harness=harness)
    assert len(found) == 3
    assert all(agreement == Agreement(items=2, equal=2, scored=2) for agreement in found.values())


RANKING = ItemResult(id="1", score=1.0, choice=1, gold=1, loglikelihoods=(-2.0, -1.0))
TEXT = ItemResult(id="1", score=0.5, prediction="a tower", scores={"f1": 0.5, "exact_match": 0.0})


def ranked(*log_p: float, acc: float = 1.0) -> dict[str, Any]:
    return {"filtered_resps": [[str(value), "False"] for value in log_p], "acc": acc}


def generated(prompt: str, text: str, f1: float = 0.5) -> dict[str, Any]:
    arguments = {"gen_args_0": {"arg_0": prompt, "arg_1": {}}}
    return {"arguments": arguments, "resps": [[text]], "f1": f1, "exact_match": 0}


@pytest.mark.parametrize(
    ("sample", "ours", "agreement"),
    [
        (ranked(-2.0, -1.0), RANKING, Agreement(1, 2, 2, 0.0, 1, 1)),
        (ranked(-2.0, -1.5), RANKING, Agreement(1, 2, 1, 0.5, 1, 1)),
        (ranked(-2.0, -4.0, acc=0.0), RANKING, Agreement(1, 2, 1, 3.0, 0, 0)),
        (generated("Q:", " a tower"), TEXT, Agreement(items=1, equal=1, scored=1)),
        (generated("Q: ", "a tower"), TEXT, Agreement(items=1, equal=0, scored=1)),
        (generated("Q:", "tower", f1=1.0), TEXT, Agreement(items=1, equal=0, scored=0)),
    ],
)
def test_the_comparison_sees_every_difference(sample: dict[str, Any], ours: ItemResult, agreement: Agreement) -> None:
    assert compare({"1": sample}, [ours], {"1": "Q:"}) == agreement


def test_the_comparison_wants_the_same_items() -> None:
    with pytest.raises(AssertionError, match="other items"):
        compare({"1": ranked(-2.0, -1.0), "2": ranked(-2.0, -1.0)}, [RANKING], {"1": None})
