"""Layers chosen from a model: the questions drawn, their entropies, the choice as text, files and plot."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pivotune.data import Encoded, ParallelExample, PromptEncoder, Text
from pivotune.data.examples import is_among, is_english
from pivotune.data.languages import read_languages
from pivotune.data.prompts import prompt_only
from pivotune.errors import PivotuneError, check_number
from pivotune.files import make_folder, write_text
from pivotune.lens.entropy import EntropyCurve, question_entropies
from pivotune.lens.rule import LayerChoice, find_layers
from pivotune.plotting import COLORS, GREY, new_figure, save
from pivotune.tokens import within_context

logger = logging.getLogger(__name__)


def choose_layers(
    model: nn.Module,
    tokenizer: Any,
    examples: Iterable[ParallelExample],
    *,
    language: str | None = None,
    style: str = "auto",
    limit: int | None = 256,
    batch_size: int = 8,
    max_length: int = 512,
    seed: int = 0,
) -> LayerChoice:
    """The layers to supervise, chosen from the model's entropy on questions that are not English.

    Warns where the curve does not have two drops and the choice falls back to the paper's depths.

    Args:
        model: a causal LM that `pivotune.anatomy` knows; it is read where it is and left as it was.
        tokenizer: of the model.
        examples: in any number; their questions are read. English counterparts and English examples make the contrast.
        language: read only this language ("pt" admits "pt-BR"); all but English where None.
        style: prompt style, as in training: auto, alpaca, chat or plain.
        limit: how many examples to draw at random; None takes all.
        batch_size: prompts per forward pass.
        max_length: tokens of a prompt that are read.
        seed: of the drawing and of the bootstrap.

    Raises:
        PivotuneError: no example in the language, or an architecture that is not known.

    Example:
        >>> choice = pivotune.lens.choose_layers(model, tokenizer, examples, language="zh")
        >>> choice.conversion_layer, choice.thinking_layer
    """
    if language is not None:
        (language,) = read_languages("language", [language])
    target, english = _drawn(examples, language, limit, seed)
    encoder = PromptEncoder(tokenizer, style)
    pairs = [(one.english, one.where) for one in target if one.english is not None]
    english_texts = pairs + [(one.text, one.where) for one in english]
    return choose_from_prompts(
        model,
        _encoded(encoder, [(one.text, one.where) for one in target]),
        _encoded(encoder, english_texts),
        batch_size=batch_size,
        max_length=within_context(model, tokenizer, max_length),
        seed=seed,
    )


def choose_from_prompts(
    model: nn.Module,
    target: Iterable[Encoded],
    english: Iterable[Encoded] = (),
    *,
    batch_size: int = 8,
    max_length: int = 512,
    seed: int = 0,
) -> LayerChoice:
    """As `choose_layers`, from encoded prompts: those that are not English, and English ones for contrast."""
    check_number("batch_size", batch_size, 1, whole=True)
    check_number("max_length", max_length, 1, whole=True)
    options = {"batch_size": batch_size, "max_length": max_length}
    curves = {"target": EntropyCurve(question_entropies(model, target, **options))}
    if contrast := list(english):
        curves["english"] = EntropyCurve(question_entropies(model, contrast, **options))
    choice = replace(find_layers(curves["target"].values, seed=seed), curves=curves)
    if not choice.found:
        logger.warning("layers: %s.", choice.reason)
    return choice


def _drawn(
    examples: Iterable[ParallelExample], language: str | None, limit: int | None, seed: int
) -> tuple[list[ParallelExample], list[ParallelExample]]:
    """At most `limit` examples that are not English, and as many that are, drawn in one pass over any number."""
    draws = [Reservoir(limit, seed), Reservoir(limit, seed)]
    seen: set[str] = set()
    for example in examples:
        seen.add(example.language)
        english = is_english(example.language)
        if english or language is None or is_among(example.language, (language,)):
            draws[english].offer(example)
    target, contrast = (draw.kept for draw in draws)
    if not target:
        wanted = "that is not English" if language is None else f"in {language!r}"
        raise PivotuneError(
            f"layers: there is no question {wanted} (languages in the data: {', '.join(sorted(seen)) or 'none'})."
        )
    return target, contrast


class Reservoir:
    """A uniform sample of a stream of unknown length, in the order of the stream."""

    def __init__(self, size: int | None, seed: int):
        self._size, self._draw, self._seen = size, random.Random(seed), 0
        self._kept: list[tuple[int, Any]] = []

    def offer(self, item: Any) -> None:
        entry = (self._seen, item)
        self._seen += 1
        if self._size is None or len(self._kept) < self._size:
            self._kept.append(entry)
        elif (place := self._draw.randrange(self._seen)) < self._size:
            self._kept[place] = entry

    @property
    def kept(self) -> list[Any]:
        return [item for _, item in sorted(self._kept, key=lambda entry: entry[0])]


def _encoded(encoder: PromptEncoder, texts: Iterable[tuple[Text, str]]) -> Iterator[Encoded]:
    remaining = iter(texts)
    while batch := list(islice(remaining, 1000)):
        yield from encoder.tokenize([encoder.render(prompt_only(text), where) for text, where in batch])


# Showing it ----------------------------------------------------------------------------------------------------------


def table(choice: LayerChoice) -> str:
    """Curves and choice as text."""
    marks = {choice.conversion_layer: "i, conversion layer", choice.thinking_layer: "j, thinking layer"}
    if choice.conversion_layer == choice.thinking_layer:
        marks = {choice.conversion_layer: "i and j"}
    lines = ["layer" + "".join(f"{name:>16}" for name in choice.curves) + "   nats, 95 % interval"]
    for layer in range(1, len(next(iter(choice.curves.values())).mean) + 1):
        cells = [_with_interval(c.mean[layer - 1], c.half_width[layer - 1]) for c in choice.curves.values()]
        mark = f"  <- {marks[layer]}" if layer in marks else ""
        lines.append(f"{layer:5}" + "".join(cells) + mark)
    lines.append(f"{choice.reason[0].upper()}{choice.reason[1:]}.")
    lines.append(f"conversion_layer: {choice.conversion_layer}, thinking_layer: {choice.thinking_layer}")
    if choice.confidence is not None:
        lines.append(f"confidence: {choice.confidence:.2f} of the resamples agree")
    if choice.runner_up is not None:
        lines.append("runner-up: {}, {}".format(*choice.runner_up))
    return "\n".join(lines)


def _with_interval(mean: float, half_width: float) -> str:
    """16 characters; one example has no interval."""
    return f"{mean:8.3f}" + (" " * 8 if np.isnan(half_width) else f" ±{half_width:6.3f}")


def write_choice(choice: LayerChoice, output: str | Path, title: str = "") -> list[Path]:
    """Write `output`.json, .png and .svg; returns the files."""
    path = stem(output)
    make_folder(path.parent)
    content = path.with_name(f"{path.name}.json")
    write_text(content, json.dumps(choice.as_dict(), indent=1) + "\n")
    return [content, *plot(choice, path, title)]


def stem(output: str | Path) -> Path:
    return Path(str(output).removesuffix(".json"))


def plot(choice: LayerChoice, path_without_suffix: str | Path, title: str = "") -> list[Path]:
    """The curves with their intervals, and the two layers, as PNG and SVG."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(6.4, 4.0)
    looks: dict[str, dict[str, Any]] = {
        "target": {"color": COLORS[0], "label": "target language"},
        "english": {"color": GREY, "label": "English", "linestyle": "--"},
    }
    for name, curve in choice.curves.items():
        layer, mean, half = np.arange(1, len(curve.mean) + 1), curve.mean, curve.half_width
        axes.plot(layer, mean, marker="o", markersize=3, **looks[name])
        axes.fill_between(layer, mean - half, mean + half, color=looks[name]["color"], alpha=0.2, linewidth=0)
    how = "" if choice.found else ", from the paper's depths"
    for name, chosen, color in (("i", choice.conversion_layer, COLORS[1]), ("j", choice.thinking_layer, COLORS[2])):
        axes.axvline(chosen, color=color, linestyle=":", label=f"{name} = {chosen}{how}")
    axes.set_xlabel("layer")
    axes.set_ylabel("entropy of the logit lens, nats")
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return save(figure, path_without_suffix)
