"""`pivotune evaluate`: what it asks, keeps, refuses and shows; and that the scorers score what a model says."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pivotune import cli
from pivotune.checkpoint import open_model, read_info
from pivotune.data import ParallelExample
from pivotune.data.prompts import render_prompt
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import BENCHMARKS, PRESETS, Item, benchmark_of, harness_task, load
from pivotune.evaluation.benchmarks import task_specs as specs_of
from pivotune.evaluation.benchmarks.harness import task_manager
from pivotune.evaluation.engines import (
    Engine,
    GenerationEngine,
    LikelihoodEngine,
    _example,
)
from pivotune.evaluation.results import ItemResult, Key, read_evaluation, read_items
from pivotune.evaluation.summary import Scored
from pivotune.generation import generate_texts
from pivotune.generation import load as load_model
from pivotune.lab.base import base_path, load_base
from pivotune.method import Method
from pivotune.training import train
from tests.data.tiny_tokenizers import BOS, byte_level
from tests.evaluation.benchmarks.made_up import other, put_cc
from tests.families import tiny
from tests.runs import configuration, write_base, write_rows

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra pivotune[evaluation]")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from pivotune.evaluation import runner as module  # noqa: E402
from pivotune.evaluation.runner import choose, evaluate, measure, read_parts  # noqa: E402
from tests.evaluation.models import RankingModel, Reply, SpeakingModel, right_answer  # noqa: E402
from tests.evaluation.test_likelihood import MATRIX, connectable, write_run  # noqa: E402

RANKED = [name for name, one in BENCHMARKS.items() if one.protocol == "likelihood"]
GENERATED = [name for name, one in BENCHMARKS.items() if one.protocol == "generation"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CC-Tuning run with a Transform Matrix."""
    torch.manual_seed(0)
    return write_run(tmp_path_factory.mktemp("cc"), connectable(open_model(base)), MATRIX, training={"seed": 7})


def items_of(output: Path) -> dict[str, list[ItemResult]]:
    return {path.name: read_items(path)[0] for path in sorted((output / "items").glob("*.jsonl"))}


def engines(items: Sequence[Item], reply: Reply, log_p: Callable[[Item, int], float]) -> Callable[[str], Engine]:
    def engine(protocol: str) -> Engine:
        if protocol == "likelihood":
            return LikelihoodEngine(RankingModel(items, log_p))
        model = SpeakingModel([item for item in items if item.prompt is not None], reply)
        return GenerationEngine(model, model.tokenizer)

    return engine


def knows(item: Item, option: int) -> float:
    return -1.0 if option == item.gold else -2.0 - option


def cells_of(
    bench: Path, name: str, languages: Sequence[str], output: Path, reply: Reply, log_p: Callable[[Item, int], float]
) -> list[Scored]:
    cells = []
    for language in languages:  # one by one: a prompt may occur in two languages
        parts = read_parts([(benchmark_of(name), language)], bench, 50, "none")
        asked = [item for part in parts for item in part.items]
        cells += measure(parts, engines(asked, reply, log_p), output, "none", progress=False)
    return cells


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_oracle_has_everything_right(name: str, folder: Path, tmp_path: Path) -> None:
    for cell in cells_of(folder, name, ("en", other(name)), tmp_path / "out", right_answer, knows):
        assert [one.score for one in cell.results] == [1.0] * len(cell.results)
        assert [one.id for one in cell.results] == [item.id for item in load(name, cell.language, folder)]


@pytest.mark.parametrize("languages", ["zh,en", "zho_Hans,eng_Latn", "cmn,English", "Chinese, en, zh"])
def test_languages_by_any_of_their_names(languages: str) -> None:
    assert [code for _, code in choose("xnli", None, languages)] == ["zh", "en"]


