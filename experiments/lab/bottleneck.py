"""Where is a held-out question lost, and could English have helped? The lab's rows taken apart.

    python -m experiments.lab.bottleneck [--seeds 3] [--workers 2] [--results RESULTS.md]

Four questions, each answered by an intervention on trained models:

* hops: is a step missing (the subject's name, the fact, the value's name), or do known steps not follow each other?
* reading: is the English answer known in the middle and not said, or not known? Every layer is asked for it.
* patches: what of the English pass carries the answer at the last token, the only place that CC-Tuning connects?
  And is it said in the own language, once what makes it English is taken off?
* connections: does a connected model listen to the English question, and to which? Is the Transform Matrix short of
  pairs, or of knowledge?

The same rows, rates and seeds as in the grids of `experiments.lab`; held-out facts, nothing is chosen on them here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch counts the cores: a model is asked on one thread

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from experiments import pages, results
from experiments.cells import environment, read_result, write_result
from experiments.lab.cell import Cell, Lab, trained
from experiments.lab.grids import RATES, chosen_rate
from experiments.lab.rows import BASE, TFT, GridSetting, by_name
from experiments.lab.tables import ALL, KINDS, kind_of
from experiments.lab.tasks import shuffled
from pivotune import uncertainty
from pivotune.anatomy import Anatomy, Site
from pivotune.checkpoint import load_run
from pivotune.connection import connect
from pivotune.errors import PivotuneError
from pivotune.generation import generate_texts
from pivotune.lab.base import base_path
from pivotune.lab.settings import ANSWER_TOKENS, EPOCHS
from pivotune.lab.templates import LANGUAGES, MEANING, SCAFFOLD
from pivotune.lab.trial import Record, ask, item
from pivotune.lab.world import Fact, World, mixed_prompt
from pivotune.objectives.cc_tuning import LinearConnection
from pivotune.objectives.cc_tuning.transform_matrix import RunningR2, least_squares
from pivotune.tables import table
from pivotune.taps import Injection, Tap

BATCH = 64
LOGITS, FEATURE, CC = by_name("logits"), by_name("feature"), by_name("CC")
ASKED: Mapping[str, Sequence[str]] = {
    BASE.name: ("hops", "reading", "patches", "carried"),
    TFT.name: ("hops", "reading", "patches", "carried"),
    LOGITS.name: ("hops", "reading", "carried"),
    FEATURE.name: ("hops",),
    CC.name: ("hops", "connections", "matrices"),
}
"""What each row is asked; a patch and a connection say little of a row that is not made for them."""

WHOLE = "question, subject, answer: own language"
HOPS = {
    "fact": "all in English: the fact itself",
    "subject": "what does the subject's name mean in English?",
    "value": "what is the value's English name in the language? (called alike: right)",
    "foreign subject": "English question about the subject's own name",
    "foreign frame": "target-language question with the subject's English name",
    "whole": WHOLE,
}
PARTS: tuple[Site, ...] = ("attention", "feed_forward")
SITES: tuple[Site, ...] = (*PARTS, "hidden")

MATRICES = {
    # name -> the questions it is fitted on, and whether languages and layers have one each
    "fitted on all training questions": ("training", False, False),
    "and one per language": ("training", True, False),
    "fitted on development questions": ("development", False, False),
    "fitted on training and development questions": ("both", False, False),
    "fitted on the very questions asked": ("heldout", False, False),
    "and one per language and layer": ("heldout", True, True),
}

Given = dict[str, list[str]]
"""By language, the answers to its held-out facts (`carried`: to those of `_all_named`), in their order."""


@dataclass(frozen=True)
class Subject:
    """One model of this experiment: a row and a seed."""

    setting: GridSetting
    seed: int

    def cell(self, lab: Lab) -> Cell:
        setting = self.setting.at_layers(lab.layers)
        rate = 0.0 if not setting.trained else chosen_rate(setting, lab, RATES)
        return Cell(setting, rate, self.seed, "steps", EPOCHS, ("heldout",))


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lab.bottleneck",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each row")
    parser.add_argument("--workers", type=int, default=2, help="processes, each on one thread")
    parser.add_argument("--folder", type=Path, default=Path("runs/bottleneck"), help="where results are kept")
    parser.add_argument("--results", type=Path, help="RESULTS.md: record the section beside it")
    options = parser.parse_args(given)
    lab = Lab(str(base_path()), "facts", tuple(LANGUAGES[1:]))
    subjects = [
        Subject(setting, seed)
        for setting in (BASE, TFT, LOGITS, FEATURE, CC)
        for seed in range(1 if not setting.trained else options.seeds)
    ]
    where = environment()
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for subject, _ in zip(subjects, pool.map(partial(measure, options.folder, where), subjects), strict=True):
            print(f"{subject.setting.name}, seed {subject.seed}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for subject in subjects:
        result = read_result(options.folder, lab.key(subject.cell(lab)))
        assert result is not None
        found.setdefault(subject.setting.name, []).append(result)
    every = [result for some in found.values() for result in some]
    counts = ", ".join(f"{language} {len(some)}" for language, some in facts(lab.languages).items())
    about = [
        f"base model {lab.base_hash[:12]}",
        f"seeds: {options.seeds} of each row; held-out facts of which the subject has a name of its own: {counts}",
    ]
    results.publish("lab.bottleneck", given, every, about, render(found, lab), options.results)
    return 0


# Asking --------------------------------------------------------------------------------------------------------------


def measure(folder: Path, where: Mapping[str, Any], subject: Subject) -> None:
    """Train a row and ask it; what has a result already is left, unless there is more to ask by now."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    lab = _lab()
    cell = subject.cell(lab)
    key = lab.key(cell)
    wanted = ASKED[subject.setting.name]
    if (done := read_result(folder, key)) is not None and done.keys() >= set(wanted):
        return
    place = folder / "work" / key
    shutil.rmtree(place, ignore_errors=True)  # of a run that was interrupted
    place.mkdir(parents=True)
    run = load_run(
        lab.base if not subject.setting.trained else str(trained(lab, cell, place)),
        dtype=torch.float32,
        device="cpu",
    )
    anatomy = Anatomy(run.model)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "hops": lambda: hops(run.model, run.tokenizer),
        "reading": lambda: reading(anatomy, run.tokenizer),
        "patches": lambda: patches(anatomy, run.tokenizer),
        "carried": lambda: carried(anatomy, run.tokenizer, _all_named()),
        "connections": lambda: connections(run, lab),
        "matrices": lambda: matrices(run, lab),
    }
    with torch.inference_mode():
        found = {name: parts[name]() for name in wanted}
    write_result(folder, key, {"row": subject.setting.name, "seed": subject.seed, **where, **found})
    shutil.rmtree(place)


