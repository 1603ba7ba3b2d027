from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError
from pivotune.lens import projection
from pivotune.lens.activations import Activations, PairActivations
from pivotune.lens.projection import ProjectionMeasure
from tests.families import tiny

SIZE, TOKENS, LAYERS = 8, 5, 2


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return Anatomy(tiny("llama"))


def side(states_LNTd: Tensor) -> Activations:
    """The question is tokens 1 and 2 of each row."""
    rows = states_LNTd.shape[1]
    ids = torch.zeros(rows, TOKENS, dtype=torch.long)
    hidden = {layer: states for layer, states in enumerate(states_LNTd, start=1)}
    start = torch.ones(rows, dtype=torch.long)
    return Activations(ids, torch.ones_like(ids), hidden, start, start + 2, start + 2)


def random_reading(languages: str, seed: int = 0, shift: float = 3.0) -> PairActivations:
    """A pair for each of the languages, "zh vi zh"; the target side lies beside the English one."""
    draw, rows = torch.Generator().manual_seed(seed), len(languages.split())
    english, target = torch.randn(2, LAYERS, rows, TOKENS, SIZE, generator=draw).unbind()
    examples: list[Any] = [SimpleNamespace(language=language) for language in languages.split()]
    return PairActivations(examples, {}, side(0.3 * target + english + shift), side(english))


def fed(anatomy: Anatomy, readings: list[PairActivations], **options: Any) -> ProjectionMeasure:
    measure = ProjectionMeasure(anatomy, options.pop("layers", [1, 2]), **options)
    for reading in readings:
        assert measure.add(reading) == {}
    assert measure.finish() == {}
    return measure


