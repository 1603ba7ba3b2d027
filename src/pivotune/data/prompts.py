"""How one side of an example becomes tokens, and which of them are the question.

The prompt ids are exactly what tokenising the prompt alone gives, because that is what the model sees at
inference. All positions come from the tokenizer's own offsets, so they hold in any script and with any special
tokens the tokenizer or its chat template adds.

Special tokens are the template's to write. Their text inside a question, an answer or an earlier turn ("</s>" in a text
about tokenizers) becomes ordinary tokens: it neither ends the answer nor opens a turn. Only in style "plain" the text
is taken as it is, because a raw prompt may bring its own special tokens.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

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

# Put inside the text of a special token, and taken out of its ids again, it keeps the tokenizer from seeing the token.
# Unicode keeps this code point free for such internal use: it is no character of any text.
_BREAK = "\U0010fffe"
_BREAK_BYTES = [f"<0x{byte:02X}>" for byte in _BREAK.encode()]

_TAGS = "think|thinking|thought|reasoning"
_REASONING_START = re.compile(rf"\s*(?:<(?:{_TAGS})>|\[(?:{_TAGS})\])\s*", re.IGNORECASE)
_REASONING_END = re.compile(rf"\s*(?:</(?:{_TAGS})>|\[/(?:{_TAGS})\])\s*", re.IGNORECASE)

AS_TEXT = "special tokens as text, kept as text"
AS_TOKENS = "special tokens in raw text (style plain), read as tokens"
ENDED = "answers that end with an end token as text, taken as their end"
MARKERS = "the prompt's own markers as text, which no tokenizer can tell from real ones"


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
        closed: whether `answer` brings the token that ends it. Otherwise EOS is added.
        notes: what a report should count about it.
    """

    prompt: str
    question_start: int
    question_end: int
    answer: str
    special_tokens: bool
    where: str
    closed: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a prompt and of its answer.

    Attributes:
        prompt_ids: with BOS where the tokenizer or the chat template has one. The last one predicts the answer.
        answer_ids: ends with the token that ends a turn of the chat template, or with EOS; empty for a prompt alone.
        question_start, question_end: `prompt_ids[question_start:question_end]` are the tokens that overlap the
            question's characters (never empty).
        notes: of the rendered text.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    question_start: int
    question_end: int
    notes: tuple[str, ...] = ()


