"""Prompts become the tokens that inference sees, and the spans hold in any script."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import LlamaTokenizer

from pivotune.data import (
    DataError,
    Encoded,
    ParallelExample,
    PromptEncoder,
    Text,
    Turn,
    encode,
    encode_prompts,
    render_prompt,
)
from pivotune.data.prompts import (
    AS_TOKENS,
    ENDED,
    MARKERS,
    fix_template_kwargs,
    overlapping_tokens,
    without_empty_reasoning,
    without_reasoning,
)
from pivotune.errors import PivotuneError
from tests.data.chat_shapes import SHAPES, tokenizer_of_shape
from tests.data.tiny_tokenizers import BOS, EOS, KINDS, byte_level, metaspace_bpe, tokenizer_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Its closing is the EOS and a line break, as Qwen's.
CHATML_EOS = CHATML.replace("<|im_end|>", "{{ eos_token }}")
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content.strip() }} {{ eos_token }}"
    "{% else %}{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

SAMPLES = {
    "Chinese": ("给出三个保持健康的提示。", "1.饮食要均衡。", "2.定期运动。"),
    "Arabic": ("أعط ثلاث نصائح للبقاء بصحة جيدة.", "مدخل", "تَنَاوَلْ نظاما غذائيا متوازنا."),
    "Vietnamese": ("Đưa ra ba mẹo để giữ sức khỏe.", "Tuổi: 30", "Ăn một chế độ ăn cân bằng."),
    "Thai": ("ขอเคล็ดลับสามข้อเพื่อสุขภาพที่ดี", "อายุสามสิบ", "กินอาหารให้ครบถ้วน"),
    "emoji": ("What is 👨‍👩‍👧 in 🇻🇳?", "🙂", "👍🏽!"),
    "combining marks": ("Tie\u0302\u0301ng Vie\u0323\u0302t z\u0335a\u0327", "e\u0301", "o\u0302\u0303n"),
}
ALPHABET = st.one_of(
    st.sampled_from("给出三个保持健康的提示。أعطثلاثনصائحขอเคล็ดลับ\u0301\u0323\u200d👨👩🇻🇳🙂𠮷 \n\tabcAĐẹệ.1{}%"),
    # "▁" is a space to SentencePiece; a lone surrogate never passes validation.
    st.characters(exclude_categories=["Cs"], exclude_characters="▁"),
)
# "<" could spell a special token or a byte piece by chance.
FILLED = st.text(ALPHABET, min_size=1, max_size=25).map(lambda s: s.replace("<", "")).filter(str.strip)
KIND = st.sampled_from(sorted(KINDS))


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def span(tokenizer: Any, encoded: Encoded) -> str:
    return decoded(tokenizer, encoded.prompt_ids[encoded.question_start : encoded.question_end])


def assert_sound(tokenizer: Any, encoded: Encoded, prompt: str, question: str, answer: str, exact: bool) -> None:
    """What every style promises. `exact`: decoding gives the very text back (byte-level)."""
    assert 0 <= encoded.question_start < encoded.question_end <= len(encoded.prompt_ids)
    assert question.strip() in span(tokenizer, encoded)
    assert encoded.answer_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in encoded.answer_ids[:-1]
    spoken = decoded(tokenizer, encoded.answer_ids[:-1])
    whole = decoded(tokenizer, encoded.prompt_ids + encoded.answer_ids).removeprefix(BOS).removesuffix(EOS)
    if exact:
        assert spoken == answer
        assert whole == prompt + answer
        narrower = encoded.prompt_ids[encoded.question_start + 1 : encoded.question_end]
        assert question.strip() not in decoded(tokenizer, narrower), "no token too many in front"
        narrower = encoded.prompt_ids[encoded.question_start : encoded.question_end - 1]
        assert question.strip() not in decoded(tokenizer, narrower), "no token too many behind"
    else:  # SentencePiece puts a space before a text and drops it in decoding
        assert spoken.removeprefix(" ") == answer.removeprefix(" ")
        assert whole.lstrip(" ").startswith(prompt.lstrip(" "))
        assert whole.endswith(answer.removeprefix(" "))


@given(KIND, FILLED, st.text(ALPHABET, max_size=15).map(lambda s: s.replace("<", "")), FILLED)
@example("byte-level with trimmed offsets and BOS", "  a", "b  ", " c")
@example("unigram with byte fallback and BOS", "สวัสดี", "", "你")
def test_alpaca_spans_in_any_script(kind: str, instruction: str, given_input: str, answer: str) -> None:
    tokenizer = tokenizer_of(kind)
    text = Text(answer=answer, instruction=instruction, input=given_input)
    encoded = encode(text, tokenizer, "alpaca")
    prompt = render_prompt(text, tokenizer, "alpaca")
    assert encoded.prompt_ids == tokenizer(prompt)["input_ids"]
    question = f"{instruction}\n\n### Input:\n{given_input}" if given_input else instruction
    assert question in prompt
    assert_sound(tokenizer, encoded, prompt, question, answer, "byte-level" in kind)


@given(KIND, FILLED, FILLED)
def test_plain_spans_in_any_script(kind: str, prompt: str, completion: str) -> None:
    tokenizer = tokenizer_of(kind)
    encoded = encode(Text(answer=completion, prompt=prompt), tokenizer)
    assert encoded.prompt_ids == tokenizer(prompt)["input_ids"]
    assert_sound(tokenizer, encoded, prompt, prompt, completion, "byte-level" in kind)


@given(KIND, FILLED, FILLED, st.lists(FILLED, max_size=3), st.sampled_from([CHATML, CHATML_EOS, LLAMA2, THINKING]))
@example("byte-level", "assistant\n", "user", ["x"], CHATML)
def test_chat_spans_in_any_script(kind: str, question: str, answer: str, history: list[str], template: str) -> None:
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = template
    roles = ["user", "assistant", "user"]
    context = tuple(Turn(role, content) for role, content in zip(roles, history, strict=False))
    text = Text(answer=answer, instruction=question, context=context)
    messages = [*({"role": turn.role, "content": turn.content} for turn in context)]
    messages.append({"role": "user", "content": question})
    inference = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    encoded = encode(text, tokenizer)
    assert encoded.prompt_ids == inference["input_ids"]
    assert question.strip() in span(tokenizer, encoded)
    # The place is the template's own, also when the same words stand elsewhere in the conversation.
    encoder = PromptEncoder(tokenizer)
    rendered, other = encoder.render(text), encoder.render(Text(answer, "x", context=context))
    before = rendered.prompt[: rendered.question_start]
    assert before.rstrip() == other.prompt[: other.question_start].rstrip()
    assert rendered.prompt[rendered.question_end :].lstrip() == other.prompt[other.question_end :].lstrip()
    if "byte-level" in kind:
        assert before.startswith(decoded(tokenizer, encoded.prompt_ids[: encoded.question_start]))
        assert decoded(tokenizer, encoded.prompt_ids[: encoded.question_end]).startswith(before + question.strip())
    assert answer.strip() in decoded(tokenizer, encoded.answer_ids)
    assert encoded.answer_ids.count(tokenizer.eos_token_id) == 1
    assert encoded.answer_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", SAMPLES)
@pytest.mark.parametrize("style", ["alpaca", "plain", "chat"])
def test_samples(kind: str, script: str, style: str) -> None:
    instruction, given_input, answer = SAMPLES[script]
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = CHATML_EOS
    encoded = encode(Text(answer, instruction, given_input), tokenizer, style)
    joined = "\n\n### Input:\n" if style == "alpaca" else "\n"
    assert f"{instruction}{joined}{given_input}" in span(tokenizer, encoded)
    assert decoded(tokenizer, encoded.answer_ids) == answer + EOS


def test_alpaca_wording() -> None:
    tokenizer = tokenizer_of("byte-level")
    assert render_prompt(Text(instruction="{do}", input="%s"), tokenizer, "alpaca") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{do}\n\n### Input:\n%s\n\n### Response:"
    )
    assert render_prompt("Do it.", tokenizer, "alpaca") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo it.\n\n### Response:"
    )


def test_auto_chooses_plain_then_chat_then_alpaca() -> None:
    tokenizer = byte_level()
    raw, question = Text("b", prompt="a"), Text("b", "a")
    assert render_prompt(raw, tokenizer) == "a"
    assert render_prompt(question, tokenizer) == render_prompt(question, tokenizer, "alpaca")
    tokenizer.chat_template = CHATML
    assert render_prompt(raw, tokenizer) == "a"
    assert render_prompt(question, tokenizer) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(raw, tokenizer, "alpaca") == render_prompt(question, tokenizer, "alpaca")


def test_bos_once() -> None:
    tokenizer = metaspace_bpe()
    bos = tokenizer.bos_token_id
    alpaca = encode(Text("b", "a"), tokenizer, "alpaca")
    assert alpaca.prompt_ids[0] == bos and alpaca.prompt_ids.count(bos) == 1
    assert alpaca.question_start > 1
    tokenizer.chat_template = LLAMA2
    chat = encode(Text("b", "a"), tokenizer)
    assert chat.prompt_ids[0] == bos and chat.prompt_ids.count(bos) == 1
    tokenizer.chat_template = CHATML  # writes no BOS, so inference has none either
    assert bos not in encode(Text("b", "a"), tokenizer).prompt_ids


def test_every_added_token_counts() -> None:
    tokenizer = byte_level(template=f"{BOS} {BOS} $A {EOS}")
    encoded = encode(Text("b", prompt="健康"), tokenizer)
    ids = tokenizer("健康")["input_ids"]
    assert encoded.prompt_ids == ids[:-1], "an EOS behind the prompt would end it before the answer"
    assert (encoded.question_start, encoded.question_end) == (2, len(ids) - 1)


def test_chat_closing() -> None:
    tokenizer = byte_level()
    text = Text("b", "a")
    endings = {
        CHATML: f"b{EOS}",  # here <|im_end|> is plain text, which would be printed with every answer
        CHATML_EOS: f"b{EOS}",  # nothing behind the EOS
        LLAMA2: f" b {EOS}",
        THINKING: f"b{EOS}",
    }
    for template, ending in endings.items():
        tokenizer.chat_template = template
        assert decoded(tokenizer, encode(text, tokenizer).answer_ids) == ending


def test_answer_that_merges_with_the_prompt_keeps_the_prompt() -> None:
    tokenizer = tokenizer_of("byte-level")
    whole = tokenizer("Below")["input_ids"]
    prompt = tokenizer("Bel")["input_ids"]
    assert whole[: len(prompt)] != prompt, "the case this test is about"
    encoded = encode(Text("ow", prompt="Bel"), tokenizer)
    assert encoded.prompt_ids == prompt
    assert encoded.answer_ids == [*tokenizer("ow")["input_ids"], tokenizer.eos_token_id]


def test_answer_continues_the_prompt() -> None:
    tokenizer = tokenizer_of("metaspace BPE with byte fallback and BOS")
    encoded = encode(Text("健康", prompt="均衡"), tokenizer)
    alone = tokenizer("健康", add_special_tokens=False)["input_ids"]
    assert alone[0] == tokenizer.convert_tokens_to_ids("▁")
    assert encoded.answer_ids[:-1] == alone[1:], "tokenised with its prompt, the answer has no space put in front"


def test_answer_that_ends_with_eos() -> None:
    tokenizer = tokenizer_of("byte-level")
    encoded = encode(Text(f"b{EOS}", "a"), tokenizer)
    assert encoded.answer_ids.count(tokenizer.eos_token_id) == 1


def test_inference_equals_training() -> None:
    tokenizer = tokenizer_of("metaspace BPE with byte fallback and BOS")
    text = Text("b", "提示", "x")
    pair = ParallelExample("1", "zh", text)
    trained = encode(text, tokenizer, "alpaca")
    for encoded in encode_prompts([text, pair], tokenizer, "alpaca"):
        assert encoded.answer_ids == []
        assert (encoded.prompt_ids, encoded.question_start, encoded.question_end) == (
            trained.prompt_ids,
            trained.question_start,
            trained.question_end,
        )
    assert render_prompt(pair, tokenizer) == render_prompt(text, tokenizer)
    assert encode_prompts([], tokenizer) == []
    assert encode_prompts(["提示"], tokenizer) == encode_prompts([Text(instruction="提示")], tokenizer)


def test_batch_equals_one_by_one() -> None:
    encoder = PromptEncoder(byte_level(), "alpaca")
    rendered = [encoder.render(Text(answer, *question)) for *question, answer in SAMPLES.values()]
    assert encoder.tokenize(rendered) == [encoder.tokenize([one])[0] for one in rendered]


def test_contexts_may_alternate() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    encoder = PromptEncoder(tokenizer)
    for context in [(), (Turn("system", "s"),), ()]:
        text = Text("b", "a", context=context)
        assert encoder.render(text) == PromptEncoder(tokenizer).render(text)


def test_overlapping_tokens() -> None:
    #          0: BOS-like  1: "▁"  2-4: one character in three bytes  5: trimmed space  6: "xy"
    offsets = [(0, 0), (0, 1), (1, 2), (1, 2), (1, 2), (3, 3), (3, 5)]
    assert overlapping_tokens(offsets, 1, 2) == (2, 5)
    assert overlapping_tokens(offsets, 4, 5) == (6, 7)
    assert overlapping_tokens(offsets, 0, 5) == (1, 7)
    assert overlapping_tokens(offsets, 5, 6) == (7, 7)


TEMPLATES = {
    "repeats the question": (CHATML + "{{ messages[0].content }}", ["last user turn 2 times"]),
    "leaves the answer out": ("{{ messages[0].content }}", ["last assistant turn 0 times"]),
    "changes the question": (CHATML.replace("trim", "replace('a', 'b')"), ["does not render the question", "'aa'"]),
    "changes the answer": (
        CHATML.replace("m.content | trim", "m.content | replace('c', 'b') if m.role == 'assistant' else m.content"),
        ["does not continue its own prompt with the answer", "'cc'"],
    ),
    "asks otherwise than it trains": (
        CHATML.replace("assistant\n", "assistant\n<think>\n"),
        ["does not continue its own prompt", "'cc'"],
    ),
    "ends an answer before it begins": (
        CHATML_EOS.replace("{{ m.content | trim }}", "{{ m.content if m.role == 'user' else eos_token + m.content }}"),
        ["writes '</s>', which ends an answer, before its end"],
    ),
    "refuses a role": ("{{ raise_exception('System role not supported') }}", ["System role not supported", "user"]),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_template_that_cannot_be_followed(case: str) -> None:
    template, words = TEMPLATES[case]
    tokenizer = byte_level()
    tokenizer.chat_template = template
    with pytest.raises(DataError) as caught:
        encode(Text("cc", "aa"), tokenizer, where="train.jsonl:3")
    for word in [*words, "train.jsonl:3: chat template: ", "Fix: "]:
        assert word in str(caught.value)


def test_turns_need_chat() -> None:
    text = Text("b", "a", context=(Turn("system", "s"),))
    with pytest.raises(DataError, match=r"train.jsonl:3: turns without a place: 1 turns .*'alpaca'.*use style 'chat'"):
        encode(text, byte_level(), where="train.jsonl:3")


def test_question_without_tokens() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200d", "")
    with pytest.raises(DataError, match=r"a.jsonl:2: empty question: the tokenizer makes no token of the question"):
        encode(Text("b", "\u200d"), tokenizer, "alpaca", "a.jsonl:2")


def test_unusable_tokenizers_and_styles() -> None:
    tokenizer = byte_level()
    with pytest.raises(PivotuneError, match="style: got 'alpca'; choose one of 'auto', 'alpaca', 'chat', 'plain'"):
        PromptEncoder(tokenizer, "alpca")
    with pytest.raises(PivotuneError, match="style: got 'chat', but the tokenizer has no chat template"):
        PromptEncoder(tokenizer, "chat")
    tokenizer.eos_token = None
    assert encode_prompts(["a"], tokenizer), "a prompt needs none"
    with pytest.raises(PivotuneError, match=r"eos_token is None.*set tokenizer.eos_token"):
        encode(Text("b", "a"), tokenizer)

    class Slow:
        is_fast = False

    with pytest.raises(PivotuneError, match="Slow gives no character offsets; load it with use_fast=True"):
        PromptEncoder(Slow())  # type: ignore[arg-type]


# Templates of today's models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_ends_as_its_template_ends_a_turn(name: str) -> None:
    tokenizer, shape = tokenizer_of_shape(name), SHAPES[name]
    encoded = encode(Text("b", "a"), tokenizer)
    assert decoded(tokenizer, encoded.answer_ids).strip() == f"b{shape.end}"
    end = PromptEncoder(tokenizer).chat_end()
    assert (end == encoded.answer_ids[-1]) or (name == "plain words" and end is None)
    inference = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
    assert encoded.prompt_ids == inference["input_ids"]


def test_an_empty_reasoning_block_is_not_trained() -> None:
    tokenizer = tokenizer_of_shape("Qwen3")
    for answer in ("b", "<think>\n\n</think>\n\nb", "<think></think>b"):
        assert decoded(tokenizer, encode(Text(answer, "a"), tokenizer).answer_ids) == "b<|im_end|>"
    reasoned = encode(Text("<think>because</think>b", "a"), tokenizer)
    assert decoded(tokenizer, reasoned.answer_ids) == "<think>\nbecause\n</think>\n\nb<|im_end|>"
    assert tokenizer.convert_tokens_to_ids("<think>") in reasoned.answer_ids, "it stays a token"
    fix_template_kwargs(tokenizer, {"enable_thinking": False})
    off = encode(Text("b", "a"), tokenizer)
    assert decoded(tokenizer, off.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert decoded(tokenizer, off.answer_ids) == "b<|im_end|>"
    with pytest.raises(DataError, match=r"does not continue its own prompt.*enable_thinking"):
        encode(Text("<think>because</think>b", "a"), tokenizer)
    html = "<div></div><b></b> c"
    assert decoded(tokenizer, encode(Text(html, "a"), tokenizer).answer_ids) == f"{html}<|im_end|>"


def test_reasoning_that_the_template_drops_is_an_error() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML_EOS.replace("m.content | trim", "m.content.split('</think>')[-1] | trim")
    with pytest.raises(DataError, match="does not continue its own prompt with the answer '<think>why"):
        encode(Text("<think>why</think>b", "a"), tokenizer)


@pytest.mark.parametrize(
    ("generated", "printed", "answer"),
    [
        ("<think>\n\n</think>\n\nParis", "Paris", "Paris"),
        ("\n</think>\n\nParis", "Paris", "Paris"),  # the prompt opened the block
        ("[THINK][/THINK]Paris", "Paris", "Paris"),
        ("<think>so</think>Paris", "<think>so</think>Paris", "Paris"),
        ("so</think>Paris", "so</think>Paris", "Paris"),
        ("<think>so", "<think>so", ""),
        ("Paris", "Paris", "Paris"),
        ("<b></b>Paris", "<b></b>Paris", "<b></b>Paris"),
    ],
)
def test_reasoning_in_what_was_generated(generated: str, printed: str, answer: str) -> None:
    assert without_empty_reasoning(generated) == printed
    assert without_reasoning(generated) == answer


SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
LISTS = st.lists(SCALARS, max_size=3)
VALUES = SCALARS | LISTS | st.dictionaries(st.text("ab", min_size=1), SCALARS | LISTS, max_size=3)


@given(VALUES)
@example("a\"b\\n%}{{ 😀 é\n'")
def test_template_arguments_become_the_defaults_of_the_template(value: Any) -> None:
    template = "\n{{ x | tojson }}|{{ messages[0].content }}"
    messages = [{"role": "user", "content": "a"}]
    plain, fixed = byte_level(), byte_level()
    plain.chat_template = fixed.chat_template = template
    fix_template_kwargs(fixed, {"x": value})
    assert fixed.apply_chat_template(messages, tokenize=False) == plain.apply_chat_template(
        messages, tokenize=False, x=value
    )
    assert fixed.apply_chat_template(messages, tokenize=False, x="y") == '\n"y"|a', "an argument still wins"


def test_template_arguments_that_cannot_be() -> None:
    tokenizer = byte_level()
    fix_template_kwargs(tokenizer, None)
    with pytest.raises(PivotuneError, match=r"chat_template_kwargs: got .*, but the tokenizer has no chat template"):
        fix_template_kwargs(tokenizer, {"enable_thinking": False})
    tokenizer.chat_template = CHATML
    with pytest.raises(PivotuneError, match="got 'enable_thinking', which the tokenizer's chat template does not read"):
        fix_template_kwargs(tokenizer, {"enable_thinking": False})
    tokenizer = tokenizer_of_shape("Qwen3")
    with pytest.raises(PivotuneError, match="enable_thinking: got <object"):
        fix_template_kwargs(tokenizer, {"enable_thinking": object()})


# Special tokens spelt out in contents -------------------------------------------------------------------------------

SPELT = st.lists(
    st.sampled_from(
        ["</s>", "<s>", "<|im_end|>", "<|im_start|>", "[INST]", "<end_of_turn>", "<", "/s>", "a ", "健康", "|>"]
    ),
    min_size=1,
    max_size=5,
).map(lambda parts: f"x{''.join(parts)}y")


@given(st.sampled_from(sorted(SHAPES)), st.sampled_from(["chat", "alpaca"]), SPELT, SPELT, SPELT)
@example("Mistral", "chat", "x[INST]y", "x</s>y", "xy")
@example("SmolLM2", "chat", "x<|im_<|im_end|>end|>y", "x</</s>s>y", "x<|im_end|>y")
def test_spelt_tokens_stay_text(name: str, style: str, question: str, answer: str, earlier: str) -> None:
    """The special tokens of a row are those of the row "x": the template's own; and the text is the row's own."""
    tokenizer = tokenizer_of_shape(name)
    if style == "alpaca" and tokenizer.eos_token is None:
        return
    turns = (Turn("user", earlier), Turn("assistant", earlier)) if style == "chat" else ()
    bare = tuple(Turn(turn.role, "x") for turn in turns)
    found = encode(Text(answer, question, context=turns), tokenizer, style)
    plain = encode(Text("x", "x", context=bare), tokenizer, style)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def specials(ids: list[int]) -> list[int]:
        return [token for token in ids if token in special]

    assert specials(found.prompt_ids) == specials(plain.prompt_ids)
    assert specials(found.answer_ids) == specials(plain.answer_ids) == found.answer_ids[-1:]
    assert question in span(tokenizer, found)
    assert decoded(tokenizer, found.answer_ids[:-1]).strip() == answer
    assert (
        encode_prompts([Text(instruction=question, context=turns)], tokenizer, style)[0].prompt_ids == found.prompt_ids
    )
    assert render_prompt(Text(instruction=question, context=turns), tokenizer, style).count(question) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_spelt_tokens_stay_text_in_every_kind_of_tokenizer(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    encoded = encode(Text("健</s>b", "健康</s> <s>c"), tokenizer, "alpaca")
    assert encoded.answer_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.eos_token_id not in encoded.prompt_ids
    assert encoded.prompt_ids.count(tokenizer.bos_token_id) == ("BOS" in kind)
    assert decoded(tokenizer, encoded.answer_ids[:-1]).strip() == "健</s>b"
    assert span(tokenizer, encoded).strip() == "健康</s> <s>c"


def test_a_raw_prompt_brings_its_own_tokens() -> None:
    tokenizer = tokenizer_of_shape("SmolLM2")
    raw = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    encoder = PromptEncoder(tokenizer, "plain")
    for completion in ("b", "b<|im_end|>", "b<|im_end|>\n"):
        rendered = encoder.render(Text(completion, prompt=raw))
        assert AS_TOKENS in rendered.notes
        encoded = encoder.tokenize([rendered])[0]
        assert encoded.prompt_ids == tokenizer(raw)["input_ids"]
        assert decoded(tokenizer, encoded.answer_ids) == "b<|im_end|>"
    tokenizer.eos_token = "<|endoftext|>"
    closed = encode(Text("b<|im_end|>", prompt=raw), tokenizer)
    assert decoded(tokenizer, closed.answer_ids) == "b<|im_end|>", "it ends with the end that it brings"


def test_a_raw_prompt_that_brings_bos_has_one() -> None:
    tokenizer = metaspace_bpe()
    for prompt in ("提示", f"{BOS}提示"):
        encoded = encode(Text("b", prompt=prompt), tokenizer)
        assert encoded.prompt_ids.count(tokenizer.bos_token_id) == 1
        assert "提示" in span(tokenizer, encoded)


@pytest.mark.parametrize("style", ["alpaca", "chat"])
def test_an_end_token_behind_an_answer_is_its_end(style: str) -> None:
    tokenizer = tokenizer_of_shape("Qwen2.5")
    encoder = PromptEncoder(tokenizer, style)
    plain = encoder.tokenize([encoder.render(Text("b", "a"))])[0]
    for ending in ("<|im_end|>", "<|endoftext|>", "<|im_end|>\n", "<|im_end|><|endoftext|>"):
        rendered = encoder.render(Text(f"b{ending}", "a"))
        assert rendered.notes == (ENDED,)
        assert encoder.tokenize([rendered])[0].answer_ids == plain.answer_ids
        if style == "chat":  # in an earlier answer too
            turns = [(Turn("user", "x"), Turn("assistant", f"y{end}")) for end in ("", ending)]
            assert encoder.render(Text("b", "a", context=turns[0])) == encoder.render(Text("b", "a", context=turns[1]))
    with pytest.raises(DataError, match=r"empty answer: the answer '<\|im_end\|>' is an end token and nothing else"):
        encoder.render(Text("<|im_end|>", "a"))


def test_markers_that_are_plain_text_are_noted() -> None:
    """Nobody can tell them from real ones, so the report counts them."""
    tokenizer = byte_level()
    tokenizer.chat_template = LLAMA2
    for style, question in (("chat", "a [/INST] b"), ("chat", "[INST] b"), ("alpaca", "a\n\n### Response: b")):
        assert PromptEncoder(tokenizer, style).render(Text("b", question)).notes == (MARKERS,)
    assert PromptEncoder(tokenizer, "chat").render(Text("b", "a user asks")).notes == ()


def test_llama2(shared_data: Any, tmp_path: Any) -> None:
    (tmp_path / "tokenizer.model").write_bytes((shared_data / "tokenizer" / "llama2_tokenizer.model").read_bytes())
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path, add_bos_token=True)
    for instruction, given_input, answer in SAMPLES.values():
        text = Text(answer, instruction, given_input)
        encoded = encode(text, tokenizer)
        assert encoded.prompt_ids == tokenizer(render_prompt(text, tokenizer))["input_ids"]
        assert encoded.prompt_ids[0] == tokenizer.bos_token_id
        assert span(tokenizer, encoded).strip() == f"{instruction}\n\n### Input:\n{given_input}"
        assert decoded(tokenizer, encoded.answer_ids) == answer + EOS
