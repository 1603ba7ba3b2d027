"""Answers from a run: load it, ask it in batches.

    model, tokenizer = pivotune.load("runs/zh")
    pivotune.generate_texts(model, tokenizer, ["法国的货币是什么？"])

A CC-Tuning run comes back connected: `model.generate()` of transformers works as usual and uses the connection.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.logging import tqdm

from pivotune.anatomy import unwrap
from pivotune.checkpoint import TENSORS, check_model, load_run, read_info
from pivotune.connection import Connection, Mode, connect
from pivotune.data.collate import padding_id
from pivotune.data.examples import ParallelExample, Text, is_english
from pivotune.data.prompts import STYLES, PromptEncoder, prompt_only
from pivotune.data.sources import read_prompts
from pivotune.errors import PivotuneError, check_choice, check_number, check_seed

Question = str | Text | ParallelExample


def connection_mode(run: str | Path, info: Mapping[str, Any], connection: Mode | None) -> Mode:
    """none, english or matrix, found out without loading the model."""
    if connection is not None:
        check_choice("connection", connection, get_args(Mode))
    if "cc_tuning" not in info:
        if connection not in (None, "none"):
            raise PivotuneError(
                f"connection: got {connection!r}, but {run} was not trained with CC-Tuning. Leave the option out."
            )
        return "none"
    try:
        with safe_open(Path(run) / TENSORS, "pt") as tensors:
            has_matrix = "transform_matrix" in tensors.keys()  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise PivotuneError(f"{run}: {TENSORS} cannot be read: {error}") from error
    if connection == "matrix" and not has_matrix:
        raise PivotuneError(f"connection: got 'matrix', but {run} has no Transform Matrix. Choose english or none.")
    return connection or ("matrix" if has_matrix else "none")


def load(
    path: str | Path,
    connection: Mode | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
) -> tuple[Any, Any]:
    """The model of a run (or any causal LM folder or hub name) and its tokenizer, ready to generate.

    Args:
        path: a run folder of `pivotune train`, or what `AutoModelForCausalLM.from_pretrained` takes.
        connection: how a CC-Tuning run connects by default: none, english or matrix. None: matrix where one was
            fitted, else none.
        dtype: of the weights; "auto" keeps the saved one.
        device: where to put the model; a GPU if there is one by default.

    Raises:
        PivotuneError: no such run, a half-written one, or a connection that it does not have.
    """
    mode = connection_mode(path, read_info(path), connection)
    run = load_run(path, dtype=dtype, device=device)
    trained = run.connection_tensors()
    if trained is None:
        return run.model, run.tokenizer
    config, decision_maker, matrix = trained
    connect(run.model, Connection(run.model, config, decision_maker, matrix), mode)
    return run.model, run.tokenizer


def generate_texts(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    style: str = "auto",
    connection: Mode | None = None,
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
            max_new_tokens is 64 where no limit is given.
    """
    answers: list[str] = [""] * len(questions)
    batches = generate_batches(
        model, tokenizer, questions, style=style, connection=connection, batch_size=batch_size, **generate_options
    )
    count = -(-len(questions) // batch_size)
    for batch in tqdm(batches, total=count, desc="generating", unit="batch", disable=not (progress and questions)):
        for answer in batch:
            answers[answer.question] = answer.text.strip()
    return answers


class Answer(NamedTuple):
    """One answer of `generate_batches`.

    Attributes:
        question: its place among those given, from 0.
        text: all that was generated, white space at its ends included.
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
    connection: Mode | None = None,
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
    prompts = _encode(encoder, questions)
    english = _encode(encoder, _english_of(questions)) if connection == "english" else None
    device, pad = next(model.parameters()).device, padding_id(tokenizer)
    connected = torch.tensor([not (isinstance(q, ParallelExample) and is_english(q.language)) for q in questions])
    is_connected = "generate" in vars(unwrap(model))
    options = {"pad_token_id": pad, "do_sample": False, **generate_options}
    if not {"max_new_tokens", "max_length", "generation_config"} & set(options):
        options["max_new_tokens"] = 64
    if connection is not None and (is_connected or connection != "none"):
        options["connection"] = connection

    keep = slice(None if max_prompt_tokens is None else -max_prompt_tokens, None)
    order = sorted(range(len(questions)), key=lambda i: -len(prompts[i]))  # longest first: memory fails early, not late
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = _left_padded([prompts[i][keep] for i in rows], pad, device)
        if english is not None:
            pairs = _left_padded([english[i][keep] for i in rows], pad, device)
            inputs |= {f"english_{name}": tensor for name, tensor in pairs.items()}
        if is_connected:
            inputs["connected"] = connected[rows].to(device)
        with torch.inference_mode():
            ids = model.generate(**inputs, **options)
        new = ids[:, inputs["input_ids"].shape[1] :]
        several = len(new) // len(rows)  # num_return_sequences: the first is the best
        texts = tokenizer.batch_decode(new[::several], skip_special_tokens=True)
        cut = [max_prompt_tokens is not None and len(prompts[i]) > max_prompt_tokens for i in rows]
        yield [Answer(*parts) for parts in zip(rows, texts, cut, strict=True)]


def generate(
    run: str,
    prompts: Sequence[str] | None = None,
    *,
    prompts_file: str | None = None,
    output: str | None = None,
    connection: Mode | None = None,
    style: str | None = None,
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
            needed). Without either, standard input is read, one question per line.
        output: write JSON lines {"id", "prompt", "answer"} to this file instead of printing the answers.
        connection: none, english (the file has English counterparts) or matrix.
        style: prompt style; None takes the one the run was trained with.
        batch_size: questions answered at a time.
        max_new_tokens: length limit of an answer, in tokens.
        temperature: 0 is greedy; above, answers are sampled.
        num_beams: beams of beam search; 1 is none.
        seed: of sampling.

    Returns:
        The answers, in the order of the prompts.
    """
    questions = _questions(prompts, prompts_file)
    check_number("temperature", temperature, 0, why="; 0 is greedy")
    for option, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        check_number(option, value, 1, whole=True)
    check_seed("seed", seed)
    if style is not None:
        check_choice("style", style, STYLES)
    if output is not None and not Path(output).resolve().parent.is_dir():
        raise PivotuneError(f"output: the folder of {output} does not exist; create it first.")
    if connection == "english":
        _english_of(questions)
    connection_mode(run, check_model(run), connection)
    model, tokenizer = load(run, connection)
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    answers = generate_texts(
        model,
        tokenizer,
        questions,
        style=style or str(getattr(model, "pivotune_prompt_style", "auto")),
        connection=connection,
        batch_size=batch_size,
        progress=len(questions) > batch_size,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        **sampling,
    )
    if output is None:
        for answer in answers:
            print(answer)
    else:
        with open(output, "w", encoding="utf-8") as file:
            for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
                identity = question.id if isinstance(question, ParallelExample) else str(number)
                row = {"id": identity, "prompt": prompt_only(question).question, "answer": answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return answers


def _questions(prompts: Sequence[str] | None, prompts_file: str | None) -> list[Question]:
    if prompts and prompts_file:
        raise PivotuneError("prompts: given both as arguments and as prompts_file; choose one.")
    if prompts_file and not prompts_file.endswith(".txt"):
        return list(read_prompts(prompts_file))
    lines: Iterable[str]
    if prompts:
        lines = prompts
    elif prompts_file:
        path = Path(prompts_file)
        if not path.is_file():
            raise PivotuneError(f"prompts_file: {prompts_file} does not exist.")
        lines = path.read_text(encoding="utf-8").splitlines()
    else:
        lines = sys.stdin.read().splitlines()
    questions: list[Question] = [line for line in lines if line.strip()]
    if not questions:
        raise PivotuneError(
            "prompts: there is none. Give them as arguments, with --prompts_file, or on standard input."
        )
    return questions


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


def _encode(encoder: PromptEncoder, questions: Sequence[Question]) -> list[list[int]]:
    rendered = [
        encoder.render(prompt_only(q), q.where if isinstance(q, ParallelExample) else f"prompt {number}")
        for number, q in enumerate(questions, start=1)
    ]
    return [encoded.prompt_ids for encoded in encoder.tokenize(rendered)]


def _left_padded(rows: list[list[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
