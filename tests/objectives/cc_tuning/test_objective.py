"""CC-Tuning against the slow reference. The training-time Gumbel noise is drawn by both from one seed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import CCTuning, CCTuningConfig
from tests.batches import random_batch
from tests.families import FAMILIES, tiny
from tests.reference.cc_tuning import cc_tuning, gumbel_noise, training_connections
from tests.reference.compare import assert_gradients, assert_terms, gradients, loss_of

SEED = 5


def connected(model, **options) -> CCTuning:
    """The method with a Decision Maker whose scores differ by more than the noise hides."""
    torch.manual_seed(0)
    method = Method(model, [CCTuningConfig(**options)])
    torch.nn.init.normal_(method.objectives["cc_tuning"].decision_maker.weight, std=0.3)
    return method


def assert_training_parity(method: CCTuning, batch, options: dict, rtol: float) -> None:
    method.train()
    torch.manual_seed(SEED)
    output = method(batch)
    actual = gradients(output["loss"], method)

    weight = method.objectives["cc_tuning"].decision_maker.weight
    torch.manual_seed(SEED)
    noise = gumbel_noise(len(batch["pair_row"]), weight.shape[0], weight.dtype)
    expected = cc_tuning(method.model, weight, batch, noise=noise, **of_the_reference(method, options))
    assert_terms(output["terms"], expected, rtol)
    assert {name: int(n) for name, n in method.counts(batch).items()} == {name: n for name, (_, n) in expected.items()}
    assert_gradients(actual, gradients(loss_of(expected), method), rtol)
    assert all(gradient.any() for name, gradient in actual.items() if name.startswith("objectives."))


def of_the_reference(method: CCTuning, options: dict) -> dict:
    """The gate as what it makes."""
    made = {name: value for name, value in options.items() if name != "gate"}
    if options.get("gate"):
        made["factor"] = torch.tanh(100 * method.objectives["cc_tuning"].gate.weight)
    return made


OPTIONS = {
    "defaults": {},
    "cold": dict(temperature=0.3),
    "hot": dict(temperature=5.0),
    "soft": dict(selection="soft"),
    "soft_cold": dict(selection="soft", temperature=0.3),
    "fixed_english": dict(english_gradient=False),
    "fixed_english_soft": dict(english_gradient=False, selection="soft"),
    "layer_3": dict(connection_layer=3),
    "last_layer": dict(connection_layer=4),
    "three_tokens": dict(connection_tokens=3),
    "more_tokens_than_the_prompt_has": dict(connection_tokens=40),
    "in_scale": dict(relative_norm=0.1),
    "in_scale_layer_3": dict(relative_norm=1.5, connection_layer=3, connection_tokens=2, selection="soft"),
    "gated": dict(gate=True),
    "gated_in_scale": dict(gate=True, relative_norm=0.3, connection_layer=2, connection_tokens=2),
    "three_tokens_soft_layer_2": dict(connection_tokens=3, selection="soft", connection_layer=2, temperature=2.0),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_on_llama(case):
    options = OPTIONS[case]
    assert_training_parity(connected(tiny("llama"), **options), random_batch(), options, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    assert_training_parity(connected(tiny(family)), random_batch(1), {}, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_float32(family):
    assert_training_parity(connected(tiny(family, dtype=torch.float32)), random_batch(2), {}, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_many_draws(seed):
    assert_training_parity(connected(tiny("llama3", seed)), random_batch(seed, [True] * 5), {}, rtol=1e-9)


def test_lora():
    model = get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert_training_parity(connected(model), random_batch(3), {}, rtol=1e-9)


@pytest.mark.parametrize("case", OPTIONS)
def test_evaluation_has_no_noise(case):
    method, batch = connected(tiny("llama"), **OPTIONS[case]).eval(), random_batch(4)
    random_state = torch.get_rng_state()
    with torch.no_grad():
        output = method(batch)
        assert torch.equal(method(batch)["loss"], output["loss"])
        given = of_the_reference(method, OPTIONS[case])
        expected = cc_tuning(method.model, method.objectives["cc_tuning"].decision_maker.weight, batch, **given)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert_terms(output["terms"], expected, 1e-9)


def test_a_connection_that_drowns_the_question_is_warned_of():
    method = connected(tiny("llama"))
    part = method.objectives["cc_tuning"]
    (warning,) = part.first_remarks({"lm": 2.0, "connection_norm": 9.28})
    assert "9.3 times as long as the state that it joins" in warning and "cc_tuning.relative_norm: 0.1" in warning
    assert part.first_remarks({"lm": 2.0, "connection_norm": 1.0}) == []


def test_training_noise_moves_the_choice():
    """Over many draws each layer is chosen about as often as the softmax of the scores says."""
    method = connected(tiny("llama")).train()
    v, e = torch.randn(1, 4, 32, dtype=torch.float64), torch.randn(1, 32, dtype=torch.float64)
    maker, draws = method.objectives["cc_tuning"].decision_maker, 2000
    with torch.no_grad():
        maker.weight *= 0.2
        expected = torch.softmax(maker.weight @ (v[0] + e).mean(dim=0), dim=0)
        torch.manual_seed(0)
        picks = maker(v.expand(draws, -1, -1), e.expand(draws, -1))
    distance = torch.cdist(picks, v[0])
    assert distance.min(dim=1).values.max() < 1e-6, "a hard choice is one of the layers, unmixed"
    observed = torch.bincount(distance.argmin(dim=1), minlength=4) / draws
    assert (observed - expected).abs().max() < 0.05
    assert observed.min() > 0.02


def test_the_connection_matters_and_only_where_there_is_english():
    """Guards the tests above: the reference's picks are large enough to move the loss."""
    method, batch = connected(tiny("llama")).eval(), random_batch()
    with torch.no_grad():
        picks = training_connections(method.model, method.objectives["cc_tuning"].decision_maker.weight, batch)
        assert sorted(picks) == batch["pair_row"].tolist()
        assert all(pick.vector.norm() > 0.5 for pick in picks.values())
        assert abs(method(batch)["loss"] - Method(method.model)(batch)["loss"]) > 1e-3
        unpaired = random_batch(0, [False] * 4)
        assert torch.equal(method(unpaired)["loss"], Method(method.model)(unpaired)["loss"])


