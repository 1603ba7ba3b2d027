"""Both methods in one run: the connected pass is the ordinary pass that deep supervision reads."""

from __future__ import annotations

import pytest
import torch

from pivotune.method import Method
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from tests.batches import random_batch
from tests.families import tiny
from tests.reference.cc_tuning import connection_norm, gumbel_noise, training_connections
from tests.reference.compare import assert_gradients, assert_terms, gradients, loss_of
from tests.reference.deep_supervision import deep_supervision

LAYERS = dict(conversion_layer=2, thinking_layer=3)
SUPERVISION = {
    "teacher_forced": dict(reading="teacher_forced"),
    "position_wise": dict(reading="position_wise"),
    "feature": dict(language_conversion="feature", english_thinking="feature"),
    "feature_both_sides": dict(language_conversion="feature", english_thinking="feature", stop_gradient=False),
    "feature_last_token": dict(language_conversion="off", english_thinking="feature", pooling="last_token"),
    "mixed": dict(language_conversion="feature", english_thinking="logits", reading="position_wise"),
}
CONNECTION = {
    "defaults": {},
    "fixed_english": dict(english_gradient=False),
    # Above the conversion layer, and on tokens of the question itself.
    "layer_3": dict(connection_layer=3, connection_tokens=4),
    "layer_2_soft": dict(connection_layer=2, connection_tokens=4, selection="soft"),
}


def both(model, supervision: dict, connection: dict, **weights: float) -> Method:
    torch.manual_seed(0)
    method = Method(model, [DeepSupervisionConfig(**LAYERS, **supervision, **weights), CCTuningConfig(**connection)])
    torch.nn.init.normal_(method.objectives["cc_tuning"].decision_maker.weight, std=0.3)
    return method


@pytest.mark.parametrize("connection", CONNECTION)
@pytest.mark.parametrize("supervision", SUPERVISION)
def test_parity(supervision, connection):
    supervision, connection = SUPERVISION[supervision], CONNECTION[connection]
    method, batch = both(tiny("llama"), supervision, connection).train(), random_batch()
    torch.manual_seed(7)
    output = method(batch)
    actual = gradients(output["loss"], method)

    weight = method.objectives["cc_tuning"].decision_maker.weight
    torch.manual_seed(7)
    noise = gumbel_noise(len(batch["pair_row"]), len(weight))
    connections = training_connections(method.model, weight, batch, noise=noise, **connection)
    expected = deep_supervision(method.model, batch, connections=connections, **LAYERS, **supervision)
    expected["connection_norm"] = connection_norm(method.model, batch, connections)
    assert_terms(output["terms"], expected, 1e-9)
    assert {name: int(n) for name, n in method.counts(batch).items()} == {name: n for name, (_, n) in expected.items()}
    assert_gradients(actual, gradients(loss_of(expected), method), 1e-9)


@pytest.mark.parametrize("connection", CONNECTION)
@pytest.mark.parametrize("supervision", SUPERVISION)
def test_weight_zero_is_cc_tuning_bit_for_bit(supervision, connection):
    supervision, connection = SUPERVISION[supervision], CONNECTION[connection]
    zero = both(
        tiny("llama", attention_dropout=0.1), supervision, connection, conversion_weight=0.0, thinking_weight=0.0
    ).train()
    alone = Method(tiny("llama", attention_dropout=0.1), [CCTuningConfig(**connection)]).train()
    alone.objectives["cc_tuning"].decision_maker.load_state_dict(
        zero.objectives["cc_tuning"].decision_maker.state_dict()
    )
    results = []
    for method in (alone, zero):
        torch.manual_seed(7)
        loss = method(random_batch())["loss"]
        results.append((loss.detach(), gradients(loss, method), torch.get_rng_state()))
    assert torch.equal(results[0][0], results[1][0])
    assert_gradients(results[1][1], results[0][1], rtol=0, bitwise=True)
    assert torch.equal(results[0][2], results[1][2])
