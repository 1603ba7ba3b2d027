from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import normalizers
from transformers import LlamaTokenizer

from pivotune.anatomy import Anatomy
from pivotune.data import ParallelExample, encode, encode_prompts
from pivotune.errors import PivotuneError
from pivotune.lens.activations import PairActivations, PairStream, read
from pivotune.lens.language import (
    BeginningIndex,
    LanguageMeasure,
    LanguageOfLayers,
    _byte_alphabet,
    measure_language,
    token_bytes,
)
from pivotune.taps import evaluating
from pivotune.uncertainty import Interval
from tests.data.tiny_tokenizers import BOS, EOS, KINDS, byte_level, metaspace_bpe, tokenizer_of, unigram
from tests.families import FAMILIES, tiny
from tests.lens.readings import tables_of
from tests.reference import lens_language as reference

ANSWERS = ["饮食", "保持健康", "صحة", "بصحة جيدة", "tips", "sức", "🦜", "Z", "3 tips"]


def example(number: int = 0, target: str = "饮食", english: str = "tips", **fields) -> ParallelExample:
    row = {
        "id": str(number),
        "language": "zh",
        "prompt": ["保持健康", "运动", "三个提示：饮食", "定期运动，保持充足的睡眠"][number % 4],
        "completion": target,
        "english": {"prompt": "Give tips.", "completion": english},
    }
    return ParallelExample.from_dict(row | fields)


EXAMPLES = [
    example(0),
    example(1, "运动", "healthy"),
    example(2, "三", "three tips"),
    example(3, "3", "3"),
    example(4, "🦜", "parrot"),
]


slow_beginning = cache(reference.beginning)


def pieces(tokenizer, ids) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(sorted(ids)))


