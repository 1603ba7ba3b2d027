"""Going on with a run: options that may change and options that may not, the checkpoint taken, and what is left."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune import checkpoint, resume
from pivotune.checkpoint import INFO, UNFINISHED
from pivotune.config import LoraOptions, RunConfig, TrainingOptions
from pivotune.data import ParallelCollator, read_examples, tokenize_examples
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from pivotune.provenance import base_digest
from pivotune.trainer import PivotuneTrainer
from pivotune.training import train
from tests.runs import LAYERS, configuration, log, options, rows, same, weights, write_base, write_rows

SAVING: dict[str, Any] = dict(save_strategy="steps", save_steps=1, max_steps=3, per_device_train_batch_size=4)


@pytest.fixture(scope="module")
def whole(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(configuration(base, data, tmp_path_factory.mktemp("whole") / "run", "both", lora=4, **SAVING))


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """A run of three steps that was interrupted behind the second."""
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


def again(base: Path, data: Path, output: Path, method: str = "both", **changed: Any) -> RunConfig:
    settings = {"lora": 4, **SAVING, "resume_from_checkpoint": True, **changed}
    return configuration(base, data, output, method, **settings)


def poison(file: Path, value: float = float("nan")) -> None:
    """One bad value in the last tensor of a file."""
    tensors = load_file(file)
    tensors[max(tensors)].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})


# The comparison, by itself -------------------------------------------------------------------------------------------


def record(config: RunConfig, **more: Any) -> dict[str, Any]:
    known = {"lora": dataclasses.asdict(config.lora), "data": dataclasses.asdict(config.data)}
    return {**known, "base_model": "/base", **resume.options_record(config, config.training), **more}


def run(**changed: Any) -> RunConfig:
    return configuration(Path("base"), Path("data.jsonl"), Path("run"), "both", **{"lora": 4, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim": "sgd"}, 'training.optim: got "sgd", was "adamw_torch'),
        ({"weight_decay": 0.1}, "training.weight_decay: got 0.1, was 0.0: the optimizer's state carries the old value"),
        ({"adam_beta2": 0.95}, "training.adam_beta2"),
        ({"adam_epsilon": 1e-6}, "training.adam_epsilon"),
        ({"lr_scheduler_type": "linear"}, 'training.lr_scheduler_type: got "linear", was "cosine"'),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, 'training.lr_scheduler_kwargs: got {"num_cycles": 2}, was null'),
        ({"seed": 7}, "training.seed: got 7, was 42"),
        ({"data_seed": 7}, "training.data_seed: got 7, was null"),
        ({"per_device_train_batch_size": 4}, "gradient_accumulation_steps x ranks: got 4, was 8"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps x ranks: got 16, was 8"),
        ({"dataloader_drop_last": True}, "training.dataloader_drop_last: got true, was false"),
        ({"lora": 8}, "lora.r: got 8, was 4"),
        ({"lora": 0}, "lora.r: got 0, was 4"),
    ],
)
def test_options_that_may_not_change(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(PivotuneError) as error:
        resume.compare("run/checkpoint-2", record(run()), record(run(**changed)))
    assert message in str(error.value)
    assert "run/checkpoint-2/pivotune.json" in str(error.value)
    assert "begin a new run" in str(error.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"logging_steps": 7},
        {"save_steps": 7},
        {"save_total_limit": 1},
        {"report_to": "tensorboard"},
        {"dataloader_num_workers": 2},
        {"per_device_eval_batch_size": 3},
        {"gradient_checkpointing": True},
        {"resume_from_checkpoint": True},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},  # still eight examples in a step
        {"eval_strategy": "epoch"},
    ],
)
def test_options_that_may_change_without_a_word(changed: dict[str, Any]) -> None:
    assert resume.compare("run/checkpoint-2", record(run()), record(run(**changed))) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 1e-3}, "training.learning_rate: got 0.001, was 0.01"),
        ({"max_steps": 9}, "training.max_steps: got 9, was 2"),
        ({"warmup_steps": 1}, "training.warmup_steps: got 1, was 0"),
        ({"max_grad_norm": 0.5}, "training.max_grad_norm: got 0.5, was 1.0"),
        ({"bf16": True}, "training.bf16: got true, was false"),
        ({"seed": 7, "ignore_data_skip": True}, "training.seed: got 7, was 42"),
    ],
)
def test_options_that_may_change_and_are_told(changed: dict[str, Any], message: str) -> None:
    told = resume.compare("run/checkpoint-2", record(run()), record(run(**changed)))
    assert len(told) == 1
    assert told[0].startswith(message)


def test_epochs_count_where_steps_are_not_given() -> None:
    long, short = ({"max_steps": -1, "num_train_epochs": epochs} for epochs in (5, 3))
    assert "num_train_epochs: got 5, was 3" in resume.compare("c", record(run(**short)), record(run(**long)))[0]
    without = ({"num_train_epochs": epochs} for epochs in (5, 3))
    assert resume.compare("c", *(record(run(**one)) for one in without)) == []


def test_a_rate_that_the_schedule_itself_moves_may_not_change() -> None:
    moving = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}
    with pytest.raises(PivotuneError, match=r"training\.learning_rate: got 1\.0, was 0\.01"):
        resume.compare("c", record(run(**moving)), record(run(learning_rate=1.0, **moving)))


OWN = {
    "lora": (
        LoraOptions(r=4),
        {
            **{"r": 5, "alpha": 33, "dropout": 0.5, "target_modules": ["q_proj"]},
            **{"use_dora": True, "use_rslora": True, "modules_to_save": ["norm"]},
        },
    ),
    "deep_supervision": (
        LAYERS,
        {
            **{"language_conversion": "feature", "english_thinking": "off", "conversion_layer": 3, "thinking_layer": 1},
            **{"conversion_weight": 0.5, "thinking_weight": 0.5, "reading": "position_wise", "pooling": "last_token"},
            **{"stop_gradient": False, "final_norm": False, "feature_loss": "contrast", "temperature": 0.5},
            **{"english_layer": "same", "reader": "tuned_lens", "gradient_share": 0.5, "weight_warmup": 0.5},
            **{"weight_cooldown": 0.5},
        },
    ),
    "cc_tuning": (
        CCTuningConfig(),
        {
            **{"english_gradient": False, "temperature": 0.5, "selection": "soft", "connection_layer": 2},
            **{"connection_tokens": 2, "matrix": "per_layer", "ridge": 1.0, "matrix_pairs": 10, "relative_norm": 0.1},
            **{"gate": True},
        },
    ),
}
CASES = [(section, name) for section, (default, _) in OWN.items() for name in vars(default)]


@pytest.mark.parametrize(("section", "name"), CASES)
def test_every_own_option_is_fixed_unless_only_the_matrix_reads_it(section: str, name: str) -> None:
    default, other = OWN[section]

    def of(options: Any) -> RunConfig:
        return replace(run(), lora=options) if section == "lora" else run(**{section: options})

    then, now = of(default), of(replace(default, **{name: other[name]}))  # type: ignore[type-var]
    if f"{section}.{name}" in resume.after_training():
        assert resume.compare("c", record(then), record(now)) == []
        assert not resume.unchanged(record(then), record(now), resume.after_training())
        return
    with pytest.raises(PivotuneError, match=rf"{section}\.{name}: got .*, was "):
        resume.compare("c", record(then), record(now))


def test_a_section_that_a_table_names_holds_such_options() -> None:
    known = {f"training.{option.name}" for option in dataclasses.fields(TrainingOptions)}
    named = {name for table in (resume.FIXED, resume.POSITION, resume.SAID) for name in table}
    assert {name for name in named if name.startswith("training.") and " x " not in name} <= known


def test_automatic_layers_are_those_of_the_checkpoint() -> None:
    automatic = run(deep_supervision=DeepSupervisionConfig(conversion_layer="auto", thinking_layer="auto"))
    assert resume.compare("c", record(run()), record(automatic)) == []


def test_the_order_of_target_modules_does_not_count() -> None:
    left, right = (replace(run(), lora=LoraOptions(r=4, target_modules=names)) for names in (["a", "b"], ["b", "a"]))
    assert resume.compare("c", record(left), record(right)) == []


def test_records_of_older_versions_and_of_other_libraries_are_compared_as_far_as_they_go() -> None:
    assert resume.compare("c", {"objectives": record(run())["objectives"]}, record(run(lora=8))) == []
    with pytest.raises(PivotuneError, match=r'objectives: got \["cc_tuning", "deep_supervision"\], was \[\]'):
        resume.compare("c", {"objectives": {}}, record(run()))
    older = record(run())
    del older["training"]["adam_beta2"], older["lora"]["dropout"]  # options that an older version lacked
    assert resume.compare("c", older, record(run())) == []


# The base model and the data -----------------------------------------------------------------------------------------


def test_a_base_model_is_known_by_its_content(tmp_path: Path) -> None:
    first = write_base(tmp_path / "first")
    shutil.copytree(first, tmp_path / "moved")
    digest = base_digest(str(first))
    assert digest is not None
    assert base_digest(str(tmp_path / "moved")) == digest
    poison(tmp_path / "moved" / "model.safetensors", 0.125)
    assert base_digest(str(tmp_path / "moved")) != digest
    assert base_digest("nobody/nothing") is None
    assert base_digest("no name of a model") is None


def test_rows_are_known_by_their_tokens(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)

    def digest(made: list[dict[str, Any]], **changed: Any) -> str:
        found = tokenize_examples(read_examples(write_rows(tmp_path / "rows.jsonl", made))[0], tokenizer, **changed)[0]
        return resume.rows_digest(found)

    made = rows(6)
    assert digest(made) == digest(json.loads(json.dumps(made)))
    assert digest(made) == digest([{**row, "id": f"x{row['id']}"} for row in made])
    others: list[Callable[[], str]] = [
        lambda: digest(made[::-1]),
        lambda: digest(made[:-1]),
        lambda: digest([{**made[0], "completion": "别"}, *made[1:]]),
        lambda: digest([{k: v for k, v in row.items() if k != "english"} for row in made]),
        lambda: digest(made, max_length=24, overlong="skip"),
    ]
    assert all(other() != digest(made) for other in others)
    # What counts are the values, not how the table keeps them.
    table = tokenize_examples(read_examples(write_rows(tmp_path / "rows.jsonl", made))[0], tokenizer)[0]
    parts = datasets.concatenate_datasets([table.select(range(2)), table.select(range(2, 6))])
    assert resume.rows_digest(parts) == resume.rows_digest(table)


# Whole runs ----------------------------------------------------------------------------------------------------------


def test_a_run_that_was_interrupted_goes_on_and_says_so(
    whole: Path, begun: Path, base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same(train(again(base, data, begun)), whole)
    assert f"The run goes on from {begun / 'checkpoint-2'}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "method", "message"),
    [
        ({"lora": 8}, "both", r"lora\.r: got 8, was 4"),
        ({"lora": 0}, "both", r"lora\.r: got 0, was 4"),
        ({}, "cc_tuning", r'objectives: got \["cc_tuning"\], was \["cc_tuning", "deep_supervision"\]'),
        ({"cc_tuning": CCTuningConfig(connection_layer=2)}, "both", r"cc_tuning\.connection_layer: got 2, was 1"),
        ({"seed": 3}, "both", r"training\.seed: got 3, was 42.*ignore_data_skip"),
    ],
)
def test_another_run_is_refused_before_its_model_is_loaded(
    changed: dict[str, Any],
    method: str,
    message: str,
    begun: Path,
    base: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pivotune.checkpoint.open_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(PivotuneError, match=message):
        train(again(base, data, begun, method, **changed))


def test_alpha_and_target_modules(begun: Path, base: Path, data: Path) -> None:
    for changed, message in (
        ({"alpha": 8}, r"lora\.alpha: got 8, was 32"),
        ({"target_modules": ["q_proj"]}, r'lora\.target_modules: got \["q_proj"\], was "all-linear"'),
    ):
        config = again(base, data, begun)
        config.lora = replace(config.lora, **changed)
        with pytest.raises(PivotuneError, match=message):
            train(config)


def test_another_type_of_the_weights(begun: Path, base: Path, data: Path) -> None:
    config = again(base, data, begun)
    config.model.dtype = "bfloat16"
    with pytest.raises(PivotuneError, match=r'model\.dtype: got "bfloat16", was "float32"'):
        train(config)


def test_a_moved_base_is_the_same_and_another_is_not(
    whole: Path, begun: Path, base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    copy = Path(shutil.copytree(begun, tmp_path / "copy"))
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        same(train(again(moved, data, copy)), whole)
    assert "moved has the content of" in caplog.text
    poison(moved / "model.safetensors", 0.125)
    with pytest.raises(PivotuneError, match=r"model\.path: got .*moved, was .*, of other content"):
        train(again(moved, data, begun))


def test_other_data_are_refused_and_moved_ones_are_not(
    whole: Path, begun: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    other = write_rows(tmp_path / "other.jsonl", rows(17))
    with pytest.raises(PivotuneError, match=r"data\.train \(data\.train: .*other\.jsonl.*: its rows, as tokens"):
        train(again(base, other, begun))
    shorter = again(base, data, begun)
    shorter.data = replace(shorter.data, max_length=24, overlong="skip")
    with pytest.raises(PivotuneError, match=r"data\.max_length: 24, was 512; data\.overlong"):
        train(shorter)
    same(train(again(base, Path(shutil.copy(data, tmp_path / "moved.jsonl")), begun)), whole)


def test_the_place_in_the_data_can_be_given_up(
    begun: Path, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_rows(tmp_path / "other.jsonl", rows(17))
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        run = train(again(base, other, begun, ignore_data_skip=True))
    assert "data.train" in caplog.text
    assert json.loads((run / INFO).read_text())["steps"] == 3


def test_another_learning_rate_takes_effect(
    begun: Path, base: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        run = train(again(base, data, begun, learning_rate=1e-4, max_steps=8))
    assert "training.learning_rate: got 0.0001, was 0.01" in caplog.text
    rates = [entry["learning_rate"] for entry in log(run) if "loss" in entry]
    assert min(rates[:2]) > 1e-3
    assert max(rates[2:]) <= 1e-4


# Which checkpoint ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "pivotune.tensors", "optimizer.pt"])
def test_a_checkpoint_that_is_not_finite_is_passed_over(
    file: str, bad: float, whole: Path, begun: Path, base: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = begun / "checkpoint-2" / file
    if file == "optimizer.pt":
        state = torch.load(place)
        next(iter(state["state"].values()))["exp_avg"].view(-1)[0] = bad
        torch.save(state, place)
    else:
        poison(place, bad)
    with pytest.raises(PivotuneError, match=rf"{file} has NaN or infinity in .*earlier checkpoint, or true"):
        train(again(base, data, begun, resume_from_checkpoint=str(begun / "checkpoint-2")))
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        same(train(again(base, data, begun)), whole)
    assert f"checkpoint-2 is passed over: {file} has NaN or infinity" in caplog.text


def test_a_full_checkpoint_that_is_not_finite(base: Path, data: Path, tmp_path: Path) -> None:
    run = train(configuration(base, data, tmp_path / "run", **SAVING))
    poison(run / "checkpoint-3" / "model.safetensors")
    found = resume.find(True, run)
    assert found == run / "checkpoint-2"


def test_a_checkpoint_without_an_optimizer_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    """Going on with a new optimizer would be another run, unsaid."""
    settings = {**SAVING, "save_only_model": True}
    run = train(configuration(base, data, tmp_path / "run", **settings))
    with pytest.raises(PivotuneError, match=r"checkpoint-3 has no optimizer's state \(training\.save_only_model\)"):
        train(configuration(base, data, run, **{**settings, "max_steps": 5}, resume_from_checkpoint=True))


def test_the_folder_of_a_run_is_no_checkpoint(whole: Path, base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(PivotuneError, match=r"is the folder of a run.*e\.g\. .*checkpoint-3"):
        train(again(base, data, tmp_path / "new", resume_from_checkpoint=str(whole)))
    alone = tmp_path / "alone"
    shutil.copytree(whole, alone, ignore=shutil.ignore_patterns("checkpoint-*"))
    with pytest.raises(PivotuneError, match="is a finished run and no checkpoint"):
        train(again(base, data, tmp_path / "new", resume_from_checkpoint=str(alone)))


def test_a_checkpoint_of_another_folder(whole: Path, base: Path, data: Path, tmp_path: Path) -> None:
    there = str(whole / "checkpoint-2")
    same(train(again(base, data, tmp_path / "new", resume_from_checkpoint=there)), whole)
    with pytest.raises(PivotuneError, match=r"already holds a run that is not the one of"):
        train(again(base, data, tmp_path / "new", resume_from_checkpoint=there))
    with pytest.raises(PivotuneError, match=r"lora\.r: got 2, was 4"):
        train(again(base, data, tmp_path / "newer", lora=2, resume_from_checkpoint=there))


def test_later_checkpoints_are_not_overwritten(begun: Path, base: Path, data: Path) -> None:
    with pytest.raises(PivotuneError, match=r"would be overwritten \(checkpoint-2\)"):
        train(again(base, data, begun, resume_from_checkpoint=str(begun / "checkpoint-1")))


def test_the_checkpoint_just_written_is_never_the_one_removed(begun: Path, base: Path, data: Path, whole: Path) -> None:
    """A half-written one of a later step may be left of an interruption."""
    shutil.copytree(whole / "checkpoint-3", begun / "checkpoint-8")
    (begun / "checkpoint-8" / INFO).unlink()
    (begun / "checkpoint-8" / UNFINISHED).touch()
    run = train(again(base, data, begun, save_total_limit=1))
    assert checkpoint.complete_checkpoints(run) == [run / "checkpoint-3"]


# Nothing left to train -----------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(
    whole: Path, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert train(again(base, data, copy)) == copy
    assert "is complete, and no step is left" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    with pytest.raises(PivotuneError, match=r"lora\.r"):
        train(again(base, data, copy, lora=2))


def test_a_finished_run_can_go_on_for_longer(whole: Path, base: Path, data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    run = train(again(base, data, copy, max_steps=5))
    assert json.loads((run / INFO).read_text())["steps"] == 5
    with pytest.raises(PivotuneError, match="make 2 steps, and 5 are done"):
        train(again(base, data, copy, max_steps=2))


def test_a_finished_run_without_checkpoints(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was begun anew, over the old result."""
    run = train(configuration(base, data, tmp_path / "run"))
    before = weights(run)
    train(configuration(base, data, run, resume_from_checkpoint=True))
    assert "is complete, and no step is left" in capsys.readouterr().out
    with pytest.raises(PivotuneError, match="is a finished run and no checkpoint"):
        train(configuration(base, data, run, resume_from_checkpoint=True, max_steps=5))
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())


