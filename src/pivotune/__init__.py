"""Pivotune: fine-tune English-centric LLMs for other languages by supervising and connecting what happens inside.

Here are the names that most scripts need, the options of every objective in `pivotune.objectives` among them.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where it is installed, PEFT imports it; on some CPUs it then complains of a kernel that is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# In 8 bits every product of every layer says that its inputs are rounded to float16; it has nothing else to say.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

_HOME = {
    "PivotuneError": "pivotune.errors",
    "RunConfig": "pivotune.config",
    "ModelConfig": "pivotune.config",
    "DataConfig": "pivotune.config",
    "LoraOptions": "pivotune.config",
    "TrainingOptions": "pivotune.config",
    "train": "pivotune.training",
    "load": "pivotune.generation",
    "generate_texts": "pivotune.generation",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    # Resolved on first use: `import pivotune` and `pivotune --help` need not wait for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name.endswith("Config"):
        for objective in import_module("pivotune.objectives").OBJECTIVES.values():
            if objective.Options.__name__ == name:
                return objective.Options
    raise AttributeError(f"module 'pivotune' has no attribute {name!r}")
