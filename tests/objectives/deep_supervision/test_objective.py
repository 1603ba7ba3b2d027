"""Deep supervision against the slow reference: every option on one family, the defaults on all families."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import DeepSupervisionConfig
from pivotune.objectives.deep_supervision import objective as module
from tests.batches import Example, Text, collate, random_batch, without_labels
from tests.families import FAMILIES, tiny
from tests.reference.compare import assert_gradients, assert_terms, gradients, loss_of
from tests.reference.deep_supervision import deep_supervision

LAYERS = dict(conversion_layer=2, thinking_layer=3)
TERMS = ("language_conversion", "english_thinking")


def every_combination() -> list[dict]:
    """Every setting that computes something different: `reading` matters to logits, `pooling` to feature."""
    combinations = []
    for conversion, thinking in product(("logits", "feature", "off"), repeat=2):
        signals = {conversion, thinking}
        if signals == {"off"}:
            continue
        axes: dict[str, tuple] = {}
        if "logits" in signals:
            axes |= dict(reading=("teacher_forced", "position_wise"), final_norm=(True, False))
        if "feature" in signals:
            axes |= dict(pooling=("mean", "last_token"), stop_gradient=(True, False))
        for values in product(*axes.values()):
            combinations.append(
                dict(language_conversion=conversion, english_thinking=thinking, **dict(zip(axes, values, strict=True)))
            )
    return combinations


def assert_parity(model, batch, options: dict, rtol: float, weights: tuple[float, float] = (1.0, 1.0)) -> None:
    config = DeepSupervisionConfig(conversion_weight=weights[0], thinking_weight=weights[1], **options)
    method = Method(model, [config])
    output = method(batch)
    expected = deep_supervision(model, batch, **options)
    expected_loss = loss_of(expected, dict(zip(TERMS, weights, strict=True)))
    assert_terms(output["terms"], expected, rtol)
    assert {name: int(n) for name, n in method.counts(batch).items()} == {name: n for name, (_, n) in expected.items()}
    torch.testing.assert_close(output["loss"].detach(), expected_loss.detach(), rtol=rtol, atol=rtol, check_dtype=False)
    assert_gradients(gradients(output["loss"], model), gradients(expected_loss, model), rtol)


@pytest.mark.parametrize("options", every_combination(), ids=lambda o: "-".join(map(str, o.values())))
def test_every_option_on_llama(options):
    assert_parity(tiny("llama"), random_batch(), LAYERS | options, rtol=1e-9)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last_token"])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("english_layer", ["last", "same", 2])
def test_contrast_and_other_english_layers(english_layer, temperature, pooling, stop_gradient):
    for loss in ("contrast", "cosine"):
        options = dict(feature_loss=loss, english_layer=english_layer, temperature=temperature, pooling=pooling)
        options |= dict(language_conversion="feature", english_thinking="feature", stop_gradient=stop_gradient)
        assert_parity(tiny("llama"), random_batch(), LAYERS | options, rtol=1e-9)


@pytest.mark.parametrize(("rise", "fall"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.25), (0.4, 0.6)])
def test_weights_rise_and_fall_over_the_training(rise, fall):
    """In training alone, where it is known how far that is."""
    weights, batch = dict(conversion_weight=0.5, thinking_weight=2.0), random_batch(4)
    method = Method(
        tiny("llama"), [DeepSupervisionConfig(**LAYERS, **weights, weight_warmup=rise, weight_cooldown=fall)]
    )
    with torch.no_grad():
        means = {name: (term.sum / term.count).item() for name, term in method(batch)["terms"].items()}
    extra = 0.5 * means["language_conversion"] + 2.0 * means["english_thinking"]
    for step in range(1, 11):
        method.progress = step / 10
        expected = 1.0
        if rise and step < 10 * rise:
            expected = step / (10 * rise)
        if fall and 10 - step < 10 * fall:
            expected = (10 - step) / (10 * fall)
        method.train()
        assert method(batch)["loss"].item() == pytest.approx(means["lm"] + expected * extra, rel=1e-9)
        method.eval()
        assert method(batch)["loss"].item() == pytest.approx(means["lm"] + extra, rel=1e-9)


def test_a_pair_alone_has_nothing_to_be_told_from():
    options = LAYERS | dict(language_conversion="feature", english_thinking="feature", feature_loss="contrast")
    for pairs, value in (([True, False, False], 0.0), ([False, False], 0.0)):
        method = Method(tiny("llama"), [DeepSupervisionConfig(**options)])
        output = method(random_batch(0, pairs))
        assert output["terms"]["english_thinking"].sum.item() == value
        output["loss"].backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


@pytest.mark.parametrize("signal", ["logits", "feature"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, signal):
    options = LAYERS | dict(language_conversion=signal, english_thinking=signal)
    assert_parity(tiny(family), random_batch(1), options, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_float32(family):
    options = LAYERS | dict(language_conversion="logits", english_thinking="feature", stop_gradient=False)
    assert_parity(tiny(family, dtype=torch.float32), random_batch(2), options, rtol=1e-5)


def test_gemma2_with_its_whole_vocabulary():
    """256k pieces: the logits of both terms and of the answer are read in chunks, and nothing else changes."""
    model = tiny("gemma2", vocab_size=256_000)
    assert_parity(model, random_batch(1), dict(LAYERS), rtol=1e-9)


@pytest.mark.parametrize("signal", ["logits", "feature"])
@pytest.mark.parametrize("layers", [(1, 1), (3, 3), (4, 4), (4, 1)], ids=str)
def test_any_layers(layers, signal):
    options = dict(conversion_layer=layers[0], thinking_layer=layers[1], stop_gradient=False)
    options |= dict(language_conversion=signal, english_thinking=signal)
    assert_parity(tiny("llama3"), random_batch(3), options, rtol=1e-9)


def test_weights():
    assert_parity(tiny("llama"), random_batch(4), dict(LAYERS), rtol=1e-9, weights=(0.3, 2.5))


@pytest.mark.parametrize("signal", ["logits", "feature"])
def test_lora(signal):
    model = get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    options = LAYERS | dict(language_conversion=signal, english_thinking=signal, stop_gradient=False)
    assert_parity(model, random_batch(5), options, rtol=1e-9)


@pytest.mark.parametrize("reading", ["teacher_forced", "position_wise"])
def test_texts_of_very_different_length(reading):
    """English far longer than the target text, and far shorter: nothing is cut that should count, nor read past."""
    long, short = list(range(10, 60)), [70, 71]
    batch = collate(
        [
            Example(Text([3, 4, *short], (2, 4), [80]), Text([5, *long], (1, 51), long[:30])),
            Example(Text([3, *long, 4], (1, 51), long[10:]), Text([5, *short, 6], (1, 3), [90])),
        ]
    )
    model = tiny("llama")
    assert_parity(model, batch, LAYERS | dict(reading=reading), rtol=1e-9)
    counts = Method(model, [DeepSupervisionConfig(**LAYERS, reading=reading)]).counts(batch)
    expected = (50 + 2, 30 + 1) if reading == "teacher_forced" else (2 + 2, 1 + 1)
    assert (int(counts["language_conversion"]), int(counts["english_thinking"])) == expected


@pytest.mark.parametrize("reading", ["teacher_forced", "position_wise"])
def test_a_pair_without_english_answer_counts_nothing_for_thinking(reading):
    batch = collate(
        [
            Example(Text([3, 4, 50, 51], (1, 4), [80, 81]), Text([5, 60, 61], (1, 3), [])),
            Example(Text([3, 4, 52], (1, 3), [82]), Text([5, 62, 63], (1, 3), [90, 91])),
        ]
    )
    assert_parity(tiny("llama"), batch, LAYERS | dict(reading=reading), rtol=1e-9)


@pytest.mark.parametrize("reading", ["teacher_forced", "position_wise"])
def test_no_pair_of_the_batch_has_an_english_answer(reading):
    """The collator then makes a table of answers without columns."""
    texts = [Text([3, 4, 50, 51], (1, 4), [80, 81]), Text([3, 4, 52], (1, 3), [82])]
    batch = collate([Example(text, Text([5, 60, 61], (1, 3), [])) for text in texts])
    bare = {**batch, "english_answer_ids": batch["english_answer_ids"][:, :0]}
    method = Method(tiny("llama"), [DeepSupervisionConfig(**LAYERS, reading=reading)])
    output = method(bare)
    assert output["terms"]["english_thinking"].sum == 0.0 and int(output["terms"]["english_thinking"].count) == 0
    assert torch.equal(output["loss"], method(batch)["loss"])
    output["loss"].backward()


@pytest.mark.parametrize("reading", ["teacher_forced", "position_wise"])
def test_the_english_questions_are_built_once_per_step(monkeypatch, reading):
    """Their width makes the host wait for the device; counts alone are known without it."""
    built = []
    original = module.english_question
    monkeypatch.setattr(module, "english_question", lambda batch: built.append(1) or original(batch))
    method = Method(tiny("llama"), [DeepSupervisionConfig(**LAYERS, reading=reading)])
    method.counts(random_batch())
    assert not built
    method(random_batch())
    assert len(built) == 1


def test_masked_labels_leave_the_teacher_forced_terms_alone():
    batch = without_labels(random_batch(6))
    assert_parity(tiny("llama"), batch, dict(LAYERS), rtol=1e-9)


# Who receives a gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("reading", ["teacher_forced", "position_wise"])
@pytest.mark.parametrize("layer", [2, 4])
def test_no_gradient_to_head_or_norm_through_the_logits_signal(reading, final_norm, layer):
    model = tiny("llama")
    config = DeepSupervisionConfig(conversion_layer=layer, thinking_layer=layer, reading=reading, final_norm=final_norm)
    method = Method(model, [config])
    for name in TERMS:
        method.zero_grad(set_to_none=True)
        method(random_batch())["terms"][name].sum.backward()
        assert model.lm_head.weight.grad is None or not model.lm_head.weight.grad.any()
        assert model.model.norm.weight.grad is None or not model.model.norm.weight.grad.any()
        for number, block in enumerate(model.model.layers, start=1):
            grads = [p.grad for p in block.parameters()]
            if number <= layer:
                assert all(g is not None and g.any() for g in grads), f"layer {number} should learn"
            else:
                assert all(g is None or not g.any() for g in grads), f"layer {number} lies above the signal"


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("pooling", ["mean", "last_token"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_english_side_moves_only_if_asked(name, pooling, stop_gradient):
    """Target and English texts share no token, so the rows of the embedding tell which side a gradient came from."""
    batch = collate(
        [
            Example(Text([3, 10, 11, 12, 4], (1, 4), [20]), Text([50, 60, 61, 62], (1, 4), [70])),
            Example(Text([3, 13, 14, 4], (1, 3), [21]), Text([50, 63, 64, 51], (1, 3), [71])),
        ]
    )
    model = tiny("llama")
    options = LAYERS | dict(language_conversion="feature", english_thinking="feature", pooling=pooling)
    config = DeepSupervisionConfig(stop_gradient=stop_gradient, **options)
    Method(model, [config])(batch)["terms"][name].sum.backward()
    moved = set(model.model.embed_tokens.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist())
    assert moved & {10, 11, 12, 13, 14}
    assert bool(moved & {60, 61, 62, 63, 64}) is not stop_gradient


# Weight 0 ----------------------------------------------------------------------------------------------------------


def lora_with_dropout():
    torch.manual_seed(3)
    return get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))


def full_with_dropout():
    return tiny("llama", attention_dropout=0.1)


ZERO_WEIGHT_CASES = {
    "teacher_forced": dict(reading="teacher_forced"),
    "position_wise": dict(reading="position_wise"),
    "feature": dict(language_conversion="feature", english_thinking="feature"),
    "feature_both_sides": dict(language_conversion="feature", english_thinking="feature", stop_gradient=False),
    "mixed": dict(language_conversion="feature", english_thinking="logits"),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", ZERO_WEIGHT_CASES)
@pytest.mark.parametrize("build", [lora_with_dropout, full_with_dropout])
def test_weight_zero_is_plain_fine_tuning_bit_for_bit(build, case, checkpointing):
    """Two steps, with dropout: the losses, the gradients, and the random numbers left for the next step."""
    zero = DeepSupervisionConfig(conversion_weight=0.0, thinking_weight=0.0, **LAYERS, **ZERO_WEIGHT_CASES[case])
    results = []
    for wrap in (Method, lambda model: Method(model, [zero])):
        method = wrap(build()).train()
        if checkpointing:
            method.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(11)
        steps = []
        for seed in (0, 1):
            output = method(random_batch(seed))
            steps.append((output["loss"].detach(), gradients(output["loss"], method.model)))
        results.append((steps, torch.get_rng_state(), output["terms"]))
    (plain_steps, plain_random, _), (steps, random, terms) = results
    for (loss, grads), (plain_loss, plain_grads) in zip(steps, plain_steps, strict=True):
        assert torch.equal(loss, plain_loss)
        assert_gradients(grads, plain_grads, rtol=0, bitwise=True)
    assert torch.equal(random, plain_random)
    for name in TERMS:
        assert terms[name].sum > 0 and not terms[name].sum.requires_grad


def test_one_weight_zero_measures_that_term_and_trains_on_the_other():
    model = tiny("llama")
    batch, options = random_batch(), dict(LAYERS)
    output = Method(model, [DeepSupervisionConfig(conversion_weight=0.0, **options)])(batch)
    expected = deep_supervision(model, batch, **options)
    assert_terms(output["terms"], expected, 1e-9)
    assert_gradients(
        gradients(output["loss"], model), gradients(loss_of(expected, {"language_conversion": 0.0}), model), 1e-9
    )


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(conversion_layer=0), ["deep_supervision.conversion_layer", "0", "1..4"]),
        (dict(thinking_layer=5), ["deep_supervision.thinking_layer", "5", "1..4"]),
        (dict(language_conversion="logit"), ["deep_supervision.language_conversion", "'logit'", "logits"]),
        (dict(english_thinking=True), ["deep_supervision.english_thinking", "True"]),
        (dict(reading="parallel"), ["deep_supervision.reading", "'parallel'", "teacher_forced"]),
        (dict(pooling="max"), ["deep_supervision.pooling", "'max'", "last_token"]),
        (dict(conversion_weight=-1.0), ["deep_supervision.conversion_weight", "-1.0"]),
        (dict(thinking_weight=float("nan")), ["deep_supervision.thinking_weight", "nan"]),
        (dict(language_conversion="off", english_thinking="off"), ["off", "plain fine-tuning"]),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_bad_options_are_named(options, words):
    with pytest.raises(PivotuneError) as caught:
        Method(tiny("llama"), [DeepSupervisionConfig(**(LAYERS | options))])
    for word in words:
        assert word in str(caught.value)


def test_the_layer_of_a_term_that_is_off_does_not_matter():
    config = DeepSupervisionConfig(language_conversion="off", thinking_layer=2)
    assert set(Method(tiny("llama"), [config])(random_batch())["terms"]) == {"lm", "english_thinking"}
