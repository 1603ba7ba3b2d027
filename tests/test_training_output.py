"""Where training writes: nothing of the user's is written over, and what was trained outlives a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pivotune import checkpoint
from pivotune.checkpoint import INFO, UNFINISHED, load_run, read_info
from pivotune.data import ParallelCollator, read_examples, tokenize_examples
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.trainer import PivotuneTrainer
from pivotune.training import train
from tests.runs import configuration, options, same

SAVING: dict[str, Any] = dict(save_strategy="steps", save_steps=1)


@pytest.fixture(scope="module")
def whole(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing comes in between."""
    return train(configuration(base, data, tmp_path_factory.mktemp("whole") / "run", "cc_tuning"))


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


# Whose the output is -------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("lora", [0, 4])
def test_the_model_is_not_written_over(
    lora: int, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor anything beside it; and all of it is found before a tokenizer is read."""
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "config.json").write_text("mine")
    (tmp_path / "users" / "README.md").write_text("mine")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("the tokenizer is read"))
    for output in ("base", "link", "base/", "base/run", "users", ".", "users/README.md"):
        with pytest.raises(PivotuneError, match=r"^output: "):
            train(replace(configuration(Path("base"), data, Path("x"), lora=lora), output=output))
    assert contents(tmp_path) == before


def test_a_run_is_not_trained_into_itself(base: Path, data: Path, tmp_path: Path) -> None:
    run = train(configuration(base, data, tmp_path / "run", max_steps=1))
    before = contents(run)
    with pytest.raises(PivotuneError, match="is the model itself"):
        train(configuration(run, data, run, max_steps=1))
    assert contents(run) == before
    again = train(configuration(run, data, tmp_path / "again", max_steps=1))
    assert (again / INFO).exists()


def test_checkpoints_of_another_trainer_stay(base: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "run" / "checkpoint-1"
    shutil.copytree(base, other)
    before = contents(tmp_path)
    saving: dict[str, Any] = dict(save_strategy="steps", save_steps=1, save_total_limit=1)
    for resume in (None, True):
        with pytest.raises(PivotuneError, match=r"checkpoint-1 is no checkpoint of Pivotune|already holds a run"):
            train(configuration(base, data, tmp_path / "run", **saving, resume_from_checkpoint=resume))
    assert contents(tmp_path) == before


def test_an_interrupted_run_can_be_begun_again(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first checkpoint, with what it had logged; where it had written nothing, nothing is left."""
    config = configuration(base, data, tmp_path / "run", report_to="tensorboard")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write_model", raising(KeyboardInterrupt()))
        train(config)
    assert (tmp_path / "run" / UNFINISHED).exists()
    assert (train(config) / INFO).exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PivotuneTrainer, "train", raising(KeyboardInterrupt()))
        train(configuration(base, data, tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_two_runs_do_not_share_a_folder(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = PivotuneTrainer.save_model
    tried = []

    def save_model(trainer: PivotuneTrainer, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(PivotuneError, match="another process is writing into"):
            train(configuration(base, data, tmp_path / "run", max_steps=1))
        tried.append(True)
        ended(trainer, *args, **kwargs)

    monkeypatch.setattr(PivotuneTrainer, "save_model", save_model)
    run = train(configuration(base, data, tmp_path / "run", max_steps=1))
    assert tried and load_run(run).info["steps"] == 1
    assert not list(run.glob("pivotune.[lsu]*"))


def test_a_trainer_by_itself_writes_over_nothing_either(base: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    dataset, _ = tokenize_examples(read_examples(data)[0], tokenizer)
    shutil.copytree(base, tmp_path / "base")
    before = contents(tmp_path)
    for output, saved in (("base", None), ("run", "base")):
        trainer = PivotuneTrainer(
            Method(AutoModelForCausalLM.from_pretrained(base)),
            options(output_dir=str(tmp_path / output), max_steps=1),
            train_dataset=list(dataset),
            data_collator=ParallelCollator.for_tokenizer(tokenizer),
        )
        with pytest.raises(PivotuneError, match="base holds files that are not of a run"):
            trainer.train()
            trainer.save_model(None if saved is None else str(tmp_path / saved))
    assert {name: value for name, value in contents(tmp_path).items() if name.startswith("base/")} == before
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert read_info(tmp_path / "elsewhere")["steps"] == 1


# Full disks ----------------------------------------------------------------------------------------------------------

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILURES: dict[str, tuple[Any, str, Exception]] = {
    # what cannot be written, and the exception of its library
    "weights": (
        PreTrainedModel,
        "save_pretrained",
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ),
    "tokenizer": (PreTrainedTokenizerBase, "save_pretrained", Exception("No space left on device (os error 28)")),
    "own tensors": (checkpoint, "save_file", SafetensorError("I/O error: No space left on device")),
    "text": (checkpoint, "write_text", NO_SPACE),
    "late": (os, "fsync", OSError(errno.EIO, os.strerror(errno.EIO))),
    "permission": (checkpoint, "_begin", PermissionError(errno.EACCES, os.strerror(errno.EACCES))),
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk, and elsewhere a home and a folder of temporary files."""
    for name in ("disk", "home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def fill(monkeypatch: pytest.MonkeyPatch, folder: Path, of: Any, name: str, error: Exception, after: int = 0) -> None:
    """Let a function fail where it writes under `folder`, after so many times that it did not."""
    write, left = getattr(of, name), [after]

    def function(*args: Any, **kwargs: Any) -> Any:
        for one in args:
            place = os.readlink(f"/proc/self/fd/{one}") if isinstance(one, int) else one
            if isinstance(place, str | Path) and Path(place).resolve().is_relative_to(folder):
                left[0] -= 1
                if left[0] < 0:
                    raise error
        return write(*args, **kwargs)

    monkeypatch.setattr(of, name, function)


@pytest.mark.parametrize("failure", FAILURES)
def test_the_trained_model_is_kept_where_there_is_room(
    failure: str, base: Path, data: Path, whole: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fill(patch, places / "disk", *FAILURES[failure])
        with pytest.raises(PivotuneError) as error:
            train(configuration(base, data, places / "disk" / "run", "cc_tuning"))
    (rescued,) = (places / "home").iterdir()
    said = str(error.value)
    assert said.startswith(f"output: the run could not be written into {places}/disk/run: ") and "\n" not in said
    assert f"The model as trained up to step 2 is complete in {rescued}." in said
    same(whole, rescued)
    assert "cc_tuning.transform_matrix" in load_run(rescued).tensors
    assert not list((places / "disk").glob("run/*.safetensors"))
    assert not list((places / "tmp").iterdir())


@pytest.mark.parametrize("lora", [0, 4])
def test_a_checkpoint_that_fails_leaves_the_one_before(
    lora: int, base: Path, data: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though only one is to be kept; the weights since then are elsewhere, and the run can go on."""
    torn = RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file data/0")
    whole = train(configuration(base, data, places / "whole", lora=lora, max_steps=3))
    run, settings = places / "disk" / "run", dict(max_steps=3, lora=lora, save_total_limit=1, **SAVING)
    with monkeypatch.context() as patch:
        fill(patch, run / "checkpoint-2", torch, "save", torn)
        with pytest.raises(PivotuneError) as error:
            train(configuration(base, data, run, **settings))
    (rescued,) = (places / "disk").glob("run-rescued-*")  # the weights alone find room
    said = str(error.value)
    assert said.startswith(f"output: checkpoint-2 could not be written into {run}: [enforce fail")
    assert (
        f"up to step 2 is complete in {rescued}. To go on from the last complete checkpoint, {run}/checkpoint-1" in said
    )
    assert load_run(rescued).info["steps"] == 2
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
    same(whole, train(configuration(base, data, run, **settings, resume_from_checkpoint=True)))


def test_where_the_weights_are_is_said_even_if_there_is_no_room(
    base: Path, data: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(monkeypatch, places / "disk" / "run", torch, "save", NO_SPACE, after=3)  # of the second checkpoint
    fill(monkeypatch, places, checkpoint, "mark_complete", NO_SPACE, after=1)
    with pytest.raises(PivotuneError, match=r"not be written anywhere else either\. To go on from .*checkpoint-1,"):
        train(configuration(base, data, places / "disk" / "run", **SAVING))
    assert not list((places / "home").iterdir()) and not list((places / "tmp").iterdir())
    assert [path.name for path in places.glob("disk/run/checkpoint-*")] == ["checkpoint-1"]


def test_a_checkpoint_of_the_last_step_is_the_result(
    base: Path, data: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = places / "disk" / "run"
    fill(monkeypatch, run / checkpoint.SAVING, *FAILURES["weights"])
    with pytest.raises(PivotuneError, match=r"The trained weights are in .*checkpoint-2; to end the run, make room"):
        train(configuration(base, data, run, **SAVING))
    assert load_run(run / "checkpoint-2").info["steps"] == 2
    assert not list((places / "home").iterdir())


def test_an_error_that_is_not_about_writing_is_not_hidden(
    base: Path, data: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_model", raising(PivotuneError("the weights are not finite")))
    with pytest.raises(PivotuneError, match=r"^the weights are not finite$"):
        train(configuration(base, data, places / "disk" / "run"))
    assert not list((places / "home").iterdir())


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("saving", [{}, SAVING])
def test_a_disk_that_is_too_small_is_said_before_training(
    saving: dict[str, Any], base: Path, data: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (base / "model.safetensors").stat().st_size
    free = weights // 2 if not saving else 3 * weights  # the result, a checkpoint, and what Adam keeps: four times
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    monkeypatch.setattr(Method, "forward", raising(AssertionError("a step is made")))
    with pytest.raises(
        PivotuneError, match=r"^output: .*run is too small: about [\d.]+ kB are needed and [\d.]+ kB are free"
    ):
        train(configuration(base, data, places / "disk" / "run", **saving))
    assert not (places / "disk" / "run").exists()


def test_a_disk_that_fills_up_meanwhile_is_said_before_it_is_full(
    base: Path, data: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = places / "disk" / "run"

    def usage(place: Path) -> Usage:
        full = (run / "checkpoint-1" / INFO).exists() and Path(place).is_relative_to(places / "disk")
        return Usage(0, 0, 1000 if full else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(
        PivotuneError, match=r"checkpoint-2 could not .* are needed and 1\.0 kB are free\. The model .*home"
    ):
        train(configuration(base, data, run, **SAVING))
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
