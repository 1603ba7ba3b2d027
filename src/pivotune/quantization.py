"""Quantised bases: adapters are trained on weights that are kept in 4 or 8 bits (QLoRA, Dettmers et al. 2023, arXiv
2305.14314; LLM.int8, Dettmers et al. 2022, arXiv 2208.07339), by bitsandbytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from pivotune.errors import PivotuneError, check_choice

if TYPE_CHECKING:
    from transformers import TrainingArguments

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
    check_sharding(option, training)
    if config.model.path.lower().endswith(".gguf"):
        raise PivotuneError(
            f"{option}: a GGUF file (model.path: {config.model.path}) is unpacked while it is loaded, and cannot be "
            "quantised then. Save it as a folder first, pivotune.checkpoint.open_model(FILE).save_pretrained(FOLDER) "
            "and its tokenizer (open_tokenizer) likewise, and give that folder; or leave the option out."
        )
    check_installed(option)


def check_sharding(what: str, training: TrainingArguments) -> None:
    """Raise a PivotuneError where a quantised model would be shared out over the processes."""
    if training.fsdp or training.deepspeed:
        sharding = "fsdp" if training.fsdp else "deepspeed"
        raise PivotuneError(
            f"{what}: cannot be sharded by training.{sharding}, because its weights are packed bytes. Leave "
            f"training.{sharding} out: each process then holds the quantised base."
        )


def check_modules(model: Any, names: Sequence[str], kind: Quantization | None = None) -> None:
    """Raise a PivotuneError where modules that are to be trained in full are packed.

    Args:
        names: of lora.modules_to_save.
        kind: how this model without weights will be quantised: all linear layers but the output head. None looks at the
            weights.
    """
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not any(f".{path}".endswith(f".{name}") for name in names):
            continue
        if not module.weight.is_floating_point() if kind is None else module is not head:
            name = path.rpartition(".")[2]
            raise PivotuneError(
                f"lora.modules_to_save: {name} is quantised{f' (model.quantization: {kind})' if kind else ''}, and "
                "packed weights cannot be trained themselves. Name it in lora.target_modules, for an adapter, or leave "
                "the base as it is; norms, the embedding table and the output head are not quantised and can be named."
            )


def check_installed(what: str) -> None:
    """Raise a PivotuneError where bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PivotuneError(f"{what}: needs the package bitsandbytes: pip install 'pivotune[quantization]'.")


def load_options(kind: Quantization, dtype: torch.dtype | str, device: torch.device | None = None) -> dict[str, Any]:
    """Options of `from_pretrained` that quantise a model while it is loaded.

    Args:
        dtype: that the weights are read in before they are quantised, of those that stay as they are, and of the
            products. In another one the quantised values are others.
        device: where the quantised weights lie; where None, a GPU if there is one. They stay there.
    """
    from transformers import BitsAndBytesConfig

    check_installed(f"model.quantization: {kind}")
    computed = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    four = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=computed)
    made = BitsAndBytesConfig(load_in_4bit=True, **four) if kind == "nf4" else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": made, "dtype": computed, "device_map": {"": device}}


def is_quantised(model: nn.Module) -> bool:
    """Whether its weights are packed, so that they cannot be moved or cast."""
    return any(getattr(module, "is_quantized", False) for module in model.modules())


def settle(model: nn.Module) -> None:
    """Take out two surprises of bitsandbytes on a CPU; elsewhere this changes nothing.

    With AVX-512-BF16, 4-bit weights are packed anew in evaluation mode, and their scales rounded on the way: a run that
    is evaluated would go on with another base. And 8-bit weights that are read between two products, as DoRA reads
    them, come back without their scales, which then would replace those that the layer has kept.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
        if hasattr(module, "init_8bit_state"):
            module.register_forward_pre_hook(_keep_scales)


def _keep_scales(layer: Any, _: object) -> None:
    if layer.weight.SCB is None:  # the layer has its own
        layer.weight.CB = None


def in_dtype(model: Any, dtype: torch.dtype | str) -> Any:
    """The model with its products, and all weights that are not packed, in this type; the packed values stay."""
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for parameter in model.parameters():  # no buffer: transformers keeps frequencies in float32
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(wanted)
    for module in model.modules():
        if hasattr(module, "quant_state") and hasattr(module, "compute_dtype"):
            module.compute_dtype = wanted
    return model


def dequantised(model: Any, dtype: torch.dtype | str = torch.float32) -> Any:
    """The model with ordinary weights, whose values are those that the packed ones stand for.

    Args:
        dtype: of all weights in the end. They are dequantised in float32.

    Raises:
        PivotuneError: transformers cannot dequantise it.
    """
    try:
        model = model.dequantize(dtype=torch.float32)
    except (NotImplementedError, ValueError, TypeError) as error:
        method = getattr(model, "quantization_method", None)
        raise PivotuneError(
            f"its weights are quantised ({getattr(method, 'value', method)}), and transformers cannot dequantise them. "
            "An adapter on it can be used beside it, as PEFT does, but not merged; train on the model that it was made "
            "from instead."
        ) from error
    forget(model)
    return in_dtype(model, dtype)


_MARKS = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""What transformers notes on a model that is quantised, and PEFT reads."""


def carry_over(whole: Any, part: Any) -> None:
    """Note on a part of a quantised model that it is quantised."""
    for name in _MARKS:
        if name in vars(whole):
            setattr(part, name, vars(whole)[name])
    if getattr(whole.config, "quantization_config", None) is not None:
        part.config.quantization_config = whole.config.quantization_config


def forget(model: Any) -> None:
    """What transformers notes about a quantised model: the weights are ordinary ones now, and are to be saved."""
    for name in _MARKS:
        vars(model).pop(name, None)
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
