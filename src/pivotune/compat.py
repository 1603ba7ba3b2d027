"""The one place that leans on private names of other libraries.

`PRIVATE` lists each name with its reason. The functions below wrap what can be wrapped. What subclasses of theirs
override or call stays with them, and is listed all the same. `tests/test_compat.py` tests each name, and fails where a
private name of another library stands in a file that the table does not allow it in.

Modules that override call `check` with their own name when they are imported: a method that the library does not call
any more would be passed over without a word. A public name that has moved needs no such care: its import fails and says
so.
"""

from __future__ import annotations

import inspect
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

from pivotune.errors import PivotuneError

logger = logging.getLogger(__name__)

How = Literal["overridden", "called", "read", "set"]


@dataclass(frozen=True)
class Private:
    """A private name of another library.

    Attributes:
        owner: the class or module that has it, as it is imported: transformers.Trainer.
        name: of the attribute.
        how: what we do with it: override it in a subclass; call, read or set it.
        where: our module that does.
        why: what it is needed for, after "to".
        look: at what, when it has moved.
        arguments: of an overridden method, all; of a called one, those that we give.
        in_instances: it exists only in objects, so that a class cannot tell whether it is there.
    """

    owner: str
    name: str
    how: How
    where: str
    why: str
    look: str
    arguments: tuple[str, ...] = ()
    in_instances: bool = False

    @property
    def library(self) -> str:
        return self.owner.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"

    @property
    def lost(self) -> str:
        """What to say where it has moved."""
        used = {"overridden": "overrides", "called": "calls", "read": "reads", "set": "sets"}[self.how]
        return f"{self.where} {used} it to {self.why}. Look at {self.look}."


_TRAINER, _HFLM = "transformers.Trainer", "lm_eval.models.huggingface.HFLM"
_PREFILL = Private(
    "transformers.GenerationMixin",
    "_prefill",
    "called",
    "pivotune.compat",
    "connect at the prompt's last token, between the cache and the first answer token",
    "GenerationMixin._sample and _beam_search: where the prompt passes through the model",
    ("input_ids", "generation_config", "model_kwargs", "is_first_iteration"),
)
_ENCODE_PAIR = Private(
    "lm_eval.api.model.TemplateLM",
    "_encode_pair",
    "called",
    "pivotune.compat",
    "count the tokens of a context and an option as the harness does",
    "TemplateLM.loglikelihood: where it makes tokens of texts",
    ("context", "continuation"),
)
_TQDM = Private(
    "lm_eval.api.task",
    "tqdm",
    "set",
    "pivotune.compat",
    "hide a progress bar that would come with every batch",
    "Task.build_all_requests: which bar it shows, and whether an option turns it off",
)
_NO_SPLIT = Private(
    "transformers.PreTrainedModel",
    "_no_split_modules",
    "read",
    "pivotune.compat",
    "let FSDP wrap each decoder layer: accelerate reads the same name on our Method",
    "fsdp2_prepare_auto_wrap_policy in accelerate.utils.fsdp_utils: what it asks of a model",
)
_LAST_RATES = Private(
    "torch.optim.lr_scheduler.LRScheduler",
    "_last_lr",
    "set",
    "pivotune.compat",
    "make a resumed run log the learning rate that it goes on with, not the one of the checkpoint",
    "LRScheduler.get_last_lr: what it returns",
    in_instances=True,
)
_COUNT_OF_GPUS = Private(
    "transformers.TrainingArguments",
    "_n_gpu",
    "set",
    "pivotune.compat",
    "keep Trainer from wrapping the method in nn.DataParallel where several GPUs are visible",
    "TrainingArguments.n_gpu: where it takes the number from",
    in_instances=True,
)
_COMPILED = Private(
    "torch._dynamo.OptimizedModule",
    "_orig_mod",
    "read",
    "pivotune.compat",
    "find the model inside torch.compile",
    "torch._dynamo.eval_frame.OptimizedModule: where it keeps the module; is_compiled_module of accelerate",
    in_instances=True,
)
_REPLAYS = (
    Private(
        "transformers.modeling_layers.GradientCheckpointingLayer",
        "_gradient_checkpointing_func",
        "set",
        "pivotune.compat",
        "have the hooks of a layer in place again when the backward pass replays it",
        "PreTrainedModel._set_gradient_checkpointing and GradientCheckpointingLayer: which function replays",
        in_instances=True,
    ),
    Private(
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper",
        "checkpoint_fn",
        "set",
        "pivotune.compat",
        "have the hooks of a layer in place again when the backward pass replays it, under FSDP's own checkpointing",
        "CheckpointWrapper.forward: which function replays",
        in_instances=True,
    ),
)
_ATTENTION = Private(
    "transformers.PretrainedConfig",
    "_attn_implementation",
    "read",
    "pivotune.compat",
    "give a model back the attention that it had",
    "PreTrainedModel.set_attn_implementation: what it sets",
)

