"""How one side of an example becomes tokens, and which of them are the question.

The prompt ids are exactly what tokenising the prompt alone gives, because that is what the model sees at
inference. All positions come from the tokenizer's own offsets, so they hold in any script and with any special
tokens the tokenizer or its chat template adds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from pivotune.data.examples import ParallelExample, Text, Turn
from pivotune.data.report import DataError
from pivotune.errors import PivotuneError, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STYLES = ("auto", "alpaca", "chat", "plain")

# The wording of Stanford Alpaca (Taori et al., 2023, train.py). Braces inside a question are not interpreted.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
_ALPACA_INPUT = "\n\n### Input:\n"
_ALPACA_RESPONSE = "\n\n### Response:"

# They stand in for the contents while a chat template is taken apart: plain words, so that no template that
# strips, escapes or changes white space alters them.
_QUESTION_MARK = "PivotuneQuestionGoesHere"
_ANSWER_MARK = "PivotuneAnswerGoesHere"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt and its answer as strings.

    Attributes:
        prompt: all that precedes the answer.
        question_start, question_end: the question is `prompt[question_start:question_end]`, in characters,
            without surrounding white space.
        answer: the answer with what the chat template puts around it; "" for a prompt alone.
        special_tokens: whether the tokenizer adds its own BOS. Not for chat: there the template writes it.
        where: the place of the example, for messages.
    """

    prompt: str
    question_start: int
    question_end: int
    answer: str
    special_tokens: bool
    where: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a prompt and of its answer.

    Attributes:
        prompt_ids: with BOS where the tokenizer or the chat template has one. The last one predicts the answer.
        answer_ids: ends with EOS; empty for a prompt alone.
        question_start, question_end: `prompt_ids[question_start:question_end]` are the tokens that overlap the
            question's characters (never empty).
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    question_start: int
    question_end: int


