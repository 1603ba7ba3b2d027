"""Run folders: an ordinary transformers (or PEFT) folder, and beside it what Pivotune needs to know.

    config.json, model.safetensors, ...       or adapter_config.json, adapter_model.safetensors
    tokenizer.json, ...
    pivotune.tensors                          the objectives' own tensors, by objective: NAME.tensor
    pivotune.json                             objectives and options, base model, versions, results; written LAST: it is
                                              the mark of a complete folder

Any program can open such a folder as the model it is. A run with a connection that is opened that way works without
it, and has to say so. Neither library reads a message from a folder, but both report by name what they did not expect:
a full model carries one empty tensor, an adapter one more key in its configuration, and the name is the message.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    TrainerState,
)
from transformers.trainer_pt_utils import safe_globals
from transformers.utils.import_utils import is_gguf_available

import pivotune
from pivotune import card, quantization, tokens
from pivotune.anatomy import TEXT_PARTS, Anatomy, text_part, unwrap
from pivotune.connection import Together
from pivotune.data.prompts import fix_template_kwargs
from pivotune.errors import PivotuneError
from pivotune.files import LOCK, as_json, free_bytes, make_folder, read_json, reason, size, write_text, writing
from pivotune.finite import check_finite, without_nan
from pivotune.method import Method
from pivotune.objectives import OBJECTIVES, Connection
from pivotune.options import similar
from pivotune.provenance import base_digest, versions
from pivotune.quantization import Quantization

logger = logging.getLogger(__name__)

FORMAT = 3
INFO, TENSORS, ADAPTER_CONFIG = "pivotune.json", "pivotune.tensors", "adapter_config.json"
"""The tensors are in the safetensors format. The name is another: loaders take every *.safetensors for weights of the
model, and refuse what they do not know."""
UNFINISHED = "pivotune.unfinished"
"""Lies in a folder that is being written, or trained into."""
SAVING = "pivotune.saving"
"""The folder inside a run folder that holds a result until all of it is written."""

CONNECTION_IS_OFF = "pivotune_THE_CONNECTION_IS_OFF_open_this_folder_with_pivotune_to_turn_it_on_token_id"
"""In the configuration of a connected run. Whoever opens the folder without Pivotune is told of it: transformers warns
of a key of this ending that is no token, PEFT of any key that it does not know. Loaders that are strict about weights
find nothing to refuse."""

CUSTOM_GENERATE = "custom_generate/generate.py"
GENERATE = '''"""generate() with the cross-lingual connection of this model. Needs Pivotune, and its code trusted."""


def generate(*args, model, **kwargs):
    from pivotune.serving import connected_generate

    return connected_generate(*args, model=model, **kwargs)
'''


@contextmanager
def _without_the_mark() -> Iterator[None]:
    """Within this context the mark of a connected run is not spoken of: Pivotune itself opens it, and connects it."""

    def is_other(record: logging.LogRecord) -> bool:
        return CONNECTION_IS_OFF not in record.getMessage()

    library = logging.getLogger("transformers.configuration_utils")
    library.addFilter(is_other)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*{CONNECTION_IS_OFF}")
            yield
    finally:
        library.removeFilter(is_other)


# Writing -------------------------------------------------------------------------------------------------------------


def describe(method: Method, **more: Any) -> dict[str, Any]:
    """What `pivotune.json` says: the objectives and their options, versions, and `more`."""
    return {
        "format": FORMAT,
        "objectives": {part.name: dataclasses.asdict(part.options) for part in method.parts},
        "tensors": sorted(_own_tensors(method)),
        "dtype": str(unwrap(method.model).dtype).removeprefix("torch."),
        "versions": versions("accelerate", "peft", "safetensors"),
        **more,
    }


def _own_tensors(method: Method, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The objectives' tensors as they are saved, by names that begin with that of their objective.

    Args:
        state_dict: of the method, gathered from all ranks; the method's own where None.
    """
    own = method.own_tensors()
    found = {name.removeprefix("objectives."): (state_dict or own)[name] for name in own}
    return found | {f"{part.name}.{name}": tensor for part in method.parts for name, tensor in part.fitted.items()}


