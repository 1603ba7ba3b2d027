"""The command line. It reads options and calls a function; what the functions do is theirs.

Every command but `train` is a function whose signature and docstring are its options and its help. Adding one takes one
line in `COMMANDS`. Nothing heavy is imported before a command is chosen.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import io
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from pivotune import __version__
from pivotune.errors import PivotuneError, check_choice

if TYPE_CHECKING:
    from yaml import Node


@dataclasses.dataclass(frozen=True)
class Command:
    """A function as a command.

    Attributes:
        summary: one line for the overview.
        function: "module:name" of the function.
        positional: its parameters that are given without their name; one that ends in * takes any number.
        computes: it lets a model compute in this process.
    """

    summary: str
    function: str
    positional: tuple[str, ...] = ()
    computes: bool = False


COMMANDS = {
    "train": Command("fine-tune a model, plainly or with objectives", "pivotune.training:train", computes=True),
    "generate": Command("answer prompts with a run", "pivotune.generation:generate", ("run", "prompts*"), True),
    "evaluate": Command("the papers' benchmarks on a run", "pivotune.evaluation.runner:evaluate", ("run",), True),
    "export": Command("a run as an ordinary model folder", "pivotune.export:export", ("run",)),
    "layers": Command(
        "which layers to supervise, and what each layer says", "pivotune.lens.layers:layers", ("model",), True
    ),
    "lens": Command("language, similarity and calibration of each layer", "pivotune.lens.report:lens", ("run",), True),
    "compare": Command("evaluated runs side by side", "pivotune.evaluation.compare:compare", ("runs*",)),
    "demo": Command("the whole story on this machine, without a download", "pivotune.lab.demo:demo"),
}

_OPTION = re.compile(r"--[A-Za-z]|-[A-Za-z][\w-]*$")
"""What is an option on the command line, and not a value such as -1 or "- a text"."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; mistakes of the user end in one message on standard error and exit status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
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
        _give_up_output()
        raise SystemExit(141) from None  # what a shell says of any other program then
    except OSError as error:  # a full disk behind standard output, a name that no file can have
        if error.filename is None:
            _give_up_output()
        place = "standard output" if error.filename is None else error.filename
        print(f"pivotune: error: {place}: {error.strerror or error}.", file=sys.stderr)
        raise SystemExit(2) from None


