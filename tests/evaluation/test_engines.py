"""The two engines by themselves: answers and their scores, styles, and what does not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import load
from pivotune.evaluation.engines import (
    GenerationEngine,
    LikelihoodEngine,
    answer_text,
    score_answer,
)
from pivotune.evaluation.metrics import contains_answer
from pivotune.evaluation.results import ItemResult
from pivotune.evaluation.runner import evaluate
from pivotune.generation import load as load_model
from tests.evaluation.benchmarks.made_up import other
from tests.runs import write_base

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra pivotune[evaluation]")

from lm_eval.models.huggingface import HFLM  # noqa: E402

from tests.evaluation.models import RankingModel, SpeakingModel, right_answer  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), max_position_embeddings=1024)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the harness subtracts infinities
def test_numbers_that_are_none_are_wrong(folder: Path) -> None:
    items = load("xcopa", "vi", folder)
    values = {"0": (math.nan, -1.0), "1": (-math.inf, -1.0), "2": (-math.inf, -math.inf)}
    engine = LikelihoodEngine(RankingModel(items, lambda item, option: values[item.id][option]))
    found = {one.id: one for batch in engine(items) for one in batch}
    assert (found["0"].score, found["0"].choice, found["0"].loglikelihoods) == (0.0, None, (None, -1.0))
    assert (found["1"].score, found["1"].choice) == (1.0, 1)
    assert found["2"].choice == 0


def test_answers_are_scored_by_the_benchmark(folder: Path) -> None:
    def scored(name: str, answer: str) -> ItemResult:
        return score_answer(load(name, other(name), folder)[0], answer)

    assert scored("xquad", "the vi0").score == 1.0 and scored("xquad", "vi0 there").score == pytest.approx(2 / 3)
    assert scored("mlqa", "vi0 ở").scores["f1"] == pytest.approx(2 / 3)
    assert scored("mkqa", "bo").scores == {"f1": 1.0, "exact_match": 1.0} and scored("mkqa", "it is Bo").score == 0.5
    long = scored("cc_mkqa", "it is Bo")
    assert (long.score, long.scores) == (1.0, {"f1": 0.5, "exact_match": 0.0}) and long.gold is None
    assert scored("cc_xquad", "In vi0, I think").score == 1.0 and scored("cc_xquad", "vi01").score == 0.0
    assert scored("cc_xlsum", "s").score == 1.0 and scored("cc_xlsum", "t").score == 0.0
    choice = scored("cc_mmmlu", "(A)")
    assert (choice.score, choice.choice, choice.gold, choice.ambiguous) == (1.0, 0, 0, False)
    assert scored("cc_mmmlu", "A or B").ambiguous and scored("cc_mmmlu", "hm").choice is None


def test_what_of_a_text_is_the_answer(folder: Path) -> None:
    asked, numbered = load("xquad", "vi", folder)[0], load("cc_xquad", "vi", folder)[0]
    assert answer_text(asked, " Paris \nQuestion: next") == "Paris"
    assert answer_text(asked, "\nParis") == "" and answer_text(asked, "\nParis", "chat") == "Paris"
    assert answer_text(numbered, " Paris\n is ") == "Paris\n is"
    assert contains_answer("在北京大学读书", ["北京大学"], "zh") == 1.0
    assert contains_answer("Parisian", ["Paris"], "en") == 0.0 and contains_answer("", ["Paris"], "en") == 0.0
    assert contains_answer("a", ["the"], "en") == 0.0  # nothing is left of the answer


def test_styles_surround_the_prompts(folder: Path, tmp_path: Path) -> None:
    items = load("cc_xnli", "ar", folder)
    model = SpeakingModel(items, right_answer, "alpaca")
    assert all(prompt.endswith("Answer:\n\n### Response:") for prompt in model.replies)
    engine = GenerationEngine(model, model.tokenizer, style="alpaca", batch_size=2)
    assert [one.score for batch in engine(items) for one in batch] == [1.0] * 3
    with pytest.raises(KeyError):
        next(GenerationEngine(model, model.tokenizer)(items))


def test_prompts_that_do_not_fit_lose_their_beginning(base: Path, folder: Path) -> None:
    model, tokenizer = load_model(base)
    items = load("cc_xnli", "ar", folder)
    whole = len(tokenizer(items[0].prompt).input_ids)
    engine = GenerationEngine(model, tokenizer, max_new_tokens=4, max_length=whole + 3)
    read: list[list[int]] = []
    model.register_forward_pre_hook(lambda _, args, given: read.extend(given["input_ids"].tolist()), with_kwargs=True)
    answers = [one for batch in engine(items) for one in batch]
    assert engine.cut == len(answers) == 3
    ends = [tokenizer(item.prompt).input_ids[-(whole - 1) :] for item in items]
    assert sorted(read[: len(ends)]) == sorted(ends)
    with pytest.raises(PivotuneError, match="max_new_tokens: got 40, but the model's context has 30"):
        GenerationEngine(model, tokenizer, max_length=30)


def test_contexts_that_do_not_fit_are_counted(base: Path, folder: Path) -> None:
    """TruthfulQA begins with six questions and answers."""
    for name, cut in (("truthfulqa", 3), ("xnli", 0)):
        engine = LikelihoodEngine(HFLM(str(base), device="cpu", batch_size=4, max_length=120))
        assert sum(len(batch) for batch in engine(load(name, "en", folder))) == 3
        assert (engine.cut, engine.max_length) == (cut, 120)


def test_options_that_do_not_fit_are_one_error(folder: Path, tmp_path: Path) -> None:
    """The harness cuts contexts, but XNLI has none: all of it is the option."""
    narrow = write_base(tmp_path / "base", max_position_embeddings=16)
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="xnli", languages="vi", output=str(tmp_path / "o"))
    with pytest.raises(PivotuneError, match=r"xnli_vi, item '1': an option has \d+ tokens, and the model's context 16"):
        evaluate(str(narrow), **options)
