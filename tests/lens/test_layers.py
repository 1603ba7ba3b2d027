"""The choice of layers: planted truths, noise, fallbacks; from a model, from the command line, and inside a run."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune import cli
from pivotune.checkpoint import INFO
from pivotune.config import RunConfig
from pivotune.data import ParallelExample, read_examples
from pivotune.errors import PivotuneError
from pivotune.lens import LayerChoice, choose_layers, find_layers
from pivotune.lens.layers import layers, table, write_choice
from pivotune.methods import DeepSupervision, DeepSupervisionConfig
from pivotune.methods.deep_supervision import paper_layers
from pivotune.training import train
from tests.families import tiny
from tests.runs import configuration, rows, write_base, write_rows

PLANTED = [  # layers, i, j, end of the second drop
    (8, 2, 4, 6),
    (8, 3, 5, 7),
    (26, 3, 12, 18),
    (32, 2, 15, 16),
    (32, 2, 15, 22),
    (32, 2, 15, 32),
    (32, 5, 20, 24),
    (80, 4, 40, 60),
]


def planted(layers: int, i: int, j: int, k: int) -> np.ndarray:
    """9 nats before layer i, 6 from i to j, then a straight fall to 2 at layer k."""
    layer = np.arange(1, layers + 1)
    return np.where(layer < i, 9.0, 6.0) - 4.0 * np.clip((layer - j) / (k - j), 0, 1)


def noisy(curve: np.ndarray, seed: int) -> np.ndarray:
    """Every layer off by up to 5 % of the curve's range (of its level, where it is flat)."""
    size = 0.05 * (np.ptp(curve) or curve.max())
    return curve + np.random.default_rng(seed).uniform(-size, size, len(curve))


@pytest.mark.parametrize(("layers", "i", "j", "k"), PLANTED)
def test_planted_layers_are_found(layers: int, i: int, j: int, k: int) -> None:
    choice = find_layers(planted(layers, i, j, k))
    assert (choice.conversion_layer, choice.thinking_layer, choice.found) == (i, j, True)
    assert choice.confidence is None  # of one curve nothing is known
    assert choice.runner_up is not None
    assert max(abs(choice.runner_up[0] - i), abs(choice.runner_up[1] - j)) > 1
    assert "falls from 9.00 to 6.00 nats" in choice.reason
    assert "again to 2.00" in choice.reason


@pytest.mark.parametrize(("layers", "i", "j", "k"), PLANTED[:-1])
def test_noise_moves_neither_by_more_than_one_layer(layers: int, i: int, j: int, k: int) -> None:
    for seed in range(15):
        choice = find_layers(noisy(planted(layers, i, j, k), seed))
        assert choice.found, f"seed {seed}: {choice.reason}"
        assert abs(choice.conversion_layer - i) <= 1, f"seed {seed}"
        assert abs(choice.thinking_layer - j) <= 1, f"seed {seed}"


def test_curves_that_the_rule_does_not_draw() -> None:
    layer = np.arange(1, 33)
    sloping = planted(32, 2, 15, 22) - 0.02 * layer
    reverting = planted(32, 2, 15, 22) + 0.8 * np.clip((layer - 29) / 3, 0, 1)
    gradual = planted(32, 4, 15, 22) - np.array([0, 1, 2] + [0] * 29)  # 9, 8, 7, 6, 6, ...
    rounded = np.where(layer < 2, 9.0, 6.0) - 4 / (1 + np.exp(-(layer - 18.0)))  # a logistic fall around layer 18
    for curve, i in ((sloping, 2), (reverting, 2), (gradual, 3), (rounded, 2)):
        choice = find_layers(curve)
        assert choice.found
        assert abs(choice.conversion_layer - i) <= 1
        assert abs(choice.thinking_layer - 15) <= 1


