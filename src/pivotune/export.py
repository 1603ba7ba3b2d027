"""`pivotune export`: a run as an ordinary model folder, for whatever opens one.

Adapters are merged into their base, and what is Pivotune's own is left out: the record, the connection's tensors, its
mark. What is left needs transformers alone, or vLLM, llama.cpp's converter, and so on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi
from peft import PeftModel

from pivotune import card, tokens
from pivotune.checkpoint import (
    CONNECTION_IS_OFF,
    check_apart,
    check_space,
    connection_modes,
    load_run,
    mark_complete,
    open_config,
    read_info,
    repair_generation,
    write_own,
    written_at_once,
)
from pivotune.errors import PivotuneError, check_choice
from pivotune.evaluation.results import FOLDER, SCORES, TABLE
from pivotune.files import reason, write_text

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = ("auto", "float32", "bfloat16", "float16")


def export(
    run: str,
    *,
    output: str,
    dtype: Dtype = "auto",
    max_shard_size: str = "5GB",
    connection: bool = False,
    push: str | None = None,
    private: bool = True,
) -> Path:
    """`pivotune export`: a run as an ordinary model folder.

    Args:
        run: a run folder, or a checkpoint of it.
        output: a new or empty folder.
        dtype: of the weights; auto keeps that of the run. An adapter is merged in float32, then rounded. A base
            that was quantised for the training is dequantised first, so that the result is the model that was trained.
        max_shard_size: of a file of weights.
        connection: keep the run's connection. The result is then a run folder of Pivotune whose weights are in full:
            plain programs open it without the connection, and with it where they trust its code.
        push: also upload it to the hub under this name, USER/NAME; `hf auth login` first.
        private: whether a repository that is new on the hub is private.

    Returns:
        The folder.

    Raises:
        PivotuneError: a wrong option, a run that cannot be opened, or an output that is not empty.
    """
    check_choice("dtype", dtype, DTYPES)
    info = read_info(run)
    if not info:
        raise PivotuneError(f"run: {run} is no run of Pivotune: there is nothing to merge or to leave out.")
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PivotuneError(f"output: {folder} is there already, and not empty. Name a new folder.")
    for source in filter(None, (run, info.get("base_model"))):
        check_apart("output", folder, source)
    if connection and connection_modes(info) == ("none",):
        raise PivotuneError(f"connection: {run} was not trained with a connection. Leave the option out.")
    hub = None if push is None else _hub(push)

    # What was read from packed files has no such form to go back to.
    packed = info.get("adapter") and hasattr(
        open_config(info["base_model"], info.get("revision")), "quantization_config"
    )
    opened = load_run(run, dtype=torch.float32 if info.get("adapter") else "auto", device="cpu", dequantise=True)
    model: Any = opened.model
    if isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    model = model.to(getattr(torch, info["dtype"] if dtype == "auto" else dtype))
    vars(model).pop("pivotune_prompt_style", None)
    vars(model.config).pop(CONNECTION_IS_OFF, None)
    with written_at_once(folder) as temporary:
        check_space(folder, sum(value.numel() * value.element_size() for value in model.parameters()))
        tokens.settle(model)
        repair_generation(model.generation_config, run)
        try:
            model.save_pretrained(temporary, max_shard_size=max_shard_size, save_original_format=not packed)
        except ValueError as error:
            raise PivotuneError(f"max_shard_size: got {max_shard_size!r}; give a size such as 5GB.") from error
        opened.tokenizer.save_pretrained(temporary)
        if connection:
            kept = {name: value for name, value in info.items() if name not in ("lora", "base_digest", "quantization")}
            kept |= {"adapter": False, "dtype": str(model.dtype).removeprefix("torch.")}
            write_own(temporary, opened.tensors, connected=True, adapter=False)
            mark_complete(temporary, kept)
        else:
            write_text(temporary / "README.md", _card(run, info))
    print(f"The model is in {folder}.")
    if hub is not None:
        _push(hub, folder, str(push), private)
    return folder


def results_in(evaluation: Path, connection: str) -> str:
    """The tables of `pivotune evaluate` in this folder, where they are of this connection; else nothing."""
    try:
        scores = json.loads((evaluation / SCORES).read_text(encoding="utf-8"))
        table = (evaluation / TABLE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    if not isinstance(scores, dict) or scores.get("connection") != connection:
        return ""
    return re.sub(r"^## ", "### ", table.partition("\n")[2], flags=re.MULTILINE)


def _card(run: str, info: Mapping[str, Any]) -> str:
    how = "`AutoModelForCausalLM.from_pretrained` opens it, and so does `vllm serve`."
    if connection_modes(info) != ("none",):
        print("The connection is left out: the exported model answers as the run does with --connection none.")
        how = f"{card.NO_CONNECTION}\n\n{how}"
    return card.card(info, how, results=results_in(Path(run) / FOLDER, "none"))


def _hub(name: str) -> HfApi:
    """The hub, asked before the work whether the upload may begin."""
    if name.count("/") != 1:
        raise PivotuneError(f"push: got {name!r}; give USER/NAME or ORGANISATION/NAME.")
    hub = HfApi()
    try:
        hub.whoami()
    except Exception as error:  # of the network or the hub
        raise PivotuneError(
            f"push: {hub.endpoint} does not let you in: {reason(error)}. Is it within reach? `hf auth login` gives it "
            "your token."
        ) from error
    return hub


def _push(hub: HfApi, folder: Path, name: str, private: bool) -> None:
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by Pivotune")
    except Exception as error:
        raise PivotuneError(
            f"push: {name}: {reason(error)}. The export itself is complete in {folder}: `hf upload {name} {folder}` "
            "tries the upload again."
        ) from error
    print(f"Uploaded to {name}.")
