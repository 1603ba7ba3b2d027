"""The connection of CC-Tuning, inside generate() and around forward passes, against the two-prefill reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.connection import connect, disconnect
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import CCTuningConfig
from pivotune.objectives.cc_tuning import LinearConnection
from tests.batches import random_batch, singles
from tests.families import FAMILIES, VOCAB, tiny
from tests.reference import cc_tuning as reference
from tests.reference import likelihood as likelihood_reference

PROMPTS = [14, 3, 9, 2]  # lengths; the first two lie beyond and within the sliding windows of tests/families.py
ENGLISH = [5, 8, 3, 6]
TOKENS = 20
GATE = 0.007


def draw(lengths: list[int], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def left_padded(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
    }


def connected(family: str, **options: Any) -> tuple[Any, LinearConnection, Tensor, Tensor]:
    """A tiny model with a random Decision Maker and Transform Matrix, connected."""
    model = tiny(family).eval()
    anatomy = Anatomy(model)
    generator = torch.Generator().manual_seed(5)
    config = CCTuningConfig(**options)
    L, d = anatomy.num_layers, anatomy.hidden_size
    decision_maker = torch.randn(L, d, dtype=torch.float64, generator=generator)
    shape = (L, d, d) if config.matrix == "per_layer" else (d, d)
    matrix = torch.randn(*shape, dtype=torch.float64, generator=generator) / d**0.5
    gate = torch.full((1,), GATE, dtype=torch.float64) if config.gate else None
    connection = LinearConnection(model, config, decision_maker, matrix, gate)
    connect(model, connection)
    return model, connection, decision_maker, matrix


def generated(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    inputs = left_padded(prompts)
    english = options.pop("english", None)
    if english is not None:
        options |= {f"english_{name}": tensor for name, tensor in left_padded(english).items()}
    options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_more_pass_of_the_last_token_equals_two_prefills(family: str, cache: str) -> None:
    """Left-padded batch, every family (sliding windows and soft-caps among them), matrix and real English."""
    model, _, decision_maker, matrix = connected(family)
    prompts, english = draw(PROMPTS, 1), draw(ENGLISH, 2)
    expected = reference.generate(model, decision_maker, prompts, TOKENS, matrix=matrix)
    assert generated(model, prompts, connection="matrix", cache_implementation=cache) == expected
    expected = reference.generate(model, decision_maker, prompts, TOKENS, english_prompts=english)
    assert generated(model, prompts, connection="english", english=english, cache_implementation=cache) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"connection_tokens": 2},
        {"connection_layer": 3, "relative_norm": 0.2},
        {"connection_tokens": 5, "connection_layer": 2},
        {"gate": True},
        {"gate": True, "relative_norm": 2.0, "connection_layer": 2},
        {"connection_layer": 4},
        {"selection": "soft", "temperature": 0.5},
        {"matrix": "per_layer"},
    ],
    ids=str,
)
def test_options_equal_the_reference(options: dict[str, Any]) -> None:
    model, _, decision_maker, matrix = connected("mistral", **options)
    prompts = draw(PROMPTS, 3)
    expected = reference.generate(model, decision_maker, prompts, TOKENS, matrix=matrix, **known(options))
    assert generated(model, prompts) == expected


def known(options: dict[str, Any]) -> dict[str, Any]:
    """As the reference takes them: the gate as what it makes, the matrix by its shape."""
    factor = {"factor": torch.tanh(torch.tensor(100 * GATE, dtype=torch.float64))} if options.get("gate") else {}
    return {k: v for k, v in options.items() if k not in ("matrix", "gate")} | factor


def test_a_run_without_its_gate_is_refused() -> None:
    model, options = tiny("llama"), CCTuningConfig(gate=True)
    with pytest.raises(PivotuneError, match=r"gate\.weight: is missing, and the run was trained with cc_tuning\.gate"):
        LinearConnection(model, options, torch.zeros(4, 32), None)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_first_token_logits_equal_the_reference(family: str) -> None:
    model, _, decision_maker, matrix = connected(family)
    prompt = draw([11], 4)[0]
    seen: list[Tensor] = []  # generate() itself hands logits out in float32
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.logits[0, -1]))
    generated(model, [prompt], max_new_tokens=1)
    handle.remove()
    pick = reference.choose(
        decision_maker,
        reference.transformed(reference.last_feed_forward(model, prompt), matrix),
        reference.last_embedding(model, prompt),
        noise=None,
        temperature=1.0,
        selection="hard",
    )
    lent = reference.Connection(1, [len(prompt) - 1], pick)
    torch.testing.assert_close(seen[-1], reference.run(model, prompt, lent).logits[-1], rtol=1e-9, atol=1e-9)


def test_it_matters_and_can_be_switched_off() -> None:
    """The connection changes the answers of this model; none, disconnect() and unconnected rows restore them."""
    model, *_ = connected("llama")
    prompts = draw(PROMPTS, 6)
    with_matrix = generated(model, prompts)
    plain = generated(model, prompts, connection="none")
    assert all(a != b for a, b in zip(with_matrix, plain, strict=True))
    assert plain == reference.generate(model, None, prompts, TOKENS)
    some = generated(model, prompts, connected=torch.tensor([True, False, True, False]))
    assert some == [with_matrix[0], plain[1], with_matrix[2], plain[3]]
    disconnect(model)
    assert generated(model, prompts) == plain
    assert not {"generate", "_prefill"} & set(vars(model))


def test_nothing_random_is_left_at_inference() -> None:
    model, connection, *_ = connected("llama")
    model.train(), connection.decision_maker.train()
    connect(
        model, LinearConnection(model, connection.config, connection.decision_maker.weight, connection.transform_matrix)
    )
    prompts = draw(PROMPTS, 7)
    torch.manual_seed(0)
    first = generated(model, prompts)
    torch.manual_seed(1)
    assert generated(model, prompts) == first


@pytest.mark.parametrize("mode", ["matrix", "english"])
def test_beams_and_several_samples(mode: str) -> None:
    """Rows that generate() multiplies keep the connection of their prompt: batched equals one by one."""
    model, *_ = connected("llama")
    prompts, english = draw(PROMPTS, 8), draw(ENGLISH, 9)
    options = {"num_beams": 3, "num_return_sequences": 2, "connection": mode}
    together = generated(model, prompts, english=english if mode == "english" else None, **options)
    alone = [
        answer
        for p, e in zip(prompts, english, strict=True)
        for answer in generated(model, [p], english=[e] if mode == "english" else None, **options)
    ]
    assert together == alone
    sampled = generated(model, prompts[:1], do_sample=True, num_return_sequences=3)
    assert len(sampled) == 3


def test_a_wrapped_model_generates_with_the_connection() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"])).eval()
    plain_lm = tiny("llama").eval()  # a fresh adapter changes nothing
    _, _, decision_maker, matrix = connected("llama")
    connect(model, LinearConnection(model, CCTuningConfig(), decision_maker, matrix))
    prompts = draw(PROMPTS, 10)
    assert generated(model, prompts) == reference.generate(plain_lm, decision_maker, prompts, TOKENS, matrix=matrix)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"connection": "matrx"}, ["connection", "'matrx'", "matrix, english, none"]),
        ({"connection": "english"}, ["english_input_ids", 'connection="matrix"']),
        ({"use_cache": False}, ["use_cache", 'connection="none"']),
        ({"connected": torch.tensor([True, False, True])}, ["connected", "3 rows", "4 prompts"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_requests_that_cannot_be_met_say_why(options: dict[str, Any], words: list[str]) -> None:
    model, *_ = connected("llama")
    with pytest.raises(PivotuneError) as error:
        generated(model, draw(PROMPTS, 11), **options)
    assert all(word in str(error.value) for word in words)
    assert "_prefill" not in vars(model)


def test_matrix_mode_needs_a_matrix_and_tensors_that_fit() -> None:
    model = tiny("llama")
    weight = torch.zeros(4, 32)
    with pytest.raises(PivotuneError, match="needs a Transform Matrix"):
        connect(model, LinearConnection(model, CCTuningConfig(), weight), "matrix")
    connect(model, LinearConnection(model, CCTuningConfig(), weight), "english")
    with pytest.raises(PivotuneError, match="another model"):
        LinearConnection(model, CCTuningConfig(), torch.zeros(5, 32))


@pytest.mark.parametrize("options", [{}, {"selection": "soft", "temperature": 0.5}], ids=str)
def test_shares_are_those_of_the_pick(options: dict[str, Any]) -> None:
    _, connection, *_ = connected("gemma", **options)
    v = torch.randn(6, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(12))
    last = torch.arange(10, 16)
    shares = connection.shares(v, last)
    assert shares.shape == (6, 4)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(connection.pick(v, last), (shares[..., None] * v).sum(dim=1), rtol=1e-12, atol=1e-12)
    assert bool((shares.max(dim=1).values == 1).all()) is (not options)


# The connection around a forward pass ---------------------------------------------------------------------------------

MANNERS = [
    {},
    {"connection_tokens": 3},
    {"connection_tokens": 2, "connection_layer": 2, "relative_norm": 0.5},
    {"connection_tokens": 3, "connection_layer": 2, "selection": "soft", "temperature": 0.5},
    {"selection": "soft", "matrix": "per_layer"},
    {"gate": True, "relative_norm": 1.0},
]


def padded(rows: list[list[int]], side: str, extra: int = 0) -> dict[str, Tensor]:
    width = max(map(len, rows)) + extra
    gaps = [width - len(r) for r in rows]
    left = side == "left"
    return {
        "input_ids": torch.tensor(
            [[7] * (g * left) + r + [7] * (g * (not left)) for g, r in zip(gaps, rows, strict=True)]
        ),
        "attention_mask": torch.tensor(
            [[0] * (g * left) + [1] * len(r) + [0] * (g * (not left)) for g, r in zip(gaps, rows, strict=True)]
        ),
    }


@torch.no_grad()
def continued(
    model: Any,
    connection: LinearConnection,
    contexts: list[list[int]],
    continuations: list[list[int]],
    english: list[list[int]] | None = None,
    side: str = "right",
) -> list[Tensor]:
    """(C, V) logits that predict each continuation, all rows in one batch."""
    pairs = {f"english_{k}": v for k, v in padded(english, side).items()} if english else {}
    vectors = connection.lend(**padded(contexts, side, extra=2), **pairs)
    whole = padded([a + b for a, b in zip(contexts, continuations, strict=True)], side)
    starts = whole["attention_mask"].argmax(dim=1)
    last = starts + torch.tensor([len(c) for c in contexts]) - 1
    positions = (whole["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    with connection.at(vectors, last):
        logits = model(**whole, position_ids=positions, use_cache=False).logits
    return [row[at : at + len(c)] for row, at, c in zip(logits, last.tolist(), continuations, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_equal_two_whole_passes(family: str, side: str) -> None:
    """Every family, padded on either side, matrix and real English."""
    model, connection, decision_maker, matrix = connected(family)
    contexts, continuations, english = draw(PROMPTS, 40), draw([2, 7, 1, 4], 41), draw(ENGLISH, 42)
    pairs = list(zip(contexts, continuations, strict=True))
    expected = [likelihood_reference.continuation_logits(model, decision_maker, a, b, matrix=matrix) for a, b in pairs]
    for ours, theirs in zip(continued(model, connection, contexts, continuations, side=side), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    lent = continued(model, connection, contexts, continuations, english, side)
    for (a, b), e, ours in zip(pairs, english, lent, strict=True):
        theirs = likelihood_reference.continuation_logits(model, decision_maker, a, b, english=e)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["english", "matrix"])
@pytest.mark.parametrize("options", MANNERS, ids=str)
def test_continuations_in_every_manner(options: dict[str, Any], mode: str) -> None:
    model, connection, decision_maker, matrix = connected("gemma2", **options)
    contexts, continuations, english = draw(PROMPTS, 43), draw([3, 1, 5, 2], 44), draw(ENGLISH, 45)
    for side in ("left", "right"):
        ours = continued(model, connection, contexts, continuations, english if mode == "english" else None, side)
        for row, (a, b, e) in enumerate(zip(contexts, continuations, english, strict=True)):
            lent = {"english": e} if mode == "english" else {"matrix": matrix}
            theirs = likelihood_reference.continuation_logits(model, decision_maker, a, b, **lent, **known(options))
            torch.testing.assert_close(ours[row], theirs, rtol=1e-9, atol=1e-9)
            plain = likelihood_reference.continuation_logits(model, None, a, b)
            assert (theirs - plain).abs().max() > 1e-3, "the connection changes nothing: the comparison would be empty"


@pytest.mark.parametrize("options", MANNERS[:3], ids=str)
@pytest.mark.parametrize("family", ["llama3", "mistral", "gemma3_text", "olmo2", "gpt_neox"])
def test_continuations_equal_the_forward_of_training(family: str, options: dict[str, Any]) -> None:
    """The language-modelling term in evaluation mode is minus the sum of the answer's log-probabilities."""
    method = Method(tiny(family), [CCTuningConfig(**options)]).double().eval()
    with torch.no_grad():
        method.objectives["cc_tuning"].decision_maker.weight.normal_()
        connection = LinearConnection(
            method.model, method.objectives["cc_tuning"].options, method.objectives["cc_tuning"].decision_maker.weight
        )
        for batch in singles(random_batch(46, [True] * 4)):
            length = int(batch["prompt_length"])
            tokens, english = batch["input_ids"][0].tolist(), batch["english_input_ids"][0].tolist()
            context, answer = tokens[:length], tokens[length:]
            (logits,) = continued(method.model, connection, [context], [answer], [english])
            total, _ = likelihood_reference.log_likelihood(logits, answer)
            assert -total == pytest.approx(float(method(batch)["terms"]["lm"].sum), rel=1e-9)