@lru_cache(maxsize=1)
def _lab() -> Lab:
    return Lab(str(base_path()), "facts", tuple(LANGUAGES[1:]))


@lru_cache(maxsize=1)
def _world() -> World:
    return World.build()


def facts(languages: Sequence[str]) -> dict[str, list[Fact]]:
    """The held-out facts of each language whose subject it does not call by the English name."""
    return {
        language: [fact for fact in _world().heldout(language) if own_subject(fact, language)] for language in languages
    }


def own_subject(fact: Fact, language: str) -> bool:
    """Whether the language does not call the subject by its English name."""
    return fact.subject_names[language] != fact.subject_names["en"]


def own_value(fact: Fact, language: str) -> bool:
    """Whether the value has a name of its own in the language: calling codes have none."""
    return fact.value_names[language] != fact.value_names["en"]


def _all_named() -> dict[str, list[Fact]]:
    """Those of `facts` whose value has a name of its own too."""
    return {
        language: [fact for fact in some if own_value(fact, language)]
        for language, some in facts(LANGUAGES[1:]).items()
    }


def hops(model: Any, tokenizer: Any) -> dict[str, Given]:
    """Each step from a question to its answer asked by itself, and the whole."""
    asked = {
        name: {
            language: answers(model, tokenizer, [hop_of(name, fact, language)[0] for fact in some])
            for language, some in facts(LANGUAGES[1:]).items()
        }
        for name in HOPS
    }
    return asked


