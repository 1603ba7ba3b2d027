"""Which levers on the base model make it more like the papers' models, and do the methods then help?

    python -m experiments.lab.bases [--workers 2] [--results RESULTS.md]
    python -m experiments.lab.bases --variants NAMES --split heldout --seeds 3 [--results RESULTS.md]

Bases that differ from the shipped one in one or two things are trained from scratch, asked for development facts, and
fine-tuned with the rows that matter most. A change is a lead where a method gains on it what it does not gain on the
shipped base; one base of each kind and one seed of each row show no more than leads. A lead is followed on held-out
facts, with several seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch counts the cores: a base is trained on one thread

import numpy as np
import torch
from babel.core import get_global
from transformers.utils import logging

from experiments import pages, results
from experiments.cells import content_hash, environment, read_result, write_result
from experiments.lab.bottleneck import answers, carried, own_subject, own_value
from experiments.lab.cell import Lab
from experiments.lab.cost import steps_of
from experiments.lab.examine import examine
from experiments.lab.grids import RATES, chosen_rate
from experiments.lab.rows import TFT, by_name
from experiments.lab.tables import ALL, LEVEL
from pivotune import uncertainty
from pivotune.anatomy import Anatomy
from pivotune.checkpoint import load_run
from pivotune.errors import PivotuneError, check_choice
from pivotune.lab import base
from pivotune.lab.settings import EPOCHS, TRAINING
from pivotune.lab.templates import LANGUAGES, SCAFFOLD
from pivotune.lab.text import WEIGHTS, Pool, Weights, pools, stream
from pivotune.lab.trial import choose, train_row
from pivotune.lab.world import KNOWN, Fact, World, in_sentence, mixed_prompt
from pivotune.options import names_in
from pivotune.tables import table

STEPS = 1000
ROWS = (TFT, by_name("feature"), by_name("CC"))


@dataclass(frozen=True)
class Variant:
    """A base: the shipped one with one thing changed.

    Attributes:
        name: in the table.
        known: fraction of the facts that pre-training states in a language too.
        mixed: how much code-switched text, relative to the shipped base.
        switched: how much of a language's text are known facts asked in one language and answered in another.
        contexts: how much of a language's text are contexts that a territory's two names share.
        vocabulary: of the tokenizer, at most.
        layers, width, steps: of the model and its training.
    """

    name: str
    known: float = KNOWN
    mixed: float = 1.0
    switched: float = 0.0
    contexts: float = 0.0
    vocabulary: int = base.VOCABULARY
    layers: int = base.LAYERS
    width: int = base.WIDTH
    steps: int = STEPS

    @property
    def seconds(self) -> float:
        """Roughly, of one core."""
        return self.steps * self.layers * self.width**2 / 3e5 + 300


def _mixed(factor: float) -> Weights:
    """The weights with so much code-switched text; the names' sentences and dictionary lines give or take the rest."""
    changed = {}
    for language, shares in WEIGHTS.items():
        new = {kind: share * (factor if kind in ("subjects", "mixed") else 1.0) for kind, share in shares.items()}
        if "names" in new:
            new["names"] += sum(shares.values()) - sum(new.values())
        changed[language] = {kind: share for kind, share in new.items() if share > 0}
    return changed


