"""The one place that knows architectures.

Everything else in Pivotune speaks of decoder layers 1..L, their feed-forward outputs, the final norm and the output
head; this file says where each family of the transformers library keeps them. To add a family, add a line to
`FAMILIES` and a case to `tests/families.py`, whose tests then prove it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from pivotune.compat import inside_compiled
from pivotune.errors import PivotuneError

Site = Literal["hidden", "attention", "feed_forward"]


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its parts, as attribute paths.

    Attributes:
        decoder: from the causal LM to the module that embeds, runs the layers and applies the final norm.
        embed, layers, norm: from the decoder to the token embedding, the layer list and the final norm.
        head: from the causal LM to the output projection (`W_out` of the papers).
        attention, feed_forward: from a layer to the modules whose outputs that layer adds to the residual stream.
            Families with a norm behind the block (Gemma-2, OLMo-2) name that norm: its output, not the raw block's, has
            the scale of the residual stream.
        logit_scale: attribute of the causal LM that multiplies its logits, if the family has one.
    """

    decoder: str = "model"
    embed: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    feed_forward: str = "mlp"
    logit_scale: str | None = None


_LLAMA_LAYOUT = Family()
_POST_NORM_LAYOUT = Family(attention="post_attention_layernorm", feed_forward="post_feedforward_layernorm")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA_LAYOUT,
    "mistral": _LLAMA_LAYOUT,
    "qwen2": _LLAMA_LAYOUT,
    "qwen3": _LLAMA_LAYOUT,
    "phi3": _LLAMA_LAYOUT,
    "gemma": _LLAMA_LAYOUT,
    "gemma2": _POST_NORM_LAYOUT,
    "gemma3_text": _POST_NORM_LAYOUT,
    "olmo2": _POST_NORM_LAYOUT,
    "cohere": Family(logit_scale="logit_scale"),
    "gpt_neox": Family(decoder="gpt_neox", embed="embed_in", norm="final_layer_norm", attention="attention"),
}

TEXT_PARTS = {"gemma3": "gemma3_text"}
"""Models for text and pictures, whose text part is a model of its own: here, only that part is opened and saved."""


def text_part(model: Any) -> Any:
    """The text part of one of `TEXT_PARTS`, as a causal LM that shares its parameters."""
    config = model.config.get_text_config(decoder=True)
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
    text.model, text.lm_head, text.config = model.model.language_model, model.lm_head, config
    text.generation_config = model.generation_config
    config.name_or_path = model.config.name_or_path
    return text.train(model.training)


def unwrap(model: Any) -> Any:
    """The causal LM inside torch.compile, DistributedDataParallel and PEFT wrappers, in whatever order."""
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            raise PivotuneError(
                f"model: {config.peft_type.value} puts virtual tokens in front of every text, and the methods count "
                "tokens from the prompt's start. Use LoRA or another adapter that keeps the text as it is."
            )
    while True:
        if (inside := inside_compiled(model)) is not None:
            model = inside
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        else:
            return model


