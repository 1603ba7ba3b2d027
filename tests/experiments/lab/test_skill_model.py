"""The base model of the skills is good in English and weaker elsewhere, and the script that made it runs."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from experiments.lab import skill_model
from experiments.lab.skills import SHARE, SKILLS, WEIGHTS, Skills, pools
from experiments.lab.tasks import SkillsTask
from pivotune.checkpoint import load_run
from pivotune.lab import base
from pivotune.lab.settings import MAX_LENGTH
from pivotune.lab.templates import LANGUAGES
from pivotune.lab.text import stream

FOLDER = Path(__file__).parents[3] / "experiments" / "skills_base"


@pytest.fixture(scope="module")
def skills() -> Skills:
    return Skills.build()


@pytest.fixture(scope="module")
def shipped():
    run = load_run(FOLDER, dtype=torch.float32, device="cpu")
    return run.model.eval(), run.tokenizer


@pytest.fixture(scope="module")
def provenance() -> dict:
    return json.loads((FOLDER / "provenance.json").read_text())


def test_size(shipped):
    model, tokenizer = shipped
    assert 1e6 < model.num_parameters() < 5e6
    assert model.config.num_hidden_layers >= 6
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 10e6
    assert len(tokenizer) == model.config.vocab_size <= skill_model.VOCABULARY


def test_the_tokenizer_is_the_script_s(shipped):
    assert skill_model.train_tokenizer().get_vocab() == shipped[1].get_vocab()


@pytest.mark.parametrize("language", LANGUAGES)
def test_tokenizer_round_trip(shipped, skills, language):
    """Prompt and completion tokenise apart as they do together, and fit into what a trial reads."""
    tokenizer = shipped[1]
    for record in skills.examples("development", language):
        whole = record["prompt"] + record["completion"]
        together = tokenizer(whole).input_ids
        completion = tokenizer(record["completion"], add_special_tokens=False).input_ids
        assert together == tokenizer(record["prompt"]).input_ids + completion
        assert tokenizer.decode(together, skip_special_tokens=True) == whole
        assert len(together) < MAX_LENGTH


def test_provenance_tells_the_scores(provenance):
    assert "--steps 3000" in provenance["command"]
    assert provenance["tokens"] == provenance["steps"] * base.ROWS * base.LENGTH
    assert provenance["exact_match"].keys() == set(LANGUAGES)
    for of_split in provenance["exact_match"].values():
        assert of_split.keys() == {"development", "heldout"}
        for of_skill in of_split.values():
            assert tuple(of_skill) == SKILLS


def test_good_in_english_and_weaker_elsewhere(provenance):
    """What copies a word of the passage is learned in all languages; entailment in English alone."""
    for split in ("development", "heldout"):
        scores = {language: of_split[split] for language, of_split in provenance["exact_match"].items()}
        assert all(scores["en"][skill] >= 0.95 for skill in SKILLS)
        for language in LANGUAGES[1:]:
            assert scores[language]["entailment"] < 0.5
            assert min(scores[language][skill] for skill in ("reading", "comparison")) > 0.9


def test_the_scores_are_the_model_s(shipped, skills, provenance):
    for language in ("en", "zh"):
        records = list(skills.examples("development", language, "entailment"))
        score = base.exact_match(*shipped, records)
        assert score == pytest.approx(provenance["exact_match"][language]["development"]["entailment"], abs=0.02)


def test_the_experiments_teach_and_ask_these_items(skills):
    for split in ("training", "development", "heldout"):
        known = {record["id"]: record for record in skills.examples(split, "sw")}
        for record in SkillsTask().examples(split, "sw"):
            assert known[record["id"]] == record


def test_the_text_is_that_of_the_documents(skills):
    assert sum(sum(shares.values()) for shares in WEIGHTS.values()) == pytest.approx(1)
    allowed = {document for language in LANGUAGES for document in skills.documents(language, SHARE)}
    source, again = stream(pools(skills), 0), stream(pools(skills), 0)
    drawn = [next(source) for _ in range(2000)]
    assert set(drawn) <= allowed
    assert drawn == [next(again) for _ in range(2000)]


def test_a_document_does_not_see_the_one_before_it(skills):
    """The logits of a document are those that it has by itself; what is given weighs less in the loss."""
    tokenizer = skill_model.train_tokenizer()
    model = skill_model.new_model(tokenizer, 0)
    model.set_attn_implementation("eager")
    ids, positions, weights = next(skill_model.batches(skills, tokenizer, 0))
    assert ids.shape == positions.shape == weights.shape == (base.ROWS, base.LENGTH)
    starts = [*(positions[0] == 0).nonzero().flatten().tolist(), base.LENGTH]
    assert len(starts) > 3 and (ids[0, starts[:-1]] == tokenizer.bos_token_id).all()
    with torch.no_grad():
        whole = model(input_ids=ids[:1], position_ids=positions[:1], use_cache=False).logits[0]
        for a, b in pairwise(starts):
            torch.testing.assert_close(whole[a:b], model(input_ids=ids[:1, a:b]).logits[0], atol=1e-5, rtol=1e-4)
    assert set(weights.unique().tolist()) == {torch.tensor(skill_model.GIVEN_WEIGHT).item(), 1.0}
    assert (weights[ids == tokenizer.eos_token_id] == 1).all() and (weights[ids == tokenizer.bos_token_id] < 1).all()


def test_the_script_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["skill_model", "--output", str(tmp_path), "--steps", "2"])
    monkeypatch.setattr(base, "ROWS", 2)
    monkeypatch.setattr(skill_model, "scores", lambda model, tokenizer, of: {"en": {}})
    skill_model.main()
    assert "1,500,672 parameters" in capsys.readouterr().out
    run = load_run(tmp_path, device="cpu")
    assert json.loads((tmp_path / "provenance.json").read_text())["command"].endswith(
        "experiments.lab.skill_model --output DIR --steps 2 --seed 0"
    )
    assert torch.isfinite(run.model(**run.tokenizer("Question: ...", return_tensors="pt")).logits).all()
