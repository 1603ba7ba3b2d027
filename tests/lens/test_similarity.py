from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import torch

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError
from pivotune.lens.similarity import (
    LinearCKA,
    PairBlocks,
    _PoolingStatistics,
    compare_pairs,
    measure_similarity,
)
from tests.batches import collate, examples_of, random_batch, random_examples
from tests.families import FAMILIES, tiny
from tests.reference import lens_similarity as reference

MEASURES = ("parallel", "non_parallel", "mexa", "retrieval_to_english", "retrieval_from_english")


def vectors(n: int, d: int = 6, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs near enough that retrieval succeeds for some and fails for some."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d))
    return x, x + noise * draw.normal(size=(n, d))


def blocks_of(x: np.ndarray, y: np.ndarray, block: int, sizes: list[int]) -> dict[str, float]:
    """The streaming measures of one layer, fed in parts of these sizes."""
    sums, count = torch.zeros(5, dtype=torch.float64), 0

    def use(x_GNd: torch.Tensor, y_GNd: torch.Tensor, new: int) -> None:
        nonlocal count
        count += new
        sums.add_(torch.stack([v.double().sum() for v in compare_pairs(x_GNd[0], y_GNd[0], new)]))

    blocks = PairBlocks(1, x.shape[1], block, use)
    for a, b in zip(*(torch.from_numpy(v).split(sizes) for v in (x, y)), strict=True):
        blocks.add(a[None], b[None])
    blocks.finish()
    assert count == len(x)
    parallel, non_parallel, to_english, from_english, mexa = (sums / count).tolist()
    return dict(zip(MEASURES, (parallel, non_parallel, mexa, to_english, from_english), strict=True))


@pytest.mark.parametrize("n,block,sizes", [
    (12, 12, [5, 7]),
    (12, 4, [1, 2, 9]),
    (14, 4, [3, 3, 8]),
    (7, 100, [7]),
    (9, 2, [4, 5]),
    (13, 4, [13]),
])  # fmt: skip
def test_all_pair_measures_equal_the_reference_per_block(n, block, sizes):
    x, y = vectors(n, seed=n)
    ours, expected = blocks_of(x, y, block, sizes), reference.compare(x, y, block)
    assert 0 < expected["mexa"] < 1, "a case that shows nothing"
    for name in MEASURES:
        assert ours[name] == pytest.approx(expected[name], rel=1e-12, abs=1e-12), name


def test_batches_do_not_matter():
    x, y = vectors(23)
    assert blocks_of(x, y, 6, [23]) == blocks_of(x, y, 6, [1] * 23) == blocks_of(x, y, 6, [6, 6, 6, 5])


def test_perfect_and_reversed_translations():
    x = torch.eye(5, dtype=torch.float64)
    same = compare_pairs(x, 3.0 * x)
    assert same.parallel.tolist() == [1.0] * 5 and same.non_parallel.tolist() == [0.0] * 5
    assert same.mexa.all() and same.to_english.all() and same.from_english.all()
    other = compare_pairs(x, x.flip(0))  # the middle row is its own mirror image
    assert other.mexa.tolist() == [False, False, True, False, False]


def test_one_direction_alone_is_not_mexa():
    # x_1 lies nearer to y_0 than x_0 does: y_0 finds the wrong question, though x_0 finds y_0.
    x = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.2]])
    y = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = compare_pairs(x, y)
    assert found.to_english.tolist() == [True, False]
    assert found.from_english.tolist() == [False, True]
    assert found.mexa.tolist() == [False, False]


def test_equal_texts_are_misses():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 300, generator=draw).expand(50, -1) for _ in range(2))
    found = compare_pairs(x, y)
    assert not found.to_english.any() and not found.from_english.any() and not found.mexa.any()


def test_zero_vectors_have_cosine_zero():
    found = compare_pairs(torch.zeros(3, 4), torch.randn(3, 4))
    assert found.parallel.tolist() == [0.0] * 3 and not found.mexa.any()


