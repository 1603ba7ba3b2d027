"""Taps against the plain hooks of the reference. How they behave in training is tested through the methods."""

from __future__ import annotations

import pytest
import torch

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError
from pivotune.taps import Injection, Tap
from tests.families import FAMILIES, tiny
from tests.reference.hooks import footprint
from tests.reference.passes import Connection, run

TOKENS = [[5, 17, 3, 88, 42, 9, 60, 23], [4, 50, 11, 29, 73]]
LAST = torch.tensor([7, 4])


def padded():
    ids, mask = torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.long)
    for row, tokens in enumerate(TOKENS):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_captures_what_plain_hooks_see(family):
    model = tiny(family)
    anatomy = Anatomy(model)
    wanted = range(1, anatomy.num_layers + 1)
    with Tap(anatomy, hidden=wanted, at=LAST) as tap:
        anatomy.decoder(**padded())
    assert set(tap.hidden) == set(wanted)
    assert tap.states("feed_forward").shape == (2, anatomy.num_layers, 32)
    for row, tokens in enumerate(TOKENS):
        alone = run(model, tokens)
        for number in wanted:
            torch.testing.assert_close(
                tap.hidden[number][row, : len(tokens)], alone.hidden[number], rtol=1e-9, atol=1e-9
            )
            torch.testing.assert_close(
                tap.states("feed_forward")[row, number - 1], alone.feed_forward[number][-1], rtol=1e-9, atol=1e-9
            )


@pytest.mark.parametrize("layer", [1, 2, "last"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_injects_where_told(family, layer):
    model = tiny(family)
    anatomy = Anatomy(model)
    layer = anatomy.num_layers if layer == "last" else layer
    vectors = torch.randn(2, 32, dtype=torch.float64)
    positions = torch.tensor([[7, 6], [0, -1]])  # the second row at one position only
    with Tap(anatomy, hidden=[layer, anatomy.num_layers], injections=[Injection(layer, vectors, positions)]) as tap:
        anatomy.decoder(**padded())
    for row, (tokens, where) in enumerate(zip(TOKENS, [[7, 6], [0]], strict=True)):
        alone = run(model, tokens, Connection(layer, where, vectors[row]))
        for number in (layer, anatomy.num_layers):
            torch.testing.assert_close(
                tap.hidden[number][row, : len(tokens)], alone.hidden[number], rtol=1e-9, atol=1e-9
            )


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("site", ["hidden", "attention", "feed_forward"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_site_is_read_and_written(family, site, replace):
    model = tiny(family)
    anatomy = Anatomy(model)
    vectors = torch.randn(2, 32, dtype=torch.float64)
    positions = torch.tensor([[7, 6], [0, -1]])
    for relative_norm in (None, 0.5):
        injection = Injection(2, vectors, positions, relative_norm, site=site, replace=replace)
        with Tap(anatomy, at=LAST, sites=("attention", "hidden"), injections=[injection]) as tap:
            anatomy.decoder(**padded())
        for row, (tokens, where) in enumerate(zip(TOKENS, [[7, 6], [0]], strict=True)):
            alone = run(model, tokens, Connection(2, where, vectors[row], relative_norm, site, replace))
            for name in ("attention", "hidden"):
                expected = torch.stack([states[len(tokens) - 1] for states in getattr(alone, name)[1:]])
                torch.testing.assert_close(tap.states(name)[row], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_one_row_may_stand_for_all():
    anatomy = Anatomy(tiny("llama"))
    vector, position = torch.randn(1, 32, dtype=torch.float64), torch.tensor([[0]])
    with Tap(anatomy, hidden=[1], injections=[Injection(1, vector, position, replace=True)]) as tap:
        anatomy.decoder(**padded())
    assert torch.equal(tap.hidden[1][:, 0], vector.expand(2, -1))


@torch.no_grad()
def test_zero_rows_change_nothing():
    anatomy = Anatomy(tiny("llama"))
    plain = anatomy.decoder(**padded()).last_hidden_state
    with Tap(anatomy, injections=[Injection(1, torch.zeros(2, 32, dtype=torch.float64), LAST[:, None])]):
        assert torch.equal(anatomy.decoder(**padded()).last_hidden_state, plain)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_left_on_the_model(checkpointing):
    model = tiny("llama").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    anatomy = Anatomy(model)
    before = footprint(model)
    injection = Injection(1, torch.ones(2, 32, dtype=torch.float64), LAST[:, None])
    with Tap(anatomy, hidden=[2], at=LAST, injections=[injection]) as tap:
        assert footprint(model) != before
        anatomy.decoder(**padded())
    assert footprint(model) == before
    (tap.states("feed_forward").sum() + tap.hidden[2].sum()).backward()
    assert footprint(model) == before

    with pytest.raises(ZeroDivisionError), Tap(anatomy, hidden=[2], at=LAST, injections=[injection]):
        _ = 1 / 0
    assert footprint(model) == before


def test_a_later_pass_does_not_disturb_what_was_kept():
    anatomy = Anatomy(tiny("llama"))
    with torch.no_grad():
        with Tap(anatomy, hidden=[2], at=LAST) as tap:
            anatomy.decoder(**padded())
        kept = tap.hidden[2].clone(), tap.states("feed_forward").clone()
        other = padded()
        other["input_ids"] = other["input_ids"] + 1
        anatomy.decoder(**other)
    assert torch.equal(tap.hidden[2], kept[0]) and torch.equal(tap.states("feed_forward"), kept[1])


def test_reentrant_checkpointing_is_refused_where_it_would_lose_the_gradient():
    model = tiny("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    anatomy = Anatomy(model)
    with pytest.raises(PivotuneError, match="use_reentrant"), Tap(anatomy, at=LAST):
        anatomy.decoder(**padded())
