"""`pivotune lens`: the report says what the measures say alone, and compares two models example by example."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pivotune.anatomy import Anatomy
from pivotune.checkpoint import Run, load_run
from pivotune.cli import main
from pivotune.data import ParallelExample, PromptEncoder, Text, read_prompts
from pivotune.data.prompts import prompt_only
from pivotune.errors import PivotuneError
from pivotune.lens.report import files, inspect, lens, text
from pivotune.lens.survey import Question, survey
from pivotune.taps import evaluating
from pivotune.training import train
from tests.runs import configuration, rows, write_base, write_rows

LAYERS = 4


def examples(count: int = 24, seed: int = 3) -> list[dict[str, Any]]:
    """Chinese and Vietnamese rows of the same ids."""
    made = rows(count, english=1.0, seed=seed)
    return made + [row | {"language": "vi", "completion": f"tip {row['id']}"} for row in made]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a run of each kind made from it, and pairs that none of them was trained on."""
    folder = tmp_path_factory.mktemp("lens")
    write_base(folder / "base", layers=LAYERS)
    write_rows(folder / "train.jsonl", rows(16))
    write_rows(folder / "pairs.jsonl", examples())
    for name, method in (("deep", "deep_supervision"), ("cc", "cc_tuning")):
        train(configuration(folder / "base", folder / "train.jsonl", folder / name, method, max_steps=6))
    return folder


def opened(folder: Path, name: str) -> Run:
    run = load_run(folder / name, dtype=torch.float64, device="cpu")
    return run


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    pairs = read_prompts(folder / "pairs.jsonl")
    return inspect(opened(folder, "deep"), pairs, opened(folder, "base"), block=16)


def test_one_report_for_each_language(report: dict[str, Any]) -> None:
    assert list(report["languages"]) == ["vi", "zh"]
    for found in report["languages"].values():
        assert found["examples"] == 24
        for measure in ("entropy", "language", "similarity", "deep_supervision"):
            for name, columns in found[measure]["tables"].items():
                assert columns["n"] == 24, (measure, name)
                for side in ("run", "baseline", "difference"):
                    assert len(columns[side]["mean"]) == LAYERS
    assert report["layers"] == {"conversion": 1, "thinking": 2, "count": LAYERS}  # the run's own
    json.dumps(report, allow_nan=False)


def test_entropy_is_that_of_the_questions(folder: Path, report: dict[str, Any]) -> None:
    pairs = [pair for pair in read_prompts(folder / "pairs.jsonl") if pair.language == "zh"]
    for role, name in (("run", "deep"), ("baseline", "base")):
        run = opened(folder, name)
        encoder = PromptEncoder(run.tokenizer)
        prompts = encoder.tokenize([encoder.render(prompt_only(pair), pair.where) for pair in pairs])
        with evaluating(run.model):
            questions = [Question("zh", one) for one in prompts]
            alone = survey(Anatomy(run.model), questions, tokens=None)["entropy"].mean(axis=0)
        assert report["languages"]["zh"]["entropy"]["tables"]["target"][role]["mean"] == pytest.approx(alone, abs=1e-6)


def test_read_by_a_tuned_lens(folder: Path, report: dict[str, Any]) -> None:
    """Of each model its own; the last layer is the model itself, and similarity reads nothing."""
    pairs = read_prompts(folder / "pairs.jsonl")
    tuned = inspect(opened(folder, "deep"), iter(pairs), opened(folder, "base"), block=16, reader="tuned_lens")
    assert (report["reader"], report["tuned_lens"], tuned["reader"]) == ("logit_lens", {}, "tuned_lens")
    for role in ("run", "baseline"):
        kl = tuned["tuned_lens"][role]["kl"]
        assert list(kl["tuned_lens"]) == [str(layer) for layer in range(1, LAYERS)]
        assert all(kl["tuned_lens"][layer] < kl["logit_lens"][layer] for layer in kl["tuned_lens"])
        for measure, name in (("entropy", "target"), ("language", "english"), ("deep_supervision", "question_nats")):
            ours, theirs = (one["languages"]["zh"][measure]["tables"][name][role]["mean"] for one in (tuned, report))
            assert ours[-1] == pytest.approx(theirs[-1], abs=1e-6)
            assert ours[:-1] != pytest.approx(theirs[:-1], abs=1e-4)
    assert tuned["languages"]["zh"]["similarity"] == report["languages"]["zh"]["similarity"]
    assert "read by a tuned lens" in text({"run": "a", "baseline": "b", **tuned})


