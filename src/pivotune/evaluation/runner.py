"""`pivotune evaluate`: the papers' benchmarks on a run, resumable. docs/evaluation.md.

* The plan: which benchmarks in which languages. Their items are read and checked before a model is loaded.
* The folder: what an earlier call has finished there is kept, if it was asked the same way.
* Measuring: the engines answer what is missing; each batch is on the disk before the next begins.
* The summary: scores with intervals, in one table for each protocol.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from transformers.utils.logging import tqdm

from pivotune.checkpoint import check_model, load_run
from pivotune.connection import connect
from pivotune.data.examples import is_english
from pivotune.data.languages import read_languages
from pivotune.data.prompts import STYLES
from pivotune.errors import PivotuneError, check_choice, check_number
from pivotune.evaluation.benchmarks import (
    BENCHMARKS,
    PRESETS,
    Benchmark,
    Item,
    benchmark_of,
    chance_level,
    check_data_dir,
    load,
)
from pivotune.evaluation.engines import Engine, GenerationEngine, LikelihoodEngine, quiet_harness
from pivotune.evaluation.results import (
    FOLDER,
    INFO,
    ITEMS,
    SCORES,
    TABLE,
    BenchmarkInfo,
    Evaluation,
    ItemResult,
    ItemWriter,
    Key,
    read_evaluation,
    write_evaluation,
)
from pivotune.evaluation.summary import Scored, report, text
from pivotune.files import check_output_files, locked, read_json, write_text
from pivotune.generation import connection_mode
from pivotune.options import names_in
from pivotune.provenance import add_samples, versions

logger = logging.getLogger(__name__)

SoftmaxDtype = Literal["float32", "auto"]
_STYLES = tuple(one for one in STYLES if one != "auto")
# Options that only one protocol has; None where that one has not been evaluated.
_OF_ONE_PROTOCOL = ("style", "chat_template_kwargs", "max_new_tokens", "softmax_dtype")
# Whatever of a model folder decides what it answers. Weights are sampled: training changes them everywhere.
_OF_MODEL = (
    *("*.safetensors", "*.tensors", "*.bin", "*config.json"),
    *("tokenizer*", "special_tokens*", "chat_template*", "*.jinja"),
)
_SAMPLES, _SAMPLE = 64, 1 << 16


def evaluate(
    run: str,
    *,
    data_dir: str | None = None,
    benchmarks: str | list[str] | None = None,
    preset: str | None = None,
    languages: str | list[str] | None = None,
    limit: int | None = None,
    connection: str | None = None,
    style: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 40,
    softmax_dtype: SoftmaxDtype = "float32",
    output: str | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """`pivotune evaluate`: the papers' benchmarks; a second call goes on where the first one stopped.

    Args:
        run: a run folder, a checkpoint of it, or any causal LM.
        data_dir: the folder of the benchmarks' files in their publishers' formats, for work offline;
            docs/benchmarks.md says which file is where. By default the data come from the hub, which has all but the
            cc_ benchmarks.
        benchmarks: which, separated by commas; docs/benchmarks.md lists them.
        preset: the benchmarks and languages of a paper: dft or cc, with its figures beside.
        languages: in which, separated by commas; those of the benchmark's paper by default.
        limit: take the first so many items of each benchmark and language. They are no random sample.
        connection: how a run with a connection connects: none, english or matrix; by default matrix where one was
            fitted, else none. English items are not connected.
        style: what is put around generated answers' prompts: plain, alpaca or chat; by default the style that the run
            was trained with, if it names one, else plain.
        chat_template_kwargs: arguments of the chat template, e.g. {"enable_thinking": false}; those that a run was
            trained with are in its own.
        batch_size: items answered at a time.
        max_new_tokens: length limit of a generated answer, in tokens.
        softmax_dtype: in which log-likelihoods are computed from the logits and summed: float32, or auto, the model's
            own, as lm-evaluation-harness does unless told otherwise. In bfloat16 options of equal sums are frequent.
        output: folder for the results; by default `evaluation` inside the run folder.
        restart: remove what an earlier call left there, instead of going on.

    Returns:
        The scores, as in scores.json.

    Raises:
        PivotuneError: a wrong option, file or run, or results in the folder that were made in another way.
    """
    for option, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens), ("limit", limit)):
        if value is not None:
            check_number(option, value, 1, whole=True)
    check_choice("softmax_dtype", softmax_dtype, get_args(SoftmaxDtype))
    if style is not None:
        check_choice("style", style, _STYLES)
    chosen = choose(benchmarks, preset, languages)
    check_data_dir((benchmark for benchmark, _ in chosen), data_dir)
    info = check_model(run)
    mode = connection_mode(run, info, connection)
    _check_protocols(chosen, mode)
    folder = _output_folder(run, info, output)
    parts = read_parts(chosen, data_dir, limit, mode)
    style = _style(info, style) if _has(parts, "generation") else None
    wanted = Evaluation(
        run=str(run),
        model={
            "base_model": info.get("base_model"),
            "objectives": list(info["objectives"]) if info else None,
            "seed": info.get("training", {}).get("seed"),
        },
        connection=mode,
        config={
            "run": {"path": str(run), "fingerprint": _fingerprint(run, info)},
            "data_dir": {
                "path": "the hub" if data_dir is None else str(data_dir),
                "digests": {part.name: part.digest for part in parts},
            },
            "limit": limit,
            "style": style,
            "chat_template_kwargs": (chat_template_kwargs or {}) if style else None,
            "max_new_tokens": max_new_tokens if style else None,
            "softmax_dtype": softmax_dtype if _has(parts, "likelihood") else None,
            "batch_size": batch_size,
        },
        versions=versions("lm_eval", "py3langid", "rouge-score"),
        benchmarks={
            f"{one.protocol}.{one.name}": BenchmarkInfo(protocol=one.protocol, metric=one.metric, chance=one.chance)
            for one in {part.benchmark.name: part.benchmark for part in parts}.values()
        },
    )
    opened = _Opened(run, mode, style or "plain", batch_size, max_new_tokens, softmax_dtype, chat_template_kwargs)
    with locked("output", folder):
        if restart:
            _clear(folder)
        write_evaluation(folder, _merged(folder, wanted))
        cells = measure(parts, opened.engine, folder, mode)
    found = report(cells, run=str(run), connection=mode, style=style, preset=preset)
    print(text(found))  # first: what was found is worth more than its files
    write_text(folder / SCORES, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / TABLE, text(found, markdown=True) + "\n")
    print(f"\nWritten: {folder / SCORES}, {folder / TABLE}, {folder / INFO}, {folder / ITEMS}")
    return found


# The plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One benchmark in one language.

    Attributes:
        benchmark: the benchmark.
        language: the language.
        items: to be answered.
        without_english: items that are left out, because real English is to be connected and they have none.
        digest: of all items that there are, whatever the limit: what "the same data" means.
    """

    benchmark: Benchmark
    language: str
    items: tuple[Item, ...]
    without_english: int
    digest: str

    @property
    def name(self) -> str:
        return f"{self.benchmark.name}.{self.language}"


