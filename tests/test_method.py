"""What every method promises, whatever it computes: padding, accumulation, checkpointing, empty batches, no traces."""

from __future__ import annotations

import contextlib
import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from pivotune.method import Method
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from tests.batches import collate, random_batch, random_examples, singles, without_labels
from tests.families import tiny
from tests.reference.compare import assert_gradients, gradients
from tests.reference.hooks import footprint

LAYERS = dict(conversion_layer=2, thinking_layer=3)
FEATURE = dict(language_conversion="feature", english_thinking="feature")


def _supervised(**options):
    return lambda model: Method(model, [DeepSupervisionConfig(**LAYERS, **options)])


def _connected(**options):
    return lambda model: Method(model, [CCTuningConfig(**options)])


def _both(supervision: dict, connection: dict):
    return lambda model: Method(model, [DeepSupervisionConfig(**LAYERS, **supervision), CCTuningConfig(**connection)])


METHODS = {
    "sft": Method,
    "logits": _supervised(),
    "position_wise": _supervised(reading="position_wise"),
    "feature": _supervised(**FEATURE),
    "feature_both_sides": _supervised(**FEATURE, stop_gradient=False, pooling="last_token"),
    "cc": _connected(),
    "cc_soft": _connected(selection="soft", connection_tokens=2),
    "cc_fixed_english": _connected(english_gradient=False, connection_layer=3),
    "both_logits": _both({}, {}),
    "both_feature": _both(FEATURE | dict(stop_gradient=False), dict(selection="soft")),
}
every_method = pytest.mark.parametrize("name", METHODS)


def build(name: str, model=None):
    torch.manual_seed(0)
    method = METHODS[name](tiny("llama") if model is None else model)
    if "cc_tuning" in method.objectives:
        torch.nn.init.normal_(method.objectives["cc_tuning"].decision_maker.weight, std=0.3)
    return method


def step(method, batch, counts=None, seed: int = 0):
    torch.manual_seed(seed)
    output = method(batch, counts)
    return output, gradients(output["loss"], method)


def checkpointed(method):
    method.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return method


# Padding and accumulation --------------------------------------------------------------------------------------------


@every_method
def test_padding_changes_nothing(name):
    method = build(name).train()
    batch = random_batch(1)
    output, grads = step(method, batch)
    for padded in (random_batch(1, extra=3), random_batch(1, pad=41, extra=2)):
        other, other_grads = step(method, padded)
        torch.testing.assert_close(other["loss"], output["loss"], rtol=1e-9, atol=1e-9)
        for term, (value, count) in output["terms"].items():
            torch.testing.assert_close(other["terms"][term].sum, value, rtol=1e-9, atol=1e-9)
            assert torch.equal(other["terms"][term].count, count)
        assert_gradients(other_grads, grads, 1e-9)


@every_method
def test_batched_equals_one_by_one(name):
    method = build(name).eval()  # no noise, which would be drawn in another order
    batch = random_batch(2)
    together = method(batch)["terms"]
    alone = [method(row)["terms"] for row in singles(batch)]
    for term, (value, count) in together.items():
        torch.testing.assert_close(sum(t[term].sum for t in alone), value, rtol=1e-9, atol=1e-9)
        assert sum(int(t[term].count) for t in alone) == int(count)