@pytest.mark.parametrize("english_gradient", [True, False])
def test_the_english_pass_trains_only_if_asked(english_gradient):
    """Embeddings of tokens that only the English prompts have can learn through the English pass alone."""
    method = connected(tiny("llama"), english_gradient=english_gradient, selection="soft").train()
    batch = random_batch()
    english = set(batch["english_input_ids"].flatten().tolist()) - set(batch["input_ids"].flatten().tolist())
    method(batch)["loss"].backward()
    rows = method.model.model.embed_tokens.weight.grad[sorted(english)]
    assert english and bool(rows.any()) is english_gradient
    assert method.objectives["cc_tuning"].decision_maker.weight.grad.any()


@pytest.mark.parametrize("selection", ["hard", "soft"])
@pytest.mark.parametrize("training", [True, False])
def test_shares_are_what_the_pick_is_mixed_of(selection, training):
    maker = connected(tiny("llama"), selection=selection).objectives["cc_tuning"].decision_maker.train(training)
    v, e = torch.randn(7, 4, 32, dtype=torch.float64), torch.randn(7, 32, dtype=torch.float64)
    torch.manual_seed(SEED)
    shares = maker.shares(v, e)
    torch.manual_seed(SEED)
    torch.testing.assert_close(maker(v, e), (shares[..., None] * v).sum(dim=1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(7, dtype=torch.float64), rtol=1e-12, atol=0)
    assert shares.dtype == torch.float64 and shares.requires_grad is (training or selection == "soft")
    low = (
        connected(tiny("llama", dtype=torch.bfloat16), selection=selection)
        .objectives["cc_tuning"]
        .decision_maker.train(training)
    )
    assert low.shares(v.bfloat16(), e.bfloat16()).dtype == torch.float32


def test_decision_maker_is_a_linear_layer_without_bias():
    method = connected(tiny("llama", dtype=torch.float32))
    assert [name for name, _ in method.objectives["cc_tuning"].decision_maker.named_parameters()] == ["weight"]
    assert method.objectives["cc_tuning"].decision_maker.weight.shape == (4, 32)
    assert set(method.own_tensors()) == {"objectives.cc_tuning.decision_maker.weight"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(connection_layer=0), ["cc_tuning.connection_layer", "0", "1..4"]),
        (dict(connection_layer=9), ["cc_tuning.connection_layer", "9", "1..4"]),
        (dict(selection="best"), ["cc_tuning.selection", "'best'", "hard", "soft"]),
        (dict(matrix="full"), ["cc_tuning.matrix", "'full'", "shared", "per_layer"]),
        (dict(temperature=0.0), ["cc_tuning.temperature", "0.0"]),
        (dict(temperature=float("nan")), ["cc_tuning.temperature", "nan"]),
        (dict(connection_tokens=0), ["cc_tuning.connection_tokens", "0"]),
        (dict(ridge=-0.1), ["cc_tuning.ridge", "-0.1"]),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_bad_options_are_named(options, words):
    with pytest.raises(PivotuneError) as caught:
        Method(tiny("llama"), [CCTuningConfig(**options)])
    for word in words:
        assert word in str(caught.value)
