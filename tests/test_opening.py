"""Opening what users point at (`pivotune.checkpoint`): the wrong path, the wrong kind of model, GGUF files, Gemma-3."""

from __future__ import annotations

import builtins
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from pivotune import checkpoint, cli, training
from pivotune.anatomy import Anatomy
from pivotune.checkpoint import anatomy_of, load_run, open_config, open_model, open_tokenizer
from pivotune.errors import PivotuneError
from pivotune.evaluation.runner import _fingerprint
from pivotune.provenance import base_digest
from tests.gguf_file import write_gguf
from tests.runs import configuration, rows, same, write_base, write_rows

IDS = torch.tensor([[1, 7, 30, 12, 99, 4]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(16))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are loaded, data are read or the user is asked."""

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("it went on")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(training, "read_examples", never)
    monkeypatch.setattr(builtins, "input", never)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def changed(base: Path, folder: Path, **config: Any) -> Path:
    """A copy of the model whose config.json says something else."""
    shutil.copytree(base, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))
    return folder


# Paths ---------------------------------------------------------------------------------------------------------------


def mistyped(base: Path, folder: Path) -> Path:
    return base.with_name("bsae")


def below_nothing(base: Path, folder: Path) -> Path:
    return base.with_name("moedls") / "llama"


def a_file(base: Path, folder: Path) -> Path:
    return base / "config.json"


def empty(base: Path, folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def beside_a_gguf(base: Path, folder: Path) -> Path:
    (folder / "quantised").mkdir()
    (folder / "quantised" / "q4.gguf").touch()
    return folder / "quantised"


def no_gguf(base: Path, folder: Path) -> Path:
    return folder / "q4.gguf"


def damaged_gguf(base: Path, folder: Path) -> Path:
    (folder / "damaged.gguf").write_bytes(b"GGUF and no more")
    return folder / "damaged.gguf"


def impossible(base: Path, folder: Path) -> str:
    return "a" * 300


def with_blanks(base: Path, folder: Path) -> str:
    return "my models/llama"


def on_the_hub(base: Path, folder: Path) -> str:
    return "nobody/no-such-model"


def adapter(base: Path, folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}")
    return folder


def remote_code(base: Path, folder: Path) -> Path:
    code = {"AutoConfig": "conf.MyConfig", "AutoModelForCausalLM": "model.MyModel"}
    return changed(base, folder / "remote", model_type="mymodel", auto_map=code, architectures=["MyForCausalLM"])


def unknown_type(base: Path, folder: Path) -> Path:
    return changed(base, folder / "new", model_type="llama9")


def no_type(base: Path, folder: Path) -> Path:
    return changed(base, folder / "none", model_type=None)


def classifier(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder / "classifier")
    config = AutoConfig.from_pretrained(base)
    LlamaForSequenceClassification(config).save_pretrained(folder / "classifier")
    return folder / "classifier"


def encoder(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder / "encoder")
    sizes: dict[str, Any] = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForMaskedLM(BertConfig(vocab_size=20, **sizes)).save_pretrained(folder / "encoder")
    return folder / "encoder"


def encoder_decoder(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder / "t5")
    T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(folder / "t5")  # fmt: skip # noqa: E501
    return folder / "t5"


WRONG: list[tuple[Callable[[Path, Path], Path | str], str]] = [
    (mistyped, "bsae: no such folder; did you mean {base}?"),
    (below_nothing, "llama: no such folder; there is no {parent}/moedls."),
    (a_file, "config.json: is a file. Give the folder that holds the model, or a GGUF file."),
    (empty, "empty: is neither a run of Pivotune (pivotune.json is missing) nor a model (config.json)."),
    (beside_a_gguf, "nor a model (config.json). Give its GGUF file, {folder}/quantised/q4.gguf."),
    (no_gguf, "q4.gguf: no such folder"),
    (lambda base, folder: "data/train.jsonl", "data/train.jsonl: no such folder; there is no data."),
    (damaged_gguf, "damaged.gguf: "),
    (impossible, "no such folder, and no model that the hub gives"),
    (with_blanks, "my models/llama: no such folder"),
    (on_the_hub, "nobody/no-such-model: no such folder, and no model that the hub gives ("),
    (adapter, "is an adapter. Merge it into its base model first"),
    (remote_code, "remote: its architecture is not part of transformers and comes as code in the model's folder"),
    (unknown_type, "new: architecture 'llama9' is not known to transformers"),
    (no_type, "none/config.json: model_type is missing"),
    (classifier, "classifier: holds a LlamaForSequenceClassification, which has no output head for text"),
    (encoder, "encoder: holds a BertForMaskedLM, which has no output head for text"),
    (encoder_decoder, "t5: is no causal language model but T5ForConditionalGeneration"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_no_model(
    make: Callable[[Path, Path], Path | str],
    message: str,
    base: Path,
    data: Path,
    tmp_path: Path,
    no_weights: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, before any weight is read, from every command; and never a question."""
    path = str(make(base, tmp_path))
    capsys.readouterr()
    message = message.format(base=base, parent=base.parent, folder=tmp_path)
    with pytest.raises(PivotuneError) as caught:
        open_config(path)
    assert message in str(caught.value)
    run = tmp_path / "run.yaml"
    run.write_text(f"output: {tmp_path / 'out'}\ndata: {{train: {data}}}\ntraining: {{use_cpu: true}}\n")
    for command in (
        ["train", str(run), "--model.path", path],
        ["generate", path, "hello"],
        ["layers", path, "--data", str(data)],
        ["lens", path, "--data", str(data), "--output", str(tmp_path / "lens")],
        ["lens", str(base), "--baseline", path, "--data", str(data), "--output", str(tmp_path / "lens")],
    ):
        if make is adapter and command[0] != "train":
            continue  # may be opened with its base
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert message in said
        assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_code_in_a_folder_is_not_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known architecture that also brings code is opened without it, and nobody is asked."""
    monkeypatch.setattr(builtins, "input", None)
    folder = changed(base, tmp_path / "both", auto_map={"AutoModelForCausalLM": "model.MyModel"})
    (folder / "model.py").write_text("raise SystemError('the code has run')")
    assert torch.equal(logits(open_model(folder)), logits(open_model(base)))
    open_tokenizer(folder)


def test_a_model_without_its_head(base: Path, tmp_path: Path) -> None:
    """LlamaModel, saved alone: transformers would make up an output head."""
    shutil.copytree(base, tmp_path / "headless")
    AutoModelForCausalLM.from_pretrained(base).model.save_pretrained(tmp_path / "headless")
    with pytest.raises(PivotuneError, match=r"1 of its weights are missing \(lm_head\.weight\)"):
        open_model(tmp_path / "headless")


def test_quantised_weights_are_not_trained(base: Path, data: Path, tmp_path: Path, no_weights: None) -> None:
    folder = changed(base, tmp_path / "gptq", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(PivotuneError, match=r"quantised \(gptq\) and cannot be trained themselves"):
        training.train(configuration(folder, data, tmp_path / "run"))


def test_an_architecture_that_is_not_known(base: Path, data: Path, tmp_path: Path, no_weights: None) -> None:
    sizes = dict(model_type="opt", ffn_dim=8, word_embed_proj_dim=16, max_position_embeddings=32)
    folder = changed(base, tmp_path / "opt", architectures=["OPTForCausalLM"], **sizes)
    for attempt in (lambda: training.train(configuration(folder, data, tmp_path / "run")), lambda: anatomy_of(folder)):
        with pytest.raises(PivotuneError, match=r"architecture 'opt' \(OPTForCausalLM\) is not known to Pivotune"):
            attempt()


# The generation configuration --------------------------------------------------------------------------------------


def test_a_temperature_without_sampling(
    base: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Llama-2 was published. The run can be saved, the base stays as it is."""
    folder = tmp_path / "llama2"
    shutil.copytree(base, folder)
    generation = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 1, "bos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    with caplog.at_level(logging.WARNING, "pivotune"):
        run = training.train(configuration(folder, data, tmp_path / "run"))
    assert "sets temperature, top_p without effect" in caplog.text
    saved = json.loads((run / "generation_config.json").read_text())
    assert not {"temperature", "top_p"} & saved.keys()
    assert json.loads((folder / "generation_config.json").read_text()) == generation
    assert open_model(folder).generation_config.top_p == 0.9  # for `generate --temperature 1`
    same(training.train(configuration(base, data, tmp_path / "plain")), run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"pad_token_id": 1,', "generation_config.json"),
        ('{"max_new_tokens": -3}', "generation_config.json is wrong: `max_new_tokens` must"),
    ],
)
def test_a_generation_configuration_beyond_repair(
    content: str, message: str, base: Path, data: Path, tmp_path: Path, no_weights: None
) -> None:
    shutil.copytree(base, tmp_path / "wrong")
    (tmp_path / "wrong" / "generation_config.json").write_text(content)
    with pytest.raises(PivotuneError) as caught:
        training.train(configuration(tmp_path / "wrong", data, tmp_path / "run"))
    assert message in str(caught.value)


