"""The command line: help, overrides, and one clear message for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

import pivotune
from pivotune import cli
from pivotune.checkpoint import INFO
from tests.runs import rows, write_base, write_rows

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run_file(base: Path, tmp_path: Path) -> Path:
    content = {
        "output": str(tmp_path / "run"),
        "model": {"path": str(base)},
        "data": {"train": str(write_rows(tmp_path / "train.jsonl", rows(20)))},
        "deep_supervision": {"conversion_layer": 1, "thinking_layer": 2},
        "training": {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The message of a command that ends with status 2: one line or a few on standard error, no traceback."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    (start,) = [line for line in message.splitlines() if line.startswith("pivotune: error: ")]
    return message[message.index(start) :].removeprefix("pivotune: error: ")


def test_train_with_overrides(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", str(run_file), "--training.max_steps", "2", "--deep_supervision.thinking_weight=0.5"])
    printed = capsys.readouterr().out
    assert f"The run is in {tmp_path / 'run'}." in printed
    assert "data.train: 20 kept, 0 skipped" in printed
    info = json.loads((tmp_path / "run" / INFO).read_text())
    assert info["steps"] == 2
    assert info["objectives"]["deep_supervision"]["thinking_weight"] == 0.5


def test_a_later_file_wins(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("training: {max_steps: 7, learning_rate: 1e-3}\nlora: {r: 8}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(run_file), str(more), "--print_config"])
    assert ended.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["training"]["max_steps"] == 7
    assert float(shown["training"]["learning_rate"]) == 1e-3
    assert shown["training"]["per_device_train_batch_size"] == 4
    assert shown["lora"]["r"] == 8


def test_what_print_config_shows_can_be_run(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", str(run_file), "--print_config"])
    whole = tmp_path / "whole.yaml"
    whole.write_text(capsys.readouterr().out)
    cli.main(["train", str(whole)])
    assert (tmp_path / "run" / INFO).exists()


@pytest.mark.parametrize(
    ("content", "words", "expected"),
    [
        ("", [], ["deep_supervision"]),
        ("cc_tuning: {}", [], ["deep_supervision", "cc_tuning"]),
        ("cc_tuning:", [], ["deep_supervision", "cc_tuning"]),
        ("cc_tuning: true", [], ["deep_supervision", "cc_tuning"]),
        ("cc_tuning: {ridge: 0.1}", [], ["deep_supervision", "cc_tuning"]),
        ("cc_tuning: false", [], ["deep_supervision"]),
        ("deep_supervision: false", [], []),
        ("deep_supervision: false", ["--cc_tuning"], ["cc_tuning"]),
        ("", ["--cc_tuning"], ["deep_supervision", "cc_tuning"]),
        ("", ["--cc_tuning.ridge", "0.1"], ["deep_supervision", "cc_tuning"]),
        ("cc_tuning: {ridge: 0.1}", ["--cc_tuning", "false"], ["deep_supervision"]),
        ("cc_tuning: false", ["--cc_tuning=true"], ["deep_supervision", "cc_tuning"]),
        ("", ["--deep_supervision", "no"], []),
    ],
)
def test_the_sections_are_the_method(
    content: str, words: list[str], expected: list[str], run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = run_file.with_name("more.yaml")
    more.write_text(content or "lora: {r: 0}")
    with pytest.raises(SystemExit):
        cli.main(["train", str(run_file), str(more), *words, "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert [name for name in ("deep_supervision", "cc_tuning") if name in shown] == expected
    if "deep_supervision" in expected:
        assert shown["deep_supervision"]["thinking_layer"] == 2


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.learnin_rate", "1e-3"], "'training.learnin_rate'; did you mean 'training.learning_rate'?"),
        (["--max_steps", "3"], "unknown option 'max_steps'; did you mean 'training.max_steps'?"),
        (["--deep_supervision.conversion_layers=3"], "did you mean 'deep_supervision.conversion_layer'?"),
        (["--training.torch_compile", "true"], "training.torch_compile is not supported: the objectives' hooks change"),
        (["--training.max_steps", "many"], "training.max_steps: got 'many'; give a whole number."),
        (["--training.lr_scheduler_type", "cosin"], "cosin is not a valid SchedulerType, please select one of"),
        (["--training.report_to", "nowhere"], "nowhere is not supported"),
        (["--method", "cc_tuning"], "method is not supported: the sections that are there are the method (deep_supe"),
        (["--cc_tuning", "yes", "--cc_tuning.temperature", "0"], "cc_tuning.temperature: got 0.0"),
        (["--cc_tuning", "2"], "cc_tuning: got '2'; give true or false."),
        (["--objectives", "cc_tuning"], "unknown option 'objectives'"),
        (["--deep_supervision.thinking_layer", "x"], "thinking_layer: got 'x'; give a whole number or 'auto'."),
        (["--deep_supervision.thinking_layer", "40"], "got 40, but this llama model has decoder layers 1..3"),
        (["--deep_supervision.conversion_weight", "-1"], "deep_supervision.conversion_weight: got -1"),
        (["--data.train", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--model.path", "/no/such/model"], "/no/such/model"),
        (["--lora.r", "4", "--lora.target_modules", "q_prj"], "lora: Target modules q_prj not found in the base model"),
        (["--training.resume_from_checkpoint", "nothing"], "nothing is not a complete checkpoint"),
    ],
)  # fmt: skip
def test_mistakes(arguments: list[str], message: str, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "train", run_file, *arguments)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("limit", "ten", "a whole number"),
        ("batch_size", "2.5", "a whole number"),
        ("softmax_dtype", "half", "one of 'float32', 'auto'"),
        ("restart", "perhaps", "true or false"),
    ],
)
def test_a_wrong_value_is_one_line(option: str, value: str, allowed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "evaluate", "run", f"--{option}", value) == f"{option}: got {value!r}; give {allowed}.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("training: {learnin_rate: 1}", "'training.learnin_rate'; did you mean 'training.learning_rate'?"),
        ("outptu: x", "unknown option 'outptu'; did you mean 'output'?"),
        ("method: both", "method is not supported: the sections that are there are the method"),
        ("cc_tuning: perhaps", "cc_tuning is a group of options, but its value is 'perhaps'"),
        ("model: true", "model is a group of options, but its value is True"),
        ("training: {push_to_hub: true}", "training.push_to_hub is not supported: upload the finished run folder"),
        ("model: some/path", "model is a group of options, but its value is 'some/path'"),
        ("output: [", "is not valid YAML"),
        ("- 1", "holds a list, but options have names"),
    ],
)
def test_mistakes_in_a_file(content: str, message: str, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = run_file.with_name("more.yaml")
    more.write_text(content)
    error = refused(capsys, "train", run_file, more)
    assert message in error
    assert str(more) in error


def test_a_missing_file_and_missing_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing.yaml" in refused(capsys, "train", "nothing.yaml")
    assert "required: output, model.path, data.train" in refused(capsys, "train")


def test_a_broken_line_is_named(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    lines[16] = lines[16][:-5]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert "train.jsonl:17: malformed line" in refused(capsys, "train", run_file)
    cli.main(["train", str(run_file), "--data.on_bad", "skip"])
    assert "skipped, malformed line: 1" in capsys.readouterr().out


def test_a_missing_english_field_is_named(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = rows(20)
    number = next(i for i, row in enumerate(made) if "english" in row)
    del made[number]["english"]["completion"]
    write_rows(tmp_path / "train.jsonl", made)
    message = refused(capsys, "train", run_file)
    assert f"train.jsonl:{number + 1}: missing English answer: " in message
    assert "deep_supervision.english_thinking: logits" in message


def test_an_unknown_architecture(
    run_file: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=500)).save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    message = refused(capsys, "train", run_file, "--model.path", folder)
    assert "architecture 'gpt2' (GPT2LMHeadModel) is not known to Pivotune" in message


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'trian'; did you mean 'train'?" in refused(capsys, "trian")


# Help ----------------------------------------------------------------------------------------------------------------


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for piece in (
        "--training.learning_rate LEARNING_RATE The initial learning rate",
        "--deep_supervision.conversion_layer",
        "the decoder layer (1..L) that LC supervises",
        "--cc_tuning.ridge",
        "--lora.r R rank of the adapters; 0 is full fine-tuning.",
        "default: 2e-05",
    ):
        assert piece in text
    assert "--training.label_smoothing_factor" not in text


def test_a_function_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "say", cli.Command("say", f"{__name__}:say", ("who", "words*")))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    cli.main(["say", "Ann", "one", "two", "--times", "2"])
    assert capsys.readouterr().out == "Ann: one two|one two\n"
    assert "unknown option 'tims'; did you mean 'times'?" in refused(capsys, "say", "Ann", "--tims", "2")
    with pytest.raises(SystemExit):
        cli.main(["say", "--help"])
    assert "how often" in capsys.readouterr().out


def say(who: str, words: list[str] | None = None, *, times: int = 1) -> None:
    """Say it.

    Args:
        who: speaks.
        words: what is said.
        times: how often.
    """
    print(f"{who}: " + "|".join([" ".join(words or [])] * times))


def test_the_overview_imports_nothing_heavy() -> None:
    code = "import sys, pivotune.cli as c; c.main(['--help']); c.main(['--version']); print('torch' in sys.modules)"
    path = os.pathsep.join([str(ROOT / "src"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout.endswith("False\n")
    assert f"pivotune {pivotune.__version__}" in done.stdout
    assert all(name in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "arguments", [[], ["generate", "--help"], ["generate", "BASE", "a", "b", "--max_new_tokens", "1"]]
)
def test_a_closed_pipe_ends_a_command_quietly(arguments: list[str], tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    command = [str(base) if one == "BASE" else one for one in arguments]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pivotune", *command], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode in (141, 0), done.stderr  # 0: argparse itself is content
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_another_broken_pipe_is_no_closed_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, arguments: list[str]) -> None:
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr("pivotune.cli._call", broken)
    monkeypatch.setattr("pivotune.cli._reader_is_gone", lambda: False)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        cli.main(["generate"])
