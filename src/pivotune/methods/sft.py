"""Supervised fine-tuning: the ordinary loss, and nothing else.

On translated instruction data this is the TFT baseline of DFT (AAAI 2025); on English data alone it is their SFT.
"""

from __future__ import annotations

from pivotune.methods.base import Method


class SFT(Method):
    """`-log P(answer | question)` over the answer's tokens.

    Example:
        >>> method = SFT(AutoModelForCausalLM.from_pretrained("my-model"))
        >>> method(batch)["loss"].backward()
    """
