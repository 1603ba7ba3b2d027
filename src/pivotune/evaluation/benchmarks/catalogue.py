"""The fourteen benchmarks of the two papers: what each is, where it comes from, and `load`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pivotune.data.report import DataError
from pivotune.errors import PivotuneError, check_choice, check_number
from pivotune.evaluation.benchmarks import hub, readers
from pivotune.evaluation.benchmarks.files import Folder
from pivotune.evaluation.benchmarks.hub import Hub
from pivotune.evaluation.benchmarks.items import Item
from pivotune.evaluation.benchmarks.readers import Located, Reader

Protocol = Literal["likelihood", "generation"]
Metric = Literal["accuracy", "f1", "rouge_l"]

_CC_FILES = "https://github.com/YYF-Tommy/CC-Tuning, folder Inference/data, as cctuning/"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark under one protocol.

    Attributes:
        name: its key in `BENCHMARKS`.
        title: what the papers call it.
        paper: the preset that it belongs to, "dft" or "cc".
        protocol: "likelihood" (the options are ranked by log-likelihood) or "generation" (greedy, answer extracted).
            Scores under different protocols never belong into one table.
        metric: "accuracy", "f1" or "rouge_l".
        languages: those that can be read.
        chance: the expected score of a guess among the options, 0 for free text; None where it depends on the items,
            see `chance_level`.
        splits: of the files; the first is the default. On the hub it is the one that `hub` names.
        read: reads the items of (folder, language, split).
        hub: where it is on the hub, from where it is read without a DATA_DIR; None where it is not.
        source: where the files for DATA_DIR can be had.
        read_english: reads the English of (folder, language, split); None where it is `read` of "en".
        complete: whether every language has every English item, so that a language with fewer is a file cut short.
        not_parallel: per language, the ids whose English is another question, because the released file is shifted.
    """

    name: str
    title: str
    paper: str
    protocol: Protocol
    metric: Metric
    languages: tuple[str, ...]
    chance: float | None
    splits: tuple[str, ...]
    read: Reader = field(repr=False)
    hub: Hub | None
    source: str
    read_english: Reader | None = field(default=None, repr=False)
    complete: bool = True
    not_parallel: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)


def _languages(codes: str) -> tuple[str, ...]:
    return tuple(codes.split())


def _cc(
    name: str,
    title: str,
    languages: str,
    read: Reader,
    chance: float = 0.0,
    metric: Metric = "accuracy",
    read_english: Reader | None = None,
    not_parallel: Mapping[str, frozenset[str]] | None = None,
) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        paper="cc",
        protocol="generation",
        metric=metric,
        languages=_languages(languages),
        chance=chance,
        splits=("test",),
        read=read,
        hub=None,
        source=f"{_CC_FILES}{title}/",
        read_english=read_english,
        not_parallel=not_parallel or {},
    )