def vectors(reading: PairActivations, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """The means over both question tokens, from the states themselves."""
    return tuple(one.hidden[layer][:, 1:3].mean(dim=1).numpy() for one in (reading.target, reading.english))  # type: ignore[return-value]


def test_pca_is_that_of_both_sides_together(anatomy: Anatomy) -> None:
    reading = random_reading("zh " * 40)
    summary = fed(anatomy, [reading]).summary()
    assert (summary["pairs"], summary["pooling"], summary["language"]) == (40, "mean", ["zh"] * 40)
    assert list(summary["layers"]) == ["1", "2"]
    for layer in (1, 2):
        points = np.concatenate(vectors(reading, layer)).astype(float)
        u, s, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
        found = summary["layers"][str(layer)]["pca"]
        placed = np.array(found["target"] + found["english"])
        signs = np.sign((placed * u[:, :2]).sum(axis=0))
        np.testing.assert_allclose(placed, signs * (u * s)[:, :2], atol=1e-3)
        np.testing.assert_allclose(found["explained_variance"], (s**2 / (s**2).sum())[:2], atol=1e-3)
        assert (np.mean(found["english"], axis=0) <= np.mean(found["target"], axis=0)).all(), "not mirrored"


def test_each_point_keeps_its_language_and_its_pair(anatomy: Anatomy) -> None:
    batches = [random_reading("zh vi zh ar", 1), random_reading("vi vi", 2), random_reading("ar zh vi", 3)]
    summary = fed(anatomy, batches, pairs=2, layers=[2]).summary()
    assert summary["language"] == ["ar", "ar", "vi", "vi", "zh", "zh"]
    assert list(summary["layers"]) == ["2"]
    kept = [(0, 3), (2, 0), (0, 1), (1, 0), (0, 0), (0, 2)]  # (batch, row) of the first two of each language
    rows = [[vectors(batches[batch], 2)[which][row] for batch, row in kept] for which in (0, 1)]
    points, half = np.array(rows).reshape(12, SIZE).astype(float), len(kept)
    found = summary["layers"]["2"]["pca"]
    placed = np.array(found["target"] + found["english"])
    assert len(found["target"]) == len(found["english"]) == half
    basis, *_ = np.linalg.lstsq(points - points.mean(axis=0), placed, rcond=None)
    np.testing.assert_allclose((points - points.mean(axis=0)) @ basis, placed, atol=1e-3)  # the same points, in order


def test_batches_change_nothing(anatomy: Anatomy) -> None:
    whole, other = random_reading("zh " * 12, 1), random_reading("zh " * 12, 2)

    def part(reading: PairActivations, rows: slice) -> PairActivations:
        sides = [side(torch.stack([one.hidden[n][rows] for n in (1, 2)])) for one in (reading.target, reading.english)]
        return PairActivations(reading.examples[rows], {}, *sides)

    split = [part(whole, slice(0, 5)), part(whole, slice(5, 12)), other]
    assert fed(anatomy, [whole, other], pairs=14).summary() == fed(anatomy, split, pairs=14).summary()


def test_tsne_is_seeded_and_needs_enough_pairs(anatomy: Anatomy) -> None:
    reading = random_reading("zh " * 30, shift=20.0)
    first, again, other = (fed(anatomy, [reading], layers=[1], seed=seed).summary() for seed in (0, 0, 1))
    assert first == again
    found = first["layers"]["1"]["tsne"]
    target, english = np.array(found["target"]), np.array(found["english"])
    assert target.shape == english.shape == (30, 2) and np.isfinite(target).all()
    nearest = np.linalg.norm(target[:, None] - np.concatenate([target, english]), axis=-1)
    np.fill_diagonal(nearest, np.inf)
    assert (nearest.argmin(axis=1) < 30).mean() > 0.9, "the two sides lie far apart, and stay so"
    assert other["layers"]["1"]["pca"] == first["layers"]["1"]["pca"]
    few = fed(anatomy, [random_reading("zh " * 9)]).summary()
    assert few["layers"]["1"]["tsne"] is None and len(few["layers"]["1"]["pca"]["target"]) == 9


@pytest.mark.parametrize("pairs", [1, 2, 12])
def test_points_without_spread(anatomy: Anatomy, pairs: int) -> None:
    states = torch.full((LAYERS, pairs, TOKENS, SIZE), 0.1)
    examples: list[Any] = [SimpleNamespace(language="zh")] * pairs
    found = fed(anatomy, [PairActivations(examples, {}, side(states), side(states))]).summary()["layers"]["1"]
    origin = [[0.0, 0.0]] * pairs
    assert found == {"pca": {"target": origin, "english": origin, "explained_variance": [0.0, 0.0]}, "tsne": None}


def test_one_pair_is_a_line(anatomy: Anatomy) -> None:
    found = fed(anatomy, [random_reading("zh")]).summary()["layers"]["1"]["pca"]
    assert found["explained_variance"][0] == pytest.approx(1.0)
    assert found["english"][0][0] < 0 < found["target"][0][0]


def test_nothing_read(anatomy: Anatomy) -> None:
    assert fed(anatomy, []).summary() == {"layers": {}, "language": [], "pairs": 0, "pooling": "mean"}


def test_the_last_token(anatomy: Anatomy) -> None:
    reading = random_reading("zh " * 6)
    found = fed(anatomy, [reading], pooling="last_token").summary()
    for one in (reading.target, reading.english):  # only the question's last token counts
        for states in one.hidden.values():
            states[:, [0, 1, 3, 4]] += 100.0
    assert fed(anatomy, [reading], pooling="last_token").summary() == found
    assert fed(anatomy, [reading]).summary()["layers"] != found["layers"]


def test_all_languages_together_are_bounded(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "MOST_PAIRS", 9)
    summary = fed(anatomy, [random_reading("zh vi " * 10)], pairs=8).summary()
    assert summary["language"] == ["vi"] * 4 + ["zh"] * 4


def test_kept_vectors_do_not_hold_the_batch(anatomy: Anatomy) -> None:
    measure = fed(anatomy, [random_reading("zh " * 20)], pairs=2)
    kept = measure._kept["zh"]
    assert len(kept) == 2
    assert all(one.untyped_storage().nbytes() == 2 * LAYERS * SIZE * 4 for one in kept)


def test_wrong_options_and_states(anatomy: Anatomy) -> None:
    with pytest.raises(PivotuneError, match="layers"):
        ProjectionMeasure(anatomy, [anatomy.num_layers + 1])
    with pytest.raises(PivotuneError, match="pairs"):
        ProjectionMeasure(anatomy, [1], pairs=0)
    with pytest.raises(PivotuneError, match="pooling"):
        ProjectionMeasure(anatomy, [1], pooling="max")
    reading = random_reading("zh zh")
    reading.english.hidden[2][0, 1] = torch.inf
    with pytest.raises(PivotuneError, match="layer 2 has states that are not finite"):
        ProjectionMeasure(anatomy, [1, 2]).add(reading)