class PromptEncoder:
    """Renders and tokenises prompts in one style.

    Args:
        tokenizer: a fast tokenizer.
        style: "alpaca"; "chat", the tokenizer's chat template; "plain", the prompt as it is; or "auto": plain for
            prompt/completion rows, else chat where the tokenizer has a template, else alpaca.

    The question is, in Alpaca, everything from the start of the instruction to the end of the input; in chat, the
    last user turn; in plain, the whole prompt.

    An answer ends in chat with the first special token that the template writes behind it, otherwise with EOS. Plain
    text behind it ("### End") is left out, and so is an empty reasoning block that the template puts in front of it
    (`<think></think>`).

    Raises:
        PivotuneError: a slow tokenizer, no chat template under style="chat", an unknown style; while encoding, an
            answer and no token to end it with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, style: str = "auto") -> None:
        check_choice("style", style, STYLES)
        if not tokenizer.is_fast:
            name = type(tokenizer).__name__
            raise PivotuneError(f"tokenizer: {name} gives no character offsets; load it with use_fast=True")
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
        added = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
        self._added = _any_of(token.content for token in added)
        # One character cannot be broken in two.
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self._special = {token for token in special if len(token) > 1}
        pieces = [tokenizer.backend_tokenizer.token_to_id(byte) for byte in _BREAK_BYTES]
        self._break_ids: list[int] = [] if None in pieces else pieces

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
            DataError: the style has no place for the turns before the question, the chat template refuses, changes or
                repeats the question or the answer, or the answer is no more than an end token.
        """
        style = self.style_of(text)
        text, end, notes = self._prepared(text, style, where)
        if style == "chat":
            return replace(self._render_chat(text, where), notes=notes)
        if text.context:
            problem = f"{len(text.context)} turns before the question have no place in the {style!r} prompt"
            raise DataError(where, "turns without a place", problem, "use style 'chat' and a model with a template")
        before, after = "", ""
        question = text.question
        if style == "alpaca":
            before = _ALPACA_WITH_INPUT if text.input else _ALPACA_WITHOUT_INPUT
            question = f"{text.instruction}{_ALPACA_INPUT}{text.input}" if text.input else question
            after = _ALPACA_RESPONSE
        closed = bool(end) and end != self.tokenizer.eos_token
        rendered = _rendered(before, question, after, text.answer + end * closed, True, where)
        return replace(rendered, closed=closed, notes=notes)

    def _prepared(self, text: Text, style: str, where: str) -> tuple[Text, str, tuple[str, ...]]:
        """The text without an end token behind its answer, special tokens broken; that end; what to report.

        In "plain" the end is the answer's own. In the other styles another one is written.
        """
        notes = []
        answer, end = self._without_end(text.answer)
        if end:
            notes.append(ENDED)
            if not answer.strip():
                problem = f"the answer {text.answer[:60]!r} is an end token and nothing else"
                raise DataError(where, "empty answer", problem, "fill it, or remove the row")
        text = replace(text, answer=answer)
        if style == "plain":
            if _any_of(self._special).search(f"{text.question}\0{answer}"):
                notes.append(AS_TOKENS)
            return text, end, tuple(notes)
        if style == "chat":  # ends and an empty block are the template's to write
            turns = tuple(
                replace(turn, content=self._without_end(turn.content)[0]) if turn.role == "assistant" else turn
                for turn in text.context
            )
            text = replace(text, answer=_without_empty_reasoning(answer), context=turns)
        controls = _any_of(self._special | self._framing) if style == "chat" else _any_of(self._special)
        contents = [text.question, text.answer, *(turn.content for turn in text.context)]
        if any(map(controls.search, contents)):
            notes.append(AS_TEXT)
            text = replace(
                text,
                answer=_broken(text.answer, controls),
                instruction=_broken(text.instruction, controls),
                input=_broken(text.input, controls),
                prompt=None if text.prompt is None else _broken(text.prompt, controls),
                context=tuple(replace(turn, content=_broken(turn.content, controls)) for turn in text.context),
            )
        markers = self._markers if style == "chat" else (_ALPACA_RESPONSE.strip(), "### Instruction:", "### Input:")
        if any(marker in content for marker in markers for content in contents):
            notes.append(MARKERS)
        return text, "", tuple(notes)

    def _without_end(self, answer: str) -> tuple[str, str]:
        """The answer without the end tokens at its end, and the first of these."""
        found = ""
        while end := next((end for end in self._ends if answer.rstrip().endswith(end)), ""):
            found, answer = end, answer.rstrip().removesuffix(end)
        return answer, found

    def _render_chat(self, text: Text, where: str) -> Rendered:
        frame, question = self._frame_of(text.context, where), text.question
        prompt = _apply_template(self.tokenizer, text.context, question, None, where)
        middle = _between(prompt, frame.before, frame.after)
        if middle is None or middle.strip() != question.strip():
            problem = f"the chat template does not render the question as it is: {question[:60]!r}"
            raise _template_error(where, problem)
        answer, end = "", ""
        if text.answer:
            full = _apply_template(self.tokenizer, text.context, question, text.answer, where)
            spoken = _between(full, prompt, frame.closing)
            if spoken is None or any(part not in spoken for part in _parts(text.answer)):
                problem = f"the conversation does not continue its own prompt with the answer {text.answer[:60]!r}"
                if _REASONING_START.search(prompt):
                    problem += (
                        " (a reasoning template: chat_template_kwargs may turn it off, as {enable_thinking: false})"
                    )
                raise _template_error(where, problem)
            if early := _any_of(self._ends).search(spoken):  # the contents' own have been broken
                raise _template_error(
                    where, f"the chat template writes {early[0]!r}, which ends an answer, before its end"
                )
            behind, end = self._end_of(frame)
            answer = _without_empty_reasoning(spoken) + behind + end
        return replace(_rendered(frame.before, middle, frame.after, answer, False, where), closed=bool(end))

    # What a chat template writes around the contents -------------------------------------------------------------

    def _frame_of(self, context: tuple[Turn, ...], where: str) -> _ChatFrame:
        if self._frame is None or self._frame.context != context:
            self._frame = _ChatFrame.of(self.tokenizer, context, where)
        return self._frame

    def _end_of(self, frame: _ChatFrame) -> tuple[str, str]:
        """White space behind an answer, and the special token that then ends the turn; "" where there is none."""
        found = self._added.search(frame.closing)
        if found is None:
            return "", ""
        behind = frame.closing[: found.start()]
        return behind if behind.isspace() else "", found[0]

    @cached_property
    def _bare_frame(self) -> _ChatFrame | None:
        """Of a conversation without earlier turns; None without a template, or with one that refuses it."""
        if self.tokenizer.chat_template is None:
            return None
        try:
            return _ChatFrame.of(self.tokenizer, (), "prompt")
        except DataError:
            return None

    @cached_property
    def _framing(self) -> set[str]:
        """Tokens that the template writes around the contents, declared special or not; without those of reasoning."""
        frame = self._bare_frame
        written = "" if frame is None else f"{frame.before}\0{frame.after}\0{frame.closing}"
        tokens = {token for token in self._added.findall(written) if len(token) > 1}
        return {token for token in tokens if not _REASONING_START.match(token) and not _REASONING_END.match(token)}

    @cached_property
    def _ends(self) -> list[str]:
        """Tokens that end an answer: of the template, and EOS."""
        turn = "" if self._bare_frame is None else self._end_of(self._bare_frame)[1]
        return list(dict.fromkeys(end for end in (turn, self.tokenizer.eos_token) if end))

    @cached_property
    def _markers(self) -> list[str]:
        """Plain words of the template next to the contents, such as [INST]: in a content they cannot be told apart."""
        frame = self._bare_frame
        if frame is None:
            return []
        plain = [
            [part.strip() for part in re.split(r"\n|\0", self._added.sub("\0", written)) if part.strip()]
            for written in (frame.before, frame.after, frame.closing)
        ]
        before, after, closing = plain
        near = {*before[-1:], *after[:1], *after[-1:], *closing[:1]}
        return [part for part in sorted(near) if len(part) > 2 and not part.replace(" ", "").isalnum()]

    def chat_end(self) -> int | None:
        """The token that ends a turn of the chat template; None where the tokenizer has none, or its end is text."""
        end = "" if self._bare_frame is None else self._end_of(self._bare_frame)[1]
        found: Any = self.tokenizer.convert_tokens_to_ids(end) if end else None
        return found

    def dated(self) -> bool:
        """Whether there were chat prompts, and the template writes the day of today into them."""
        template = self.tokenizer.chat_template
        if self._frame is None or self._bare_frame is None or "strftime_now" not in str(template):
            return False
        template = self.tokenizer.get_chat_template()
        fixed = "{% macro strftime_now(format) %}1 Jan 1970{% endmacro %}" + template
        today, another = (
            _apply_template(self.tokenizer, (), _QUESTION_MARK, None, "prompt", chat_template=one)
            for one in (template, fixed)
        )
        return today != another

    # Tokens ------------------------------------------------------------------------------------------------------

    def tokenize(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Token ids and question spans of a batch.

        Raises:
            DataError: a question that yields no token.
        """
        if not rendered:
            return []
        # Special tokens are put in front below, so the offsets count from the first token of the text.
        prompts = self._tokens(rendered, [one.prompt for one in rendered])
        all_answer_ids = self._answer_ids(rendered, [ids for ids, _ in prompts])
        encoded = []
        for one, (ids, offsets), answer_ids in zip(rendered, prompts, all_answer_ids, strict=True):
            start, end = overlapping_tokens(offsets, one.question_start, one.question_end)
            if start >= end:
                question = one.prompt[one.question_start : one.question_end]
                problem = f"the tokenizer makes no token of the question {question[:60]!r}"
                raise DataError(one.where, "empty question", problem, "correct or remove the row")
            prefix = self._prefix_ids if one.special_tokens else []
            if ids[: len(prefix)] == prefix:  # a raw prompt that brings its BOS
                prefix = []
            encoded.append(Encoded(prefix + ids, answer_ids, len(prefix) + start, len(prefix) + end, one.notes))
        return encoded

    def encode_all(self, texts: Iterable[tuple[Text, str]]) -> list[Encoded | DataError]:
        """Render and tokenise texts, each given with its place; where one cannot be, the reason instead."""
        found: list[Rendered | DataError] = []
        for text, where in texts:
            try:
                found.append(self.render(text, where))
            except DataError as error:
                found.append(error)
        rendered = [one for one in found if isinstance(one, Rendered)]
        encoded: Iterator[Encoded | DataError]
        try:
            encoded = iter(self.tokenize(rendered))
        except DataError:
            encoded = map(self._encoded_alone, rendered)
        return [next(encoded) if isinstance(one, Rendered) else one for one in found]

    def _encoded_alone(self, one: Rendered) -> Encoded | DataError:
        try:
            return self.tokenize([one])[0]
        except DataError as error:
            return error

    def _answer_ids(self, rendered: Sequence[Rendered], all_prompt_ids: list[list[int]]) -> list[list[int]]:
        """Ids of the answers as they read after their prompts, the token that ends them once at the end."""
        joint = [ids for ids, _ in self._tokens(rendered, [one.prompt + one.answer for one in rendered])]
        answers = [ids[len(prompt_ids) :] for ids, prompt_ids in zip(joint, all_prompt_ids, strict=True)]
        # A token may straddle the border ("wor" + "ld"). The prompt's ids are fixed by inference, so then the answer
        # is tokenised by itself.
        straddling = [
            index
            for index, (ids, prompt_ids) in enumerate(zip(joint, all_prompt_ids, strict=True))
            if ids[: len(prompt_ids)] != prompt_ids or not answers[index]
        ]
        if straddling:
            chosen = [rendered[index] for index in straddling]
            alone = self._tokens(chosen, [one.answer for one in chosen])
            for index, (ids, _) in zip(straddling, alone, strict=True):
                answers[index] = ids
        eos = self.tokenizer.eos_token_id
        if eos is None and any(one.answer and not one.closed for one in rendered):
            raise PivotuneError("tokenizer: eos_token is None, so answers could not end; set tokenizer.eos_token")
        return [
            [*ids, eos] if one.answer and not one.closed else ids for one, ids in zip(rendered, answers, strict=True)
        ]

    def _tokens(self, rendered: Sequence[Rendered], texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids and offsets of a text of each, without special tokens around it and without breaks inside it."""
        found = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        tokens = zip(texts, found["input_ids"], found["offset_mapping"], strict=True)
        return [
            self._without_breaks(text, ids, offsets) if AS_TEXT in one.notes else (ids, offsets)
            for one, (text, ids, offsets) in zip(rendered, tokens, strict=True)
        ]

    def _without_breaks(
        self, text: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        tokens = [
            (token, (start, end))
            for token, (start, end) in zip(ids, offsets, strict=True)
            if start == end or text[start:end].strip(_BREAK)
        ]
        # Unigram gives the bytes of neighbouring unknown characters the same offsets.
        size = len(self._break_ids)
        for place in reversed(range(len(tokens) - size + 1)) if size else ():
            if [token for token, _ in tokens[place : place + size]] == self._break_ids:
                del tokens[place : place + size]
        return [token for token, _ in tokens], [offset for _, offset in tokens]


def encode(text: Text, tokenizer: PreTrainedTokenizerBase, style: str = "auto", where: str = "prompt") -> Encoded:
    """Tokens of one text; `PromptEncoder` does the same for many."""
    encoder = PromptEncoder(tokenizer, style)
    return encoder.tokenize([encoder.render(text, where)])[0]


def render_prompt(
    question: str | Text | ParallelExample, tokenizer: PreTrainedTokenizerBase, style: str = "auto"
) -> str:
    """The string a model is asked with at inference, without the BOS that the tokenizer itself adds."""
    return PromptEncoder(tokenizer, style).render(prompt_only(question)).prompt.replace(_BREAK, "")


def encode_prompts(
    questions: Sequence[str | Text | ParallelExample], tokenizer: PreTrainedTokenizerBase, style: str = "auto"
) -> list[Encoded]:
    """Tokens to generate from: the same `prompt_ids` and question spans as in training, no answer."""
    encoder = PromptEncoder(tokenizer, style)
    return encoder.tokenize([encoder.render(prompt_only(question)) for question in questions])


def fix_template_kwargs(
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None,
    option: str = "chat_template_kwargs",
) -> None:
    """Make these arguments the defaults of the tokenizer's chat template.

    They become part of the template, and are saved with it: so the model is asked as it was trained, by any program.

    Raises:
        PivotuneError: there is no template, or it reads no argument of that name.
    """
    if not chat_template_kwargs:
        return
    template = tokenizer.chat_template
    if template is None:
        raise PivotuneError(f"{option}: got {dict(chat_template_kwargs)}, but the tokenizer has no chat template.")
    for name in chat_template_kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", str(template)) or not name.isidentifier():
            raise PivotuneError(
                f"{option}: got {name!r}, which the tokenizer's chat template does not read. Remove it."
            )
    # The last part is empty, but keeps a line break at the template's beginning, which Jinja removes behind a block.
    head = (
        "".join(
            f"{{% set {name} = {name} | default({_literal(value, f'{option}.{name}')}) %}}"
            for name, value in chat_template_kwargs.items()
        )
        + "{{ '' }}"
    )
    tokenizer.chat_template = (
        {key: head + one for key, one in template.items()} if isinstance(template, dict) else head + template
    )


def _literal(value: Any, option: str) -> str:
    """A value as Jinja writes it."""
    if value is None or isinstance(value, (bool, int, float)):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # its escapes are those of Jinja too
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(one, option) for one in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{_literal(str(key), option)}: {_literal(one, option)}" for key, one in value.items())
        return f"{{{', '.join(pairs)}}}"
    raise PivotuneError(f"{option}: got {value!r}; give text, a number, true, false, null, a list or a mapping.")


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
    tokenizer: PreTrainedTokenizerBase,
    context: tuple[Turn, ...],
    question: str,
    answer: str | None,
    where: str,
    **options: Any,
) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in context]
    messages.append({"role": "user", "content": question})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer is None, **options
        )
    except Exception as error:  # a template raises what it likes, for instance that it knows no system role
        roles = ", ".join(message["role"] for message in messages)
        problem = f"the chat template refuses the roles {roles}: {error}"
        raise _template_error(where, problem) from error
    return str(rendered)


