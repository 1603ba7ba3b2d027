"""Run folders: an ordinary transformers (or PEFT) folder, and beside it what Pivotune needs to know.

    config.json, model.safetensors, ...       or adapter_config.json, adapter_model.safetensors
    tokenizer.json, ...
    pivotune.safetensors                      CC-Tuning: decision_maker.weight (L, d) and transform_matrix, (d, d) or
                                              (L, d, d)
    pivotune.json                             method, options, base model, versions, results; written LAST: it is the
                                              mark of a complete folder

Any program can open such a folder as the model it is. A CC-Tuning run opened that way works without its connection, and
has to say so. Neither library reads a message from a folder, but both report by name what they did not expect: a full
model carries one empty tensor, an adapter one more key in its configuration, and the name is the message.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import pivotune
from pivotune.anatomy import unwrap
from pivotune.errors import PivotuneError
from pivotune.finite import check_finite, without_nan
from pivotune.methods import SFT, CCTuning, CCTuningConfig, ConnectedSupervision, DeepSupervision, Method

FORMAT = 1
INFO, TENSORS, ADAPTER_CONFIG = "pivotune.json", "pivotune.safetensors", "adapter_config.json"
UNFINISHED = "pivotune.unfinished"
"""Lies in a folder that is being written."""

CONNECTION_IS_OFF = "pivotune.THE_CONNECTION_IS_OFF.load_this_folder_with_pivotune_to_turn_it_on"

METHODS: dict[str, type[Method]] = {
    "both": ConnectedSupervision,  # first, because it is a CCTuning and a DeepSupervision too
    "cc_tuning": CCTuning,
    "deep_supervision": DeepSupervision,
    "sft": SFT,
}


# Writing -------------------------------------------------------------------------------------------------------------


def describe(method: Method, **more: Any) -> dict[str, Any]:
    """What `pivotune.json` says: the method and its options, versions, and `more`."""
    name = next(name for name, kind in METHODS.items() if isinstance(method, kind))
    options = {
        key: dataclasses.asdict(getattr(method, key))
        for key in ("deep_supervision", "cc_tuning")
        if hasattr(method, key)
    }
    packages = ("torch", "transformers", "accelerate", "peft", "safetensors")
    return {
        "format": FORMAT,
        "method": name,
        **options,
        "dtype": str(unwrap(method.model).dtype).removeprefix("torch."),
        "versions": {"pivotune": pivotune.__version__} | {name: _version(name) for name in packages},
        **more,
    }


def write_model(
    folder: str | Path,
    method: Method,
    tokenizer: Any,
    state_dict: dict[str, Tensor] | None = None,
    transform_matrix: Tensor | None = None,
) -> None:
    """Write all of a run but its mark of completeness, which `mark_complete` adds.

    Args:
        folder: is made where it does not exist.
        method: whose model, or adapter, and own tensors to save.
        tokenizer: saved beside the model, where there is one.
        state_dict: of the method, gathered from all ranks; the method's own where None.
        transform_matrix: (d, d) or (L, d, d) of a CC-Tuning run.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _begin(folder)
    model: Any = method.model
    connected = isinstance(method, CCTuning)
    adapter = isinstance(model, PeftModel)
    weights = None
    if state_dict is not None:
        weights = {
            name.removeprefix("model."): value for name, value in state_dict.items() if name.startswith("model.")
        }
    if connected and not adapter:
        weights = dict(model.state_dict() if weights is None else weights)
        weights[CONNECTION_IS_OFF] = torch.zeros(1)
    model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
    if connected and adapter:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        config[CONNECTION_IS_OFF] = True
        write_json(folder / ADAPTER_CONFIG, config)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    own = method.extra_state()
    if state_dict is not None:
        own = {name: state_dict[name] for name in own}
    if transform_matrix is not None:
        own["transform_matrix"] = transform_matrix
    if own:
        save_file({name: value.detach().cpu().contiguous() for name, value in own.items()}, folder / TENSORS)


def mark_complete(folder: str | Path, info: dict[str, Any]) -> None:
    """Write the model card and, as the very last file, `pivotune.json`."""
    folder = Path(folder)
    (folder / "README.md").write_text(_card(info), encoding="utf-8")
    write_json(folder / INFO, info)
    (folder / UNFINISHED).unlink(missing_ok=True)


@contextmanager
def written_at_once(folder: str | Path) -> Iterator[Path]:
    """A folder to write into; its files appear in `folder` together, `pivotune.json` last, or not at all.

    Other files of `folder` (checkpoints, logs) stay.
    """
    folder = Path(folder).resolve()
    temporary = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        _begin(folder)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == INFO):
            os.replace(path, folder / path.name)
        (folder / UNFINISHED).unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    spare = [path for path in ordered if path not in kept]
    for path in spare[: max(0, len(ordered) - max(limit, len(kept)))]:
        shutil.rmtree(path, ignore_errors=True)


def is_complete(folder: str | Path) -> bool:
    """Whether everything that belongs into the folder has been written."""
    return (Path(folder) / INFO).is_file() and not (Path(folder) / UNFINISHED).exists()


