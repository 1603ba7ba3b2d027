"""The likelihood protocol inside lm-evaluation-harness: HFLM's own numbers, or those of the slow reference."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from pivotune.checkpoint import describe, mark_complete, open_model, write_model
from pivotune.errors import PivotuneError
from pivotune.method import Method
from pivotune.objectives import CCTuningConfig
from tests.data.tiny_tokenizers import BOS, byte_level
from tests.gguf_file import write_gguf
from tests.reference import cc_tuning as reference
from tests.reference import likelihood as likelihood_reference
from tests.runs import WORDS, rows, write_base

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra pivotune[evaluation]")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from pivotune.evaluation.likelihood import PivotuneLM  # noqa: E402

CONFIG = CCTuningConfig(connection_tokens=2, selection="soft")
L, D = 3, 16
MATRIX = torch.randn(D, D, generator=torch.Generator().manual_seed(1)) / 4


# Runs and tasks in miniature -------------------------------------------------------------------------------------


def write_run(folder: Path, method: Method, matrix: torch.Tensor | None = None, **info: Any) -> str:
    if matrix is not None:
        method.objectives["cc_tuning"].fitted = {"transform_matrix": matrix}
    write_model(folder, method, byte_level(template=f"{BOS} $A"))
    mark_complete(folder, describe(method, **info))
    return str(folder)


def connectable(model: Any) -> Method:
    method = Method(model, [CONFIG])
    with torch.no_grad():
        method.objectives["cc_tuning"].decision_maker.weight.normal_()
    return method


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=L)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CC-Tuning run with a Transform Matrix."""
    torch.manual_seed(0)
    return write_run(tmp_path_factory.mktemp("cc"), connectable(open_model(base)), MATRIX)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks as the harness takes them. The names say what they are modelled on."""
    folder = tmp_path_factory.mktemp("tasks")
    made = rows(7, seed=3)
    data = folder / "data.jsonl"
    with open(data, "w", encoding="utf-8") as file:
        for number, row in enumerate(made):
            options = [row["completion"], made[(number + 1) % 7]["completion"] + WORDS[number], row["completion"][:2]]
            row = {"question": row["prompt"], "answer": row["completion"], "options": options, "label": number % 3}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
    }
    accuracy = {"metric_list": [{"metric": "acc"}]}
    choice = {"output_type": "multiple_choice", "doc_to_target": "label", **accuracy}
    generation = {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "doc_to_text": "问题: {{question}}\n\n回答:",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    }
    for name, task in {
        "xcopa_zh": {**choice, "doc_to_text": "{{question}}  因为\n ", "doc_to_choice": "options"},
        "xcopa_en": {**choice, "doc_to_text": "{{question}}  因为\n ", "doc_to_choice": "options"},
        "xnli_zh": {**choice, "doc_to_text": "", "doc_to_choice": "options"},
        "mmlu_zh": {**choice, "doc_to_text": "{{question}}\nA. B. C.", "doc_to_choice": ["A", "B", "C"]},
        "lambada_zh": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "wiki_zh": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}{{answer}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
        "xquad_zh": generation,
        "xquad_en": generation,
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **task}, allow_unicode=True))
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XNLI, XCOPA, XStoryCloze and XQuAD as the harness ships them, over a few invented items instead of the hub's."""
    folder = tmp_path_factory.mktemp("shipped")
    home = Path(lm_eval.__file__).parent / "tasks"
    texts = [f"{row['prompt']}{row['completion']}。" for row in rows(40, seed=5)]
    items = {
        "xnli/xnli_zh": lambda n: {"premise": texts[n], "hypothesis": texts[n + 1], "label": n % 3},
        "xcopa/default_zh": lambda n: {
            "premise": texts[n],
            "choice1": texts[n + 1],
            "choice2": texts[n + 2],
            "question": ["cause", "effect"][n % 2],
            "label": n % 2,
        },
        "xstorycloze/default_zh": lambda n: {
            **{f"input_sentence_{k}": texts[n + k] for k in (1, 2, 3, 4)},
            **{f"sentence_quiz{k}": texts[n + 4 + k] for k in (1, 2)},
            "answer_right_ending": 1 + n % 2,
        },
        "xquad/xquad_zh": lambda n: {
            "context": texts[n] + texts[n + 1],
            "question": texts[n + 2],
            "answers": {"text": [texts[n][:3]], "answer_start": [0]},
        },
    }
    for place, item in items.items():
        name = place.partition("/")[0] + "_zh"
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item(n), ensure_ascii=False) + "\n" for n in range(6)), encoding="utf-8")
        task = {
            "include": str(home / f"{place}.yaml"),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(data) for split in ("train", "validation", "eval", "test")},
                "cache_dir": str(folder / "cache"),
            },
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