PRIVATE = (
    Private(
        "torch",
        "_subclasses",
        "read",
        "pivotune.estimate",
        "run a model without weights and see what it keeps for the backward pass",
        "torch._subclasses.fake_tensor.FakeTensorMode",
    ),
    Private(
        _TRAINER,
        "_get_num_items_in_batch",
        "overridden",
        "pivotune.trainer",
        "divide each term by its own count over the accumulation window and all ranks",
        "Trainer.get_batch_samples: how it counts the items that compute_loss gets",
        ("batch_samples", "device"),
    ),
    Private(
        _TRAINER,
        "_save",
        "overridden",
        "pivotune.trainer",
        "write checkpoints as run folders",
        "Trainer.save_model: what writes the weights",
        ("output_dir", "state_dict"),
    ),
    Private(
        _TRAINER,
        "save_model",
        "overridden",
        "pivotune.trainer",
        "tell by `_internal_call` a checkpoint from the result",
        "Trainer._save_checkpoint: how it calls save_model",
        ("output_dir", "_internal_call"),
    ),
    Private(
        _TRAINER,
        "_save_checkpoint",
        "overridden",
        "pivotune.trainer",
        "save nothing that is not finite, and remove old checkpoints only when the new one is complete",
        "Trainer._maybe_log_save_evaluate: what it calls where a checkpoint is due",
        ("model", "trial"),
    ),
    Private(
        _TRAINER,
        "_load_from_checkpoint",
        "overridden",
        "pivotune.trainer",
        "restore the model, its adapters and the objectives' tensors from a run folder",
        "Trainer.train: what loads the weights of resume_from_checkpoint",
        ("resume_from_checkpoint", "model"),
    ),
    Private(
        _TRAINER,
        "_load_optimizer_and_scheduler",
        "overridden",
        "pivotune.trainer",
        "let a changed learning rate and schedule take effect in a resumed run",
        "Trainer.train: what loads the optimizer's and the scheduler's state",
        ("checkpoint",),
    ),
    Private(
        _TRAINER,
        "_load_best_model",
        "overridden",
        "pivotune.trainer",
        "restore the best checkpoint from its run folder",
        "Trainer.train: what load_best_model_at_end calls",
    ),
    Private(
        _TRAINER,
        "_prepare_inputs",
        "called",
        "pivotune.trainer",
        "put a batch on the device in evaluation",
        "Trainer.prediction_step: what it does with its inputs first",
        ("inputs",),
    ),
    Private(
        _TRAINER,
        "_get_output_dir",
        "called",
        "pivotune.trainer",
        "know the folder of checkpoints, which differs in a search of hyperparameters",
        "Trainer._save_checkpoint: which folder it writes",
        ("trial",),
    ),
    Private(
        _HFLM,
        "_model_generate",
        "overridden",
        "pivotune.evaluation.likelihood",
        "leave English tasks unconnected",
        "HFLM.generate_until: what calls generate()",
        ("context", "max_length", "stop"),
    ),
    Private(
        _HFLM,
        "_loglikelihood_tokens",
        "overridden",
        "pivotune.evaluation.likelihood",
        "connect each context at its last token",
        "TemplateLM.loglikelihood: what sums the log-probabilities",
        ("requests", "disable_tqdm", "override_bs"),
    ),
    Private(
        _HFLM,
        "_model_call",
        "called",
        "pivotune.evaluation.likelihood",
        "get the logits as HFLM does, with its options of precision",
        "HFLM._loglikelihood_tokens: what runs the model",
        ("inps",),
    ),
    *(_PREFILL, _ENCODE_PAIR, _TQDM, _NO_SPLIT, _LAST_RATES, _COUNT_OF_GPUS, _COMPILED, *_REPLAYS, _ATTENTION),
)

PROVIDED = {"_no_split_modules": "pivotune.method"}
"""Names that a library looks for on our classes, and where we have them."""


@cache
def moved(name: Private) -> str | None:
    """What the installed release lacks of what we lean on, as a clause; None where all is there."""
    try:
        owner = pkgutil.resolve_name(name.owner)
    except (ImportError, AttributeError):
        return f"there is no {name.owner}"
    if name.in_instances:
        return None
    if not hasattr(owner, name.name):
        return f"{name.owner} has no {name.name}"
    theirs = _arguments(name)
    if "**" not in theirs and (gone := [one for one in name.arguments if one not in theirs]):
        return f"{name} takes no argument {', '.join(gone)}"
    return None


def grown(name: Private) -> str | None:
    """What an overridden method takes in the installed release, and ours does not; None where that is nothing."""
    new = [one for one in _arguments(name) if one not in (*name.arguments, "**")] if name.how == "overridden" else []
    return f"{name} takes another argument, {', '.join(new)}" if new else None


def _arguments(name: Private) -> list[str]:
    """Those of the installed release, ** for any name."""
    if name.how not in ("overridden", "called"):
        return []
    parameters = inspect.signature(getattr(pkgutil.resolve_name(name.owner), name.name)).parameters.values()
    return ["**" if one.kind is one.VAR_KEYWORD else one.name for one in parameters if one.name != "self"]


