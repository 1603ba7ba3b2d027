"""`pivotune train`: resuming, precision and memory, when it evaluates, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune.checkpoint import INFO, UNFINISHED, load_run
from pivotune.config import LoraOptions
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from pivotune.objectives.cc_tuning.transform_matrix import NormalEquations
from pivotune.trainer import PivotuneTrainer
from pivotune.training import train
from tests.runs import (
    FEATURE,
    LAYERS,
    METHODS,
    QUIETLY,
    base_weights,
    by_itself,
    configuration,
    log,
    nothing_in,
    options,
    rows,
    same,
    weights,
    without_noise,
    write_base,
    write_rows,
)

# Resuming ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "rank"), [("deep_supervision", 0), ("both", 0), ("both", 4)])
def test_resumed_equals_uninterrupted(method: str, rank: int, base: Path, data: Path, tmp_path: Path) -> None:
    """Bit for bit, with Gumbel noise, across the border of an epoch, at the middle of one; full and LoRA."""

    def config(folder: str, **changed: Any) -> Any:
        settings: dict[str, Any] = dict(max_steps=5, per_device_train_batch_size=4, lora=rank)
        settings |= dict(save_strategy="steps", save_steps=3, gradient_accumulation_steps=2)
        return configuration(base, data, tmp_path / folder, method, **(settings | changed))

    whole = train(config("whole"))
    (tmp_path / "again").mkdir()
    shutil.copytree(whole / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = train(config("again", resume_from_checkpoint=True))
    same(whole, again)
    assert [e.get("loss") for e in log(whole)][:5] == [e.get("loss") for e in log(again)][:5]
    assert (rank > 0) == (again / "adapter_model.safetensors").exists()


def test_a_half_written_checkpoint_is_passed_over(base: Path, data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(max_steps=3, save_strategy="steps", save_steps=1)
    whole = train(configuration(base, data, tmp_path / "whole", **settings))
    (tmp_path / "again").mkdir()
    for step in (1, 2):
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / "again" / f"checkpoint-{step}")
    (tmp_path / "again" / "checkpoint-2" / INFO).rename(tmp_path / "again" / "checkpoint-2" / UNFINISHED)
    again = train(configuration(base, data, tmp_path / "again", **settings, resume_from_checkpoint="true"))
    same(whole, again)


def test_resuming_nothing_begins_and_says_so(
    base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        train(configuration(base, data, tmp_path / "run", max_steps=1, resume_from_checkpoint=True))
    assert "has no complete checkpoint; training begins anew" in caplog.text


def test_a_run_is_not_overwritten(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run", max_steps=1)
    train(config)
    with pytest.raises(PivotuneError, match="already holds a run"):
        train(config)
    with pytest.raises(PivotuneError, match="nothing: no such folder"):
        train(configuration(base, data, tmp_path / "other", resume_from_checkpoint=str(tmp_path / "run" / "nothing")))


# Precision and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4])
def test_gradient_checkpointing_changes_nothing(rank: int, base: Path, data: Path, tmp_path: Path) -> None:
    runs = [
        train(configuration(base, data, tmp_path / str(on), "both", lora=rank, gradient_checkpointing=on, optim="sgd"))
        for on in (False, True)
    ]
    same(*runs, tolerance=1e-6)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16(dtype: str, rank: int, base: Path, data: Path, tmp_path: Path) -> None:
    """Mixed precision, pure bfloat16, and adapters in float32 over a bfloat16 base."""
    config = configuration(base, data, tmp_path / "run", "both", bf16=dtype == "float32", lora=rank)
    config.model.dtype = dtype  # type: ignore[assignment]
    run = train(config)
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    found = load_run(run)
    assert found.model.dtype == getattr(torch, dtype)
    expected = torch.float32 if rank else getattr(torch, dtype)
    assert found.tensors["cc_tuning.decision_maker.weight"].dtype == expected


# The Trainer by itself, and what train() refuses ---------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name, objectives in METHODS.items() if objectives])
def test_data_without_english_is_refused(method: str, base: Path, tmp_path: Path) -> None:
    alone = write_rows(tmp_path / "alone.jsonl", rows(4, english=0))
    with pytest.raises(PivotuneError, match="no example has an English counterpart"):
        train(configuration(base, alone, tmp_path / "run", method))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("english", ["no answer", "an answer here and there"])
@pytest.mark.parametrize("method", ["cc_tuning", "feature", "conversion", "both"])
def test_an_english_answer_is_needed_only_where_it_is_read(
    method: str, english: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the run is the same, to the bit."""
    monkeypatch.setattr(F, "gumbel_softmax", without_noise)
    supervision = {
        "feature": FEATURE,
        "conversion": DeepSupervisionConfig("logits", "off", conversion_layer=1),
        "both": FEATURE,
    }
    runs = []
    for name, change in (("with", False), ("without", True)):
        made = rows(16, english=1.0)
        for number, one in enumerate(made):
            if change and (english == "no answer" or number % 3):
                del one["english"]["completion"]
        data = write_rows(tmp_path / f"{name}.jsonl", made)
        kind = method if method in METHODS else "deep_supervision"
        runs.append(train(configuration(base, data, tmp_path / name, kind, deep_supervision=supervision.get(method))))
    same(*runs)
    measured = replace(LAYERS, thinking_weight=0.0)  # and so it is read
    config = configuration(base, data, tmp_path / "thinking", "deep_supervision", deep_supervision=measured)
    with pytest.raises(PivotuneError, match=r"without\.jsonl:\d+: missing English answer: .*english_thinking: logits"):
        train(config)


