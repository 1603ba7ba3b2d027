"""Quantised bases: adapters are trained on weights that are kept in 4 or 8 bits (QLoRA, Dettmers et al. 2023, arXiv
2305.14314; LLM.int8, Dettmers et al. 2022, arXiv 2208.07339), by bitsandbytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from pivotune.errors import PivotuneError, check_choice

if TYPE_CHECKING:
    from pivotune.config import RunConfig

Quantization = Literal["nf4", "int8"]
"""nf4: 4-bit NormalFloat, its scales quantised too. int8: 8 bits, outliers of the activations apart."""


def check(config: RunConfig) -> None:
    """Raise a PivotuneError where a run asks for a quantised base that cannot be had, or not in this company."""
    kind, training = config.model.quantization, config.training
    if kind is None:
        return
    option = f"model.quantization: {kind}"
    check_choice("model.quantization", kind, get_args(Quantization))
    if not config.lora.r:
        raise PivotuneError(
            f"{option}: quantised weights cannot be trained themselves. Train adapters (lora.r: 16, say), or leave the "
            "option out."
        )
    if training.fsdp or training.deepspeed:
        sharding = "fsdp" if training.fsdp else "deepspeed"
        raise PivotuneError(
            f"{option}: cannot be sharded by training.{sharding}, because its weights are packed bytes. Leave "
            f"training.{sharding} out: each process then holds the quantised base."
        )
    check_installed(option)


def check_installed(what: str) -> None:
    """Raise a PivotuneError where bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PivotuneError(f"{what}: needs the package bitsandbytes: pip install 'pivotune[quantization]'.")


def load_options(kind: Quantization, dtype: torch.dtype | str, device: torch.device | None = None) -> dict[str, Any]:
    """Options of `from_pretrained` that quantise a model while it is loaded.

    Args:
        dtype: of the weights that stay as they are, and of the products; auto is float32.
        device: where the quantised weights lie; where None, a GPU if there is one. They stay there.
    """
    from transformers import BitsAndBytesConfig

    check_installed(f"model.quantization: {kind}")
    given = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    computed = torch.float32 if given == "auto" else given
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    four = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=computed)
    made = BitsAndBytesConfig(load_in_4bit=True, **four) if kind == "nf4" else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": made, "dtype": computed, "device_map": {"": device}}


def of_record(info: Mapping[str, Any]) -> Quantization | None:
    """How the base of this run was quantised, as `pivotune.json` says."""
    return info.get("quantization")


def is_quantised(model: nn.Module) -> bool:
    """Whether its weights are packed, so that they cannot be moved or cast."""
    return any(getattr(module, "is_quantized", False) for module in model.modules())


def leave_as_it_is(model: nn.Module) -> None:
    """On CPUs with AVX-512-BF16, bitsandbytes packs 4-bit weights anew in evaluation mode, and rounds their scales on
    the way: a run that is evaluated would go on with another base."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def dequantised(model: Any) -> Any:
    """The model with ordinary weights, whose values are those that the packed ones stand for."""
    model = model.dequantize()
    forget(model)
    return model


def forget(model: Any) -> None:
    """What transformers notes about a quantised model: the weights are ordinary ones now, and are to be saved."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


@contextmanager
def on_device(module: nn.Module, device: torch.device | str) -> Iterator[nn.Module]:
    """The module on this device, and back where it was; a quantised one is on its device already."""
    if is_quantised(module):
        yield module
        return
    home = next(module.parameters()).device
    try:
        yield module.to(device)
    finally:
        module.to(home)
