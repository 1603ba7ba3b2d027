"""Answers from a run: load it, ask it in batches.

    model, tokenizer = pivotune.load("runs/zh")
    pivotune.generate_texts(model, tokenizer, ["法国的货币是什么？"])

A run with a connection comes back connected: `model.generate()` of transformers works as usual and uses the connection.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from pivotune.answers import AnswerFile
from pivotune.checkpoint import check_model, connection_modes, load_run, read_info
from pivotune.connection import connect, is_connected
from pivotune.data.collate import padded_ids, padding_id
from pivotune.data.examples import ParallelExample, Text, is_english
from pivotune.data.lines import check_file, read_lines, text_lines
from pivotune.data.prompts import STYLES, PromptEncoder, prompt_only, without_empty_reasoning
from pivotune.data.report import DataError
from pivotune.data.sources import read_prompts
from pivotune.errors import PivotuneError, check_choice, check_number, check_seed
from pivotune.files import check_output_file, locked_file
from pivotune.tokens import check_context, check_ids, end_ids, listed, rows_of, until_end

logger = logging.getLogger(__name__)

Question = str | Text | ParallelExample


def connection_mode(run: str | Path, info: Mapping[str, Any], connection: str | None) -> str:
    """How a run is to be connected, found out without loading the model: as asked, or by its default."""
    modes = connection_modes(info)
    if modes == ("none",) and connection not in (None, "none"):
        raise PivotuneError(
            f"connection: got {connection!r}, but {run} was not trained with a connection. Leave the option out."
        )
    if connection is not None and connection not in modes:
        raise PivotuneError(f"connection: got {connection!r}, but {run} can be connected by {', '.join(modes)}.")
    return connection or modes[0]


def load(
    path: str | Path,
    connection: str | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    dequantise: bool = False,
) -> tuple[Any, Any]:
    """The model of a run (or any causal LM folder or hub name) and its tokenizer, ready to generate.

    Args:
        path: a run folder of `pivotune train`, or what `AutoModelForCausalLM.from_pretrained` takes.
        connection: how a run with a connection connects by default, e.g. matrix, english or none. None: its own
            default, e.g. matrix where one was fitted.
        dtype: of the weights; "auto" keeps the saved one.
        device: where to put the model; a GPU if there is one by default.
        chat_template_kwargs: arguments of the chat template; those that a run was trained with are in its own.
        dequantise: give a base that was quantised for the training ordinary weights of the same values: more memory,
            and mostly faster. By default it is quantised again.

    Raises:
        PivotuneError: no such run, a half-written one, or a connection that it does not have.
    """
    mode = connection_mode(path, read_info(path), connection)
    run = load_run(path, dtype=dtype, device=device, chat_template_kwargs=chat_template_kwargs, dequantise=dequantise)
    made = run.connection()
    if made is not None:
        connect(run.model, made, mode)
    return run.model, run.tokenizer


def generate_texts(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    style: str = "auto",
    connection: str | None = None,
    batch_size: int = 16,
    progress: bool = False,
    **generate_options: Any,
) -> list[str]:
    """Answers to many questions, in their order, batched by length with left padding.

    Args:
        model: from `load`, or any causal LM.
        questions: strings, or examples with their English counterparts (needed for connection="english").
        style: prompt style, as in training: auto, alpaca, chat or plain.
        connection: none, english or matrix; None keeps the model's own default. English questions are not connected.
        batch_size: questions per call of generate().
        progress: show a progress bar.
        generate_options: what `generate()` of transformers takes, e.g. num_beams=4, do_sample=True;
            max_new_tokens is 64 where no limit is given. Answers end with any token that ends one for the tokenizer,
            the chat template or the model; eos_token_id=... sets others in their place.

    Raises:
        PivotuneError: a prompt with a token that the model does not have, or one that cannot be rendered.
    """
    if isinstance(questions, str):
        raise PivotuneError("questions: got one string; give a list of them.")
    check_number("batch_size", batch_size, 1, whole=True)
    answers: list[str] = [""] * len(questions)
    batches = generate_batches(
        model, tokenizer, questions, style=style, connection=connection, batch_size=batch_size, **generate_options
    )
    count = -(-len(questions) // batch_size)
    for batch in tqdm(batches, total=count, desc="generating", unit="batch", disable=not (progress and questions)):
        for answer in batch:
            answers[answer.question] = answer.text.strip()
    return answers


_ONE_PLAIN_ANSWER = {"num_return_sequences": 1, "return_dict_in_generate": False, "prompt_lookup_num_tokens": None}
"""Whatever a model's generation_config.json says: answers are read as one tensor of ids, a row for each prompt."""