def test_published_rows_are_trained_on_and_reported(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As CC-Tuning's own: no language, the English question beside the others, more columns."""
    made = [
        {
            "frage": one["prompt"],
            "output": one["completion"],
            "instruction_en": "give tips",
            "score": 1,
            "Unnamed: 0": n,
        }
        for n, one in enumerate(rows(16))
    ]
    config = configuration(base, write_rows(tmp_path / "train.jsonl", made), tmp_path / "run", "cc_tuning")
    with pytest.raises(PivotuneError, match=r"train\.jsonl:1: .*set data\.language"):
        train(config)
    config.data = replace(config.data, language="zho_Hans", languages=["Chinese"])
    with pytest.raises(PivotuneError, match=r"train\.jsonl:1: .*'instruction' is missing.*data\.columns"):
        train(config)
    config.data = replace(config.data, columns={"frage": "instruction"})
    train(config)
    report = capsys.readouterr().out
    assert "zh: 16 rows, 16 with English (100.0%)" in report
    for note in ("a field 'score' that was not read", "'Unnamed: 0' that", "an English side without an answer"):
        assert note in report


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"language": "jp"}, ["data.language", "'ja'"]),
        ({"languages": ["zh", "xx"]}, ["data.languages", "'xx'"]),
        ({"columns": {"instruction": "frage"}}, ["data.columns", "left side is the name in the file"]),
    ],
)
def test_options_of_the_data_are_checked_first(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    config = configuration(tmp_path / "no model", tmp_path / "no data", tmp_path / "run")
    config.data = replace(config.data, **changes)
    with pytest.raises(PivotuneError) as caught:
        train(config)
    assert all(word in str(caught.value) for word in words), caught.value


def test_earlier_turns_are_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = shutil.copytree(base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(base)
    turns = [{"from": "human", "value": "睡眠"}, {"from": "gpt", "value": "好"}]
    made = [{"language": "zh", "conversations": turns * count} for count in (1, 2, 3, 1)]
    train(configuration(base, write_rows(tmp_path / "train.jsonl", made), tmp_path / "run"))
    assert "earlier answers, read as context: only the last answer is learned: 2" in capsys.readouterr().out


def test_what_makes_a_run_is_recorded(data: Path, tmp_path: Path) -> None:
    """Of this `pivotune compare` recognises the seeds of one run."""
    config = configuration(write_base(tmp_path / "base", layers=6), data, tmp_path / "run", max_steps=1, seed=3)
    layers = DeepSupervisionConfig(conversion_layer="auto", thinking_layer=5)
    info = load_run(train(replace(config, objectives=[layers]))).info
    assert (info["training"]["seed"], info["training"]["learning_rate"], info["steps"]) == (3, 1e-2, 1)
    assert info["base_model"] == str((tmp_path / "base").resolve())
    assert info["revision"] is None
    (settled,) = info["objectives"].values()
    assert settled["conversion_layer"] == info["found"]["deep_supervision"]["layers"]["conversion_layer"]
    assert settled["thinking_layer"] == 5
    assert info["asked"] == {"deep_supervision": {"conversion_layer": "auto"}}


def test_options_of_cc_tuning_arrive(base: Path, data: Path, tmp_path: Path) -> None:
    config = CCTuningConfig(matrix="per_layer", selection="soft", connection_layer=2)
    run = load_run(train(configuration(base, data, tmp_path / "run", "cc_tuning", cc_tuning=config)))
    assert run.objectives == {"cc_tuning": config}
    assert {name: tuple(tensor.shape) for name, tensor in run.tensors.items()} == {
        "cc_tuning.decision_maker.weight": (3, 16),
        "cc_tuning.transform_matrix": (3, 16, 16),
    }
    assert run.connections["cc_tuning"].modes == ("matrix", "english", "none")
    assert run.info["found"]["cc_tuning"]["transform_matrix"]["pairs"] > 0


def test_the_model_is_kept_when_the_matrix_cannot_be_fitted(base: Path, tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", rows(8, english=0.5))
    config = configuration(base, few, tmp_path / "run", "cc_tuning", cc_tuning=CCTuningConfig(ridge=1e-18), max_steps=1)
    with pytest.raises(PivotuneError, match=r"transform matrix: cannot be solved with cc_tuning\.ridge: 1e-18"):
        train(config)
    assert load_run(tmp_path / "run").connections["cc_tuning"].modes == ("none", "english")


# Numbers that are none ------------------------------------------------------------------------------------------------

"""No loss is logged, so nobody would look at it."""


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_too_short_to_be_logged(method: str, rank: int, base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(PivotuneError, match=r"step 3: NaN or infinity in .*lower training\.learning_rate \(1e\+30\)"):
        train(configuration(base, data, tmp_path / "run", method, lora=rank, learning_rate=1e30, **QUIETLY))
    nothing_in(tmp_path / "run")


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_broken_base_is_refused(bad: float, base: Path, data: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = bad
    broken = tmp_path / "broken"
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(base).save_pretrained(broken)
    named = r"has NaN or infinity in model\.layers\.1\.mlp\.up_proj\.weight"
    automatic = configuration(broken, data, tmp_path / "run", "deep_supervision")
    automatic.objectives = [DeepSupervisionConfig(conversion_layer="auto", thinking_layer="auto")]
    for config in (automatic, configuration(broken, data, tmp_path / "run", lora=4)):
        with pytest.raises(PivotuneError, match=f"model.path: .*{named}"):
            train(config)
    with pytest.raises(PivotuneError, match=named):  # what answers, too
        load_run(broken)
    with pytest.raises(PivotuneError, match=r"before the first step: NaN or infinity in model\.layers\.1"):
        by_itself(Method(model), base, data, tmp_path).train()


def test_a_broken_result_is_not_opened(base: Path, data: Path, tmp_path: Path) -> None:
    run = train(configuration(base, data, tmp_path / "run", "cc_tuning"))
    tensors = load_file(run / "pivotune.tensors")
    tensors["cc_tuning.transform_matrix"][0, 0] = float("nan")
    save_file(tensors, run / "pivotune.tensors")
    with pytest.raises(PivotuneError, match=r"has NaN or infinity in cc_tuning\.transform_matrix"):
        load_run(run)


def test_a_broken_matrix_is_no_result(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = NormalEquations.solve
    monkeypatch.setattr(NormalEquations, "solve", lambda self, ridge: solved(self, ridge) * float("inf"))
    with pytest.raises(PivotuneError, match="transform matrix: overflows"):
        train(configuration(base, data, tmp_path / "run", "both"))
    assert "cc_tuning.transform_matrix" not in load_run(tmp_path / "run").tensors  # the model itself is sound, and kept


def test_an_interruption_says_how_to_go_on(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = PivotuneTrainer.training_step

    def interrupted(self: PivotuneTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    config = configuration(base, data, tmp_path / "run", save_strategy="steps", save_steps=1, max_steps=3)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="pivotune"):
        patch.setattr(PivotuneTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert "Interrupted at step 2; " in caplog.text
    assert "checkpoint-2 is complete: go on from it with --training.resume_from_checkpoint true" in caplog.text
    config.training.resume_from_checkpoint = True
    same(train(config), train(replace(config, output=str(tmp_path / "whole"), training=options(max_steps=3))))


# Runs that would train nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 17},
            "dataloader_drop_last: leaves nothing of 16",
        ),
        ({"max_steps": 0}, "training.max_steps: got 0"),
        ({"max_steps": -3}, "training.max_steps: got -3"),
        ({"max_steps": -1, "num_train_epochs": 0}, "training.num_train_epochs: got 0"),
        ({"max_steps": -1, "num_train_epochs": -1}, "training.num_train_epochs: got -1"),
        ({"max_steps": -1, "num_train_epochs": float("nan")}, "training.num_train_epochs: got nan"),
        ({"learning_rate": 0.0}, "training.learning_rate: got 0.0"),
        ({"learning_rate": -1e-5}, "training.learning_rate: got -1e-05"),
        ({"warmup_steps": 2}, "training.warmup_steps: got 2, but the run has 2 steps"),
        (
            {"warmup_steps": 500, "max_steps": -1, "num_train_epochs": 1},
            "warmup_steps: got 500, but the run has 2 steps",
        ),
        ({"learning_rate": 1e-30}, "step 2: not a bit of any parameter has changed.*too small for weights in float32"),
        ({"eval_strategy": "epoch"}, "training.eval_strategy: needs examples to evaluate on"),
        ({"load_best_model_at_end": True, "save_strategy": "epoch"}, "training.eval_strategy: needs examples"),
        ({"eval_on_start": True}, "training.eval_on_start: needs examples"),
    ],
)
def test_options_under_which_nothing_is_trained(
    training: dict[str, Any], message: str, base: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(PivotuneError, match=message):
        train(configuration(base, data, tmp_path / "run", **training))
    nothing_in(tmp_path / "run")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"alpha": 0}, "lora.alpha: got 0; give a number > 0"),
        ({"alpha": -16}, "lora.alpha: got -16"),
        (
            {"target_modules": ["q_proj", "v_prj"]},
            "lora.target_modules: no layer is named 'v_prj'; the model has .*v_proj",
        ),
        ({"target_modules": "nothing_like_it"}, "lora.target_modules: no layer is named 'nothing_like_it'"),
        ({"dropout": 1.0}, "lora.dropout: got 1.0"),
    ],
)
def test_adapters_that_would_learn_nothing(
    lora: dict[str, Any], message: str, base: Path, data: Path, tmp_path: Path
) -> None:
    config = replace(configuration(base, data, tmp_path / "run"), lora=LoraOptions(r=4, **lora))
    with pytest.raises(PivotuneError, match=message):
        train(config)
    nothing_in(tmp_path / "run")


def test_answers_that_are_cut_to_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run")
    config.data.max_length = 5
    with pytest.raises(PivotuneError, match="leaves no room for an answer"):
        train(config)
    config.data.overlong = "skip"
    with pytest.raises(PivotuneError, match="no example to train on"):
        train(config)


def test_answers_without_a_token_to_learn(base: Path, data: Path, tmp_path: Path) -> None:
    trainer = by_itself(Method(AutoModelForCausalLM.from_pretrained(base)), base, data, tmp_path)
    trainer.train_dataset = [{**row, "prompt_length": len(row["input_ids"])} for row in trainer.train_dataset]  # type: ignore[union-attr, index, attr-defined]
    with pytest.raises(PivotuneError, match=r"no.* bit of any parameter has changed.*is the term lm above 0"):
        trainer.train()


def test_a_warm_up_never_takes_the_only_step(base: Path, data: Path, tmp_path: Path) -> None:
    """Rounded up, a share of one step is one step, at a rate of zero."""
    run = train(configuration(base, data, tmp_path / "run", max_steps=1, warmup_steps=0.03))
    assert not torch.equal(weights(run)["model.safetensors: lm_head.weight"], base_weights(base)["lm_head.weight"])
    longer = options(warmup_steps=0.03)
    assert [longer.get_warmup_steps(steps) for steps in (1, 2, 100, 101)] == [0, 1, 3, 4]


def test_one_pair_is_too_few_for_a_matrix(base: Path, tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", rows(8, english=0.125))
    for method in ("cc_tuning", "both"):
        with pytest.raises(PivotuneError, match=r"data\.train: 1 example has .*cc_tuning needs 2 at least"):
            train(configuration(base, one, tmp_path / "run", method))


def test_terms_that_are_only_measured_are_told(
    base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weightless = replace(LAYERS, conversion_weight=0.0, thinking_weight=0.0)
    config = configuration(base, data, tmp_path / "run", "deep_supervision", deep_supervision=weightless)
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        measured = train(config)
    assert "its weights are 0, so its terms are measured and not trained" in caplog.text
    same(measured, train(configuration(base, data, tmp_path / "sft")))


# When it is evaluated -------------------------------------------------------------------------------------------------


def _evaluations(run: Path) -> list[float]:
    return [entry["epoch"] for entry in log(run) if "eval_loss" in entry]


def test_data_to_evaluate_on_are_evaluated_after_each_epoch(base: Path, data: Path, tmp_path: Path) -> None:
    epochs: dict[str, Any] = dict(max_steps=-1, num_train_epochs=2, held_out=data)
    assert _evaluations(train(configuration(base, data, tmp_path / "run", **epochs))) == [1.0, 2.0]
    short = configuration(base, data, tmp_path / "short", max_steps=1, held_out=data)
    assert _evaluations(train(short)) == [0.5]
    assert short.training.eval_strategy == "no"  # the user's object is left alone


def test_a_word_about_when_is_kept(base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        run = train(configuration(base, data, tmp_path / "no", eval_strategy="no", held_out=tmp_path / "unread.jsonl"))
    assert _evaluations(run) == []
    assert "data.eval: is not used, because training.eval_strategy is no" in caplog.text
    steps = configuration(base, data, tmp_path / "steps", eval_strategy="steps", eval_steps=1, held_out=data)
    assert _evaluations(train(steps)) == [0.5, 1.0]


def test_the_best_checkpoint_needs_evaluations_when_it_saves(base: Path, data: Path, tmp_path: Path) -> None:
    best: dict[str, Any] = dict(load_best_model_at_end=True, held_out=data, max_steps=3)
    run = train(configuration(base, data, tmp_path / "run", save_strategy="steps", save_steps=1, eval_steps=1, **best))
    assert len(_evaluations(run)) == 3
    for metric in ("lm", "eval_loss", "pairs"):
        options(metric_for_best_model=metric)
    with pytest.raises(PivotuneError, match=r"metric_for_best_model: got 'accuracy'; choose one of 'loss', 'lm'"):
        train(
            configuration(base, data, tmp_path / "b", save_strategy="epoch", metric_for_best_model="accuracy", **best)
        )


def test_paths_are_recorded_as_text(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run", max_steps=1)
    config.data.train = data  # type: ignore[assignment]  # as users give it
    assert json.loads((train(config) / INFO).read_text())["data"]["train"] == str(data)


def test_a_group_that_is_no_group(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run")
    config.training = {"max_steps": 1}  # type: ignore[assignment]
    with pytest.raises(PivotuneError, match=r"training: got a dict; give a TrainingOptions\(\.\.\.\)"):
        train(config)