@pytest.mark.parametrize("options", MANNERS[:3], ids=str)
@pytest.mark.parametrize("mode", ["none", "english", "matrix"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "phi3", "cohere"])
def test_continuations_equal_generation(family: str, mode: str, options: dict[str, Any]) -> None:
    """Whatever generate() answers has the logits it was chosen by, token for token."""
    model, connection, *_ = connected(family, **options)
    contexts, english = draw(PROMPTS, 47), draw(ENGLISH, 48)
    seen: list[Tensor] = []  # generate() itself hands logits out in float32
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.logits[:, -1]))
    answers = generated(
        model, contexts, connection=mode, english=english if mode == "english" else None, max_new_tokens=6
    )
    handle.remove()
    chosen_by = torch.stack(seen[-6:], dim=1)  # before them come the looks at the prompts
    if mode == "none":
        ours = [
            likelihood_reference.continuation_logits(model, None, a, b) for a, b in zip(contexts, answers, strict=True)
        ]
    else:
        ours = continued(model, connection, contexts, answers, english if mode == "english" else None, "left")
    for row, logits in enumerate(ours):
        torch.testing.assert_close(logits, chosen_by[row], rtol=1e-9, atol=1e-9)


def test_a_row_of_zeros_is_not_connected_and_nothing_is_left() -> None:
    model, connection, *_ = connected("llama")
    (context, other), (continuation, _) = draw([5, 5], 49), draw([3, 3], 50)
    batch = torch.tensor([context + continuation, other + continuation])
    with torch.no_grad():
        plain = model(batch).logits
        vectors = connection.lend(batch[:, :5], torch.ones(2, 5, dtype=torch.long))
        vectors[1] = 0.0
        with connection.at(vectors, torch.tensor([4, 4])):
            lent = model(batch).logits
        assert not torch.equal(lent[0, 4:], plain[0, 4:])
        torch.testing.assert_close(lent[0, :4], plain[0, :4], rtol=1e-9, atol=1e-9)
        assert torch.equal(lent[1], plain[1])
        assert torch.equal(model(batch).logits, plain)


def test_lending_needs_a_matrix_or_english() -> None:
    model = tiny("llama")
    connection = LinearConnection(model, CCTuningConfig(), torch.zeros(4, 32))
    ids = torch.tensor([[5, 6]])
    with pytest.raises(PivotuneError, match="needs a Transform Matrix"):
        connection.lend(ids, torch.ones_like(ids))
    assert connection.lend(ids, torch.ones_like(ids), ids).shape == (1, 32)