class Answer(NamedTuple):
    """One answer of `generate_batches`.

    Attributes:
        question: its place among those given, from 0.
        text: all that was generated before the end token, without an empty block of reasoning (<think></think>); white
            space at its ends included.
        cut: whether the prompt's beginning was cut off.
    """

    question: int
    text: str
    cut: bool


def generate_batches(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    style: str = "auto",
    connection: str | None = None,
    batch_size: int = 16,
    max_prompt_tokens: int | None = None,
    **generate_options: Any,
) -> Iterator[list[Answer]]:
    """The answers of `generate_texts` batch by batch, as they are made: those to the longest prompts come first.

    Args:
        max_prompt_tokens: longer prompts, and English counterparts, lose their beginning.
    """
    if not questions:
        return
    encoder = PromptEncoder(tokenizer, style)
    rows_of_table = rows_of(model)
    prompts = _encode(encoder, questions, rows_of_table)
    english = _encode(encoder, _english_of(questions), rows_of_table) if connection == "english" else None
    device, pad = next(model.parameters()).device, padding_id(tokenizer, rows_of_table)
    connected = torch.tensor([not (isinstance(q, ParallelExample) and is_english(q.language)) for q in questions])
    has_connection = is_connected(model)
    options = {"pad_token_id": pad, "do_sample": False, **_ONE_PLAIN_ANSWER, **generate_options}
    if not {"max_new_tokens", "max_length", "generation_config"} & set(options):
        options["max_new_tokens"] = 64
    given = getattr(options.get("generation_config"), "eos_token_id", None)
    ends = listed(options.get("eos_token_id", given)) or end_ids(model, tokenizer)
    if ends:
        options["eos_token_id"] = ends
    own = getattr(model, "generation_config", None)
    if options.get("stop_strings") or getattr(own, "stop_strings", None):
        options["tokenizer"] = tokenizer  # by which transformers finds them
    if connection is not None and (has_connection or connection != "none"):
        options["connection"] = connection

    keep = slice(None if max_prompt_tokens is None else -max_prompt_tokens, None)
    new_tokens = options.get("max_new_tokens") or 0
    lengths = [len(ids[keep]) + new_tokens for ids in prompts]
    check_context(model, tokenizer, lengths, "prompts with the answers' max_new_tokens", "Shorten them, or lower it.")
    order = sorted(range(len(questions)), key=lambda i: -len(prompts[i]))  # longest first: memory fails early, not late
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = _padded([prompts[i][keep] for i in rows], pad, device)
        if english is not None:
            inputs |= _padded([english[i][keep] for i in rows], pad, device, "english_")
        if has_connection:
            inputs["connected"] = connected[rows].to(device)
        with torch.inference_mode():
            ids = model.generate(**inputs, **options)
        new = ids[:, inputs["input_ids"].shape[1] :]
        several = len(new) // len(rows)  # num_return_sequences: the first is the best
        spoken = [until_end(ids, ends) for ids in new[::several].tolist()]
        texts = map(without_empty_reasoning, tokenizer.batch_decode(spoken, skip_special_tokens=True))
        cut = [max_prompt_tokens is not None and len(prompts[i]) > max_prompt_tokens for i in rows]
        yield [Answer(*parts) for parts in zip(rows, texts, cut, strict=True)]


