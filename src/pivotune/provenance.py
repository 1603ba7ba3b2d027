"""What a result was made from: versions of packages; models, told from samples of their files, too large to read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from pivotune import __version__

_SAMPLES, _SAMPLE = 256, 4096


def versions(*packages: str) -> dict[str, str | None]:
    """Of Pivotune, of torch and transformers, and of these packages; None for what is not installed."""
    found: dict[str, str | None] = {"pivotune": __version__}  # a checkout need not be installed
    for package in ("torch", "transformers", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def base_digest(path: str, revision: str | None = None) -> str | None:
    """A digest of a base model's files. None for what is not here.

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
        if file.is_file():
            size = file.stat().st_size
            add_samples(digest, file, (size * number // _SAMPLES for number in range(_SAMPLES)), _SAMPLE)
    return digest.hexdigest()


def add_samples(digest: Any, file: Path, starts: Iterable[int], length: int) -> None:
    """Take a file's name, its size and `length` bytes at each of these places into a digest of hashlib."""
    digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    with file.open("rb") as content:
        for start in starts:
            content.seek(start)
            digest.update(content.read(length))
