"""Training: the invariance of each term, logging, evaluation, resuming, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune.checkpoint import INFO, UNFINISHED, load_run
from pivotune.config import LoraOptions
from pivotune.data import ParallelCollator, read_examples, tokenize_examples
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from pivotune.objectives.cc_tuning.transform_matrix import NormalEquations
from pivotune.trainer import PivotuneTrainer, check_batches
from pivotune.training import train
from tests.runs import (
    FEATURE,
    LAYERS,
    METHODS,
    configuration,
    log,
    options,
    rows,
    same,
    weights,
    without_noise,
    write_base,
    write_rows,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(16))


# The invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "feature"])
def test_eight_by_one_is_one_by_eight(
    method: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows differ in length and a quarter has no English: a mean of means would show. Two ranks: test_distributed."""
    monkeypatch.setattr(F, "gumbel_softmax", without_noise)
    runs = []
    for batch, accumulation in ((8, 1), (1, 8)):
        config = configuration(
            base,
            data,
            tmp_path / f"{batch}",
            "deep_supervision" if method == "feature" else method,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
        )
        if method == "feature":
            config.objectives = [FEATURE]
        runs.append(train(config))
    same(*runs, tolerance=1e-6)
    first, second = map(log, runs)
    names = ["loss", "lm", "pairs"]
    names += ["language_conversion", "english_thinking"] if method in ("deep_supervision", "both", "feature") else []
    for step in range(2):
        assert [first[step][n] for n in names] == pytest.approx([second[step][n] for n in names], rel=1e-5)


def test_the_loss_is_the_sum_of_its_terms(base: Path, data: Path, tmp_path: Path) -> None:
    run = train(configuration(base, data, tmp_path / "run", "deep_supervision", logging_steps=2))
    (logged,) = [entry for entry in log(run) if "loss" in entry]
    terms = [logged[name] for name in ("lm", "language_conversion", "english_thinking")]
    assert all(terms)
    assert logged["loss"] == pytest.approx(sum(terms), rel=0.02)  # terms are means over the window's items, not steps
    assert json.loads((run / INFO).read_text())["terms"]["lm"]["last"] == logged["lm"]


# Logging -------------------------------------------------------------------------------------------------------------