def generate(
    run: str,
    prompts: Sequence[str] | None = None,
    *,
    prompts_file: str | None = None,
    columns: dict[str, str | None] | None = None,
    output: str | None = None,
    overwrite: bool = False,
    connection: str | None = None,
    style: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    num_beams: int = 1,
    seed: int = 0,
) -> list[str]:
    """`pivotune generate`: answer prompts from arguments, a file or standard input.

    Args:
        run: a run folder, or any causal LM.
        prompts: the questions themselves.
        prompts_file: a file of questions instead: .txt, one per line, or JSON lines as in training (answers are not
            needed). Without either, standard input is read, one question per line. Empty lines are left out.
        columns: other names of fields in prompts_file, as data.columns in training: {name in the file: name here}.
        output: write JSON lines {"id", "prompt", "answer"} to this file instead of printing the answers, which may have
            several lines. Answers are kept in OUTPUT.part as they are made, and the same command goes on from there.
        overwrite: replace an existing output, and throw away the answers of an interrupted call with other options.
        connection: none, english (the file has English counterparts) or matrix.
        style: prompt style; None takes the one the run was trained with.
        chat_template_kwargs: arguments of the chat template, e.g. {"enable_thinking": false}; those that a run was
            trained with are in its own.
        batch_size: questions answered at a time.
        max_new_tokens: length limit of an answer, in tokens.
        temperature: 0 is greedy; above, answers are sampled.
        num_beams: beams of beam search; 1 is none.
        seed: of sampling.

    Returns:
        The answers, in the order of the prompts.
    """
    check_number("temperature", temperature, 0, why="; 0 is greedy")
    for option, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        check_number(option, value, 1, whole=True)
    check_seed("seed", seed)
    if style is not None:
        check_choice("style", style, STYLES)
    if output is not None:
        check_output_file("output", output, overwrite=overwrite)  # before standard input is waited for
    questions = _questions(prompts, prompts_file, columns)
    connection_mode(run, check_model(run), connection)
    if connection == "english":
        _english_of(questions)
    with nullcontext() if output is None else locked_file("output", output):
        file = None
        if output is not None:
            settings = {
                "set of prompts": _digest(questions, connection),
                "run": run,
                "state of the run": _state(Path(run)),
                "connection": connection,
                "style": style,
                "chat_template_kwargs": chat_template_kwargs,
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "num_beams": num_beams,
                "seed": seed,
            }
            file = AnswerFile(output, settings, overwrite=overwrite)
            if file.done:
                logger.warning(
                    "output: %s holds %d of %d answers; going on.", file.part, len(file.done), len(questions)
                )
        done = dict(file.done) if file else {}
        remaining = [number for number in range(len(questions)) if number not in done]
        model, tokenizer = load(run, connection, chat_template_kwargs=chat_template_kwargs)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        batches = generate_batches(
            model,
            tokenizer,
            [questions[number] for number in remaining],
            style=style or str(getattr(model, "pivotune_prompt_style", "auto")),
            connection=connection,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            **sampling,
        )
        count = -(-len(remaining) // batch_size)
        printer = _Printer()
        try:
            with tqdm(total=count, desc="generating", unit="batch", disable=len(remaining) <= batch_size) as progress:
                while True:
                    # Of each batch, so that a call that goes on draws what an uninterrupted one would have drawn.
                    torch.manual_seed(seed + len(done))
                    batch = next(batches, None)
                    if batch is None:
                        break
                    new = {remaining[answer.question]: answer.text.strip() for answer in batch}
                    done |= new
                    progress.update()
                    if file:
                        file.add(new.items())
                    else:
                        printer.print_next(done)
        except KeyboardInterrupt:
            if file and file.done:
                logger.warning("output: %s", file.kept)
            raise
        answers = [done[number] for number in range(len(questions))]
        if file:
            file.finish(_rows(questions, answers))
        return answers


class _Printer:
    """Prints answers in the order of the prompts, each as soon as those before it are there."""

    def __init__(self) -> None:
        self._next, self._lossy = 0, False

    def print_next(self, done: Mapping[int, str]) -> None:
        while self._next in done:
            answer = done[self._next]
            try:
                answer.encode(sys.stdout.encoding or "utf-8")
            except UnicodeEncodeError:
                if not self._lossy:
                    logger.warning(
                        "standard output is %s: letters that it lacks are printed as \\x..., \\u.... Set "
                        "PYTHONIOENCODING=utf-8, or write to a file with --output.",
                        sys.stdout.encoding,
                    )
                self._lossy = True
                answer = answer.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding)
            print(answer, flush=True)
            self._next += 1


def _rows(questions: Sequence[Question], answers: Sequence[str]) -> Iterator[dict[str, str]]:
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        identity = question.id if isinstance(question, ParallelExample) else str(number)
        yield {"id": identity, "prompt": prompt_only(question).question, "answer": answer}


