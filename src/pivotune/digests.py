"""Whether a base model is the one that a run was trained on, told from its files without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

_SAMPLES, _SAMPLE = 256, 4096


def base_digest(path: str, revision: str | None = None) -> str | None:
    """A digest of a base model's files: samples of each, spread evenly, for they are large. None for what is not here.

    Two folders of the same content have the same one, wherever they lie.
    """
    folder = Path(path)
    if not folder.exists():
        try:
            found = try_to_load_from_cache(path, "config.json", revision=revision)
        except ValueError:  # no name of a model
            found = None
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    digest = hashlib.blake2b(digest_size=16)
    files = {folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")}
    for file in [folder] if folder.is_file() else sorted(files):  # a GGUF file is a whole model
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            for number in range(_SAMPLES):
                content.seek(size * number // _SAMPLES)
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()
