"""The questions of the bottleneck ask what they say, and a patch is where it should be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.lab import bottleneck
from experiments.lab.bottleneck import HOPS, hop_of
from experiments.lab.rows import BASE, TFT
from experiments.lab.tables import KINDS, kind_of
from pivotune.anatomy import Anatomy
from pivotune.connection import disconnect
from pivotune.lab.base import load_base
from pivotune.lab.world import World, mixed_prompt
from pivotune.objectives import CCTuningConfig
from pivotune.objectives.cc_tuning import LinearConnection
from pivotune.objectives.cc_tuning.transform_matrix import least_squares


@pytest.fixture(scope="module")
def opened() -> tuple[Anatomy, Any]:
    model, tokenizer = load_base()
    return Anatomy(model), tokenizer


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    every = bottleneck.facts

    def some(languages: Any) -> Any:
        return {language: found[::40] for language, found in every(languages).items()}

    monkeypatch.setattr(bottleneck, "facts", some)
    yield


def test_the_whole_and_the_fact_are_the_questions_of_the_grids() -> None:
    records = {record["id"]: record for record in World.build().examples("heldout", "zh")}
    for fact in bottleneck.facts(["zh"])["zh"][:50]:
        record = records[f"{fact.id}.zh"]
        for name, text in (("whole", record), ("fact", record["english"])):
            prompt, right = hop_of(name, fact, "zh")
            assert (prompt, right) == (text["prompt"], text["completion"].strip())


def test_links_differ_in_one_step() -> None:
    fact = next(fact for fact in World.build().heldout("zh") if fact.id == "FR.currency" or fact.relation == "currency")
    asked = {name: hop_of(name, fact, "zh") for name in HOPS}
    own, english = fact.subject_names["zh"], fact.subject_names["en"]
    assert own in asked["foreign subject"][0] and asked["foreign subject"][0].startswith("Question:")
    assert english in asked["foreign frame"][0] and asked["foreign frame"][1] == fact.value_names["zh"]
    assert own in asked["subject"][0] and asked["subject"][1] == english
    assert fact.value_names["en"] in asked["value"][0] and asked["value"][1] == fact.value_names["zh"]


def test_a_value_that_is_called_alike_needs_no_name() -> None:
    every = bottleneck.facts(["zh"])
    given = {"zh": ["nonsense"] * len(every["zh"])}
    alike = [fact.relation == "calling_code" for fact in every["zh"]]
    assert bottleneck._right(given, "value", every)["zh"].tolist() == alike
    assert not bottleneck._right(given, "whole", every)["zh"].any()
    some = {"zh": every["zh"][3:5]}
    given["zh"][4] = some["zh"][1].value_names["zh"]
    assert bottleneck._right(given, "whole", some)["zh"].tolist() == [False, True]


def test_patches_go_where_they_are_told(opened: tuple[Anatomy, Any]) -> None:
    anatomy, tokenizer = opened
    some = bottleneck.facts(["zh"])["zh"][:6]
    own, english = ([hop_of(name, fact, "zh")[0] for fact in some] for name in ("whole", "fact"))
    seen, patched = bottleneck._seen, bottleneck._patched
    with torch.inference_mode():
        plain = bottleneck.answers(anatomy.lm, tokenizer, own)
        assert patched(anatomy, tokenizer, own, {}) == plain
        for site, of_layers in seen(anatomy, tokenizer, own).items():  # its own states change nothing
            mine = {(site, layer): of_layers[:, layer - 1] for layer in range(1, anatomy.num_layers + 1)}
            assert patched(anatomy, tokenizer, own, mine) == plain
        last = anatomy.num_layers
        theirs = {("hidden", last): seen(anatomy, tokenizer, english)["hidden"][:, last - 1]}
        tokens = {}
        for name, prompts, put in (("english", english, {}), ("patched", own, theirs)):
            texts = patched(anatomy, tokenizer, prompts, put)
            tokens[name] = [tokenizer(f" {text}", add_special_tokens=False).input_ids[0] for text in texts]
        assert tokens["patched"] == tokens["english"]  # what the head sees decides the first token
    assert not any(module._forward_hooks for module in anatomy.lm.modules())


def test_what_is_carried_is_the_other_question_less_its_language(opened: tuple[Anatomy, Any]) -> None:
    """By hand, one question at a time. With the target-language questions lent to themselves nothing changes."""
    anatomy, tokenizer = opened
    some = {"ar": [fact for fact in bottleneck._all_named()["ar"]][:7], "zh": bottleneck._all_named()["zh"][:5]}
    with torch.inference_mode():
        found = bottleneck.carried(anatomy, tokenizer, some)
        for language, asked in some.items():
            own, english = ([hop_of(name, fact, language)[0] for fact in asked] for name in ("whole", "fact"))
            assert found["nothing"][language] == bottleneck._patched(anatomy, tokenizer, own, {})
            if language == "zh":  # whose answers begin with a blank of its own
                own = [f"{prompt} " for prompt in own]
                first = tokenizer(f" {asked[0].value_names['zh']}", add_special_tokens=False).input_ids[0]
                assert tokenizer(own[0]).input_ids[-1] == first
            for layer in (2, anatomy.num_layers):
                own_Nd, english_Nd = (
                    torch.stack([_states(anatomy, tokenizer, prompt)[layer] for prompt in prompts])
                    for prompts in (own, english)
                )
                put_Nd = own_Nd.mean(0) + english_Nd - english_Nd.mean(0)
                said = []
                for prompt, put_d in zip(own, put_Nd, strict=True):
                    said += bottleneck._patched(anatomy, tokenizer, [prompt], {("hidden", layer): put_d[None]})
                assert said == found[f"layer {layer}"][language]


def _states(anatomy: Anatomy, tokenizer: Any, prompt: str) -> tuple[torch.Tensor, ...]:
    """Behind each layer, at the last token; the last one before the final norm."""
    (seen_Ld,) = bottleneck._seen(anatomy, tokenizer, [prompt])["hidden"]
    return (torch.empty(0), *seen_Ld)


def test_matrices_are_fitted_on_what_their_name_says(opened: tuple[Anatomy, Any], few: None) -> None:
    anatomy, tokenizer = opened
    lab, config = bottleneck._lab(), CCTuningConfig()
    weight = torch.randn(anatomy.num_layers, anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    one = LinearConnection(anatomy.lm, config, weight)
    run = SimpleNamespace(model=anatomy.lm, tokenizer=tokenizer, connections={"cc_tuning": one})
    try:
        with torch.inference_mode():
            found = bottleneck.matrices(run, lab)
            records = list(lab.task.examples("training", "ar"))[:70]
            own_LNd, english_LNd = bottleneck._activations(one, tokenizer, records)
            prompt = tokenizer(records[66]["english"]["prompt"], return_tensors="pt")
            alone_Ld = one.activations(prompt.input_ids, prompt.attention_mask)[0]
    finally:
        disconnect(anatomy.lm)
    torch.testing.assert_close(english_LNd[:, 66], alone_Ld, rtol=1e-4, atol=1e-5)
    few_asked = {language: len(some) for language, some in bottleneck.facts(lab.languages).items()}
    for one_matrix in found.values():
        assert {language: len(said) for language, said in one_matrix["given"].items()} == few_asked
    r2 = {name: one_matrix["r2"] for name, one_matrix in found.items()}
    asked, each = r2["fitted on the very questions asked"], r2["and one per language and layer"]
    assert each > asked > max(r2[name] for name, (split, *_) in bottleneck.MATRICES.items() if split != "heldout")
    # Against least squares by another road.
    shared = least_squares([(own_LNd, english_LNd)], per_layer=False, ridge=0.0)
    source, target = (x.flatten(0, 1).double() for x in (own_LNd, english_LNd))
    torch.testing.assert_close(shared.double(), torch.linalg.lstsq(source, target).solution, rtol=1e-3, atol=1e-4)
    per_layer = least_squares([(own_LNd, english_LNd)], per_layer=True, ridge=0.01)
    second = least_squares([(own_LNd[1:2], english_LNd[1:2])], per_layer=False, ridge=0.01)
    torch.testing.assert_close(per_layer[1], second)


def test_results_that_lack_a_part_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = bottleneck.Subject(BASE, 0)
    key = bottleneck._lab().key(subject.cell(bottleneck._lab()))
    for part in ("hops", "reading", "patches", "carried"):
        monkeypatch.setattr(bottleneck, part, lambda *_, part=part: {part: {}})
    where = {"commit": "one"}
    bottleneck.measure(tmp_path, where, subject)
    bottleneck.measure(tmp_path, {"commit": "two"}, subject)
    assert json.loads((tmp_path / f"{key}.json").read_text())["commit"] == "one"
    less = {"row": BASE.name, "hops": {}, "commit": "one"}
    (tmp_path / f"{key}.json").write_text(json.dumps(less))
    bottleneck.measure(tmp_path, {"commit": "two"}, subject)
    found = json.loads((tmp_path / f"{key}.json").read_text())
    assert found["commit"] == "two" and found["carried"] == {"carried": {}}


def test_every_table_is_written(opened: tuple[Anatomy, Any], few: None) -> None:
    anatomy, tokenizer = opened
    with torch.inference_mode():
        one = {
            "hops": bottleneck.hops(anatomy.lm, tokenizer),
            "reading": bottleneck.reading(anatomy, tokenizer),
            "patches": bottleneck.patches(anatomy, tokenizer),
            "carried": bottleneck.carried(anatomy, tokenizer, bottleneck._all_named()),
        }
    lab = bottleneck._lab()
    said = {
        language: [r["completion"].strip() for r in bottleneck._records(lab, language)] for language in lab.languages
    }
    one["connections"] = {"the English question": said, "the English of another question": said}
    one["matrices"] = {name: {"given": said, "r2": 0.5} for name in bottleneck.MATRICES}
    text = bottleneck.render({row: [one, one] for row in bottleneck.ASKED}, lab)
    # The base knows every fact in English, whatever comes after.
    assert re.search(r"\| all in English: the fact itself +\| 100\.0 \[", text)
    assert all(row in text for row in (BASE.name, TFT.name, "everything up to layer 8", "thought, not said"))
    lines = {line.split("|")[1].strip(): line.split("|")[2:] for line in text.split("\n") if line.startswith("|")}
    assert float(lines["the English question"][0]) == 100.0
    assert float(lines["base model, English question"][-2]) == 100.0  # all layers are the model itself


def test_kinds_of_answers() -> None:
    assert kind_of("zwei", ("zwei", "two"), {"zwei", "eins"}) == KINDS[0]
    assert kind_of("two", ("zwei", "two"), {"zwei", "eins"}) == KINDS[1]
    assert kind_of("eins", ("zwei", "two"), {"zwei", "eins"}) == KINDS[2]
    assert kind_of("", ("zwei", "two"), {"zwei", "eins"}) == KINDS[3]


def test_the_wording_of_a_mixed_question() -> None:
    fact = World.build().heldout("ar")[0]
    assert fact.subject_names["ar"] in mixed_prompt(fact, "en", "ar", 1)
    assert mixed_prompt(fact, "ar", "ar", 1) == World.build().prompt(fact, "ar", 1)