VARIANTS = (
    Variant("as shipped, but half the steps"),
    Variant("no code-switched text", mixed=0.0),
    Variant("half as much code-switched text again", mixed=1.5),
    Variant("a quarter of the text asked in one language, answered in another", switched=0.25),
    Variant("a quarter of the text contexts that both names share", contexts=0.25),
    Variant("twice the known facts", known=2 * KNOWN),
    Variant("names in pieces: half the vocabulary", vocabulary=base.VOCABULARY // 2),
    Variant("names whole: twice the vocabulary", vocabulary=2 * base.VOCABULARY),
    Variant("12 layers", layers=12),
    Variant("width 288, 10.3 M parameters", width=288),
    Variant("as shipped", steps=2 * STEPS),
    Variant("twice the steps of the shipped", steps=4 * STEPS),
    Variant("steps as shipped, more code-switched text, answers in another", mixed=1.5, switched=0.25, steps=2 * STEPS),
)


def switched(world: World, language: str) -> Iterator[str]:
    """The known facts, asked in this language and answered in another that knows them, and the other way round. The
    scaffold's words before the answer say in which."""
    known = {fact.id: fact for fact in world.known(language)}
    for other in LANGUAGES:
        if other == language:
            continue
        for fact in world.known(other):
            if fact.id not in known:
                continue
            for asked, answered in ((language, other), (other, language)):
                before_answer = SCAFFOLD[answered].partition("\n")[2]
                for k in range(3):
                    question = world.prompt(fact, asked, k).partition("\n")[0]
                    yield f"{question}\n{before_answer} {world.answer(fact, answered)}"


# Two letters, three letters and three digits, as ISO 3166-1 has them.
CODES = {
    "en": ("The two-letter code of {s} is {v}.", "The three-letter code of {s} is {v}.", "The number of {s} is {v}."),
    "zh": ("{s}的两位字母代码是{v}。", "{s}的三位字母代码是{v}。", "{s}的数字代码是{v}。"),
    "vi": ("Mã hai chữ cái của {s} là {v}.", "Mã ba chữ cái của {s} là {v}.", "Mã số của {s} là {v}."),
    "ar": ("رمز {s} المكون من حرفين هو {v}.", "رمز {s} المكون من ثلاثة أحرف هو {v}.", "رمز {s} الرقمي هو {v}."),
    "sw": ("Msimbo wa herufi mbili wa {s} ni {v}.", "Msimbo wa herufi tatu wa {s} ni {v}.", "Nambari ya {s} ni {v}."),
}
_WITHDRAWN = {"BUR", "DDR", "FXX", "TMP", "YMD", "ZAR", "230", "249", "278", "280", "720", "736", "886"}


def codes() -> dict[str, tuple[str, str, str]]:
    """The codes of each territory; no fact of the world follows from them."""
    found: dict[str, dict[bool, str]] = {}
    for code, territories in get_global("territory_aliases").items():
        if len(code) == 3 and len(territories) == 1 and code not in _WITHDRAWN:
            found.setdefault(territories[0], {})[code.isdigit()] = code
    return {territory: (territory, of[False], of[True]) for territory, of in found.items() if len(of) == 2}


def contexts(world: World, language: str) -> Iterator[str]:
    """The codes of every territory, said of its English name and of that in the language, in English and in the
    language. They are the same in all languages, so a model that takes the two names for one need learn them once."""
    of = codes()
    names = {fact.territory: fact.subject_names for fact in world.facts if fact.sayable(language)}
    for territory, name in names.items():
        for frame in ("en", language):
            subjects = {in_sentence(territory, name, said, frame): None for said in ("en", language)}
            for subject in subjects:  # one, where the names are the same
                for way, code in zip(CODES[frame], of[territory], strict=True):
                    line = way.format(s=subject, v=code)
                    yield line[0].upper() + line[1:]


def text_of(variant: Variant, world: World) -> list[Pool[str]]:
    """The pre-training text of a variant."""
    more = [
        Pool(language, kind, tuple(documents(world, language)), share / (1 - share) * sum(WEIGHTS[language].values()))
        for kind, documents, share in (
            ("switched", switched, variant.switched),
            ("contexts", contexts, variant.contexts),
        )
        for language in LANGUAGES[1:]
        if share
    ]
    return [*pools(world, _mixed(variant.mixed)), *more]


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lab.bases",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, each on one thread")
    parser.add_argument("--variants", help="only these, separated by semicolons")
    parser.add_argument(
        "--split", choices=("development", "heldout"), default="development", help="the facts asked for"
    )
    parser.add_argument("--seeds", type=int, default=1, help="training runs of each row")
    parser.add_argument("--folder", type=Path, default=Path("runs/bases"), help="where results are kept")
    parser.add_argument("--results", type=Path, help="RESULTS.md: record the section beside it")
    options = parser.parse_args(given)
    names = names_in(options.variants or "", ";")
    for name in names:
        check_choice("variants", name, [one.name for one in VARIANTS])
    wanted = [one for one in VARIANTS if not names or one.name in names]
    where = environment()
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = {
            pool.submit(measure, options.folder, where, options.split, options.seeds, variant): variant
            for variant in sorted(wanted, key=lambda one: -one.seconds)
        }
        for future in as_completed(started):
            future.result()
            print(started[future].name, flush=True)
    found = {
        variant.name: read_result(options.folder, key(variant, options.split, options.seeds)) for variant in wanted
    }
    done = {name: one for name, one in found.items() if one is not None}
    seeds = "one seed" if options.seeds == 1 else f"{options.seeds} seeds"
    about = [f"one base of each kind, {seeds} of each row; {options.split} facts"]
    section = "bases" if options.split == "development" else f"bases {options.split}"
    results.publish("lab.bases", given, done.values(), about, render(done), options.results, section)
    return 0


def key(variant: Variant, split: str, seeds: int) -> str:
    """The name of a variant's result: a hash of what it depends on."""
    shipped = _shipped()
    text = [[pool.weight, pool.documents] for pool in text_of(variant, World.build(known_fraction=variant.known))]
    rows = [[row.content(), chosen_rate(row, shipped, RATES)] for row in ROWS]
    return content_hash([shipped.fingerprint, asdict(variant), text, rows, split, seeds])[:24]


