"""Whether tensors hold numbers: no NaN, no infinity. In memory, on all ranks alike, and in the files of a checkpoint.

The cost is one pass over the tensors at memory speed (about a second per billion values on one CPU core, milliseconds
on a GPU) without a copy of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from pivotune.errors import PivotuneError

Named = Iterable[tuple[str, Tensor]]

OPTIMIZER = ("optimizer.pt", "optimizer.bin")
"""Where transformers.Trainer and accelerate keep the optimizer's state in one file."""


def broken(tensor: Tensor) -> Tensor:
    """Whether a tensor (under FSDP2, this rank's part of it) has a NaN or an infinity: a bool on its device.

    A number whose square is infinite (in float32 or wider) counts as infinite: no norm survives it, and a model of such
    weights answers with zeros or NaN.
    """
    tensor = _local(tensor)
    if not tensor.is_floating_point() or not tensor.numel():
        return torch.zeros((), dtype=torch.bool, device=tensor.device)
    if tensor.element_size() == 1:  # float8 knows no such arithmetic
        tensor = tensor.float()
    ends = torch.stack(torch.aminmax(tensor))
    return ~ends.to(torch.promote_types(ends.dtype, torch.float32)).square().isfinite().all()  # both pass a NaN on


def broken_names(named: Named, reduce: Callable[[Tensor], Tensor] = lambda flags: flags) -> list[str]:
    """Names of the tensors that are not finite.

    Args:
        named: the tensors; on several ranks, the same names in the same order.
        reduce: sums (N,) over all ranks, so that they agree on the answer.
    """
    names, flags = [], []
    for name, tensor in named:
        names.append(name)
        flags.append(broken(tensor))
    if not names:
        return []
    counts = reduce(torch.stack([flag.to(flags[0].device) for flag in flags]).int())
    return [name for name, count in zip(names, counts.tolist(), strict=True) if count]


def check_finite(where: str, named: Named) -> None:
    """Raise a PivotuneError where tensors that were loaded are not finite."""
    wrong = broken_names(named)
    if wrong:
        raise PivotuneError(f"{where}: has NaN or infinity in {listed(wrong)}. Use a sound copy.")


def any_broken(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether one of the tensors is not finite, as a bool on `device`."""
    flags = [broken(tensor).to(device) for tensor in tensors]
    return torch.stack(flags).any() if flags else torch.zeros((), dtype=torch.bool, device=device)


def problem_in_files(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint's numbers, in words; None where its tensors are finite.

    Reads every weight and, where it lies in one file, the optimizer's state; both once, a tensor at a time.
    """
    folder = Path(folder)
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.tensors")]):
        try:
            with safe_open(file, framework="pt") as content:
                wrong = broken_names((name, content.get_tensor(name)) for name in content.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            return f"{file.name} cannot be read ({error})"
        if wrong:
            return f"{file.name} has NaN or infinity in {listed(wrong)}"
    for file in (folder / name for name in OPTIMIZER):
        if not file.is_file():
            continue
        try:
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # zip, pickle and torch each have their own
            return f"{file.name} cannot be read ({_first_line(error)})"
        if wrong := broken_names(_nested(content.get("state", {}), "state")):
            return f"{file.name} has NaN or infinity in {listed(wrong)}"
    return None


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and 7 more`."""
    return " and ".join(names) if len(names) < 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def without_nan(content: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def checksums(tensors: Iterable[Tensor]) -> list[Tensor]:
    """A number per tensor (this rank's part of it) that any change of its bits changes."""
    return [_checksum(_local(tensor.detach())) for tensor in tensors]


def _checksum(tensor: Tensor) -> Tensor:
    content = tensor.contiguous().reshape(-1).view(torch.uint8)
    whole = content.numel() // 8 * 8
    return content[:whole].view(torch.int64).sum() + content[whole:].sum()


def _nested(content: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if torch.is_tensor(content):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _nested(value, f"{name}.{key}")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
