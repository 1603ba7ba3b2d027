"""The command line: help, overrides, and one clear message for each mistake."""

from __future__ import annotations

import functools
import inspect
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import pivotune
from pivotune import cli
from pivotune.checkpoint import INFO
from pivotune.errors import PivotuneError
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
        (["--training.group_by_length", "true"], "did you mean 'training.train_sampling_strategy'?"),
        (["--training.lr", "1e-4"], "did you mean 'training.learning_rate'?"),
        (["--epochs", "3"], "did you mean 'training.num_train_epochs'?"),
        (["--max_steps", "3"], "unknown option 'max_steps'; did you mean 'training.max_steps'?"),
        (["--deep_supervision.conversion_layers=3"], "did you mean 'deep_supervision.conversion_layer'?"),
        (["--training.torch_compile", "true"], "training.torch_compile is not supported: the objectives' hooks change"),
        (["--training.max_steps", "many"], "training.max_steps: got 'many'; give a whole number."),
        (["--training.lr_scheduler_type", "cosin"], "training.lr_scheduler_type: got 'cosin'; choose one of 'linear'"),
        (["--training.report_to", "nowhere"], "training.report_to: got 'nowhere'; choose one of"),
        (["--method", "cc_tuning"], "method is not supported: the sections that are there are the method (deep_supe"),
        (["--cc_tuning", "yes", "--cc_tuning.temperature", "0"], "cc_tuning.temperature: got 0.0"),
        (["--cc_tuning", "2"], "cc_tuning: got '2'; give true or false."),
        (["--objectives", "cc_tuning"], "unknown option 'objectives'"),
        (["--deep_supervision.thinking_layer", "x"], "thinking_layer: got 'x'; give a whole number or 'auto'."),
        (["--deep_supervision.thinking_layer", "40"], "got 40, but this llama model has decoder layers 1..3"),
        (["--deep_supervision.conversion_weight", "-1"], "deep_supervision.conversion_weight: got -1"),
        (["--data.train", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--model.path", "/no/such/model"], "/no/such/model"),
        (["--lora.r", "4", "--lora.target_modules", "q_prj"], "lora.target_modules: no layer is named 'q_prj'"),
        (["--training.resume_from_checkpoint", "nothing"], "resume_from_checkpoint: nothing: no such folder."),
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


def test_values_as_users_type_them(run_file: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read from --print_config, which a file of it gives back."""

    def shown(*arguments: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", str(run_file), *arguments, "--print_config"])
        assert ended.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    for words in (["zh,vi"], ["zh", "vi"], ["zh,", "vi"], ["[zh,", "vi]"]):
        assert shown("--data.languages", *words)["data"]["languages"] == ["zh", "vi"]
    assert shown("--data.languages=[zh,vi]", "--lora.r", "4")["data"]["languages"] == ["zh", "vi"]
    assert shown("--data.languages", "no")["data"]["languages"] == ["no"]
    assert shown("--lora.target_modules", "q_proj,v_proj")["lora"]["target_modules"] == ["q_proj", "v_proj"]
    assert shown("--data.train", "a.jsonl", "b.jsonl")["data"]["train"] == ["a.jsonl", "b.jsonl"]
    training = shown("--training.bf16", "--training.fsdp", "off", "--training.seed", "7")["training"]
    assert (training["bf16"], training["fsdp"], training["seed"]) == (True, False, 7)
    assert shown("--training.use_cpu", "No")["training"]["use_cpu"] is False
    assert shown("--training.learning_rate", "2e5")["training"]["learning_rate"] == 2e5
    assert shown("--training.optim_args=-x")["training"]["optim_args"] == "-x"
    assert shown("--training.weight_decay", "-0.5")["training"]["weight_decay"] == -0.5
    assert shown("--training.save_total_limit", "None")["training"]["save_total_limit"] is None
    kwargs = shown("--training.lr_scheduler_kwargs.min_lr", "1e-6")["training"]["lr_scheduler_kwargs"]
    assert kwargs == shown("--training.lr_scheduler_kwargs", "{min_lr: 1e-6}")["training"]["lr_scheduler_kwargs"]
    assert kwargs == {"min_lr": 1e-6}


def test_the_norwegian_problem(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = run_file.with_name("more.yaml")
    more.write_text(
        "data: {languages: [no, on, y]}\noutput: 010\n"
        "training: {save_strategy: no, eval_strategy: no, fsdp: off, learning_rate: 1e-5, max_steps: 010}\n"
    )
    with pytest.raises(SystemExit):
        cli.main(["train", str(run_file), str(more), "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["languages"] == ["no", "on", "y"]
    assert shown["output"] == "010"
    training = shown["training"]
    assert [training[name] for name in ("save_strategy", "eval_strategy", "fsdp")] == ["no", "no", False]
    assert (training["learning_rate"], training["max_steps"]) == (1e-5, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--training.learning_rate"], "training.learning_rate: has no value; give a number."),
        (["train", "--output"], "output: has no value; give text."),
        (["train", "--lora.r", "4", "8"], "command line: '8' belongs to no option and is no YAML file."),
        (["train", "--data.train", "a", "--data.train", "b"], "--data.train is given twice. Give all of its values"),
        (["train", "--training.learning-rate", "1"], "did you mean 'training.learning_rate'?"),
        (["train", "-o", "x"], "unknown option '-o'"),
        (["train", "--lora", "3"], "unknown option 'lora'; did you mean 'lora.r'?"),
        (["train", "--output", "null"], "output: got 'null'; give text."),
        (["generate"], "pivotune generate needs RUN; see pivotune generate --help."),
        (["lens", "run"], "pivotune lens needs --data; see pivotune lens --help."),
        (["evaluate", "run", "more"], "command line: 'more' belongs to no option."),
        (["generate", "run", "-x"], "unknown option '-x'"),
        (["evaluate", "run", "--limit", "--restart"], "limit: has no value; give a whole number."),
        (["compare"], "pivotune compare needs RUNS"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_words_that_fit_nowhere(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, *arguments)


def test_words_and_where_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches, lists and what is left of them, in any order; -- ends the options."""
    given: dict[str, Any] = {}

    def ask(
        run: str,
        prompts: list[str] | None = None,
        *,
        languages: str | list[str] | None = None,
        overwrite: bool = False,
        columns: dict[str, str | None] | None = None,
        seed: int = 0,
    ) -> None:
        given.update(run=run, prompts=prompts, languages=languages, overwrite=overwrite, columns=columns, seed=seed)

    monkeypatch.setitem(cli.COMMANDS, "ask", cli.Command("ask", "here:ask", ("run", "prompts*")))
    monkeypatch.setattr(cli, "_function", lambda command: ask)

    def said(*arguments: str) -> tuple[Any, ...]:
        given.clear()
        cli.main(["ask", *arguments])
        return tuple(value for value in given.values() if value)

    assert said("r", "p", "q") == ("r", ["p", "q"])
    assert said("--overwrite", "r") == ("r", True)
    assert said("--overwrite", "no", "r") == ("r",)
    assert said("r", "--overwrite") == ("r", True)
    assert said("--languages", "zh", "vi", "r") == ("r", ["zh", "vi"])
    assert said("--languages", "zh,vi", "r") == ("r", ["zh", "vi"])
    assert said("r", "--languages", "zh", "vi") == ("r", ["zh", "vi"])
    assert said("--seed", "3", "r", "- what?", "-5 + 3?") == ("r", ["- what?", "-5 + 3?"], 3)
    assert said("r", "--seed", "3", "--", "--seed", "-h") == ("r", ["--seed", "-h"], 3)
    assert said("r", "--columns.text", "no", "--columns.answer=null") == ("r", {"text": "no", "answer": None})
    assert said("r", "--seed", "1", "--seed", "2") == ("r", 2)


RANGES = {
    "generate": "batch_size 0, batch_size -1, max_new_tokens 0, num_beams 0, temperature -1, seed -1, seed 4294967296, "
    "style markdown, connection matrix, connection english",
    "evaluate": "batch_size 0, max_new_tokens 0, limit 0, limit -3, style auto, connection matrix, languages xx, "
    "languages []",
    "layers": "batch_size 0, limit -1, max_length 0, seed -1, style markdown",
    "lens": "batch_size 0, limit -1, max_length 1, block 1, seed -1, style markdown, layers 1, layers 1 9, "
    "layers 1 2 3, layers one two, measures entropy heat, measures []",
    "demo": "epochs 0, epochs -1, seed -1, languages xx, languages en, languages []",
}


@pytest.mark.parametrize(
    "words", [f"{name} --{words}" for name, found in RANGES.items() for words in found.split(", ")]
)
def test_values_out_of_range(
    words: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before a model is loaded or a benchmark is read."""

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it went on")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr("pivotune.evaluation.runner.load", never)
    data = write_rows(tmp_path / "data.jsonl", rows(4))
    name, *options = words.split(" ")
    start = {
        "generate": [base, "hello"],
        "evaluate": [base, "--benchmarks", "xquad", "--data_dir", tmp_path, "--output", tmp_path / "evaluation"],
        "layers": [base, "--data", data],
        "lens": [base, "--data", data, "--output", tmp_path / "lens"],
        "demo": ["--output", tmp_path / "demo"],
    }[name]
    message = refused(capsys, name, *start, *options)
    assert message.startswith(f"{options[0].removeprefix('--')}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_lists_of_the_other_commands(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows(8))
    reports = []
    for number, words in enumerate((["entropy,similarity"], ["entropy", "similarity"], ["[entropy,", "similarity]"])):
        output = tmp_path / str(number)
        options = [
            "--data",
            str(data),
            "--output",
            str(output),
            "--languages",
            "zh",
            "--layers",
            "1",
            "3",
            "--measures",
        ]
        cli.main(["lens", str(base), *options, *words])
        reports.append(json.loads((output / "lens.json").read_text()))
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["layers"] == {"conversion": 1, "thinking": 3, "count": 3}
    assert {"entropy", "similarity"} <= set(reports[0]["languages"]["zh"])


NEEDED = {"layers": ["--data=data"], "lens": ["--data=data"], "export": ["--output=out"]}
JUNK = ["@", "[", "{", "[1, {a: 2}]", "{a: b}", "nan", "-1e999", "9" * 400, "ключ", "a,b", "-7", "", "null", "True"]


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_junk_in_every_option(
    name: str, run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the option; where the junk may be text, the command is reached."""
    command = cli._function(cli.COMMANDS[name])

    def reached(*arguments: Any, **options: Any) -> None:
        if name == "train":
            arguments[0].check()
        raise PivotuneError("reached")

    monkeypatch.setattr(cli, "_function", lambda _: functools.wraps(command)(reached))
    if name == "train":
        options, start = list(cli._Configuration().kinds), [name, str(run_file)]
    else:
        positional = [one.removesuffix("*") for one in cli.COMMANDS[name].positional]
        options = [one for one in inspect.signature(command).parameters if one not in positional]
        start = [name, "run", *NEEDED.get(name, [])]
    start = [one for one in start if one != "run" or name != "demo"]
    for option in options:
        for junk in JUNK:
            message = refused(capsys, *start, f"--{option}={junk}").rstrip("\n")
            assert "\n" not in message, (option, junk)
            words = ("class", "typing", "Traceback", "NoneType", "Union", "Literal", "Enum")
            assert not any(word in message for word in words), (option, junk, message)
            group = option.partition(".")[0]
            assert message == "reached" or group in message, (option, junk, message)


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
    "arguments",
    [
        [],
        pytest.param(["generate", "--help"], marks=pytest.mark.slow),
        pytest.param(["generate", "BASE", "a", "b", "--max_new_tokens", "1"], marks=pytest.mark.slow),
    ],
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


@pytest.mark.parametrize(
    ("closed", "arguments", "status", "message"),
    [
        (">&-", ["--version"], 0, ""),
        ("> /dev/full", ["--version"], 2, "pivotune: error: standard output: No space left on device."),
        ("<&-", ["generate", "BASE"], 2, "prompts: there is none."),
    ],
)
def test_streams_that_are_closed_or_full(
    closed: str, arguments: list[str], status: int, message: str, base: Path
) -> None:
    words = [str(base) if word == "BASE" else word for word in arguments]
    command = f"{shlex.join([sys.executable, '-m', 'pivotune', *words])} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data.train", "zh.jsonl", "s.yaml"], "data.train: s.yaml stands behind it"),
        (["train", "--data.chat_template_kwargs", "{a:false}"], "give names with values, such as {name: value}"),
        (["layers", "BASE", "--data", "x.jsonl", "--output", "n" * 300], "is too long; give one of at most 240 bytes"),
        (["layers", "BASE", "--data", "x.jsonl", "--output", "BASE/config", "--overwrite"], "in the folder of a model"),
    ],
)
def test_what_newcomers_try(
    arguments: list[str], message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.jsonl").write_text('{"instruction": "你好", "language": "zh"}\n', encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        cli.main([word.replace("BASE", str(base)).replace("x.jsonl", str(tmp_path / "x.jsonl")) for word in arguments])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