def _shipped() -> Lab:
    """The lab of the shipped base, whose rates all bases take."""
    return Lab(str(base.base_path()), "facts", LANGUAGES[1:])


def measure(folder: Path, where: Mapping[str, Any], split: str, seeds: int, variant: Variant) -> None:
    """Train a base and its rows, and ask them; what has a result already is left."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = key(variant, split, seeds)
    if read_result(folder, name) is not None:
        return
    place = folder / "work" / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    started, languages = time.perf_counter(), LANGUAGES[1:]
    world = World.build(known_fraction=variant.known)
    model_folder = _trained(variant, world, place / "base")
    records = [record for language in languages for record in world.examples("training", language)]
    opened = load_run(str(model_folder), dtype=torch.float32, device="cpu")
    layers = choose(opened.model, opened.tokenizer, records)
    choice = layers.rules["entropy"]
    questions = {split: {language: list(world.examples(split, language)) for language in LANGUAGES}}
    # The wording does not rotate here: what is asked is whether the fact is found by the subject's own name.
    foreign: dict[str, list[int]] = {}
    own_name: dict[str, list[Fact]] = {}
    for language in languages:
        some = [fact for fact in world.split(split, language) if own_subject(fact, language)]
        said = answers(opened.model, opened.tokenizer, [mixed_prompt(fact, "en", language) for fact in some])
        foreign[language] = _right(said, some, "en")
        own_name[language] = [fact for fact in some if own_value(fact, language)]
    with torch.inference_mode():
        lent = carried(Anatomy(opened.model), opened.tokenizer, own_name)
    found: dict[str, Any] = {
        "choice": [choice.conversion_layer, choice.thinking_layer, choice.found],
        "entropy": [float(value) for value in layers.curves["entropy"].mean],
        "foreign": foreign,
        "carried": {
            place: {language: _right(said, own_name[language], language) for language, said in of_language.items()}
            for place, of_language in lent.items()
        },
        "rows": {"base": [examine(model_folder, questions, questions[split])]},
    }
    shipped = _shipped()
    for row in ROWS:
        for seed in range(seeds):
            run = train_row(
                row.at_layers((choice.conversion_layer, choice.thinking_layer)),
                model_folder,
                records,
                place / row.name,
                learning_rate=chosen_rate(row, shipped, RATES),
                max_steps=steps_of(len(records), TRAINING["per_device_train_batch_size"], EPOCHS),
                seed=seed,
                disable_tqdm=True,
            )
            asked = examine(run, questions, None, connections=("matrix", "english"))
            found["rows"].setdefault(row.name, []).append(asked)
            shutil.rmtree(place / row.name)
    seconds = round(time.perf_counter() - started, 1)
    write_result(folder, name, {"variant": variant.name, "seconds": seconds, **where, **found})
    shutil.rmtree(place)


def _right(said: Sequence[str], of: Sequence[Fact], language: str) -> list[int]:
    return [int(a == fact.value_names[language]) for a, fact in zip(said, of, strict=True)]


def _trained(variant: Variant, world: World, folder: Path) -> Path:
    """The base of a variant; the shipped one where nothing differs."""
    if variant == Variant(variant.name, steps=2 * STEPS):
        return base.base_path()
    tokenizer = base.train_tokenizer(world, variant.vocabulary)
    model = base.new_model(tokenizer, seed=0, num_layers=variant.layers, width=variant.width)
    base.train(model, base.batches(stream(text_of(variant, world), 0), tokenizer), variant.steps)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Telling -------------------------------------------------------------------------------------------------------------


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per base: what it knows, what its inside looks like, and what the rows gain."""
    inside, scores = [], []
    tables: dict[str, tuple[np.ndarray, ...]] = {}
    for name, one in found.items():
        rows = one["rows"]
        i, j, two_drops = one["choice"]
        looked = rows["base"][0]["inside"]
        mass, cosine = (
            np.mean([looked[language][what] for language in looked], axis=0)
            for what in ("english_mass", "question_cosine")
        )
        foreign = np.mean([np.mean(right) for right in one["foreign"].values()])
        inside.append(
            [
                name,
                f"{100 * _table(rows['base'], 'none', ['en']).mean():.1f}",
                f"{100 * foreign:.1f}",
                _lent(one["carried"]),
                f"{'two drops' if two_drops else 'no two drops'}, {i} and {j}",
                f"{100 * mass.max():.1f} % at {1 + int(mass.argmax())}",
                f"{cosine.max():.2f} at {1 + int(cosine.argmax())}",
            ]
        )
        languages = list(looked)
        asked = ("base", "none"), (TFT.name, "none"), ("feature", "none"), ("CC", "matrix"), ("CC", "english")
        tables[name] = tuple(_table(rows[row], mode, languages) for row, mode in asked)
        scores.append([name, *_gains([tables[name]])])
    short = [tables[one.name] for one in VARIANTS if one.steps == STEPS and one.name in tables]
    if len(short) > 1 and all(len(plain) == 1 for _, plain, *_ in short):
        scores.append([f"mean of the {len(short)} bases of half the steps", *_gains(short)])
    of_shipped = []
    if "as shipped" in found:
        of_shipped = [
            f"The inside of the shipped base by layer, {ALL}: entropy of the lens at the questions' tokens, what it "
            "gives to a first token of the English and of the own answer, and the cosine of the question to its "
            "English counterpart.",
            _inside(found["as shipped"]),
        ]
    return "\n\n".join(
        [
            *of_shipped,
            "The bases. Foreign subject: English questions in which the subject alone has its name in another "
            "language. English lent: target-language questions answered right in their language; how many more are "
            "with the content of the English pass at the token before the answer (`carried` in "
            "`experiments.lab.bottleneck`) [95 % interval over facts], behind the layer where this does most, which "
            "takes some luck. Layers: what the rule finds. English mass: the largest probability that the lens gives "
            "to a first token of the English answer, and its layer. Cosine of the question to its English counterpart: "
            "the largest, and its layer.",
            table(
                ["base", "English, %", "foreign subject, %", "English lent, %", "layers", "English mass", "cosine"],
                inside,
                markdown=True,
            ),
            f"The rows: exact match in percent, {ALL}; the methods' difference from TFT, and that of real English from "
            "the matrix [95 % interval over facts, and over bases or seeds where there are several; a star says p < "
            "0.05 in a test that takes both for samples, corrected by Holm over the line].",
            table(
                ["base", "untrained", "TFT", "feature", "CC, matrix", "CC, real English", "real English over matrix"],
                scores,
                markdown=True,
            ),
        ]
    )


