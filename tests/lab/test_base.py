"""The shipped base model is what the world promises, and the script that made it runs."""

import json
import sys
from importlib.metadata import version

import pytest
import torch

from pivotune.lab import base
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.text import pools, stream


@pytest.fixture(scope="module")
def shipped():
    return base.load_base()


def test_size_and_format(shipped):
    model, tokenizer = shipped
    assert 4e6 < model.num_parameters() < 10e6
    assert sum(file.stat().st_size for file in base.base_path().iterdir()) <= 20e6
    assert model.dtype == torch.float32 and not model.training
    assert base.load_base(torch.bfloat16)[0].dtype == torch.bfloat16
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("language", LANGUAGES)
def test_tokenizer_round_trip(shipped, world, language):
    """Any text comes back exactly, and prompt and completion tokenise apart as they do together."""
    tokenizer = shipped[1]
    for record in world.examples("all", language):
        whole = record["prompt"] + record["completion"]
        together = tokenizer(whole).input_ids
        completion = tokenizer(record["completion"], add_special_tokens=False).input_ids
        assert together == tokenizer(record["prompt"]).input_ids + completion
        assert together[0] == tokenizer.bos_token_id
        assert tokenizer.decode(together, skip_special_tokens=True) == whole


@pytest.mark.parametrize(
    "text", ["a  b , c .", "  tab\tand\nline", "x² 😀 ǅ", "1,234.5 'it's'", "السَّلام‎ عليكم", "𠮷野家"]
)
def test_tokenizer_round_trip_of_unseen_text(shipped, text):
    tokenizer = shipped[1]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_knows_english_and_the_languages_in_part(shipped, world):
    """A sample of each split, every 8th fact: the gap that the methods act on is there."""
    model, tokenizer = shipped

    def score(split: str, language: str) -> float:
        return base.exact_match(model, tokenizer, list(world.examples(split, language))[::8])

    assert score("all", "en") >= 0.95
    for language in LANGUAGES[1:]:
        assert score("known", language) >= 0.85
        assert 0.1 < score("heldout", language) < score("known", language) - 0.1
        assert score("training", language) < score("known", language) - 0.1  # fine-tuning has something to teach


def test_provenance_tells_the_scores(world):
    provenance = json.loads((base.base_path() / "provenance.json").read_text())
    assert provenance["exact_match"]["en"]["all"] >= 0.97
    assert provenance["exact_match"].keys() == set(LANGUAGES)
    assert provenance["tokens"] == provenance["steps"] * base.ROWS * base.LENGTH


def test_the_shipped_tokenizer_is_the_script_s(shipped, world):
    made_with = json.loads((base.base_path() / "provenance.json").read_text())["versions"]
    if made_with["babel"] != version("babel"):
        pytest.skip("another release of CLDR: some names may have changed")
    assert base.train_tokenizer(world).get_vocab() == shipped[1].get_vocab()


def test_the_script_runs(tmp_path, monkeypatch, capsys):
    """Two steps and a scoring of few facts; what is saved loads, and gives the loss of the model that was trained."""
    monkeypatch.setattr(sys, "argv", ["base", "--output", str(tmp_path), "--steps", "2"])
    monkeypatch.setattr(base, "ROWS", 2)
    monkeypatch.setattr(base, "scores", lambda model, tokenizer, world: {"en": {"all": 0.0}})
    base.main()
    assert "5,115,072 parameters" in capsys.readouterr().out
    monkeypatch.setattr(base, "base_path", lambda: tmp_path)
    model, tokenizer = base.load_base()
    assert json.loads((tmp_path / "provenance.json").read_text())["steps"] == 2
    assert torch.isfinite(model(**tokenizer("Question: ...", return_tensors="pt")).logits).all()


def test_the_script_writes_over_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("mine")
    for output in (tmp_path, tmp_path / "config.json"):
        monkeypatch.setattr(sys, "argv", ["base", "--output", str(output)])
        with pytest.raises(SystemExit):
            base.main()
        assert "is there already, and not empty" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "mine"


def test_training_is_deterministic_and_lowers_the_loss(world):  # a step costs seconds: Muon, in bfloat16
    tokenizer = base.train_tokenizer(world)
    rows = next(base.batches(stream(pools(world), 0), tokenizer))[:1]
    assert rows.shape == (1, base.LENGTH)
    assert (rows[:, 0] == tokenizer.bos_token_id).all()

    def trained() -> torch.nn.Module:
        model = base.new_model(tokenizer, 0)
        base.train(model, iter([rows] * 2), 2)
        return model

    once, twice = trained(), trained()
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert once(input_ids=rows, labels=rows).loss < base.new_model(tokenizer, 0)(input_ids=rows, labels=rows).loss