def write_model(
    folder: str | Path,
    method: Method,
    tokenizer: Any,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write all of a run but its mark of completeness, which `mark_complete` adds.

    Args:
        folder: is made where it does not exist.
        method: whose model, or adapter, and own tensors to save.
        tokenizer: saved beside the model, where there is one.
        state_dict: of the method, gathered from all ranks; the method's own where None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _begin(folder)
    model: Any = method.model
    connected = any(part.connects for part in method.parts)
    adapter = isinstance(model, PeftModel)
    weights = None
    if state_dict is not None:
        weights = {
            name.removeprefix("model."): value for name, value in state_dict.items() if name.startswith("model.")
        }
    tokens.settle(model)
    model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
    if adapter:  # PEFT leaves it to the base, which does not know what these answers end with
        unwrap(model).generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_own(folder, _own_tensors(method, state_dict), connected=connected, adapter=adapter)


def write_own(folder: Path, tensors: Mapping[str, Tensor], *, connected: bool, adapter: bool) -> None:
    """What a run has beside its model: the objectives' tensors, and of a connected one its mark and its generate()."""
    if tensors:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / TENSORS)
    if connected and not adapter:  # of an adapter transformers would look for it in the base's folder
        (folder / CUSTOM_GENERATE).parent.mkdir(exist_ok=True)
        write_text(folder / CUSTOM_GENERATE, GENERATE)
    path = folder / (ADAPTER_CONFIG if adapter else "config.json")
    config = read_json(path)
    marked = CONNECTION_IS_OFF in config  # where the base was connected
    if connected:
        write_json(path, config | {CONNECTION_IS_OFF: -1})
    elif marked:
        write_json(path, {name: value for name, value in config.items() if name != CONNECTION_IS_OFF})


def mark_complete(folder: str | Path, info: dict[str, Any]) -> None:
    """Write the model card and, when all other files are on the disk, `pivotune.json`."""
    folder = Path(folder)
    write_text(folder / "README.md", card.of_run(info, INFO))
    for path in folder.rglob("*"):  # some file systems report a full disk only now
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
            path.chmod(_mode_of_new_files())
    write_json(folder / INFO, info)
    (folder / UNFINISHED).unlink(missing_ok=True)


def _mode_of_new_files() -> int:
    """As the user's umask has it; safetensors lets nobody but the user read its files."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def written_at_once(folder: str | Path) -> Iterator[Path]:
    """A folder to write into; its files appear in `folder` together, `pivotune.json` last, or not at all.

    Other files of `folder` (checkpoints, logs) stay.

    Raises:
        PivotuneError: the folder is somebody else's (`claim`).
    """
    folder = Path(folder).resolve()
    new = not folder.exists()
    claim("output", folder)
    temporary = folder / SAVING
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        unclaim(folder)
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise
    _begin(folder)
    shutil.rmtree((folder / CUSTOM_GENERATE).parent, ignore_errors=True)  # of an earlier run
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == INFO):
        os.replace(path, folder / path.name)
    (folder / UNFINISHED).unlink()
    temporary.rmdir()


def check_output(option: str, folder: str | Path) -> None:
    """Raise a PivotuneError unless a run may be written there: into a new or empty folder, or one of a run.

    Hidden files count as none: a run has no such files.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        if os.path.lexists(folder):
            raise PivotuneError(f"{option}: {folder} is no folder. Name a new one.")
        return
    try:
        there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        checkpoints = [path for path in _checkpoints(folder) if path.is_dir()]
        others = [path for path in checkpoints if not _is_own(path) and any(path.iterdir())]
    except OSError as error:
        raise PivotuneError(f"{option}: {folder} cannot be read: {reason(error)}. Name another folder.") from error
    if others:
        raise PivotuneError(
            f"{option}: {others[0]} is no checkpoint of Pivotune ({INFO} is missing). Move it, or name another folder."
        )
    if there and not any(map(_is_own, [folder, *checkpoints])):
        shown = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
        raise PivotuneError(
            f"{option}: {folder} holds files that are not of a run ({shown}). Name a new folder, or an empty one."
        )


def check_apart(option: str, folder: str | Path, model: str | Path) -> None:
    """Raise a PivotuneError where a run would be written into the folder of its model, or around it.

    A hub name counts as the folder that would be taken for the model from then on.
    """
    output, source = (Path(os.path.realpath(path)) for path in (folder, model))  # unlike resolve(), no error in a loop
    is_folder = source.is_dir()
    if output == source or (is_folder and output.exists() and output.samefile(source)):
        raise PivotuneError(
            f"{option}: {folder} is the model itself (model.path: {model}); the run would take its place. Name another "
            "folder."
        )
    if is_folder:
        inside = any(above.exists() and above.samefile(source) for above in output.parents)
        around = output.exists() and any(above.samefile(output) for above in source.parents)
        if inside or around:
            raise PivotuneError(
                f"{option}: {folder} lies {'inside' if inside else 'around'} the folder of the model (model.path: "
                f"{model}). Name another folder."
            )