# Which tokens begin an answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_beginnings_equal_the_reference(kind, answer):
    tokenizer = tokenizer_of(kind)
    found = BeginningIndex(tokenizer).beginning(answer)
    assert found and found == slow_beginning(tokenizer, answer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_own_first_token_is_among_them(kind):
    tokenizer = tokenizer_of(kind)
    index = BeginningIndex(tokenizer)
    for answer in ANSWERS:
        first = tokenizer(answer, add_special_tokens=False)["input_ids"][0]
        assert first in index.beginning(answer), answer


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_spell_the_text(kind):
    tokenizer = tokenizer_of(kind)
    spelled = token_bytes(tokenizer)
    for text in (*ANSWERS, "Give three tips. 保持健康 \n صحة"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(spelled[i] for i in ids).decode().removeprefix(" ") == text
    assert [i for i, b in enumerate(spelled) if b is None] == sorted(tokenizer.added_tokens_decoder)


@pytest.mark.slow
def test_llama2_beginnings(shared_data, tmp_path):
    """The published vocabulary of 32,000 tokens."""
    (tmp_path / "tokenizer.model").write_bytes((shared_data / "tokenizer" / "llama2_tokenizer.model").read_bytes())
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    index = BeginningIndex(tokenizer)
    assert pieces(tokenizer, index.beginning("饮食")) == {"<0xE9>", "▁", "<0x20>"}  # it has no token for 饮
    assert pieces(tokenizer, index.beginning("صحة")) == {"ص", "<0xD8>", "▁", "<0x20>"}
    english = {"T", "Th", "Three", "▁T", "▁Th", "▁Three", "<0x54>", "▁", "<0x20>"}
    assert pieces(tokenizer, index.beginning("Three tips")) == english
    assert index.beginning("صحة") == reference.beginning(tokenizer, "صحة")


def test_byte_level_beginnings_by_hand():
    tokenizer = byte_level()
    found = pieces(tokenizer, BeginningIndex(tokenizer).beginning("tips"))
    assert found == {"t", "Ġ", "Ġt", "Ġtip"}  # what this little vocabulary has of "tips" and "Ġtips"
    parrot = pieces(tokenizer, BeginningIndex(tokenizer).beginning("🦜"))  # f0 9f a6 9c, never seen in training
    assert parrot == {"ð", "Ġ"}


def test_byte_fallback_beginnings_by_hand():
    for tokenizer in (metaspace_bpe(), unigram()):
        index = BeginningIndex(tokenizer)
        assert pieces(tokenizer, index.beginning("🦜")) == {"<0xF0>", "<0x20>", "▁"}
        chinese = pieces(tokenizer, index.beginning("饮食"))
        assert {"<0xE9>", "饮", "▁", "<0x20>"} <= chinese
        arabic = pieces(tokenizer, index.beginning("صحة"))
        assert {"<0xD8>", "ص", "▁"} <= arabic and "<0xE9>" not in arabic


def test_special_tokens_begin_nothing():
    tokenizer = byte_level()
    ids = BeginningIndex(tokenizer).beginning(f"{BOS} and {EOS}")
    assert not ids & set(tokenizer.all_special_ids)


def test_added_tokens_are_plain_text():
    tokenizer = byte_level()
    tokenizer.add_tokens(["饮食"])
    assert token_bytes(tokenizer)[len(tokenizer) - 1] == "饮食".encode()
    assert len(tokenizer) - 1 in BeginningIndex(tokenizer).beginning("饮食很好")


def test_ids_that_the_model_has_not_are_left_out():
    tokenizer = byte_level()
    everything = BeginningIndex(tokenizer).beginning("tips")
    assert max(everything) >= 100 > max(BeginningIndex(tokenizer, 100).beginning("tips"))


def test_white_space_around_an_answer_is_no_part_of_it():
    index = BeginningIndex(byte_level())
    assert index.beginning(" \n tips\n") == index.beginning("tips")


def test_normalised_text_counts_as_its_tokens_spell_it():
    tokenizer = metaspace_bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    index = BeginningIndex(tokenizer)
    assert index.beginning("tips") <= index.beginning("ｔｉｐｓ")


def test_the_byte_alphabet():
    alphabet = _byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert all(alphabet[reference._byte_level(byte)] == byte for byte in range(256))


def test_a_large_vocabulary_is_indexed_once():
    """256k tokens, and look-ups that do not walk through them."""

    class Counting(dict):
        asked = 0

        def get(self, *args):
            Counting.asked += 1
            return super().get(*args)

    tokenizer = byte_level()
    index = BeginningIndex(tokenizer)
    index._ids = Counting(index._ids | {f"w{n}".encode(): [n] for n in range(256_000)})
    index.beginning("tips")
    assert Counting.asked <= 2 * len(" tips")


# The measure ---------------------------------------------------------------------------------------------------------


@cache
def model_for(kind: str, family: str = "llama", seed: int = 0):
    return tiny(family, seed, vocab_size=len(tokenizer_of(kind)), pad_token_id=None)


def expected(model, tokenizer, examples, further=None, final_norm=True):
    """Per category and layer, one value per example."""
    found: dict[str, list[list[float]]] = {}
    for one, prompt in zip(examples, encode_prompts(examples, tokenizer, "plain"), strict=True):
        answers = {"english": one.english.answer, "target": one.text.answer} | (further(one) if further else {})
        ids = {name: slow_beginning(tokenizer, answer) for name, answer in answers.items()}
        for name, values in reference.masses(model, prompt.prompt_ids, ids, final_norm).items():
            found.setdefault(name, []).append(values)
    return {name: list(zip(*rows, strict=True)) for name, rows in found.items()}


def assert_equal(languages: LanguageOfLayers, values, tolerance=1e-9):
    assert set(languages.masses) == set(values)
    for name, layers in values.items():
        for layer, (mass, numbers) in enumerate(zip(languages.masses[name], layers, strict=True), start=1):
            quantile = float(stats.t.ppf(0.975, len(numbers) - 1))
            want = reference.mean_and_interval(numbers, quantile)
            assert mass == pytest.approx(want, rel=tolerance, abs=tolerance), (name, layer)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_equals_the_reference(kind):
    model, tokenizer = model_for(kind), tokenizer_of(kind)
    languages = measure_language(Anatomy(model), tokenizer, EXAMPLES, batch_size=2)
    assert languages.examples == 5 and not languages.skipped
    assert_equal(languages, expected(model, tokenizer, EXAMPLES))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_reference(family):
    kind = "byte-level"
    model, tokenizer = model_for(kind, family), tokenizer_of(kind)
    languages = measure_language(Anatomy(model), tokenizer, EXAMPLES[:3])
    assert_equal(languages, expected(model, tokenizer, EXAMPLES[:3]))


def test_without_the_final_norm():
    model, tokenizer = model_for("byte-level"), tokenizer_of("byte-level")
    languages = measure_language(Anatomy(model), tokenizer, EXAMPLES[:3], final_norm=False)
    assert_equal(languages, expected(model, tokenizer, EXAMPLES[:3], final_norm=False))


def test_further_languages():
    model, tokenizer = model_for("byte-level"), tokenizer_of("byte-level")

    def further(one: ParallelExample) -> dict[str, str]:
        return {"vi": "sức khỏe", "de": "Tipps"}

    languages = measure_language(Anatomy(model), tokenizer, EXAMPLES, others=further)
    assert list(languages.masses) == ["english", "target", "de", "vi", "shared", "rest"]
    assert_equal(languages, expected(model, tokenizer, EXAMPLES, further))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_masses_add_up_to_one(family):
    languages = measure_language(Anatomy(model_for("byte-level", family)), tokenizer_of("byte-level"), EXAMPLES)
    for layer in zip(*languages.masses.values(), strict=True):
        assert sum(mass.mean for mass in layer) == pytest.approx(1.0, abs=1e-12)
        assert all(mass.low <= mass.mean <= mass.high and 0 <= mass.mean <= 1 for mass in layer)


@pytest.mark.parametrize("kind", ["byte-level", "metaspace BPE with byte fallback and BOS"])
def test_reading_behind_a_blank(kind):
    """Where the answer begins with a bare space, that space is read first; elsewhere nothing changes."""
    model, tokenizer = model_for(kind), tokenizer_of(kind)
    prompts = ["运动:", "保持健康:"]
    spaced = [example(n, " 🦜", "tips", prompt=prompt) for n, prompt in enumerate(prompts)]
    blank = BeginningIndex(tokenizer).is_blank
    answers = [encode(one.text, tokenizer, "plain").answer_ids for one in spaced]
    assert all(blank(ids[0]) and not blank(ids[1]) for ids in answers)
    values = {"english": [], "target": [], "shared": [], "rest": []}
    sets = {name: slow_beginning(tokenizer, text) for name, text in (("english", "tips"), ("target", "🦜"))}
    for one, ids in zip(spaced, answers, strict=True):
        tokens = [*encode(one.text, tokenizer, "plain").prompt_ids, ids[0]]
        for name, masses in reference.masses(model, tokens, sets).items():
            values[name].append(masses)
    languages = measure_language(Anatomy(model), tokenizer, spaced, after_blank=True)
    assert_equal(languages, {name: list(zip(*rows, strict=True)) for name, rows in values.items()})

    tight = [example(n, "🦜", "tips", prompt=prompt) for n, prompt in enumerate(prompts)]
    assert not any(blank(encode(one.text, tokenizer, "plain").answer_ids[0]) for one in tight)
    plain = measure_language(Anatomy(model), tokenizer, tight)
    assert measure_language(Anatomy(model), tokenizer, tight, after_blank=True) == plain


def test_equal_answers_are_shared():
    languages = measure_language(
        Anatomy(model_for("byte-level")), tokenizer_of("byte-level"), [example(n, "3", "3") for n in range(2)]
    )
    assert all(mass.mean == 0.0 for name in ("english", "target") for mass in languages.masses[name])
    assert all(mass.mean > 0.0 for mass in languages.masses["shared"])
    assert all(math.isnan(value) for value in languages.share("english"))


def test_batches_padding_and_chunks_do_not_matter():
    anatomy, tokenizer = Anatomy(model_for("byte-level")), tokenizer_of("byte-level")
    plain = measure_language(anatomy, tokenizer, EXAMPLES, batch_size=5)
    for options in ({"batch_size": 1}, {"batch_size": 3}, {"logits_per_chunk": 1}, {"logits_per_chunk": 3 * 500}):
        other = measure_language(anatomy, tokenizer, EXAMPLES, **options)
        for name, masses in plain.masses.items():
            for ours, theirs in zip(other.masses[name], masses, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-10, abs=1e-12), (options, name)


def test_logits_are_held_in_chunks(monkeypatch):
    rows = []
    lens = Anatomy.frozen_lens

    def counted(self, hidden, **options):
        rows.append(len(hidden))
        return lens(self, hidden, **options)

    monkeypatch.setattr(Anatomy, "frozen_lens", counted)
    anatomy = Anatomy(model_for("byte-level"))
    measure_language(anatomy, tokenizer_of("byte-level"), EXAMPLES, logits_per_chunk=3 * anatomy.vocab_size)
    assert max(rows) == 3 and sum(rows) == len(EXAMPLES) * anatomy.num_layers


def test_two_forwards_per_batch():
    """One over the target side, one over the English prompts, which other measures look at."""
    model, calls = model_for("byte-level"), []
    handle = model.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        measure_language(Anatomy(model), tokenizer_of("byte-level"), EXAMPLES, batch_size=2)
    finally:
        handle.remove()
    assert len(calls) == 2 * 3


def readings_of(model, tokenizer, examples, batch_size=2) -> list[PairActivations]:
    stream = PairStream(tokenizer, "plain", batch_size)
    with evaluating(model):
        return [read(Anatomy(model), chosen, batch) for _, chosen, batch in stream.batches(examples)]


def test_tables_hold_each_example_that_is_measured_in_order():
    model, tokenizer = model_for("byte-level"), tokenizer_of("byte-level")
    unanswered = ParallelExample.from_dict(
        {"id": "8", "language": "zh", "prompt": "运动", "english": {"prompt": "Sport"}}, answered=False
    )
    mixed = [unanswered, EXAMPLES[0], unanswered, *EXAMPLES[1:], unanswered, unanswered]
    measure = LanguageMeasure(Anatomy(model), BeginningIndex(tokenizer, len(tokenizer)))
    found = tables_of(measure, readings_of(model, tokenizer, mixed))
    for name, layers in expected(model, tokenizer, EXAMPLES).items():
        np.testing.assert_allclose(found[name].T, layers, rtol=1e-9, atol=1e-9, err_msg=name)
    assert measure.summary() == {"skipped": {"without an answer": 4}}


def test_an_index_and_a_reading_serve_several_measures():
    model, tokenizer = model_for("byte-level"), tokenizer_of("byte-level")
    spaced = [example(n, " 🦜", "tips", prompt="运动:") for n in range(3)]
    made = readings_of(model, tokenizer, spaced)
    index = BeginningIndex(tokenizer, len(tokenizer))
    for after_blank in (False, True):
        together = tables_of(LanguageMeasure(Anatomy(model), index, after_blank=after_blank), made)
        alone = measure_language(Anatomy(model), tokenizer, spaced, batch_size=2, after_blank=after_blank)
        for name, table in together.items():
            np.testing.assert_allclose(table.mean(dim=0), [mass.mean for mass in alone.masses[name]], rtol=1e-12)


# A planted truth -----------------------------------------------------------------------------------------------------


def planted(tokenizer, plan: dict[int, int], layers: int = 5):
    """A Llama whose lens, from layer k on and until the next entry of `plan`, reads the token plan[k].

    Attention adds nothing; the feed-forward block of layer k adds a constant: the direction of its token, ten times
    longer than that of the entry before.
    """
    model = tiny("llama", vocab_size=len(tokenizer), num_hidden_layers=layers, mlp_bias=True, pad_token_id=None)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e-4)
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        for direction, token in enumerate(plan.values()):
            model.lm_head.weight[token, direction] = 4.0
        for number, layer in enumerate(model.model.layers, start=1):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            layer.mlp.down_proj.bias.zero_()
            if number in plan:
                order = list(plan).index(number)
                layer.mlp.down_proj.bias[order] = 10.0**order
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_english_layer_is_read_as_such(kind):
    tokenizer = tokenizer_of(kind)
    index = BeginningIndex(tokenizer)
    english, target = "tips", "🦜饮食"  # the target begins with byte tokens
    begins = {name: index.beginning(text) for name, text in (("english", english), ("target", target))}
    mine = {name: sorted(ids - begins[other]) for name, other, ids in (
        ("english", "target", begins["english"]), ("target", "english", begins["target"])
    )}  # fmt: skip
    both = sorted(begins["english"] & begins["target"])
    neither = next(i for i in range(3, len(tokenizer)) if i not in begins["english"] | begins["target"])
    # layer 1: something else; 2: a leading space, which begins both; 3 and 4: English; 5: the target
    model = planted(tokenizer, {1: neither, 2: both[0], 3: mine["english"][-1], 5: mine["target"][0]})
    languages = measure_language(Anatomy(model), tokenizer, [example(n, target, english) for n in range(3)])
    for layer, winner in enumerate(["rest", "shared", "english", "english", "target"]):
        means = {name: masses[layer].mean for name, masses in languages.masses.items()}
        assert means[winner] > 0.99, (layer + 1, means)
    assert languages.share("english")[2] > 0.99 and languages.share("target")[4] > 0.99


@pytest.mark.parametrize("language,target", [("zh", "饮食"), ("ar", "صحة")])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_byte_and_the_leading_space_count(kind, language, target):
    """However the vocabulary lets an answer begin, the layer that says it is read as its language."""
    tokenizer = tokenizer_of(kind)
    first_byte = reference.byte_ids(tokenizer)[target.encode()[0]]
    spaced = tokenizer(f"x {target}", add_special_tokens=False)["input_ids"]
    spelled = token_bytes(tokenizer)
    with_space = next((i for i in spaced if len(spelled[i]) > 1 and f" {target}".encode().startswith(spelled[i])), None)
    for token in filter(None, (first_byte, with_space)):
        model = planted(tokenizer, {2: token})
        one = example(0, target, "tips", language=language, prompt=target)
        languages = measure_language(Anatomy(model), tokenizer, [one])
        assert languages.masses["target"][1].mean > 0.99, tokenizer.convert_ids_to_tokens(token)
        assert languages.masses["target"][0].mean < 0.5


# Streaming, and what is left out -------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_data():
    model, tokenizer = model_for("byte-level"), tokenizer_of("byte-level")
    (reading,) = readings_of(model, tokenizer, EXAMPLES, batch_size=5)
    measure = LanguageMeasure(Anatomy(model), BeginningIndex(tokenizer, len(tokenizer)))

    def retained(readings: int) -> int:
        for _ in range(readings):
            measure.add(reading)
        assert not any(isinstance(value, torch.Tensor) for value in vars(measure).values())
        return sum(len(value) for value in vars(measure).values() if isinstance(value, list | dict))

    assert retained(1) == retained(30)


def test_examples_are_taken_as_they_are_needed(monkeypatch):
    monkeypatch.setattr("pivotune.data.tokenize._BATCH", 2)
    taken = []

    def stream():
        for number in range(6):
            taken.append(number)
            yield example(number)

    model, seen = model_for("byte-level"), []
    handle = model.model.register_forward_hook(lambda *_: seen.append(len(taken)))
    try:
        measure_language(Anatomy(model), tokenizer_of("byte-level"), stream(), batch_size=2)
    finally:
        handle.remove()
    assert seen == [2, 2, 4, 4, 6, 6]


def test_one_example_has_no_interval():
    languages = measure_language(Anatomy(model_for("byte-level")), tokenizer_of("byte-level"), EXAMPLES[:1])
    assert all(math.isnan(mass.low) and math.isnan(mass.high) for mass in languages.masses["english"])


def test_what_is_left_out_is_counted():
    tokenizer = tokenizer_of("byte-level")
    unpaired = ParallelExample.from_dict({"id": "9", "language": "zh", "prompt": "运动", "completion": "好"})
    unanswered = ParallelExample.from_dict(
        {"id": "8", "language": "zh", "prompt": "运动", "english": {"prompt": "Sport"}}, answered=False
    )
    long = example(7, prompt="保持健康" * 100)
    languages = measure_language(
        Anatomy(model_for("byte-level")), tokenizer, [unpaired, *EXAMPLES, unpaired, unanswered, long], max_length=40
    )
    assert languages.examples == 5
    assert languages.skipped == {"without English": 2, "without an answer": 1, "over-long prompt": 1}
    with pytest.raises(PivotuneError, match="no example to measure: 1 without English"):
        measure_language(Anatomy(model_for("byte-level")), tokenizer, [unpaired])
    with pytest.raises(PivotuneError, match="no example was given"):
        measure_language(Anatomy(model_for("byte-level")), tokenizer, [])


def test_wrong_options():
    anatomy, tokenizer = Anatomy(model_for("byte-level")), tokenizer_of("byte-level")
    for option in ("batch_size", "max_length", "logits_per_chunk"):
        with pytest.raises(PivotuneError, match=f"{option}: got 0"):
            measure_language(anatomy, tokenizer, EXAMPLES, **{option: 0})
    with pytest.raises(PivotuneError, match="'rest' names a category"):
        measure_language(anatomy, tokenizer, EXAMPLES, others=lambda one: {"rest": "x"})
    with pytest.raises(PivotuneError, match="got de for example '1', but none for those before it"):
        measure_language(anatomy, tokenizer, EXAMPLES, others=lambda one: {"de": "x"} if one.id == "1" else {})


def test_logits_that_are_not_finite():
    model = tiny("llama", vocab_size=500, pad_token_id=None)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(PivotuneError, match="at layer 2 gives logits that are not finite"):
        measure_language(Anatomy(model), tokenizer_of("byte-level"), EXAMPLES)


def test_the_share_of_a_language():
    masses = {
        "english": [Interval(0.2, 0, 1), Interval(0, 0, 0)],
        "target": [Interval(0.1, 0, 1), Interval(0, 0, 0)],
        "de": [Interval(0.1, 0, 1), Interval(0, 0, 0)],
        "shared": [Interval(0.5, 0, 1), Interval(0.5, 0, 1)],
        "rest": [Interval(0.1, 0, 1), Interval(0.5, 0, 1)],
    }
    languages = LanguageOfLayers(masses, 3, {})
    assert languages.share("english")[0] == pytest.approx(0.5) and languages.share("de")[0] == pytest.approx(0.25)
    assert math.isnan(languages.share("english")[1])
