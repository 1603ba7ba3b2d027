"""What each layer of a model says, and the layers that follow from it: measured, chosen, as text, files and plot.

Three things are read of a model at every layer, with intervals over examples: the entropy of the logit lens, MEXA
(whether a question and its translation find each other among the others), and how many nats per token the head needs
for the English question and answer. Each has its rule: `pivotune.lens.rule`, `pivotune.lens.signal_rules`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers.utils.logging import tqdm

from pivotune.anatomy import Anatomy
from pivotune.data import Encoded, ParallelExample, PromptEncoder, Text
from pivotune.data.examples import is_among, is_english
from pivotune.data.languages import read_languages
from pivotune.data.prompts import prompt_only
from pivotune.errors import PivotuneError, check_choice, check_number
from pivotune.files import make_folder, write_text
from pivotune.lens.curve import LayerCurve
from pivotune.lens.rule import LayerChoice, find_layers
from pivotune.lens.signal_rules import find_middle, find_readable
from pivotune.lens.survey import MEASURES, MEXA, TOKENS, Question, survey, work
from pivotune.lens.tuned import TunedLens, fit_texts, fit_tuned_lens
from pivotune.plotting import COLORS, GREY, new_panels, save
from pivotune.tables import table as text_table
from pivotune.taps import evaluating
from pivotune.tokens import within_context

READERS = ("logit_lens", "tuned_lens")


@dataclass(frozen=True)
class Layers:
    """What the layers of a model say.

    Attributes:
        curves: nats: "entropy" of questions that are not English, "entropy, English" for contrast, "question" and
            "answer" per English token; truth values: "MEXA, mean" and "MEXA, last token". Those that were measured.
        rules: what each rule found: "entropy", "feature, mean", "feature, last_token", "logits". A rule whose curves
            were not measured is not there.
        vocab_size: V.
        tied: whether the output head is the matrix of the input embeddings.
        reader: by which English was read, of `READERS`.
    """

    curves: Mapping[str, LayerCurve]
    rules: Mapping[str, LayerChoice]
    vocab_size: int
    tied: bool
    reader: str = "logit_lens"

    def of(self, signal: str, pooling: str = "mean") -> LayerChoice:
        """The layers for a signal: by the entropy where it has its two drops, else by the signal's own rule.

        Args:
            signal: logits or feature.
            pooling: of the feature signal.
        """
        own = self.rules.get("logits" if signal == "logits" else f"feature, {pooling}")
        return self.rules["entropy"] if own is None or self.rules["entropy"].found else own

    def picked(self, conversion: str, thinking: str, pooling: str = "mean") -> LayerChoice:
        """The layers for a run: each by the signal that it has there; a signal that is off follows the other one."""
        first = conversion if conversion != "off" else thinking
        last = thinking if thinking != "off" else conversion
        lower, upper = self.of(first, pooling), self.of(last, pooling)
        if lower == upper:
            return lower
        reason = f"conversion layer, {first} signal: {lower.reason}. Thinking layer, {last} signal: {upper.reason}"
        found = lower.found and upper.found
        return LayerChoice(lower.conversion_layer, upper.thinking_layer, None, None, found, reason)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "vocabulary": self.vocab_size,
            "guessing": round(math.log(self.vocab_size), 6),
            "tied_embeddings": self.tied,
            "reader": self.reader,
            "rules": {name: rule.as_dict() for name, rule in self.rules.items()},
            "unit": "nats; of MEXA, the share of pairs",
            "interval": "95 % over examples: Student's t, of MEXA Wilson's",
            "curves": {name: curve.as_dict() for name, curve in self.curves.items()},
        }


def choose_layers(
    model: nn.Module,
    tokenizer: Any,
    examples: Iterable[ParallelExample],
    *,
    language: str | None = None,
    style: str = "auto",
    limit: int | None = 256,
    tokens: int | None = TOKENS,
    batch_size: int = 8,
    max_length: int = 512,
    seed: int = 0,
    measures: Sequence[str] = MEASURES,
    reader: str = "logit_lens",
    progress: bool = False,
) -> Layers:
    """What the layers of a model say on questions that are not English, and the layers to supervise.

    Args:
        model: a causal LM that `pivotune.anatomy` knows; it is read where it is and left as it was.
        tokenizer: of the model.
        examples: in any number. English counterparts are what MEXA and the reading need; they and English examples are
            the contrast of the entropy.
        language: read only this language ("pt" admits "pt-BR"); all but English where None.
        style: prompt style, as in training: auto, alpaca, chat or plain.
        limit: how many examples to draw at random; None takes all.
        tokens: how many tokens the head reads for each curve at each layer, drawn at random; None reads all.
        batch_size: prompts per forward pass.
        max_length: tokens of a prompt that are read.
        seed: of the drawing and of the bootstrap.
        measures: beside the entropy: similarity (MEXA), reading.
        reader: of English: logit_lens; or tuned_lens, fitted at every layer on these examples by least squares.
        progress: show a bar.

    Raises:
        PivotuneError: no example in the language, or an architecture that is not known.

    Example:
        >>> layers = pivotune.lens.choose_layers(model, tokenizer, examples, language="zh")
        >>> layers.of("feature").conversion_layer, layers.of("logits").thinking_layer
    """
    if language is not None:
        (language,) = read_languages("language", [language])
    target, english = _drawn(examples, language, limit, seed)
    encoder = PromptEncoder(tokenizer, style)
    questions = questions_of(encoder, target)
    return choose_from_questions(
        model,
        questions,
        _encoded(encoder, [(one.text, one.where) for one in english]),
        tokens=tokens,
        batch_size=batch_size,
        max_length=within_context(model, tokenizer, max_length),
        seed=seed,
        measures=measures,
        reader=reader,
        progress=progress,
    )


def choose_from_questions(
    model: nn.Module,
    questions: Sequence[Question],
    english: Sequence[Encoded] = (),
    *,
    reader: str = "logit_lens",
    tokens: int | None = TOKENS,
    batch_size: int = 8,
    max_length: int = 512,
    seed: int = 0,
    measures: Sequence[str] = MEASURES,
    progress: bool = False,
) -> Layers:
    """As `choose_layers`, from encoded questions, and English prompts for contrast."""
    check_number("batch_size", batch_size, 1, whole=True)
    check_number("max_length", max_length, 1, whole=True)
    for name in measures:
        check_choice("measures", name, MEASURES)
    check_choice("reader", reader, READERS)
    anatomy = Anatomy(model)
    lens = None
    if reader == "tuned_lens" and "reading" in measures:
        lens = TunedLens(range(1, anatomy.num_layers), anatomy.hidden_size, next(anatomy.head.parameters()))
        texts = fit_texts(questions, seed)
        with tqdm(total=len(texts), desc="fitting the tuned lens", unit="text", disable=not progress) as bar:
            # Least squares alone: at every layer, the steps on the KL would take too long for a look.
            fit_tuned_lens(model, lens, texts, batch_size=batch_size, seed=seed, steps=0, progress=bar.update)
    with (
        evaluating(model),
        tqdm(total=work(questions, english, measures), desc="reading", unit="text", disable=not progress) as bar,
    ):
        curves = survey(
            anatomy,
            questions,
            english,
            measures=measures,
            reader=None if lens is None else partial(lens.logits, anatomy),
            tokens=tokens,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            progress=bar.update,
        )
    rules = {"entropy": find_layers(curves["entropy"], seed=seed)}
    for pooling, name in MEXA.items():
        if name in curves:
            rules[f"feature, {pooling}"] = find_middle(curves[name], seed=seed)
    if "question" in curves:
        answer = curves.get("answer", curves["question"][:0])
        rules["logits"] = find_readable(curves["question"], answer, anatomy.vocab_size, seed=seed)
    found = {name: LayerCurve(curves[name]) for name in _LOOKS if name in curves}
    return Layers(found, rules, anatomy.vocab_size, anatomy.tied, "logit_lens" if lens is None else reader)


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


def questions_of(encoder: PromptEncoder, examples: Sequence[ParallelExample]) -> list[Question]:
    """Prompts, and English counterparts with their answers."""
    texts = _encoded(encoder, [(one.text, one.where) for one in examples])
    paired = [(one.english, one.where) for one in examples if one.english is not None]
    counterparts = iter(_with_answers(encoder, paired))
    return [
        Question(one.language, text, None if one.english is None else next(counterparts))
        for one, text in zip(examples, texts, strict=True)
    ]


def _encoded(encoder: PromptEncoder, texts: Sequence[tuple[Text, str]]) -> list[Encoded]:
    """Prompts alone."""
    return encoder.tokenize([encoder.render(prompt_only(text), where) for text, where in texts])


def _with_answers(encoder: PromptEncoder, texts: Sequence[tuple[Text, str]]) -> list[Encoded]:
    """With their answers, where there is one that can be rendered."""
    found = encoder.encode_all([(text if text.answer.strip() else prompt_only(text), where) for text, where in texts])
    return [
        one if isinstance(one, Encoded) else _encoded(encoder, [given])[0]
        for one, given in zip(found, texts, strict=True)
    ]


# Showing it ----------------------------------------------------------------------------------------------------------

_SIGNALS = {
    "logits": "logits signal",
    "feature, mean": "feature signal, pooling mean",
    "feature, last_token": "feature signal, pooling last_token",
}


_HEADS = {
    "entropy": "entropy",
    "entropy, English": "of English",
    "MEXA, mean": "MEXA mean",
    "MEXA, last token": "MEXA last",
    "question": "question",
    "answer": "answer",
}


def table(layers: Layers) -> str:
    """Curves and what the rules find, as text."""
    heads = ["layer"]
    columns = []
    for name, curve in layers.curves.items():
        heads.append(_HEADS[name])
        columns.append([_cell(*one, share=curve.values.dtype == bool) for one in curve.intervals])
    rows = [[str(layer), *cells] for layer, cells in enumerate(zip(*columns, strict=True), start=1)]
    by, guess = layers.reader.replace("_", " "), f"{layers.vocab_size} = {math.log(layers.vocab_size):.2f}"
    lines = [
        text_table(heads, rows),
        "Nats, and % of pairs; ± half the 95 % interval. question, answer: per English token behind the prompt, read "
        f"by the {by}; guessing takes ln {guess}.",
    ]
    if layers.tied:
        lines.append(
            "Input embeddings and output head are one matrix (tied), so at lower layers the logit lens mostly says the "
            "token that was put in: low entropy there is no sign of certainty."
        )
    entropy = layers.rules["entropy"]
    lines += ["", f"Entropy: {_said(entropy)}"]
    for name, signal in _SIGNALS.items():
        if name in layers.rules:
            lines.append(f"{signal[0].upper()}{signal[1:]}: {_said(layers.rules[name])}")
    lines.append("")
    if entropy.found:
        lines.append(f"{numbers(entropy)} (the two drops, for both signals)")
    else:
        lines += [
            f"{numbers(rule)} ({signal})" for name, signal in _SIGNALS.items() if (rule := layers.rules.get(name))
        ]
        if len(layers.rules) == 1:
            lines.append(numbers(entropy))
    return "\n".join(lines)


def numbers(choice: LayerChoice) -> str:
    """As in a configuration."""
    return f"conversion_layer: {choice.conversion_layer}, thinking_layer: {choice.thinking_layer}"


def _said(choice: LayerChoice) -> str:
    said = f"{choice.reason}."
    if choice.confidence is not None:
        said += f" The same layers, each within one, in {100 * choice.confidence:.0f} % of the resamples."
    if choice.runner_up is not None:
        said += " Runner-up: {} and {}.".format(*choice.runner_up)
    return said


def _cell(mean: float, low: float, high: float, share: bool) -> str:
    """One example of numbers has no interval."""
    factor, digits, unit = (100, 0, " %") if share else (1, 2, "")
    width = "" if math.isnan(low) else f" ±{factor * (high - low) / 2:.{digits}f}"
    return f"{factor * mean:.{digits}f}{width}{unit}"


def write_layers(layers: Layers, output: str | Path, title: str = "", chosen: LayerChoice | None = None) -> list[Path]:
    """Write `output`.json, .png and .svg; returns the files. `chosen`: what a run uses."""
    path = stem(output)
    make_folder(path.parent)
    content = path.with_name(f"{path.name}.json")
    write_text(content, json.dumps(record(layers, chosen), indent=1) + "\n")
    return [content, *plot(layers, path, title)]


def record(layers: Layers, chosen: LayerChoice | None = None) -> dict[str, Any]:
    """All of it for JSON; first, what a run uses."""
    return (chosen.as_dict() if chosen else {}) | layers.as_dict()


def stem(output: str | Path) -> Path:
    return Path(str(output).removesuffix(".json"))


_LOOKS: dict[str, dict[str, Any]] = {
    "entropy": {"color": COLORS[0], "label": "target language"},
    "entropy, English": {"color": GREY, "label": "English", "linestyle": "--"},
    "MEXA, mean": {"color": COLORS[0], "label": "mean over tokens"},
    "MEXA, last token": {"color": COLORS[1], "label": "last token"},
    "question": {"color": COLORS[0], "label": "English question"},
    "answer": {"color": COLORS[1], "label": "English answer"},
}
_PANELS = (
    # vertical axis, curves, rule whose layers are marked, and how
    ("entropy of the logit lens, nats", ("entropy", "entropy, English"), "entropy", ""),
    ("MEXA, % of pairs", ("MEXA, mean", "MEXA, last token"), "feature, last_token", ", last token"),
    ("nats per English token", ("question", "answer"), "logits", ""),
)


def plot(layers: Layers, path_without_suffix: str | Path, title: str = "") -> list[Path]:
    """The curves with their intervals, and the layers that each rule finds, as PNG and SVG."""
    from matplotlib.ticker import MaxNLocator

    shown = [panel for panel in _PANELS if any(name in layers.curves for name in panel[1])]
    figure, panels = new_panels(1, len(shown), max(6.4, 4.2 * len(shown)), 3.8)
    for axes, (label, names, rule, of) in zip(panels[0], shown, strict=True):
        for name in names:
            if curve := layers.curves.get(name):
                factor = 100 if curve.values.dtype == bool else 1
                mean, low, high = factor * np.array(curve.intervals).T
                layer = np.arange(1, len(mean) + 1)
                axes.plot(layer, mean, marker="o", markersize=3, **_LOOKS[name])
                axes.fill_between(layer, low, high, color=_LOOKS[name]["color"], alpha=0.2, linewidth=0)
        if rule == "logits":
            guess = math.log(layers.vocab_size)
            axes.axhline(guess, color=GREY, linewidth=1, label=f"guessing, {guess:.1f}")
            axes.set_ylim(top=2 * guess)
        if (choice := layers.rules[rule]).found:
            marked = {choice.thinking_layer: "j", choice.conversion_layer: "i"}
            if len(marked) == 1:
                marked = {choice.thinking_layer: "i, j"}
            for (at, one), style in zip(marked.items(), ("-.", ":"), strict=False):
                axes.axvline(at, color="black", linestyle=style, linewidth=1, label=f"{one} = {at}{of}")
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return save(figure, path_without_suffix)