def answers(lm: Any, tasks: Path, *names: str, **options: Any) -> dict[str, list[tuple[Any, Any]]]:
    """(arguments, response) of every request of every item, by task, through the harness's own evaluation."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=lm, tasks=list(names), task_manager=manager, bootstrap_iters=0, verbosity="ERROR", **options
    )
    samples = results["samples"]
    return {
        name: [
            (tuple(arguments), answer[0])
            for sample in sorted(samples[name], key=lambda sample: sample["doc_id"])
            for arguments, answer in zip(sample["arguments"], sample["resps"], strict=True)
        ]
        for name in names
    }


ALL = ["xcopa_zh", "xcopa_en", "xnli_zh", "mmlu_zh", "lambada_zh", "wiki_zh", "xquad_zh", "xquad_en"]


# Without a connection: the harness itself -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "sft", "cc_tuning"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_without_a_connection_every_number_is_that_of_hflm(
    kind: str, batch_size: int, base: Path, run: str, tasks: Path, tmp_path: Path
) -> None:
    """Item by item, bit for bit, against a model that the harness opened itself."""
    folder = {"base": str(base), "cc_tuning": run}.get(kind) or write_run(tmp_path, Method(open_model(base)))
    ours = PivotuneLM(folder, connection="none" if kind == "cc_tuning" else None, device="cpu", batch_size=batch_size)
    assert ours.connection_mode == "none"
    theirs = HFLM(folder, device="cpu", batch_size=batch_size)
    assert answers(ours, tasks, *ALL) == answers(theirs, tasks, *ALL)


def test_a_gguf_file_too(base: Path, tasks: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf (the extra gguf)")
    file = write_gguf(base, tmp_path / "tiny.gguf")
    names = ["xcopa_zh", "lambada_zh"]
    ours = answers(PivotuneLM(str(file), device="cpu", batch_size=4), tasks, *names)
    assert ours == answers(PivotuneLM(str(base), device="cpu", batch_size=4), tasks, *names)


def test_few_shot_and_automatic_batches_too(run: str, tasks: Path) -> None:
    ours = PivotuneLM(run, connection="none", device="cpu", batch_size="auto", max_batch_size=4, max_length=128)
    theirs = HFLM(run, device="cpu", batch_size="auto", max_batch_size=4, max_length=128)
    names = ["xcopa_zh", "xnli_zh"]
    assert answers(ours, tasks, *names, num_fewshot=2) == answers(theirs, tasks, *names, num_fewshot=2)


def test_the_benchmarks_as_the_harness_ships_them(run: str, shipped: Path) -> None:
    names = ["xnli_zh", "xcopa_zh", "xstorycloze_zh", "xquad_zh"]
    options = {"device": "cpu", "batch_size": 4, "max_length": 512}  # XQuAD asks for 256 tokens
    ours = answers(PivotuneLM(run, connection="none", **options), shipped, *names)
    assert ours == answers(HFLM(run, **options), shipped, *names)
    assert [len(ours[name]) for name in names] == [18, 12, 12, 6]
    lm = PivotuneLM(run, **options)
    connected = answers(lm, shipped, *names)
    for name in ("xcopa_zh", "xstorycloze_zh"):
        for (arguments, (log_p, _)), (_, (plain, _)) in zip(connected[name], ours[name], strict=True):
            assert log_p == pytest.approx(expected(lm, arguments)[0], rel=1e-5, abs=1e-4)
            assert abs(log_p - plain) > 1e-3
    assert all(context == "" for (context, _), _ in connected["xnli_zh"]), "XNLI of the harness has no context"
    for (_, (log_p, _)), (_, (plain, _)) in zip(connected["xnli_zh"], ours["xnli_zh"], strict=True):
        assert log_p == pytest.approx(plain, rel=1e-6)  # other batches: not bit for bit


# With it: the slow reference ---------------------------------------------------------------------------------------


def expected(lm: PivotuneLM, arguments: tuple[str, str]) -> tuple[float, bool]:
    context, continuation = lm._encode_pair(*arguments)
    logits = likelihood_reference.continuation_logits(
        lm.model,
        lm._connection.decision_maker.weight,
        context,
        continuation,
        matrix=lm._connection.transform_matrix,
        selection=CONFIG.selection,
        connection_tokens=CONFIG.connection_tokens,
    )
    return likelihood_reference.log_likelihood(logits, continuation)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_connected_likelihood_equals_the_reference(batch_size: int, run: str, tasks: Path) -> None:
    lm = PivotuneLM(run, device="cpu", batch_size=batch_size)
    assert lm.connection_mode == "matrix"
    plain = PivotuneLM(run, connection="none", device="cpu")
    names = ["xcopa_zh", "mmlu_zh", "lambada_zh"]
    unconnected = answers(plain, tasks, *names)
    for name, items in answers(lm, tasks, *names).items():
        for (arguments, (log_p, greedy)), (same, (plain_log_p, _)) in zip(items, unconnected[name], strict=True):
            wanted, wanted_greedy = expected(lm, arguments)
            assert arguments == same and greedy == wanted_greedy
            assert log_p == pytest.approx(wanted, rel=1e-5, abs=1e-4)  # float32
            assert abs(log_p - plain_log_p) > 1e-3, "the connection changes nothing: the comparison would be empty"


def test_batches_change_nothing_in_float64(run: str, tasks: Path) -> None:
    one, many = (PivotuneLM(run, device="cpu", batch_size=size, dtype="float64") for size in (1, 5))
    left, right = (answers(lm, tasks, "xcopa_zh", "mmlu_zh") for lm in (one, many))
    for name in left:
        assert [a[1][0] for a in left[name]] == pytest.approx([a[1][0] for a in right[name]], rel=1e-6)


def test_connected_answers_equal_the_reference(run: str, tasks: Path) -> None:
    lm = PivotuneLM(run, device="cpu", batch_size=4)
    for (context, _), answer in answers(lm, tasks, "xquad_zh")["xquad_zh"]:
        (tokens,) = reference.generate(
            lm.model,
            lm._connection.decision_maker.weight,
            [lm.tok_encode(context)],
            6,
            matrix=lm._connection.transform_matrix,
            selection=CONFIG.selection,
            connection_tokens=CONFIG.connection_tokens,
        )
        if lm.eot_token_id in tokens:
            tokens = tokens[: tokens.index(lm.eot_token_id)]
        assert answer == lm.tok_decode(tokens).split("\n")[0]


def test_english_tasks_empty_contexts_and_rolling_are_not_connected(
    run: str, tasks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connected, plain = PivotuneLM(run, device="cpu", batch_size=4), HFLM(run, device="cpu", batch_size=4)
    names = ["xcopa_en", "xnli_zh", "wiki_zh", "xquad_en"]
    with caplog.at_level(logging.INFO, logger="pivotune.evaluation.likelihood"):
        assert answers(connected, tasks, *names) == answers(plain, tasks, *names)
    log = caplog.text
    assert "xcopa_en is English and not connected" in log and "xquad_en is English and not connected" in log
    assert "21 of the 21 requests of xnli_zh have no context to connect" in log
    theirs = answers(plain, tasks, "xquad_zh", "xcopa_zh")
    assert answers(connected, tasks, "xquad_zh", "xcopa_zh") != theirs
    named = PivotuneLM(run, english_tasks="xquad_??:xcopa_zh", device="cpu", batch_size=4)
    assert answers(named, tasks, "xquad_zh", "xcopa_zh") == theirs


def test_an_adapter_run(base: Path, tasks: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    method = connectable(get_peft_model(open_model(base), lora))
    folder = write_run(tmp_path / "lora", method, MATRIX, adapter=True, base_model=str(base))
    lm = PivotuneLM(folder, device="cpu", batch_size=4)
    for arguments, (log_p, _) in answers(lm, tasks, "xcopa_zh")["xcopa_zh"]:
        assert log_p == pytest.approx(expected(lm, arguments)[0], rel=1e-5, abs=1e-4)
    ours = PivotuneLM(folder, "none", device="cpu", batch_size=4)
    theirs = HFLM(str(base), peft=folder, tokenizer=folder, device="cpu", batch_size=4)
    assert answers(ours, tasks, *ALL) == answers(theirs, tasks, *ALL)


# Details -----------------------------------------------------------------------------------------------------------


def connected_tokens(lm: PivotuneLM, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    return lm._connected_tokens([(None, a, b) for a, b in pairs], disable_tqdm=True)


def alone(lm: PivotuneLM, pair: tuple[list[int], list[int]]) -> float:
    return connected_tokens(lm, [pair])[0][0]


def test_where_the_context_ends_is_part_of_what_is_shared(run: str) -> None:
    """The same tokens, divided elsewhere: the connection is made elsewhere, so the passes must not be shared."""
    lm = PivotuneLM(run, device="cpu", batch_size=4, dtype="float64")
    pairs = [([1, 40, 41], [42, 43]), ([1, 40, 41, 42], [43]), ([1, 40, 41, 42], [44]), ([1, 40], [41, 42, 43])]
    together = connected_tokens(lm, pairs)
    assert [a for a, _ in together] == pytest.approx([alone(lm, pair) for pair in pairs], rel=1e-6)
    assert abs(together[0][0] - together[3][0]) > 1e-3


def test_passes(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row per context, and one per context with continuation, its last token left out."""
    lm = PivotuneLM(run, device="cpu", batch_size=100)
    rows_seen: list[int] = []
    lm.model.model.register_forward_hook(lambda module, args, output: rows_seen.append(len(output[0])))
    contexts = [[1, 40 + n, 41, 42] for n in range(5)]
    connected_tokens(lm, [(c, continuation) for c in contexts for continuation in ([50, 51], [60, 61, 62])])
    assert rows_seen == [5, 10]
    rows_seen.clear()
    connected_tokens(lm, [(c, [letter]) for c in contexts for letter in (50, 51, 52, 53)])
    assert rows_seen == [5, 5]


