"""The trainer: the invariance of each term, what is logged, exact evaluation, checkpoints, and numbers that break."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune.checkpoint import INFO, UNFINISHED, load_run
from pivotune.config import LoraOptions
from pivotune.data import ParallelCollator, read_examples, tokenize_examples
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.trainer import PivotuneTrainer, check_batches
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
    write_rows,
)


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


@pytest.mark.parametrize("method", ["deep_supervision", "cc_tuning"])
def test_evaluation_is_exact_whatever_the_batch_size(method: str, base: Path, data: Path, tmp_path: Path) -> None:
    """Eleven rows in batches of four: the mean over all items, not the mean of the batches' means; and the loss is
    their weighted sum, of which what is only measured is no part."""
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
            deep_supervision=replace(LAYERS, conversion_weight=0.5, thinking_weight=2.0),
        )
        losses.append(next(entry for entry in log(train(config)) if "eval_loss" in entry))
    names = [name for name in losses[0] if name.startswith("eval_") and not name.endswith(("runtime", "second"))]
    assert {"eval_loss", "eval_lm", "eval_pairs"} <= set(names)
    assert [losses[0][n] for n in names] == pytest.approx([losses[1][n] for n in names], rel=1e-6)
    found, weights = losses[0], {"lm": 1.0}
    weights |= {"language_conversion": 0.5, "english_thinking": 2.0} if method == "deep_supervision" else {}
    assert found["eval_loss"] == pytest.approx(sum(weight * found[f"eval_{name}"] for name, weight in weights.items()))
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


def test_reentrant_checkpointing_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(base, data, tmp_path / "run", gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(PivotuneError, match="use_reentrant"):
        train(config)


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


def test_the_trainer_worksby_itself(base: Path, data: Path, tmp_path: Path) -> None:
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


def test_only_the_newest_checkpoints_stay(base: Path, data: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = dict(max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    run = train(configuration(base, data, tmp_path / "run", **saving))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


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
    trainer = by_itself(Method(AutoModelForCausalLM.from_pretrained(base)), base, data, tmp_path)
    _poison_parameter(trainer)
    with pytest.raises(PivotuneError, match=r"eval_loss is nan \(terms that are NaN or infinite: lm\)"):
        trainer.evaluate()
    with pytest.raises(PivotuneError, match=r"NaN or infinity in model\.embed_tokens\.weight"):
        trainer.save_model()
    nothing_in(tmp_path / "alone")


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
    assert not torch.equal(weights(run)["model.safetensors: lm_head.weight"], base_weights(base)["lm_head.weight"])


def test_if_all_steps_are_skipped_nothing_is_trained(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scale_losses(monkeypatch, 2.0**126)
    with pytest.raises(PivotuneError, match="step 1: not a bit of any parameter has changed"):
        train(configuration(base, data, tmp_path / "run", max_steps=1, per_device_train_batch_size=4))
    nothing_in(tmp_path / "run")


def test_a_batch_must_fill_on_every_rank() -> None:
    args = SimpleNamespace(dataloader_drop_last=True, per_device_train_batch_size=4, world_size=4)
    check_batches(range(16), args)  # type: ignore[arg-type]
    with pytest.raises(PivotuneError, match=r"leaves nothing of 15 rows.*per_device_train_batch_size: 4, ranks: 4"):
        check_batches(range(15), args)  # type: ignore[arg-type]
    with pytest.raises(PivotuneError, match="is empty"):
        check_batches([], args)  # type: ignore[arg-type]


def test_evaluations_that_never_come_are_told(
    base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pivotune"):
        train(configuration(base, data, tmp_path / "run", eval_delay=9, held_out=data))
    assert "No evaluation was due in so short a run" in caplog.text


def test_what_the_last_update_breaks_is_not_saved(base: Path, data: Path, tmp_path: Path) -> None:
    """Weights of 1e30 are finite, but nothing can be computed with them."""
    with pytest.raises(PivotuneError, match=r"step 1: NaN or infinity in .*lower training\.learning_rate"):
        train(configuration(base, data, tmp_path / "run", max_steps=1, learning_rate=1e30))
    nothing_in(tmp_path / "run")
