"""What is exported answers as the run does, and holds nothing that a strict loader would refuse."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivotune.checkpoint import CONNECTION_IS_OFF, load_run
from pivotune.errors import PivotuneError
from pivotune.export import export, results_in
from pivotune.training import train
from tests.runs import configuration, rows, write_base, write_rows

IDS = torch.tensor([[1, 7, 30, 12, 99, 4]])
RUNS = [("sft", 0), ("deep_supervision", 4), ("cc_tuning", 0), ("cc_tuning", 4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[tuple[str, int], Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = write_rows(folder / "train.jsonl", rows(16))
    return {
        (method, rank): train(configuration(base, data, folder / f"{method}-{rank}", method, lora=rank))
        for method, rank in RUNS
    }


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits.float()


@pytest.mark.parametrize(("method", "rank"), RUNS)
def test_it_is_the_run_without_its_connection(method: str, rank: int, runs: dict, tmp_path: Path) -> None:
    run = runs[method, rank]
    folder = export(str(run), output=str(tmp_path / "out"))
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(logits(model), logits(load_run(run).model), atol=0 if not rank else 1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(run).get_vocab()
    left = {path.name for path in folder.iterdir()}
    assert left == {
        *("README.md", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    assert "pivotune" not in (folder / "config.json").read_text().lower()
    assert CONNECTION_IS_OFF not in (folder / "README.md").read_text()
    saved = load_run(run).model.generation_config.eos_token_id
    assert model.generation_config.eos_token_id == saved


def test_in_another_precision_and_in_several_files(runs: dict, tmp_path: Path) -> None:
    folder = export(str(runs["cc_tuning", 4]), output=str(tmp_path / "out"), dtype="bfloat16", max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype is torch.bfloat16
    merged = load_run(runs["cc_tuning", 4]).model.merge_and_unload()  # in float32, then rounded
    assert torch.equal(model.lm_head.weight, merged.lm_head.weight.bfloat16())
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, merged.model.layers[0].mlp.up_proj.weight.bfloat16())


def test_a_checkpoint_too(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", rows(16))
    run = train(configuration(base, data, tmp_path / "run", lora=4, save_strategy="steps", save_steps=1))
    folder = export(str(run / "checkpoint-1"), output=str(tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(model), logits(load_run(run / "checkpoint-1").model), atol=1e-5, rtol=0)


def test_the_card(runs: dict, base: Path, tmp_path: Path) -> None:
    run = runs["cc_tuning", 4]
    evaluation = run / "evaluation"
    evaluation.mkdir()
    (evaluation / "evaluation.md").write_text("# run: evaluation\n\n## Generation\n\n| xquad | 12.0 |\n")
    for connection, shown in (("matrix", False), ("none", True)):
        (evaluation / "scores.json").write_text(json.dumps({"connection": connection}))
        text = (export(str(run), output=str(tmp_path / connection)) / "README.md").read_text()
        assert ("## Results\n\n### Generation\n\n| xquad | 12.0 |" in text) == shown
    head = yaml.safe_load(text.split("---")[1])
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pivotune"],
        "base_model": str(base),
        "language": ["zh"],
    }
    for part in ("# CC-Tuning, by Pivotune", "--connection none", "zh 16 (12 with", "`train.jsonl`", "@inproceedings"):
        assert part in text
    assert "2 steps of 8 examples, learning rate 0.01" in text


def test_results_are_those_of_the_connection(tmp_path: Path) -> None:
    assert results_in(tmp_path, "none") == ""
    (tmp_path / "evaluation.md").write_text("# run\n\n## Generation\n\n| a |\n")
    for content, found in (("{", ""), ("[]", ""), (json.dumps({"connection": "matrix"}), "")):
        (tmp_path / "scores.json").write_text(content)
        assert results_in(tmp_path, "none") == found
    assert results_in(tmp_path, "matrix") == "\n### Generation\n\n| a |\n"


def test_what_is_refused(runs: dict, base: Path, tmp_path: Path) -> None:
    run = str(runs["sft", 0])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for output, options, message in (
        (taken, {}, "output: .*taken is there already, and not empty"),
        (taken / "mine.txt", {}, "output: .*is there already"),
        (runs["sft", 0], {}, "output: .*is there already"),
        (base / "inside", {}, "output: .*inside the folder of the model"),
        (tmp_path / "new", {"dtype": "int8"}, "dtype: got 'int8'"),
        (tmp_path / "new", {"max_shard_size": "much"}, "max_shard_size: got 'much'"),
        (tmp_path / "new", {"push": "name"}, "push: got 'name'; give USER/NAME"),
    ):
        with pytest.raises(PivotuneError, match=message):
            export(run, output=str(output), **options)
    with pytest.raises(PivotuneError, match="is no run of Pivotune"):
        export(str(base), output=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists() and [path.name for path in taken.iterdir()] == ["mine.txt"]


# Uploading ------------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """What of the hub's API an upload of small files asks for."""

    token = "right"
    fails = False
    created: dict[str, Any]
    uploaded: dict[str, bytes]

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.answer(401, {"error": "Invalid user token."})
        self.answer(200, {"name": "me", "type": "user", "auth": {"type": "access_token"}})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            type(self).created = json.loads(content)
            return self.answer(200, {"url": f"http://{self.headers['Host']}/me/model"})
        if "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(content)["files"]]
            return self.answer(200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]})
        if self.path == "/api/validate-yaml":  # of the model card
            return self.answer(200, {"errors": [], "warnings": []})
        assert "/commit/" in self.path
        if self.fails:
            return self.answer(507, {"error": "The quota is used up."})
        for line in content.splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                self.uploaded[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
        self.answer(200, {"commitUrl": f"http://{self.headers['Host']}/me/model/commit/1", "commitOid": "1"})

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"uploaded": {}, "created": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "right")
    yield handler
    server.shutdown()
    server.server_close()


def test_uploaded(hub: type[Hub], runs: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(str(runs["sft", 0]), output=str(tmp_path / "out"), push="me/model")
    assert hub.created["name"] == "model" and hub.created["visibility"] == "private"
    assert hub.uploaded == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "Uploaded to me/model." in capsys.readouterr().out


def test_not_let_in_is_said_before_the_work(
    hub: type[Hub], runs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(PivotuneError, match=r"push: .*hf auth login"):
        export(str(runs["sft", 0]), output=str(tmp_path / "out"), push="me/model")
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_leaves_the_export(hub: type[Hub], runs: dict, tmp_path: Path) -> None:
    hub.fails = True
    with pytest.raises(PivotuneError, match=r"push: me/model: .*complete in .*hf upload me/model"):
        export(str(runs["sft", 0]), output=str(tmp_path / "out"), push="me/model")
    assert (tmp_path / "out" / "model.safetensors").is_file()