def choose(
    benchmarks: str | list[str] | None, preset: str | None, languages: str | list[str] | None
) -> list[tuple[Benchmark, str]]:
    """The benchmarks and languages that the options name, in their order.

    Raises:
        PivotuneError: an unknown name, nothing chosen, or a language or benchmark without the other.
    """
    if (benchmarks is None) == (preset is None):
        problem = "both are given" if preset else "none is given"
        raise PivotuneError(
            f"benchmarks, preset: {problem}; choose one. Benchmarks: {', '.join(BENCHMARKS)}; presets: "
            f"{', '.join(PRESETS)}."
        )
    if preset is not None:
        check_choice("preset", preset, PRESETS)
        names = list(PRESETS[preset].benchmarks)
    else:
        names = _listed("benchmarks", benchmarks or "")
    found = [benchmark_of(name) for name in names]
    if languages is None:
        return [(one, code) for one in found for code in one.asked]
    codes = list(dict.fromkeys(read_languages("languages", _listed("languages", languages))))
    known = dict.fromkeys(code for one in found for code in one.languages)
    for code in codes:
        if code not in known:
            near = difflib.get_close_matches(code, known, n=1, cutoff=0.55)  # zh-CN is near zh, sw is not near es
            raise PivotuneError(
                f"languages: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not available in {code!r}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + f" Available: {', '.join(sorted(known))}."
            )
    pairs = []
    for one in found:
        there = [code for code in codes if code in one.languages]
        if not there and preset is None:
            raise PivotuneError(
                f"languages: {one.name} is not available in {' or '.join(map(repr, codes))}; choose among "
                f"{', '.join(one.languages)}."
            )
        if missing := [code for code in codes if code not in there]:
            logger.warning("%s is not available in %s and left out there.", one.name, ", ".join(missing))
        pairs += [(one, code) for code in there]
    return pairs


