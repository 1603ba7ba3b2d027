"""`pivotune layers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pivotune import cli
from pivotune.errors import PivotuneError
from pivotune.lens.layers import layers
from tests.runs import rows, write_base, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", rows(20))


def test_the_command(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "zh"
    cli.main(["layers", str(base), "--data", str(data), "--language", "zh", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "conversion_layer: 1, thinking_layer: 4 (logits signal)" in printed
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["rules"]["logits"]["conversion_layer"] == 1
    assert len(content["curves"]["entropy"]["mean"]) == 8
    for low, mean, high in zip(
        *(content["curves"]["entropy, English"][name] for name in ("low", "mean", "high")), strict=True
    ):
        assert low < mean < high
    assert output.with_suffix(".png").stat().st_size > 5000
    assert "</svg>" in output.with_suffix(".svg").read_text()


def test_the_command_refuses(base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--language", "vi"], "no question in 'vi'"),
        (["--limit", "-1"], "limit: got -1"),
        (["--tokens", "-1"], "tokens: got -1"),
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


@pytest.mark.parametrize("language", ["zh", "zho_Hans", "Chinese"])
def test_the_command_reads_published_rows(
    language: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = [{"frage": f"问{n}", "lang": "cmn", "question_en": f"ask {n}", "source": "s"} for n in range(6)]
    data = write_rows(tmp_path / "data.jsonl", made)
    layers(str(base), data=str(data), language=language, columns={"frage": "instruction"})
    assert "of English" in capsys.readouterr().out
    assert "rows with a field 'source' that was not read: 6" in caplog.text
    with pytest.raises(PivotuneError, match=r"data\.jsonl:1: .*--columns"):
        layers(str(base), data=str(data))
    with pytest.raises(PivotuneError, match="language: got 'cn'"):
        layers(str(base), data=str(data), language="cn")