def _give_up_output() -> None:
    """Let what is still to be printed go nowhere, or Python would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    except PivotuneError as error:  # in one line, also where it quotes several of another library
        print("pivotune: error:", re.sub(r"\s*\n\s*", " ", str(error)).strip(), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("pivotune: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: pivotune COMMAND ...", "", "Improve an English-centric language model in other languages.", ""]
    lines += [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`pivotune COMMAND --help` explains every option of a command."])


# train: a configuration --------------------------------------------------------------------------------------------


def _train(name: str, arguments: list[str]) -> None:
    from pivotune.config import NOT_SUPPORTED
    from pivotune.options import from_words, names_in, presets, read_file, read_value, takes_list

    if _asks_for_help(arguments):
        _print_train_help(name)
    configuration = _Configuration()
    kinds = configuration.kinds
    reasons = {f"training.{option}": reason for option, reason in NOT_SUPPORTED.items()}
    sections = ", ".join(f"{one}:" for one in configuration.objectives)
    reasons["method"] = f"the sections that are there are the method ({sections} or none for plain fine-tuning)"
    given: dict[str, Any] = {}
    chosen: list[str] = []  # presets

    def take(file: str, given: dict[str, Any]) -> None:
        for option, (node, where) in read_file(file, configuration.is_group, configuration.objectives).items():
            if option == "preset":
                chosen.extend(names_in(read_value(node, str, f"{where}: {option}")))
                continue
            known = _known(option, kinds, reasons, where)
            _set(given, option, known, node, kinds[known], f"{where}: {option}")

    more = {"config": list[str], "print_config": bool, "preset": str, "dry_run": bool, "ranks": int}
    words, files = _split(arguments, kinds | more, reasons, needed=1)
    for file in [*files, *words.pop("config", [])]:
        if not (file.endswith((".yaml", ".yml", ".json")) or os.path.isfile(file)):
            raise PivotuneError(f"command line: {file!r} belongs to no option and is no YAML file.")
        take(file, given)
    if "preset" in words:
        chosen += names_in(read_value(from_words(words.pop("preset"), str), str, "preset"))
    preset: dict[str, Any] = {}
    for one in chosen:
        check_choice("preset", one, presets())
        take(presets()[one], preset)
    given = preset | given
    tries = read_value(from_words(words.pop("dry_run", ["false"]), bool), bool, "dry_run")
    ranks = read_value(from_words(words.pop("ranks", ["null"]), int), int | None, "ranks")
    if ranks is not None and not (tries and ranks > 0):
        raise PivotuneError(f"ranks: got {ranks}; give the number of processes to reckon with, beside --dry_run.")
    shows = read_value(from_words(words.pop("print_config", ["false"]), bool), bool, "print_config")
    for option, values in words.items():
        known = _known(option, kinds, reasons, "command line")
        for file in values if takes_list(kinds[known]) else ():
            if file.endswith((".yaml", ".yml")):
                raise PivotuneError(f"{option}: {file} stands behind it and counts as its value. Put YAML files first.")
        _set(given, option, known, from_words(values, kinds[known]), kinds[known], option)
    if shows:
        print(configuration.as_yaml(given), end="")
        raise SystemExit(0)
    config = configuration.made(given)
    if tries:
        from pivotune.estimate import dry_run

        dry_run(config, ranks)
        return
    _settle_threads(COMMANDS[name])
    folder = _function(COMMANDS[name])(config)
    if config.training.process_index == 0:
        print(f"The run is in {folder}.")


class _Configuration:
    """The options of `RunConfig`, by dotted name. An objective's own name is an option too: whether the run has it.

    Attributes:
        kinds: the type of each option.
        objectives: the classes of options of all objectives, by name.
    """

    def __init__(self) -> None:
        from pivotune.config import HIDDEN, RunConfig, TrainingOptions
        from pivotune.objectives import OBJECTIVES

        self.objectives = {name: objective.Options for name, objective in OBJECTIVES.items()}
        self._classes: dict[str, Any] = {"": RunConfig}
        self._classes |= {f"{name}.": options for name, options in self.objectives.items()}
        hints = get_type_hints(RunConfig) | {"training": TrainingOptions}
        self._classes |= {f"{group}.": kind for group, kind in hints.items() if dataclasses.is_dataclass(kind)}
        self.kinds: dict[str, Any] = {}
        self._defaults: dict[str, Any] = {}
        for prefix, cls in self._classes.items():
            hints = get_type_hints(cls)
            for field in dataclasses.fields(cls):
                name = f"{prefix}{field.name}"
                if self.is_group(name) or name == "objectives" or (prefix == "training." and field.name in HIDDEN):
                    continue
                self.kinds[name] = hints[field.name]
                if field.default is not dataclasses.MISSING:
                    self._defaults[name] = field.default
                elif field.default_factory is not dataclasses.MISSING:
                    self._defaults[name] = field.default_factory()
        self.kinds |= dict.fromkeys(self.objectives, bool)

    def _used(self, given: Mapping[str, Any]) -> list[str]:
        """The objectives whose sections are there, in a file or on the command line."""
        there = {name.partition(".")[0] for name in given if "." in name}
        return [name for name in self.objectives if given.get(name, name in there)]

    def is_group(self, name: str) -> bool:
        return f"{name}." in self._classes

    def as_yaml(self, given: Mapping[str, Any]) -> str:
        """All options as a file that can be run."""
        import yaml

        nested: dict[str, Any] = {}
        unused = self.objectives.keys() - set(self._used(given))
        for name in self.kinds:
            group, _, option = name.rpartition(".")
            if (name in given or name in self._defaults) and group not in unused and name not in self.objectives:
                value = given.get(name, self._defaults.get(name))
                (nested.setdefault(group, {}) if group else nested)[option] = getattr(value, "value", value)
        return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)

    def made(self, given: Mapping[str, Any]) -> Any:
        """The `RunConfig` with these values."""
        optional = {*self._defaults, *self.objectives, *given}
        missing = [name for name in self.kinds if name not in optional]
        if missing:
            raise PivotuneError(f"these options are required: {', '.join(missing)}.")
        made: dict[str, Any] = {}
        for prefix, cls in reversed(self._classes.items()):
            values = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
            if prefix:
                made[prefix.removesuffix(".")] = cls(**values)
        options = {name: made.pop(name) for name in self.objectives}
        plain = {name: value for name, value in given.items() if "." not in name and name not in self.objectives}
        return self._classes[""](**made, **plain, objectives=[options[name] for name in self._used(given)])


def _print_train_help(name: str) -> NoReturn:
    import jsonargparse

    from pivotune.config import HIDDEN, RunConfig, TrainingOptions
    from pivotune.objectives import OBJECTIVES
    from pivotune.options import presets

    parser = jsonargparse.ArgumentParser(
        prog=f"pivotune {name}",
        usage="%(prog)s RUN.yaml [MORE.yaml ...] [--option value ...]",
        description="Fine-tune a model. Options come from YAML files, later ones and the command line winning.",
    )
    parser.add_argument("--config", metavar="FILE", help="the same as a positional YAML file.")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"settings of a paper: {', '.join(presets())}, or both as a list; also a key of a YAML file. What files "
        "and the command line say goes before.",
    )
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration and exit.")
    parser.add_argument(
        "--dry_run", action="store_true", help="print what the run would take and its first rows, and train nothing."
    )
    parser.add_argument("--ranks", type=int, help="processes to reckon with, beside --dry_run.")
    parser.add_class_arguments(RunConfig, as_group=False, skip={"training", "objectives"})
    for one, objective in OBJECTIVES.items():
        title, _ = _documentation(objective.Options)
        group = parser.add_argument_group(title.rstrip("."), name=one)
        group.add_argument(f"--{one}", metavar="true|false", help=f"{objective.summary}; also by any of its options.")
        group.add_class_arguments(objective.Options, one, as_group=False, instantiate=False)
    parser.add_class_arguments(TrainingOptions, "training", instantiate=False, skip=HIDDEN)
    parser.print_help()
    raise SystemExit(0)


# Other commands: functions -----------------------------------------------------------------------------------------


def _call(name: str, arguments: list[str]) -> None:
    from pivotune.options import from_words

    command = COMMANDS[name]
    function = _function(command)
    if _asks_for_help(arguments):
        _print_help(name, function)
    parameters = inspect.signature(function).parameters
    kinds = {one: kind for one, kind in get_type_hints(function).items() if one in parameters}
    names = [one.removesuffix("*") for one in command.positional]
    single = [one for one in command.positional if not one.endswith("*")]
    options = {one: kind for one, kind in kinds.items() if one not in names}
    words, bare = _split(arguments, options, {}, len(single))
    while len(bare) < len(single) and words and len(last := words[next(reversed(words))]) > 1:
        bare.append(last.pop())  # a list at the end has taken it
    given: dict[str, Any] = dict(zip(single, bare, strict=False))
    if rest := bare[len(single) :]:
        if len(single) == len(names):
            raise PivotuneError(f"command line: {rest[0]!r} belongs to no option.")
        given[names[-1]] = rest
    for option, values in words.items():
        known = _known(option, options, {}, "command line")
        _set(given, option, known, from_words(values, options[known]), options[known], option)
    required = [one for one in parameters if parameters[one].default is inspect.Parameter.empty]
    if missing := [one.upper() if one in names else f"--{one}" for one in required if one not in given]:
        raise PivotuneError(f"pivotune {name} needs {' and '.join(missing)}; see pivotune {name} --help.")
    _settle_threads(command)
    function(**given)


def _settle_threads(command: Command) -> None:
    """On a CPU: say where fewer threads than there are cores are faster, as beside another program."""
    if not command.computes:
        return
    from pivotune import threads

    chosen = threads.settle()
    if chosen is not None and chosen < threads.cores():
        print(
            f"Computing on {chosen} of {threads.cores()} cores, which is faster at the moment (OMP_NUM_THREADS says "
            "otherwise).",
            file=sys.stderr,
        )


def _print_help(name: str, function: Callable[..., Any]) -> NoReturn:
    import jsonargparse

    names = [one.removesuffix("*") for one in COMMANDS[name].positional]
    summary, described = _documentation(function)
    parser = jsonargparse.ArgumentParser(prog=f"pivotune {name}", description=summary)
    for one in names:
        number: dict[str, Any] = {} if one in COMMANDS[name].positional else {"nargs": "*", "default": []}
        parser.add_argument(one, help=described.get(one, ""), **number)
    parser.add_function_arguments(function, as_group=False, skip=set(names))
    parser.print_help()
    raise SystemExit(0)


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


# Words of the command line -----------------------------------------------------------------------------------------


def _asks_for_help(arguments: list[str]) -> bool:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "-h" in options or "--help" in options


def _split(
    arguments: list[str], kinds: Mapping[str, Any], reasons: Mapping[str, str], needed: int = 0
) -> tuple[dict[str, list[str]], list[str]]:
    """The words of each option, and those that belong to none. An option that takes a list takes all that follow.

    Args:
        kinds: the types of all options.
        reasons: why some are not supported.
        needed: how many words of the second sort come before a word can be a switch's value.
    """
    from pivotune.options import in_words, is_switch, takes_list, takes_switch

    given: dict[str, list[str]] = {}
    bare: list[str] = []
    option, kind = "", None
    for number, word in enumerate(arguments):
        if word == "--":
            bare += arguments[number + 1 :]
            break
        if _OPTION.match(word):
            option, equals, value = word.removeprefix("--").partition("=")
            kind = kinds[_known(option, kinds, reasons, "command line")]
            if option in given and takes_list(kind):
                raise PivotuneError(f"command line: --{option} is given twice. Give all of its values after one.")
            given[option] = [value] if equals else []
        elif (
            not option
            or (given[option] and not takes_list(kind))
            or (takes_switch(kind) and len(bare) < needed and not is_switch(word))  # --restart RUN
        ):
            bare.append(word)
        else:
            given[option].append(word)
    for name, words in given.items():
        kind = kinds[_known(name, kinds, reasons, "command line")]
        if not words and not takes_switch(kind):
            raise PivotuneError(f"{name}: has no value; give {in_words(kind)}.")
        if not words:
            words.append("true")
    return given, bare


def _set(given: dict[str, Any], name: str, known: str, node: Node, kind: Any, where: str) -> None:
    """Put a value into `given`; where `name` is `known` with a tail, as that key of the option's mapping."""
    from pivotune.options import kind_inside, read_value

    if name == known:
        given[known] = read_value(node, kind, where)
        return
    *keys, last = name.removeprefix(f"{known}.").split(".")
    before = given.get(known)
    mapping = given[known] = dict(before) if isinstance(before, dict) else {}
    for key in keys:
        inner = mapping.get(key)
        mapping[key] = dict(inner) if isinstance(inner, dict) else {}
        mapping = mapping[key]
    mapping[last] = read_value(node, kind_inside(kind), where)


