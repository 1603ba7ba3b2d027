"""Answers in batches equal answers one by one; prompts come from arguments, files and standard input."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pivotune.cli import main
from pivotune.connection import connect
from pivotune.data import ParallelExample
from pivotune.errors import PivotuneError
from pivotune.generation import generate_texts, load
from pivotune.objectives import CCTuningConfig
from pivotune.objectives.cc_tuning import LinearConnection
from tests.runs import write_base

QUESTIONS = ["保持健康的提示", "睡眠", "give three tips for staying healthy", "Ăn uống đều đặn"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def opened(base: Path, connected: bool) -> tuple[Any, Any]:
    model, tokenizer = load(base, dtype=torch.float64)
    if connected:
        L, d = model.config.num_hidden_layers, model.config.hidden_size
        generator = torch.Generator().manual_seed(1)
        decision_maker = torch.randn(L, d, dtype=torch.float64, generator=generator)
        matrix = torch.randn(d, d, dtype=torch.float64, generator=generator)
        connect(model, LinearConnection(model, CCTuningConfig(), decision_maker, matrix))
    return model, tokenizer


def example(question: str, language: str, english: str | None = None) -> ParallelExample:
    row = {"prompt": question, "language": language} | ({"english": {"prompt": english}} if english else {})
    return ParallelExample.from_dict(row, answered=False)


@pytest.mark.parametrize("connected", [False, True])
def test_batches_equal_one_by_one(base: Path, connected: bool) -> None:
    model, tokenizer = opened(base, connected)
    together = generate_texts(model, tokenizer, QUESTIONS, style="plain", batch_size=3, max_new_tokens=8)
    alone = [generate_texts(model, tokenizer, [q], style="plain", max_new_tokens=8)[0] for q in QUESTIONS]
    assert together == alone
    assert len(set(together)) > 1


def test_english_questions_are_not_connected(base: Path) -> None:
    model, tokenizer = opened(base, connected=True)

    def ask(language: str, connection: Any = None) -> list[str]:
        questions = [example(q, language) for q in QUESTIONS[2:3]]
        return generate_texts(model, tokenizer, questions, style="plain", connection=connection, max_new_tokens=8)

    assert ask("en") == ask("en", "none") == ask("und", "none") != ask("und")


def test_real_english_comes_from_the_examples(base: Path) -> None:
    model, tokenizer = opened(base, connected=True)
    options: dict[str, Any] = {"style": "plain", "connection": "english", "max_new_tokens": 8}
    one = generate_texts(model, tokenizer, [example("睡眠", "zh", "sleep")], **options)
    other = generate_texts(model, tokenizer, [example("睡眠", "zh", "give three tips")], **options)
    assert one != other
    with pytest.raises(PivotuneError, match="'english' is missing"):
        generate_texts(model, tokenizer, [example("睡眠", "zh")], **options)
    with pytest.raises(PivotuneError, match="English counterpart of every prompt"):
        generate_texts(model, tokenizer, ["睡眠"], **options)


def test_a_run_without_connection_says_so(base: Path) -> None:
    with pytest.raises(PivotuneError, match="not trained with CC-Tuning"):
        load(base, "matrix")
    model, tokenizer = load(base, "none")
    assert generate_texts(model, tokenizer, QUESTIONS[:1], connection="none", max_new_tokens=1)
    assert generate_texts(model, tokenizer, []) == []


def test_the_command_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arguments, a text file, JSON lines and standard input give the same answers in the same order."""
    more = ["--style", "plain", "--max_new_tokens", "6", "--batch_size", "2"]

    def answers(arguments: list[str]) -> list[str]:
        main(["generate", str(base), *arguments, *more])
        return capsys.readouterr().out.splitlines()

    expected = answers(QUESTIONS)
    assert len(expected) == len(QUESTIONS)
    text = tmp_path / "prompts.txt"
    text.write_text("\n".join(QUESTIONS), encoding="utf-8")
    assert answers(["--prompts_file", str(text)]) == expected
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("\n".join(json.dumps({"id": q, "prompt": q}) for q in QUESTIONS), encoding="utf-8")
    assert answers(["--prompts_file", str(rows)]) == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(QUESTIONS) + "\n"))
    assert answers([]) == expected
    output = tmp_path / "answers.jsonl"
    assert answers(["--prompts_file", str(rows), "--output", str(output)]) == []
    saved = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert saved == [{"id": q, "prompt": q, "answer": a} for q, a in zip(QUESTIONS, expected, strict=True)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts_file", "nowhere.txt"], ["prompts_file", "nowhere.txt"]),
        (["a", "--prompts_file", "b.txt"], ["prompts", "choose one"]),
        (["a", "--temperature", "-1"], ["temperature", "-1"]),
        (["a", "--batch_size", "0"], ["batch_size", "0"]),
        (["a", "--connection", "english"], ["connection", "not trained with CC-Tuning"]),
        (["a", "--output", "no/such/folder/x"], ["output", "does not exist"]),
        (["a", "--max_token", "3"], ["max_token", "did you mean"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_mistakes_end_in_one_message(
    base: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["generate", str(base), *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.count("pivotune: error:") == 1
    assert all(word in error for word in words), error
