"""What a tokenizer and a model have to agree on: the tokens that end an answer, padding, the vocabulary, the context.

They come from different files, and published folders often disagree: the tokenizer's EOS is not the model's, a chat
template ends turns with a third token, words were added to the tokenizer and the embedding table stayed as it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import transformers
from torch import nn

from pivotune.anatomy import unwrap
from pivotune.data.prompts import PromptEncoder
from pivotune.errors import PivotuneError

logger = logging.getLogger(__name__)

SHOWN = 5


# Ends ----------------------------------------------------------------------------------------------------------------


def end_ids(model: nn.Module, tokenizer: Any, trained: Iterable[int] = ()) -> list[int]:
    """The tokens that end an answer: whatever tokenizer, chat template, model and its training say.

    Args:
        model: its config and generation_config are read.
        tokenizer: its EOS and the end of turn of its chat template.
        trained: what trained answers end with.

    Returns:
        Token ids of the embedding table, each once, the tokenizer's EOS first. Without the EOS of a config.json that is
        an ordinary word to the tokenizer: the default of transformers' configurations, kept by models with another one.
    """
    lm = unwrap(model)
    stated = listed(getattr(lm.config.get_text_config(), "eos_token_id", None))
    generation = listed(getattr(getattr(lm, "generation_config", None), "eos_token_id", None))
    turn = PromptEncoder(tokenizer).chat_end() if tokenizer.is_fast else None
    ends = [*listed(tokenizer.eos_token_id), *trained, *listed(turn), *generation, *stated]
    wrong = {token for token in stated if not _is_special(tokenizer, token)}
    wrong |= {token for token in ends if token >= rows_of(model)}
    return list(dict.fromkeys(token for token in ends if token not in wrong)) or stated


def _is_special(tokenizer: Any, token: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and not added.content.isspace())


def set_ends(model: nn.Module, tokenizer: Any, trained: Iterable[int] = ()) -> None:
    """Let the model's generate() stop at all of `end_ids`."""
    lm = unwrap(model)
    ends = end_ids(model, tokenizer, trained)
    stated = listed(getattr(lm.config.get_text_config(), "eos_token_id", None))
    if wrong := [token for token in stated if token not in ends]:
        logger.warning(
            "model: eos_token_id %s of config.json is the ordinary token %s to the tokenizer, and ends no answer.",
            *(wrong[0], _shown([str(tokenizer.convert_ids_to_tokens(wrong[0]))])),
        )
    lm.generation_config.eos_token_id = ends if len(ends) > 1 else next(iter(ends), None)


def align(model: nn.Module, tokenizer: Any, trained: Iterable[int] = ()) -> None:
    """Before training: let generation_config state all ends, and the tokenizer's BOS and padding.

    config gets what the tokenizer says, so that transformers.Trainer finds nothing to align: it knows one EOS, and of a
    method no generation_config. `settle` puts the union there when the model is saved.
    """
    set_ends(model, tokenizer, trained)
    lm = unwrap(model)
    generation, config = lm.generation_config, lm.config.get_text_config()
    for name in ("bos_token_id", "pad_token_id"):
        if (token := getattr(tokenizer, name)) is not None:
            setattr(generation, name, token)
        elif getattr(generation, name) is None:
            setattr(generation, name, getattr(config, name, None))
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))


def settle(model: nn.Module) -> None:
    """Before a model is saved: its config states the special tokens of its generation_config."""
    lm = unwrap(model)
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        setattr(lm.config.get_text_config(), name, getattr(lm.generation_config, name))


def until_end(ids: Sequence[int], ends: Iterable[int]) -> Sequence[int]:
    """What was generated before the first end."""
    ends = set(ends)
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def listed(ids: int | Sequence[int] | None) -> list[int]:
    """An eos_token_id, which may be one id, several or none, as a list.

    Raises:
        PivotuneError: it is something else.
    """
    found = [] if ids is None else [ids] if isinstance(ids, int) or not isinstance(ids, Sequence) else list(ids)
    if isinstance(ids, str) or not all(isinstance(one, int) for one in found):
        raise PivotuneError(f"eos_token_id: got {ids!r}; give a token id, or a list of them (generation_config.json).")
    return found


# Padding and the vocabulary ------------------------------------------------------------------------------------------


def rows_of(model: nn.Module) -> int:
    """Rows of the embedding table."""
    return int(unwrap(model).get_input_embeddings().weight.shape[0])


def fit_padding(tokenizer: Any, rows: int) -> None:
    """Give the tokenizer another padding token, where its own has no row in the embedding table of `rows`.

    Any token will do, for the attention mask hides it.
    """
    pad = tokenizer.pad_token_id
    if pad is None or pad < rows:
        return
    others = [*listed(tokenizer.eos_token_id), *tokenizer.all_special_ids, 0]
    fitting = tokenizer.convert_ids_to_tokens(next(token for token in others if token < rows))
    logger.warning(
        "tokenizer: its padding token %r has the id %d, and the embedding table %d rows; %r pads instead.",
        *(tokenizer.pad_token, pad, rows, fitting),
    )
    tokenizer.pad_token = fitting


def beyond(tokenizer: Any, rows: int) -> dict[int, str]:
    """The tokens that have no row in a table of `rows`: id -> token, in order."""
    if max(len(tokenizer) - 1, *tokenizer.added_tokens_decoder) < rows:
        return {}
    return dict(sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows))