class Anatomy:
    """The parts of one causal language model.

    Parts are looked up each time they are asked for, because PEFT and FSDP2 replace modules after construction.

    Args:
        model: a decoder-only causal LM of transformers, possibly wrapped by PEFT, torch.compile or DDP. The parts of a
            compiled model are the original, uncompiled ones.

    Raises:
        PivotuneError: the architecture is unknown (the message lists the parts that the usual layout lacks), or PEFT
            prepends virtual tokens.
    """

    def __init__(self, model: nn.Module):
        self.lm: Any = unwrap(model)
        config = getattr(self.lm, "config", None)
        self.model_type: str = getattr(config, "model_type", type(self.lm).__name__)
        if self.model_type not in FAMILIES:
            raise PivotuneError(self._describe_unknown())
        self.family = FAMILIES[self.model_type]
        if missing := self._missing(self.family):
            raise PivotuneError(
                f"model: {type(self.lm).__name__} calls itself '{self.model_type}' but lacks {', '.join(missing)}. "
                "Load it with AutoModelForCausalLM, without a custom model class."
            )
        self.num_layers = len(self.layers)
        self.hidden_size: int = self.lm.config.hidden_size
        self.vocab_size: int = self.lm.config.vocab_size
        self.softcap: float | None = getattr(self.lm.config, "final_logit_softcapping", None)

    def _missing(self, family: Family) -> list[str]:
        paths = [family.decoder, family.head]
        paths += [f"{family.decoder}.{part}" for part in (family.embed, family.layers, family.norm)]
        missing = [path for path in paths if _get(self.lm, path) is None]
        layers = _get(self.lm, f"{family.decoder}.{family.layers}")
        if layers is not None and len(layers):
            parts = (part for part in (family.attention, family.feed_forward) if _get(layers[0], part) is None)
            missing += [f"{family.decoder}.{family.layers}[i].{part}" for part in parts]
        return missing

    def _describe_unknown(self) -> str:
        missing = self._missing(_LLAMA_LAYOUT)
        if missing:
            found = f"Of the usual layout it lacks: {', '.join(missing)}."
        else:
            found = "It has every part of the usual layout, but its scales and norms have not been checked."
        return (
            f"model: architecture '{self.model_type}' ({type(self.lm).__name__}) is not known to Pivotune. {found} "
            f"Known: {', '.join(sorted(FAMILIES))}. To add it, describe it in pivotune/anatomy.py (FAMILIES) and add "
            "a case to tests/families.py."
        )

    # The parts -------------------------------------------------------------------------------------------------

    @property
    def decoder(self) -> nn.Module:
        return attrgetter(self.family.decoder)(self.lm)

    @property
    def embed(self) -> nn.Module:
        return attrgetter(self.family.embed)(self.decoder)

    @property
    def layers(self) -> nn.ModuleList:
        return attrgetter(self.family.layers)(self.decoder)

    @property
    def norm(self) -> nn.Module:
        return attrgetter(self.family.norm)(self.decoder)

    @property
    def head(self) -> nn.Module:
        return attrgetter(self.family.head)(self.lm)

    @property
    def tied(self) -> bool:
        """Whether the output head is the matrix of the input embeddings."""
        return getattr(self.head, "weight", None) is getattr(self.embed, "weight", 0)

    def layer(self, number: int) -> nn.Module:
        """Decoder layer `number`, counted 1..L as the papers do."""
        return self.layers[number - 1]

    def site(self, name: Site, number: int) -> nn.Module:
        """The module whose output is what `name` says of layer `number` (1..L): `hidden`, the residual stream behind
        the layer; `attention` or `feed_forward`, what that part of the layer adds to the stream."""
        layer = self.layer(number)
        return layer if name == "hidden" else attrgetter(getattr(self.family, name))(layer)

    def check_layer(self, value: Any, option: str) -> int:
        """`value` as a layer number of this model, or an error that names `option` and the range."""
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not 1 <= value <= self.num_layers:
            raise PivotuneError(
                f"{option}: got {value!r}, but this {self.model_type} model has decoder layers 1..{self.num_layers} "
                "(1 is the first, as in the papers). Choose a number in that range."
            )
        return int(value)

    # What the parts compute ------------------------------------------------------------------------------------

    def embeddings(self, input_ids: Tensor) -> Tensor:
        """`h_0`: token embeddings as layer 1 receives them, (..., T) -> (..., T, d)."""
        return self.embed(input_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits for final, normed states (..., d) -> (..., V): head, scale and soft-cap."""
        return self._rescale(self.head(hidden))

    def frozen_lens(self, hidden: Tensor, *, final_norm: bool = True) -> Tensor:
        """The logit lens: logits that `W_out` reads from residual-stream states (..., d) -> (..., V).

        The final norm (if asked for) and the head take part in the forward pass only: gradients reach `hidden` and
        neither module's parameters (DFT, strict signal). At layer L with the norm this is the model's own output.
        """
        if final_norm:
            hidden = functional_call(self.norm, _detached(self.norm), (hidden,))
        return self._rescale(functional_call(self.head, _detached(self.head), (hidden,)))

    def _rescale(self, logits: Tensor) -> Tensor:
        if self.family.logit_scale is not None:
            logits = logits * getattr(self.lm, self.family.logit_scale)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    @contextmanager
    def truncated(self, num_layers: int) -> Iterator[None]:
        """Within this context the decoder runs only layers 1..num_layers (then the final norm)."""
        if num_layers == self.num_layers:
            yield
            return
        path, _, name = self.family.layers.rpartition(".")
        parent = attrgetter(path)(self.decoder) if path else self.decoder
        whole = self.layers
        setattr(parent, name, whole[:num_layers])
        try:
            yield
        finally:
            setattr(parent, name, whole)


def _get(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name, None)
    return root


def _detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}