@pytest.mark.parametrize(("layers", "i", "j", "k"), [(8, 2, 4, 6), (32, 2, 15, 32)])
def test_noise_of_examples_averages_out(layers: int, i: int, j: int, k: int) -> None:
    draw = np.random.default_rng(0)
    curve = planted(layers, i, j, k)
    values = curve * (1 + 0.05 * draw.normal(size=(100, layers))) + draw.normal(size=(100, 1))
    choice = find_layers(values)
    assert choice.found
    assert abs(choice.conversion_layer - i) <= 1
    assert abs(choice.thinking_layer - j) <= 1
    assert choice.confidence is not None
    assert choice.confidence > 0.9
    assert choice == find_layers(values)  # nothing random is left


def test_confidence_falls_where_examples_disagree() -> None:
    draw = np.random.default_rng(0)
    early, late = planted(32, 2, 12, 18), planted(32, 2, 20, 26)
    mixed = np.where(draw.random((20, 1)) < 0.5, early, late) + draw.normal(size=(20, 32))
    agreed = early + draw.normal(size=(20, 32))
    mixed_confidence, agreed_confidence = find_layers(mixed).confidence, find_layers(agreed).confidence
    assert mixed_confidence is not None
    assert agreed_confidence is not None
    assert mixed_confidence < 0.9 < agreed_confidence


