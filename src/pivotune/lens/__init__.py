"""What the layers of a model say: entropy and the choice of layers, the language of each layer, similarity."""

from pivotune.lens.choice import Layers, choose_layers
from pivotune.lens.curve import LayerCurve
from pivotune.lens.language import LanguageOfLayers, measure_language
from pivotune.lens.rule import LayerChoice, find_layers
from pivotune.lens.similarity import Similarity, measure_similarity

__all__ = [
    "LanguageOfLayers",
    "LayerChoice",
    "LayerCurve",
    "Layers",
    "Similarity",
    "choose_layers",
    "find_layers",
    "measure_language",
    "measure_similarity",
]