def hop_of(name: str, fact: Fact, language: str) -> tuple[str, str]:
    """Prompt and right answer of a hop."""
    k = _index()[fact.id]
    subject, value = fact.subject_names, fact.value_names
    if name == "fact":
        return mixed_prompt(fact, "en", "en", k), value["en"]
    if name == "subject":
        return SCAFFOLD["en"].format(q=MEANING["en"].format(x=subject[language])), subject["en"]
    if name == "value":
        return SCAFFOLD[language].format(q=MEANING[language].format(x=value["en"])), value[language]
    if name == "foreign subject":
        return mixed_prompt(fact, "en", language, k), value["en"]
    if name == "foreign frame":
        return mixed_prompt(fact, language, "en", k), value[language]
    return mixed_prompt(fact, language, language, k), value[language]


@lru_cache(maxsize=1)
def _index() -> dict[str, int]:
    """The wording of a fact's question, as `World.examples` rotates it."""
    return {fact.id: k for k, fact in enumerate(_world().facts)}


def reading(anatomy: Anatomy, tokenizer: Any) -> dict[str, Given]:
    """The answer that the output head reads behind each layer, after the own and after the English question.

    Layers 1..l with the final norm and the head are a language model of their own: it is this one that English
    thinking trains at l = j, so it is asked as any other.
    """
    found: dict[str, Given] = {}
    for layer in range(1, anatomy.num_layers + 1):
        with anatomy.truncated(layer):
            for name, hop in (("own", "whole"), ("English", "fact")):
                found[f"{name}, layer {layer}"] = {
                    language: answers(anatomy.lm, tokenizer, [hop_of(hop, fact, language)[0] for fact in some])
                    for language, some in facts(LANGUAGES[1:]).items()
                }
    return found


def patches(anatomy: Anatomy, tokenizer: Any) -> dict[str, Given]:
    """Activation patching: the target-language question with parts of the English pass in place of its own at the last
    token, and the English one with parts taken out there (their mean over the questions of the batch stands in)."""
    layers = range(1, anatomy.num_layers + 1)
    everywhere = {site: [(site, layer) for layer in layers] for site in PARTS}
    put: dict[str, list[tuple[Site, int]]] = {
        "nothing": [],
        "feed-forward outputs, all layers": everywhere["feed_forward"],
        "attention outputs, all layers": everywhere["attention"],
        **{f"everything up to layer {layer}": [("hidden", layer)] for layer in layers},
    }
    found: dict[str, Given] = {}
    for language, some in facts(LANGUAGES[1:]).items():
        for start in range(0, len(some), BATCH):
            batch = some[start : start + BATCH]
            own, english = ([hop_of(hop, fact, language)[0] for fact in batch] for hop in ("whole", "fact"))
            seen = _seen(anatomy, tokenizer, english)
            for name, places in put.items():
                theirs = {(site, layer): seen[site][:, layer - 1] for site, layer in places}
                said = _patched(anatomy, tokenizer, own, theirs)
                found.setdefault(name, {}).setdefault(language, []).extend(said)
            for site in PARTS:
                means = {place: seen[site][:, place[1] - 1].mean(dim=0, keepdim=True) for place in everywhere[site]}
                said = _patched(anatomy, tokenizer, english, means)
                name = f"English question without its {site.replace('_', '-')} outputs"
                found.setdefault(name, {}).setdefault(language, []).extend(said)
    return found


