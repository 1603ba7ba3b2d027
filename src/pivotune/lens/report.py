"""`pivotune lens`: what a run makes of parallel questions, layer by layer, and what tuning changed.

Every batch passes once through each model (`pivotune.lens.activations`), and every measure looks at that. With a second
model the two are compared example by example, so that a difference has an interval of its own. Nothing is kept per
example but what is drawn: memory does not grow with the data.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from transformers.utils.logging import tqdm

from pivotune.anatomy import Anatomy
from pivotune.checkpoint import Run, anatomy_of, load_run, read_info
from pivotune.data import ParallelExample, PromptEncoder
from pivotune.data.examples import is_among, is_english
from pivotune.data.languages import read_languages
from pivotune.data.prompts import STYLES
from pivotune.data.sources import log_notes, stream_prompts
from pivotune.errors import PivotuneError, check_choice, check_number, check_seed
from pivotune.files import check_output_files, make_folder, write_text
from pivotune.lens.activations import Measure, PairActivations, PairStream, read
from pivotune.lens.choice import READERS, Reservoir, questions_of
from pivotune.lens.entropy import EntropyMeasure
from pivotune.lens.figures import draw, plots
from pivotune.lens.language import BeginningIndex, LanguageMeasure, Others
from pivotune.lens.projection import ProjectionMeasure
from pivotune.lens.rule import paper_layers
from pivotune.lens.similarity import SimilarityMeasure
from pivotune.lens.survey import Question
from pivotune.lens.tuned import LensFit, TunedLens, fit_texts, fit_tuned_lens
from pivotune.objectives import OBJECTIVES
from pivotune.options import names_in
from pivotune.plotting import language_name
from pivotune.provenance import versions
from pivotune.tables import table
from pivotune.taps import evaluating
from pivotune.tokens import within_context
from pivotune.uncertainty import RunningDifference, RunningMean, Tables, as_columns

logger = logging.getLogger(__name__)

MEASURES = ("entropy", "language", "similarity", "calibration", "projection")

Examples = Callable[[], Iterator[ParallelExample]]
"""Gives the examples anew each time."""


def lens(
    run: str,
    *,
    data: str,
    baseline: str | None = None,
    languages: str | list[str] | None = None,
    columns: dict[str, str | None] | None = None,
    output: str | None = None,
    overwrite: bool = False,
    measures: str | list[str] = "entropy,language,similarity,calibration,projection",
    layers: str | list[str] | None = None,
    style: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    limit: int = 512,
    batch_size: int = 8,
    max_length: int = 512,
    block: int = 512,
    seed: int = 0,
    reader: str = "logit_lens",
) -> dict[str, Any]:
    """`pivotune lens`: entropy, language, similarity and calibration of each layer, before and after.

    Args:
        run: a run folder, or any causal LM.
        data: parallel examples as in training that the run has not been trained on. Without answers (sentence pairs,
            say) only the measures of the questions are made.
        baseline: the model to compare with, usually the run's base.
        languages: which to read, separated by commas; all that have English counterparts by default.
        columns: other names of fields, as data.columns in training: {name in the file: name here}.
        output: folder for lens.json, lens.md and the plots; by default `lens` inside the run folder.
        overwrite: replace files that are there already.
        measures: which to make, separated by commas.
        layers: the conversion and the thinking layer, as "2,15"; by default the run's own, else the paper's depths.
        style: prompt style: auto, alpaca, chat or plain; by default the one that the run was trained with.
        chat_template_kwargs: arguments of the chat template, e.g. {"enable_thinking": false}; those that a run was
            trained with are in its own.
        limit: how many examples of a language to draw at random; 0 takes all, in their order.
        batch_size: pairs per forward pass.
        max_length: tokens of a prompt and its answer; pairs with longer prompts are left out and counted.
        block: pairs that are compared with each other in retrieval and MEXA.
        seed: of the drawing and of t-SNE.
        reader: of a layer: logit_lens; or tuned_lens, fitted at every layer of each model on these examples.

    Returns:
        The report, as in lens.json.
    """
    check_number("limit", limit, 0, whole=True, why="; 0 takes all examples")
    for option, value, least in (("batch_size", batch_size, 1), ("max_length", max_length, 2), ("block", block, 2)):
        check_number(option, value, least, whole=True)
    check_seed("seed", seed)
    check_choice("reader", reader, READERS)
    if style is not None:
        check_choice("style", style, STYLES)
    chosen = names_in(measures)
    for name in chosen or [""]:
        check_choice("measures", name, MEASURES)
    pair = _layer_pair(layers)
    wanted = None if languages is None else read_languages("languages", names_in(languages))
    folder = check_output_files("output", _output_folder(run, output), files(), overwrite=overwrite)
    anatomy = anatomy_of(run)
    for layer in pair or ():
        anatomy.check_layer(layer, "layers")
    if baseline is not None:
        anatomy_of(baseline)
    examples, count, others = _examples(data, wanted, columns, limit, seed)
    opened = load_run(run, chat_template_kwargs=chat_template_kwargs)
    base = None if baseline is None else load_run(baseline, chat_template_kwargs=chat_template_kwargs)
    report = inspect(
        opened,
        examples,
        base,
        others=others,
        measures=chosen,
        layers=pair,
        style=style or str(opened.model.pivotune_prompt_style),
        batch_size=batch_size,
        max_length=max_length,
        block=block,
        seed=seed,
        reader=reader,
        progress=count,
    )
    report = {"run": Path(run).name, "baseline": baseline and Path(baseline).name, "data": data, **report}
    print(text(report))  # first: what was found is worth more than its files
    print(f"Written: {', '.join(map(str, write(report, folder)))}")
    return report


def inspect(
    run: Run,
    examples: Iterable[ParallelExample] | Examples,
    baseline: Run | None = None,
    *,
    others: Others | None = None,
    measures: Iterable[str] = MEASURES,
    layers: tuple[int, int] | None = None,
    style: str = "auto",
    batch_size: int = 8,
    max_length: int = 512,
    block: int = 512,
    seed: int = 0,
    reader: str = "logit_lens",
    progress: int | None = None,
) -> dict[str, Any]:
    """The report of `pivotune lens`, from loaded models.

    Args:
        run: from `pivotune.checkpoint.load_run`; or `Run(model, tokenizer)`.
        examples: in any number and order, read once; those without an English counterpart are left out and counted.
        baseline: the model to compare with, of the same tokenizer and depth.
        others: the answers in further languages, see `pivotune.lens.language.Others`.
        measures: of `MEASURES`.
        layers: (i, j), where the calibration is marked and the projection made; the run's own where None.
        style, batch_size, max_length, block, seed, reader: as in `lens`. With tuned_lens, examples are read twice.
        progress: show a bar for this many examples.

    Returns:
        A dict for JSON, described in docs/lens.md.

    Raises:
        PivotuneError: a wrong option, models that do not match, or no pair in the data.
    """
    measures = list(measures)
    for name in measures:
        check_choice("measures", name, MEASURES)
    check_number("block", block, 2, whole=True)
    max_length = within_context(run.model, run.tokenizer, max_length)
    stream = PairStream(run.tokenizer, style, batch_size, max_length)
    models = [_Model.of("run", run, measures, block, others)]
    if baseline is not None:
        models.append(_Model.of("baseline", baseline, measures, block, others))
        _check_comparable(*models)
    conversion, thinking = _chosen_layers(run, models[0].anatomy, layers)
    if "projection" in measures:
        for model in models:
            shown = dict.fromkeys((conversion, thinking, model.anatomy.num_layers))
            model.projection = ProjectionMeasure(model.anatomy, list(shown), seed=seed)

    if reader == "tuned_lens":
        given = list(examples() if callable(examples) else examples)
        examples = given
        for model in models:
            model.fit(questions_of(PromptEncoder(run.tokenizer, style), given), batch_size, seed, progress)
    comparisons: dict[str, _Comparison] = {}
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model.anatomy.lm))
        bar = stack.enter_context(tqdm(total=progress, desc="reading", unit="pair", disable=not progress))
        for language, chosen, batch in stream.batches(examples() if callable(examples) else examples):
            comparison = comparisons.setdefault(language, _Comparison(models))
            for model in models:
                options: dict[str, Any] = {"feed_forward": model.feed_forward, "tuned": model.tuned}
                comparison.add(model, read(model.anatomy, chosen, batch, **options))
            comparison.compare()
            bar.update(len(chosen))
    if not comparisons:
        raise PivotuneError(
            f"lens: no pair to read: {stream.without_english} examples have no English counterpart, and "
            f"{stream.report.skipped.total()} have prompts of more than {max_length} tokens (max_length)."
        )
    projection = {model.role: model.projection and model.projection.summary() for model in models}
    return {
        "layers": {"conversion": conversion, "thinking": thinking, "count": models[0].anatomy.num_layers},
        "interval": "95 %: Student's t for means, Wilson for shares, paired for differences",
        "versions": versions(),
        "reader": reader,
        "tuned_lens": {model.role: model.fitted.as_dict() for model in models if model.fitted},
        "skipped": stream.skipped,
        "answers_cut": stream.report.truncated,
        "languages": {language: comparisons[language].result() for language in sorted(comparisons)},
        "projection": projection if "projection" in measures else None,
    }


# Models and what is measured -----------------------------------------------------------------------------------------


@dataclass
class _Model:
    """One of the two models: its parts, and a factory of the measures that each language needs anew."""

    role: str
    run: Run
    anatomy: Anatomy
    measures: Callable[[], dict[str, Measure]]
    feed_forward: bool = False
    projection: ProjectionMeasure | None = None
    tuned: TunedLens | None = None
    fitted: LensFit | None = None

    @classmethod
    def of(cls, role: str, run: Run, wanted: Iterable[str], block: int, others: Others | None) -> _Model:
        anatomy = Anatomy(run.model)
        index = BeginningIndex(run.tokenizer, anatomy.vocab_size) if "language" in wanted else None
        of_objectives: dict[str, Callable[[], Measure]] = {}
        for name, objective in OBJECTIVES.items() if "calibration" in wanted else ():
            if measure := objective.measure(anatomy, run.objectives.get(name), run.connections.get(name)):
                of_objectives[name] = measure

        def measures() -> dict[str, Measure]:
            made: dict[str, Measure] = {}
            if "entropy" in wanted:
                made["entropy"] = EntropyMeasure(anatomy)
            if index is not None:
                made["language"] = LanguageMeasure(anatomy, index, others=others)
                made["language_after_blank"] = LanguageMeasure(anatomy, index, others=others, after_blank=True)
            if "similarity" in wanted:
                made["similarity"] = SimilarityMeasure(anatomy, block=block)
            return made | {name: measure() for name, measure in of_objectives.items()}

        feed_forward = any(getattr(one, "needs_feed_forward", False) for one in measures().values())
        return cls(role, run, anatomy, measures, feed_forward)

    def fit(self, questions: list[Question], batch_size: int, seed: int, progress: int | None) -> None:
        """A tuned lens at every layer below the last, by least squares."""
        anatomy = self.anatomy
        self.tuned = TunedLens(range(1, anatomy.num_layers), anatomy.hidden_size, next(anatomy.head.parameters()))
        texts = fit_texts(questions, seed)
        with tqdm(total=len(texts), desc="fitting the tuned lens", unit="text", disable=not progress) as bar:
            self.fitted = fit_tuned_lens(
                self.run.model, self.tuned, texts, batch_size=batch_size, seed=seed, steps=0, progress=bar.update
            )


class _Comparison:
    """The measures of one language: on each model, and on their differences."""

    def __init__(self, models: list[_Model]):
        self.measures = {model.role: model.measures() for model in models}
        self.examples = 0
        self._means: dict[tuple[str, str, str], RunningMean] = {}
        self._differences: dict[tuple[str, str], RunningDifference] = {}
        self._new: dict[str, dict[str, Tables]] = {}

    def add(self, model: _Model, activations: PairActivations) -> None:
        self._new[model.role] = {name: measure.add(activations) for name, measure in self.measures[model.role].items()}
        if model.projection is not None:
            model.projection.add(activations)
        if model.role == "run":
            self.examples += len(activations.examples)

    def compare(self) -> None:
        """Take in what `add` brought from each model."""
        for role, by_measure in self._new.items():
            for measure, tables in by_measure.items():
                for name, rows in tables.items():
                    self._means.setdefault((measure, name, role), RunningMean()).add(rows)
        run, baseline = self._new.get("run", {}), self._new.get("baseline", {})
        for measure in run.keys() & baseline.keys():
            for name in run[measure].keys() & baseline[measure].keys():
                difference = self._differences.setdefault((measure, name), RunningDifference())
                difference.add_pair(run[measure][name], baseline[measure][name])
        self._new = {}

    def result(self) -> dict[str, Any]:
        self._new = {
            role: {name: measure.finish() for name, measure in measures.items()}
            for role, measures in self.measures.items()
        }
        self.compare()
        found: dict[str, Any] = {"examples": self.examples}
        for measure in self.measures["run"]:
            summary = {
                role: by_name[measure].summary() for role, by_name in self.measures.items() if measure in by_name
            }
            names = dict.fromkeys(name for kind, name, _ in self._means if kind == measure)
            found[measure] = {
                "tables": {name: self._table(measure, name) for name in names},
                "summary": {role: summary.get(role) for role in ("run", "baseline")},
            }
        if (after := found.get("language_after_blank")) and after["tables"] == found["language"]["tables"]:
            del found["language_after_blank"]  # no answer begins with a blank token
        return found

    def _table(self, measure: str, name: str) -> dict[str, Any]:
        means = {role: self._means.get((measure, name, role)) for role in ("run", "baseline")}
        columns: dict[str, Any] = {role: mean and as_columns(mean.estimates()) for role, mean in means.items()}
        difference = self._differences.get((measure, name))
        return columns | {
            "difference": difference and as_columns(difference.estimates()),
            "n": means["run"].count if means["run"] else 0,
        }


def _check_comparable(run: _Model, baseline: _Model) -> None:
    if run.anatomy.num_layers != baseline.anatomy.num_layers:
        raise PivotuneError(
            f"baseline: has {baseline.anatomy.num_layers} layers and the run {run.anatomy.num_layers}; layers are "
            "compared one by one. Give the model that the run was made from, or look at each alone."
        )
    same_tokens = run.run.tokenizer.get_vocab() == baseline.run.tokenizer.get_vocab()
    if not same_tokens or run.anatomy.vocab_size != baseline.anatomy.vocab_size:
        raise PivotuneError("baseline: has another tokenizer than the run. Give the model that the run was made from.")


def _chosen_layers(run: Run, anatomy: Anatomy, layers: tuple[int, int] | None) -> tuple[int, int]:
    if layers is not None:
        return anatomy.check_layer(layers[0], "layers"), anatomy.check_layer(layers[1], "layers")
    marked = (OBJECTIVES[name].marked_layers(options) for name, options in run.objectives.items())
    return next((one for one in marked if one is not None), paper_layers(anatomy.num_layers))


# Reading the options -------------------------------------------------------------------------------------------------


def _layer_pair(value: str | list[str] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    parts = names_in(value)
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise PivotuneError(f'layers: got {value!r}; give the conversion and the thinking layer, as "2,15".')
    return int(parts[0]), int(parts[1])


def _output_folder(run: str, output: str | None) -> Path:
    if output is not None:
        return Path(output)
    if not read_info(run):
        raise PivotuneError(f"output: {run} is no run folder of Pivotune to write into; name a folder with --output.")
    return Path(run) / "lens"


def _examples(
    data: str, languages: list[str] | None, columns: dict[str, str | None] | None, limit: int, seed: int
) -> tuple[Examples, int, Others | None]:
    """The examples to read, how many, and their answers in further languages. The file is checked whole before a model
    runs."""

    def wanted(example: ParallelExample) -> bool:
        return languages is None or is_among(example.language, languages)

    counts: Counter[str] = Counter()
    draws: dict[str, Reservoir] = {}
    notes: Counter[str] = Counter()
    for example in stream_prompts(data, columns=columns, notes=notes):
        counts[example.language] += example.english is not None
        if limit and example.english is not None and wanted(example):
            draws.setdefault(example.language, Reservoir(limit, seed)).offer(example)
    log_notes(data, notes)
    paired = {language: count for language, count in counts.items() if count}
    missing = [language for language in languages or () if not any(is_among(found, [language]) for found in paired)]
    if missing or not paired:
        there = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        which = f" in {', '.join(map(repr, missing))}" if missing else ""
        raise PivotuneError(f"{data}: has no pair with English{which}. Pairs of each language: {there}.")
    if limit:
        drawn = {language: draw.kept for language, draw in draws.items()}
        several = sum(not is_english(language) for language in counts) > 1
        others = _other_answers(data, columns, drawn) if several else None  # reads the file once more
        return (lambda: chain.from_iterable(drawn.values())), sum(map(len, drawn.values())), others
    total = sum(count for language, count in paired.items() if languages is None or is_among(language, languages))
    return (lambda: filter(wanted, stream_prompts(data, columns=columns))), total, None


def _other_answers(
    data: str, columns: dict[str, str | None] | None, drawn: Mapping[str, list[ParallelExample]]
) -> Others | None:
    """Answers of the same id in the file's other languages, which share ids where a data set was translated.

    A language counts for another where it answers each of that one's drawn examples.
    """
    wanted = {example.id for examples in drawn.values() for example in examples}
    answers: dict[str, dict[str, str]] = {}
    for example in stream_prompts(data, columns=columns):
        if example.id in wanted and not is_english(example.language) and example.text.answer.strip():
            answers.setdefault(example.language, {})[example.id] = example.text.answer
    further = {
        language: [
            name
            for name, found in sorted(answers.items())
            if name != language and all(example.id in found for example in examples)
        ]
        for language, examples in drawn.items()
    }
    if not any(further.values()):
        return None
    return lambda example: {name: answers[name][example.id] for name in further[example.language]}


# Showing it ----------------------------------------------------------------------------------------------------------

_COLUMNS = (
    # head, measure, table, factor
    ("entropy, nats", "entropy", "target", 1),
    ("English, %", "language", "english", 100),
    ("target, %", "language", "target", 100),
    ("MEXA, mean, %", "similarity", "mean/mexa", 100),
    ("MEXA, last, %", "similarity", "last_token/mexa", 100),
)


def text(report: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The report as tables: a row per layer; with two models, before -> after, and * where the interval of the paired
    difference leaves out 0. Also the section of the run in a comparison's report."""
    lines = []
    if report["baseline"]:
        lines.append(f"{report['baseline']} -> {report['run']}; * the 95 % interval of the difference leaves out 0.")
    if report.get("reader") == "tuned_lens":
        lines.append("Entropy, language and nats are read by a tuned lens, fitted on these examples by least squares.")
    if any("language_after_blank" in found for found in report["languages"].values()):
        lines.append("Languages whose answers begin with a blank token are read behind it, for English % and target %.")
    every: list[tuple[str, str, str, float]] = [*_COLUMNS]
    every += [(head, name, one, factor) for name, o in OBJECTIVES.items() for head, one, factor in o.lens_columns]
    marks = {report["layers"]["conversion"]: " i", report["layers"]["thinking"]: " j"}
    for language, found in report["languages"].items():
        columns = [
            (head, tables[name], factor)
            for head, measure, name, factor in every
            if name in (tables := _tables(found, measure))
        ]
        rows = [
            [f"{layer}{marks.get(layer, '')}", *(_cell(one, layer - 1, factor) for _, one, factor in columns)]
            for layer in range(1, report["layers"]["count"] + 1)
        ]
        title = f"{language_name(language)}, {found['examples']} pairs"
        lines += ["", f"### {title}" if markdown else title, ""]
        if columns:
            lines.append(table(["layer", *(head for head, _, _ in columns)], rows, markdown=markdown))
        for name, objective in OBJECTIVES.items():
            lines += objective.lens_lines(found[name]) if name in found else []
    return "\n".join(lines).strip("\n")


def _tables(found: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    best = f"{measure}_after_blank" if f"{measure}_after_blank" in found else measure
    return found[best]["tables"] if best in found else {}


def _cell(columns: Mapping[str, Any], k: int, factor: float) -> str:
    digits = 1 if factor == 100 else 2
    after = f"{columns['run']['mean'][k] * factor:.{digits}f}"
    if not columns["baseline"]:
        return after
    low, high = columns["difference"]["low"][k], columns["difference"]["high"][k]
    star = "*" if low is not None and (low > 0 or high < 0) else ""
    return f"{columns['baseline']['mean'][k] * factor:.{digits}f} -> {after}{star}"


def files() -> list[str]:
    """Whatever `lens` may write into its folder."""
    return ["lens.json", "lens.md", *(f"{name}.{ending}" for name in plots() for ending in ("png", "svg"))]


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """lens.json, lens.md and the plots, into `folder`; returns the files."""
    make_folder(folder)
    content, page = folder / "lens.json", folder / "lens.md"
    write_text(content, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(page, f"# {report['run']}: layer by layer\n\n{text(report, markdown=True)}\n")
    return [content, page, *draw(report, folder)]
