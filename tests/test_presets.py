"""A preset is a paper's settings: what a file or the command line says goes before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pivotune import cli
from pivotune.errors import PivotuneError
from pivotune.objectives import CCTuningConfig, DeepSupervisionConfig
from pivotune.options import presets
from tests.runs import rows as made
from tests.runs import same, write_base, write_rows

AS_THE_PAPERS = {
    # What these options were when they followed the papers by default: literal, whatever the defaults become.
    "dft-paper": DeepSupervisionConfig(
        language_conversion="logits",
        english_thinking="logits",
        conversion_weight=1.0,
        thinking_weight=1.0,
        reading="teacher_forced",
        english_layer="last",
        final_norm=True,
        reader="logit_lens",
    ),
    "cc-paper": CCTuningConfig(selection="hard", temperature=1.0, connection_layer=1, ridge=0.01, relative_norm=None),
}


def config_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The configuration that these words make."""
    caught: list[Any] = []

    def keep(config: Any) -> str:
        caught.append(config)
        return "nowhere"

    monkeypatch.setattr(cli, "_function", lambda _: keep)
    cli._train("train", list(words))
    return caught[0]


@pytest.mark.parametrize("name", list(AS_THE_PAPERS))
def test_every_option_is_there_and_is_the_papers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(Path(presets()[name]).read_text())
    config = config_of(monkeypatch, "--preset", name, "--output", "o", "--model.path", "m", "--data.train", "d")
    assert config.objectives == [AS_THE_PAPERS[name]]
    (section,) = (content[one] for one in ("deep_supervision", "cc_tuning") if one in content)
    assert set(section) == {field.name for field in dataclasses.fields(AS_THE_PAPERS[name])}
    assert config.training.learning_rate == content["training"]["learning_rate"]


def test_what_is_given_goes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "preset: dft-paper\noutput: o\nmodel: {path: m}\ndata: {train: d}\ndeep_supervision: {thinking_weight: 0.5}\n"
    )
    config = config_of(monkeypatch, str(file), "--training.learning_rate", "1e-4")
    (options,) = config.objectives
    assert options.thinking_weight == 0.5 and options.conversion_weight == 1.0
    assert config.training.learning_rate == 1e-4 and config.training.num_train_epochs == 3
    both = config_of(monkeypatch, str(file), "--preset", "cc-paper")
    assert [type(one) for one in both.objectives] == [DeepSupervisionConfig, CCTuningConfig]
    assert config_of(monkeypatch, str(file), "--deep_supervision", "false").objectives == []


def test_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PivotuneError, match=r"preset: got 'dft'; choose one of 'cc-paper', 'dft-paper'"):
        cli._train("train", ["--preset", "dft"])
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "cc-paper, dft-paper" in capsys.readouterr().out


def test_a_run_is_that_of_the_options(tmp_path: Path) -> None:
    """Bit for bit."""
    base, data = write_base(tmp_path / "base"), write_rows(tmp_path / "train.jsonl", made(16))
    common = ["--model.path", str(base), "--data.train", str(data), "--training.use_cpu", "true"]
    common += ["--training.max_steps", "2", "--training.report_to", "none", "--training.save_strategy", "no"]
    cli.main(["train", *common, "--output", str(tmp_path / "one"), "--preset", "cc-paper"])
    words = ["--cc_tuning", "true", "--training.learning_rate", "1e-5", "--training.lr_scheduler_type", "cosine"]
    words += ["--training.warmup_steps", "0.1", "--training.num_train_epochs", "3"]
    cli.main(["train", *common, "--output", str(tmp_path / "two"), *words])
    same(tmp_path / "one", tmp_path / "two")