def carried(anatomy: Anatomy, tokenizer: Any, asked: Mapping[str, Sequence[Fact]]) -> dict[str, Given]:
    """The target-language question, with the English pass's residual stream behind layer l, less what makes it English.

    That is the stream of the target-language question plus the difference of the English question from the mean
    English one, less its own difference from the mean of its language; at the token before the answer's first word.
    Where content and language are apart, so that a layer has the one in other directions than the other, the answer
    is said in the own language. (The difference of means as the direction of a language: Dumas et al., ACL 2025,
    average over languages instead.)
    """
    found: dict[str, Given] = {}
    layers = range(1, anatomy.num_layers + 1)
    for language, some in asked.items():
        pairs = [(hop_of("whole", fact, language), hop_of("fact", fact, language)[0]) for fact in some]
        # Some answers begin with a token that is the blank alone: the prompt ends behind it.
        own = [prompt + " " * _blank(tokenizer, value) for (prompt, value), _ in pairs]
        batches = [slice(start, start + BATCH) for start in range(0, len(own), BATCH)]
        own_NLd, english_NLd = (
            torch.cat([_seen(anatomy, tokenizer, prompts[one])["hidden"] for one in batches])
            for prompts in (own, [english for _, english in pairs])
        )
        put_NLd = english_NLd - english_NLd.mean(0) + own_NLd.mean(0)
        puts: dict[str, list[int]] = {"nothing": []} | {f"layer {layer}": [layer] for layer in layers}
        said_by = {
            name: [
                said
                for one in batches
                for said in _patched(
                    anatomy, tokenizer, own[one], {("hidden", layer): put_NLd[one, layer - 1] for layer in chosen}
                )
            ]
            for name, chosen in puts.items()
        }
        for name, said in said_by.items():
            found.setdefault(name, {})[language] = said
    return found


def _blank(tokenizer: Any, value: str) -> bool:
    (first, *_) = tokenizer(f" {value}", add_special_tokens=False).input_ids
    return bool(tokenizer.decode([first]) == " ")


def _seen(anatomy: Anatomy, tokenizer: Any, prompts: Sequence[str]) -> dict[Site, Tensor]:
    """What every site of every layer gives at the last token of each prompt: (N, L, d) each."""
    inputs = _encoded(tokenizer, prompts)
    with Tap(anatomy, at=_last(inputs)[0].expand(len(prompts)), sites=SITES) as tap:
        anatomy.lm.generate(**inputs, max_new_tokens=1, do_sample=False)
    return {site: tap.states(site) for site in SITES}


