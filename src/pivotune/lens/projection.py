"""Questions and their English translations in the plane: PCA and t-SNE of their vectors at a few layers.

One projection holds all languages of one model, so that they can be seen beside each other and beside English. PCA
(linear, axes of greatest variance) keeps distances as well as two axes can; t-SNE (van der Maaten and Hinton 2008)
keeps neighbourhoods and nothing else: the distance between two of its clusters, and their size, say nothing.

Shapes in names: N pairs, K layers, d hidden size, P points (2 N).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pivotune.anatomy import Anatomy
from pivotune.errors import PivotuneError, check_choice, check_number
from pivotune.lens.activations import PairActivations
from pivotune.uncertainty import Tables

MOST_PAIRS = 600
"""Of all languages together: beyond this a plot shows no more, and t-SNE takes minutes."""
FEWEST_FOR_TSNE = 10
"""Pairs: with fewer there are no neighbourhoods to keep."""
PERPLEXITY = 30.0


class ProjectionMeasure:
    """Keeps the first pairs of each language, and projects them when asked for its summary.

    Memory: `pairs * 2 * len(layers) * d` float32 numbers per language, on the CPU.

    Args:
        anatomy: of the model.
        layers: 1..L, where to look.
        pooling: how a question becomes a vector, `mean` over its tokens or `last_token`.
        pairs: how many pairs to keep of each language; fewer where all languages would exceed `MOST_PAIRS`.
        seed: of t-SNE.
    """

    def __init__(
        self, anatomy: Anatomy, layers: Iterable[int], *, pooling: str = "mean", pairs: int = 200, seed: int = 0
    ):
        check_choice("pooling", pooling, ("mean", "last_token"))
        check_number("pairs", pairs, 1, whole=True)
        self._layers = sorted({anatomy.check_layer(layer, "layers") for layer in layers})
        self._pooling, self._pairs, self._seed = pooling, pairs, seed
        self._kept: dict[str, list[Tensor]] = {}  # by language, (2, K, d) per pair

    def add(self, activations: PairActivations) -> Tables:
        """Keep what is still wanted of a batch, of one or several languages. There are no tables."""
        rows: list[int] = []
        room: dict[str, int] = {}
        for row, example in enumerate(activations.examples):
            left = room.setdefault(example.language, self._pairs - len(self._kept.get(example.language, ())))
            if left > 0:
                rows.append(row)
                room[example.language] -= 1
        if rows:
            sides = (activations.target, activations.english)
            vectors_2KNd = torch.stack(
                [torch.stack([self._vectors(side, n, rows) for n in self._layers]) for side in sides]
            )
            for row, vectors_2Kd in zip(rows, vectors_2KNd.unbind(dim=2), strict=True):
                self._kept.setdefault(activations.examples[row].language, []).append(vectors_2Kd.clone())
        return {}

    def finish(self) -> Tables:
        return {}

    def summary(self) -> dict[str, Any]:
        """The projections, of both sides and all languages together.

        Returns:
            "language": of each of N pairs, languages in alphabetical order; "pairs": N; "pooling"; "layers": by layer,
            as text, "pca" and "tsne", each with "target" and "english": N points [x, y], row k being pair k. "pca" also
            has "explained_variance", the two axes' shares of all variance (0..1); "tsne" is None for too few pairs.
        """
        each = max(1, MOST_PAIRS // max(1, len(self._kept)))
        kept = {language: self._kept[language][:each] for language in sorted(self._kept)}
        languages = [language for language, vectors in kept.items() for _ in vectors]
        layers = {}
        for index, layer in enumerate(self._layers):
            vectors = [pair_2Kd[:, index] for of_language in kept.values() for pair_2Kd in of_language]
            if vectors:
                points_Pd = torch.cat(list(torch.stack(vectors, dim=1))).double().numpy()
                layers[str(layer)] = {"pca": _pca(points_Pd, self._seed), "tsne": _tsne(points_Pd, self._seed)}
        return {"layers": layers, "language": languages, "pairs": len(languages), "pooling": self._pooling}

    def _vectors(self, side: Any, layer: int, rows: list[int]) -> Tensor:
        """The questions' vectors of these rows: (N, d), float32, on the CPU."""
        vectors_Nd = side.pooled(layer, self._pooling)[rows].float().cpu()
        if not vectors_Nd.isfinite().all():
            raise PivotuneError(
                f"projection: layer {layer} has states that are not finite. If the model runs in float16, load it in "
                "bfloat16 or float32."
            )
        return vectors_Nd


def _pca(points_Pd: np.ndarray, seed: int) -> dict[str, Any]:
    """The two axes of greatest variance around the common mean. On each, English lies on the lower side on average, so
    that the same picture never comes out mirrored."""
    from sklearn.decomposition import PCA

    points, size = points_Pd.shape
    centred_Pd = points_Pd - points_Pd.mean(axis=0)
    wanted = min(2, points, size)
    placed_P2, shares = np.zeros((points, 2)), np.zeros(2)
    if _differ(points_Pd):
        # ARPACK is as exact as the full decomposition, in a fraction of its time; but it wants less than the full rank.
        solver = "arpack" if wanted < min(points, size) else "full"
        pca = PCA(n_components=wanted, svd_solver=solver, random_state=seed)
        placed_P2[:, :wanted] = pca.fit_transform(centred_Pd)
        shares[:wanted] = pca.explained_variance_ratio_
        target_2, english_2 = placed_P2.reshape(2, -1, 2).mean(axis=1)
        placed_P2 *= np.where(english_2 > target_2, -1.0, 1.0)
    return _sides(placed_P2) | {"explained_variance": [round(float(share), 4) for share in shares]}


def _tsne(points_Pd: np.ndarray, seed: int) -> dict[str, Any] | None:
    from sklearn.manifold import TSNE

    points = len(points_Pd)
    if points < 2 * FEWEST_FOR_TSNE or not _differ(points_Pd):
        return None
    tsne = TSNE(perplexity=min(PERPLEXITY, (points - 1) / 3), init="pca", random_state=seed)
    placed_P2 = tsne.fit_transform(points_Pd.astype(np.float32))
    return _sides(placed_P2) if np.isfinite(placed_P2).all() else None


def _differ(points_Pd: np.ndarray) -> bool:
    """Whether the points differ by more than the rounding of float32."""
    return bool(np.ptp(points_Pd, axis=0).max() > 1e-6 * np.abs(points_Pd).max())


def _sides(placed_P2: np.ndarray) -> dict[str, Any]:
    """The points as lists, target and English apart; five digits are more than a plot shows."""
    target, english = (
        [[float(f"{value:.5g}") for value in point] for point in side] for side in np.split(placed_P2, 2)
    )
    return {"target": target, "english": english}
