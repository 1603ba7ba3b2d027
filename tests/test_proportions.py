"""Terms beside guessing and beside the ordinary loss, against gradients computed one by one."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pivotune import proportions
from pivotune.checkpoint import INFO
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import DeepSupervisionConfig
from pivotune.proportions import Proportion, measure, weigh
from pivotune.training import train
from tests.batches import collate, random_examples
from tests.families import VOCAB
from tests.runs import FEATURE, LAYERS, configuration, log, rows, same, write_base, write_rows

CONTRAST = replace(FEATURE, feature_loss="contrast", stop_gradient=True)


def made(options: DeepSupervisionConfig) -> Method:
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
    return Method(LlamaForCausalLM(LlamaConfig(**sizes)).double(), [options])


@pytest.mark.parametrize("options", [LAYERS, replace(LAYERS, thinking_weight=0.25), FEATURE, CONTRAST])
def test_gradients_one_by_one(options: DeepSupervisionConfig) -> None:
    method, batch = made(options), collate(random_examples(1, (True, False, True, True)))
    found = {one.term: one for one in measure(method, method(batch), gradients=True)}
    assert list(found) == ["language_conversion", "english_thinking"]
    for name, layer in (
        ("language_conversion", options.conversion_layer),
        ("english_thinking", options.thinking_layer),
    ):
        one = found[name]
        norms = {}
        for term in (name, "lm"):
            method.zero_grad()
            total, count = method(batch)["terms"][term]
            (total / count).backward()
            grads = [p.grad for p in method.anatomy.layers[layer - 1].parameters() if p.grad is not None]
            norms[term] = math.sqrt(sum(float((grad**2).sum()) for grad in grads))
            if term == name:
                assert one.value == pytest.approx(float(total / count))
        assert one.layer == layer and one.gradient is not None
        assert one.gradient == pytest.approx(method.weights[name] * norms[name] / norms["lm"], rel=1e-5)
    guesses = {one.guess for one in found.values()}
    feature = math.log(3) if options is CONTRAST else 1.0
    assert guesses == {math.log(VOCAB) if options.language_conversion == "logits" else feature}


@pytest.mark.parametrize("options", [LAYERS, FEATURE, CONTRAST, replace(LAYERS, thinking_layer=1)])
def test_auto_weights_meet_their_share(options: DeepSupervisionConfig) -> None:
    """Over all batches together, whatever their sizes; measured here by the whole loss's own gradient."""
    auto = replace(options, conversion_weight="auto", thinking_weight="auto", gradient_share=0.3)
    method = made(auto)
    batches = [collate(random_examples(1, (True, False, True, True))), collate(random_examples(2, (True, True)))]
    with pytest.raises(PivotuneError, match="deep_supervision: the weight of language_conversion is still auto"):
        method(batches[0])
    found = weigh(method, batches)
    assert method.weights == {"lm": 1.0} | {name: one.weight for name, one in found.items()} and method.training
    assert method.objectives["deep_supervision"].options.thinking_weight == found["english_thinking"].weight > 0
    counts = {name: sum(int(method.counts(batch)[name]) for batch in batches) for name in method.weights}
    for name, one in found.items():
        norms = {}
        for term in (name, "lm"):
            method.zero_grad()
            for batch in batches:
                (method.weights[term] * method(batch)["terms"][term].sum / counts[term]).backward()
            grads = [p.grad for p in method.anatomy.layers[one.layer - 1].parameters() if p.grad is not None]
            norms[term] = math.sqrt(sum(float((grad**2).sum()) for grad in grads))
        assert norms[name] / norms["lm"] == pytest.approx(0.3, rel=1e-5)
        assert str(one).endswith(f"so that at layer {one.layer} its gradient is 0.3 times that of lm")


def test_a_weight_without_a_gradient_is_zero() -> None:
    method = made(replace(LAYERS, conversion_weight="auto"))
    found = weigh(method, [collate(random_examples(1, (False, False)))])
    assert list(found) == ["language_conversion"] and found["language_conversion"].weight == 0.0
    assert str(found["language_conversion"]) == "0, because at layer 1 it has no gradient"
    assert method.weights["language_conversion"] == 0.0 and method.weights["english_thinking"] == 1.0
    assert weigh(method, []) == {}


