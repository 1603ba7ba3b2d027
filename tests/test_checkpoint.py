"""Run folders: what is saved comes back, other libraries can open them and say what is missing, and half is refused."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune import checkpoint
from pivotune.checkpoint import CONNECTION_IS_OFF, INFO, TENSORS, load_run, read_info, written_at_once
from pivotune.errors import PivotuneError
from pivotune.training import train
from tests.runs import configuration, rows, write_base, write_rows

IDS = torch.tensor([[1, 7, 30, 12, 99, 4]])
RUNS = [("deep_supervision", 0), ("deep_supervision", 4), ("cc_tuning", 0), ("cc_tuning", 4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[tuple[str, int], Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = write_rows(folder / "train.jsonl", rows(16))
    saving = {"save_strategy": "steps", "save_steps": 1}
    return {
        (method, rank): train(configuration(base, data, folder / f"{method}-{rank}", method, lora=rank, **saving))
        for method, rank in RUNS
    }


@contextmanager
def reports() -> Iterator[list[str]]:
    """What a program that opens a folder says with the default settings: transformers' log, and warnings."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    library = logging.getLogger("transformers")
    library.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(one.message) for one in caught if one.category is UserWarning]
    finally:
        library.removeHandler(handler)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def plain(folder: Path, base: Path, rank: int) -> Any:
    """The folder as somebody opens it who has never heard of Pivotune."""
    if rank:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(("method", "rank"), RUNS)
def test_what_was_trained_comes_back(method: str, rank: int, base: Path, runs: dict, tmp_path: Path) -> None:
    """The same logits from Pivotune and from the plain library; a checkpoint is a run folder too."""
    folder = runs[method, rank]
    with reports() as said:
        run = load_run(folder)
    assert said == []
    assert torch.equal(logits(run.model), logits(plain(folder, base, rank)))
    assert not torch.equal(logits(run.model), logits(AutoModelForCausalLM.from_pretrained(base)))
    assert torch.equal(logits(load_run(folder / "checkpoint-2").model), logits(run.model))
    assert run.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert run.info["method"] == method
    assert run.model.pivotune_prompt_style == "plain"
    assert (run.connection_tensors() is None) == (method == "deep_supervision")
    assert (folder / TENSORS).exists() == (method == "cc_tuning")


@pytest.mark.parametrize("rank", [0, 4])
def test_a_deep_supervision_run_is_a_plain_folder(rank: int, base: Path, runs: dict) -> None:
    with reports() as said:
        plain(runs["deep_supervision", rank], base, rank)
    assert said == []


@pytest.mark.parametrize("rank", [0, 4])
def test_a_connected_run_says_that_its_connection_is_off(rank: int, base: Path, runs: dict) -> None:
    folder = runs["cc_tuning", rank]
    with reports() as said:
        plain(folder, base, rank)
    assert CONNECTION_IS_OFF in "\n".join(said)
    assert len(said) == 1
    assert "connection of this model is OFF" in (folder / "README.md").read_text()


def test_an_adapter_opened_by_transformers_says_it_too(runs: dict) -> None:
    with reports() as said:
        AutoModelForCausalLM.from_pretrained(runs["cc_tuning", 4])
    assert CONNECTION_IS_OFF in "\n".join(said)


def test_the_decision_maker_is_the_trained_one(runs: dict) -> None:
    """With an adapter too; and it is no longer what it was after the first step."""
    for rank in (0, 4):
        found = load_run(runs["cc_tuning", rank]).connection_tensors()
        before = load_run(runs["cc_tuning", rank] / "checkpoint-1").connection_tensors()
        last = load_run(runs["cc_tuning", rank] / "checkpoint-2").connection_tensors()
        assert found is not None and before is not None and last is not None
        assert torch.equal(found[1], last[1])
        assert not torch.equal(found[1], before[1])
        assert found[2] is not None and last[2] is None  # the Transform Matrix is fitted at the end


def test_shards_and_tied_weights(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    data = write_rows(tmp_path / "train.jsonl", rows(8))
    run = train(configuration(base, data, tmp_path / "run", "cc_tuning", max_steps=1))
    model = load_run(run).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    sharded = tmp_path / "sharded"
    shutil.copytree(run, sharded)
    (sharded / "model.safetensors").unlink()
    weights = {**model.state_dict(), CONNECTION_IS_OFF: torch.zeros(1)}
    model.save_pretrained(sharded, state_dict=weights, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    with reports() as said:
        assert torch.equal(logits(load_run(sharded).model), logits(model))
    assert said == []


def test_any_causal_model_opens_as_a_run_without_a_method(base: Path) -> None:
    run = load_run(base)
    assert run.info == {}
    assert run.connection_tensors() is None
    assert torch.equal(logits(run.model), logits(AutoModelForCausalLM.from_pretrained(base)))


def test_the_dtype_can_be_chosen(runs: dict) -> None:
    assert load_run(runs["cc_tuning", 0], dtype=torch.bfloat16).model.dtype is torch.bfloat16


# What is refused -----------------------------------------------------------------------------------------------------


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoint-*"))
    return target


def test_half_written_folders_are_refused(runs: dict, tmp_path: Path) -> None:
    run = runs["cc_tuning", 0]
    with pytest.raises(PivotuneError, match="no such folder"):
        load_run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PivotuneError, match=r"neither a run of Pivotune \(pivotune.json is missing\) nor a model"):
        load_run(tmp_path / "empty")
    half = copied(run, tmp_path / "half")
    (half / checkpoint.UNFINISHED).touch()
    with pytest.raises(PivotuneError, match="is half-written"):
        load_run(half)
    going = tmp_path / "going"
    going.mkdir()
    shutil.copytree(run / "checkpoint-1", going / "checkpoint-1")
    with pytest.raises(PivotuneError, match=r"has not finished.*checkpoint-1\."):
        load_run(going)


def test_damaged_folders_are_refused(runs: dict, tmp_path: Path) -> None:
    run = runs["cc_tuning", 0]
    newer = copied(run, tmp_path / "newer")
    info = json.loads((newer / INFO).read_text())
    (newer / INFO).write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(PivotuneError, match="Upgrade"):
        read_info(newer)
    cut = copied(run, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(PivotuneError, match=r"cut/model\.safetensors: cannot be read: .*The file is damaged"):
        load_run(cut)
    wrong = copied(run, tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(PivotuneError, match=r"do not fit its config\.json.*layers\.3"):
        load_run(wrong)


def test_a_lost_base_model_is_named(runs: dict, tmp_path: Path) -> None:
    run = copied(runs["cc_tuning", 4], tmp_path / "run")
    info = json.loads((run / INFO).read_text())
    (run / INFO).write_text(json.dumps({**info, "base_model": "/no/such/model"}))
    with pytest.raises(PivotuneError, match="/no/such/model: no such folder"):
        load_run(run)


def test_an_interrupted_save_leaves_the_old_run(runs: dict, tmp_path: Path) -> None:
    run = copied(runs["cc_tuning", 0], tmp_path / "run")
    before = sorted(path.name for path in run.iterdir())

    def interrupted() -> None:
        with written_at_once(run) as folder:
            (folder / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(path.name for path in run.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    load_run(run)