def _known(name: str, kinds: Mapping[str, Any], reasons: Mapping[str, str], where: str) -> str:
    """The option of this name; also where the name's tail is a key of an option whose value is a mapping.

    Raises:
        PivotuneError: no option is called so; with the nearest one.
    """
    from pivotune.options import takes_mapping

    parts = name.split(".")
    if name in kinds:
        return name
    for count in range(len(parts) - 1, 0, -1):
        if (head := ".".join(parts[:count])) in kinds and takes_mapping(kinds[head]):
            return head
    if name in reasons:
        raise PivotuneError(f"{where}: {name} is not supported: {reasons[name]}. Remove it.")
    raise PivotuneError(f"{where}: unknown option {name!r}{_suggestion(name, kinds)}")


_OTHER_NAMES = {
    "batch_size": "training.per_device_train_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "epochs": "training.num_train_epochs",
    "group_by_length": "training.train_sampling_strategy",
    "lr": "training.learning_rate",
    "no_cuda": "training.use_cpu",
    "rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_rank": "lora.r",
    "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "model_name_or_path": "model.path",
    "scheduler": "training.lr_scheduler_type",
    "warmup_ratio": "training.warmup_steps",
}
"""What earlier versions of transformers, and other trainers, call these options."""


def _suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence with the nearest known name; a name without its group counts as near."""
    candidates = list(known)
    other = _OTHER_NAMES.get(name.rpartition(".")[2])
    if other is not None and other in candidates:
        return f"; did you mean {other!r}?"
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.7)
    tails = [one for one in candidates if one.rpartition(".")[2] == name.rpartition(".")[2]]
    near = tails or close
    return f"; did you mean {near[0]!r}?" if near else "."