def read_parts(
    chosen: Sequence[tuple[Benchmark, str]], data_dir: str | Path | None, limit: int | None, connection: str
) -> list[Part]:
    """Read and check the items, from the hub where `data_dir` is None. All are read, also under a limit."""
    parts = []
    for benchmark, language in chosen:
        connecting = connection == "english" and not is_english(language)
        items = load(benchmark.name, language, data_dir, english=connecting)
        digest = hashlib.sha256("\n".join(map(repr, items)).encode("utf-8", "backslashreplace")).hexdigest()
        first = items[:limit]
        asked = tuple(item for item in first if item.english is not None or not connecting)
        if len(asked) < len(first):
            logger.warning(
                "%s/%s: %d items have no English counterpart to connect and are left out.",
                *(benchmark.name, language, len(first) - len(asked)),
            )
        parts.append(Part(benchmark, language, asked, len(first) - len(asked), digest[:16]))
    return parts


def _listed(option: str, value: str | list[str]) -> list[str]:
    names = list(dict.fromkeys(names_in(value)))
    if not names:
        raise PivotuneError(f"{option}: got {value!r}; give names, separated by commas.")
    return names


def _has(parts: Iterable[Part], protocol: str) -> bool:
    return any(part.benchmark.protocol == protocol for part in parts)


def _check_protocols(chosen: Sequence[tuple[Benchmark, str]], mode: str) -> None:
    ranked = list(dict.fromkeys(one.name for one, _ in chosen if one.protocol == "likelihood"))
    if mode == "english" and ranked:
        raise PivotuneError(
            f"connection: got 'english', but {', '.join(ranked)} run inside lm-evaluation-harness, whose tasks hold no "
            "English counterparts. Choose matrix or none for them, or name other benchmarks."
        )
    if mode != "none":
        for warning in dict.fromkeys(one.unconnected for one, _ in chosen if one.unconnected):
            logger.warning("%s", warning)


# The run -----------------------------------------------------------------------------------------------------------


def _style(info: Mapping[str, Any], style: str | None) -> str:
    """The benchmarks' prompts are whole ones. A run that learnt to answer inside a template is asked inside it."""
    if style is not None:
        return style
    trained = info.get("prompt_style", "auto")
    if trained == "auto" and info:
        logger.warning(
            "style: the run names no single style of its training prompts (auto), so it is asked plain, with the "
            "prompts as they are. If it learnt from instructions, give --style alpaca or chat."
        )
    return trained if trained in _STYLES else "plain"