def claim(option: str, folder: str | Path) -> None:
    """Mark a folder as that of a run which is not finished, unless it holds a finished one.

    Raises:
        PivotuneError: it is somebody else's (`check_output`), or cannot be written.
    """
    folder = Path(folder)
    check_output(option, folder)
    make_folder(folder)
    with writing(folder):
        if not is_complete(folder):
            (folder / UNFINISHED).touch()


def unclaim(folder: str | Path) -> None:
    """Take the mark back where nothing has been written since."""
    folder = Path(folder)
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {UNFINISHED, LOCK}:
        (folder / UNFINISHED).unlink(missing_ok=True)


def check_space(folder: str | Path, needed: int) -> None:
    """Raise an OSError, as a write would, where `folder` has less free space than `needed` bytes."""
    if (free := free_bytes(Path(folder))) < needed:
        raise OSError(errno.ENOSPC, f"about {size(needed)} are needed and {size(free)} are free")


def complete_checkpoints(folder: str | Path) -> list[Path]:
    """Each `checkpoint-N` whose writing was not interrupted, the greatest N first."""
    return sorted(filter(is_complete, _checkpoints(folder)), key=_step, reverse=True)


def last_complete_checkpoint(folder: str | Path) -> Path | None:
    """The `checkpoint-N` of the greatest N whose writing was not interrupted."""
    return next(iter(complete_checkpoints(folder)), None)


def remove_old_checkpoints(folder: str | Path, limit: int | None, best: str | None, newest: Path | None = None) -> None:
    """Keep the newest checkpoint, the best one, and as many of the others as `limit` allows; None keeps all.

    `newest` is the one that was just written; that of the greatest N where None. A folder of a greater N may be left
    of an interrupted write, or have been passed over in resuming.
    """
    ordered = sorted(_checkpoints(folder), key=_step)
    if not limit or not ordered:
        return
    kept = {newest or ordered[-1]} | ({Path(best)} if best else set())
    spare = [path for path in ordered if path not in kept and _is_own(path)]
    for path in spare[: max(0, len(ordered) - max(limit, len(kept)))]:
        with suppress(OSError):
            _begin(path)  # should this be interrupted, what is left is no checkpoint
        shutil.rmtree(path, ignore_errors=True)


def is_complete(folder: str | Path) -> bool:
    """Whether everything that belongs into the folder has been written."""
    return (Path(folder) / INFO).is_file() and not (Path(folder) / UNFINISHED).exists()


def _checkpoints(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]