def without_noise(monkeypatch):
    """Evaluation's choice with training's gradient: Gumbel noise of zero, whatever the rows of a batch."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, *args, **kwargs: self.fill_(1.0))


@pytest.mark.parametrize("checkpointing", [False, True])
@every_method
def test_accumulating_eight_rows_equals_one_batch_of_eight(name, checkpointing, monkeypatch):
    without_noise(monkeypatch)
    method = build(name).train()
    if checkpointing:
        checkpointed(method)
    batch = random_batch(3, [True, False, True, True, False, False, True, True])
    output, expected = step(method, batch)
    counts = method.counts(batch)

    method.zero_grad(set_to_none=True)
    total = 0.0
    for row in singles(batch):
        loss = method(row, counts)["loss"]
        loss.backward()
        total += loss.item()
    accumulated = {key: p.grad for key, p in method.named_parameters()}
    assert total == pytest.approx(output["loss"].item(), rel=1e-9)
    assert_gradients(accumulated, expected, 1e-9)


@every_method
def test_counts_come_from_the_batch_alone(name):
    method, batch = build(name).eval(), random_batch(4)
    counts = method.counts(batch)
    output = method(batch)
    assert set(counts) == set(output["terms"])
    for term, count in counts.items():
        assert count.shape == () and torch.equal(count, output["terms"][term].count)
    doubled = method(batch, {term: 2 * count for term, count in counts.items()})
    torch.testing.assert_close(doubled["loss"], output["loss"] / 2, rtol=1e-12, atol=0)


@every_method
def test_loss_is_the_sum_of_its_terms(name):
    method = build(name)
    output = method(random_batch(5))
    expected = sum(method.weights[term] * value / count for term, (value, count) in output["terms"].items())
    torch.testing.assert_close(output["loss"], expected, rtol=1e-12, atol=0)


# Gradient checkpointing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "olmo2", "gpt_neox"])
@every_method
def test_checkpointing_changes_no_gradient(name, family):
    method = build(name, tiny(family)).train()
    output, expected = step(method, random_batch(6))

    ran = []
    # Before, not behind, the block: a replay ends as soon as it has what backward needs.
    handle = method.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: ran.append(1))
    checkpointed(method)
    torch.manual_seed(0)
    replayed = method(random_batch(6))
    forwards = len(ran)
    actual = gradients(replayed["loss"], method)
    handle.remove()
    assert len(ran) > forwards, "nothing was replayed: the test would compare nothing"
    assert torch.equal(replayed["loss"], output["loss"])
    assert_gradients(actual, expected, 1e-9)


@every_method
def test_checkpointing_with_lora_dropout(name):
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(tiny("llama"), lora)
    method = build(name, model).train()
    output, expected = step(method, random_batch(7))
    checkpointed(method)
    model.enable_input_require_grads()
    replayed, actual = step(method, random_batch(7))
    assert torch.equal(replayed["loss"], output["loss"])
    assert_gradients(actual, expected, 1e-9)


@every_method
def test_checkpointed_losses_may_wait_before_backward(name):
    """Two forwards, then two backwards: each replay needs its own activations, not the other's."""
    method = checkpointed(build(name).train())
    batches = random_batch(8), random_batch(9)
    expected = [step(method, batch)[1] for batch in batches]
    losses = []
    for batch in batches:
        torch.manual_seed(0)
        losses.append(method(batch)["loss"])
    # Not in the order of the forwards.
    assert_gradients(gradients(losses[1], method), expected[1], 1e-9)
    assert_gradients(gradients(losses[0], method), expected[0], 1e-9)


@every_method
def test_checkpointing_with_the_wrapper_of_fsdp(name):
    """accelerate's `fsdp_activation_checkpointing` wraps the layers instead of asking transformers."""
    output, expected = step(build(name).train(), random_batch(6))
    method = build(name).train()
    apply_activation_checkpointing(
        method,
        checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT),
        check_fn=lambda module: type(module).__name__ == "LlamaDecoderLayer",
    )
    replayed, actual = step(method, random_batch(6))
    assert torch.equal(replayed["loss"], output["loss"])
    assert_gradients({key.replace("_checkpoint_wrapped_module.", ""): g for key, g in actual.items()}, expected, 1e-9)


# Reduced precision ---------------------------------------------------------------------------------------------------


ROUNDING = 19
"""A batch on which rounding to bfloat16 does not change which layers the Decision Maker picks."""


