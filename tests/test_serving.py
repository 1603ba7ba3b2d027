"""A connected run in programs that know transformers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pivotune import load
from pivotune.checkpoint import CUSTOM_GENERATE, load_run
from pivotune.errors import PivotuneError
from pivotune.export import export
from pivotune.training import train
from tests.runs import configuration, rows, write_base, write_rows

PROMPTS = torch.tensor([[1, 7, 30, 12, 99, 4], [1, 9, 31, 90, 12, 4]])
OPTIONS = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(32, english=1.0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=[0, 4], ids=["full", "lora"])
def run(request: pytest.FixtureRequest, base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    made = train(configuration(base, data, folder / "run", "cc_tuning", lora=request.param, learning_rate=0.1))
    return export(str(made), output=str(folder / "exported"), connection=True) if request.param else made


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies the code of a folder to."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def trusted(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_generate_is_connected_where_its_code_is_trusted(run: Path) -> None:
    mask = torch.ones_like(PROMPTS)
    ours, _ = load(run)
    want = ours.generate(PROMPTS, attention_mask=mask, **OPTIONS)
    off = ours.generate(PROMPTS, attention_mask=mask, connection="none", **OPTIONS)
    assert not torch.equal(want, off)
    model = trusted(run)
    for _ in range(2):  # the first call connects it
        assert torch.equal(model.generate(PROMPTS, attention_mask=mask, **OPTIONS), want)
    assert torch.equal(model.generate(input_ids=PROMPTS, attention_mask=mask, connection="none", **OPTIONS), off)
    plain = AutoModelForCausalLM.from_pretrained(run)
    assert torch.equal(plain.generate(PROMPTS, attention_mask=mask, **OPTIONS), off)
    again = plain.generate(PROMPTS, attention_mask=mask, custom_generate=str(run), trust_remote_code=True, **OPTIONS)
    assert torch.equal(again, want)


def test_a_merged_run_is_the_run(run: Path) -> None:
    info = load_run(run).info
    assert info["adapter"] is False and (run / CUSTOM_GENERATE).is_file()
    assert load_run(run).connection() is not None


def test_no_code_where_there_is_no_connection(base: Path, data: Path, run: Path, tmp_path: Path) -> None:
    plain = train(configuration(base, data, tmp_path / "plain"))
    adapter = train(configuration(base, data, tmp_path / "adapter", "cc_tuning", lora=4))
    assert not (plain / "custom_generate").exists() and not (adapter / "custom_generate").exists()
    with pytest.raises(PivotuneError, match=r"connection: .*was not trained with a connection"):
        export(str(plain), output=str(tmp_path / "out"), connection=True)
    assert not (export(str(run), output=str(tmp_path / "out")) / "custom_generate").exists()


def test_trained_on_from_a_connected_run(run: Path, data: Path, tmp_path: Path) -> None:
    """The mark and the code of the base are not handed on."""
    again = train(configuration(run, data, tmp_path / "again"))
    assert not (again / "custom_generate").exists()
    _, report = AutoModelForCausalLM.from_pretrained(again, output_loading_info=True)
    assert not any(report.values()) and "pivotune" not in (again / "config.json").read_text().lower()
