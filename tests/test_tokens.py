"""Answers end at generation with what they ended with in training, whatever the files of a model say; and tokenizer and
embedding table are compared before anything is asked of them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pivotune.anatomy import unwrap
from pivotune.checkpoint import load_run
from pivotune.config import DataConfig, LoraOptions, ModelConfig, RunConfig
from pivotune.data import ParallelExample, Text
from pivotune.errors import PivotuneError
from pivotune.evaluation.benchmarks import Item
from pivotune.evaluation.engines import GenerationEngine
from pivotune.generation import generate_texts, load
from pivotune.lens import choose_layers
from pivotune.objectives import DeepSupervisionConfig
from pivotune.tokens import (
    beyond,
    check_context,
    check_vocabulary,
    context_length,
    end_ids,
    fit_padding,
    listed,
    rows_of,
    until_end,
)
from pivotune.training import train
from tests.data.chat_shapes import SHAPES, Shape, tokenizer_of_shape
from tests.data.tiny_tokenizers import byte_level
from tests.runs import options, write_rows

CONVERSATION = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
ROWS = [
    {
        "id": str(n),
        "language": "zh",
        "messages": [{"role": "user", "content": "几"}, {"role": "assistant", "content": "四"}],
    }
    | {"english": {"messages": CONVERSATION}}
    for n in range(8)
]


def ids_of(tokenizer: Any, tokens: str | tuple[str, ...] | None) -> Any:
    return tokenizer.convert_tokens_to_ids(list(tokens) if isinstance(tokens, tuple) else tokens) if tokens else None


def write_model(
    folder: Path, tokenizer: Any, stated: tuple[Any, Any] = ("</s>", "</s>"), rows: int = 0, **more: Any
) -> Path:
    """A random Llama whose config.json and generation_config.json state these ends."""
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        **{"max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": ids_of(tokenizer, stated[0]), **more},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = ids_of(tokenizer, stated[1])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_shape(folder: Path, name: str) -> Path:
    return write_model(folder, tokenizer_of_shape(name), SHAPES[name].stated)


def configuration(
    base: Path,
    data: Path,
    output: Path,
    supervision: DeepSupervisionConfig | None = None,
    *,
    lora: int = 0,
    max_length: int = 128,
    **training: Any,
) -> RunConfig:
    return RunConfig(
        output=str(output),
        model=ModelConfig(str(base)),
        data=DataConfig(str(data), max_length=max_length),
        objectives=[] if supervision is None else [supervision],
        lora=LoraOptions(r=lora),
        training=options(**training),
    )


def saying(model: Any, tokenizer: Any, script: list[str | int]) -> Any:
    """The model, saying these tokens one after the other, then the first one for ever."""
    ids = [token if isinstance(token, int) else tokenizer.convert_tokens_to_ids(token) for token in script]
    prompt = 0

    def speak(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal prompt
        length = kwargs["past_key_values"].get_seq_length()
        if kwargs["input_ids"].shape[1] > 1:
            prompt = length
        place = length - prompt
        output.logits = torch.full_like(output.logits, -1e4)
        output.logits[..., ids[place] if place < len(ids) else ids[0]] = 1e4
        return output

    unwrap(model).register_forward_hook(speak, with_kwargs=True)
    return model


def expected_ends(name: str, shape: Shape) -> set[str]:
    stated = [(one,) if isinstance(one, str) else one or () for one in shape.stated]
    return {*filter(None, (shape.eos, shape.end)), *stated[0], *stated[1]}


# Ends ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_every_end_of_a_family_stops_it(name: str, tmp_path: Path) -> None:
    """Whichever file states it; and what follows it is not printed."""
    base = write_shape(tmp_path / "base", name)
    for end in expected_ends(name, SHAPES[name]):
        model, tokenizer = load(base)
        saying(model, tokenizer, ["a", end, "b", "b"])
        assert generate_texts(model, tokenizer, ["q", "longer question"], max_new_tokens=6) == ["a", "a"], end
        plain = AutoModelForCausalLM.from_pretrained(base)  # not opened by load()
        assert generate_texts(saying(plain, tokenizer, ["a", end, "b"]), tokenizer, ["q"], max_new_tokens=6) == ["a"]


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_the_saved_places_agree(name: str, lora: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """config, generation_config and tokenizer of run and checkpoint, and what the answers were trained to end with."""
    logging.getLogger("transformers").addHandler(caplog.handler)
    shape, base = SHAPES[name], write_shape(tmp_path / "base", name)
    data = write_rows(tmp_path / "train.jsonl", ROWS)
    saving = {"save_strategy": "steps", "save_steps": 1}
    run = train(configuration(base, data, tmp_path / "run", lora=lora, **saving))
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "new PAD/BOS/EOS tokens" not in caplog.text, "transformers claims to have aligned what it has not"
    for folder in (run, run / "checkpoint-1"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.eos_token == shape.eos
        expected = {tokenizer.convert_tokens_to_ids(end) for end in expected_ends(name, shape)}
        generation = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        assert set([generation] if isinstance(generation, int) else generation) == expected
        if not lora:
            assert json.loads((folder / "config.json").read_text())["eos_token_id"] == generation
            plain = AutoModelForCausalLM.from_pretrained(folder)
            assert plain.generation_config.eos_token_id == generation
        else:
            plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        model, tokenizer = load(folder)
        saying(model, tokenizer, ["a", shape.end, "b", "b"])
        assert generate_texts(model, tokenizer, ["q"], max_new_tokens=6) == ["a"]


def test_ends_that_only_training_knows(tmp_path: Path) -> None:
    """Raw completions may bring an end that no file of the model states: it is in the run, an adapter's too."""
    tokenizer = tokenizer_of_shape("SmolLM2")
    tokenizer.chat_template, tokenizer.eos_token = None, "<|im_end|>"
    base = write_model(tmp_path / "base", tokenizer)
    rows = [{"id": str(n), "language": "en", "prompt": "q", "completion": "a<|im_end|>"} for n in range(8)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    for lora in (0, 4):
        run = train(configuration(base, data, tmp_path / f"run-{lora}", lora=lora, max_steps=1))
        other = AutoTokenizer.from_pretrained(run)
        other.eos_token = "<|endoftext|>"
        other.save_pretrained(run)
        model, tokenizer = load(run)
        assert ids_of(tokenizer, "<|im_end|>") in model.generation_config.eos_token_id


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    model, tokenizer = load(write_shape(tmp_path, "Llama-3"))
    saying(model, tokenizer, ["a", "<|eom_id|>", "b", "c", "d"])
    assert generate_texts(model, tokenizer, ["q"], max_new_tokens=4) == ["a"]
    own = ids_of(tokenizer, "c")
    assert generate_texts(model, tokenizer, ["q"], max_new_tokens=4, eos_token_id=own) == ["ab"]
    model.generation_config.eos_token_id = own
    given = model.generation_config
    assert generate_texts(model, tokenizer, ["q"], generation_config=given) == ["ab"]


def test_an_ordinary_word_is_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The default of LlamaConfig is 2, whatever the tokenizer has there: answers would stop at it, in the middle."""
    tokenizer = byte_level()
    word = tokenizer.convert_ids_to_tokens(2)
    base = write_model(tmp_path, tokenizer, (word, word))
    model, tokenizer = load(base)
    assert f'eos_token_id 2 of config.json is the ordinary token "{word}"' in caplog.text.replace("\\", "")
    saying(model, tokenizer, ["a", 2, "b", "</s>"])
    assert generate_texts(model, tokenizer, ["q"], max_new_tokens=6) == [f"a{word}b"]
    model.config.eos_token_id, model.generation_config.eos_token_id = None, [2, 1]
    assert end_ids(model, tokenizer) == [1, 2], "generation_config.json states it of its own will"


def test_a_model_without_generation_config_and_without_any_end(tmp_path: Path) -> None:
    base = write_model(tmp_path, byte_level(), (None, None))
    (base / "generation_config.json").unlink()
    model, tokenizer = load(base)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    assert end_ids(model, tokenizer) == []
    assert len(generate_texts(model, tokenizer, ["q"], style="plain", max_new_tokens=2)) == 1


def test_until_end() -> None:
    assert until_end([5, 6, 1, 7], [1, 9]) == [5, 6]
    assert until_end([5, 6], [1]) == [5, 6]
    assert until_end([], [1]) == []


def test_evaluation_stops_too(tmp_path: Path) -> None:
    model, tokenizer = load(write_shape(tmp_path, "Qwen3"))
    script = ["<think>", "Ċ", "Ċ", "</think>", "Ċ", "Ċ", "4", "<|im_end|>", "5", "5"]
    saying(model, tokenizer, script)
    engine = GenerationEngine(model, tokenizer, style="chat", max_new_tokens=12)
    item = Item(benchmark="mkqa", language="en", id="1", context="", question="2 + 2?", prompt="2 + 2?", answers=("4",))
    ((result,),) = engine([item])
    assert result.prediction == "4" and result.score == 1.0
    assert generate_texts(model, tokenizer, ["2 + 2?"], max_new_tokens=12) == ["4"]


def test_the_harness_stops_too(tmp_path: Path) -> None:
    """It needs an EOS, which this tokenizer lacks, and pads with its own token, which the table lacks."""
    from lm_eval.api.instance import Instance

    from pivotune.evaluation.likelihood import PivotuneLM

    tokenizer = tokenizer_of_shape("no EOS")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    base = write_model(tmp_path, tokenizer, rows=len(tokenizer) - 1)
    run = load_run(base)
    saying(run.model, run.tokenizer, ["a", "<|im_end|>", "b", "b"])
    lm = PivotuneLM(str(base), batch_size=2, run=run)
    asked = [
        Instance("generate_until", {}, (text, {"until": ["\n"], "max_gen_toks": 4}), 0) for text in ("q ", "long q ")
    ]
    assert [answer.strip() for answer in lm.generate_until(asked, disable_tqdm=True)] == ["a", "a"]


def test_template_arguments_go_with_the_run(tmp_path: Path) -> None:
    """Trained, saved and asked with them; the base model is asked with them on request."""
    base = write_shape(tmp_path / "base", "Qwen3")
    chosen = configuration(base, write_rows(tmp_path / "train.jsonl", ROWS), tmp_path / "run", max_steps=1)
    chosen.data.chat_template_kwargs = {"enable_thinking": False}
    run = train(chosen)
    assert load_run(run).info["data"]["chat_template_kwargs"] == {"enable_thinking": False}
    question = [{"role": "user", "content": "q"}]

    def asked(tokenizer: Any) -> str:
        return str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))

    assert asked(AutoTokenizer.from_pretrained(run)).endswith("</think>\n\n"), "any program asks it so"
    assert asked(load(run)[1]) == asked(load(base, chat_template_kwargs={"enable_thinking": False})[1])
    assert asked(load(base)[1]).endswith("assistant\n")
    chosen.data.chat_template_kwargs = {"enable_thoughts": False}
    chosen.output = str(tmp_path / "other")
    with pytest.raises(PivotuneError, match=r"chat_template_kwargs: got 'enable_thoughts', which .* does not read"):
        train(chosen)


# Padding and the vocabulary ------------------------------------------------------------------------------------------


def with_words(*words: str, pad: bool = False) -> Any:
    tokenizer = byte_level()
    tokenizer.add_tokens(list(words))
    if pad:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def test_padding_needs_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """[PAD] was added to the tokenizer, and the table stayed as it was: any other token pads as well."""
    tokenizer = with_words(pad=True)
    base = write_model(tmp_path / "base", tokenizer, rows=len(tokenizer) - 1)
    data = write_rows(tmp_path / "train.jsonl", ROWS)
    run = train(configuration(base, data, tmp_path / "run", max_steps=1))
    assert (
        "its padding token '[PAD]' has the id 500, and the embedding table 500 rows; '</s>' pads instead" in caplog.text
    )
    assert AutoTokenizer.from_pretrained(run).pad_token == "</s>"
    assert AutoModelForCausalLM.from_pretrained(run).config.pad_token_id == 1, "with 500 it could not be opened"
    for folder in (base, run):
        model, tokenizer = load(folder)
        assert len(generate_texts(model, tokenizer, ["a", "a longer one"], max_new_tokens=2)) == 2
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert len(generate_texts(plain, tokenizer, ["a", "a longer one"], max_new_tokens=2)) == 2
    fit_padding(tokenizer, 501)
    assert tokenizer.pad_token == "[PAD]"


def test_added_words_get_rows_in_full_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = with_words("<four>", "<five>")
    base = write_model(tmp_path / "base", tokenizer, rows=500)
    rows = [{"id": str(n), "language": "en", "prompt": "2 + 2?", "completion": "<four>"} for n in range(8)]
    run = train(configuration(base, write_rows(tmp_path / "train.jsonl", rows), tmp_path / "run", max_steps=1))
    said = capsys.readouterr().out
    assert 'model: the data use 1 token without a row in the embedding table of 500 rows ("<four>"). It was' in said
    assert "enlarged to 502 rows" in said
    model, tokenizer = load(run)
    assert rows_of(model) == model.config.vocab_size == model.lm_head.weight.shape[0] == 502
    assert len(generate_texts(model, tokenizer, ["<five>"], style="plain", max_new_tokens=2)) == 1


def test_added_words_under_adapters_are_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", with_words("<four>"), rows=500)
    rows = [{"id": "1", "language": "en", "prompt": "2 + 2?", "completion": "<four>"}]
    data = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(PivotuneError, match=r"lora.r: the data use 1 token without a row.*<four>.*Train fully"):
        train(configuration(base, data, tmp_path / "run", lora=4))
    rows[0]["completion"] = "four"
    train(configuration(base, write_rows(data, rows), tmp_path / "run", lora=4, max_steps=1))


def test_a_question_with_a_word_that_has_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = load(write_model(tmp_path, with_words("<four>"), rows=500))
    assert 'has added tokens without a row in the embedding table of 500 rows: "<four>"' in caplog.text
    assert generate_texts(model, tokenizer, ["a"], max_new_tokens=1)
    with pytest.raises(PivotuneError, match=r'^prompt 2: the tokens "<four>" have no row in .* 500 rows'):
        generate_texts(model, tokenizer, ["a", "<four>"], style="plain", max_new_tokens=1)


def test_the_tokenizer_of_another_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write_model(tmp_path / "small", byte_level(), rows=300)
    with pytest.raises(PivotuneError, match=r"small: the tokenizer is another model's.*500 tokens.*300 rows"):
        load(base)
    data = write_rows(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(PivotuneError, match=r"small: the tokenizer is another model's"):
        train(configuration(base, data, tmp_path / "run"))
    caplog.clear()
    load(write_model(tmp_path / "padded", byte_level(), rows=512))
    assert caplog.text == "", "tables are often rounded up"
    load(write_model(tmp_path / "large", byte_level(), rows=1000))
    assert "has 500 tokens and the embedding table 1000 rows" in caplog.text


def test_beyond() -> None:
    tokenizer = with_words("<four>", pad=True)
    assert beyond(tokenizer, 502) == {}
    assert beyond(tokenizer, 500) == {500: "<four>", 501: "[PAD]"}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=501, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    check_vocabulary(model, tokenizer, "model")


# The context ---------------------------------------------------------------------------------------------------------


def test_texts_beyond_the_context_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write_model(tmp_path / "base", byte_level(), max_position_embeddings=20)
    rows = [{"id": str(n), "language": "en", "prompt": "q", "completion": "1 2 " * (n + 1)} for n in range(8)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    train(configuration(base, data, tmp_path / "run", max_steps=1))
    assert "data.train, texts: 4 of 8 are longer than the model's context of 20 tokens (the longest: 34)" in caplog.text
    assert "Lower data.max_length" in caplog.text
    caplog.clear()
    train(configuration(base, data, tmp_path / "other", max_length=20, max_steps=1))
    assert "context" not in caplog.text
    model, tokenizer = load(base)
    generate_texts(model, tokenizer, ["q" * 18, "q"], style="plain", max_new_tokens=4)
    assert "1 of 2 are longer than the model's context of 20 tokens (the longest: 22)" in caplog.text


def test_texts_that_an_objective_makes_count_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Teacher forcing reads the target prompt with the English text behind it."""
    base = write_model(tmp_path / "base", byte_level(), max_position_embeddings=24)
    layers = DeepSupervisionConfig(conversion_layer=1, thinking_layer=2)
    english = {"prompt": "q" * 12, "completion": "f"}
    rows = [{"id": str(n), "language": "sw", "prompt": "q" * 14, "completion": "a", "english": english} for n in "12"]
    data = write_rows(tmp_path / "train.jsonl", rows)
    train(configuration(base, data, tmp_path / "run", layers, max_steps=1))
    assert "data.train, texts that deep_supervision makes of pairs: 2 of 4 are longer than" in caplog.text
    assert "data.train, texts: " not in caplog.text
    caplog.clear()
    train(configuration(base, data, tmp_path / "b", replace(layers, reading="position_wise"), max_steps=1))
    assert "longer than" not in caplog.text


def test_learnt_positions_have_an_end() -> None:
    tokenizer = byte_level()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_positions=16, n_embd=8, n_layer=1, n_head=1)).eval()
    assert context_length(model, tokenizer) == 16
    assert generate_texts(model, tokenizer, ["q"], style="plain", max_new_tokens=4)
    with pytest.raises(PivotuneError, match=r"prompts with .* 1 of 1 are longer than the model's context of 16 tokens"):
        generate_texts(model, tokenizer, ["q" * 14], style="plain", max_new_tokens=4)
    check_context(model, tokenizer, [16], "texts", "Shorten them.")


def test_layers_refuse_a_word_without_a_row(tmp_path: Path) -> None:
    run = load_run(write_model(tmp_path, with_words("<four>"), rows=500))
    rows = [ParallelExample("1", "zh", Text(prompt="<four> 几"), where="f:1")]
    with pytest.raises(PivotuneError, match='data: the tokens "500" have no row'):
        choose_layers(run.model, run.tokenizer, rows)


def test_ends_that_are_no_ids() -> None:
    for ids in ("x", ["x"], 2.5):
        with pytest.raises(PivotuneError, match="eos_token_id: got"):
            listed(ids)  # type: ignore[arg-type]