def check_vocabulary(model: nn.Module, tokenizer: Any, name: Any) -> None:
    """Compare tokenizer and embedding table when a model is opened.

    Words that were added to the tokenizer may have no row: whoever asks with them is told (`check_ids`).

    Args:
        name: of the model, for messages.

    Raises:
        PivotuneError: the tokenizer is another model's: ordinary tokens of its vocabulary have no row.
    """
    rows = rows_of(model)
    missing = beyond(tokenizer, rows)
    _check_ordinary(missing, tokenizer, rows, name)
    missing.pop(tokenizer.pad_token_id, None)
    if missing:
        logger.warning(
            "%s: the tokenizer has added tokens without a row in the embedding table of %d rows: %s. A text with one "
            "of them is refused.",
            *(name, rows, _shown(missing.values())),
        )
    elif len(tokenizer) < 0.8 * rows:
        logger.warning(
            "%s: the tokenizer has %d tokens and the embedding table %d rows. If the answers make no sense, the "
            "tokenizer may be another model's.",
            *(name, len(tokenizer), rows),
        )


def _check_ordinary(missing: dict[int, str], tokenizer: Any, rows: int, name: Any) -> None:
    if ordinary := [token for number, token in missing.items() if number not in tokenizer.added_tokens_decoder]:
        raise PivotuneError(
            f"{name}: the tokenizer is another model's: its vocabulary has {len(tokenizer):,} tokens and the model's "
            f"embedding table {rows:,} rows, so that {len(ordinary):,} tokens ({_shown(ordinary)}) have none. "
            "Put the model's own tokenizer files into the folder."
        )


def check_ids(rows: int, ids: Iterable[int], where: str, tokenizer: Any = None) -> None:
    """Raise a PivotuneError for token ids that have no row in an embedding table of `rows`."""
    missing = sorted({token for token in ids if token >= rows})
    if missing:
        words = [str(token if tokenizer is None else tokenizer.convert_ids_to_tokens(token)) for token in missing]
        raise PivotuneError(
            f"{where}: the tokens {_shown(words)} have no row in the model's embedding table of {rows:,} rows: they "
            "were added to the tokenizer alone. Take the tokenizer that belongs to the model, or enlarge the table and "
            "save both: model.resize_token_embeddings(len(tokenizer))."
        )


def fit_vocabulary(model: nn.Module, tokenizer: Any, used: Iterable[int], name: Any, *, adapters: bool) -> str | None:
    """Before training: enlarge the embedding table where the data use tokens that have no row in it.

    Args:
        used: the token ids of the data, read only where the tokenizer has tokens without a row.
        name: of the model, for messages.
        adapters: whether only adapters are trained. They would leave the new rows as they began.

    Returns:
        What was done, as a sentence; None where nothing was.

    Raises:
        PivotuneError: the tokenizer is another model's, or new rows would be needed under adapters.
    """
    rows = rows_of(model)
    without_row = beyond(tokenizer, rows)
    _check_ordinary(without_row, tokenizer, rows, name)
    missing = {token: without_row[token] for token in sorted(without_row.keys() & set(used))} if without_row else {}
    if not missing:
        check_vocabulary(model, tokenizer, name)
        return None
    count = "1 token" if len(missing) == 1 else f"{len(missing)} tokens"
    words = f"the data use {count} without a row in the embedding table of {rows:,} rows"
    if adapters:
        raise PivotuneError(
            f"lora.r: {words} ({_shown(missing.values())}), and adapters cannot train new rows. Train fully "
            "(lora.r: 0), take the tokenizer that belongs to the model, or enlarge the table, train the rows and save "
            "the model first."
        )
    size = max(len(tokenizer), max(missing) + 1)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        unwrap(model).resize_token_embeddings(size)
    finally:
        transformers.logging.set_verbosity(verbosity)
    return (
        f"model: {words} ({_shown(missing.values())}). It was enlarged to {size:,} rows; the new ones begin near the "
        "mean of the old ones"
    )


def _shown(tokens: Iterable[str]) -> str:
    tokens = list(tokens)
    more = f", and {len(tokens) - SHOWN:,} more" if len(tokens) > SHOWN else ""
    return ", ".join(json.dumps(token, ensure_ascii=False) for token in tokens[:SHOWN]) + more


# The context ---------------------------------------------------------------------------------------------------------


def context_length(model: Any, tokenizer: Any) -> int | None:
    """How many tokens the model takes, prompt and answer together; None where nobody says a limit."""
    length = getattr(unwrap(model).config.get_text_config(), "max_position_embeddings", None)
    length = length or tokenizer.model_max_length
    return int(length) if length < 10**9 else None  # a tokenizer that knows no limit says 10**30


def within_context(model: Any, tokenizer: Any, max_length: int) -> int:
    """`max_length`, or what the model takes where that is less."""
    context = context_length(model, tokenizer)
    return max_length if context is None else min(max_length, context)


def check_context(model: Any, tokenizer: Any, lengths: Sequence[int], what: str, fix: str) -> None:
    """Warn of texts that are longer than the model's context, with their number.

    Args:
        lengths: tokens of each text.
        what: what the texts are.
        fix: what to do about it.

    Raises:
        PivotuneError: there are some, and the model has learnt one vector for each position, so none for these.
    """
    context = context_length(model, tokenizer)
    long = [length for length in lengths if context is not None and length > context]
    if context is None or not long:
        return
    message = (
        f"{what}: {len(long):,} of {len(lengths):,} are longer than the model's context of {context:,} tokens (the "
        f"longest: {max(long):,}). {fix}"
    )
    if _has_learnt_positions(model, context):
        raise PivotuneError(message)
    logger.warning("%s", f"{message} Beyond its context a model answers badly.")


def _has_learnt_positions(model: Any, context: int) -> bool:
    lm = unwrap(model)
    words = lm.get_input_embeddings()
    tables = [module for module in lm.modules() if isinstance(module, nn.Embedding) and module is not words]
    return any(context <= table.num_embeddings <= context + 2 for table in tables)  # OPT's begins at 2