def test_too_long_contexts_lose_their_beginning(run: str) -> None:
    lm = PivotuneLM(run, device="cpu", batch_size=2, max_length=8, dtype="float64")
    context, continuation = [1, *range(40, 60)], [70, 71, 72]
    shorter = context[-6:]  # with the continuation one more than the model reads: the last token is only predicted
    assert alone(lm, (context, continuation)) == alone(lm, (shorter, continuation))
    assert alone(lm, (context, list(range(70, 78)))) == alone(lm, (context[-1:], list(range(70, 78))))


@pytest.fixture
def not_connected_at_the_end(run: str) -> Iterator[PivotuneLM]:
    lm = PivotuneLM(run, device="cpu")
    yield lm
    assert lm._connecting is False


def test_an_error_leaves_the_connection_off(
    not_connected_at_the_end: PivotuneLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = not_connected_at_the_end
    monkeypatch.setattr(lm, "_model_call", lambda *args, **kwargs: 1 / 0)
    request = Instance("loglikelihood", {}, ("问题", "回答"), 0, metadata=("xcopa_zh", 0, 1))
    with pytest.raises(ZeroDivisionError):
        lm.loglikelihood([request], disable_tqdm=True)


@pytest.mark.parametrize(
    ("gold", "prediction", "exact", "f1"),
    [
        ("The Eiffel Tower", "eiffel tower.", 1, 1.0),
        ("a tower in Paris", "the tower", 0, 0.5),
        ("北京 大学", "在 北京 大学", 0, 0.8),
        ("", "the", 1, 1.0),
        ("Paris", "", 0, 0.0),
    ],
)
def test_tasks_find_the_metrics_that_transformers_dropped(gold: str, prediction: str, exact: int, f1: float) -> None:
    import transformers.data.metrics.squad_metrics as squad_metrics

    assert squad_metrics.compute_exact(gold, prediction) == exact
    assert squad_metrics.compute_f1(gold, prediction) == pytest.approx(f1)


def test_the_results_say_how_it_was_connected(run: str) -> None:
    info = PivotuneLM(run, device="cpu").get_model_info()
    assert info["connection"] == "matrix" and "*_en" in info["english_tasks"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"connection": "english"}, ["english counterpart", "matrix or none"]),
        ({"connection": "matrx"}, ["'matrx'", "none", "matrix"]),
        ({"batch_size": "auto"}, ["batch_size", "'auto'", "whole number"]),
        ({"parallelize": True}, ["parallelize", "max_length"]),
    ],
    ids=str,
)
def test_what_cannot_be_had_says_why(run: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PivotuneError) as error:
        PivotuneLM(run, device="cpu", **options)
    assert all(word.lower() in str(error.value).lower() for word in words)


