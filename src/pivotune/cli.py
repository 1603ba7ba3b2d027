"""The command line. It reads options and calls a function; what the functions do is theirs.

Every command but `train` is a function whose signature and docstring are its options and its help. Adding one takes one
line in `COMMANDS`. Nothing heavy is imported before a command is chosen.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import io
import logging
import os
import re
import select
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pivotune import __version__
from pivotune.errors import PivotuneError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclasses.dataclass(frozen=True)
class Command:
    """A function as a command.

    Attributes:
        summary: one line for the overview.
        function: "module:name" of the function.
        positional: its parameters that are given without their name; one that ends in * takes any number.
    """

    summary: str
    function: str
    positional: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("fine-tune a model: sft, deep_supervision, cc_tuning or both", "pivotune.training:train"),
    "generate": Command("answer prompts with a run", "pivotune.generation:generate", ("run", "prompts*")),
    "evaluate": Command("the papers' benchmarks on a run", "pivotune.evaluation.evaluate:evaluate", ("run",)),
    "layers": Command("which layers to supervise: entropy per layer", "pivotune.lens.layers:layers", ("model",)),
    "lens": Command("language, similarity and calibration of each layer", "pivotune.lens.inspect:lens", ("run",)),
    "compare": Command("evaluated runs side by side", "pivotune.evaluation.compare:compare", ("runs*",)),
    "demo": Command("the whole story on this machine, without a download", "pivotune.lab.demo:demo"),
}

# The types of options in the parser's messages.
_KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; mistakes of the user end in one message on standard error and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        raise SystemExit(141) from None  # what a shell says of any other program then


def _reader_is_gone() -> bool:
    """Whether whoever read standard output, such as `| head`, has had enough."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    if arguments[0] == "--version":
        print(f"pivotune {__version__}")
        return
    name = arguments.pop(0)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        if name not in COMMANDS:
            raise PivotuneError(f"unknown command {name!r}{_suggestion(name, COMMANDS)} Known: {', '.join(COMMANDS)}.")
        (_train if name == "train" else _call)(name, arguments)
    except (PivotuneError, ArgumentError) as error:
        print(f"pivotune: error: {_message(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("pivotune: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _message(error: Exception) -> str:
    """One line for an option's wrong value, of which the parser makes up to eight: option, value, what is allowed."""
    said = str(error)
    found = re.fullmatch(r'Parser key "([^"]+)":\n(.*)(?:Given|Got) value: (.*)', said, re.DOTALL)
    if not found:
        return said
    option, problem, value = found.groups()
    kinds = dict.fromkeys(re.findall(r"Expected an? (.+?)(?:\. |\n)", problem))
    allowed = [_KINDS.get(kind) or _literal(kind) for kind in kinds if kind != "<class 'NoneType'>"]
    return f"{option}: got {value!r}; give {' or '.join(allowed)}." if allowed else said


def _literal(kind: str) -> str:
    """typing.Literal['a', 'b'] as words; another kind as it is."""
    found = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if not found:
        return kind
    return f"one of {found[1]}" if "," in found[1] else found[1]


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: pivotune COMMAND ...", "", "Improve an English-centric language model in other languages.", ""]
    lines += [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`pivotune COMMAND --help` explains every option of a command."])


# train: a configuration --------------------------------------------------------------------------------------------


def _train(name: str, arguments: list[str]) -> None:
    import jsonargparse
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # exported, though not in its __all__

    from pivotune.config import HIDDEN, NOT_SUPPORTED, RunConfig, TrainingOptions

    parser = jsonargparse.ArgumentParser(
        prog=f"pivotune {name}",
        usage="%(prog)s RUN.yaml [MORE.yaml ...] [--option value ...]",
        description="Fine-tune a model. Options come from YAML files, later ones and the command line winning.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="the same as a positional YAML file.")
    parser.add_class_arguments(RunConfig, as_group=False, skip={"training"})
    parser.add_class_arguments(TrainingOptions, "training", instantiate=False, skip=HIDDEN)
    arguments = _files_first(arguments)
    known = _known_options(parser)
    reasons = {f"training.{option}": reason for option, reason in NOT_SUPPORTED.items()}
    _refuse_unknown(_options_in(arguments), known, reasons, "command line")
    for file in _config_files(arguments):
        _refuse_unknown(_keys_of(file, known), known, reasons, file)
    chosen = parser.parse_args(arguments)
    created = parser.instantiate(chosen)
    try:
        training = TrainingOptions(**vars(chosen.training))
    except (ValueError, ImportError) as error:
        raise PivotuneError(f"training: {error}") from error
    fields = {field.name: getattr(created, field.name) for field in dataclasses.fields(RunConfig)}
    folder = _function(COMMANDS[name])(RunConfig(**{**fields, "training": training}))
    if training.process_index == 0:
        print(f"The run is in {folder}.")


def _files_first(arguments: list[str]) -> list[str]:
    """Leading positional arguments are configuration files."""
    count = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return [part for file in arguments[:count] for part in ("--config", file)] + arguments[count:]


def _config_files(arguments: list[str]) -> list[str]:
    files = [value for option, value in pairwise(arguments) if option == "--config"]
    files += [argument.removeprefix("--config=") for argument in arguments if argument.startswith("--config=")]
    return [file for file in files if Path(file).is_file()]  # the parser reports a missing one


def _keys_of(file: str, known: Iterable[str]) -> list[str]:
    """The options that a YAML file sets, in dotted form."""
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PivotuneError(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise PivotuneError(f"{file}: holds a {type(content).__name__}, but options have names. Write name: value.")
    keys: list[str] = []

    def walk(node: dict[Any, Any], prefix: str) -> None:
        for key, value in node.items():
            path = f"{prefix}{key}"
            is_group = any(option.startswith(f"{path}.") for option in known)
            if is_group and isinstance(value, dict):
                walk(value, f"{path}.")
            elif is_group and value is not None:
                raise PivotuneError(f"{file}: {path} is a group of options, but its value is {value!r}.")
            else:
                keys.append(path)

    walk(content, "")
    return keys


# Other commands: functions -----------------------------------------------------------------------------------------


def _call(name: str, arguments: list[str]) -> None:
    import jsonargparse

    command = COMMANDS[name]
    function = _function(command)
    names = [one.removesuffix("*") for one in command.positional]
    many = {one.removesuffix("*") for one in command.positional if one.endswith("*")}
    summary, described = _documentation(function)
    parser = jsonargparse.ArgumentParser(prog=f"pivotune {name}", description=summary, exit_on_error=False)
    for one in names:
        extra: dict[str, Any] = {"nargs": "*", "default": []} if one in many else {}
        parser.add_argument(one, help=described.get(one, ""), **extra)
    parser.add_function_arguments(function, as_group=False, skip=set(names))
    _refuse_unknown(_options_in(arguments), _known_options(parser), {}, "command line")
    chosen = vars(parser.instantiate(parser.parse_args(arguments)))
    function(**{option: value for option, value in chosen.items() if option != "config"})


def _function(command: Command) -> Callable[..., Any]:
    module, _, attribute = command.function.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("pivotune"):
            raise PivotuneError(f"this installation of Pivotune has no {error.name}.") from error
        raise


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first line of a function's docstring, and what it says about each parameter."""
    import docstring_parser

    parsed = docstring_parser.parse(function.__doc__ or "")
    return parsed.short_description or "", {one.arg_name: one.description or "" for one in parsed.params}


# Unknown options ---------------------------------------------------------------------------------------------------


def _known_options(parser: ArgumentParser) -> set[str]:
    """Names of all options, in dotted form, without those that only group others."""
    names = {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


def _options_in(arguments: list[str]) -> list[str]:
    return [one[2:].partition("=")[0].removesuffix("+") for one in arguments if one.startswith("--") and one != "--"]


def _refuse_unknown(given: Iterable[str], known: set[str], reasons: dict[str, str], where: str) -> None:
    """Raise a PivotuneError at the first name that is no option, with the nearest one."""
    for name in given:
        # A dotted tail may be a key of an option whose value is a mapping.
        parts = name.split(".")
        if any(".".join(parts[:count]) in known for count in range(1, len(parts) + 1)):
            continue
        if name in reasons:
            raise PivotuneError(f"{where}: {name} is not supported: {reasons[name]}. Remove it.")
        raise PivotuneError(f"{where}: unknown option {name!r}{_suggestion(name, known)}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence with the nearest known name; a name without its group counts as near."""
    candidates = list(known)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.7)
    tails = [one for one in candidates if one.rpartition(".")[2] == name.rpartition(".")[2]]
    near = tails or close
    return f"; did you mean {near[0]!r}?" if near else "."
