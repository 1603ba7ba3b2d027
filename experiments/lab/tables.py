"""What the cells of a grid say, in tables.

Every sentence that judges (gains, moved, within the interval) is computed from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, Protocol

import numpy as np

from experiments.lab.rows import BASE, BROKEN, TFT, GridSetting, by_name
from experiments.pages import origin, percent, points
from pivotune import uncertainty
from pivotune.errors import PivotuneError
from pivotune.lens import Layers
from pivotune.plotting import new_figure, save
from pivotune.tables import table
from pivotune.uncertainty import Interval

ALL = "all languages"
LEVEL = 0.05
TERMS = {
    # term -> the column of `look_inside` that it trains, by signal and pooling, and which way is better
    ("language_conversion", "logits"): ("question_nats", "conversion_layer", -1),
    ("english_thinking", "logits"): ("answer_nats", "thinking_layer", -1),
    ("language_conversion", "feature"): ("question_cosine", "conversion_layer", 1),
    ("english_thinking", "feature"): ("answer_cosine", "thinking_layer", 1),
}
SHORT = {"language_conversion": "LC", "english_thinking": "ET"}

KINDS = ("right", "right, but in English", "the answer of another question", "anything else")

Gold = Mapping[str, Mapping[str, tuple[str, str]]]
"""Language -> item -> the right answer in it and in English."""


class Named(Protocol):
    """What is asked: its name, and the kind of question that an item is."""

    name: str

    def kind(self, item: str) -> str: ...


@dataclass(frozen=True)
class Row:
    """One line of a table: a setting, how it is asked, and its results, one per seed."""

    label: str
    setting: GridSetting
    mode: str
    results: Sequence[Mapping[str, Any]]

    def answers(self, split: str, column: str, languages: Sequence[str]) -> np.ndarray:
        """(S, F): right or wrong; for ALL weighted so that each language counts the same."""
        if column == ALL:
            return uncertainty.contributions(uncertainty.block([self._of(split, language) for language in languages]))
        return self._of(split, "en" if column == "English" else column)[1]

    def of_kind(self, split: str, languages: Sequence[str], wanted: Callable[[str], bool]) -> np.ndarray:
        """(S, F'): as `answers` of all languages, to the items that are wanted."""
        tables = []
        for language in languages:
            items, right_SF = self._of(split, language)
            columns = [k for k, name in enumerate(items) if wanted(name)]
            if columns:
                tables.append(([items[k] for k in columns], right_SF[:, columns]))
        return uncertainty.contributions(uncertainty.block(tables))

    def kinds(self, split: str, languages: Sequence[str], gold: Gold) -> dict[str, float]:
        """Shares of the kinds of answers, mean over languages and seeds."""
        shares = dict.fromkeys(KINDS, 0.0)
        for language in languages:
            others = {own for own, _ in gold[language].values()}
            for result in self.results:
                found = result["answers"][split][self.mode][language]
                for name, answer in zip(found["items"], found["given"], strict=True):
                    shares[kind_of(answer, gold[language][name], others)] += 1 / len(found["items"])
        return {kind: share / (len(languages) * len(self.results)) for kind, share in shares.items()}

    def _of(self, split: str, language: str) -> tuple[list[str], np.ndarray]:
        found = [result["answers"][split][self.mode][language] for result in self.results]
        if any(one["items"] != found[0]["items"] for one in found):
            raise PivotuneError(f"{self.label}: its seeds were asked different items.")
        return found[0]["items"], np.array([one["right"] for one in found], dtype=np.float64)


def kind_of(answer: str, right: tuple[str, str], others: Collection[str]) -> str:
    """One of `KINDS`. `right`: in the language and in English; `others`: all answers in the language."""
    own, english = right
    said = (answer == own, answer == english, answer in others, True)
    return KINDS[said.index(True)]


def rows_of(setting: GridSetting, results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row; three for a connected run, asked with its matrix, with real English and without a connection."""
    if setting.cc_tuning is None:
        return [Row(setting.name, setting, "none", results)]
    modes: dict[str, str] = {"": "matrix", " [real English]": "english", " [no connection]": "none"}
    return [Row(setting.name + label, setting, mode, results) for label, mode in modes.items()]


def provenance(command: str, results: Iterable[Mapping[str, Any]], split: str) -> str:
    """The head of a section: what produced it."""
    results = list(results)
    first = results[0]
    asked = first["answers"][split]["none"]
    counts = ", ".join(f"{language} {len(found['right'])}" for language, found in asked.items())
    commit, made_with = origin(results)
    seeds = sorted({one["cell"]["seed"] for one in results if one["steps"]})
    hours = sum(one["seconds"] for one in results) / 3600
    lines = [
        f"    {command}",
        "",
        commit,
        f"* base model {first['cell']['base'][:12]}, data {first['cell']['data'][:12]} (task: {first['cell']['task']})",
        made_with,
        f"* seeds: {', '.join(map(str, seeds))}; {split} items: {counts}",
        f"* {len(results)} cells, {hours:.1f} hours in all on one core each",
    ]
    return "\n".join(lines)


# The grids -----------------------------------------------------------------------------------------------------------


def headline(
    by_budget: Mapping[str, Sequence[tuple[GridSetting, Sequence[Mapping[str, Any]]]]],
    base: Mapping[str, Any],
    languages: Sequence[str],
    split: str,
    gold: Gold,
    task: Named,
) -> str:
    """Scores, comparisons with TFT at equal steps and at equal FLOPs, by kind of question, cost, answers, what moved,
    shuffled rows."""
    columns = [*languages, ALL, "English"]
    steps = {setting.name: rows_of(setting, results) for setting, results in by_budget["steps"]}
    flat = [row for rows in steps.values() for row in rows]
    base_row = Row("base model", BASE, "none", [base])
    tft = steps[TFT.name][0]
    parts = [
        f"### Exact match, {split} {task.name}, equal steps",
        f"Percent [95 % interval over seeds and items]. {ALL.capitalize()}: the languages' mean, without English. "
        "Where all answers are right, or none is, the interval says what more items might show. CC is asked "
        "with its Transform Matrix; [real English] is given the question in English, which a user does not have.",
        _scores([base_row, *flat], columns, languages, split),
        "### Against TFT, equal steps",
        _COMPARISON_NOTE,
        *_comparisons([row for row in flat if row is not tft], lambda _: tft, languages, split),
    ]
    parts += [
        "### By kind of question, equal steps",
        _by_kind([row for row in flat if row is not tft], base_row, tft, languages, split, task),
    ]
    cheaper = [row for setting, results in by_budget["flops"] for row in rows_of(setting, results)]
    if cheaper:
        parts += [
            "### Against TFT, equal FLOPs",
            "Each method makes as many steps as TFT's FLOPs pay for; the schedule ends with them.",
            *_comparisons(cheaper, lambda _: tft, languages, split, steps=True),
        ]
    fewer = {setting.name: results for setting, results in by_budget["flops"]}
    parts += ["### Cost", _cost(steps, fewer, tft)]
    parts += ["### What is answered", _kinds([base_row, *flat], languages, split, gold)]
    parts += [
        "### Did what is supervised move?",
        "Means over the languages that are not English, on pairs that no run was trained on, without a connection. "
        "Nats per English token read by the output head, the question's at layer i and the answer's at layer j: less "
        "is better. Cosine of the question to its English counterpart at i, and at j to the English last layer; of "
        "the mean over its tokens, and of its last token. Last columns: each supervised quantity minus TFT's with its "
        "95 % t interval over seeds, and the term in training.",
        _inside(base_row, steps, tft, languages),
    ]
    connection = _connection(steps, languages)
    if connection:
        parts += ["### What the connection reads", connection]
    broken = [setting for setting in BROKEN if setting.name in steps and setting.tuned_as in steps]
    if broken:
        parts += ["### Broken on purpose: the English of another question", _broken(broken, steps, languages, split)]
    return "\n\n".join(parts)


def ablations(
    settings: Sequence[tuple[GridSetting, Sequence[Mapping[str, Any]]]],
    references: Mapping[str, Sequence[Mapping[str, Any]]],
    languages: Sequence[str],
    split: str,
    task: Named,
) -> str:
    """Every changed option beside the row that it changes."""
    against = {(name, row.mode): row for name, results in references.items() for row in rows_of(by_name(name), results)}
    rows = [row for setting, results in settings for row in rows_of(setting, results)]
    return "\n\n".join(
        [
            f"### Exact match, {split} {task.name}",
            _scores([*against.values(), *rows], [*languages, ALL, "English"], languages, split),
            "### Against the row that is changed",
            _COMPARISON_NOTE,
            *_comparisons(rows, lambda row: against[row.setting.tuned_as, row.mode], languages, split),
        ]
    )


def learning_rates(
    scores: Mapping[str, Mapping[float, float | None]], chosen: Mapping[str, float], task: str = "facts"
) -> str:
    """Development scores by rate, the chosen one in bold."""
    rates = list(next(iter(scores.values())))
    body = []
    for name, of_rate in scores.items():
        cells = ["failed" if of_rate[rate] is None else f"{100 * of_rate[rate]:.1f}" for rate in rates]  # type: ignore[operator]
        cells = [f"**{cell}**" if rate == chosen[name] else cell for rate, cell in zip(rates, cells, strict=True)]
        body.append([name, *cells])
    edge = [name for name, rate in chosen.items() if rate in (rates[0], rates[-1])]
    note = f"At an end of the list, so a better one may lie beyond: {', '.join(edge)}." if edge else ""
    return "\n\n".join(
        part
        for part in [
            f"Exact match in percent on development {task}, {ALL}, mean over seeds that are used for nothing else. "
            "Bold: chosen.",
            table(["learning rate", *(f"{rate:g}" for rate in rates)], body, markdown=True),
            note,
        ]
        if part
    )


def layers(
    pairs: Mapping[tuple[int, int], Row],
    chosen: Layers,
    languages: Sequence[str],
    figure: Path,
) -> str:
    """The entropy curve, what the rule chose, the sweep over all pairs, and whether the rule came near the best."""
    choice = chosen.rules["entropy"]
    picked = choice.conversion_layer, choice.thinking_layer
    tables = {
        split: {pair: row.answers(split, ALL, languages) for pair, row in pairs.items()}
        for split in ("development", "heldout")
    }
    means = {split: {pair: float(table.mean()) for pair, table in found.items()} for split, found in tables.items()}
    best = min(means["heldout"], key=lambda pair: (-means["heldout"][pair], pair))
    tuned = min(means["development"], key=lambda pair: (-means["development"][pair], pair))
    held = tables["heldout"]
    rank = 1 + sum(value > means["heldout"][picked] for value in means["heldout"].values())
    verdicts = []
    for pair, what in (
        (tuned, f"chosen among {len(pairs)} pairs on development facts"),
        (best, f"the best of {len(pairs)} on the held-out facts themselves, so its lead is optimistic"),
    ):
        if pair == picked:
            verdicts.append(f"* {_pair(pair)}, {what}: it is **the rule's own pair**.")
            continue
        gap = uncertainty.difference(held[pair], held[picked])
        p = uncertainty.crossed_test(held[pair], held[picked])
        verdict = "within the interval of" if gap.low <= 0 else "below"
        verdicts.append(
            f"* {_pair(pair)}, {what}: {percent(uncertainty.interval(held[pair]))}. It leads the rule's pair by "
            f"{points(gap)} points, p (method) {_p(p)}: the rule's pair is **{verdict}** it."
        )
    curve = chosen.curves["entropy"]
    confidence = "" if choice.confidence is None else f"; {100 * choice.confidence:.0f} % of the resamples agree"
    entropy = table(
        ["layer", *map(str, range(1, len(curve.mean) + 1))],
        [["entropy, nats", *(f"{value:.2f}" for value in curve.mean)]],
        markdown=True,
    )
    numbers = sorted({number for pair in pairs for number in pair})
    matrix = table(
        ["i \\ j", *map(str, numbers[1:])],
        [
            [str(i), *(f"{100 * means['heldout'][i, j]:.1f}" if (i, j) in pairs else "" for j in numbers[1:])]
            for i in numbers[:-1]
        ],
        markdown=True,
    )
    _heat_map(means["heldout"], picked, figure)
    return "\n\n".join(
        [
            f"The base model's entropy by layer, on training questions in {', '.join(languages)}:",
            entropy,
            f"The rule: {choice.reason}. It takes {_pair(picked)} "
            f"({'two drops found' if choice.found else 'the fallback'}{confidence}).",
            f"Exact match in percent on held-out facts, {ALL}, by the two layers:",
            matrix,
            f"The rule's pair scores {percent(uncertainty.interval(held[picked]))}, rank {rank} of {len(pairs)}; the "
            f"median pair scores {100 * median(means['heldout'].values()):.1f}.",
            "\n".join(verdicts),
        ]
    )


# Tables --------------------------------------------------------------------------------------------------------------

_COMPARISON_NOTE = (
    "Difference in points [95 % interval of the two-level bootstrap, paired]. p (models): sign flips over items, "
    "answers averaged over seeds; it speaks of these trained models. p (method): a t-test that takes both seeds and "
    "items for samples. Both corrected by Holm over the rows of the column; in the table by language, over rows and "
    "languages. * p (method) < 0.05."
)


def _scores(rows: Sequence[Row], columns: Sequence[str], languages: Sequence[str], split: str) -> str:
    body = [
        [row.label, *(percent(uncertainty.interval(row.answers(split, column, languages))) for column in columns)]
        for row in rows
    ]
    return table(["", *columns], body, markdown=True)


@dataclass(frozen=True)
class _Comparison:
    gap: Interval
    models: float
    method: float


def _comparisons(
    rows: Sequence[Row],
    other: Callable[[Row], Row],
    languages: Sequence[str],
    split: str,
    steps: bool = False,
) -> list[str]:
    """Two tables and a sentence: all languages and English with both tests; each language."""

    def compared(columns: Sequence[str]) -> dict[tuple[str, str], _Comparison]:
        found = {}
        for row in rows:
            for column in columns:
                own_SF, other_SF = (one.answers(split, column, languages) for one in (row, other(row)))
                paired_seeds = len(own_SF) == len(other_SF)
                found[row.label, column] = _Comparison(
                    uncertainty.difference(own_SF, other_SF),
                    uncertainty.sign_flip(own_SF, other_SF),
                    uncertainty.crossed_test(own_SF, other_SF) if paired_seeds else float("nan"),
                )
        models = uncertainty.holm([one.models for one in found.values()])
        method = uncertainty.holm([one.method for one in found.values()])
        return {
            name: replace(one, models=p, method=q)
            for (name, one), p, q in zip(found.items(), models, method, strict=True)
        }

    main = {column: compared([column]) for column in (ALL, "English")}
    each = compared(languages)
    heads = ["", *(["steps"] if steps else []), ALL, "p (models)", "p (method)", "English", "p (models)", "p (method)"]
    body, by_language = [], []
    for row in rows:
        line = [row.label, *([str(row.results[0]["steps"])] if steps else [])]
        for column in (ALL, "English"):
            one = main[column][row.label, column]
            line += [_starred(one), _p(one.models), _p(one.method)]
        body.append(line)
        by_language.append([row.label, *(_starred(each[row.label, language]) for language in languages)])
    out = [table(heads, body, markdown=True)]
    if len(languages) > 1:
        out.append(table(["", *languages], by_language, markdown=True))
    return [*out, _in_words(main)]


def _by_kind(rows: Sequence[Row], base: Row, tft: Row, languages: Sequence[str], split: str, task: Named) -> str:
    """The base's and TFT's score of each kind of question, and the other rows' difference from TFT."""
    items = next(iter(base.results))["answers"][split][base.mode][languages[0]]["items"]
    kinds = list(dict.fromkeys(map(task.kind, items)))

    def table_of(row: Row, kind: str) -> np.ndarray:
        return row.of_kind(split, languages, lambda name: task.kind(name) == kind)

    body = [[row.label, *(percent(uncertainty.interval(table_of(row, kind))) for kind in kinds)] for row in (base, tft)]
    found: dict[tuple[str, str], _Comparison] = {}
    for row in rows:
        for kind in kinds:
            own_SF, other_SF = table_of(row, kind), table_of(tft, kind)
            paired = len(own_SF) == len(other_SF)
            p = uncertainty.crossed_test(own_SF, other_SF) if paired else float("nan")
            found[row.label, kind] = _Comparison(uncertainty.difference(own_SF, other_SF), p, p)
    corrected = uncertainty.holm([one.method for one in found.values()])
    for (name, one), p in zip(list(found.items()), corrected, strict=True):
        found[name] = replace(one, method=p)
    body += [[row.label, *(_starred(found[row.label, kind]) for kind in kinds)] for row in rows]
    note = (
        f"{ALL.capitalize()}. Percent for the first two rows, for the others the difference from TFT in points. "
        "* p (method) < 0.05, corrected over rows and kinds."
    )
    return f"{note}\n\n{table(['', *kinds], body, markdown=True)}"


def _in_words(main: Mapping[str, Mapping[tuple[str, str], _Comparison]]) -> str:
    sentences = []
    if any(one.method != one.method for found in main.values() for one in found.values()):
        sentences.append("Rows without as many seeds, two at least, as the other side are not judged.")
    for column, found in main.items():
        for sign, verb in ((1, "Gain"), (-1, "Lose")):
            names = [label for (label, _), one in found.items() if one.method < LEVEL and one.gap.mean * sign > 0]
            sentences.append(f"{verb} in {column}: {', '.join(names) or 'none'}.")
    return " ".join(sentences)


def _kinds(rows: Sequence[Row], languages: Sequence[str], split: str, gold: Gold) -> str:
    body = [
        [row.label, *(f"{100 * share:.1f}" for share in row.kinds(split, languages, gold).values())] for row in rows
    ]
    note = (
        f"Percent of the answers, {ALL}. The answer of another question is fluent and false: the model knows what kind "
        "of thing is asked for, but not of whom, or recalls the wrong one."
    )
    return f"{note}\n\n{table(['', *KINDS], body, markdown=True)}"


def _cost(steps: Mapping[str, Sequence[Row]], fewer: Mapping[str, Sequence[Mapping[str, Any]]], tft: Row) -> str:
    body = []
    for name, rows in steps.items():
        results = rows[0].results
        flops = results[0]["flops_per_step"] / tft.results[0]["flops_per_step"]
        seconds = [one["training_cpu_seconds"] for one in results]
        plain = median(one["training_cpu_seconds"] for one in tft.results)
        body.append(
            [
                name,
                f"{results[0]['cell']['learning_rate']:g}",
                f"{flops:.2f}",
                f"{median(seconds) / plain:.2f} [{min(seconds) / plain:.2f}, {max(seconds) / plain:.2f}]",
                str(results[0]["steps"]),
                str(fewer[name][0]["steps"]) if name in fewer else "",
            ]
        )
    heads = [
        "",
        "learning rate",
        "FLOPs of a step / TFT",
        "CPU time of training / TFT [range]",
        "steps",
        "at equal FLOPs",
    ]
    return table(heads, body, markdown=True)


def _inside(base: Row, steps: Mapping[str, Sequence[Row]], tft: Row, languages: Sequence[str]) -> str:
    supervised = [rows[0].setting.deep_supervision for rows in steps.values() if rows[0].setting.deep_supervision]
    if not supervised:
        return "No row supervises a layer."
    i, j = supervised[0].conversion_layer, supervised[0].thinking_layer
    columns = {
        f"question nats, i={i}": ("question_nats", i),
        f"answer nats, j={j}": ("answer_nats", j),
        "cosine at i": ("question_cosine", i),
        "cosine at j": ("answer_cosine", j),
        "cosine at i, last token": ("question_cosine_last", i),
        "cosine at j, last token": ("answer_cosine_last", j),
    }
    body = []
    for row in [base, *(rows[0] for rows in steps.values())]:
        line = [row.label, *(f"{mean(_of_layer(row, what, languages)):.2f}" for what in columns.values())]
        body.append([*line, *_moved(row, tft, languages)])
    return table(["", *columns, "moved, against TFT", "in training, first -> last"], body, markdown=True)


def _of_layer(row: Row, what: tuple[str, Any], languages: Sequence[str]) -> list[float]:
    """Per seed, the mean over languages of a quantity at a layer."""
    name, layer = what
    return [mean(result["inside"][language][name][layer - 1] for language in languages) for result in row.results]


def _moved(row: Row, tft: Row, languages: Sequence[str]) -> tuple[str, str]:
    options = row.setting.deep_supervision
    moved, trained = [], []
    for term, signal in row.setting.terms.items():
        assert options is not None
        name, where, better = TERMS[term, signal]
        if signal == "feature" and options.pooling == "last_token":
            name += "_last"
        layer = getattr(options, where)
        own, plain = (_of_layer(one, (name, layer), languages) for one in (row, tft))
        if len(own) == len(plain):
            gap = uncertainty.over_seeds([a - b for a, b in zip(own, plain, strict=True)])
            toward = gap.high < 0 if better < 0 else gap.low > 0
            away = gap.low > 0 if better < 0 else gap.high < 0
            verdict = "yes" if toward else "away" if away else "no"
            if len(own) > 1:
                moved.append(f"{SHORT[term]} {verdict}: {gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]")
            else:
                moved.append(f"{SHORT[term]} {gap.mean:+.2f}, one seed")
        first, last = (mean(one["terms"][term][when] for one in row.results) for when in ("first", "last"))
        trained.append(f"{SHORT[term]} {first:.2f} -> {last:.2f}")
    return "; ".join(moved), "; ".join(trained)


def _connection(steps: Mapping[str, Sequence[Row]], languages: Sequence[str]) -> str:
    body = []
    for name, rows in steps.items():
        if rows[0].setting.cc_tuning is None:
            continue
        line = [name]
        for what in ("agreement", "r2", "r2_of_copy"):
            values = [mean(result["inside"][language][what][0] for language in languages) for result in rows[0].results]
            line.append(f"{mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
        body.append(line)
    if not body:
        return ""
    heads = [
        "mean [range over seeds]",
        "same layer picked from matrix and English",
        "R² of the matrix",
        "R² without it",
    ]
    return table(heads, body, markdown=True)


def _broken(
    settings: Sequence[GridSetting], steps: Mapping[str, Sequence[Row]], languages: Sequence[str], split: str
) -> str:
    body, judged = [], []
    for setting in settings:
        broken, intact, tft = (
            steps[name][0].answers(split, ALL, languages) for name in (setting.name, setting.tuned_as, TFT.name)
        )
        gain, lead = uncertainty.difference(broken, tft), uncertainty.difference(intact, broken)
        p = uncertainty.crossed_test(intact, broken) if len(intact) == len(broken) else float("nan")
        body.append([setting.name, points(gain), points(lead), _p(p)])
        judged.append(
            f"{setting.name}: {'a gain, so the method is not what its name says' if gain.low > 0 else 'no gain'}"
        )
    heads = [ALL, "shuffled over TFT", "intact over shuffled", "p (method), uncorrected"]
    return f"{table(heads, body, markdown=True)}\n\n{'. '.join(judged)}."


def _heat_map(score: Mapping[tuple[int, int], float], picked: tuple[int, int], path: Path) -> None:
    size = max(number for pair in score for number in pair)
    grid = np.full((size, size), np.nan)
    for (i, j), value in score.items():
        grid[i - 1, j - 1] = 100 * value
    figure, axes = new_figure(1.6 + 0.6 * size, 1.0 + 0.4 * size)
    middle = 100 * (min(score.values()) + max(score.values())) / 2  # above, the map is light
    image = axes.imshow(grid, origin="lower", cmap="viridis", extent=(0.5, size + 0.5, 0.5, size + 0.5), aspect="auto")
    for (i, j), value in score.items():
        color = "black" if 100 * value > middle else "white"
        axes.text(j, i, f"{100 * value:.1f}", ha="center", va="center", color=color, fontsize=8)
    axes.plot(picked[1], picked[0], marker="s", markersize=26, fillstyle="none", color="C3")
    axes.set_xlabel("j, thinking layer")
    axes.set_ylabel("i, conversion layer")
    axes.set_title("Held-out exact match, %, by supervised layers (square: the rule's)", fontsize=9)
    figure.colorbar(image, ax=axes)
    save(figure, path)


# Numbers -------------------------------------------------------------------------------------------------------------


def _starred(one: _Comparison) -> str:
    return points(one.gap) + ("*" if one.method < LEVEL else "")


def _p(value: float) -> str:
    if value != value:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _pair(pair: tuple[int, int]) -> str:
    return f"i = {pair[0]}, j = {pair[1]}"
