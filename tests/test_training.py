"""Training: the invariance of each term, logging, evaluation, resuming, and what is refused."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune.checkpoint import INFO, UNFINISHED, load_run
from pivotune.config import DeepSupervisionConfig
from pivotune.data import ParallelCollator, read_examples, tokenize_examples
from pivotune.errors import PivotuneError
from pivotune.methods import SFT, CCTuningConfig, DeepSupervision
from pivotune.training import PivotuneTrainer, train
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
            config.deep_supervision = FEATURE
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
    assert text.count("no example had an English counterpart, so the methods") == 2  # when it happens, and at the end
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
    with pytest.raises(PivotuneError, match=r"step 2: the loss is nan \(terms that are no number: lm\)"):
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
    with pytest.raises(PivotuneError, match="is not a complete checkpoint"):
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
    assert found.tensors["decision_maker.weight"].dtype == expected


def test_one_process_uses_one_gpu(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    method = SFT(AutoModelForCausalLM.from_pretrained(base))
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
    method = DeepSupervision(AutoModelForCausalLM.from_pretrained(base), DeepSupervisionConfig(
        conversion_layer=1, thinking_layer=2, thinking_weight=0.0,
    ))  # fmt: skip
    trainer = PivotuneTrainer(
        method,
        options(output_dir=str(tmp_path / "run"), max_steps=1),
        train_dataset=list(dataset),
        data_collator=ParallelCollator.for_tokenizer(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / "run" / INFO).read_text())["method"] == "deep_supervision"
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(entry["lm"] + entry["language_conversion"], rel=1e-5)
    assert entry["english_thinking"] > 0  # weight 0: measured, not trained


@pytest.mark.parametrize("method", METHODS[1:])
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
        config = configuration(base, data, tmp_path / name, kind)
        config.deep_supervision = supervision.get(method, config.deep_supervision)
        runs.append(train(config))
    same(*runs)
    config.deep_supervision = replace(LAYERS, thinking_weight=0.0)  # it is measured, and so it is read
    config = replace(config, method="deep_supervision", output=str(tmp_path / "thinking"))
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
    info = load_run(train(replace(config, method="deep_supervision", deep_supervision=layers))).info
    assert (info["training"]["seed"], info["training"]["learning_rate"], info["steps"]) == (3, 1e-2, 1)
    assert info["base_model"] == str((tmp_path / "base").resolve())
    assert info["revision"] is None
    assert info["deep_supervision"]["conversion_layer"] == info["layers"]["conversion_layer"]
    assert info["automatic_layers"] == ["conversion_layer"]


def test_options_of_cc_tuning_arrive(base: Path, data: Path, tmp_path: Path) -> None:
    config = CCTuningConfig(matrix="per_layer", selection="soft", connection_layer=2)
    run = load_run(train(configuration(base, data, tmp_path / "run", "cc_tuning", cc_tuning=config)))
    found = run.connection_tensors()
    assert found is not None
    assert found[0] == config
    assert found[1].shape == (3, 16)
    assert found[2] is not None
    assert found[2].shape == (3, 16, 16)
    assert run.info["transform_matrix"]["pairs"] > 0


def test_the_model_is_kept_when_the_matrix_cannot_be_fitted(base: Path, tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", rows(8, english=0.125))
    with pytest.raises(PivotuneError, match="transform matrix: needs parallel questions"):
        train(configuration(base, one, tmp_path / "run", "cc_tuning", max_steps=1))
    found = load_run(tmp_path / "run").connection_tensors()
    assert found is not None
    assert found[2] is None


def test_only_the_newest_checkpoints_stay(base: Path, data: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = dict(max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    run = train(configuration(base, data, tmp_path / "run", **saving))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