# GGUF ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_file(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="needs the package gguf (the extra gguf)")
    return write_gguf(base, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_is_the_model_it_was_made_from(base: Path, gguf_file: Path) -> None:
    run = load_run(gguf_file)
    assert run.info == {}
    assert torch.equal(logits(run.model), logits(load_run(base).model))
    text = "保持健康 the three tips"
    assert run.tokenizer(text).input_ids == AutoTokenizer.from_pretrained(base)(text).input_ids
    assert anatomy_of(gguf_file).num_layers == 3
    assert load_run(gguf_file, dtype=torch.bfloat16).model.dtype is torch.bfloat16


@pytest.mark.parametrize("rank", [0, 4])
def test_a_gguf_file_is_trained_like_its_model(
    rank: int, base: Path, gguf_file: Path, data: Path, tmp_path: Path
) -> None:
    run = training.train(configuration(gguf_file, data, tmp_path / "run", lora=rank))
    same(training.train(configuration(base, data, tmp_path / "plain", lora=rank)), run)
    assert json.loads((run / checkpoint.INFO).read_text())["base_model"] == str(gguf_file)
    model = load_run(run).model
    assert isinstance(model, PeftModel) == (rank > 0)
    assert not torch.equal(logits(model), logits(load_run(base).model))
    if not rank:
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(run)), logits(model))
        assert "quantization_config" not in json.loads((run / "config.json").read_text())


