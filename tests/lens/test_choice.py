"""Layers chosen from a model, and what is shown of the choice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune.checkpoint import load_run
from pivotune.data import ParallelExample, Text, read_examples
from pivotune.errors import PivotuneError
from pivotune.lens import LayerChoice, LayerCurve, Layers, choose_layers, find_layers
from pivotune.lens.choice import READERS, table, write_layers
from pivotune.lens.report import inspect
from pivotune.lens.signal_rules import find_middle, find_readable
from tests.lens.test_rule import planted
from tests.runs import rows, write_base, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", rows(20))


def test_choose_layers(base: Path, data: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    examples, _ = read_examples(data)
    layers = choose_layers(model, tokenizer, iter(examples), language="zh", tokens=None)
    shapes = {name: curve.values.shape for name, curve in layers.curves.items()}
    pairs = ("entropy, English", "MEXA, mean", "MEXA, last token", "question", "answer")
    assert shapes == {"entropy": (20, 8)} | dict.fromkeys(pairs, (15, 8))
    assert list(layers.rules) == ["entropy", "feature, mean", "feature, last_token", "logits"]
    assert layers.rules["entropy"] == find_layers(layers.curves["entropy"].values)
    assert layers.rules["feature, mean"] == find_middle(layers.curves["MEXA, mean"].values)
    question, answer = (layers.curves[name].values for name in ("question", "answer"))
    assert layers.rules["logits"] == find_readable(question, answer, model.config.vocab_size)
    assert not layers.tied

    fewer = choose_layers(model, tokenizer, examples, limit=6, tokens=None, measures=())
    assert fewer.curves["entropy"].examples == 6 and list(fewer.rules) == ["entropy"]
    own = {tuple(row) for row in layers.curves["entropy"].values.round(4)}
    assert {tuple(row) for row in fewer.curves["entropy"].values.round(4)} <= own
    assert choose_layers(model, tokenizer, examples, limit=None, measures=()).curves["entropy"].examples == 20
    with pytest.raises(PivotuneError, match="measures: got 'mexa'"):
        choose_layers(model, tokenizer, examples, measures=["mexa"])


def test_the_curves_of_pairs(base: Path, data: Path) -> None:
    """They are those of the lens, which has references of its own."""
    run = load_run(base)
    examples = [one for one in read_examples(data)[0] if one.english is not None]
    layers = choose_layers(run.model, run.tokenizer, examples, tokens=None)
    report = inspect(run, examples, measures=["entropy", "similarity", "calibration"])["languages"]["zh"]
    wanted = {
        "entropy": ("entropy", "target"),
        "entropy, English": ("entropy", "english"),
        "MEXA, mean": ("similarity", "mean/mexa"),
        "MEXA, last token": ("similarity", "last_token/mexa"),
        "question": ("deep_supervision", "question_nats"),
        "answer": ("deep_supervision", "answer_nats"),
    }
    for name, (measure, table_name) in wanted.items():
        for side in ("mean", "low", "high"):
            got, want = layers.curves[name].as_dict()[side], report[measure]["tables"][table_name]["run"][side]
            np.testing.assert_allclose(got, want, rtol=1e-4, err_msg=name)


def test_pairs_are_compared_within_their_language(base: Path, data: Path) -> None:
    """The same English question under two languages would otherwise be its own double, and a miss."""
    run = load_run(base)
    examples = [one for one in read_examples(data)[0] if one.english is not None]
    twice = [*examples, *(replace(one, language="vi") for one in examples)]
    one, both = (choose_layers(run.model, run.tokenizer, given) for given in (examples, twice))
    for name in ("MEXA, mean", "MEXA, last token"):
        np.testing.assert_allclose(both.curves[name].mean, one.curves[name].mean)
        assert both.curves[name].examples == 2 * one.curves[name].examples


FOUND = {
    "entropy": LayerChoice(2, 4, 0.9, (3, 6), True, "two drops"),
    "feature, mean": LayerChoice(3, 5, 0.9, None, True, "they meet"),
    "feature, last_token": LayerChoice(4, 5, 0.9, None, True, "they meet at the last token"),
    "logits": LayerChoice(6, 7, 0.8, None, True, "the head reads"),
}


def test_each_layer_by_the_signal_that_it_has() -> None:
    nothing = replace(FOUND["entropy"], found=False, confidence=None, runner_up=None)
    layers = Layers({}, {**FOUND, "entropy": nothing}, 100, False)
    pair = lambda choice: (choice.conversion_layer, choice.thinking_layer)  # noqa: E731
    assert pair(layers.picked("logits", "logits")) == (6, 7)
    assert pair(layers.picked("feature", "feature")) == (3, 5)
    assert pair(layers.picked("feature", "feature", "last_token")) == (4, 5)
    assert pair(layers.picked("off", "feature")) == pair(layers.picked("feature", "off")) == (3, 5)
    mixed = layers.picked("feature", "logits")
    assert pair(mixed) == (3, 7) and mixed.found
    assert mixed.reason == (
        "conversion layer, feature signal: they meet. Thinking layer, logits signal: the head reads"
    )
    assert not Layers({}, {"entropy": nothing}, 100, False).picked("logits", "feature").found


def test_the_papers_rule_comes_first() -> None:
    layers = Layers({}, FOUND, 100, False)
    for signals in (("logits", "logits"), ("feature", "logits"), ("off", "feature")):
        assert layers.picked(*signals) == FOUND["entropy"]


def test_languages(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)

    def example(language: str, text: str) -> ParallelExample:
        return ParallelExample.from_dict({"language": language, "prompt": text, "completion": text}, "data:1")

    examples = [example("en", "give tips"), example("pt-BR", "dar dicas"), example("vi", "mẹo")]
    counts = lambda layers: {name: curve.examples for name, curve in layers.curves.items()}  # noqa: E731
    assert counts(choose_layers(model, tokenizer, examples)) == {"entropy": 2, "entropy, English": 1}
    assert counts(choose_layers(model, tokenizer, examples, language="pt")) == {"entropy": 1, "entropy, English": 1}
    assert counts(choose_layers(model, tokenizer, examples[1:])) == {"entropy": 2}
    with pytest.raises(PivotuneError, match=r"no question in 'zh' \(languages in the data: en, pt-BR, vi\)"):
        choose_layers(model, tokenizer, examples, language="zh")
    with pytest.raises(PivotuneError, match="no question that is not English"):
        choose_layers(model, tokenizer, examples[:1])


def made_up(**rules: LayerChoice) -> Layers:
    draw = np.random.default_rng(0)
    entropies = planted(32, 2, 15, 22) + draw.normal(size=(50, 1))
    meeting = draw.random((50, 32)) < np.interp(np.arange(32), [0, 8, 12, 31], [0, 0, 0.8, 0.3])
    reading = np.linspace(40, 3, 32) + draw.normal(size=(50, 1))
    curves = {"entropy": entropies, "MEXA, last token": meeting, "question": reading, "answer": reading + 2}
    found = {"entropy": find_layers(entropies), "feature, last_token": find_middle(meeting)}
    found["logits"] = find_readable(reading, reading + 2, 1000)
    return Layers({name: LayerCurve(one) for name, one in curves.items()}, {**found, **rules}, 1000, True)


def test_what_is_shown(tmp_path: Path) -> None:
    layers = made_up()
    shown = table(layers)
    assert shown.splitlines()[0].split() == ["layer", "entropy", "MEXA", "last", "question", "answer"]
    assert "guessing takes ln 1000 = 6.91" in shown and "one matrix (tied)" in shown
    assert "The same layers, each within one, in 100 % of the resamples. Runner-up: 2 and " in shown
    assert shown.endswith("conversion_layer: 2, thinking_layer: 15 (the two drops, for both signals)")
    files = write_layers(layers, tmp_path / "llama.2.json", "中文")
    assert [file.name for file in files] == ["llama.2.json", "llama.2.png", "llama.2.svg"]
    again = write_layers(layers, tmp_path / "again" / "llama.2", "中文", layers.rules["entropy"])
    assert again[2].read_text() == files[2].read_text()
    assert json.loads(again[0].read_text())["thinking_layer"] == 15


def test_confidence_is_shown_only_where_something_was_found() -> None:
    shown = table(made_up(entropy=find_layers(np.full((50, 32), 5.0))))
    assert "Entropy: no two drops: the curve is flat (5.00 to 5.00 nats); the paper's relative depths" in shown
    said = next(line for line in shown.splitlines() if line.startswith("Entropy"))
    assert "resamples" not in said
    pairs = [line for line in shown.splitlines() if line.startswith("conversion_layer")]
    assert [line.partition("(")[2] for line in pairs] == ["logits signal)", "feature signal, pooling last_token)"]


def test_one_example_has_no_interval(base: Path, data: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    examples, _ = read_examples(data)
    shown = table(choose_layers(model, tokenizer, examples, limit=1))
    assert "nan" not in shown and shown.count("±") == 1


def test_questions_beyond_the_context_are_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = load_run(write_base(tmp_path, max_position_embeddings=16))
    long, short = (Text(prompt="问" * count) for count in (40, 2))
    examples = [ParallelExample(str(n), "zh", text, where=f"f:{n}") for n, text in enumerate((long, short))]
    assert choose_layers(run.model, run.tokenizer, examples, style="plain").curves["entropy"].examples == 2
    assert "1 questions were read up to token 16 only" in caplog.text


def test_english_read_by_a_tuned_lens(base: Path, data: Path) -> None:
    run = load_run(base)
    examples, _ = read_examples(data)
    plain, tuned = (choose_layers(run.model, run.tokenizer, examples, reader=one) for one in READERS)
    assert (plain.reader, tuned.reader) == ("logit_lens", "tuned_lens")
    for name, curve in plain.curves.items():
        same = np.isclose(curve.mean, tuned.curves[name].mean, rtol=1e-6)
        if name in ("question", "answer"):
            assert same[-1] and not same[:-1].any()  # the last layer is the model's own output
        else:
            assert same.all()
    assert "read by the tuned lens; guessing takes" in table(tuned)
    assert tuned.as_dict()["reader"] == "tuned_lens"
    with pytest.raises(PivotuneError, match="reader: got 'lens'"):
        choose_layers(run.model, run.tokenizer, examples, reader="lens")