def _is_own(folder: Path) -> bool:
    """Whether a run, or a part of it, was written there."""
    return any((folder / name).exists() for name in (INFO, UNFINISHED, LOCK))


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _begin(folder: Path) -> None:
    (folder / UNFINISHED).touch()
    (folder / INFO).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(without_nan(content), indent=2, ensure_ascii=False, default=as_json) + "\n")


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What `load_run` finds.

    Attributes:
        model: the causal LM, in evaluation mode; a PeftModel where the run trained adapters.
        tokenizer: of the run.
        info: the content of `pivotune.json`; empty for a model that is no run.
        tensors: of `pivotune.tensors`.
    """

    model: Any
    tokenizer: Any
    info: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def objectives(self) -> dict[str, Any]:
        """Options of the objectives that it was trained with, by name."""
        return {name: OBJECTIVES[name].Options(**options) for name, options in self.info.get("objectives", {}).items()}

    @cached_property
    def connections(self) -> dict[str, Connection]:
        """What its objectives add to the model at inference, by name."""
        made = {}
        for name, options in self.objectives.items():
            connection = OBJECTIVES[name].connection(self.model, options, _of(name, self.tensors))
            if connection is not None:
                made[name] = connection
        return made

    def connection(self) -> Connection | None:
        """All of these as one, for `pivotune.connection.connect`; None where there is none."""
        made = list(self.connections.values())
        return Together(made) if len(made) > 1 else next(iter(made), None)


def connection_modes(info: Mapping[str, Any]) -> tuple[str, ...]:
    """How the run of this `pivotune.json` can be connected, the default first; known without opening the model."""
    modes: dict[str, None] = {}
    for name in info.get("objectives", {}):
        if OBJECTIVES[name].connects:
            modes |= dict.fromkeys(OBJECTIVES[name].modes(list(_of(name, dict.fromkeys(info["tensors"])))))
    return tuple(modes) or ("none",)


def _of(name: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Those of one objective, by its own names for them."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


@_without_the_mark()
def load_run(
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    dequantise: bool = False,
) -> Run:
    """Open a run folder; or any causal LM, as a run without a method.

    Args:
        path: a run folder, a checkpoint of it, or what `AutoModelForCausalLM.from_pretrained` takes.
        dtype: of the weights; auto keeps the saved one, and under an adapter that of its training.
        device: where to put the model; a GPU if there is one.
        attn_implementation: as in transformers.
        chat_template_kwargs: arguments of the chat template; those that a run was trained with are in its own.
        dequantise: open a quantised base under an adapter with ordinary weights of the same values; otherwise it is
            quantised as in the training.

    The model's generate() stops at every token that ends an answer (`pivotune.tokens.end_ids`).

    Raises:
        PivotuneError: nothing there, a half-written folder, a folder of a newer Pivotune, a missing base model, or
            tensors that are not finite.
    """
    info = read_info(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {"attn_implementation": attn_implementation}
    tensors: dict[str, Tensor] = {}
    tokenizer = open_tokenizer(path)
    if not info:
        model = open_model(path, device=torch.device(device), dtype=dtype, **options)
    elif info.get("adapter"):
        wanted = info["dtype"] if dtype == "auto" else dtype
        _check_base(path, info)
        kind: Quantization | None = info.get("quantization")
        if kind is None:
            options["dtype"] = wanted
        else:  # read as for the training: in another type its quantised values would be others
            options |= quantization.load_options(kind, info["dtype"], torch.device(device))
        try:
            base = open_model(info["base_model"], info.get("revision"), torch.device(device), **options)
            if dequantise and quantization.is_quantised(base):
                base = quantization.dequantised(base, wanted)
            elif kind is not None:
                base = quantization.in_dtype(base, wanted)
        except PivotuneError as error:
            raise PivotuneError(f"{path}: the base model that its {INFO} names (base_model): {error}") from error
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # a name that peft uses
            try:
                model = PeftModel.from_pretrained(base, str(path))
            except Exception as error:  # whatever a damaged file makes of it
                raise PivotuneError(
                    f"{path}: its adapter cannot be put into {info['base_model']}: {reason(error)}. Is that the base "
                    "model it was trained on?"
                ) from error
    else:
        model = _own_weights(AutoModelForCausalLM, path, dtype=dtype, **options)
    if info.get("tensors"):
        tensors = load_tensors(path, info["tensors"])
    check_finite(str(path), [*model.named_parameters(), *tensors.items()])
    model.pivotune_prompt_style = info.get("prompt_style", "auto")
    fix_template_kwargs(tokenizer, chat_template_kwargs)
    _fit(model, tokenizer, path)
    model = model if quantization.is_quantised(model) else model.to(device)
    return Run(model.eval(), tokenizer, info, tensors)


def check_model(path: str | Path) -> dict[str, Any]:
    """`read_info`, with a look at the configuration of the model that `load_run` would open.

    Raises:
        PivotuneError: as `load_run`, where the files beside the weights show it.
    """
    info = read_info(path)
    open_config(*_base_of(path, info))
    if info.get("adapter"):
        _check_base(path, info)
    return info


def _check_base(path: str | Path, info: Mapping[str, Any]) -> None:
    """Raise a PivotuneError where an adapter's base model is not the one that it was trained on.

    A base that is not here yet, and one of a record without a digest, pass.
    """
    then, now = info.get("base_digest"), base_digest(info["base_model"], info.get("revision"))
    if then is not None and now is not None and then != now:
        raise PivotuneError(
            f"{path}: its adapter was trained on another state of {info['base_model']} (base_digest of {INFO}): the "
            "files of the base model have changed since. Put the old ones back, or train again."
        )


def anatomy_of(path: str | Path) -> Anatomy:
    """The parts of the model that `load_run` opens, without its weights.

    Raises:
        PivotuneError: as `check_model`, or an architecture that Pivotune does not know.
    """
    return Anatomy(open_skeleton(*_base_of(path, read_info(path))))


def _base_of(path: str | Path, info: dict[str, Any]) -> tuple[str | Path, str | None]:
    return (info["base_model"], info.get("revision")) if info.get("adapter") else (path, None)


def _fit(model: Any, tokenizer: Any, path: str | Path) -> None:
    """Make model and tokenizer of a folder fit each other: vocabulary, padding, ends."""
    tokens.check_vocabulary(model, tokenizer, path)
    tokens.fit_padding(tokenizer, tokens.rows_of(model))
    own = Path(path) / "generation_config.json"
    trained = GenerationConfig.from_pretrained(path).eos_token_id if own.is_file() else None  # of an adapter
    tokens.set_ends(model, tokenizer, tokens.listed(trained))


def read_info(path: str | Path) -> dict[str, Any]:
    """`pivotune.json` of a folder; empty where it is an ordinary model, or the name of one on the hub.

    Raises:
        PivotuneError: the folder does not exist, is half-written or of a newer Pivotune, or a file in it is damaged.
    """
    folder = Path(path)
    if not os.path.isdir(folder):
        _source(path)
        return {}
    if is_complete(folder):
        info = read_info_file(folder / INFO)
        config = folder / (ADAPTER_CONFIG if info.get("adapter") else "config.json")
        if not config.is_file():
            raise PivotuneError(f"{config}: is missing. Copy the whole folder again.")
        check_files(folder)
        return info
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint is not None:
        raise PivotuneError(
            f"{path}: training has not finished. Continue it with --training.resume_from_checkpoint true, or open its "
            f"last complete checkpoint, {checkpoint}."
        )
    if (folder / UNFINISHED).exists():
        raise PivotuneError(
            f"{path}: is half-written: {INFO}, which comes last, is missing. Its training or writing has not finished."
        )
    if (folder / TENSORS).is_file():
        raise PivotuneError(f"{path}: {INFO} is missing, without which its {TENSORS} cannot be used. Copy it again.")
    if not ((folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file()):
        found = sorted(folder.glob("*.gguf"))
        hint = f" Give its GGUF file, {found[0]}." if found else ""
        raise PivotuneError(
            f"{path}: is neither a run of Pivotune ({INFO} is missing) nor a model (config.json).{hint}"
        )
    check_files(folder)
    return {}


def read_info_file(path: str | Path) -> dict[str, Any]:
    """A `pivotune.json`, whose sections are what the commands expect.

    Raises:
        PivotuneError: it is damaged, or of a newer Pivotune.
    """
    info = read_json(path)

    def wrong(problem: str) -> PivotuneError:
        return PivotuneError(f"{path}: {problem}. {_DAMAGED}")

    if not isinstance(info, dict):
        raise wrong(f"holds a {type(info).__name__}, not an object")
    if not isinstance(info.get("format"), int):
        raise wrong(f"format is {info.get('format')!r}, not a whole number")
    for section in ("versions", "training", "objectives", "found", "asked"):
        if not isinstance(info.get(section, {}), dict):
            raise wrong(f"{section} is {info[section]!r}, not an object")
    if info["format"] > FORMAT:
        made = info.get("versions", {}).get("pivotune")
        raise PivotuneError(f"{path}: was written by Pivotune {made}, and this is {pivotune.__version__}. Upgrade.")
    if info["format"] < FORMAT:
        raise PivotuneError(
            f"{path}: was written by an earlier version of Pivotune, whose runs had other files. Train the run again, "
            "or open it with that version."
        )
    if not isinstance(info.get("tensors"), list):
        raise wrong(f"tensors is {info.get('tensors')!r}, not a list")
    for name in ("base_model", "dtype") if info.get("adapter") else ():
        if not isinstance(info.get(name), str):
            raise wrong(f"{name} is {info.get(name)!r}, not a string")
    for name, options in info.get("objectives", {}).items():
        if name not in OBJECTIVES:
            raise wrong(f"objectives.{name}: is not one of {', '.join(OBJECTIVES)}")
        try:
            OBJECTIVES[name].Options(**options)
        except (TypeError, ValueError) as error:
            raise wrong(f"objectives.{name}: {reason(error)}") from error
    return info


_DAMAGED = "The file is damaged: get it anew, or open another checkpoint."
_JSON_FILES = (
    *("config.json", "generation_config.json", ADAPTER_CONFIG, "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "trainer_state.json",
)
_TENSOR_FILES = ("model.safetensors", "adapter_model.safetensors", TENSORS)


def check_files(folder: str | Path) -> None:
    """Raise a PivotuneError that names the first damaged file of a model, a run or a checkpoint.

    Found is what can be found without reading all of the weights: malformed JSON, files that are too short, and missing
    parts. The libraries that read them name no file, or go on without it. A name on the hub passes.
    """
    folder = Path(folder)
    contents = {name: read_json(folder / name) for name in _JSON_FILES if (folder / name).is_file()}
    for name, content in contents.items():
        if not isinstance(content, dict):
            raise PivotuneError(f"{folder / name}: holds a {type(content).__name__}, not an object. {_DAMAGED}")
    if "config.json" in contents and not isinstance(contents["config.json"].get("model_type"), str):
        raise PivotuneError(f"{folder / 'config.json'}: model_type is missing. {_DAMAGED}")
    tensor_files = [name for name in _TENSOR_FILES if (folder / name).is_file()]
    if (index := contents.get("model.safetensors.index.json")) is not None and "model.safetensors" not in tensor_files:
        parts = index.get("weight_map")
        if not isinstance(parts, dict):
            raise PivotuneError(f"{folder / 'model.safetensors.index.json'}: weight_map is missing. {_DAMAGED}")
        tensor_files += sorted(set(map(str, parts.values())))
    if ADAPTER_CONFIG in contents and (folder / INFO).is_file():  # of a run, which writes no other
        tensor_files.append("adapter_model.safetensors")
    for name in dict.fromkeys(tensor_files):
        if not (folder / name).is_file():
            raise PivotuneError(f"{folder / name}: is missing, a part of the weights. Copy the whole folder again.")
        try:
            with safe_open(folder / name, "pt"):
                pass
        except Exception as error:
            raise PivotuneError(f"{folder / name}: cannot be read: {reason(error)}. {_DAMAGED}") from error


def check_state(folder: str | Path) -> None:
    """Raise a PivotuneError unless training can go on from this checkpoint: what `check_files` finds, and the rest."""
    folder = Path(folder)
    read_info(folder)
    states = [folder / "optimizer.pt", folder / "scheduler.pt"]
    if any(any(folder.glob(name)) for name in ("optimizer*_*", "optimizer.bin", "global_step*")):  # of sharded training
        states = [path for path in states if path.exists()]
    states += list(folder.glob("rng_state*.pth")) or [folder / "rng_state.pth"]
    for path in (folder / "trainer_state.json", *states):
        if not path.is_file():
            raise _unusable(path, "is missing")
    for path in states:
        if not zipfile.is_zipfile(path):
            raise _unusable(path, "is damaged, or not written to its end")
        try:
            with safe_globals():  # mapped: the tensors of the optimizer are not read
                torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # of zip, pickle or torch
            raise _unusable(path, f"cannot be read: {reason(error)}") from error
    try:
        step = TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step
    except (TypeError, ValueError) as error:
        raise _unusable(folder / "trainer_state.json", reason(error)) from error
    if not isinstance(step, int) or step < 1:
        raise _unusable(folder / "trainer_state.json", f"global_step is {step!r}")


def _unusable(place: Path, problem: str) -> PivotuneError:
    return PivotuneError(
        f"training.resume_from_checkpoint: {place}: {problem}. Name another checkpoint, or remove this one: true takes "
        "the last that is left."
    )


def restore(method: Method, folder: str | Path) -> None:
    """Put the weights (or the adapter) and the method's own tensors of a checkpoint back into `method`."""
    if isinstance(method.model, PeftModel):
        adapter = load_peft_weights(str(folder), device="cpu")
        _check_fit(folder, adapter, get_peft_model_state_dict(method.model))
        set_peft_model_state_dict(method.model, adapter)
    else:
        model = unwrap(method.model)
        # By way of from_pretrained, which knows shards, tied weights and renamed parameters.
        weights = _own_weights(type(model), folder, dtype=model.dtype).state_dict()
        _check_fit(folder, weights, model.state_dict())
        model.load_state_dict(weights)
    restore_own_tensors(method, folder)