class PromptEncoder:
    """Renders and tokenises prompts in one style.

    Args:
        tokenizer: a fast tokenizer with an EOS token.
        style: "alpaca"; "chat", the tokenizer's chat template; "plain", the prompt as it is; or "auto": plain for
            prompt/completion rows, else chat where the tokenizer has a template, else alpaca.

    The question is, in Alpaca, everything from the start of the instruction to the end of the input; in chat, the
    last user turn; in plain, the whole prompt.

    Raises:
        PivotuneError: a slow tokenizer, no EOS token, no chat template under style="chat", an unknown style.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, style: str = "auto") -> None:
        check_choice("style", style, STYLES)
        if not tokenizer.is_fast:
            name = type(tokenizer).__name__
            raise PivotuneError(f"tokenizer: {name} gives no character offsets; load it with use_fast=True")
        if tokenizer.eos_token_id is None:
            raise PivotuneError("tokenizer: eos_token is None, so answers could not end; set tokenizer.eos_token")
        if style == "chat" and tokenizer.chat_template is None:
            raise PivotuneError("style: got 'chat', but the tokenizer has no chat template; use 'alpaca' or set one")
        self.tokenizer = tokenizer
        self.style = style
        # Learnt from the tokenizer instead of joining bos_token_id: some add none, some more than one. What it adds
        # at the END of a text (an EOS, in some) is left out on purpose: no answer can follow it.
        probe = tokenizer("a", return_special_tokens_mask=True)
        count = len(list(takewhile(bool, probe["special_tokens_mask"])))
        self._prefix_ids: list[int] = probe["input_ids"][:count]
        self._frame: _ChatFrame | None = None

    def style_of(self, text: Text) -> str:
        """The style of this text's prompt: alpaca, chat or plain."""
        if self.style != "auto":
            return self.style
        if text.prompt is not None:
            return "plain"
        return "alpaca" if self.tokenizer.chat_template is None else "chat"

    def render(self, text: Text, where: str = "prompt") -> Rendered:
        """Strings of `text` in this encoder's style.

        Raises:
            DataError: the style has no place for the turns before the question, or the chat template refuses,
                changes or repeats the question or the answer.
        """
        style = self.style_of(text)
        if style == "chat":
            return self._render_chat(text, where)
        if text.context:
            problem = f"{len(text.context)} turns before the question have no place in the {style!r} prompt"
            raise DataError(where, "turns without a place", problem, "use style 'chat' and a model with a template")
        before, after = "", ""
        question = text.question
        if style == "alpaca":
            before = _ALPACA_WITH_INPUT if text.input else _ALPACA_WITHOUT_INPUT
            question = f"{text.instruction}{_ALPACA_INPUT}{text.input}" if text.input else question
            after = _ALPACA_RESPONSE
        return _rendered(before, question, after, text.answer, True, where)

    def _render_chat(self, text: Text, where: str) -> Rendered:
        if self._frame is None or self._frame.context != text.context:
            self._frame = _ChatFrame.of(self.tokenizer, text.context, where)
        frame, question = self._frame, text.question
        prompt = _apply_template(self.tokenizer, text.context, question, None, where)
        middle = _between(prompt, frame.before, frame.after)
        if middle is None or middle.strip() != question.strip():
            problem = f"the chat template does not render the question as it is: {question[:60]!r}"
            raise _template_error(where, problem)
        answer = ""
        if text.answer:
            full = _apply_template(self.tokenizer, text.context, question, text.answer, where)
            spoken = _between(full, prompt, frame.closing)
            if spoken is None or text.answer.strip() not in spoken:
                problem = f"the conversation does not continue its own prompt with the answer {text.answer[:60]!r}"
                raise _template_error(where, problem)
            # The turn ends with its EOS; the line break some templates write behind it is never generated.
            end, eos, _ = frame.closing.partition(str(self.tokenizer.eos_token))
            answer = spoken + end + eos
        return _rendered(frame.before, middle, frame.after, answer, False, where)

    def tokenize(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Token ids and question spans of a batch.

        Raises:
            DataError: a question that yields no token.
        """
        if not rendered:
            return []
        # Special tokens are put in front below, so the offsets count from the first token of the text.
        prompts = self.tokenizer(
            [one.prompt for one in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        all_prompt_ids: list[list[int]] = prompts["input_ids"]
        all_answer_ids = self._answer_ids(rendered, all_prompt_ids)
        encoded = []
        for one, ids, offsets, answer_ids in zip(
            rendered, all_prompt_ids, prompts["offset_mapping"], all_answer_ids, strict=True
        ):
            start, end = overlapping_tokens(offsets, one.question_start, one.question_end)
            if start >= end:
                question = one.prompt[one.question_start : one.question_end]
                problem = f"the tokenizer makes no token of the question {question[:60]!r}"
                raise DataError(one.where, "empty question", problem, "correct or remove the row")
            prefix = self._prefix_ids if one.special_tokens else []
            encoded.append(Encoded(prefix + ids, answer_ids, len(prefix) + start, len(prefix) + end))
        return encoded

    def _answer_ids(self, rendered: Sequence[Rendered], all_prompt_ids: list[list[int]]) -> list[list[int]]:
        """Ids of the answers as they read after their prompts, EOS once at the end."""
        joint = self._ids([one.prompt + one.answer for one in rendered])
        answers = [ids[len(prompt_ids) :] for ids, prompt_ids in zip(joint, all_prompt_ids, strict=True)]
        # A token may straddle the border ("wor" + "ld"). The prompt's ids are fixed by inference, so then the answer
        # is tokenised by itself.
        straddling = [
            index
            for index, (ids, prompt_ids) in enumerate(zip(joint, all_prompt_ids, strict=True))
            if ids[: len(prompt_ids)] != prompt_ids or not answers[index]
        ]
        if straddling:
            alone = self._ids([rendered[index].answer for index in straddling])
            for index, ids in zip(straddling, alone, strict=True):
                answers[index] = ids
        eos = self.tokenizer.eos_token_id
        return [
            [*ids, eos] if one.answer and ids[-1:] != [eos] else ids for one, ids in zip(rendered, answers, strict=True)
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids


def encode(text: Text, tokenizer: PreTrainedTokenizerBase, style: str = "auto", where: str = "prompt") -> Encoded:
    """Tokens of one text; `PromptEncoder` does the same for many."""
    encoder = PromptEncoder(tokenizer, style)
    return encoder.tokenize([encoder.render(text, where)])[0]


def render_prompt(
    question: str | Text | ParallelExample, tokenizer: PreTrainedTokenizerBase, style: str = "auto"
) -> str:
    """The string a model is asked with at inference, without the BOS that the tokenizer itself adds."""
    return PromptEncoder(tokenizer, style).render(prompt_only(question)).prompt


def encode_prompts(
    questions: Sequence[str | Text | ParallelExample], tokenizer: PreTrainedTokenizerBase, style: str = "auto"
) -> list[Encoded]:
    """Tokens to generate from: the same `prompt_ids` and question spans as in training, no answer."""
    encoder = PromptEncoder(tokenizer, style)
    return encoder.tokenize([encoder.render(prompt_only(question)) for question in questions])


def prompt_only(question: str | Text | ParallelExample) -> Text:
    """What is asked, without the answer; a string is an instruction."""
    if isinstance(question, str):
        return Text(instruction=question)
    text = question.text if isinstance(question, ParallelExample) else question
    return Text(instruction=text.instruction, input=text.input, prompt=text.prompt, context=text.context)


def overlapping_tokens(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Tokens [first, last) that overlap the characters [start, end).

    Offsets never decrease, but several tokens may share one character (byte-level BPE, byte fallback) and tokens
    of white space may be empty (tokenizers that trim their offsets). So `start` and `end - 1` should be characters
    other than white space.
    """
    first = bisect_right(offsets, start, key=lambda offset: offset[1])
    last = bisect_left(offsets, end, key=lambda offset: offset[0])
    return first, last


@dataclass(frozen=True, slots=True)
class _ChatFrame:
    """What a chat template writes around the question and behind the answer, for one context."""

    context: tuple[Turn, ...]
    before: str
    after: str
    closing: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, context: tuple[Turn, ...], where: str) -> _ChatFrame:
        prompt = _apply_template(tokenizer, context, _QUESTION_MARK, None, where).split(_QUESTION_MARK)
        full = _apply_template(tokenizer, context, _QUESTION_MARK, _ANSWER_MARK, where).split(_ANSWER_MARK)
        for role, parts in (("user", prompt), ("assistant", full)):
            if len(parts) != 2:
                problem = f"the chat template writes the last {role} turn {len(parts) - 1} times"
                raise _template_error(where, problem)
        return cls(context, prompt[0], prompt[1], full[1])


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, context: tuple[Turn, ...], question: str, answer: str | None, where: str
) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in context]
    messages.append({"role": "user", "content": question})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
    except Exception as error:  # a template raises what it likes, for instance that it knows no system role
        roles = ", ".join(message["role"] for message in messages)
        problem = f"the chat template refuses the roles {roles}: {error}"
        raise _template_error(where, problem) from error
    return str(rendered)


def _template_error(where: str, problem: str) -> DataError:
    return DataError(where, "chat template", problem, "use style 'alpaca', or set another tokenizer.chat_template")


def _between(text: str, before: str, after: str) -> str | None:
    """The part of `text` between its given beginning and end, None when it has not got them."""
    if len(text) < len(before) + len(after) or not text.startswith(before) or not text.endswith(after):
        return None
    return text[len(before) : len(text) - len(after)]


def _rendered(before: str, question: str, after: str, answer: str, special_tokens: bool, where: str) -> Rendered:
    # White space around the question is not part of it: tokenizers glue it to either neighbour.
    start = len(before) + len(question) - len(question.lstrip())
    end = len(before) + len(question.rstrip())
    return Rendered(before + question + after, start, end, answer, special_tokens, where)
