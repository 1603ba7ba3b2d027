"""The tuned lens as the reader of the logits signal: fitted once before training, on texts of the training data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from pivotune.distributed import on_first_process
from pivotune.errors import PivotuneError
from pivotune.lens.tuned import TunedLens, fit_texts, fit_tuned_lens
from pivotune.objectives.base import BeforeTraining
from pivotune.objectives.deep_supervision.settle import question_of
from pivotune.quantization import on_device


def fit_reader(reader: TunedLens, before: BeforeTraining) -> dict[str, Any]:
    """Fill the reader, the same on every rank; what `pivotune.json` should say of it. A resumed run has its maps in the
    checkpoint, where they are restored from."""
    if before.record is not None:
        return {"tuned_lens": before.record[1].get("tuned_lens")}

    def fit() -> tuple[dict[str, Any], Tensor, Tensor]:
        model, args, home = before.model, before.args, reader.weight.device
        texts = fit_texts(before.rows, args.seed, question_of)
        try:
            bar = tqdm(desc="fitting the tuned lens", unit="text", disable=args.disable_tqdm)
            with bar, on_device(model, args.device):
                found = fit_tuned_lens(
                    model,
                    reader.to(args.device),
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
            reader.to(home)
        print(found, flush=True)
        return found.as_dict(), reader.weight.cpu(), reader.bias.cpu()

    record, weight, bias = on_first_process(before.args, fit)
    reader.weight.copy_(weight)
    reader.bias.copy_(bias)
    return {"tuned_lens": record}