def assert_alike(actual, expected, limit):
    """Every parameter has a gradient, and the whole gradient differs by less than `limit` of its length."""
    assert [key for key, grad in actual.items() if grad is None] == []
    error = sum(float((grad.double() - expected[key].double()).norm() ** 2) for key, grad in actual.items())
    assert error < limit**2 * sum(float(grad.double().norm() ** 2) for grad in expected.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@every_method
def test_mixed_precision(name, checkpointing):
    """Autocast keeps the weights it has cast; those cast without gradient (English passes) must not be reused."""
    exact, expected = step(build(name, tiny("llama", dtype=torch.float32)).train(), random_batch(ROUNDING))
    method = build(name, tiny("llama", dtype=torch.float32)).train()
    if checkpointing:
        checkpointed(method)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(random_batch(ROUNDING))
    assert output["loss"].dtype == torch.float32
    torch.testing.assert_close(output["loss"], exact["loss"], rtol=0.02, atol=0)
    assert_alike(gradients(output["loss"], method), expected, 0.2)


@every_method
def test_bfloat16_weights(name):
    method = build(name, tiny("llama", dtype=torch.bfloat16)).eval()
    twin = build(name, tiny("llama", dtype=torch.float32)).eval()
    twin.load_state_dict(method.state_dict())
    output, exact = method(random_batch(ROUNDING)), twin(random_batch(ROUNDING))
    assert output["loss"].dtype == torch.float32 and all(p.dtype == torch.bfloat16 for p in method.parameters())
    torch.testing.assert_close(output["loss"], exact["loss"], rtol=0.02, atol=0)
    actual, expected = gradients(output["loss"], method), gradients(exact["loss"], twin)
    for grads in (actual, expected):  # without noise the choice is a plain argmax
        grads.pop("objectives.cc_tuning.decision_maker.weight", None)
    assert_alike(actual, expected, 0.2)


# Batches with nothing to say -----------------------------------------------------------------------------------------

EMPTY = {
    "no_labels": lambda: without_labels(random_batch(10)),
    "no_english": lambda: random_batch(10, [False] * 3),
    "neither": lambda: without_labels(random_batch(10, [False] * 3)),
    "one_row_no_english": lambda: random_batch(10, [False]),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("empty", EMPTY)
@every_method
def test_empty_batches_stay_finite_and_connected(name, empty, checkpointing):
    method = build(name).train()
    if checkpointing:
        checkpointed(method)
    output = method(EMPTY[empty]())
    for term, (value, count) in output["terms"].items():
        assert torch.isfinite(value)
        if count == 0:
            assert value == 0.0, term
    assert output["loss"].requires_grad
    output["loss"].backward()
    for parameter, p in method.named_parameters():
        # DistributedDataParallel waits for the gradient of every parameter, on every rank.
        assert p.grad is not None, f"{parameter} takes no part in the loss"
        assert torch.isfinite(p.grad).all(), parameter


@every_method
def test_a_full_batch_reaches_every_parameter(name):
    method = build(name).train()
    _, grads = step(method, random_batch(11))
    assert [key for key, grad in grads.items() if grad is None] == []


@pytest.mark.parametrize("name", ["logits", "position_wise", "feature", "both_feature"])
def test_no_english_is_plain_fine_tuning(name):
    method, batch = build(name), random_batch(12, [False] * 3)
    assert torch.equal(method(batch)["loss"], Method(method.model)(batch)["loss"])


# Cost ----------------------------------------------------------------------------------------------------------------

RUNS = {  # how often layers 1, 2, 3, 4 run in a step that supervises layers 2 and 3, and how often with gradient
    "sft": ([1, 1, 1, 1], [1, 1, 1, 1]),
    "logits": ([3, 3, 2, 1], [3, 3, 2, 1]),
    "position_wise": ([1, 1, 1, 1], [1, 1, 1, 1]),
    "feature": ([2, 2, 2, 2], [1, 1, 1, 1]),
    "feature_both_sides": ([2, 2, 2, 2], [2, 2, 2, 2]),
    "cc": ([2, 2, 2, 2], [2, 2, 2, 2]),
    "cc_soft": ([2, 2, 2, 2], [2, 2, 2, 2]),
    "cc_fixed_english": ([2, 2, 2, 2], [1, 1, 1, 1]),
    "both_logits": ([4, 4, 3, 2], [4, 4, 3, 2]),
    "both_feature": ([2, 2, 2, 2], [2, 2, 2, 2]),  # one English pass serves both
    "conversion_by_feature": ([2, 2, 1, 1], [1, 1, 1, 1]),
    "logits_only_measured": ([3, 3, 2, 1], [1, 1, 1, 1]),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_layer_runs_more_than_it_must(name, monkeypatch):
    monkeypatch.setitem(
        METHODS, "conversion_by_feature", _supervised(language_conversion="feature", english_thinking="off")
    )
    monkeypatch.setitem(METHODS, "logits_only_measured", _supervised(conversion_weight=0.0, thinking_weight=0.0))
    method = build(name).train()
    runs, with_gradient = [0] * 4, [0] * 4

    def count(number):
        def hook(*_):
            runs[number] += 1
            with_gradient[number] += torch.is_grad_enabled()

        return hook

    for number, layer in enumerate(method.model.model.layers):
        layer.register_forward_hook(count(number))
    method(random_batch())["loss"].backward()
    assert (runs, with_gradient) == RUNS[name]


# No traces -----------------------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


@pytest.mark.parametrize("checkpointing", [False, True])
@every_method
def test_nothing_is_left_on_the_model(name, checkpointing):
    method = build(name).train()
    if checkpointing:
        checkpointed(method)
    before = footprint(method)
    output = method(random_batch())
    assert footprint(method) == before
    output["loss"].backward()
    assert footprint(method) == before


@pytest.mark.parametrize("when", ["first_pass", "second_pass", "third_pass"])
@pytest.mark.parametrize("checkpointing", [False, True])
@every_method
def test_nothing_is_left_after_an_exception_inside_a_pass(name, checkpointing, when):
    method = build(name).train()
    if checkpointing:
        checkpointed(method)
    countdown = {"first_pass": 1, "second_pass": 2, "third_pass": 3}[when]

    def fail(*_):
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise Broken

    handle = method.model.model.layers[1].mlp.register_forward_hook(fail)
    before = footprint(method)
    with contextlib.suppress(Broken):  # a method of two passes does not get to the third
        method(random_batch())
    assert footprint(method) == before
    handle.remove()
    # And the method still works.
    expected = build(name).train()
    assert torch.equal(step(method, random_batch())[0]["loss"], step(expected, random_batch())[0]["loss"])


@every_method
def test_the_batch_is_left_as_it_was(name):
    batch = random_batch(13)
    before = copy.deepcopy(batch)
    build(name)(batch)["loss"].backward()
    assert all(torch.equal(batch[key], before[key]) for key in before)


@every_method
def test_measuring_without_gradient(name):
    method = build(name).eval()
    batch = random_batch(14)
    with torch.no_grad():
        measured = method(batch)
    assert not measured["loss"].requires_grad
    torch.testing.assert_close(measured["loss"], method(batch)["loss"], rtol=1e-12, atol=0)


@every_method
def test_method_survives_a_deepcopy(name):
    """EMA, and averaging, copy the module: the copy must read its own model."""
    method = build(name).eval()
    twin = copy.deepcopy(method)
    with torch.no_grad():
        for p in twin.model.parameters():
            p.mul_(1.1)
        batch = random_batch(15)
        assert twin(batch)["loss"] != method(batch)["loss"]
        fresh = build(name, twin.model).eval()
        if "cc_tuning" in fresh.objectives:
            fresh.objectives["cc_tuning"].decision_maker.load_state_dict(
                method.objectives["cc_tuning"].decision_maker.state_dict()
            )
        assert torch.equal(twin(batch)["loss"], fresh(batch)["loss"])


@every_method
def test_rows_may_come_in_any_order(name):
    method = build(name).eval()
    examples = random_examples(16, [True, False, True, True])
    forward, backward = method(collate(examples)), method(collate(examples[::-1]))
    torch.testing.assert_close(backward["loss"], forward["loss"], rtol=1e-9, atol=1e-9)