_ALL = (
    Benchmark(
        name="xquad",
        title="XQuAD",
        paper="dft",
        protocol="generation",
        metric="f1",
        languages=_languages("ar de el en es hi ro ru th tr vi zh"),
        chance=0.0,
        splits=("validation",),
        read=readers.read_xquad,
        hub=Hub("google/xquad", "xquad.{language}", "validation", hub.xquad),
        source="https://github.com/google-deepmind/xquad, as xquad/xquad.<language>.json",
    ),
    Benchmark(
        name="mlqa",
        title="MLQA",
        paper="dft",
        protocol="generation",
        metric="f1",
        languages=_languages("ar de en es hi vi zh"),
        chance=0.0,
        splits=("dev",),
        read=readers.read_mlqa,
        hub=Hub("facebook/mlqa", "mlqa.{language}.{language}", "test", hub.mlqa),
        complete=False,
        source="https://github.com/facebookresearch/MLQA, the folder dev of MLQA_V1.zip as mlqa_dev/",
    ),
    Benchmark(
        name="mkqa",
        title="MKQA",
        paper="dft",
        protocol="generation",
        metric="f1",
        languages=_languages("ar de en ja ko pt ru tr vi zh"),
        chance=0.0,
        splits=("test",),
        read=readers.read_mkqa,
        hub=Hub("apple/mkqa", "mkqa", "train", hub.mkqa),
        source=f"{_CC_FILES}MKQA/",
    ),
    Benchmark(
        name="truthfulqa",
        title="TruthfulQA",
        paper="dft",
        protocol="likelihood",
        metric="accuracy",
        languages=_languages("ar en hi id ru vi zh"),
        chance=None,
        splits=("validation",),
        read=readers.read_truthfulqa,
        hub=Hub(
            "alexandrainst/m_truthfulqa",
            "{language}",
            "val",
            hub.truthfulqa,
            english=("truthfulqa/truthful_qa", "multiple_choice", "validation"),
        ),
        complete=False,
        source="https://github.com/nlp-uoregon/mlmm-evaluation as truthfulqa/<language>_gen.json, "
        "English from https://github.com/sylinrl/TruthfulQA as truthfulqa/en.json",
    ),
    Benchmark(
        name="xnli",
        title="XNLI",
        paper="dft",
        protocol="likelihood",
        metric="accuracy",
        languages=_languages("ar bg de el en es fr hi ru sw th tr ur vi zh"),
        chance=1 / 3,
        splits=("dev",),
        read=readers.read_xnli,
        hub=Hub("facebook/xnli", "{language}", "validation", hub.xnli),
        source="https://github.com/facebookresearch/XNLI, as xnli_dev/dev-<language>.tsv (premise, hypothesis, label)",
    ),
    Benchmark(
        name="xcopa",
        title="XCOPA",
        paper="dft",
        protocol="likelihood",
        metric="accuracy",
        languages=_languages("en et ht id it qu sw ta th tr vi zh"),
        chance=1 / 2,
        splits=("val", "test"),
        read=readers.read_xcopa,
        hub=Hub(
            "cambridgeltl/xcopa", "{language}", "test", hub.xcopa, english=("aps/super_glue", "copa", "validation")
        ),
        source="https://github.com/cambridgeltl/xcopa, as xcopa/<split>-<language>.jsonl",
    ),
    Benchmark(
        name="xstorycloze",
        title="XStoryCloze",
        paper="dft",
        protocol="likelihood",
        metric="accuracy",
        languages=_languages("ar en es eu hi id ru sw te zh"),
        chance=1 / 2,
        splits=("eval",),
        read=readers.read_xstorycloze,
        hub=Hub("juletxara/xstory_cloze", "{language}", "eval", hub.xstorycloze),
        source=f"{_CC_FILES}XStoryCloze/",
    ),
    Benchmark(
        name="mmlu",
        title="MMLU",
        paper="dft",
        protocol="likelihood",
        metric="accuracy",
        languages=_languages("ar en vi zh"),
        chance=1 / 4,
        splits=("val", "dev", "test"),
        read=readers.read_mmlu,
        hub=Hub("alexandrainst/m_mmlu", "{language}", "test", hub.mmlu),
        complete=False,
        source="https://github.com/nlp-uoregon/mlmm-evaluation as mmlu/<language>_<split>.json, "
        "English from https://github.com/hendrycks/test as mmlu/en_mmlu.zip",
    ),
    _cc("cc_xnli", "XNLI", "ar el en hi ru sw th tr ur zh", readers.read_cc_xnli, 1 / 3),
    _cc("cc_xstorycloze", "XStoryCloze", "ar en es eu hi id ru sw te zh", readers.read_cc_xstorycloze, 1 / 2),
    _cc(
        "cc_mmmlu",
        "MMMLU",
        "ar bn en es hi id ko pt sw yo",
        readers.read_cc_mmmlu,
        1 / 4,
        # World history has another order in Korean: these lines are other questions of the subject.
        not_parallel={"ko": frozenset(map(str, range(418, 428)))},
    ),
    _cc("cc_xquad", "XQuAD", "ar de el en hi ru th tr vi zh", readers.read_cc_xquad),
    _cc("cc_mkqa", "MKQA", "ar de en ja ko pt ru tr vi zh", readers.read_cc_mkqa),
    _cc(
        "cc_xlsum",
        "XLSum",
        "ar en fr hi id ru sw tr ur vi",
        readers.read_cc_xlsum,
        metric="rouge_l",
        read_english=readers.read_cc_xlsum_english,
    ),
)

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({benchmark.name: benchmark for benchmark in _ALL})


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        PivotuneError: there is none; the message suggests the nearest name.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(str(name).lower().replace("-", "_"), BENCHMARKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(BENCHMARKS)}."
        raise PivotuneError(f"benchmarks: unknown benchmark {name!r}; {hint}")
    return BENCHMARKS[name]


def load(
    name: str,
    language: str,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    split: str | None = None,
    english: bool = True,
) -> list[Item]:
    """The items of a benchmark in one language, in the order of the publishers' files or of the hub's rows.

    Args:
        name: a key of `BENCHMARKS`.
        language: one of its languages, such as "vi".
        data_dir: DATA_DIR, the folder that holds xquad/, mlqa_dev/, xnli_dev/, xcopa/, truthfulqa/, mmlu/ and
            cctuning/; docs/benchmarks.md says which file is where. The hub where None.
        limit: take the first so many items; all of them are checked all the same.
        split: of the files, one of the benchmark's splits; its default where None. The hub's is that of the harness.
        english: read the English items too and give each item its English counterpart, where there is one.

    Raises:
        DataError: a file that is cut, garbled, not this benchmark's, or does not match its golds or its English.
        PivotuneError: unknown benchmark, language or split; a missing file; a data set that the hub does not give; no
            data_dir for a benchmark that the hub has not.
    """
    benchmark = benchmark_of(name)
    if language not in benchmark.languages:
        raise PivotuneError(
            f"languages: {name} is not available in {language!r}; choose among {', '.join(benchmark.languages)}."
        )
    if limit is not None:
        check_number("limit", limit, 1, whole=True)
    with_english = english and language != "en"
    if data_dir is None:
        items, counterparts = _from_hub(benchmark, language, split, with_english)
    else:
        items, counterparts = _from_files(benchmark, language, Path(data_dir), split, with_english)
    if counterparts is not None:
        items = _with_english(benchmark, items, counterparts, language)
    return [item for _, item in items[:limit]]