def restore_own_tensors(method: Method, folder: str | Path) -> None:
    """The objectives' own tensors alone, as in `restore`."""
    own = {name.removeprefix("objectives."): value for name, value in method.own_tensors().items()}
    if own:
        saved = load_tensors(folder, own)
        _check_fit(folder, {name: saved[name] for name in own}, own)
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(saved[name])


def _check_fit(folder: str | Path, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise a PivotuneError unless saved tensors are those of the model, in name and shape."""
    for name in sorted({*saved, *own}):
        has, needs = (f"shape {tuple(x[name].shape)}" if name in x else "no such tensor" for x in (saved, own))
        if has != needs:
            raise PivotuneError(
                f"{folder}: its weights do not fit this model: {name} has {has} there, and {needs} here. Resume with "
                "the options it was trained with."
            )


def load_tensors(folder: str | Path, names: Iterable[str]) -> dict[str, Tensor]:
    """The method's own tensors of a run, of which these may not be missing."""
    try:
        tensors = load_file(Path(folder) / TENSORS)
    except Exception as error:
        raise PivotuneError(f"{folder}: {TENSORS} cannot be read: {reason(error)}") from error
    if missing := [name for name in names if name not in tensors]:
        raise PivotuneError(f"{Path(folder) / TENSORS}: has no {', '.join(missing)}. {_DAMAGED}")
    return tensors


# Opening models and tokenizers -------------------------------------------------------------------------------------


@_without_the_mark()
def open_config(path: str | Path, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a model that can be opened as a causal language model; its weights are not touched.

    Of a model for text and pictures whose text part Pivotune knows, the configuration of that part.

    Args:
        path: a folder, a GGUF file or a name on the hub.
        revision: on the hub.

    Raises:
        PivotuneError: there is no such model, it is of another kind, or it wants to run code of its own.
    """
    where = _source(path)
    if os.path.isdir(path):
        read_info(path)  # refuses what is half-written or damaged
        if (Path(path) / ADAPTER_CONFIG).is_file():
            raise PivotuneError(f"{path}: is an adapter. Merge it into its base model first (PEFT's merge_and_unload).")
    try:
        written, _ = PretrainedConfig.get_config_dict(**where, revision=revision or "main")
        config = AutoConfig.from_pretrained(**where, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # whatever a file that is not as it should be makes the library do
        raise PivotuneError(_why_not(path, error)) from error
    name = ", ".join(map(str, written.get("architectures") or [config.model_type]))
    if config.model_type in TEXT_PARTS:
        return config.get_text_config(decoder=True)
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise PivotuneError(f"{path}: is no causal language model but {name}. Give a model that continues text.")
    if re.search(r"For(?!CausalLM)", name):
        raise PivotuneError(
            f"{path}: holds a {name}, which has no output head for text. Give the causal language model that it was "
            "made from."
        )
    return config


def open_skeleton(path: str | Path, revision: str | None = None, **options: Any) -> Any:
    """The model without its weights, for checks of what depends on its shape.

    Raises:
        PivotuneError: as `open_config`; or transformers cannot make it with these options.
    """
    config = open_config(path, revision)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise PivotuneError(f"{path}: cannot be opened as a causal language model: {reason(error)}.") from error


@_without_the_mark()
def open_model(
    path: str | Path, revision: str | None = None, device: torch.device | None = None, **options: Any
) -> Any:
    """`AutoModelForCausalLM.from_pretrained`, for GGUF files too, and with errors of one line.

    Args:
        path: a folder, a GGUF file or a name on the hub.
        revision: on the hub.
        device: where to put a model that is stored quantised, because it cannot be moved; others stay on the CPU.
        options: of `from_pretrained`: dtype, attn_implementation.

    Raises:
        PivotuneError: as `open_config`; or the weights are damaged, missing or of another model.
    """
    config = open_config(path, revision)
    where = _source(path)
    if device is not None and getattr(config, "quantization_config", None) is not None:
        options["device_map"] = {"": device}
    if "gguf_file" in where and (unpacked := getattr(transformers, "GgufConfig", None)):
        options["quantization_config"] = unpacked(dequantize=True)  # blocks can be read, but not trained
    options |= {"revision": revision or "main", "trust_remote_code": False}
    model: Any
    report: Any
    try:
        model, report = AutoModelForCausalLM.from_pretrained(**where, output_loading_info=True, **options)  # type: ignore[misc]
    except Exception as error:  # whatever a damaged or foreign folder makes of it
        raise PivotuneError(f"{path}: cannot be opened as a causal language model: {reason(error)}.") from error
    if missing := sorted(map(str, report["missing_keys"])):
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise PivotuneError(f"{path}: {len(missing)} of its weights are missing ({shown}). Is the download complete?")
    if model.config.model_type in TEXT_PARTS:
        whole, model = model, text_part(model)
        quantization.carry_over(whole, model)
    if "gguf_file" in where:
        quantization.forget(model)
    quantization.settle(model)
    return model


@_without_the_mark()
def open_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """`AutoTokenizer.from_pretrained`, for GGUF files too, and with errors of one line."""
    check_files(path)
    try:
        return AutoTokenizer.from_pretrained(**_source(path), revision=revision or "main", trust_remote_code=False)
    except PivotuneError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        if not Path(path).exists():
            raise PivotuneError(_why_not(path, error)) from error
        raise PivotuneError(f"{path}: its tokenizer cannot be opened: {reason(error)}. Are its files whole?") from error


def _source(path: str | Path) -> dict[str, str]:
    """What `from_pretrained` calls this folder, GGUF file or name on the hub.

    Raises:
        PivotuneError: a folder or file that does not exist, or that is no model.
    """
    folder = Path(path)
    if os.path.isdir(folder):  # unlike Path.is_dir, it does not raise at impossible names
        return {"pretrained_model_name_or_path": str(path)}
    if folder.suffix.lower() == ".gguf" and os.path.isfile(folder):
        if not is_gguf_available():
            raise PivotuneError(f"{path}: GGUF files need the package gguf: pip install 'pivotune[gguf]'.")
        return {"pretrained_model_name_or_path": str(folder.parent), "gguf_file": folder.name}
    if os.path.exists(folder):
        raise PivotuneError(f"{path}: is a file. Give the folder that holds the model, or a GGUF file.")
    if _looks_local(path):
        raise PivotuneError(f"{path}: no such folder{similar(path)}")
    return {"pretrained_model_name_or_path": str(path)}


_ENDINGS_OF_FILES = (
    *(".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt"),
    *(".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".txt", ".md", ".parquet", ".gz", ".zip", ".tar"),
)


def _looks_local(path: str | Path) -> bool:
    """Whether this names a folder or a file, and cannot be a name on the hub."""
    name = str(path)
    return (
        Path(name).is_absolute()
        or name.startswith((".", "~"))
        or name.lower().endswith(("/", *_ENDINGS_OF_FILES))
        or name.count("/") > 1
        or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None
    )


def _why_not(path: str | Path, error: Exception) -> str:
    """The message for a configuration that cannot be opened."""
    why = reason(error)
    if "custom code" in str(error) or "trust_remote_code" in str(error):
        return (
            f"{path}: its architecture is not part of transformers and comes as code in the model's folder, which "
            "Pivotune does not run."
        )
    if "does not recognize this architecture" in str(error):
        named = re.search(r"model type `(.*?)`", str(error))
        what = f"architecture {named[1]!r}" if named else "its architecture"
        return f"{path}: {what} is not known to transformers {transformers.__version__}."
    if not os.path.exists(path):
        hint = similar(path) if Path(path).parent.is_dir() else "."
        return f"{path}: no such folder, and no model that the hub gives ({why}){hint}"
    return f"{path}: its configuration cannot be read: {why}."


def repair_generation(config: GenerationConfig, path: str | Path) -> list[str]:
    """Leave out what a generation configuration sets without effect, such as a temperature without sampling:
    transformers would refuse to save it, after the training.

    Returns:
        The names of what was left out.

    Raises:
        PivotuneError: it is wrong in another way.
    """
    try:
        config.validate(strict=True)
        return []
    except ValueError as error:
        idle = re.findall(r"^- `(\w+)`:", str(error), flags=re.MULTILINE)
    for name in idle:
        setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise PivotuneError(f"{path}: generation_config.json is wrong: {error}") from error
    return idle


def check_generation(path: str | Path, revision: str | None = None) -> None:
    """Raise a PivotuneError for a generation_config.json that cannot be repaired, without loading the model."""
    try:
        config = GenerationConfig.from_pretrained(path, revision=revision or "main")
    except OSError as error:
        if (Path(path) / "generation_config.json").is_file():
            raise PivotuneError(f"{path}: generation_config.json cannot be read: {reason(error)}") from error
        return  # there is none
    except ValueError as error:
        raise PivotuneError(f"{path}: generation_config.json is wrong: {reason(error)}.") from error
    repair_generation(config, path)


def _own_weights(kind: Any, folder: str | Path, **options: Any) -> nn.Module:
    """`from_pretrained` of a run, which has all of its weights and no others."""
    try:
        with _without_the_mark():
            model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # whatever a damaged file makes of it
        raise PivotuneError(f"{folder}: cannot be opened: {reason(error)}.") from error
    wrong = {*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]}
    if wrong:
        raise PivotuneError(f"{folder}: its weights do not fit its config.json: {', '.join(map(str, sorted(wrong)))}.")
    return model