def test_terms_reach_tensorboard(base: Path, data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(configuration(base, data, tmp_path / "run", "deep_supervision", report_to="tensorboard"))
    (events,) = run.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    for name in ("lm", "language_conversion", "english_thinking", "pairs"):
        assert len(found.Scalars(f"train/{name}")) == 2


def test_a_silent_term_and_missing_pairs_are_reported(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = sorted(rows(8, english=0.25), key=lambda row: "english" in row)
    few = write_rows(tmp_path / "few.jsonl", made)
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        train(
            configuration(
                base,
                few,
                tmp_path / "run",
                "deep_supervision",
                max_steps=8,
                per_device_train_batch_size=1,
            )
        )
    text = caplog.text
    assert text.count("the term 'english_thinking' had no items since the last log") == 1
    assert (
        text.count("no example had an English counterpart, so the objectives") == 2
    )  # when it happens, and at the end
    assert "In 6 of 8 logging windows the term 'language_conversion' was exactly zero" in text


def test_plain_fine_tuning_without_english_is_not_reported(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        run = train(
            configuration(base, write_rows(tmp_path / "a.jsonl", rows(8, english=0)), tmp_path / "run", max_steps=1)
        )
    assert not caplog.records
    assert log(run)[0]["pairs"] == 0.0


def test_a_loss_that_is_no_number_ends_the_run(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PivotuneError, match=r"step 2: the loss is nan \(terms that are NaN or infinite: lm\).*max_grad_norm"
    ):
        train(configuration(base, data, tmp_path / "run", optim="sgd", learning_rate=1e30, max_grad_norm=0))
    assert not (tmp_path / "run" / INFO).exists()


# Evaluation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["deep_supervision", "cc_tuning"])
def test_evaluation_is_exact_whatever_the_batch_size(method: str, base: Path, data: Path, tmp_path: Path) -> None:
    """Eleven rows in batches of four: the mean over all items, not the mean of the batches' means."""
    held = write_rows(tmp_path / "eval.jsonl", rows(11, seed=5))
    losses = []
    for batch in (4, 11):
        config = configuration(
            base,
            data,
            tmp_path / f"{batch}",
            method,
            max_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=batch,
            held_out=held,
        )
        losses.append(next(entry for entry in log(train(config)) if "eval_loss" in entry))
    names = [name for name in losses[0] if name.startswith("eval_") and not name.endswith(("runtime", "second"))]
    assert {"eval_loss", "eval_lm", "eval_pairs"} <= set(names)
    assert [losses[0][n] for n in names] == pytest.approx([losses[1][n] for n in names], rel=1e-6)
    assert losses[0]["eval_pairs"] == pytest.approx(sum("english" in row for row in rows(11, seed=5)) / 11)


def test_the_best_checkpoint_comes_back(base: Path, data: Path, tmp_path: Path) -> None:
    """With the worst loss declared the best, that is the first checkpoint. Its folder survives the limit of two."""
    config = configuration(
        base,
        data,
        tmp_path / "run",
        "cc_tuning",
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_lm",
        greater_is_better=True,
        save_total_limit=2,
        held_out=data,
    )
    run = train(config)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]
    ours, theirs = weights(run), weights(run / "checkpoint-1")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


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


def test_reentrant_checkpointing_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run", gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(PivotuneError, match="use_reentrant"):
        train(config)


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


def test_one_process_uses_one_gpu(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    method = Method(AutoModelForCausalLM.from_pretrained(base))
    args = options(output_dir=str(tmp_path))
    args._n_gpu = 2
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        trainer = PivotuneTrainer(method, args)
    assert trainer.args.n_gpu == 1
    assert "accelerate launch" in caplog.text


def test_the_saved_model_keeps_its_cache(base: Path, data: Path, tmp_path: Path) -> None:
    run = train(configuration(base, data, tmp_path / "run", max_steps=1))
    assert json.loads((run / "config.json").read_text())["use_cache"] is True


# The Trainer by itself, and what train() refuses ---------------------------------------------------------------------


def test_the_trainer_works_by_itself(base: Path, data: Path, tmp_path: Path) -> None:
    """In a user's own script, with plain TrainingArguments and a plain list of rows."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    dataset, _ = tokenize_examples(read_examples(data)[0], tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = PivotuneTrainer(
        Method(model, [replace(LAYERS, thinking_weight=0.0)]),
        options(output_dir=str(tmp_path / "run"), max_steps=1),
        train_dataset=list(dataset),
        data_collator=ParallelCollator.for_tokenizer(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / "run" / INFO).read_text())["objectives"].keys() == {"deep_supervision"}
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(entry["lm"] + entry["language_conversion"], rel=1e-5)
    assert entry["english_thinking"] > 0  # weight 0: measured, not trained


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


def test_only_the_newest_checkpoints_stay(base: Path, data: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = dict(max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    run = train(configuration(base, data, tmp_path / "run", **saving))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


# Numbers that are none ------------------------------------------------------------------------------------------------

QUIETLY: dict[str, Any] = dict(logging_steps=100, max_steps=3, per_device_train_batch_size=4)
"""No loss is logged, so nobody would look at it."""


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_too_short_to_be_logged(method: str, rank: int, base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(PivotuneError, match=r"step 3: NaN or infinity in .*lower training\.learning_rate \(1e\+30\)"):
        train(configuration(base, data, tmp_path / "run", method, lora=rank, learning_rate=1e30, **QUIETLY))
    _nothing_in(tmp_path / "run")


def _poison_parameter(trainer: PivotuneTrainer) -> None:
    next(p for p in trainer._trained().values()).data.view(-1)[-1] = float("nan")


def _poison_decision_maker(trainer: PivotuneTrainer) -> None:
    trainer._trained()["cc_tuning.decision_maker.weight"].data[1, 2] = float("inf")


def _poison_optimizer(trainer: PivotuneTrainer) -> None:
    assert trainer.optimizer is not None
    list(trainer.optimizer.state.values())[-1]["exp_avg_sq"].view(-1)[0] = float("inf")


@pytest.mark.parametrize(
    ("poison", "rank", "named"),
    [
        (_poison_parameter, 0, r"model\.embed_tokens\.weight"),
        (_poison_parameter, 4, r"base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.lora_A\.default\.weight"),
        (_poison_decision_maker, 0, r"cc_tuning\.decision_maker\.weight"),
        (_poison_decision_maker, 4, r"cc_tuning\.decision_maker\.weight"),
        (_poison_optimizer, 0, "the optimizer's state"),
        (_poison_optimizer, 4, "the optimizer's state"),
    ],
)
def test_nothing_broken_is_saved_and_the_good_stays(
    poison: Any, rank: int, named: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It breaks behind the last forward pass, so that no loss tells."""
    plain = PivotuneTrainer._save_checkpoint

    def broken(self: PivotuneTrainer, model: Any, trial: Any) -> None:
        if self.state.global_step == 3:
            poison(self)
        plain(self, model, trial)

    config = configuration(
        base, data, tmp_path / "run", "cc_tuning", lora=rank, save_strategy="steps", save_steps=1, **QUIETLY
    )
    with monkeypatch.context() as patch:
        patch.setattr(PivotuneTrainer, "_save_checkpoint", broken)
        with pytest.raises(PivotuneError, match=f"step 3: NaN or infinity in {named}.*last good checkpoint is .*-2 "):
            train(config)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-2", UNFINISHED]
    config.training.resume_from_checkpoint = "true"
    assert load_run(train(config)).info["steps"] == 3


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
        _by_itself(Method(model), base, data, tmp_path).train()


def test_a_broken_result_is_not_opened(base: Path, data: Path, tmp_path: Path) -> None:
    run = train(configuration(base, data, tmp_path / "run", "cc_tuning"))
    tensors = load_file(run / "pivotune.tensors")
    tensors["cc_tuning.transform_matrix"][0, 0] = float("nan")
    save_file(tensors, run / "pivotune.tensors")
    with pytest.raises(PivotuneError, match=r"has NaN or infinity in cc_tuning\.transform_matrix"):
        load_run(run)


def test_weights_that_train_are_not_float16(base: Path, data: Path, tmp_path: Path) -> None:
    """Adapters over a float16 base are in float32."""
    config = configuration(base, data, tmp_path / "run")
    config.model.dtype = "float16"
    with pytest.raises(PivotuneError, match=r"model\.dtype: float16 .*Use float32, with training\.fp16"):
        train(config)
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
    config = configuration(tmp_path / "half", data, tmp_path / "run")
    config.model.dtype = "auto"
    with pytest.raises(PivotuneError, match=r"model\.dtype: float16"):
        train(config)
    train(replace(config, lora=LoraOptions(r=4)))


def test_an_evaluation_that_breaks(base: Path, data: Path, tmp_path: Path) -> None:
    trainer = _by_itself(Method(AutoModelForCausalLM.from_pretrained(base)), base, data, tmp_path)
    _poison_parameter(trainer)
    with pytest.raises(PivotuneError, match=r"eval_loss is nan \(terms that are NaN or infinite: lm\)"):
        trainer.evaluate()
    with pytest.raises(PivotuneError, match=r"NaN or infinity in model\.embed_tokens\.weight"):
        trainer.save_model()
    _nothing_in(tmp_path / "alone")


def test_a_broken_matrix_is_no_result(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = NormalEquations.solve
    monkeypatch.setattr(NormalEquations, "solve", lambda self, ridge: solved(self, ridge) * float("inf"))
    with pytest.raises(PivotuneError, match="transform matrix: overflows"):
        train(configuration(base, data, tmp_path / "run", "both"))
    assert "cc_tuning.transform_matrix" not in load_run(tmp_path / "run").tensors  # the model itself is sound, and kept


def _scale_losses(monkeypatch: pytest.MonkeyPatch, start: float) -> None:
    """What training.fp16 does on a GPU: gradients that overflow skip their step and halve the scale."""
    create = PivotuneTrainer.create_accelerator_and_postprocess

    def scaled(self: PivotuneTrainer) -> None:
        create(self)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=start)

    def unscale(self: Accelerator, optimizer: Any = None) -> None:
        self.scaler.unscale_(self._optimizers[0].optimizer)

    monkeypatch.setattr(PivotuneTrainer, "create_accelerator_and_postprocess", scaled)
    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)


def _strict(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_skipped_steps_are_normal_and_every_file_is_json(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scale_losses(monkeypatch, 2.0**126)
    saving: dict[str, Any] = dict(save_strategy="steps", save_steps=4, max_steps=12)
    run = train(configuration(base, data, tmp_path / "run", per_device_train_batch_size=4, **saving))
    files = [*run.rglob("*.json")]
    assert {file.name for file in files} > {INFO, "training_log.json", "trainer_state.json"}
    for file in files:
        json.loads(file.read_text(), parse_constant=_strict)
    norms = [entry["grad_norm"] for entry in log(run) if "grad_norm" in entry]
    assert norms[0] is None  # it was infinite
    assert all(norms[1:])
    assert not torch.equal(weights(run)["model.safetensors: lm_head.weight"], _base_weights(base)["lm_head.weight"])


def test_if_all_steps_are_skipped_nothing_is_trained(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scale_losses(monkeypatch, 2.0**126)
    with pytest.raises(PivotuneError, match="step 1: not a bit of any parameter has changed"):
        train(configuration(base, data, tmp_path / "run", max_steps=1, per_device_train_batch_size=4))
    _nothing_in(tmp_path / "run")


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
    _nothing_in(tmp_path / "run")


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
    _nothing_in(tmp_path / "run")


def test_answers_that_are_cut_to_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run")
    config.data.max_length = 5
    with pytest.raises(PivotuneError, match="leaves no room for an answer"):
        train(config)
    config.data.overlong = "skip"
    with pytest.raises(PivotuneError, match="no example to train on"):
        train(config)


def test_answers_without_a_token_to_learn(base: Path, data: Path, tmp_path: Path) -> None:
    trainer = _by_itself(Method(AutoModelForCausalLM.from_pretrained(base)), base, data, tmp_path)
    trainer.train_dataset = [{**row, "prompt_length": len(row["input_ids"])} for row in trainer.train_dataset]  # type: ignore[union-attr, index, attr-defined]
    with pytest.raises(PivotuneError, match=r"no.* bit of any parameter has changed.*is the term lm above 0"):
        trainer.train()


def test_a_warm_up_never_takes_the_only_step(base: Path, data: Path, tmp_path: Path) -> None:
    """Rounded up, a share of one step is one step, at a rate of zero."""
    run = train(configuration(base, data, tmp_path / "run", max_steps=1, warmup_steps=0.03))
    assert not torch.equal(weights(run)["model.safetensors: lm_head.weight"], _base_weights(base)["lm_head.weight"])
    longer = options(warmup_steps=0.03)
    assert [longer.get_warmup_steps(steps) for steps in (1, 2, 100, 101)] == [0, 1, 3, 4]


def test_a_batch_must_fill_on_every_rank() -> None:
    args = SimpleNamespace(dataloader_drop_last=True, per_device_train_batch_size=4, world_size=4)
    check_batches(range(16), args)  # type: ignore[arg-type]
    with pytest.raises(PivotuneError, match=r"leaves nothing of 15 rows.*per_device_train_batch_size: 4, ranks: 4"):
        check_batches(range(15), args)  # type: ignore[arg-type]
    with pytest.raises(PivotuneError, match="is empty"):
        check_batches([], args)  # type: ignore[arg-type]


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


def test_evaluations_that_never_come_are_told(
    base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        train(configuration(base, data, tmp_path / "run", eval_delay=9, held_out=data))
    assert "No evaluation was due in so short a run" in caplog.text


def _nothing_in(folder: Path) -> None:
    assert not [*folder.rglob("*")]


def _by_itself(method: Method, base: Path, data: Path, folder: Path, **changed: Any) -> PivotuneTrainer:
    tokenizer = AutoTokenizer.from_pretrained(base)
    dataset, _ = tokenize_examples(read_examples(data)[0], tokenizer)
    return PivotuneTrainer(
        method,
        options(output_dir=str(folder / "alone"), **changed),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=ParallelCollator.for_tokenizer(tokenizer),
    )


def _base_weights(base: Path) -> dict[str, torch.Tensor]:
    return load_file(base / "model.safetensors")


def test_what_the_last_update_breaks_is_not_saved(base: Path, data: Path, tmp_path: Path) -> None:
    """Weights of 1e30 are finite, but nothing can be computed with them."""
    with pytest.raises(PivotuneError, match=r"step 1: NaN or infinity in .*lower training\.learning_rate"):
        train(configuration(base, data, tmp_path / "run", max_steps=1, learning_rate=1e30))
    _nothing_in(tmp_path / "run")


def test_paths_are_recorded_as_text(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run", max_steps=1)
    config.data.train = data  # type: ignore[assignment]  # as users give it
    assert json.loads((train(config) / INFO).read_text())["data"]["train"] == str(data)


def test_a_group_that_is_no_group(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run")
    config.training = {"max_steps": 1}  # type: ignore[assignment]
    with pytest.raises(PivotuneError, match=r"training: got a dict; give a TrainingOptions\(\.\.\.\)"):
        train(config)