@pytest.mark.parametrize("rank", [0, 4])
def test_auto_weights_of_a_run(rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are found once, said, recorded with the run, and kept by a run that is resumed."""
    base, data = write_base(tmp_path / "base"), write_rows(tmp_path / "train.jsonl", rows(16))
    auto = replace(LAYERS, conversion_weight="auto", thinking_weight="auto", weight_warmup=0.5)
    options: dict[str, Any] = dict(deep_supervision=auto, lora=rank, save_strategy="steps", save_steps=1, max_steps=3)
    run = train(configuration(base, data, tmp_path / "run", "deep_supervision", **options))
    printed = capsys.readouterr().out
    info = json.loads((run / INFO).read_text())
    found = info["found"]["deep_supervision"]["weights"]
    assert info["asked"]["deep_supervision"] == dict.fromkeys(("conversion_weight", "thinking_weight"), "auto")
    for name, option in (("language_conversion", "conversion_weight"), ("english_thinking", "thinking_weight")):
        assert info["objectives"]["deep_supervision"][option] == found[name]["weight"] > 0
        assert f"Weight of {name}: {found[name]['weight']:.3g}, so that" in printed
        assert info["first_step"][name]["gradient"] == pytest.approx(0.1, rel=0.9)  # of this one batch

    part = tmp_path / "part"
    shutil.copytree(run / "checkpoint-1", part / "checkpoint-1")
    options["resume_from_checkpoint"] = True
    resumed = train(configuration(base, data, part, "deep_supervision", **options))
    assert "Weight of" not in capsys.readouterr().out
    same(run, resumed)
    again = json.loads((resumed / INFO).read_text())
    assert all(again[name] == info[name] for name in ("asked", "found", "objectives"))
    options["deep_supervision"] = replace(auto, gradient_share=0.2)
    shutil.rmtree(part)
    shutil.copytree(run / "checkpoint-1", part / "checkpoint-1")
    with pytest.raises(PivotuneError, match=r"gradient_share: got 0\.2, was 0\.1"):
        train(configuration(base, data, part, "deep_supervision", **options))


def test_what_does_not_train_is_not_measured() -> None:
    batch = collate(random_examples(1, (True, True)))
    off = made(replace(LAYERS, conversion_weight=0.0))
    assert [one.term for one in measure(off, off(batch), gradients=True)] == ["english_thinking"]
    alone = collate(random_examples(1, (False, False)))
    method = made(LAYERS)
    assert measure(method, method(alone), gradients=True) == []
    assert all(one.gradient is None for one in measure(method, method(batch), gradients=False))


def test_warnings() -> None:
    fine = Proportion("t", 2.0, 4.0, 3, 0.5, 1.0, "Do this.")
    assert fine.warnings == [] and str(fine) == "t 2, guessing gives 4, at layer 3 its gradient is 0.5 times that of lm"
    assert replace(fine, value=5.0).warnings == ["t: starts at 5, worse than guessing (4). Do this."]
    (loud,) = replace(fine, gradient=40.0).warnings
    assert (
        "at layer 3 is 40 times that of the ordinary loss" in loud and "A weight of about 0.03 makes them equal" in loud
    )
    assert str(replace(fine, guess=None, gradient=None)) == "t 2"


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_says_it_once_and_is_not_changed_by_it(
    rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data = write_base(tmp_path / "base"), write_rows(tmp_path / "train.jsonl", rows(16))
    run = train(configuration(base, data, tmp_path / "run", "deep_supervision", lora=rank))
    printed = capsys.readouterr().out
    assert printed.count("First step: lm ") == 1 and "guessing gives" in printed
    told = json.loads((run / INFO).read_text())["first_step"]
    assert set(told) == {"language_conversion", "english_thinking"}
    assert told["english_thinking"]["gradient"] > 0 and told["english_thinking"]["guess"] > 0
    monkeypatch.setattr(proportions, "measure", lambda *_, **__: [])
    plain = train(configuration(base, data, tmp_path / "plain", "deep_supervision", lora=rank))
    same(run, plain)
    assert [one["loss"] for one in log(run) if "loss" in one] == [one["loss"] for one in log(plain) if "loss" in one]


def test_a_resumed_run_does_not_say_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data = write_base(tmp_path / "base"), write_rows(tmp_path / "train.jsonl", rows(16))
    options = dict(save_strategy="steps", save_steps=1)
    train(configuration(base, data, tmp_path / "run", "deep_supervision", max_steps=1, **options))
    capsys.readouterr()
    more = configuration(
        base, data, tmp_path / "run", "deep_supervision", max_steps=2, resume_from_checkpoint=True, **options
    )
    train(more)
    assert "First step" not in capsys.readouterr().out