def test_differences_are_paired(report: dict[str, Any]) -> None:
    """The mean is that of the two means; the interval is no wider than those of two independent samples."""
    narrower = 0
    for found in report["languages"].values():
        for measure in ("entropy", "language", "similarity", "deep_supervision"):
            for columns in found[measure]["tables"].values():
                for k in range(LAYERS):
                    run, baseline, difference = (columns[role] for role in ("run", "baseline", "difference"))
                    assert difference["mean"][k] == pytest.approx(run["mean"][k] - baseline["mean"][k], abs=2e-6)
                    assert difference["low"][k] <= difference["mean"][k] <= difference["high"][k]
                    apart = sum((one["high"][k] - one["low"][k]) ** 2 for one in (run, baseline)) ** 0.5
                    narrower += difference["high"][k] - difference["low"][k] < apart
    assert narrower > 0.8 * 2 * LAYERS * 16


def test_a_model_does_not_differ_from_itself(folder: Path) -> None:
    pairs = read_prompts(folder / "pairs.jsonl")
    report = inspect(opened(folder, "base"), pairs, opened(folder, "base"), measures=["entropy", "similarity"])
    for found in report["languages"].values():
        assert "language" not in found and "deep_supervision" not in found
        for columns in found["similarity"]["tables"].values():
            assert columns["difference"]["mean"] == pytest.approx([0.0] * LAYERS, abs=1e-9)
            assert all(low <= 0.0 for low in columns["difference"]["low"])
    assert report["projection"] is None


def test_batches_change_nothing(folder: Path, report: dict[str, Any]) -> None:
    def close(ours: Any, theirs: Any) -> None:
        assert type(ours) is type(theirs)
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys()
            for key in ours:
                close(ours[key], theirs[key])
        elif isinstance(ours, list):
            assert len(ours) == len(theirs)
            for one, other in zip(ours, theirs, strict=True):
                close(one, other)
        elif isinstance(ours, float):
            assert ours == pytest.approx(theirs, abs=2e-6)
        else:
            assert ours == theirs

    pairs = read_prompts(folder / "pairs.jsonl")
    again = inspect(opened(folder, "deep"), iter(pairs), opened(folder, "base"), block=16, batch_size=5)
    close(report["languages"], again["languages"])


def test_nothing_is_kept_of_the_examples(folder: Path) -> None:
    """Examples are let go as they are read: at most a batch per language and what the tokenizer takes at once."""
    alive: list[int] = []
    count = 0

    class Counted(ParallelExample):
        def __del__(self) -> None:
            nonlocal count
            count -= 1

    first = read_prompts(folder / "pairs.jsonl")[0]

    def endless() -> Iterator[ParallelExample]:
        nonlocal count
        for number in range(2500):
            count += 1
            alive.append(count)
            yield Counted(str(number), first.language, replace(first.text), first.english, first.where)

    report = inspect(opened(folder, "base"), endless(), measures=["entropy"], batch_size=64)
    assert report["languages"]["zh"]["examples"] == 2500
    assert max(alive) < 1200  # the tokenizer takes 1,000


