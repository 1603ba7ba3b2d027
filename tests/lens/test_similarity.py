from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pivotune.anatomy import Anatomy
from pivotune.data import ParallelExample, encode
from pivotune.errors import PivotuneError
from pivotune.lens import similarity as module
from pivotune.lens.similarity import (
    LinearCKA,
    PairBlocks,
    PairStatistics,
    SimilarityMeasure,
    compare_pairs,
    measure_similarity,
)
from tests.batches import Example, Text
from tests.data.tiny_tokenizers import tokenizer_of
from tests.families import FAMILIES, tiny
from tests.lens.readings import random_pairs, readings, tables_of
from tests.reference import lens_similarity as reference

POOLINGS = ("mean", "last_token")
SHARES = ("retrieval_to_english", "retrieval_from_english", "mexa")


def vectors(n: int, d: int = 6, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs near enough that retrieval succeeds for some and fails for some."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d))
    return x, x + noise * draw.normal(size=(n, d))


def blocks_of(x: np.ndarray, y: np.ndarray, block: int, sizes: list[int]) -> dict[str, list[float]]:
    """The statistics of each pair, of one layer, fed in parts of these sizes."""
    blocks = PairBlocks(1, x.shape[1], block)
    found: list[PairStatistics] = []
    for a, b in zip(*(torch.from_numpy(v).split(sizes) for v in (x, y)), strict=True):
        found += [compare_pairs(x_Gnd[0], y_Gnd[0], new) for x_Gnd, y_Gnd, new in blocks.add(a[None], b[None])]
    found += [compare_pairs(x_Gnd[0], y_Gnd[0], new) for x_Gnd, y_Gnd, new in blocks.finish()]
    parts = zip(*found, strict=True)
    return {name: torch.cat(part).tolist() for name, part in zip(PairStatistics._fields, parts, strict=True)}


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
    assert 0 < sum(expected["mexa"]) < n, "a case that shows nothing"
    assert set(ours) == set(expected)
    for name, values in expected.items():
        assert ours[name] == pytest.approx(values, rel=1e-12, abs=1e-12), name


def test_batches_do_not_matter():
    x, y = vectors(23)
    assert blocks_of(x, y, 6, [23]) == blocks_of(x, y, 6, [1] * 23) == blocks_of(x, y, 6, [6, 6, 6, 5])


def test_perfect_and_reversed_translations():
    x = torch.eye(5, dtype=torch.float64)
    same = compare_pairs(x, 3.0 * x)
    assert same.parallel.tolist() == [1.0] * 5 and same.non_parallel.tolist() == [0.0] * 5
    assert same.mexa.all() and same.retrieval_to_english.all() and same.retrieval_from_english.all()
    other = compare_pairs(x, x.flip(0))  # the middle row is its own mirror image
    assert other.mexa.tolist() == [False, False, True, False, False]


def test_one_direction_alone_is_not_mexa():
    # x_1 lies nearer to y_0 than x_0 does: y_0 finds the wrong question, though x_0 finds y_0.
    x = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.2]])
    y = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = compare_pairs(x, y)
    assert found.retrieval_to_english.tolist() == [True, False]
    assert found.retrieval_from_english.tolist() == [False, True]
    assert found.mexa.tolist() == [False, False]


def test_equal_texts_are_misses():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 300, generator=draw).expand(50, -1) for _ in range(2))
    found = compare_pairs(x, y)
    assert not found.retrieval_to_english.any() and not found.retrieval_from_english.any() and not found.mexa.any()


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
    assert streamed.value() is None


def test_cka_keeps_as_much_as_it_says():
    streamed = LinearCKA(7)
    streamed.add(*torch.randn(2, 20, 7))
    assert streamed.mean.nbytes + streamed.products.nbytes == LinearCKA.memory(7) == 24 * 7**2 + 16 * 7