def languages_of(name: str) -> list[str]:
    return [*[code for code in PRESETS[BENCHMARKS[name].paper].languages[name] if code != "en"][:3], "en"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_oracle_has_everything_right_in_the_publishers_files(name: str, bench: Path, tmp_path: Path) -> None:
    cells = cells_of(bench, name, languages_of(name), tmp_path, right_answer, knows)
    assert [len(cell.results) for cell in cells] == [50] * len(cells)
    wrong = [one for cell in cells for one in cell.results if one.score != 1.0]
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_guesser_is_at_chance_in_the_publishers_files(name: str, bench: Path, tmp_path: Path) -> None:
    draw = random.Random(0)

    def guess(item: Item) -> str:
        if item.labels is None:
            return "☃"  # neither a word nor a character of any answer
        return f"({draw.choice(item.labels)})"

    cells = cells_of(bench, name, languages_of(name), tmp_path, guess, lambda item, option: -draw.random())
    scores = [one.score for cell in cells for one in cell.results]
    chances = [cell.chance for cell in cells for _ in cell.results]
    expected, count = sum(chances) / len(chances), len(scores)
    # Three and a half standard deviations of as many guesses; with the seed fixed the test always says the same.
    bound = 3.5 * math.sqrt(expected * (1 - expected) / count)
    assert abs(sum(scores) / count - expected) <= bound
    assert expected == pytest.approx(BENCHMARKS[name].chance or 0.0) or name == "truthfulqa"


# Scores of answers -------------------------------------------------------------------------------------------------


# The harness itself ------------------------------------------------------------------------------------------------


def harness_samples(lm: Any, items: Sequence[Item]) -> dict[str, Any]:
    """By id, through the harness's own simple_evaluate, all items in one evaluation."""
    found = lm_eval.simple_evaluate(
        model=lm, tasks=specs_of([harness_task(items)]), task_manager=task_manager(), bootstrap_iters=0
    )
    ((_, samples),) = found["samples"].items()
    return {sample["doc"]["id"]: sample for sample in samples}


def same_as_the_harness(model: Path, data: Path, names: Sequence[str], limit: int | None, output: Path) -> None:
    """Item by item: the log-likelihoods to rounding, because the batches differ, and the scores exactly."""
    lm = HFLM(str(model), device="cpu", batch_size=4)
    languages = sorted({other(name) for name in names} | {"en"})
    evaluate(
        str(model),
        data_dir=str(data),
        benchmarks=",".join(names),
        languages=",".join(languages),
        limit=limit,
        output=str(output),
        batch_size=2,
    )
    for name in names:
        for language in (other(name), "en"):
            items = load(name, language, data, limit)
            theirs = harness_samples(lm, items)
            ours, _ = read_items(output / "items" / Key("likelihood", name, language, "none").filename)
            assert sorted(one.id for one in ours) == sorted(theirs) == sorted(item.id for item in items)
            for one in ours:
                log_p = [answer[0][0] for answer in theirs[one.id]["resps"]]
                assert one.loglikelihoods == pytest.approx(log_p, rel=1e-5)
                assert one.score == theirs[one.id]["acc"]


@pytest.mark.parametrize("name", RANKED)
def test_likelihood_is_the_harness_item_by_item(name: str, base: Path, folder: Path, tmp_path: Path) -> None:
    same_as_the_harness(base, folder, [name], None, tmp_path)


@pytest.mark.slow
def test_likelihood_is_the_harness_on_the_lab_base(bench: Path, tmp_path: Path) -> None:
    # In float32, where other batches change nothing but the last digits.
    model, tokenizer = load_base()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    same_as_the_harness(tmp_path / "base", bench, ["xnli", "xcopa", "xstorycloze"], 20, tmp_path)


@pytest.mark.parametrize("softmax_dtype", ["float32", "auto"])
def test_sums_in_float32_or_as_the_harness_by_default(
    softmax_dtype: Any, base: Path, folder: Path, tmp_path: Path
) -> None:
    """In bfloat16 the same batch gives the same bits; and sums in bfloat16 are others."""
    model, tokenizer = load_model(base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    path, output = str(tmp_path / "base"), tmp_path / "out"
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="xcopa", languages="vi", output=str(output))
    evaluate(path, softmax_dtype=softmax_dtype, **options)
    items = load("xcopa", "vi", folder)
    ours = {one.id: one.loglikelihoods for one in items_of(output)["likelihood.xcopa.vi.none.jsonl"]}
    theirs = {}
    for dtype in (None, "float32"):
        lm = HFLM(path, device="cpu", batch_size=16, softmax_dtype=dtype)
        samples = harness_samples(lm, items)
        theirs[dtype] = {key: tuple(one[0][0] for one in sample["resps"]) for key, sample in samples.items()}
    assert theirs[None] != theirs["float32"]
    assert ours == theirs[None if softmax_dtype == "auto" else "float32"]
    with pytest.raises(PivotuneError, match=r"^softmax_dtype: the results in"):
        evaluate(path, softmax_dtype="float32" if softmax_dtype == "auto" else "auto", **options)


def test_xquad_is_the_harness_item_by_item(base: Path, folder: Path, tmp_path: Path) -> None:
    """Its own task, which the harness generates for, against our generation."""
    items = load("xquad", "vi", folder)
    data = tmp_path / "rows.jsonl"
    rows = [
        {"id": one.id, "context": one.context, "question": one.question, "answers": {"text": list(one.answers)}}
        for one in items
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "include": str(Path(lm_eval.__file__).parent / "tasks/xquad/xquad_vi.yaml"),
        "task": "xquad_vi",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(data)}, "cache_dir": str(tmp_path / "cache")},
    }
    (tmp_path / "xquad_vi.yaml").write_text(yaml.safe_dump(task))
    found = lm_eval.simple_evaluate(
        model=HFLM(str(base), device="cpu", batch_size=2),
        tasks=["xquad_vi"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        gen_kwargs={"max_gen_toks": 40},
        bootstrap_iters=0,
    )
    theirs = {sample["doc"]["id"]: sample for sample in found["samples"]["xquad_vi"]}
    evaluate(str(base), data_dir=str(folder), benchmarks="xquad", languages="vi", output=str(tmp_path / "out"))
    ours, _ = read_items(tmp_path / "out/items/generation.xquad.vi.none.jsonl")
    for one in ours:
        assert one.prediction == theirs[one.id]["resps"][0][0].strip()
        assert (one.scores["f1"], one.scores["exact_match"]) == (theirs[one.id]["f1"], theirs[one.id]["exact_match"])


# Resuming ----------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupted_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = module.ItemWriter, iter(range(batches))

    class Writer(real):  # type: ignore[misc, valid-type]
        def append(self, *items: ItemResult) -> None:
            if next(count, None) is None:
                raise Interrupted
            super().append(*items)

    monkeypatch.setattr(module, "ItemWriter", Writer)


@pytest.mark.parametrize("mode", ["none", "matrix"])
def test_interrupted_and_resumed_equals_uninterrupted(
    mode: Any, run: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = dict(
        data_dir=str(folder),
        benchmarks="xcopa,xstorycloze,cc_xnli,cc_mmmlu",
        languages="vi,ar",
        connection=mode,
        batch_size=2,
        max_new_tokens=6,
    )
    whole = evaluate(run, output=str(tmp_path / "whole"), **options)
    for batches in (0, 1, 3, 6):
        output = tmp_path / f"cut-{batches}"
        with monkeypatch.context() as patched:
            interrupted_after(batches, patched)
            with pytest.raises(Interrupted):
                evaluate(run, output=str(output), **options)
        before = items_of(output)
        # Each batch holds two items, or one at the end of a benchmark: all that was finished is there.
        assert sum(map(len, before.values())) == [0, 2, 5, 9][[0, 1, 3, 6].index(batches)]
        resumed = evaluate(run, output=str(output), **options)
        assert items_of(output) == items_of(tmp_path / "whole")
        assert resumed == whole
        for name, items in before.items():
            assert items_of(output)[name][: len(items)] == items, "what was finished is kept as it was"


@pytest.mark.slow  # a second process imports everything again
def test_a_killed_process_loses_one_batch_at_most(run: str, folder: Path, tmp_path: Path) -> None:
    items, batch = 24, 2
    prompts = [f"Answer.\n\n{'long ' * (n % 5)}question {n}?\n\nAnswer:" for n in range(items)]
    put_cc(folder, "MKQA", "split_sample", "ans_sample", "ar", prompts, [["a"]] * items)
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="cc_mkqa", languages="ar")
    options |= dict(batch_size=batch, max_new_tokens=60)
    output = tmp_path / "killed"
    path = output / "items/generation.cc_mkqa.ar.matrix.jsonl"
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "pivotune", "evaluate", run, "--output", str(output), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (path.is_file() and path.stat().st_size):
            time.sleep(0.005)
        process.kill()
        _, shown = process.communicate()
    assert process.returncode == -signal.SIGKILL, shown
    before = path.read_bytes()
    answered = [int(count) for count in re.findall(rf"(\d+)/{items} ", shown)]
    assert 0 < before.count(b"\n") < items and before.count(b"\n") % batch == 0, "whole batches, and not all"
    assert before.count(b"\n") >= max(answered), "what the bar counted is there"

    resumed = evaluate(run, output=str(output), **options)
    assert path.read_bytes().startswith(before), "what was finished is kept as it was"
    assert resumed == evaluate(run, output=str(tmp_path / "whole"), **options)
    assert items_of(output) == items_of(tmp_path / "whole")


def test_what_is_finished_needs_no_model(
    run: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = dict(
        data_dir=str(folder), benchmarks="cc_xnli", languages="ar", max_new_tokens=4, output=str(tmp_path)
    )
    first = evaluate(run, **options)
    monkeypatch.setattr(module, "load_run", lambda *_: pytest.fail("the model is loaded"))
    assert evaluate(run, **options) == first
    assert evaluate(run, **options, limit=2)["protocols"]["generation"]["cells"][0]["items"] == 2
    assert len(items_of(tmp_path)["generation.cc_xnli.ar.matrix.jsonl"]) == 3
    assert read_evaluation(tmp_path).config["limit"] is None  # of what is there, not of the last call


def test_a_greater_limit_and_more_benchmarks_are_added(run: str, folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(data_dir=str(folder), connection="none", max_new_tokens=4, output=str(tmp_path))
    evaluate(run, benchmarks="xcopa", languages="vi", limit=1, **options)
    first = items_of(tmp_path)["likelihood.xcopa.vi.none.jsonl"]
    evaluate(run, benchmarks="xcopa,cc_xnli", languages="vi,ar", limit=2, **options)
    assert items_of(tmp_path)["likelihood.xcopa.vi.none.jsonl"][:1] == first
    kept = read_evaluation(tmp_path)
    assert sorted(kept.benchmarks) == ["generation.cc_xnli", "likelihood.xcopa"]
    assert kept.config["limit"] == 2 and kept.config["style"] == "plain" and kept.model["seed"] == 7
    assert {key.connection for key in kept.items} == {"none"}


def test_without_a_folder_the_data_are_those_of_the_hub(base: Path, folder: Path, hub: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(benchmarks="xnli,mlqa", languages="vi,en", max_new_tokens=4)
    from_hub, from_files = tmp_path / "hub-results", tmp_path / "results"
    evaluate(str(base), **options, output=str(from_hub))
    assert read_evaluation(from_hub).config["data_dir"]["path"] == "the hub"
    evaluate(str(base), **options, output=str(from_files), data_dir=str(folder))
    assert items_of(from_hub) == items_of(from_files)
    evaluate(str(base), benchmarks="xcopa", languages="vi", output=str(from_hub))
    with pytest.raises(PivotuneError, match=r"^data_dir: .* other files or prompts of xcopa\.vi, not those in .*bench"):
        evaluate(str(base), data_dir=str(folder), benchmarks="xcopa", languages="vi", output=str(from_hub))


def test_a_torn_line_is_evaluated_again(run: str, folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="xcopa", languages="vi", output=str(tmp_path))
    evaluate(run, **options)
    path = tmp_path / "items/likelihood.xcopa.vi.matrix.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    evaluate(run, **options)
    again, _ = read_items(path)
    assert [json.loads(line)["id"] for line in whole.splitlines()] == [one.id for one in again]
    path.write_bytes(whole[20:])
    with pytest.raises(PivotuneError, match=r"likelihood\.xcopa\.vi\.matrix\.jsonl:1: malformed line"):
        evaluate(run, **options)
    evaluate(run, **options, restart=True)
    assert items_of(tmp_path)[path.name] == [ItemResult.from_json(line) for line in whole.decode().splitlines()]


def test_what_was_made_in_another_way_is_not_mixed(run: str, base: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options: dict[str, Any] = dict(data_dir=str(folder), languages="ar", output=str(output), max_new_tokens=4)
    options |= dict(benchmarks="cc_xnli", limit=1)
    evaluate(run, **options)
    torch.manual_seed(1)
    same = connectable(open_model(base))
    with torch.no_grad():
        same.model.lm_head.weight[0, 0] += 1
    retrained = write_run(tmp_path / "retrained", same, MATRIX)
    changes: list[tuple[str, str, dict[str, Any]]] = [
        (run, "connection", {"connection": "none"}),
        (run, "style", {"style": "alpaca"}),
        (run, "max_new_tokens", {"max_new_tokens": 5}),
        (retrained, "run", {}),
    ]
    for path, option, change in changes:
        with pytest.raises(PivotuneError, match=rf"^{option}: the results in .*--output.*--restart"):
            evaluate(path, **{**options, **change})
    gold = folder / "cctuning/XNLI/ans_sample/ar.json"
    gold.write_text(gold.read_text().replace('"2"', '"1"'))
    with pytest.raises(PivotuneError, match=r"^data_dir: .*cc_xnli\.ar"):
        evaluate(run, **options)
    evaluate(run, **options, restart=True)
    (output / "evaluation.json").unlink()
    with pytest.raises(PivotuneError, match=r"evaluation\.json is missing.*--restart"):
        evaluate(run, **options)


# Connection --------------------------------------------------------------------------------------------------------


def test_real_english_is_connected(run: str, folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="cc_xnli", languages="ar,en", max_new_tokens=6)
    found = {}
    for mode in ("none", "english", "matrix"):
        evaluate(run, connection=mode, output=str(tmp_path / mode), **options)
        found[mode] = {
            name.split(".")[2]: {one.id: one.prediction for one in items}
            for name, items in items_of(tmp_path / mode).items()
        }
    assert found["none"]["en"] == found["english"]["en"] == found["matrix"]["en"], "English is not connected"
    assert found["none"]["ar"] != found["english"]["ar"] != found["matrix"]["ar"]
    model, tokenizer = load_model(run)
    items = load("cc_xnli", "ar", folder)
    asked = [_example(item) for item in items]
    answers = generate_texts(model, tokenizer, asked, style="plain", connection="english", max_new_tokens=6)
    assert found["english"]["ar"] == {item.id: answer for item, answer in zip(items, answers, strict=True)}


def test_items_without_english_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = "\n".join(f"({letter}) option {letter}" for letter in "ABCD")
    for language in ("en", "ko"):
        prompts = [f"p\n\nq{n}\n{listed}\n\nAnswer:" for n in range(430)]
        put_cc(folder, "MMMLU", "split_sample", "ans_sample", language, prompts, ["A"] * 430)
    (part,) = read_parts([(benchmark_of("cc_mmmlu"), "ko")], folder, 420, "english")
    assert (len(part.items), part.without_english) == (417, 3)
    assert "3 items have no English counterpart" in caplog.text
    (part,) = read_parts([(benchmark_of("cc_mmmlu"), "ko")], folder, 420, "matrix")
    assert (len(part.items), part.without_english) == (420, 0)


def test_xnli_is_never_connected_and_says_so(
    run: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="xnli,xcopa", languages="vi,en")
    for mode in ("none", "matrix"):
        evaluate(run, connection=mode, output=str(tmp_path / mode), **options)
    assert caplog.text.count("never made in xnli") == 1
    plain, connected = (items_of(tmp_path / mode) for mode in ("none", "matrix"))
    for name in ("xnli.vi", "xnli.en", "xcopa.en"):
        pairs = zip(plain[f"likelihood.{name}.none.jsonl"], connected[f"likelihood.{name}.matrix.jsonl"], strict=True)
        assert all(one.loglikelihoods == pytest.approx(two.loglikelihoods, rel=1e-5) for one, two in pairs)
    assert plain["likelihood.xcopa.vi.none.jsonl"] != connected["likelihood.xcopa.vi.matrix.jsonl"]


# Refusals ----------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"benchmarks": "xnly"}, "benchmarks: unknown benchmark 'xnly'; did you mean 'xnli'?"),
    ({"benchmarks": None}, "benchmarks, preset: none is given"),
    ({"preset": "dft"}, "benchmarks, preset: both are given"),
    ({"benchmarks": None, "preset": "dfd"}, "preset: got 'dfd'"),
    ({"benchmarks": " , "}, "benchmarks: got ' , '"),
    ({"languages": "ja"}, "languages: xcopa is not available in 'ja'"),
    ({"languages": "zh-CN"}, "'zh-CN'; did you mean 'zh'? Available: en, et,"),
    ({"languages": "cn"}, "languages: got 'cn'; 'cn' is a country's code; did you mean 'zh' (Chinese)?"),
    ({"benchmarks": "xcopa,cc_xnli", "languages": "vi"}, "languages: cc_xnli is not available in 'vi'"),
    ({"limit": 0}, "limit: got 0"),
    ({"batch_size": 0}, "batch_size: got 0"),
    ({"softmax_dtype": "float16"}, "softmax_dtype: got 'float16'"),
    ({"connection": "matrx"}, "connection"),
    ({"connection": "english"}, "connection: got 'english', but xcopa run inside lm-evaluation-harness"),
    ({"style": "auto", "benchmarks": "xquad"}, "style: got 'auto'"),
    ({"data_dir": None, "benchmarks": "xnli,cc_mkqa", "languages": "ar"}, "no data set of the hub holds cc_mkqa:"),
    (
        {"data_dir": None, "benchmarks": None, "preset": "cc", "languages": None},
        "no data set of the hub holds cc_xnli, cc_xstorycloze, cc_mmmlu, cc_xquad, cc_mkqa, cc_xlsum: their data are "
        "files of CC-Tuning's release. Put https://github.com/YYF-Tommy/CC-Tuning, folder Inference/data, as cctuning/",
    ),
    ({"data_dir": None}, "the data set of xcopa on the hub, cambridgeltl/xcopa (vi, test), cannot be read: "),
    ({"data_dir": "nowhere"}, "data_dir: nowhere is no folder"),
    ({"run": "./nowhere"}, "./nowhere: no such folder"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused_before_a_model_is_loaded(
    change: dict[str, Any], message: str, run: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_run", lambda *_: pytest.fail("the model is loaded"))
    options: dict[str, Any] = dict(run=run, data_dir=str(folder), benchmarks="xcopa", languages="vi")
    with pytest.raises(PivotuneError) as error:
        evaluate(**{**options, "output": str(tmp_path / "out"), **change})
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_broken_files_are_one_error(run: str, folder: Path, tmp_path: Path) -> None:
    path = folder / "xcopa/val-vi.jsonl"
    whole = path.read_text()
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="xcopa", output=str(tmp_path / "out"), limit=1)
    path.write_text(whole[:-10])
    with pytest.raises(PivotuneError, match=r"val-vi\.jsonl:3: malformed line"):
        evaluate(run, languages="vi", **options)
    path.unlink()
    with pytest.raises(PivotuneError, match=r"val-vi\.jsonl: no such file\. Get it from https"):
        evaluate(run, languages="vi", **options)
    path.write_bytes((folder / "xnli_dev/dev-vi.tsv").read_bytes())
    with pytest.raises(PivotuneError, match=r"val-vi\.jsonl:1: malformed line"):
        evaluate(run, languages="vi", **options)
    path.write_bytes((folder / "cctuning/XNLI/split_sample/ar.json").read_bytes())
    with pytest.raises(PivotuneError, match=r"val-vi\.jsonl:1: bad field: field 'choice1' is missing"):
        evaluate(run, languages="vi", **options)
    assert not (tmp_path / "out").exists()


def test_the_output_is_a_folder(run: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("mine")
    with pytest.raises(PivotuneError, match=r"^output: .*out is a file; name a folder"):
        evaluate(run, data_dir=str(folder), benchmarks="xcopa", output=str(file))
    assert file.read_text() == "mine"


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", ["scores.json", "evaluation.md", "evaluation.json", "items/mine.jsonl"])
def test_files_of_others_are_neither_replaced_nor_removed(
    name: str, restart: bool, run: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    (output / "items").mkdir(parents=True)
    (output / name).write_text('{"format": "mine"}')
    monkeypatch.setattr(module, "read_parts", lambda *_: pytest.fail("the benchmarks are read"))
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="xcopa", languages="vi", output=str(output))
    with pytest.raises(PivotuneError, match=rf"^output: .*{name} is not of an evaluation"):
        evaluate(run, **options, restart=restart)
    assert [path.read_text() for path in output.rglob("*") if path.is_file()] == ['{"format": "mine"}']


def test_two_evaluations_do_not_share_a_folder(
    run: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="xcopa", languages="vi", output=str(tmp_path))
    measured, tried = module.measure, []

    def measure_both(*args: Any, **kwargs: Any) -> Any:
        with pytest.raises(PivotuneError, match="another process is writing into"):
            evaluate(run, **options)
        tried.append(True)
        return measured(*args, **kwargs)

    monkeypatch.setattr(module, "measure", measure_both)
    evaluate(run, **options, limit=1)
    assert tried and not (tmp_path / "pivotune.lock").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pivotune.tensors", "tokenizer.json", "pivotune.json"])
def test_a_damaged_run_is_named_before_anything_is_read(
    name: str, run: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.setattr(module, "read_parts", lambda *_: pytest.fail("the benchmarks are read"))
    with pytest.raises(PivotuneError, match=re.escape(str(path))):
        evaluate(str(tmp_path / "run"), data_dir=str(folder), benchmarks="xcopa", languages="vi")


def test_a_connection_needs_a_run_with_one(base: Path, folder: Path, tmp_path: Path) -> None:
    without = write_run(tmp_path / "no-matrix", connectable(open_model(base)))
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="xcopa", languages="vi", output=str(tmp_path / "o"))
    with pytest.raises(PivotuneError, match="can be connected by none, english"):
        evaluate(without, connection="matrix", **options)
    with pytest.raises(PivotuneError, match="was not trained with a connection"):
        evaluate(str(base), connection="matrix", **options)
    options["output"] = None
    with pytest.raises(PivotuneError, match=r"output: .* is no run folder of Pivotune"):
        evaluate(str(base), **options)


def test_the_prompt_style_is_that_of_the_run(
    base: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="cc_xnli", languages="ar", max_new_tokens=2)
    for style, expected in (("alpaca", "alpaca"), ("plain", "plain"), ("auto", "plain")):
        folder_of_run = write_run(tmp_path / style, Method(open_model(base)), prompt_style=style)
        assert evaluate(folder_of_run, **options)["style"] == expected
        assert read_evaluation(tmp_path / style / "evaluation").config["style"] == expected
    assert caplog.text.count("give --style alpaca or chat") == 1


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ASKED: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "法国的货币是什么", "completion": "欧元"},
    "instructed": {"instruction": "法国的货币是什么", "output": "欧元"},
}


@pytest.mark.parametrize(
    ("kinds", "template", "style"),
    [
        (["plain"], None, "plain"),
        (["plain"], TEMPLATE, "plain"),
        (["instructed"], None, "alpaca"),
        (["instructed"], TEMPLATE, "chat"),
        (["plain", "instructed"], None, "auto"),
    ],
)
def test_a_run_of_automatic_style_is_asked_as_it_was_trained(
    kinds: list[str], template: str | None, style: str, folder: Path, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base")
    tokenizer = byte_level(template=f"{BOS} $A")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    rows = [{"id": f"{kind}{n}", "language": "zh", **ASKED[kind]} for kind in kinds for n in range(4)]
    run = train(configuration(base, write_rows(tmp_path / "train.jsonl", rows), tmp_path / "run", max_steps=1))
    assert read_info(run)["prompt_style"] == style and read_info(run)["data"]["style"] == "auto"
    for row in rows:
        question = ParallelExample.from_dict(row)
        assert render_prompt(question, tokenizer, style) == render_prompt(question, tokenizer, "auto")
    options: dict[str, Any] = dict(data_dir=str(folder), benchmarks="cc_xnli", languages="ar", max_new_tokens=2)
    assert evaluate(str(run), **options)["style"] == ("plain" if style == "auto" else style)


# What is chosen and shown ------------------------------------------------------------------------------------------


def test_what_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    def names(*options: str | None) -> list[str]:
        return [f"{one.name}.{language}" for one, language in choose(*options)]

    assert len(names(None, "dft", None)) == 3 * 6 + 2 + 2 and len(names(None, "cc", None)) == 60
    assert names("xcopa", None, None) == ["xcopa.vi", "xcopa.zh"]  # those of the paper
    assert names("xcopa,xnli,xcopa", None, "zh, en") == ["xcopa.zh", "xcopa.en", "xnli.zh", "xnli.en"]
    assert "xstorycloze.vi" not in names(None, "dft", "vi,en")
    assert "xstorycloze is not available in vi and left out there" in caplog.text


def test_the_command(run: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", run, "--benchmarks", "xcopa,cc_xnli", "--languages=vi,ar", "--data_dir", str(folder)]
    arguments += ["--limit", "2", "--output", str(tmp_path), "--max_new_tokens", "4", "--connection", "matrix"]
    cli.main(arguments)
    printed = capsys.readouterr()
    assert "xcopa" in printed.out and "cc_xnli" in printed.out and "connection: matrix" in printed.out
    assert "4/4" in printed.err and "Running" not in printed.err, "one progress bar, over all items"
    assert (tmp_path / "evaluation.md").is_file()
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["protocols"]) == {"likelihood", "generation"}
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--limt", "3"])
    assert "did you mean 'limit'" in capsys.readouterr().err


# End to end --------------------------------------------------------------------------------------------------------


def all_fourteen(model: str, bench: Path, output: Path, limit: int) -> Iterator[dict[str, Any]]:
    for preset in PRESETS:
        options: dict[str, Any] = dict(data_dir=str(bench), preset=preset, limit=limit, max_new_tokens=8)
        found = evaluate(model, languages="vi,ar,zh", output=str(output), **options)
        for scores in found["protocols"].values():
            assert all(one["items"] == limit for one in scores["cells"])
            yield from scores["benchmarks"]


@pytest.mark.slow
def test_the_lab_base_on_all_fourteen(bench: Path, tmp_path: Path) -> None:
    assert {one["benchmark"] for one in all_fourteen(str(base_path()), bench, tmp_path, 2)} == set(BENCHMARKS)


@pytest.mark.slow
def test_a_random_gemma_on_all_fourteen(bench: Path, tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny("gemma2", dtype=torch.float32, vocab_size=len(tokenizer), max_position_embeddings=4096)
    model.save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    found = all_fourteen(str(tmp_path / "gemma"), bench, tmp_path / "out", 2)
    assert {one["benchmark"] for one in found} == set(BENCHMARKS)