def test_cc_tuning_shows_its_picks(folder: Path) -> None:
    pairs = read_prompts(folder / "pairs.jsonl")
    found = inspect(opened(folder, "cc"), pairs, opened(folder, "base"))["languages"]["zh"]["cc_tuning"]
    assert sum(found["tables"]["picks_english"]["run"]["mean"]) == pytest.approx(1.0, abs=1e-5)
    assert 0.0 <= found["tables"]["agreement"]["run"]["mean"][0] <= 1.0
    assert found["tables"]["agreement"]["baseline"] is None
    assert len(found["summary"]["run"]["r2_per_layer"]) == LAYERS


def test_the_command_writes_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["lens", str(folder / "deep"), "--data", str(folder / "pairs.jsonl"), "--baseline", str(folder / "base")])
    shown = capsys.readouterr().out
    assert "base -> deep" in shown and "Chinese" in shown
    report = json.loads((folder / "deep" / "lens" / "lens.json").read_text(encoding="utf-8"))
    assert report["run"] == "deep" and report["baseline"] == "base"
    assert "vi" in report["languages"]["zh"]["language"]["tables"]  # answers of the same id
    page = (folder / "deep" / "lens" / "lens.md").read_text(encoding="utf-8")
    assert "| layer" in page
    plots = {path.name for path in (folder / "deep" / "lens").iterdir()}
    assert {"entropy.png", "entropy.svg", "language.png", "similarity_mean.png"} <= plots <= set(files())


@pytest.mark.parametrize("name", files()[:4])
def test_files_that_are_there_are_replaced_only_when_asked(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "thesis.txt").write_text("mine")
    options: dict[str, Any] = dict(data=str(folder / "pairs.jsonl"), output=str(tmp_path), limit=2, measures="entropy")
    with monkeypatch.context() as patch, pytest.raises(PivotuneError, match=rf"^output: .*{name} already exists"):
        patch.setattr("pivotune.lens.report.load_run", lambda *_: pytest.fail("the model is loaded"))
        lens(str(folder / "base"), **options)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
    lens(str(folder / "base"), **options, overwrite=True)
    assert (tmp_path / name).stat().st_size > 100 and (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(PivotuneError, match=r"lens\.json already exists"):  # its own files too
        lens(str(folder / "base"), **options)
    with pytest.raises(PivotuneError, match="is a file; name a folder"):
        lens(str(folder / "base"), **{**options, "output": str(tmp_path / "thesis.txt")})


def test_the_report_is_shown_where_it_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PivotuneError, match=r"lens\.json: cannot be written: No space left on device"):
        lens(
            str(folder / "base"),
            data=str(folder / "pairs.jsonl"),
            output=str(tmp_path / "out"),
            limit=2,
            measures="entropy",
        )
    assert "entropy, nats" in capsys.readouterr().out
    assert not list((tmp_path / "out").iterdir())


def test_a_sample_and_all(folder: Path, tmp_path: Path) -> None:
    few = lens(
        str(folder / "base"), data=str(folder / "pairs.jsonl"), output=str(tmp_path), limit=5, measures="entropy"
    )
    assert {found["examples"] for found in few["languages"].values()} == {5}
    every = lens(
        str(folder / "base"),
        data=str(folder / "pairs.jsonl"),
        output=str(tmp_path),
        overwrite=True,
        limit=0,
        measures="entropy",
        languages="zh",
    )
    assert {name: found["examples"] for name, found in every["languages"].items()} == {"zh": 24}