# The measure ---------------------------------------------------------------------------------------------------------


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert found[name].dtype == table.dtype
        np.testing.assert_allclose(found[name], table, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_reference(family):
    model, pairs = tiny(family), random_pairs(9)
    measure = SimilarityMeasure(Anatomy(model), block=4)
    tables, found = tables_of(measure, readings(model, pairs, [3, 3, 3])), measure.summary()
    assert (found["pairs"], found["pool"], found["cka_left_out"]) == (9, 4, None)
    assert set(tables) == {f"{pooling}/{name}" for pooling in POOLINGS for name in PairStatistics._fields}
    for pooling in POOLINGS:
        x, y = reference.question_vectors(model, pairs, pooling)
        for layer in range(len(x)):
            for name, expected in reference.compare(x[layer], y[layer], 4).items():
                table = tables[f"{pooling}/{name}"]
                assert table.dtype == (torch.bool if name in SHARES else torch.float64)
                np.testing.assert_allclose(table[:, layer], expected, rtol=1e-9, atol=1e-9, err_msg=f"{layer} {name}")
            assert found["cka"][pooling][layer] == pytest.approx(reference.cka(x[layer], y[layer]), rel=1e-9)
        assert len(found["cka"][pooling]) == len(x) == table.shape[1]


def test_padding_and_batch_size_do_not_matter():
    model, pairs = tiny("llama"), random_pairs(7)
    measures = [SimilarityMeasure(Anatomy(model), block=3) for _ in range(4)]
    want = tables_of(measures[0], readings(model, pairs, [7]))
    close(tables_of(measures[1], readings(model, pairs, [7], pad=5, extra=4)), want)
    close(tables_of(measures[2], readings(model, pairs, [1] * 7)), want)
    close(tables_of(measures[3], readings(model, pairs, [2, 4, 1])), want)
    for measure in measures[1:]:
        for pooling in POOLINGS:
            cka = measures[0].summary()["cka"][pooling]
            assert measure.summary()["cka"][pooling] == pytest.approx(cka, rel=1e-9)


def test_two_models_hand_on_the_same_rows_at_the_same_time():
    pairs, sizes = random_pairs(11), [2, 5, 1, 3]
    models = tiny("llama"), tiny("qwen2", seed=1)
    measures = [SimilarityMeasure(Anatomy(model), block=4, poolings=["mean"]) for model in models]
    made = zip(*(readings(model, pairs, sizes) for model in models), strict=True)
    rows = [[len(m.add(r).get("mean/mexa", ())) for m, r in zip(measures, both, strict=True)] for both in made]
    rows.append([len(measure.finish()["mean/mexa"]) for measure in measures])
    assert rows == [[0, 0], [4, 4], [4, 4], [0, 0], [3, 3]]


def test_equal_texts_in_both_languages_are_parallel_everywhere():
    model, pairs = tiny("qwen2"), random_pairs(5)
    for pair in pairs:
        pair.english = pair.target
    measure = SimilarityMeasure(Anatomy(model))
    for name, table in tables_of(measure, readings(model, pairs, [5])).items():
        if not name.endswith("non_parallel"):
            np.testing.assert_allclose(table, 1.0, rtol=1e-12)
    for cka in measure.summary()["cka"].values():
        np.testing.assert_allclose(cka, 1.0, rtol=1e-12)


def test_bfloat16_models_are_measured_in_float32():
    pairs, found = random_pairs(6), []
    for dtype in (torch.float64, torch.bfloat16):
        model = tiny("llama", dtype=dtype)
        found.append(tables_of(SimilarityMeasure(Anatomy(model)), readings(model, pairs, [6]))["mean/parallel"])
    assert found[1].dtype == torch.float64
    np.testing.assert_allclose(found[1].mean(dim=0), found[0].mean(dim=0), atol=0.05)


def test_a_single_pair_is_compared_with_nothing():
    model = tiny("llama")
    measure = SimilarityMeasure(Anatomy(model))
    assert tables_of(measure, readings(model, random_pairs(1), [1])) == {}
    assert measure.summary() == {
        "pairs": 1,
        "pool": 1,
        "cka": {pooling: [None] * 4 for pooling in POOLINGS},
        "cka_left_out": None,
    }


def test_memory_does_not_grow_with_the_data():
    model = tiny("llama")
    anatomy = Anatomy(model)
    (reading,) = readings(model, random_pairs(1), [1])

    def retained(pairs: int) -> int:
        measure = SimilarityMeasure(anatomy, poolings=["mean"], block=4, cka_layers=[2, 3])
        for _ in range(pairs):
            measure.add(reading)
        blocks = measure._blocks["mean"]
        assert not [value for one in (measure, blocks) for value in vars(one).values() if isinstance(value, list)]
        sums = [tensor for cka in measure._cka["mean"].values() for tensor in (cka.mean, cka.products)]
        return sum(tensor.untyped_storage().nbytes() for tensor in [blocks._kept, *sums])

    d, layers = anatomy.hidden_size, anatomy.num_layers
    assert retained(5) == retained(50) == 8 * (2 * layers * 4 * d) + 2 * (24 * d * d + 16 * d)


def test_cka_of_all_layers_only_where_it_fits(monkeypatch):
    anatomy = Anatomy(tiny("llama"))
    needed = 2 * anatomy.num_layers * LinearCKA.memory(anatomy.hidden_size)
    monkeypatch.setattr(module, "CKA_MEMORY", needed)
    assert SimilarityMeasure(anatomy).summary()["cka_left_out"] is None
    monkeypatch.setattr(module, "CKA_MEMORY", needed - 1)
    measure = SimilarityMeasure(anatomy)
    assert "for all 4 layers; name some in cka_layers" in measure.summary()["cka_left_out"]
    assert not any(measure._cka.values())
    for asked in ([2], [], [1, 2, 3, 4]):
        named = SimilarityMeasure(anatomy, cka_layers=asked)
        assert named.summary()["cka_left_out"] is None and list(named._cka["mean"]) == asked


def test_options():
    model = tiny("llama")
    anatomy, pairs = Anatomy(model), random_pairs(4)
    measure = SimilarityMeasure(anatomy, poolings=["last_token"], cka_layers=[2])
    tables = tables_of(measure, readings(model, pairs, [4]))
    assert {name.split("/")[0] for name in tables} == {"last_token"}
    assert [value is None for value in measure.summary()["cka"]["last_token"]] == [True, False, True, True]
    with pytest.raises(PivotuneError, match="cka_layers: got 5"):
        SimilarityMeasure(anatomy, cka_layers=[5])
    with pytest.raises(PivotuneError, match="block: got 1"):
        SimilarityMeasure(anatomy, block=1)
    with pytest.raises(PivotuneError, match="poolings: got 'max'"):
        SimilarityMeasure(anatomy, poolings=["max"])


def test_states_that_are_not_finite():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(PivotuneError, match="layer 3 has states that are not finite"):
        tables_of(SimilarityMeasure(Anatomy(model)), readings(model, random_pairs(3), [3]))


# From examples -------------------------------------------------------------------------------------------------------

TOKENIZER = tokenizer_of("byte-level")
QUESTIONS = [
    ("保持健康的三个提示", "Give three tips for staying healthy."),
    ("定期运动", "Exercise at regular times."),
    ("充足的睡眠", "Sleep enough!"),
    ("饮食", "What should I eat?"),
    ("三", "Three."),
    ("饮食要均衡", "A diet must be balanced."),
    ("睡眠", "Describe sleep to me."),
]
EXAMPLES = [
    ParallelExample.from_dict(
        {"id": str(number), "language": "zh", "prompt": question, "english": {"prompt": english}}, answered=False
    )
    for number, (question, english) in enumerate(QUESTIONS)
]
UNPAIRED = ParallelExample.from_dict({"id": "x", "language": "zh", "prompt": "三", "completion": "三"})


def small_model(seed: int = 0):
    return tiny("llama", seed, vocab_size=len(TOKENIZER), pad_token_id=None)


def as_tokens(example: ParallelExample) -> Example:
    def text(side) -> Text:
        encoded = encode(side, TOKENIZER, "plain")
        return Text(encoded.prompt_ids, (encoded.question_start, encoded.question_end), [])

    return Example(text(example.text), text(example.english))


def test_estimates_of_examples_equal_the_reference():
    model = small_model()
    found = measure_similarity(Anatomy(model), TOKENIZER, [*EXAMPLES, UNPAIRED], block=4, batch_size=2)
    assert (found.pairs, found.pool, found.cka_left_out, found.skipped) == (7, 4, None, {"without English": 1})
    for pooling, ours in found.poolings.items():
        x, y = reference.question_vectors(model, [as_tokens(example) for example in EXAMPLES], pooling)
        for layer in range(len(x)):
            for name, values in reference.compare(x[layer], y[layer], 4).items():
                if name in SHARES:
                    interval = stats.binomtest(int(sum(values)), len(values)).proportion_ci(method="wilson")
                else:
                    interval = stats.ttest_1samp(values, 0).confidence_interval()
                expected = (sum(values) / len(values), *interval)
                assert getattr(ours, name)[layer] == pytest.approx(expected, rel=1e-9, abs=1e-9), (layer, name)
            assert ours.cka[layer] == pytest.approx(reference.cka(x[layer], y[layer]), rel=1e-9)


def test_the_model_is_left_as_it_was():
    model = small_model().train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    measure_similarity(Anatomy(model), TOKENIZER, EXAMPLES)
    assert [module.training for module in model.modules()] == before
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_too_few_pairs():
    with pytest.raises(PivotuneError, match=r"at least 2 examples .* have 1, 2 without English"):
        measure_similarity(Anatomy(small_model()), TOKENIZER, [UNPAIRED, EXAMPLES[0], UNPAIRED])
    with pytest.raises(PivotuneError, match="max_length: got 1"):
        measure_similarity(Anatomy(small_model()), TOKENIZER, EXAMPLES, max_length=1)