def _template_error(where: str, problem: str) -> DataError:
    fix = (
        "use style 'alpaca' or another tokenizer.chat_template, correct the row, or, in training, leave such rows out "
        "(data.on_bad: skip)"
    )
    return DataError(where, "chat template", problem, fix)


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


# Special tokens and reasoning in texts -------------------------------------------------------------------------------


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these texts, the longest first."""
    return _compiled(tuple(sorted(tokens, key=lambda token: (-len(token), token))))


@lru_cache(maxsize=64)
def _compiled(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")  # (?!) never matches


def _broken(text: str, tokens: re.Pattern[str]) -> str:
    """The text with a break inside everything that is spelt like one of the tokens."""
    while tokens.search(text):  # what is left of a broken token may spell another
        text = tokens.sub(lambda found: f"{found[0][0]}{_BREAK}{found[0][1:]}", text)
    return text


def _without_empty_reasoning(text: str) -> str:
    """Without a block such as <think></think>, of nothing but white space, at the beginning."""
    start = _REASONING_START.match(text)
    end = _REASONING_END.match(text, start.end()) if start else None
    return text[end.end() :] if end else text


def _parts(answer: str) -> list[str]:
    """What of an answer a template has to render: all of it; or its reasoning and what follows, framed as it likes."""
    if not _REASONING_END.search(answer):
        return [answer.strip()]
    return [part.strip() for part in _REASONING_END.split(_REASONING_START.sub("", answer, count=1))]


def without_empty_reasoning(generated: str) -> str:
    """What was generated without an empty block of reasoning at its beginning, also one that the prompt opened."""
    shorter = _without_empty_reasoning(generated)
    end = _REASONING_END.match(shorter)
    return shorter[end.end() :] if end else shorter


def without_reasoning(generated: str) -> str:
    """What was generated behind its reasoning; nothing where the reasoning has not ended."""
    *reasoning, answer = _REASONING_END.split(generated)
    return "" if not reasoning and _REASONING_START.match(generated) else answer