def test_questions_without_answers(folder: Path, tmp_path: Path) -> None:
    """Sentence pairs: what needs an answer is left out and counted, the rest is there."""
    bare = [
        {key: value for key, value in row.items() if key != "completion"}
        | {"english": {"prompt": row["english"]["prompt"]}}
        for row in rows(12, english=1.0)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", bare)
    report = lens(str(folder / "base"), data=str(data), output=str(tmp_path / "out"))
    found = report["languages"]["zh"]
    assert found["language"]["summary"]["run"]["skipped"] == {"without an answer": 12}
    assert found["similarity"]["tables"]["mean/mexa"]["n"] == 12
    assert "answer_nats" not in found["deep_supervision"]["tables"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"measures": "entropy,mexa"}, "measures: got 'mexa'"),
        ({"layers": "2"}, "layers: got '2'; give the conversion and the thinking layer, as \"2,15\""),
        ({"layers": "2,9"}, "layers: got 9"),
        ({"languages": "zh,sw"}, r"has no pair with English in 'sw'. Pairs of each language: vi \(24\), zh \(24\)"),
        ({"limit": -1}, "limit: got -1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"output": None}, "output: .* is no run folder"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_mistakes_are_named(folder: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    options = {"data": str(folder / "pairs.jsonl"), "output": str(tmp_path)} | changed
    with pytest.raises(PivotuneError, match=message):
        lens(str(folder / "base"), **options)


def test_a_broken_line_is_found_before_the_model_runs(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", examples(3))
    data.write_text(data.read_text(encoding="utf-8") + '{"id": "9", "language": "zh"}\n', encoding="utf-8")
    with pytest.raises(PivotuneError, match=r"pairs.jsonl:7"):
        lens(str(folder / "base"), data=str(data), output=str(tmp_path))


def test_models_must_match(folder: Path, tmp_path: Path) -> None:
    pairs = read_prompts(folder / "pairs.jsonl")
    write_base(tmp_path / "deeper", layers=LAYERS + 1)
    with pytest.raises(PivotuneError, match="baseline: has 5 layers and the run 4"):
        inspect(opened(folder, "base"), pairs, load_run(tmp_path / "deeper"))
    other = opened(folder, "base")
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(PivotuneError, match="baseline: has another tokenizer"):
        inspect(opened(folder, "base"), pairs, other)


def test_no_pair_is_an_error(folder: Path) -> None:
    alone = [replace(pair, english=None) for pair in read_prompts(folder / "pairs.jsonl")]
    with pytest.raises(PivotuneError, match="no pair to read: 48 examples have no English counterpart"):
        inspect(opened(folder, "base"), alone)


def test_a_connection_that_never_learned_a_matrix(folder: Path) -> None:
    run = opened(folder, "cc")
    del run.tensors["cc_tuning.transform_matrix"]
    found = inspect(run, read_prompts(folder / "pairs.jsonl"))["languages"]["zh"]["cc_tuning"]
    assert "picks_matrix" not in found["tables"] and "picks_english" in found["tables"]
    assert run.objectives["cc_tuning"].selection == "hard"


def test_published_rows_in_any_name_of_their_language(folder: Path, tmp_path: Path, caplog: Any) -> None:
    made = [
        {"frage": one["prompt"], "language_code": "zho", "prompt_en": one["english"]["prompt"], "score": 1}
        for one in rows(12, english=1.0)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", made)
    options: dict[str, Any] = {"data": str(data), "columns": {"frage": "prompt"}, "measures": "entropy"}
    found = lens(str(folder / "deep"), output=str(tmp_path / "o"), languages="Chinese", **options)
    assert list(found["languages"]) == ["zh"] and found["languages"]["zh"]["examples"] == 12
    assert caplog.text.count("rows with a field 'score' that was not read: 12") == 1
    with pytest.raises(PivotuneError, match="languages: got 'cn'"):
        lens(str(folder / "deep"), output=str(tmp_path / "o"), languages="cn", **options)


def test_pairs_beyond_the_context_are_left_out(tmp_path: Path) -> None:
    run = load_run(write_base(tmp_path, max_position_embeddings=16))
    pairs = [
        ParallelExample(str(n), "zh", Text(prompt="问" * count), Text(prompt="ask"), where=f"f:{n}")
        for n, count in enumerate((40, 2, 3))
    ]
    report = inspect(run, pairs, style="plain", measures=["entropy"])
    assert report["languages"]["zh"]["examples"] == 2