WITHOUT = {
    "flat": lambda layers: np.full(layers, 8.0),
    "straight": lambda layers: np.linspace(9, 2, layers),
    "one drop": lambda layers: planted(layers, 1, layers // 2, layers * 3 // 4),
    "rising": lambda layers: np.linspace(2, 9, layers),
    "ever slower": lambda layers: 2 + 7 * np.exp(-4 * np.arange(layers) / layers),
    "a step, then straight": lambda layers: np.r_[9.0, np.linspace(6, 2, layers - 1)],
    "zero": np.zeros,
}


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize(("layers", "fallback"), [(32, (2, 15)), (26, (2, 12)), (8, (1, 4)), (80, (5, 38))])
def test_without_two_drops_the_papers_depths(name: str, layers: int, fallback: tuple[int, int]) -> None:
    choice = find_layers(WITHOUT[name](layers))
    assert not choice.found
    assert (choice.conversion_layer, choice.thinking_layer) == fallback == paper_layers(layers)
    assert choice.reason.startswith("no two drops: ")
    assert f"give {fallback[0]} and {fallback[1]} of {layers}" in choice.reason


@pytest.mark.parametrize("name", WITHOUT)
def test_noise_makes_no_drops(name: str) -> None:
    for seed in range(10):
        assert not find_layers(noisy(WITHOUT[name](32), seed)).found, f"seed {seed}"


def test_a_drop_within_the_spread_of_the_examples_does_not_count() -> None:
    draw = np.random.default_rng(0)
    values = np.tile(planted(32, 2, 15, 20), (20, 1))
    values[:, 0] = 6 + np.abs(draw.standard_cauchy(20)) * 5 * draw.choice([-1, 1], 20)
    values[:, 0] += 9 - values[:, 0].mean()
    choice = find_layers(values)
    assert not choice.found
    assert "the first drop" in choice.reason
    assert "within the spread of the examples" in choice.reason
    assert find_layers(values.mean(axis=0)).found


def test_too_few_layers() -> None:
    choice = find_layers(np.array([9.0, 6, 6, 2]))
    assert (choice.conversion_layer, choice.thinking_layer, choice.found) == (1, 2, False)
    assert "the model has 4 layers, too few" in choice.reason


# From a model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", rows(20))


def test_choose_layers(base: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    examples, _ = read_examples(data)
    with caplog.at_level(logging.WARNING):
        choice = choose_layers(model, tokenizer, iter(examples), language="zh")
    shapes = {name: curve.values.shape for name, curve in choice.curves.items()}
    assert shapes == {"target": (20, 8), "english": (15, 8)}
    assert replace(choice, curves={}) == find_layers(choice.curves["target"].values)
    assert not choice.found  # random weights
    assert f"layers: {choice.reason}." in caplog.text

    fewer = choose_layers(model, tokenizer, examples, limit=6)
    assert fewer.curves["target"].examples == 6
    own = {tuple(row) for row in choice.curves["target"].values.round(4)}
    assert {tuple(row) for row in fewer.curves["target"].values.round(4)} <= own
    assert choose_layers(model, tokenizer, examples, limit=None).curves["target"].examples == 20


def test_languages(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)

    def example(language: str, text: str) -> ParallelExample:
        return ParallelExample.from_dict({"language": language, "prompt": text, "completion": text}, "data:1")

    examples = [example("en", "give tips"), example("pt-BR", "dar dicas"), example("vi", "mẹo")]
    counts = lambda choice: {name: curve.examples for name, curve in choice.curves.items()}  # noqa: E731
    assert counts(choose_layers(model, tokenizer, examples)) == {"target": 2, "english": 1}
    assert counts(choose_layers(model, tokenizer, examples, language="pt")) == {"target": 1, "english": 1}
    assert counts(choose_layers(model, tokenizer, examples[1:])) == {"target": 2}
    with pytest.raises(PivotuneError, match=r"no question in 'zh' \(languages in the data: en, pt-BR, vi\)"):
        choose_layers(model, tokenizer, examples, language="zh")
    with pytest.raises(PivotuneError, match="no question that is not English"):
        choose_layers(model, tokenizer, examples[:1])


def test_the_command(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "zh"
    cli.main(["layers", str(base), "--data", str(data), "--language", "zh", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "<- i, conversion layer" in printed
    assert "conversion_layer: 1, thinking_layer: 4" in printed
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["conversion_layer"] == 1
    assert len(content["curves"]["target"]["mean"]) == 8
    for low, mean, high in zip(*(content["curves"]["english"][name] for name in ("low", "mean", "high")), strict=True):
        assert low < mean < high
    assert output.with_suffix(".png").stat().st_size > 5000
    assert "</svg>" in output.with_suffix(".svg").read_text()


def test_the_command_refuses(base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--language", "vi"], "no question in 'vi'"),
        (["--limit", "-1"], "limit: got -1"),
        (["--batch_size", "0"], "batch_size: got 0"),
        (["--lang", "zh"], "unknown option 'lang'"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["layers", str(base), "--data", str(data), *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["json", "png", "svg"])
def test_files_that_are_there_are_replaced_only_when_asked(
    ending: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "layers"
    folder.mkdir()
    mine = folder / f"curves.{ending}"
    mine.write_text("mine")
    options: dict[str, Any] = dict(data=str(data), limit=2, output=str(folder / "curves"))
    with monkeypatch.context() as patch, pytest.raises(PivotuneError, match=rf"^output: .*\.{ending} already exists"):
        patch.setattr("pivotune.lens.layers.load_run", lambda *_: pytest.fail("the model is loaded"))
        layers(str(base), **options)
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]
    layers(str(base), **options, overwrite=True)
    assert len(list(folder.iterdir())) == 3 and mine.stat().st_size > 1000
    with pytest.raises(PivotuneError, match="already exists"):  # its own files too
        layers(str(base), **options)
    with pytest.raises(PivotuneError, match="is a file, so"):
        layers(str(base), **{**options, "output": str(mine / "curves")})


def test_what_is_shown(tmp_path: Path) -> None:
    from pivotune.lens.entropy import EntropyCurve

    values = planted(32, 2, 15, 22) + np.random.default_rng(0).normal(size=(50, 1))
    choice = replace(find_layers(values), curves={"target": EntropyCurve(values)})
    shown = table(choice)
    assert "    2   " in shown
    assert shown.splitlines()[2].endswith("<- i, conversion layer")
    assert shown.splitlines()[15].endswith("<- j, thinking layer")
    assert "confidence: 1.00" in shown
    assert "runner-up: 2, " in shown
    files = write_choice(choice, tmp_path / "llama.2.json", "中文")
    assert [file.name for file in files] == ["llama.2.json", "llama.2.png", "llama.2.svg"]
    again = write_choice(choice, tmp_path / "again" / "llama.2", "中文")
    assert again[2].read_text() == files[2].read_text()


@pytest.mark.parametrize("language", ["zh", "zho_Hans", "Chinese"])
def test_the_command_reads_published_rows(
    language: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = [{"frage": f"问{n}", "lang": "cmn", "question_en": f"ask {n}", "source": "s"} for n in range(6)]
    data = write_rows(tmp_path / "data.jsonl", made)
    layers(str(base), data=str(data), language=language, columns={"frage": "instruction"})
    assert "english" in capsys.readouterr().out
    assert "rows with a field 'source' that was not read: 6" in caplog.text
    with pytest.raises(PivotuneError, match=r"data\.jsonl:1: .*--columns"):
        layers("no model is loaded", data=str(data))
    with pytest.raises(PivotuneError, match="language: got 'cn'"):
        layers("no model is loaded", data=str(data), language="cn")


# Inside a run --------------------------------------------------------------------------------------------------------


def automatic(base: Path, data: Path, output: Path, method: str = "deep_supervision", **options: Any) -> RunConfig:
    config = configuration(base, data, output, method, **options)
    layers = DeepSupervisionConfig(conversion_layer="auto", thinking_layer="auto")
    return replace(config, deep_supervision=layers)


@pytest.mark.parametrize("method", ["deep_supervision", "both"])
def test_auto_is_the_same_choice(
    method: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = LayerChoice(3, 6, 0.9, (2, 4), True, "planted")
    monkeypatch.setattr("pivotune.lens.layers.find_layers", lambda values, seed: found)
    run = train(automatic(base, data, tmp_path / "run", method, save_strategy="steps", save_steps=1))
    info = json.loads((run / INFO).read_text())
    assert info["deep_supervision"]["conversion_layer"] == 3
    assert info["deep_supervision"]["thinking_layer"] == 6
    recorded = json.loads((run / "layers.json").read_text())
    assert recorded == info["layers"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    choice = choose_layers(model, tokenizer, read_examples(data)[0])
    for name, curve in choice.curves.items():
        np.testing.assert_allclose(recorded["curves"][name]["mean"], curve.mean, atol=2e-6)
    assert (run / "layers.png").exists()

    # The model that came of it equals one whose layers were given; a checkpoint keeps them.
    fixed = automatic(base, data, tmp_path / "fixed", method)
    numbers = DeepSupervisionConfig(conversion_layer=3, thinking_layer=6)
    assert (train(replace(fixed, deep_supervision=numbers)) / "model.safetensors").read_bytes() == (
        run / "model.safetensors"
    ).read_bytes()


def test_auto_for_one_layer(base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = automatic(base, data, tmp_path / "run", lora=2)
    with caplog.at_level(logging.WARNING):
        run = train(replace(config, deep_supervision=replace(config.deep_supervision, conversion_layer=2)))
    info = json.loads((run / INFO).read_text())
    assert (info["deep_supervision"]["conversion_layer"], info["deep_supervision"]["thinking_layer"]) == (2, 4)
    assert not info["layers"]["found"]
    assert "no two drops" in caplog.text


def test_a_resumed_run_keeps_its_layers(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = LayerChoice(3, 6, 0.9, None, True, "planted")
    monkeypatch.setattr("pivotune.lens.layers.find_layers", lambda values, seed: found)
    run = train(automatic(base, data, tmp_path / "run", save_strategy="steps", save_steps=1))
    before = json.loads((run / INFO).read_text())
    monkeypatch.setattr("pivotune.training.choose_from_prompts", None)
    again = automatic(base, data, run, max_steps=3, resume_from_checkpoint="true")
    after = json.loads((train(again) / INFO).read_text())
    assert after["steps"] == 3
    assert after["deep_supervision"] == before["deep_supervision"]
    assert after["layers"] == before["layers"]


def test_auto_needs_another_language(base: Path, tmp_path: Path) -> None:
    english = [{"language": "en", "prompt": "give tips", "completion": "sleep"}]
    config = automatic(base, write_rows(tmp_path / "en.jsonl", english), tmp_path / "run")
    with pytest.raises(PivotuneError):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layer", ["auto", None])
def test_a_method_itself_needs_numbers(layer: Any) -> None:
    with pytest.raises(PivotuneError, match=r"conversion_layer: got .*, but the method needs a number in 1\.\.4"):
        DeepSupervision(tiny("llama"), DeepSupervisionConfig(conversion_layer=layer, thinking_layer=2))