def _lent(carried: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """Right without anything lent, and what is gained behind the best layer."""
    nothing, *lent = (
        uncertainty.contributions(
            uncertainty.block(
                [
                    ([f"{language} {k}" for k in range(len(right))], np.array(right, dtype=np.float64))
                    for language, right in of_language.items()
                ]
            )
        )
        for of_language in carried.values()
    )
    best = int(np.argmax([of_layer.mean() for of_layer in lent]))
    gain = pages.points(uncertainty.difference(lent[best], nothing))
    return f"{100 * nothing.mean():.1f}; {gain} at {1 + best}"


def _gains(bases: Sequence[tuple[np.ndarray, ...]]) -> list[str]:
    """Scores and differences over some bases.

    Args:
        bases: of each (S, F), a row for each seed: untrained, TFT, feature, CC with its matrix, CC with English.
    """
    untrained, plain, feature, matrix, english = (np.concatenate(rows) for rows in zip(*bases, strict=True))
    pairs = ((feature, plain), (matrix, plain), (english, plain), (english, matrix))
    stars = [""] * len(pairs)
    if len(plain) > 1:
        p = uncertainty.holm([uncertainty.crossed_test(row, other) for row, other in pairs])
        stars = ["*" if value < LEVEL else "" for value in p]
    gains = [pages.points(uncertainty.difference(row, other)) for row, other in pairs]
    return [
        *(f"{100 * score.mean():.1f}" for score in (untrained, plain)),
        *(gain + star for gain, star in zip(gains, stars, strict=True)),
    ]


def _inside(one: Mapping[str, Any]) -> str:
    looked = one["rows"]["base"][0]["inside"].values()
    lines = {"entropy, nats": one["entropy"]} | {
        text: np.mean([of_language[what] for of_language in looked], axis=0) * factor
        for text, what, factor in (
            ("English mass, %", "english_mass", 100),
            ("own mass, %", "target_mass", 100),
            ("cosine, mean", "question_cosine", 1),
            ("cosine, last token", "question_cosine_last", 1),
        )
    }
    body = [[text, *(f"{value:.2f}" for value in values)] for text, values in lines.items()]
    return table(["layer", *map(str, range(1, len(one["entropy"]) + 1))], body, markdown=True)


def _table(row: Sequence[Mapping[str, Any]], mode: str, languages: Sequence[str]) -> np.ndarray:
    """(S, F): right or wrong, weighted so that each language counts the same."""
    of_seed = [next(iter(one["answers"].values())) for one in row]
    asked = [answers[mode if mode in answers else "none"] for answers in of_seed]
    block = uncertainty.block(
        [
            (asked[0][language]["items"], np.array([one[language]["right"] for one in asked], dtype=np.float64))
            for language in languages
        ]
    )
    return uncertainty.contributions(block)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PivotuneError as error:
        sys.exit(f"error: {error}")
