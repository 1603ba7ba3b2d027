"""Answers in batches equal answers one by one; prompts come from arguments, files and standard input."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import pivotune.generation
from pivotune.answers import AnswerFile
from pivotune.cli import main
from pivotune.connection import connect
from pivotune.data import ParallelExample
from pivotune.errors import PivotuneError
from pivotune.files import locked_file, write_text
from pivotune.generation import _state, generate, generate_texts, load
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
    with pytest.raises(PivotuneError, match="not trained with a connection"):
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
        (["a", "--connection", "english"], ["connection", "not trained with a connection"]),
        (["a", "--output", "no/such/folder/x"], ["output", "does not exist"]),
        (["a", "--output", "."], ["output", "is a folder"]),
        (["a", "--output", __file__], ["output", "already exists", "--overwrite true"]),
        (["--prompts_file", "."], ["prompts_file", "is a folder"]),
        (["--prompts_file", __file__], ["prompts_file", "'.py'", ".txt holds one question per line"]),
        (["--prompts_file", "nowhere.jsonl"], ["prompts_file", "no such file"]),
        (["a", "--columns", "{x: instruction}"], ["columns", "no effect on plain text"]),
        (["caf\udce9"], ["prompt 1", "not in the encoding of this terminal"]),
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


# Files and streams ----------------------------------------------------------------------------------------------------

ODD = "one\u2028two\u0085three\x0bfour\x0cfive"


@pytest.mark.parametrize("content", [f"\ufeff{ODD}\r\n\r\nnext\r\n", f"{ODD}\n \n\nnext"])
@pytest.mark.parametrize("source", ["file", "FILE", "stream"])
def test_lines_end_at_newlines_alone(
    base: Path, content: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / ("p.TXT" if source == "FILE" else "p.txt")
    text.write_bytes(content.encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode()), encoding="ascii"))
    given = [] if source == "stream" else ["--prompts_file", str(text)]
    main(["generate", str(base), *given, "--output", str(tmp_path / "a.jsonl"), "--max_new_tokens", "1"])
    saved = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [row["prompt"] for row in saved] == [ODD, "next"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\ncaf\xe9\n", ["p.txt:2", "not UTF-8 at byte 3"]),
        ("é".encode("utf-16"), ["p.txt", "UTF-16", "iconv"]),
        ("a\n".encode("utf-16-be"), ["p.txt:1", "NUL"]),
        (b"\x1f\x8b\x08", ["p.txt", "add .gz"]),
        (b"\n \r\n", ["prompts: there is none"]),
    ],
)
def test_what_is_no_text_is_one_error(
    base: Path, content: bytes, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(SystemExit):
        main(["generate", str(base), "--prompts_file", str(tmp_path / "p.txt")])
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and all(word in error for word in words), error


def test_standard_input_has_its_own_encoding(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("café\n".encode("latin-1")), encoding="latin-1"))
    main(["generate", str(base), "--max_new_tokens", "2"])
    answer = capsys.readouterr().out
    main(["generate", str(base), "café", "--max_new_tokens", "2"])
    assert capsys.readouterr().out == answer
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ok\ncaf\xe9\n"), encoding="utf-8"))
    with pytest.raises(SystemExit):
        main(["generate", str(base)])
    assert "standard input:2: malformed text: not UTF-8 at byte 3" in capsys.readouterr().err


def test_standard_output_that_lacks_letters(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii"))
    answers = generate(str(base), QUESTIONS, style="plain", max_new_tokens=8)
    sys.stdout.flush()
    expected = [answer.encode("ascii", "backslashreplace") for answer in answers]
    assert printed.getvalue().split(b"\n")[:-1] == b"\n".join(expected).split(b"\n") and not "".join(answers).isascii()
    assert [one.getMessage()[:24] for one in caplog.records] == ["standard output is ascii"]


def answer_options(base: Path, folder: Path, **more: Any) -> dict[str, Any]:
    prompts = folder / "p.txt"
    prompts.write_text("".join(f"{question}\n" for question in [*QUESTIONS, *"一二三四五"]), encoding="utf-8")
    return {
        **{"run": str(base), "prompts_file": str(prompts), "output": str(folder / "a.jsonl"), "style": "plain"},
        **{"max_new_tokens": 6, "batch_size": 2, **more},
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_call_goes_on(
    base: Path, tmp_path: Path, temperature: float, stop: int, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    options = answer_options(base, tmp_path, temperature=temperature)
    output, part = tmp_path / "a.jsonl", tmp_path / "a.jsonl.part"
    expected = generate(**options)
    whole = output.read_bytes()
    output.unlink()
    made = pivotune.generation.generate_batches

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        for number, batch in enumerate(made(*args, **kwargs)):
            if number == stop:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(pivotune.generation, "generate_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(**options)
    assert not output.exists() and part.exists() == (stop > 0)
    if stop:
        assert f"{2 * stop} answers are in {part}" in caplog.text
        with part.open("ab") as file:
            file.write(b'[3, "cut while it was writ')
        assert generate(**options) == expected
        assert f"holds {2 * stop} of 9 answers" in caplog.text
    else:
        assert generate(**options) == expected
    assert output.read_bytes() == whole and not part.exists()


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 5), ("max_new_tokens", 7), ("temperature", 0.5), ("style", "alpaca"), ("num_beams", 2)]
)
def test_other_options_do_not_go_on(base: Path, tmp_path: Path, name: str, value: Any) -> None:
    options = answer_options(base, tmp_path)
    interrupt(options)
    with pytest.raises(PivotuneError, match=rf"a\.jsonl\.part holds 2 answers .* another {name} .*--overwrite true"):
        generate(**options | {name: value})
    assert len(generate(**options | {name: value, "overwrite": True})) == 9


def interrupt(options: dict[str, Any]) -> None:
    """Leave what a call leaves that is killed behind its first batch."""
    with pytest.MonkeyPatch.context() as patched:

        def killed(self: AnswerFile, answers: Any) -> None:
            add(self, answers)
            raise KeyboardInterrupt

        add = AnswerFile.add
        patched.setattr(AnswerFile, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            generate(**options)


def test_other_prompts_or_another_state_of_the_run_do_not_go_on(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(base, run)
    options = answer_options(run, tmp_path)
    interrupt(options)
    os.utime(run / "model.safetensors", (1, 1))
    with pytest.raises(PivotuneError, match="another state of the run"):
        generate(**options)
    (tmp_path / "p.txt").write_text("another\n")
    with pytest.raises(PivotuneError, match="another set of prompts"):
        generate(**options)


@pytest.mark.parametrize("content", [b"mine", b"", b"\xff\n", b"[1]\n", b'{"id": 1}\n'])
def test_a_file_of_the_users_is_not_the_unfinished_one(base: Path, tmp_path: Path, content: bytes) -> None:
    options = answer_options(base, tmp_path, overwrite=True)
    (tmp_path / "a.jsonl.part").write_bytes(content)
    with pytest.raises(PivotuneError, match=r"a\.jsonl\.part .* is a file of yours"):
        generate(**options)
    assert (tmp_path / "a.jsonl.part").read_bytes() == content


@pytest.mark.parametrize("fails", ["r+b", "replace"])
def test_a_full_disk_keeps_what_was_made(
    base: Path, tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = answer_options(base, tmp_path)
    expected = generate(**options)
    (tmp_path / "a.jsonl").unlink()
    opened, tries = Path.open, iter(range(100))

    def open_full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == fails and next(tries) == 2:
            raise OSError(28, "No space left on device")
        return opened(self, mode, *args, **kwargs)

    def write_full(path: Path, content: str) -> None:
        if fails == "replace" and path.name == "a.jsonl":
            raise OSError(28, "No space left on device")
        write_text(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_full)
        patched.setattr("pivotune.answers.write_text", write_full)
        with pytest.raises(PivotuneError, match=r"cannot be written: No space .* [49] answers are in .*a\.jsonl\.part"):
            generate(**options)
    assert generate(**options) == expected


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGTERM"])
def test_a_killed_call_goes_on(base: Path, tmp_path: Path, sent: str) -> None:
    options = answer_options(base, tmp_path, max_new_tokens=60)
    options["prompts_file"] = str(tmp_path / "many.txt")
    Path(options["prompts_file"]).write_text("".join(f"sleep {n}\n" for n in range(30)))
    code = f"import pivotune.generation as g; g.generate(**{options!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    part = tmp_path / "a.jsonl.part"
    while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < 3):
        time.sleep(0.02)
    process.send_signal(getattr(signal, sent))
    process.wait()
    assert part.exists() and not (tmp_path / "a.jsonl").exists()
    kept = [json.loads(line) for line in part.read_text("utf-8").split("\n")[1:-1]]
    answers = generate(**options)
    assert len(answers) == 30 and all(answers[place] == text for place, text in kept) and not part.exists()


def test_two_calls_do_not_write_one_file(base: Path, tmp_path: Path) -> None:
    with locked_file("output", tmp_path / "a.jsonl"):
        code = (
            "from pivotune.cli import main; "
            f"main(['generate', {str(base)!r}, 'a', '--output', {str(tmp_path / 'a.jsonl')!r}])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "another process is writing into" in done.stderr, done.stderr


def test_answers_inside_the_run_folder_go_on(base: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(base, tmp_path / "run"))
    before = _state(run)
    (run / "a.jsonl.part").write_text("{}")
    assert _state(run) == before
    (run / "config.json").write_text((run / "config.json").read_text() + " ")
    assert _state(run) != before