def check_data_dir(benchmarks: Iterable[Benchmark], data_dir: str | Path | None) -> None:
    """Whether all of them can be read, as far as that is known without reading.

    Raises:
        PivotuneError: data_dir is no folder, or not given, and the hub has not got some of them; the message names all.
    """
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise PivotuneError(
                f"data_dir: {data_dir} is no folder; give the one that holds xquad/, cctuning/ and so on"
            )
        return
    missing = list(dict.fromkeys(benchmark.name for benchmark in benchmarks if benchmark.hub is None))
    if missing:
        raise PivotuneError(
            f"data_dir: not given, and no data set of the hub holds {', '.join(missing)}: their data are files of "
            f"CC-Tuning's release. Put {_CC_FILES} into a folder (docs/benchmarks.md), and name that with --data_dir."
        )


def chance_level(items: Iterable[Item]) -> float:
    """The expected accuracy of a uniform guess among each item's options; 0 for free text.

    Raises:
        ValueError: there are no items.
    """
    shares = [1 / len(item.options) if item.options else 0.0 for item in items]
    if not shares:
        raise ValueError("no items: there is no chance level")
    return sum(shares) / len(shares)


def _check_ids(items: Sequence[Located]) -> None:
    seen: dict[str, str] = {}
    for where, item in items:
        if item.id in seen:
            raise DataError(where, "duplicate id", f"{item.id!r}, as in {seen[item.id]}", "download the file again")
        seen[item.id] = where


def _from_hub(
    benchmark: Benchmark, language: str, split: str | None, with_english: bool
) -> tuple[list[Located], list[Located] | None]:
    """The items, and those of English where their ids are shared with it and they are wanted."""
    check_data_dir([benchmark], None)
    assert benchmark.hub is not None
    if split is not None:
        own = benchmark.hub.of(language)[2]
        raise PivotuneError(f"split: got {split!r}, but from the hub it is {own!r}; leave it out, or give data_dir.")
    items = benchmark.hub.items(benchmark.name, language)
    _check_ids(items)
    # Where English is another data set, its rows are other questions or in another order.
    shared = with_english and benchmark.hub.english is None
    return items, benchmark.hub.items(benchmark.name, "en") if shared else None


def _from_files(
    benchmark: Benchmark, language: str, data_dir: Path, split: str | None, with_english: bool
) -> tuple[list[Located], list[Located] | None]:
    """The items, and those of English where they are wanted."""
    split = benchmark.splits[0] if split is None else split
    check_choice("split", split, benchmark.splits)
    check_data_dir([benchmark], data_dir)
    folder = Folder(data_dir, benchmark.source)
    items = benchmark.read(folder, language, split)
    _check_ids(items)
    if not with_english:
        return items, None
    if benchmark.read_english is not None:
        found = benchmark.read_english(folder, language, split)
    else:
        found = benchmark.read(folder, "en", split)
    if benchmark.complete and len(items) != len(found):
        problem = f"ends after {len(items)} items, its English after {len(found)} ({found[-1][0]})"
        raise DataError(items[-1][0], "files do not match", problem, "download both again: one may be cut")
    return items, found


def _with_english(benchmark: Benchmark, items: list[Located], found: list[Located], language: str) -> list[Located]:
    counterparts = {item.id: item for _, item in found}
    exceptions = benchmark.not_parallel.get(language, frozenset())
    return [(where, _joined(where, item, counterparts, exceptions)) for where, item in items]


def _joined(where: str, item: Item, counterparts: Mapping[str, Item], exceptions: frozenset[str]) -> Item:
    if item.id in exceptions:
        return item
    english = counterparts.get(item.id)
    fix = "download both again, or load with english=False"
    if english is None:
        raise DataError(where, "no English", f"id {item.id!r} is not in the English file", fix)
    same_options = item.options and english.options and len(item.options) == len(english.options)
    if same_options and item.gold != english.gold:
        problem = f"gold {item.answers[0]!r}, but {english.answers[0]!r} for the same id {item.id!r} in English"
        raise DataError(where, "files do not match", problem, fix)
    return replace(item, english=english)
