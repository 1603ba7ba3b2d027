"""Layers chosen from a model, and what is shown of the choice."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune.checkpoint import load_run
from pivotune.data import ParallelExample, Text, read_examples
from pivotune.errors import PivotuneError
from pivotune.lens import choose_layers, find_layers
from pivotune.lens.choice import table, write_choice
from tests.lens.test_rule import planted
from tests.runs import rows, write_base, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", rows(20))


def test_choose_layers(base: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    examples, _ = read_examples(data)
    with caplog.at_level(logging.WARNING):
        choice = choose_layers(model, tokenizer, iter(examples), language="zh")
    shapes = {name: curve.values.shape for name, curve in choice.curves.items()}
    assert shapes == {"target": (20, 8), "english": (15, 8)}
    assert replace(choice, curves={}) == find_layers(choice.curves["target"].values)
    assert not choice.found  # random weights
    assert f"layers: {choice.reason}." in caplog.text

    fewer = choose_layers(model, tokenizer, examples, limit=6)
    assert fewer.curves["target"].examples == 6
    own = {tuple(row) for row in choice.curves["target"].values.round(4)}
    assert {tuple(row) for row in fewer.curves["target"].values.round(4)} <= own
    assert choose_layers(model, tokenizer, examples, limit=None).curves["target"].examples == 20


def test_languages(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)

    def example(language: str, text: str) -> ParallelExample:
        return ParallelExample.from_dict({"language": language, "prompt": text, "completion": text}, "data:1")

    examples = [example("en", "give tips"), example("pt-BR", "dar dicas"), example("vi", "mẹo")]
    counts = lambda choice: {name: curve.examples for name, curve in choice.curves.items()}  # noqa: E731
    assert counts(choose_layers(model, tokenizer, examples)) == {"target": 2, "english": 1}
    assert counts(choose_layers(model, tokenizer, examples, language="pt")) == {"target": 1, "english": 1}
    assert counts(choose_layers(model, tokenizer, examples[1:])) == {"target": 2}
    with pytest.raises(PivotuneError, match=r"no question in 'zh' \(languages in the data: en, pt-BR, vi\)"):
        choose_layers(model, tokenizer, examples, language="zh")
    with pytest.raises(PivotuneError, match="no question that is not English"):
        choose_layers(model, tokenizer, examples[:1])


def test_what_is_shown(tmp_path: Path) -> None:
    from pivotune.lens.entropy import EntropyCurve

    values = planted(32, 2, 15, 22) + np.random.default_rng(0).normal(size=(50, 1))
    choice = replace(find_layers(values), curves={"target": EntropyCurve(values)})
    shown = table(choice)
    assert "    2   " in shown
    assert shown.splitlines()[2].endswith("<- i, conversion layer")
    assert shown.splitlines()[15].endswith("<- j, thinking layer")
    assert "confidence: 1.00" in shown
    assert "runner-up: 2, " in shown
    files = write_choice(choice, tmp_path / "llama.2.json", "中文")
    assert [file.name for file in files] == ["llama.2.json", "llama.2.png", "llama.2.svg"]
    again = write_choice(choice, tmp_path / "again" / "llama.2", "中文")
    assert again[2].read_text() == files[2].read_text()


def test_one_example_has_no_interval(base: Path, data: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    examples, _ = read_examples(data)
    shown = table(choose_layers(model, tokenizer, examples, limit=1))
    assert "nan" not in shown and "±" not in shown.partition("\n")[2]


def test_questions_beyond_the_context_are_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = load_run(write_base(tmp_path, max_position_embeddings=16))
    long, short = (Text(prompt="问" * count) for count in (40, 2))
    examples = [ParallelExample(str(n), "zh", text, where=f"f:{n}") for n, text in enumerate((long, short))]
    assert choose_layers(run.model, run.tokenizer, examples, style="plain").curves["target"].examples == 2
    assert "1 questions were read up to token 16 only" in caplog.text
