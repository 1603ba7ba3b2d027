"""Run folders: what is saved comes back, other libraries can open them and say what is missing, and half is refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune import checkpoint
from pivotune.checkpoint import (
    CONNECTION_IS_OFF,
    INFO,
    SAVING,
    TENSORS,
    UNFINISHED,
    check_apart,
    check_files,
    check_model,
    check_output,
    check_state,
    load_run,
    open_model,
    read_info,
    remove_old_checkpoints,
    write_json,
    written_at_once,
)
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
    transformers.logging.warning_once.cache_clear()  # as in a new process
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
    assert list(run.info["objectives"]) == [method]
    assert run.model.pivotune_prompt_style == "plain"
    assert (run.connection() is None) == (method == "deep_supervision")
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
    if not rank:  # nothing for a strict loader to refuse
        _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
    assert "connection of this model is OFF" in (folder / "README.md").read_text()


def test_an_adapter_opened_by_transformers_says_it_too(runs: dict) -> None:
    with reports() as said:
        AutoModelForCausalLM.from_pretrained(runs["cc_tuning", 4])
    assert CONNECTION_IS_OFF in "\n".join(said)


def test_the_decision_maker_is_the_trained_one(runs: dict) -> None:
    """With an adapter too; and it is no longer what it was after the first step."""
    for rank in (0, 4):
        folders = [runs["cc_tuning", rank], *(runs["cc_tuning", rank] / f"checkpoint-{step}" for step in (1, 2))]
        found, before, last = (load_run(folder).connections["cc_tuning"] for folder in folders)
        assert torch.equal(found.decision_maker.weight, last.decision_maker.weight)
        assert not torch.equal(found.decision_maker.weight, before.decision_maker.weight)
        # The Transform Matrix is fitted at the end.
        assert found.transform_matrix is not None and last.transform_matrix is None


def test_shards_and_tied_weights(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    data = write_rows(tmp_path / "train.jsonl", rows(8))
    run = train(configuration(base, data, tmp_path / "run", "cc_tuning", max_steps=1))
    model = load_run(run).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    sharded = tmp_path / "sharded"
    shutil.copytree(run, sharded)
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    with reports() as said:
        assert torch.equal(logits(load_run(sharded).model), logits(model))
    assert said == []


def test_any_causal_model_opens_as_a_run_without_a_method(base: Path) -> None:
    run = load_run(base)
    assert run.info == {}
    assert run.objectives == {} and run.connection() is None
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


def test_an_adapter_of_another_state_of_its_base_is_refused(runs: dict, base: Path, tmp_path: Path) -> None:
    """Put into other weights, it would answer without sense, and without a word."""
    run, moved = copied(runs["cc_tuning", 4], tmp_path / "run"), copied(base, tmp_path / "moved")
    info = json.loads((run / INFO).read_text())
    write_json(run / INFO, {**info, "base_model": str(moved)})
    load_run(run)
    weights = load_file(moved / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    for opens in (load_run, check_model):
        with pytest.raises(PivotuneError, match=r"another state of .*moved \(base_digest of pivotune\.json\)"):
            opens(run)
    write_json(run / INFO, {**info, "base_model": str(moved), "base_digest": None})  # of an older version
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


# What is damaged -----------------------------------------------------------------------------------------------------

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "noise": lambda content: bytes((37 * k + 11) % 256 for k in range(len(content))),
    "another kind": lambda content: b"[]",
}
OF_A_RUN = {
    ("cc_tuning", 0): ["config.json", "generation_config.json", "model.safetensors"],
    ("cc_tuning", 4): [checkpoint.ADAPTER_CONFIG, "adapter_model.safetensors"],
}
OF_ANY = ["tokenizer.json", "tokenizer_config.json", INFO, TENSORS]


def damaged(folder: Path, name: str, damage: Damage | None) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("key", "name"), [(key, name) for key in OF_A_RUN for name in [*OF_A_RUN[key], *OF_ANY]])
def test_a_damaged_file_of_a_run_is_named(
    key: tuple[str, int], name: str, damage: str, runs: dict, tmp_path: Path
) -> None:
    run = copied(runs[key], tmp_path / "run")
    damaged(run, name, DAMAGES[damage])
    with pytest.raises(PivotuneError) as error:
        load_run(run)
    assert str(run / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "names"), OF_A_RUN.items())
def test_a_missing_file_of_a_run_is_named(key: tuple[str, int], names: list[str], runs: dict, tmp_path: Path) -> None:
    for name in [*names, INFO, TENSORS]:
        if name == "generation_config.json":  # models have it or not
            continue
        run = copied(runs[key], tmp_path / name)
        damaged(run, name, None)
        with pytest.raises(PivotuneError, match=re.escape(name)):
            load_run(run)


def test_a_run_of_other_options_than_there_are_is_named(runs: dict, tmp_path: Path) -> None:
    """pivotune.json is JSON, but not what was written."""
    run = copied(runs["cc_tuning", 4], tmp_path / "run")
    info = json.loads((run / INFO).read_text())
    for name, value in {
        "format": "1",
        "objectives": "ct",
        "base_model": None,
        "dtype": 32,
        "versions": [],
        "training": "x",
        "asked": 1,
        "found": [],
        "tensors": 2,
    }.items():
        (run / INFO).write_text(json.dumps({**info, name: value}))
        with pytest.raises(PivotuneError, match=rf"pivotune\.json: {name}\b.* The file is damaged"):
            read_info(run)
    for name, options in {"cc_tuning": {"connection": 1}, "deep_supervision": {"layers": 2}, "ct": {}}.items():
        (run / INFO).write_text(json.dumps({**info, "objectives": {name: options}}))
        with pytest.raises(PivotuneError, match=rf"pivotune\.json: objectives\.{name}: .* The file is damaged"):
            read_info(run)


def test_a_run_of_an_earlier_version_is_named(runs: dict, tmp_path: Path) -> None:
    run = copied(runs["cc_tuning", 0], tmp_path / "run")
    info = json.loads((run / INFO).read_text())
    (run / INFO).write_text(json.dumps({**info, "format": 1, "method": "cc_tuning", "cc_tuning": {}}))
    with pytest.raises(PivotuneError, match=r"pivotune\.json: was written by an earlier version of Pivotune"):
        read_info(run)


def test_missing_shards_and_weights_are_named(base: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(base, model)
    (model / "model.safetensors").unlink()
    load_run(base).model.save_pretrained(model, max_shard_size="20KB")
    load_run(model)
    index = model / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    shard = sorted(model.glob("model-*.safetensors"))[1]
    shard.rename(tmp_path / "away")
    with pytest.raises(PivotuneError, match=rf"{shard.name}: is missing, a part of the weights"):
        check_files(model)
    shard.write_bytes((tmp_path / "away").read_bytes()[:-1])
    with pytest.raises(PivotuneError, match=rf"{shard.name}: cannot be read"):
        open_model(model)
    shard.write_bytes((tmp_path / "away").read_bytes())
    index.write_text(index.read_text()[:200])
    with pytest.raises(PivotuneError, match=r"index\.json:\d+: is not valid JSON"):
        open_model(model)
    index.write_text("{}")
    with pytest.raises(PivotuneError, match="weight_map is missing"):
        open_model(model)
    left = {name: file for name, file in whole["weight_map"].items() if file != shard.name}
    index.write_text(json.dumps({**whole, "weight_map": left}))  # otherwise they would be drawn at random, and trained
    with pytest.raises(PivotuneError, match="of its weights are missing"):
        open_model(model)


@pytest.mark.parametrize("damage", [*DAMAGES, None])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_state_of_training_is_named(name: str, damage: str | None, runs: dict, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    shutil.copytree(runs["cc_tuning", 0] / "checkpoint-1", folder)
    check_state(folder)
    damaged(folder, name, None if damage is None else DAMAGES[damage])
    with pytest.raises(PivotuneError) as error:
        check_state(folder)
    assert str(folder / name) in str(error.value) and "\n" not in str(error.value)


def test_a_state_without_its_step_is_refused(runs: dict, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    shutil.copytree(runs["cc_tuning", 0] / "checkpoint-1", folder)
    for content, problem in {"{}": "global_step is 0", '{"of a newer library": 1}': "unexpected keyword"}.items():
        (folder / "trainer_state.json").write_text(content)
        with pytest.raises(PivotuneError, match=rf"trainer_state\.json: .*{problem}"):
            check_state(folder)


# Whose a folder is ---------------------------------------------------------------------------------------------------


def test_a_run_goes_into_a_new_empty_or_own_folder(runs: dict, tmp_path: Path) -> None:
    for name in ("empty", "hidden", "users", "other"):
        (tmp_path / name).mkdir()
    for allowed in (tmp_path / "new" / "run", tmp_path / "empty", *runs.values()):
        check_output("output", allowed)
    (tmp_path / "hidden" / ".gitignore").touch()
    check_output("output", tmp_path / "hidden")
    (tmp_path / "users" / "README.md").touch()
    with pytest.raises(PivotuneError, match=r"^output: .*users holds files that are not of a run \(README\.md\)"):
        check_output("output", tmp_path / "users")
    (tmp_path / "other" / "checkpoint-500").mkdir()
    (tmp_path / "other" / "checkpoint-500" / "model.safetensors").touch()
    for mark in (None, INFO):
        if mark is not None:
            (tmp_path / "other" / mark).touch()
        with pytest.raises(PivotuneError, match=r"checkpoint-500 is no checkpoint of Pivotune"):
            check_output("output", tmp_path / "other")
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "dangling"):
        with pytest.raises(PivotuneError, match=rf"{name} is no folder"):
            check_output("output", tmp_path / name)


PLACES = [
    "base",
    "base/",
    "./base",
    "other/../base",
    "link",
    "link/../base",
    "base/run",
    "link/deep/run",
    ".",
    "deep/..",
]


@pytest.mark.parametrize("output", PLACES)
@pytest.mark.parametrize("model", ["base", "base/", "link", "other/../base"])
def test_a_run_stays_away_from_its_model(
    output: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "other", "deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PivotuneError, match=r"^output: .* (is the model itself|lies (inside|around) the folder of the model)"
    ):
        check_apart("output", output, model)
    for fine in ("run", "base2", "other", "other/base", "base-run"):
        check_apart("output", fine, model)


def test_a_run_does_not_take_the_name_of_a_model_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PivotuneError, match="is the model itself"):
        check_apart("output", "owner/model", "owner/model")
    check_apart("output", "owner", "owner/model")


def test_folders_are_the_same_whatever_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where file names ignore case: the system says which folder it is."""
    (tmp_path / "base").mkdir()
    exists, samefile = Path.exists, Path.samefile
    monkeypatch.setattr(Path, "exists", lambda path: exists(Path(str(path).lower())))
    monkeypatch.setattr(Path, "samefile", lambda path, other: samefile(Path(str(path).lower()), str(other).lower()))
    with pytest.raises(PivotuneError, match="is the model itself"):
        check_apart("output", Path(str(tmp_path).lower()) / "BASE", Path(str(tmp_path).lower()) / "base")