def check(module: str) -> None:
    """Raise a PivotuneError where the installed releases lack a private name that this module of ours leans on; warn
    where a method that it overrides takes more."""
    for name in PRIVATE:
        if name.where == module:
            _check(name)
            if problem := grown(name):
                logger.warning("%s", _error(name, problem))


def _check(name: Private) -> None:
    if problem := moved(name):
        raise _error(name, problem)


def _error(name: Private, problem: str) -> PivotuneError:
    return PivotuneError(
        f"{name.library}: this release ({version(name.library)}) is not known to Pivotune: {problem}; {name.lost} "
        "Or install the release in constraints.txt."
    )


# Models ----------------------------------------------------------------------------------------------------------


def inside_compiled(model: Any) -> Any | None:
    """The module that `torch.compile` was given; None where `model` is not compiled."""
    return getattr(model, _COMPILED.name, None)


def no_split_modules(model: Any) -> Any:
    """The classes of a model's layers, which FSDP wraps whole."""
    _check(_NO_SPLIT)
    return getattr(model, _NO_SPLIT.name)


def attention_of(model: Any) -> str:
    """The attention that a model runs with, as `set_attn_implementation` takes it."""
    _check(_ATTENTION)
    return getattr(model.config, _ATTENTION.name)


@contextmanager
def replayed_by(layer: Any, wrap: Callable[[Callable], Callable]) -> Iterator[None]:
    """Within this context what replays a checkpointed layer in the backward pass is wrapped.

    Args:
        layer: a decoder layer; with none of the two ways of checkpointing, nothing is done.
        wrap: of the function that replays, called as (run, *args, **kwargs), makes one that is called likewise.

    Raises:
        PivotuneError: the layer is checkpointed, and what replays it is not known.
    """
    found = {one.name: vars(layer)[one.name] for one in _REPLAYS if vars(layer).get(one.name) is not None}
    if not found and getattr(layer, "gradient_checkpointing", False):
        raise _error(_REPLAYS[0], f"a checkpointed layer has no {_REPLAYS[0].name}")
    try:
        for name, theirs in found.items():
            setattr(layer, name, wrap(theirs))
        yield
    finally:
        for name, theirs in found.items():
            setattr(layer, name, theirs)


@contextmanager
def prefilled_by(model: Any, prefill: Callable) -> Iterator[None]:
    """Within this context `model.generate()` passes the prompt through `prefill` instead of its own.

    Args:
        model: a causal LM of transformers.
        prefill: called as (the model's own, input_ids, generation_config, model_kwargs, ...); returns what that does.
    """
    _check(_PREFILL)
    # An instance attribute shadows the class's method: reversible, and invisible to save_pretrained.
    setattr(model, _PREFILL.name, partial(prefill, getattr(model, _PREFILL.name)))
    try:
        yield
    finally:
        vars(model).pop(_PREFILL.name, None)


# Training --------------------------------------------------------------------------------------------------------


def use_one_gpu(args: Any) -> None:
    """Let a process with these TrainingArguments use one GPU, however many are visible."""
    setattr(args, _COUNT_OF_GPUS.name, 1)
    if args.n_gpu != 1:
        raise _error(_COUNT_OF_GPUS, f"n_gpu is not taken from {_COUNT_OF_GPUS.name}")


def set_last_rates(scheduler: Any, rates: Sequence[Any]) -> None:
    """Set the learning rates that a scheduler of torch says were the last."""
    setattr(scheduler, _LAST_RATES.name, list(rates))
    if scheduler.get_last_lr() != list(rates):
        raise _error(_LAST_RATES, f"get_last_lr() does not return {_LAST_RATES.name}")


# lm-evaluation-harness -------------------------------------------------------------------------------------------


def encode_pair(lm: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens that a model of the harness makes of a context and what continues it."""
    _check(_ENCODE_PAIR)
    return getattr(lm, _ENCODE_PAIR.name)(context, continuation)


@contextmanager
def without_bars_of_tasks() -> Iterator[None]:
    """Without the progress bars that tasks of the harness show while they make their requests."""
    _check(_TQDM)
    task = pkgutil.resolve_name(_TQDM.owner)
    bar = getattr(task, _TQDM.name)
    try:
        setattr(task, _TQDM.name, partial(bar, disable=True))
        yield
    finally:
        setattr(task, _TQDM.name, bar)


def provide_squad_metrics(compute_exact: Callable[[str, str], int], compute_f1: Callable[[str, str], float]) -> None:
    """Give tasks of the harness `transformers.data.metrics.squad_metrics`, which transformers has dropped in 5.20.

    Where it is there, nothing is done.
    """
    package = "transformers.data.metrics"
    if find_spec(package) is not None:
        return
    for path in (package, f"{package}.squad_metrics"):
        sys.modules[path] = ModuleType(path, "A stand-in, made by pivotune.compat.")
        sys.modules[path].__spec__ = ModuleSpec(path, None, is_package=path == package)
    metrics = sys.modules[f"{package}.squad_metrics"]
    vars(metrics).update(compute_exact=compute_exact, compute_f1=compute_f1)
    vars(sys.modules[package]).update(__path__=[], squad_metrics=metrics)