def _patched(
    anatomy: Anatomy, tokenizer: Any, prompts: Sequence[str], put: Mapping[tuple[Site, int], Tensor]
) -> list[str]:
    """Answers with vectors, (B, d) or (1, d), in place of what (site, layer) gives at each prompt's last token."""
    inputs = _encoded(tokenizer, prompts)
    last = _last(inputs)
    patches = [Injection(layer, put_Bd, last, site=site, replace=True) for (site, layer), put_Bd in put.items()]
    with Tap(anatomy, injections=patches):
        output = anatomy.lm.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _encoded(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Padded on the left, so that all prompts end at the same place."""
    return tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)


def _last(inputs: Any) -> Tensor:
    """(1, 1): where they end. No token of an answer is there: each comes in a pass of its own, as its first token."""
    return torch.tensor([[inputs.input_ids.shape[1] - 1]])


def connections(run: Any, lab: Lab) -> dict[str, Given]:
    """A connected model without English, with its matrix, with the English question, and with that of another one."""
    connect(run.model, run.connections["cc_tuning"], "none")
    own = {language: _records(lab, language) for language in lab.languages}
    other = {language: shuffled(records, seed=0) for language, records in own.items()}
    modes: dict[str, tuple[Any, Mapping[str, Sequence[Record]]]] = {
        "no connection": ("none", own),
        "Transform Matrix": ("matrix", own),
        "the English question": ("english", own),
        "the English of another question": ("english", other),
    }
    return {
        name: {language: found["given"] for language, found in ask(run.model, run.tokenizer, records, mode).items()}
        for name, (mode, records) in modes.items()
    }


def matrices(run: Any, lab: Lab) -> dict[str, dict[str, Any]]:
    """A connected model with other Transform Matrices: {"given": answers, "r2": on the questions asked} of each.

    Those fitted on the very questions asked know what no user has. They bound what a linear map can lend.
    """
    plain = run.connections["cc_tuning"]
    config, decision_maker = plain.config, plain.decision_maker.weight
    asked = {language: _records(lab, language) for language in lab.languages}
    records = {
        split: {language: list(lab.task.examples(split, language)) for language in lab.languages}
        for split in ("training", "development")
    } | {"heldout": asked}
    pairs = {
        split: {language: _activations(plain, run.tokenizer, some) for language, some in of_language.items()}
        for split, of_language in records.items()
    }
    pairs["both"] = {}
    for language, development in pairs["development"].items():
        sides = zip(pairs["training"][language], development, strict=True)
        own_LNd, english_LNd = (torch.cat(side, dim=1) for side in sides)
        pairs["both"][language] = own_LNd, english_LNd
    found: dict[str, dict[str, Any]] = {}
    for name, (split, per_language, per_layer) in MATRICES.items():
        r2, given = RunningR2(lab.num_layers, plain.anatomy.hidden_size), {}
        for language in lab.languages:
            fitted = [pairs[split][language]] if per_language else list(pairs[split].values())
            matrix = least_squares(fitted, per_layer=per_layer, ridge=config.ridge)
            connection = LinearConnection(run.model, config, decision_maker, matrix)
            connect(run.model, connection, "none")
            given[language] = ask(run.model, run.tokenizer, {language: asked[language]}, "matrix")[language]["given"]
            own_LNd, english_LNd = pairs["heldout"][language]
            r2.add(connection.transform(own_LNd.transpose(0, 1)).transpose(0, 1), english_LNd)
        found[name] = {"given": given, "r2": r2.overall()}
    return found


def _activations(connection: LinearConnection, tokenizer: Any, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """The feed-forward activations at the last token of the questions and of their English, (L, N, d) each."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        for side, texts in zip(sides, (batch, [record["english"] for record in batch]), strict=True):
            prompts = [text["prompt"] for text in texts]
            inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
            side.append(connection.activations(inputs.input_ids, inputs.attention_mask).transpose(0, 1))
    own, english = (torch.cat(side, dim=1) for side in sides)
    return own, english


def _records(lab: Lab, language: str) -> list[Record]:
    wanted = {fact.id for fact in facts([language])[language]}
    return [record for record in lab.task.examples("heldout", language) if item(record) in wanted]


def answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Greedy answers, in the order of the prompts."""
    return generate_texts(model, tokenizer, prompts, style="plain", batch_size=BATCH, max_new_tokens=ANSWER_TOKENS)


# Telling -------------------------------------------------------------------------------------------------------------


def render(found: Mapping[str, Sequence[Mapping[str, Any]]], lab: Lab) -> str:
    """The tables, a sentence on how to read each."""
    of_language = facts(lab.languages)
    named = _all_named()
    counts = ", ".join(f"{language} {len(some)}" for language, some in named.items())
    parts = [
        "### Hops",
        f"Percent right, {ALL} [95 % interval over seeds and facts]. Last two rows: of the questions whose steps "
        "hold, each asked by itself: what is missing there is no step, but that they follow each other.",
        _hops(found, of_language),
        f"The tables below are of the questions whose answer has a name of its own too ({counts}).",
        "### Every layer, asked for the answer",
        "Percent of the answers that the output head reads behind layers 1 to l, right in English: after the own "
        f"question, and after the English one. {ALL.capitalize()}, mean over seeds.",
        _reading(found, named, lab.num_layers),
        "Thought: right in English, read behind layer j. Said: right in the language, at the end. Percent of the "
        "questions, mean over languages and seeds.",
        _thought(found, named, lab.layers[1]),
        "### What of the English pass carries the answer",
        "Activation patching. The model is given the target-language question; at the prompt's last token parts of the "
        "pass over the English question take the place of its own. Below, English questions without one part's outputs "
        f"at the last token. Percent of the answers, {ALL}, mean over seeds.",
        *(f"{row}:\n\n{_patches(found[row], 'patches', named)}" for row in (BASE.name, TFT.name)),
        "### Do content and language come apart?",
        "The same with the whole residual stream behind one layer, at the token before the answer, less what makes it "
        "English: the English question's difference from the mean of all English questions is put in place of the own "
        "one's difference from the mean of all own ones. Where a layer keeps content and language apart, the right "
        "answer is said in the own language.",
        *(f"{row}:\n\n{_patches(found[row], 'carried', named)}" for row in (BASE.name, TFT.name, LOGITS.name)),
        "### What a connected model listens to",
        f"Row: {CC.name}. Percent of the answers, {ALL}, mean over seeds. Last column: the answer to the question "
        "whose English was lent, in the language.",
        _connections(found[CC.name], lab, named),
        "With other Transform Matrices. The matrix reads the own pass alone: R^2 says how much of the English "
        "activations it finds there, on the questions asked. Fitted on these very questions it bounds what a linear "
        "map can lend.",
        _matrices(found[CC.name], named),
    ]
    return "\n\n".join(parts)


def _right(given: Given, hop: str, of_language: Mapping[str, Sequence[Fact]]) -> dict[str, np.ndarray]:
    """(F,) per language: whether each hop holds. The value's does where it is called alike: no text names it.

    Args:
        given: answers to all of `facts`.
        of_language: those of them that are looked at.
    """

    def holds(said: str, fact: Fact, language: str) -> bool:
        alike = hop == "value" and not own_value(fact, language)
        return alike or said == hop_of(hop, fact, language)[1]

    return {
        language: np.array([holds(said, fact, language) for fact, said in _said(given, language, some)])
        for language, some in of_language.items()
    }


def _said(
    given: Given, language: str, some: Sequence[Fact], every: Sequence[Fact] | None = None
) -> list[tuple[Fact, str]]:
    """Each of these facts with the answer to it; `given` answers `every` fact, by default all of `facts`."""
    wanted = {fact.id for fact in some}
    every = facts([language])[language] if every is None else every
    return [(fact, said) for fact, said in zip(every, given[language], strict=True) if fact.id in wanted]


def _interval(
    tables: Sequence[Mapping[str, np.ndarray]], of_language: Mapping[str, Sequence[Fact]]
) -> uncertainty.Interval:
    """Of one table per seed; each language counts the same."""
    right = [
        ([fact.id for fact in some], np.stack([one[language] for one in tables]))
        for language, some in of_language.items()
    ]
    return uncertainty.interval(uncertainty.block(right))


def _hops(found: Mapping[str, Sequence[Mapping[str, Any]]], of_language: Mapping[str, Sequence[Fact]]) -> str:
    right = {
        row: [{hop: _right(one["hops"][hop], hop, of_language) for hop in HOPS} for one in some]
        for row, some in found.items()
    }
    body = [
        [
            text,
            *(pages.percent(_interval([one[hop] for one in some], of_language)) for some in right.values()),
        ]
        for hop, text in HOPS.items()
    ]
    for steps, text in (
        (("fact", "subject", "value"), "the whole, where fact and both names are known"),
        (
            ("foreign subject", "value"),
            "the whole, where the English question about the own name and the value's name are",
        ),
    ):
        line = [text]
        for some in right.values():
            shares, known = [], []
            for one in some:
                for language in of_language:
                    hold = np.all([one[step][language] for step in steps], axis=0)
                    shares.append(float(one["whole"][language][hold].mean()) if hold.any() else float("nan"))
                    known.append(float(hold.mean()))
            line.append(f"{100 * np.nanmean(shares):.1f} (of {100 * np.mean(known):.0f} % of the questions)")
        body.append(line)
    return table(["", *right], body, markdown=True)


def _reading(
    found: Mapping[str, Sequence[Mapping[str, Any]]], of_language: Mapping[str, Sequence[Fact]], layers: int
) -> str:
    body = []
    for row, some in found.items():
        if "reading" not in ASKED[row]:
            continue
        for side in ("own", "English"):
            line = [f"{row}, {side} question"]
            for layer in range(1, layers + 1):
                tables = [_right(one["reading"][f"{side}, layer {layer}"], "fact", of_language) for one in some]
                line.append(f"{100 * _interval(tables, of_language).mean:.1f}")
            body.append(line)
    return table(["layers 1 to", *map(str, range(1, layers + 1))], body, markdown=True)


def _thought(
    found: Mapping[str, Sequence[Mapping[str, Any]]], of_language: Mapping[str, Sequence[Fact]], layer: int
) -> str:
    body = []
    for row, some in found.items():
        if "reading" not in ASKED[row]:
            continue
        shares = np.zeros(4)
        for one in some:
            thought = _right(one["reading"][f"own, layer {layer}"], "fact", of_language)
            said = _right(one["hops"]["whole"], "whole", of_language)
            for language in of_language:
                a, b = thought[language], said[language]
                shares += [np.mean(part) for part in (a & b, a & ~b, ~a & b, ~a & ~b)]
        body.append([row, *(f"{100 * share:.1f}" for share in shares / (len(some) * len(of_language)))])
    heads = [f"j = {layer}", "thought and said", "thought, not said", "said, not thought", "neither"]
    return table(heads, body, markdown=True)


def _patches(some: Sequence[Mapping[str, Any]], part: str, of_language: Mapping[str, Sequence[Fact]]) -> str:
    every = of_language if part == "carried" else facts(list(of_language))
    body = []
    for name in some[0][part]:
        shares = _shares([one[part][name] for one in some], of_language, every)
        either = [f"{100 * sum(shares[language][kind] for kind in KINDS[:2]):.1f}" for language in of_language]
        body.append([name, *_percent(shares), *either])
    return table(["", *KINDS, *(f"{language}: right in either" for language in of_language)], body, markdown=True)


def _shares(
    given: Sequence[Given], of_language: Mapping[str, Sequence[Fact]], every: Mapping[str, Sequence[Fact]]
) -> dict[str, dict[str, float]]:
    """Language -> kind of answer -> its share, mean over seeds.

    Args:
        given: of each seed, answers to `every` fact.
        of_language: those of them that are looked at.
    """
    found: dict[str, dict[str, float]] = {}
    for language, asked in of_language.items():
        others = {fact.value_names[language] for fact in facts([language])[language]}
        kinds = [
            kind_of(said, (fact.value_names[language], fact.value_names["en"]), others)
            for one in given
            for fact, said in _said(one, language, asked, every[language])
        ]
        found[language] = {kind: kinds.count(kind) / len(kinds) for kind in KINDS}
    return found


def _percent(shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Of each kind, mean over languages."""
    return [f"{100 * np.mean([of_kind[kind] for of_kind in shares.values()]):.1f}" for kind in KINDS]


def _connections(some: Sequence[Mapping[str, Any]], lab: Lab, of_language: Mapping[str, Sequence[Fact]]) -> str:
    every = facts(list(of_language))
    body = []
    for name in some[0]["connections"]:
        given = [one["connections"][name] for one in some]
        of_lent = ""
        if name.endswith("another question"):
            of_lent = f"{100 * _answers_lent(given, lab, of_language):.1f}"
        body.append([name, *_percent(_shares(given, of_language, every)), of_lent])
    return table(["", *KINDS, "that of the question lent"], body, markdown=True)


def _matrices(some: Sequence[Mapping[str, Any]], of_language: Mapping[str, Sequence[Fact]]) -> str:
    every = facts(list(of_language))
    body = []
    for name in MATRICES:
        given = [one["matrices"][name]["given"] for one in some]
        r2 = np.mean([one["matrices"][name]["r2"] for one in some])
        body.append([name, *_percent(_shares(given, of_language, every)), f"{r2:.2f}"])
    return table(["", *KINDS, "R^2"], body, markdown=True)


def _answers_lent(given: Sequence[Given], lab: Lab, of_language: Mapping[str, Sequence[Fact]]) -> float:
    """How often the answer is that to the question whose English was lent, and not the right one."""
    found = []
    for language, asked in of_language.items():
        records, right = _records(lab, language), lab.gold[language]
        item_of = {record["english"]["prompt"]: item(record) for record in records}
        lent = {item(record): item_of[record["english"]["prompt"]] for record in shuffled(records, seed=0)}
        for one in given:
            found.append(
                np.mean(
                    [said == right[lent[fact.id]][0] != right[fact.id][0] for fact, said in _said(one, language, asked)]
                )
            )
    return float(np.mean(found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PivotuneError as error:
        sys.exit(f"error: {error}")
