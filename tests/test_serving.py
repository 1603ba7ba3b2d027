"""A connected run in programs that know transformers only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pivotune import load
from pivotune.checkpoint import CUSTOM_GENERATE, load_run
from pivotune.errors import PivotuneError
from pivotune.export import export
from pivotune.generation import generate_texts
from pivotune.training import train
from tests.runs import WORDS, configuration, rows, write_base, write_rows

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
    named = {"custom_generate": str(run), "trust_remote_code": True}
    for _ in range(2):  # what the first call connects is not connected twice
        assert torch.equal(plain.generate(PROMPTS, attention_mask=mask, **named, **OPTIONS), want)
    assert torch.equal(plain.generate(PROMPTS, attention_mask=mask, **OPTIONS), want)


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


@pytest.mark.slow
def test_over_http(run: Path, tmp_path: Path) -> None:
    """`transformers serve`, asked as any client of OpenAI's API asks, whole and streamed."""
    pytest.importorskip("fastapi")
    model, tokenizer = load(run)

    def answer(prompt: str, connection: str) -> str:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**inputs, connection=connection, **OPTIONS)
        return str(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))

    prompts = ("".join(WORDS[: 1 + number]) for number in range(len(WORDS)))
    prompt = next(one for one in prompts if answer(one, "matrix") != answer(one, "none"))
    want = answer(prompt, "matrix")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(run), "--trust-remote-code"]
    with served([*command, "--device", "cpu"], tmp_path) as client:
        asked = {"model": str(run), "prompt": prompt, "max_tokens": 6, "temperature": 0.0}
        whole = client.completions.create(**asked).choices[0].text
        streamed = "".join(part.choices[0].text for part in client.completions.create(**asked, stream=True))
    assert whole == want
    assert streamed and want.startswith(streamed)  # half a character at the end is not streamed


VLLM = os.environ.get("PIVOTUNE_VLLM", "")
"""Python of an environment that has vLLM, which wants another release of transformers than this one."""


@pytest.mark.slow
@pytest.mark.skipif(not VLLM, reason="PIVOTUNE_VLLM names no Python that has vLLM")
@pytest.mark.parametrize("kind", ["sft", "deep_supervision", "exported"])
def test_plain_vllm_serves_what_needs_no_connection(kind: str, tmp_path: Path) -> None:
    """Token for token what `pivotune generate` answers without a connection, several questions at once."""
    made = write_base(tmp_path / "base", hidden_size=64, intermediate_size=96)
    data = write_rows(tmp_path / "train.jsonl", rows(32, english=1.0))
    method = "cc_tuning" if kind == "exported" else kind
    rank = 4 if kind == "exported" else 0
    run = train(configuration(made, data, tmp_path / "run", method, lora=rank, learning_rate=0.02))
    folder = export(str(run), output=str(tmp_path / "exported")) if kind == "exported" else run
    model, tokenizer = load(folder)
    prompts = ["".join(WORDS[: 1 + number]) for number in range(6)]
    want = generate_texts(model, tokenizer, prompts, style="plain", connection="none", max_new_tokens=6)
    command = [VLLM, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", "float32"]
    with served([*command, "--enforce-eager", "--max-model-len", "64"], tmp_path) as client:
        asked = {"model": str(folder), "prompt": prompts, "max_tokens": 6, "temperature": 0.0}
        found = client.completions.create(**asked, extra_body={"return_token_ids": True}).choices
    ids = [one.token_ids for one in sorted(found, key=lambda one: one.index)]  # texts lack half a character at the end
    assert [tokenizer.decode(one, skip_special_tokens=True).strip() for one in ids] == want


@contextmanager
def served(command: list[str], folder: Path) -> Iterator[Any]:
    """A client of the server that this command starts on loopback."""
    openai = pytest.importorskip("openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1"}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        wait_for(client, server, folder / "log")
        yield client
    finally:
        server.terminate()
        server.wait(60)


def wait_for(client: Any, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server answers."""
    for _ in range(1200):
        assert server.poll() is None, log.read_text()
        try:
            client.get("/../health", cast_to=object)
            return
        except Exception:  # not yet
            time.sleep(0.25)
    raise AssertionError(log.read_text())
