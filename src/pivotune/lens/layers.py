"""`pivotune layers`: which layers of a model to supervise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pivotune.checkpoint import anatomy_of, load_run
from pivotune.data import read_prompts
from pivotune.data.languages import read_languages
from pivotune.data.prompts import STYLES
from pivotune.errors import check_choice, check_number, check_seed
from pivotune.files import check_output_file
from pivotune.lens.choice import READERS, Layers, choose_layers, stem, table, write_layers
from pivotune.lens.survey import TOKENS


def layers(
    model: str,
    *,
    data: str,
    language: str | None = None,
    columns: dict[str, str | None] | None = None,
    output: str | None = None,
    overwrite: bool = False,
    style: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    limit: int = 256,
    tokens: int = TOKENS,
    batch_size: int = 8,
    max_length: int = 512,
    seed: int = 0,
    reader: str = "logit_lens",
) -> Layers:
    """`pivotune layers`: entropy, MEXA and reading of English per layer, and the layers to supervise.

    Args:
        model: a run folder, or any causal LM.
        data: examples as in training; their questions are read. English counterparts are what MEXA and the reading of
            English need (English answers too, but they may be missing); they and English rows make the contrast.
        language: read only this language; all but English by default.
        columns: other names of fields, as data.columns in training: {name in the file: name here}.
        output: write this path with .json, .png and .svg: curves, layers and plot.
        overwrite: replace files that are there already.
        style: prompt style: auto, alpaca, chat or plain; by default the one that a run was trained with.
        chat_template_kwargs: arguments of the chat template, e.g. {"enable_thinking": false}; those that a run was
            trained with are in its own.
        limit: how many examples to draw at random; 0 takes all.
        tokens: how many tokens the head reads for each curve at each layer, drawn at random; 0 reads all.
        batch_size: prompts per forward pass.
        max_length: tokens of a prompt that are read.
        seed: of the drawing and of the bootstrap.
        reader: of the English question and answer: logit_lens; or tuned_lens, as in training, fitted at every layer.

    Returns:
        What was found, which is also printed.
    """
    check_number("limit", limit, 0, whole=True, why="; 0 takes all examples")
    check_number("tokens", tokens, 0, whole=True, why="; 0 reads all tokens")
    check_number("batch_size", batch_size, 1, whole=True)
    check_number("max_length", max_length, 1, whole=True)
    check_seed("seed", seed)
    check_choice("reader", reader, READERS)
    if style is not None:
        check_choice("style", style, STYLES)
    if output is not None:
        for ending in ("json", "png", "svg"):
            check_output_file("output", f"{stem(output)}.{ending}", overwrite=overwrite, new_folder=True)
    if language is not None:
        (language,) = read_languages("language", [language])
    anatomy_of(model)
    examples = read_prompts(data, columns=columns)
    run = load_run(model, chat_template_kwargs=chat_template_kwargs)
    found = choose_layers(
        run.model,
        run.tokenizer,
        examples,
        language=language,
        style=style or str(run.model.pivotune_prompt_style),
        limit=limit or None,
        tokens=tokens or None,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        reader=reader,
        progress=True,
    )
    print(table(found))
    if output is not None:
        files = write_layers(found, output, title=f"{Path(model).name}, {language or 'all but English'}")
        print(f"Written: {', '.join(map(str, files))}")
    return found