def _checkpoints(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _begin(folder: Path) -> None:
    (folder / UNFINISHED).touch()
    (folder / INFO).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(without_nan(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _card(info: dict[str, Any]) -> str:
    base = info.get("base_model")
    head = ["---", "library_name: " + ("peft" if info.get("adapter") else "transformers")]
    head += [f"base_model: {base}"] * (base is not None) + ["tags: [pivotune]", "---", ""]
    lines = [f"# {info['method']} run of Pivotune", ""]
    if "cc_tuning" in info:
        lines += [
            "**Opened with plain transformers or PEFT, the cross-lingual connection of this model is OFF**: it "
            "answers, but not the way it was trained to. With Pivotune the connection is on:",
        ]
    else:
        lines += ["An ordinary model folder: `AutoModelForCausalLM.from_pretrained` opens it. Or, with Pivotune:"]
    lines += ["", "    pivotune generate THIS_FOLDER 'a question'", "", f"Options and versions: `{INFO}`.", ""]
    return "\n".join(head + lines)


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What `load_run` finds.

    Attributes:
        model: the causal LM, in evaluation mode; a PeftModel where the run trained adapters.
        tokenizer: of the run.
        info: the content of `pivotune.json`; empty for a model that is no run.
        tensors: of `pivotune.safetensors`.
    """

    model: Any
    tokenizer: Any
    info: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def connection_tensors(self) -> tuple[CCTuningConfig, Tensor, Tensor | None] | None:
        """Options, Decision Maker (L, d) and Transform Matrix of a CC-Tuning run; None for other runs."""
        if "cc_tuning" not in self.info:
            return None
        config = CCTuningConfig(**self.info["cc_tuning"])
        return config, self.tensors["decision_maker.weight"], self.tensors.get("transform_matrix")


def load_run(
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
) -> Run:
    """Open a run folder; or any causal LM, as a run without a method.

    Args:
        path: a run folder, a checkpoint of it, or what `AutoModelForCausalLM.from_pretrained` takes.
        dtype: of the weights; auto keeps the saved one, and under an adapter that of its training.
        device: where to put the model; a GPU if there is one.
        attn_implementation: as in transformers.

    Raises:
        PivotuneError: nothing there, a half-written folder, a folder of a newer Pivotune, a missing base model, or
            tensors that are not finite.
    """
    info = read_info(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = {"attn_implementation": attn_implementation}
    tensors: dict[str, Tensor] = {}
    if not info:
        model = open_model(path, dtype=dtype, **options)
    elif info.get("adapter"):
        base = open_model(info["base_model"], dtype=info["dtype"] if dtype == "auto" else dtype, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*{CONNECTION_IS_OFF}")
            model = PeftModel.from_pretrained(base, str(path))
    else:
        model = _own_weights(AutoModelForCausalLM, path, dtype=dtype, **options)
    if "cc_tuning" in info:
        tensors = _load_tensors(path)
    check_finite(str(path), [*model.named_parameters(), *tensors.items()])
    model.pivotune_prompt_style = info.get("prompt_style", "auto")
    return Run(model.to(device).eval(), AutoTokenizer.from_pretrained(path), info, tensors)


def read_info(path: str | Path) -> dict[str, Any]:
    """`pivotune.json` of a folder; empty where it is an ordinary model, or the name of one on the hub.

    Raises:
        PivotuneError: the folder does not exist, is half-written, or is of a newer Pivotune.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") > 1 or folder.exists():
            raise PivotuneError(f"{path}: no such run folder.")
        return {}
    if is_complete(folder):
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if info["format"] > FORMAT:
            raise PivotuneError(
                f"{path}: was written by Pivotune {info['versions']['pivotune']}, and this is "
                f"{pivotune.__version__}. Upgrade."
            )
        return info
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint is not None:
        raise PivotuneError(
            f"{path}: training has not finished. Continue it with --training.resume_from_checkpoint true, or open its "
            f"last complete checkpoint, {checkpoint}."
        )
    if (folder / UNFINISHED).exists():
        raise PivotuneError(
            f"{path}: is half-written: {INFO}, which comes last, is missing. Its writing was interrupted."
        )
    if not ((folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file()):
        raise PivotuneError(f"{path}: is neither a run of Pivotune ({INFO} is missing) nor a model (config.json).")
    return {}


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
    own = method.extra_state()
    if own:
        saved = _load_tensors(folder)
        _check_fit(folder, {name: saved[name] for name in own if name in saved}, own)
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


def _load_tensors(folder: str | Path) -> dict[str, Tensor]:
    try:
        return load_file(Path(folder) / TENSORS)
    except (OSError, SafetensorError) as error:
        raise PivotuneError(f"{folder}: {TENSORS} cannot be read: {error}") from error


def open_model(path: str | Path, **options: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained` with errors of one line."""
    if (Path(path) / ADAPTER_CONFIG).is_file():
        raise PivotuneError(f"{path}: is an adapter. Merge it into its base model first (PEFT's merge_and_unload).")
    try:
        return AutoModelForCausalLM.from_pretrained(path, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PivotuneError(f"{path}: cannot be opened as a causal language model: {reason}") from error


def _own_weights(kind: Any, folder: str | Path, **options: Any) -> nn.Module:
    """`from_pretrained` without its report of the tensor that says that the connection is off."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise PivotuneError(f"{folder}: cannot be opened: {error}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    wrong = {*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]} - {CONNECTION_IS_OFF}
    if wrong:
        raise PivotuneError(f"{folder}: its weights do not fit its config.json: {', '.join(map(str, sorted(wrong)))}.")
    return model