def test_a_connection_needs_one(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PivotuneError, match="was not trained with a connection"):
        PivotuneLM(str(base), connection="matrix", device="cpu")
    without = write_run(tmp_path, connectable(open_model(base)))
    assert PivotuneLM(without, device="cpu").connection_mode == "none"
    with pytest.raises(PivotuneError, match="needs a Transform Matrix"):
        PivotuneLM(without, connection="matrix", device="cpu")


def test_several_processes_are_refused(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PivotuneError, match="one process"):
        PivotuneLM(run, device="cpu")


# Without the harness, and from its command line ----------------------------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


WITHOUT_THE_HARNESS = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lm_eval":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import pivotune, pivotune.cli, pivotune.evaluation
pivotune.load, pivotune.train
import pivotune.evaluation.likelihood
"""


def test_pivotune_does_not_need_the_harness() -> None:
    done = python("-c", WITHOUT_THE_HARNESS)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "pivotune.errors.PivotuneError: evaluation: the likelihood protocol runs on lm-evaluation-harness, which is "
        "not installed. Install it with: pip install 'pivotune[evaluation]'"
    )


@pytest.mark.slow
def test_from_the_command_line_of_the_harness(run: str, tasks: Path, tmp_path: Path) -> None:
    done = python(
        *["-m", "pivotune.evaluation.likelihood", "run", "--model", "pivotune", "--tasks", "xcopa_zh,xcopa_en"],
        *["--model_args", f"pretrained={run},connection=matrix,english_tasks=xcopa_en:mmlu_*", "--device", "cpu"],
        *["--include_path", str(tasks), "--batch_size", "4", "--log_samples", "--output_path", str(tmp_path)],
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("samples_xcopa_zh_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lm = PivotuneLM(run, device="cpu", batch_size=4)
    here = [log_p for _, (log_p, _) in answers(lm, tasks, "xcopa_zh")["xcopa_zh"]]
    there = [float(answer[0][0]) for sample in sorted(samples, key=lambda s: s["doc_id"]) for answer in sample["resps"]]
    assert there == pytest.approx(here, rel=1e-6)
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["connection"] == "matrix"
