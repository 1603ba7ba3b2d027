"""Connected generation for programs that know transformers only.

A connected run, its weights in full, carries a `custom_generate/generate.py`: opened with `trust_remote_code=True`, its
`generate()` is the one below. Pivotune has to be installed; the program need not import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from pivotune.anatomy import unwrap
from pivotune.checkpoint import INFO, TENSORS, Run, load_tensors, read_info
from pivotune.connection import connect, is_connected
from pivotune.errors import PivotuneError


def connected_generate(*args: Any, model: Any, **kwargs: Any) -> Any:
    """`model.generate()` with the connection of the run that the model was opened from.

    The first call reads the connection; from then on the model is one of `pivotune.connection.connect`, and takes its
    further arguments too.

    Args:
        model: opened by transformers from a folder of a run, or from its name on the hub.

    Raises:
        PivotuneError: the folder is no longer there, or holds no connection.
    """
    if is_connected(model) and not _is_ours(model):  # asked for by name again: the call came through the connection
        plain = unwrap(model)
        return type(plain).generate(plain, *args, **kwargs)
    connect(model, _connection(model))
    return model.generate(*args, **kwargs)


def _is_ours(model: Any) -> bool:
    """Whether `generate` is what transformers has made of `custom_generate`, and not yet a connection."""
    made = vars(unwrap(model)).get("generate")
    return getattr(getattr(made, "func", None), "__module__", "").startswith("transformers_modules")


def _connection(model: Any) -> Any:
    name = str(unwrap(model).name_or_path)
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, allow_patterns=[INFO, TENSORS, "config.json"]))
    info = read_info(folder)
    run = Run(model, None, info, load_tensors(folder, info.get("tensors", [])))
    connection = run.connection()
    if connection is None:
        raise PivotuneError(f"{folder}: has no connection. Remove its custom_generate.")
    return connection
