"""The tuned lens as the reader of the logits signal: fitted once before training, on texts of the training data."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from pivotune.distributed import on_first_process
from pivotune.errors import PivotuneError
from pivotune.lens.tuned import FIT_TOKENS, HELD_OUT_TOKENS, FitText, TunedLens, fit_tuned_lens
from pivotune.objectives.base import BeforeTraining


def fit_reader(reader: TunedLens, before: BeforeTraining) -> dict[str, Any]:
    """Fill the reader, the same on every rank; what `pivotune.json` should say of it. A resumed run has its maps in the
    checkpoint, where they are restored from."""
    if before.record is not None:
        return {"tuned_lens": before.record[1].get("tuned_lens")}

    def fit() -> tuple[dict[str, Any], Tensor, Tensor]:
        model, args = before.model, before.args
        home = next(model.parameters()).device
        texts = fit_texts(before.rows, args.seed)
        try:
            lens = reader.to(args.device)
            with tqdm(desc="fitting the tuned lens", unit="text", disable=args.disable_tqdm) as bar:
                found = fit_tuned_lens(
                    model.to(args.device),
                    lens,
                    texts,
                    batch_size=args.per_device_eval_batch_size,
                    seed=args.seed,
                    progress=bar.update,
                )
        except torch.OutOfMemoryError as error:
            raise PivotuneError(
                "deep_supervision.reader: tuned_lens is fitted on one device, and the whole model does not fit on it. "
                "Lower training.per_device_eval_batch_size, or take reader: logit_lens."
            ) from error
        finally:
            model.to(home)
            reader.to(home)
        print(found, flush=True)
        return found.as_dict(), lens.weight.cpu(), lens.bias.cpu()

    record, weight, bias = on_first_process(before.args, fit)
    reader.weight.copy_(weight)
    reader.bias.copy_(bias)
    return {"tuned_lens": record}


def fit_texts(rows: Any, seed: int) -> list[FitText]:
    """Texts of the kinds that are read in training, one of each drawn row, so that no text is fitted and tested on."""
    drawn = random.Random(seed).sample(range(len(rows)), min(len(rows), (FIT_TOKENS + HELD_OUT_TOKENS) // 4))
    return [_text(rows[number], turn) for turn, number in enumerate(drawn)]


def _text(row: Mapping[str, Any], turn: int) -> FitText:
    """The target text or, in turn where there is English, its prompt with the English question or with the English
    answer, or the English text."""
    ids, prompt = list(row["input_ids"]), row["prompt_length"]
    if row["english_prompt_ids"] is None or turn % 4 == 0:
        return FitText(ids, row["question_start"])
    start, end = row["english_question_start"], row["english_question_end"]
    english, answer = list(row["english_prompt_ids"]), list(row["english_answer_ids"])
    if turn % 4 == 1:
        return FitText(ids[:prompt] + english[start:end], prompt - 1)
    if turn % 4 == 2:
        return FitText(ids[:prompt] + answer, prompt - 1)
    return FitText(english + answer, start)