def test_commands_on_a_gguf_file(
    gguf_file: Path, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[str] = []
    for model in (gguf_file, base):
        cli.main(["generate", str(model), "保持健康", "--style", "plain", "--max_new_tokens", "6"])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""
    cli.main(["layers", str(gguf_file), "--data", str(data), "--style", "plain", "--limit", "4"])
    measures = ["--measures", "entropy", "--output", str(tmp_path / "lens"), "--style", "plain", "--limit", "4"]
    cli.main(["lens", str(gguf_file), "--data", str(data), *measures])
    assert _fingerprint(str(gguf_file), {}) == _fingerprint(str(gguf_file), {}) != _fingerprint(str(base), {})
    assert base_digest(str(gguf_file))


def test_gguf_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr(checkpoint, "is_gguf_available", lambda: False)
    for attempt in (open_model, open_tokenizer, load_run):
        with pytest.raises(PivotuneError, match=r"need the package gguf: pip install 'pivotune\[gguf\]'"):
            attempt(tmp_path / "a.gguf")


# Gemma-3, text and pictures ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma3(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As checkpoints of 4B and more are published: a vision tower beside the text part."""
    folder = tmp_path_factory.mktemp("models") / "gemma-3-tiny"
    tokenizer = AutoTokenizer.from_pretrained(base)
    text: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        sliding_window=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        initializer_range=0.25,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    eyes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = Gemma3Config(text_config=text, vision_config=eyes | {"patch_size": 14}, mm_tokens_per_image=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_only_the_text_part_is_opened(gemma3: Path, tmp_path: Path) -> None:
    whole, text = AutoModelForCausalLM.from_pretrained(gemma3), open_model(gemma3)
    assert whole.config.model_type == "gemma3"
    assert text.config.model_type == "gemma3_text"
    assert torch.equal(logits(text.eval()), logits(whole.eval()))
    assert not [name for name, _ in text.named_parameters() if "vision" in name]
    assert text.lm_head.weight is text.model.embed_tokens.weight
    assert Anatomy(text).num_layers == anatomy_of(gemma3).num_layers == 3
    text.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(whole))


@pytest.mark.parametrize(("method", "rank"), [("both", 0), ("deep_supervision", 4)])
def test_the_text_part_is_trained_and_saved(method: str, rank: int, gemma3: Path, data: Path, tmp_path: Path) -> None:
    run = training.train(configuration(gemma3, data, tmp_path / "run", method, lora=rank))
    trained = load_run(run).model
    assert not torch.equal(logits(trained), logits(open_model(gemma3).eval()))
    if rank:
        plain = PeftModel.from_pretrained(open_model(gemma3), run).eval()
    else:
        assert json.loads((run / "config.json").read_text())["model_type"] == "gemma3_text"
        plain = AutoModelForCausalLM.from_pretrained(run)
    assert torch.equal(logits(trained), logits(plain))