@pytest.mark.parametrize("steps", [3, 4])
def test_trained_and_not_written(
    steps: int, base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted between the last checkpoint, in and at the end of an epoch, and the result: not a step is trained."""
    settings = {"max_steps": steps, "save_steps": steps}
    run = train(again(base, data, tmp_path / "run", resume_from_checkpoint=None, **settings))
    (tmp_path / "again").mkdir()
    shutil.copytree(run / f"checkpoint-{steps}", tmp_path / "again" / f"checkpoint-{steps}")
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        again_ = train(again(base, data, tmp_path / "again", **settings))
    assert f"{steps} of {steps} steps are done, so no step is left to train" in caplog.text
    same(run, again_)
    assert json.loads((again_ / INFO).read_text())["steps"] == steps


def test_another_matrix_is_fitted_from_the_last_checkpoint(whole: Path, base: Path, data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    run = train(again(base, data, copy, cc_tuning=CCTuningConfig(matrix="per_layer")))
    assert load_file(run / "pivotune.tensors")["cc_tuning.transform_matrix"].shape == (3, 16, 16)
    assert torch.equal(
        load_file(run / "pivotune.tensors")["cc_tuning.decision_maker.weight"],
        load_file(whole / "pivotune.tensors")["cc_tuning.decision_maker.weight"],
    )


# From Python ---------------------------------------------------------------------------------------------------------


def test_the_trainer_by_itself_resumes_from_the_last_good_one(
    base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    dataset, _ = tokenize_examples(read_examples(data)[0], tokenizer)
    shapes = dict(train_dataset=dataset, data_collator=ParallelCollator.for_tokenizer(tokenizer))

    def trainer(folder: Path = base, **changed: Any) -> PivotuneTrainer:
        args = options(**{**SAVING, "output_dir": str(tmp_path / "run"), **changed})
        return PivotuneTrainer(Method(AutoModelForCausalLM.from_pretrained(folder)), args, **shapes)

    trainer().train()
    last = tmp_path / "run" / "checkpoint-3"
    poison(last / "model.safetensors")
    with pytest.raises(PivotuneError, match=r"before the first step: NaN or infinity in model\."):
        trainer().train(resume_from_checkpoint=str(last))
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        assert trainer().train(resume_from_checkpoint=True).global_step == 3
    assert "checkpoint-3 is passed over" in caplog.text
    with pytest.raises(PivotuneError, match=r"training\.seed: got 5, was 42"):
        trainer(seed=5).train(resume_from_checkpoint=True)
    wider = write_base(tmp_path / "wider", hidden_size=32)
    with pytest.raises(
        PivotuneError, match=r"checkpoint-3: its weights do not fit this model: lm_head\.weight has shape"
    ):
        trainer(wider).train(resume_from_checkpoint=True)


def test_a_checkpoint_that_is_not_there(begun: Path) -> None:
    with pytest.raises(PivotuneError, match=r"checkpoint: .*checkpoint-3: no such folder; did you mean"):
        resume.find(str(begun / "checkpoint-3"), begun)
    with pytest.raises(PivotuneError, match=r"no such folder; there is no .*elsewhere\."):
        resume.find(str(begun / "elsewhere" / "checkpoint-1"), begun)