@pytest.mark.parametrize("n", [2, 5, 40])
def test_cka_equals_the_gram_form(n):
    x, y = vectors(n, d=7, seed=n)
    streamed = LinearCKA(7)
    for start in range(0, n, 3):
        streamed.add(torch.from_numpy(x[start : start + 3]), torch.from_numpy(y[start : start + 3]))
    assert streamed.count == n
    assert streamed.value() == pytest.approx(reference.cka(x, y), rel=1e-12)
    centred = [v - v.mean(axis=0) for v in (x, y)]
    np.testing.assert_allclose(streamed.products[2].numpy(), centred[0].T @ centred[1], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(streamed.mean.numpy(), [x.mean(axis=0), y.mean(axis=0)], rtol=1e-12, atol=1e-12)


def test_cka_keeps_its_digits_far_from_the_origin():
    x, y = vectors(30, d=5)
    near, far = LinearCKA(5), LinearCKA(5)
    for start in range(0, 30, 4):
        a, b = (torch.from_numpy(v[start : start + 4]) for v in (x, y))
        near.add(a, b)
        far.add(a + 1e6, b - 3e5)
    assert far.value() == pytest.approx(near.value(), rel=1e-7)  # raw sums of squares keep three digits here


def test_cka_ignores_rotation_and_scale_and_is_one_for_equal_clouds():
    x, _ = vectors(20, d=5)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    streamed = LinearCKA(5)
    streamed.add(torch.from_numpy(x), torch.from_numpy(4.0 * x @ rotation + 2.0))
    assert streamed.value() == pytest.approx(1.0, rel=1e-12)


def test_cka_of_a_point_is_unknown():
    streamed = LinearCKA(5)
    streamed.add(torch.ones(4, 5), torch.randn(4, 5))
    assert math.isnan(streamed.value())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_reference(family):
    model = tiny(family)
    batches = [random_batch(seed, (True, False, True, True)) for seed in range(3)]
    similarity = measure_similarity(Anatomy(model), batches, block=4)
    assert (similarity.pairs, similarity.pool, similarity.without_english) == (9, 4, 3)
    examples = [example for batch in batches for example in examples_of(batch)]
    for pooling, ours in similarity.poolings.items():
        x, y = reference.question_vectors(model, examples, pooling)
        for layer in range(len(x)):
            for name, expected in reference.compare(x[layer], y[layer], 4).items():
                assert getattr(ours, name)[layer] == pytest.approx(expected, rel=1e-9, abs=1e-9), (pooling, layer, name)
            assert ours.cka[layer] == pytest.approx(reference.cka(x[layer], y[layer]), rel=1e-9)
        assert len(ours.mexa) == len(ours.cka) == len(x)


def test_padding_on_either_side_and_batch_size_do_not_matter():
    anatomy, examples = Anatomy(tiny("llama")), random_examples(0, [True] * 7)
    plain = measure_similarity(anatomy, [collate(examples)])
    wide = measure_similarity(anatomy, [collate(examples, pad=5, extra=4)])
    left = measure_similarity(anatomy, [padded_left(collate(examples, extra=2))])
    single = measure_similarity(anatomy, [collate([example]) for example in examples])
    for other in (wide, left, single):
        for pooling, measures in vars_of(plain).items():
            for name, values in measures.items():
                np.testing.assert_allclose(vars_of(other)[pooling][name], values, rtol=1e-9, err_msg=name)


def vars_of(similarity):
    return {pooling: vars(measures) for pooling, measures in similarity.poolings.items()}


def padded_left(batch):
    """The same rows with their padding in front."""
    moved = dict(batch)
    for ids, mask in (("input_ids", "attention_mask"), ("english_input_ids", "english_attention_mask")):
        lengths = batch[mask].sum(dim=1).tolist()
        for name in (ids, mask):
            moved[name] = torch.stack([row.roll(len(row) - n) for row, n in zip(batch[name], lengths, strict=True)])
    return moved


def test_equal_texts_in_both_languages_are_parallel_everywhere():
    examples = random_examples(0, [True] * 5)
    for example in examples:
        example.english = example.target
    similarity = measure_similarity(Anatomy(tiny("qwen2")), [collate(examples)])
    for measures in similarity.poolings.values():
        for name in ("parallel", "mexa", "retrieval_to_english", "retrieval_from_english", "cka"):
            np.testing.assert_allclose(getattr(measures, name), 1.0, rtol=1e-12)


def test_bfloat16_models_are_measured_in_float32():
    batches = [random_batch(0, [True] * 6)]
    exact = measure_similarity(Anatomy(tiny("llama")), batches)
    rough = measure_similarity(Anatomy(tiny("llama", dtype=torch.bfloat16)), batches)
    np.testing.assert_allclose(rough.poolings["mean"].parallel, exact.poolings["mean"].parallel, atol=0.05)


def test_memory_does_not_grow_with_the_data():
    anatomy = Anatomy(tiny("llama"))

    def retained(pairs: int) -> int:
        statistics = _PoolingStatistics(anatomy, 4, {2, 3}, "cpu")
        for _ in range(pairs):
            statistics.add(*torch.randn(2, anatomy.num_layers, 1, anatomy.hidden_size))
        kept = [statistics.sums, statistics.blocks._kept]
        kept += [tensor for cka in statistics.cka.values() for tensor in (cka.mean, cka.products)]
        gc.collect()
        assert not [v for v in vars(statistics.blocks).values() if isinstance(v, list)]
        return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept)

    d, layers = anatomy.hidden_size, anatomy.num_layers
    assert retained(5) == retained(50) == 5 * layers + 2 * layers * 4 * d + 2 * (3 * d * d + 2 * d)


def test_batches_are_taken_one_at_a_time():
    alive: list[weakref.ref] = []

    def stream():
        for seed in range(6):
            batch = random_batch(seed)
            alive.append(weakref.ref(batch["input_ids"]))
            yield batch
            del batch
            assert sum(ref() is not None for ref in alive) <= 2

    measure_similarity(Anatomy(tiny("llama")), stream())
    assert len(alive) == 6


def test_the_model_is_left_as_it_was():
    model = tiny("llama").train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    measure_similarity(Anatomy(model), [random_batch(0)])
    assert [module.training for module in model.modules()] == before
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_options():
    anatomy = Anatomy(tiny("llama"))
    similarity = measure_similarity(anatomy, [random_batch(0)], poolings=["last_token"], cka_layers=[2])
    assert list(similarity.poolings) == ["last_token"]
    assert [math.isnan(value) for value in similarity.poolings["last_token"].cka] == [True, False, True, True]
    with pytest.raises(PivotuneError, match="cka_layers: got 5"):
        measure_similarity(anatomy, [random_batch(0)], cka_layers=[5])
    with pytest.raises(PivotuneError, match="block: got 1"):
        measure_similarity(anatomy, [random_batch(0)], block=1)
    with pytest.raises(PivotuneError, match="poolings: got 'max'"):
        measure_similarity(anatomy, [random_batch(0)], poolings=["max"])


def test_too_few_pairs():
    batches = [random_batch(0, (True, False)), random_batch(1, (False, False))]
    with pytest.raises(PivotuneError, match=r"at least 2 examples .* have 1 \(3 without one\)"):
        measure_similarity(Anatomy(tiny("llama")), batches)


def test_states_that_are_not_finite():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(PivotuneError, match="layer 3 has states that are not finite"):
        measure_similarity(Anatomy(model), [random_batch(0)])