def _digest(questions: Sequence[Question], connection: str | None) -> str:
    """Of all that is asked, and of the English sides where they are connected."""
    english = _english_of(questions) if connection == "english" else []
    asked = [(q.id if isinstance(q, ParallelExample) else None, prompt_only(q)) for q in questions]
    content = repr((asked, [prompt_only(question) for question in english]))
    return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:16]


_OF_A_MODEL = (".safetensors", ".tensors", ".bin", ".json", ".model", ".jinja")


def _state(run: Path) -> str | None:
    """Changes when the files of a run's model do; None for a model that is in no folder."""
    if not run.is_dir():
        return None
    paths = [path for path in run.iterdir() if path.suffix in _OF_A_MODEL and path.is_file()]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()[:16]


def _questions(
    prompts: Sequence[str] | None, prompts_file: str | None, columns: Mapping[str, str | None] | None
) -> list[Question]:
    if prompts and prompts_file:
        raise PivotuneError("prompts: given both as arguments and as prompts_file; choose one.")
    is_text = prompts_file is not None and prompts_file.lower().removesuffix(".gz").endswith(".txt")
    if columns and (is_text or not prompts_file):
        raise PivotuneError("columns: has no effect on plain text; it names the fields of a JSON or Parquet file.")
    lines: Iterable[tuple[str, str]]
    if prompts:
        lines = ((f"prompt {number}", prompt) for number, prompt in enumerate(prompts, start=1))
    elif prompts_file:
        try:
            if not is_text:
                return list(read_prompts(prompts_file, columns=columns))
            check_file(Path(prompts_file), "a file such as .txt or .jsonl")
        except DataError:
            raise
        except PivotuneError as error:
            kinds = "" if is_text else "; .txt holds one question per line"
            raise PivotuneError(f"prompts_file: {error}{kinds}.") from error
        lines = text_lines(read_lines(Path(prompts_file)), prompts_file)
    else:
        lines = _standard_input()
    questions: list[Question] = []
    for where, line in lines:
        if _is_undecoded(line):
            raise DataError(where, "malformed text", "is not in the encoding of this terminal", "give it in a file")
        if line.strip():
            questions.append(line)
    if not questions:
        raise PivotuneError(
            "prompts: there is none. Give them as arguments, with --prompts_file, or on standard input."
        )
    return questions


def _standard_input() -> Iterator[tuple[str, str]]:
    """The lines of standard input in its encoding, which is the terminal's or PYTHONIOENCODING."""
    if sys.stdin is None:  # closed by the caller
        return iter(())
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return text_lines((line.encode() for line in sys.stdin.read().split("\n")), "standard input")
    encoding = sys.stdin.encoding or "utf-8"
    return text_lines(buffer, "standard input", "utf-8" if encoding.lower() in ("ascii", "us-ascii") else encoding)


def _is_undecoded(text: str) -> bool:
    """Whether Python has kept bytes of an argument that it could not decode, as half surrogate pairs."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def _english_of(questions: Sequence[Question]) -> list[Question]:
    english: list[Question] = []
    for question in questions:
        if not isinstance(question, ParallelExample):
            raise PivotuneError(
                'connection: "english" needs the English counterpart of every prompt; give a JSON lines file whose '
                'rows have an "english" field, or use matrix.'
            )
        if question.english is None and not is_english(question.language):
            raise PivotuneError(f"{question.where}: field 'english' is missing, and connection is \"english\". Add it.")
        english.append(question.english or question.text)
    return english


def _encode(encoder: PromptEncoder, questions: Sequence[Question], rows_of_table: int) -> list[list[int]]:
    rendered = [
        encoder.render(prompt_only(q), q.where if isinstance(q, ParallelExample) else f"prompt {number}")
        for number, q in enumerate(questions, start=1)
    ]
    encoded = [one.prompt_ids for one in encoder.tokenize(rendered)]
    for one, ids in zip(rendered, encoded, strict=True):
        check_ids(rows_of_table, ids, one.where, encoder.tokenizer)
    return encoded


def _padded(rows: list[list[int]], pad: int, device: torch.device, prefix: str = "") -> dict[str, Tensor]:
    ids, mask = padded_ids(rows, pad, "left", device)
    return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}
