"""Plain fine-tuning is what transformers itself computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pivotune.method import Method
from tests.batches import random_batch
from tests.families import FAMILIES, tiny
from tests.reference.compare import assert_gradients, gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers(family):
    model = tiny(family, dtype=torch.float32)
    batch = random_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    output = Method(model)(batch)
    actual = gradients(output["loss"], model)
    expected = model(**inputs, use_cache=False).loss
    torch.testing.assert_close(output["loss"], expected, rtol=1e-6, atol=1e-6)
    assert_gradients(actual, gradients(expected, model), rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_in_float64(family):
    """As above, but transformers' loss itself rounds to float32."""
    model = tiny(family)
    batch = random_batch()
    output = Method(model)(batch)
    actual = gradients(output["loss"], model)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(output["loss"], expected, rtol=1e-9, atol=1e-9)
    assert_gradients(actual, gradients(expected, model), rtol=1e-9)


def test_terms_and_counts():
    batch = random_batch()
    method = Method(tiny("llama"))
    output = method(batch)
    assert set(output) == {"loss", "terms"} and set(output["terms"]) == {"lm"}
    assert int(output["terms"]["lm"].count) == int(method.counts(batch)["lm"]) == int((batch["labels"] != -100).sum())
    torch.testing.assert_close(output["loss"], output["terms"]["lm"].sum / output["terms"]["lm"].count)
    assert output["loss"].shape == method.counts(batch)["lm"].shape == ()


def test_english_is_not_read():
    batch = random_batch()
    garbled = {
        name: torch.full_like(value, 10**6) if name.startswith("english") else value for name, value in batch.items()
    }
    method = Method(tiny("llama"))
    assert torch.equal(method(garbled)["loss"], method(batch)["loss"])