def _fingerprint(run: str, info: Mapping[str, Any]) -> str:
    """What identifies the weights and the tokenizer, wherever the folder lies; of a model on the hub, its name."""
    digest = hashlib.sha256()
    folders = [Path(run), *([Path(info["base_model"])] if info.get("adapter") else [])]
    for folder in folders:
        if not folder.exists():  # on the hub
            digest.update(str(folder).encode())
            continue
        files = {path for pattern in _OF_MODEL for path in folder.glob(pattern)} if folder.is_dir() else {folder}
        for path in sorted(files):
            size = path.stat().st_size
            starts = sorted({size * k // _SAMPLES for k in range(_SAMPLES)} if size > _SAMPLE else {0})
            add_samples(digest, path, starts, _SAMPLE)
    return digest.hexdigest()[:16]


class _Opened:
    """The run's engines, both around the one model, loaded when the first is asked for."""

    def __init__(
        self,
        run: str,
        mode: str,
        style: str,
        batch_size: int,
        max_new_tokens: int,
        softmax_dtype: SoftmaxDtype,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self._chat_template_kwargs = chat_template_kwargs
        self._path, self._mode, self._style = run, mode, style
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        self._softmax_dtype = None if softmax_dtype == "auto" else softmax_dtype

    @cached_property
    def _run(self) -> Any:
        run = load_run(self._path, chat_template_kwargs=self._chat_template_kwargs)
        made = run.connection()
        if made is not None and self._mode != "none":
            connect(run.model, made, self._mode)
        return run

    def engine(self, protocol: str) -> Engine:
        """Of "likelihood" or "generation".

        Raises:
            PivotuneError: the packages of the extra `evaluation` are missing.
        """
        if protocol == "likelihood":
            from pivotune.evaluation.likelihood import PivotuneLM

            with quiet_harness():
                lm = PivotuneLM(
                    self._path,
                    self._mode,
                    batch_size=self._batch_size,
                    run=self._run,
                    softmax_dtype=self._softmax_dtype,
                )
                return LikelihoodEngine(lm, self._batch_size)
        return GenerationEngine(
            self._run.model,
            self._run.tokenizer,
            style=self._style,
            connection=self._mode,
            batch_size=self._batch_size,
            max_new_tokens=self._max_new_tokens,
        )


# The folder --------------------------------------------------------------------------------------------------------


def _output_folder(run: str, info: Mapping[str, Any], output: str | None) -> Path:
    if output is None and not info:
        raise PivotuneError(f"output: {run} is no run folder of Pivotune to write into; name a folder with --output.")
    folder = Path(run) / FOLDER if output is None else Path(output)
    _check_own(folder)
    return check_output_files("output", folder, (INFO, TABLE, SCORES), overwrite=True)


def _check_own(folder: Path) -> None:
    """Raise a PivotuneError where going on, or a restart, would replace files that are not of an evaluation."""
    items = list((folder / ITEMS).glob("*.jsonl"))
    others = [path for path in items if not _is_of_items(path)]
    if not items and not _is_evaluation(folder / INFO):
        others = [path for path in (folder / INFO, folder / TABLE, folder / SCORES) if path.exists()]
    if others:
        raise PivotuneError(f"output: {others[0]} is not of an evaluation. Name another folder with --output.")


def _is_of_items(path: Path) -> bool:
    try:
        return Key.of_file(path).filename == path.name
    except PivotuneError:
        return False


def _is_evaluation(path: Path) -> bool:
    try:
        content = read_json(path)
    except PivotuneError:
        return False
    return isinstance(content, dict) and {"format", "benchmarks"} <= content.keys()


def _clear(folder: Path) -> None:
    for path in [folder / INFO, folder / TABLE, folder / SCORES, *(folder / ITEMS).glob("*.jsonl")]:
        path.unlink(missing_ok=True)


def _merged(folder: Path, wanted: Evaluation) -> Evaluation:
    """`wanted` and what the folder holds already.

    Raises:
        PivotuneError: that was made in another way, and scores of both must not be mixed.
    """
    if not (folder / INFO).is_file():
        if any((folder / ITEMS).glob("*.jsonl")):
            raise PivotuneError(f"{folder / ITEMS}: has results, but {INFO} is missing. Start anew with --restart.")
        return wanted
    before = read_evaluation(folder, items=False)

    def refuse(option: str, old: Any, new: Any) -> PivotuneError:
        return PivotuneError(
            f"{option}: the results in {folder} were made with {old}, not {new}; the two do not mix. Give another "
            "folder with --output, or start anew with --restart."
        )

    old, new = before.config, wanted.config
    if old.get("run", {}).get("fingerprint") != new["run"]["fingerprint"]:
        raise refuse("run", f"other weights or another tokenizer ({before.run})", f"those of {wanted.run} today")
    if before.connection != wanted.connection:
        raise refuse("connection", repr(before.connection), repr(wanted.connection))
    for option in _OF_ONE_PROTOCOL:
        if None not in (old.get(option), new[option]) and old[option] != new[option]:
            raise refuse(option, repr(old[option]), repr(new[option]))
    digests = dict(old.get("data_dir", {}).get("digests", {}))
    for name, digest in new["data_dir"]["digests"].items():
        if digests.setdefault(name, digest) != digest:
            raise refuse("data_dir", f"other files or prompts of {name}", f"those in {new['data_dir']['path']} today")
    changed = [name for name, found in wanted.versions.items() if before.versions.get(name) != found]
    if changed:
        logger.warning(
            "%s: some results there were made with other versions of %s; --restart makes all anew.",
            *(folder, ", ".join(changed)),
        )
    limits = (old.get("limit"), new["limit"])
    merged = {
        **new,
        "data_dir": {**new["data_dir"], "digests": digests},
        "limit": None if None in limits else max(limits),
        **{option: new[option] or old.get(option) for option in _OF_ONE_PROTOCOL},
    }
    versions = before.versions if changed else wanted.versions
    return dataclasses.replace(
        wanted, config=merged, versions=versions, benchmarks=before.benchmarks | wanted.benchmarks
    )


# Measuring ---------------------------------------------------------------------------------------------------------


def measure(
    parts: Sequence[Part],
    engine_of: Callable[[str], Engine],
    folder: Path,
    connection: str,
    *,
    progress: bool = True,
) -> list[Scored]:
    """Answer what the folder has not got yet, and give the results of all parts.

    Args:
        parts: what to evaluate.
        engine_of: gives the engine of a protocol; asked once for each protocol that has something left to answer.
        folder: of the evaluation; each batch is in it before the next begins.
        connection: none, english or matrix, for the files' names.
        progress: show a bar over all items, with the time left.
    """
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                ItemWriter(folder, Key(part.benchmark.protocol, part.benchmark.name, part.language, connection))
            )
            for part in parts
        ]
        left = [
            [item for item in part.items if item.id not in writer.done]
            for part, writer in zip(parts, writers, strict=True)
        ]
        # All engines before the first answer: what is missing for the second should not be found out hours later.
        protocols = dict.fromkeys(part.benchmark.protocol for part, items in zip(parts, left, strict=True) if items)
        engines = {protocol: engine_of(protocol) for protocol in protocols}
        total = sum(len(part.items) for part in parts)
        bar = stack.enter_context(
            tqdm(total=total, initial=total - sum(map(len, left)), desc="evaluating", unit="item", disable=not progress)
        )
        for part, writer, items in zip(parts, writers, left, strict=True):
            if not items:
                continue
            bar.set_description(part.name)
            for batch in engines[part.benchmark.protocol](items):
                writer.append(*batch)
                bar.update(len(batch))
        bar.close()
        for protocol, engine in engines.items():
            if engine.cut:
                logger.warning(
                    "%s: %d of the items that this call asked are longer than the model's context (%s tokens). They "
                    "were asked without their beginning.",
                    *(protocol, engine.cut, engine.max_length),
                )
        return [_cell(part, writer.done) for part, writer in zip(parts, writers, strict=True)]


def _cell(part: Part, done: Mapping[str, ItemResult]) -> Scored:
    return Scored(
        benchmark=part.benchmark,
        language=part.language,
        results=tuple(done[item.id] for item in part.items),
        chance=chance_level(part.items) if part.items else 0.0,
        without_english=part.without_english,
    )