def test_a_neighbour_called_unfinished_is_left_alone(runs: dict, tmp_path: Path) -> None:
    neighbour = tmp_path / "run.unfinished"
    neighbour.mkdir()
    (neighbour / "thesis.txt").write_text("mine")
    with written_at_once(tmp_path / "run") as folder:
        (folder / INFO).write_text("{}")
    assert (neighbour / "thesis.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [INFO]


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(PivotuneError, match="holds files that are not of a run"), written_at_once(tmp_path):
        pytest.fail("nothing is written")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_only_own_checkpoints_are_removed(tmp_path: Path) -> None:
    for step, mark in ((1, INFO), (2, "model.safetensors"), (3, UNFINISHED), (4, INFO)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / mark).touch()
    remove_old_checkpoints(tmp_path, 1, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_a_removal_that_is_interrupted_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / INFO).touch()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    remove_old_checkpoints(tmp_path, 1, None)
    assert [checkpoint.is_complete(tmp_path / f"checkpoint-{step}") for step in (1, 2)] == [False, True]


def test_a_result_that_cannot_be_moved_in_stays_beside_it(
    runs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write() -> None:
        with written_at_once(tmp_path / "run") as folder:
            (folder / "model.safetensors").write_text("trained")
            monkeypatch.setattr(os, "replace", broken)

    with pytest.raises(OSError, match="Input/output error"):
        write()
    assert (tmp_path / "run" / SAVING / "model.safetensors").read_text() == "trained"
    assert not checkpoint.is_complete(tmp_path / "run")
    with pytest.raises(PivotuneError, match="is half-written"):
        read_info(tmp_path / "run")
