"""Each private name of another library that we lean on is where it was, and stands in no other place of ours."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

import pivotune
from pivotune import PivotuneError, compat
from pivotune.compat import PRIVATE, PROVIDED, Private
from tests.families import tiny

ROOT = Path(__file__).parents[1]
SOURCE = Path(pivotune.__file__).parent
LIBRARIES = ("transformers", "accelerate", "lm_eval", "peft", "datasets", "jsonargparse", "tokenizers", "torch")
DOCUMENTED = {"_asdict", "_fields", "_make", "_replace", "_exit"}
"""Public in spite of their underscore: those of named tuples, and os._exit."""


def needs(name: Private) -> None:
    if name.library == "lm_eval":
        pytest.importorskip("lm_eval")


# Each name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIVATE, ids=str)
def test_it_is_where_it_was(name: Private) -> None:
    needs(name)
    problem = compat.moved(name) or compat.grown(name)
    assert problem is None, f"{problem}. {name.lost}"
    if name.in_instances:
        assert IN_INSTANCES[name.name](), f"{name.owner} keeps it elsewhere. {name.lost}"


def _scheduler() -> Any:
    return torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5), lambda step: 1.0)


def _rates_are_said() -> bool:
    scheduler = _scheduler()
    compat.set_last_rates(scheduler, [0.25])
    return scheduler.get_last_lr() == [0.25] and "_last_lr" in scheduler.state_dict()


def _one_gpu_is_used() -> bool:
    args = TrainingArguments("unused", use_cpu=True, report_to="none")
    before = vars(args)["_n_gpu"]
    compat.use_one_gpu(args)
    return before in (0, 1) and args.n_gpu == 1


def _a_compiled_model_has_its_original() -> bool:
    module = nn.Linear(1, 1)
    return compat.inside_compiled(torch.compile(module)) is module and compat.inside_compiled(module) is None


def _a_checkpointed_layer_is_replayed_by_it() -> bool:
    model = tiny("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return _is_replayed(model, model.model.layers[0])


def _a_wrapped_layer_is_replayed_by_it() -> bool:
    wrapper = importlib.import_module("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    model = tiny("llama")
    model.model.layers[0] = wrapper.checkpoint_wrapper(model.model.layers[0])
    return _is_replayed(model, model.model.layers[0])


def _is_replayed(model: Any, layer: Any) -> bool:
    ran = []

    def wrap(theirs: Any) -> Any:
        def checkpoint(run: Any, *args: Any, **kwargs: Any) -> Any:
            def replayable(*a: Any, **k: Any) -> Any:
                ran.append(len(ran))
                return run(*a, **k)

            return theirs(replayable, *args, **kwargs)

        return checkpoint

    model.train()
    before = dict(vars(layer))
    with compat.replayed_by(layer, wrap):
        loss = model(torch.tensor([[1, 2]])).logits.sum()
    loss.backward()
    return len(ran) == 2 and dict(vars(layer)) == before


IN_INSTANCES = {
    "_last_lr": _rates_are_said,
    "_n_gpu": _one_gpu_is_used,
    "_orig_mod": _a_compiled_model_has_its_original,
    "_gradient_checkpointing_func": _a_checkpointed_layer_is_replayed_by_it,
    "checkpoint_fn": _a_wrapped_layer_is_replayed_by_it,
}
OVERRIDDEN = [name for name in PRIVATE if name.how == "overridden"]


@pytest.mark.parametrize("name", OVERRIDDEN, ids=str)
def test_what_we_override_is_ours_takes_what_theirs_takes_and_is_called(name: Private) -> None:
    needs(name)
    owner = pkgutil.resolve_name(name.owner)
    module = importlib.import_module(name.where)
    ours = [
        one for one in vars(module).values() if inspect.isclass(one) and issubclass(one, owner) and one is not owner
    ]
    assert ours and all(name.name in vars(one) for one in ours), f"{name.where} does not override {name}"
    parameters = inspect.signature(vars(ours[0])[name.name]).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    missing = [one for one in name.arguments if one not in parameters and not takes_any]
    assert not missing, f"our {name.name} does not take {missing}, which {name.owner} gives it"
    callers = "".join(inspect.getsource(one) for one in owner.__mro__ if one.__module__.startswith(name.library))
    assert f"self.{name.name}(" in callers, f"{name.owner} does not call {name.name} any more. {name.lost}"


def test_prefill_is_what_generate_calls_and_nothing_is_left_of_ours() -> None:
    model, calls = tiny("llama").eval(), []

    def prefill(theirs: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args[0].tolist())
        return theirs(*args, **kwargs)

    ids = torch.tensor([[1, 2, 3]])
    for beams in (1, 2):
        plain = model.generate(ids, num_beams=beams, max_new_tokens=3, do_sample=False, pad_token_id=0)
        calls.clear()
        with compat.prefilled_by(model, prefill):
            ours = model.generate(ids, num_beams=beams, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert calls == [[[1, 2, 3]] * beams] and ours.tolist() == plain.tolist()
    assert "_prefill" not in vars(model)


def test_attention_and_the_layers_that_fsdp_wraps_are_those_of_the_model() -> None:
    model = tiny("llama")
    model.set_attn_implementation("eager")
    assert compat.attention_of(model) == "eager"
    assert set(compat.no_split_modules(model)) == {type(model.model.layers[0]).__name__}


def test_accelerate_still_asks_a_model_for_the_layers_to_wrap() -> None:
    from accelerate.utils import fsdp_utils

    assert all(name in inspect.getsource(fsdp_utils) for name in PROVIDED), (
        "accelerate does not read _no_split_modules any more, by which Method says what FSDP2 wraps. Look at "
        "fsdp2_prepare_auto_wrap_policy in accelerate.utils.fsdp_utils."
    )


def test_tasks_of_the_harness_show_no_bars_for_a_while() -> None:
    task = pytest.importorskip("lm_eval.api.task")
    before = task.tqdm
    with compat.without_bars_of_tasks():
        assert task.tqdm([]).disable
    assert task.tqdm is before


# What is said where one has moved ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "_gone"}, ["transformers.Trainer has no _gone"]),
        ({"owner": "transformers.Nothing"}, ["there is no transformers.Nothing"]),
        ({"owner": "transformers.nothing.Trainer"}, ["there is no transformers.nothing.Trainer"]),
        ({"arguments": ("model", "trial", "where")}, ["_save_checkpoint takes no argument where"]),
    ],
    ids=str,
)
def test_what_has_moved_is_named_with_where_we_use_it_and_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: list[str]
) -> None:
    known = next(name for name in PRIVATE if name.name == "_save_checkpoint")
    monkeypatch.setattr(compat, "PRIVATE", (replace(known, **change),))
    with pytest.raises(PivotuneError) as error:
        compat.check("pivotune.trainer")
    more = ["transformers: this release (", "pivotune.trainer overrides it to", "Look at Trainer._maybe_log"]
    assert all(word in str(error.value) for word in [*words, *more]), str(error.value)
    compat.check("pivotune.evaluation.likelihood")


def test_a_method_that_takes_more_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = next(name for name in PRIVATE if name.name == "_save_checkpoint")
    monkeypatch.setattr(compat, "PRIVATE", (replace(known, arguments=("model",)),))
    compat.check("pivotune.trainer")
    assert "transformers.Trainer._save_checkpoint takes another argument, trial; pivotune.trainer overr" in caplog.text


def test_what_only_objects_have_is_checked_when_it_is_used() -> None:
    class Frozen:
        n_gpu = 2

    with pytest.raises(PivotuneError, match=r"n_gpu is not taken from _n_gpu; pivotune.compat sets it to keep Trainer"):
        compat.use_one_gpu(Frozen())
    layer = nn.Linear(1, 1)
    layer.gradient_checkpointing = True  # type: ignore[assignment]
    with pytest.raises(PivotuneError, match="a checkpointed layer has no _gradient_checkpointing_func"):
        compat.replayed_by(layer, lambda theirs: theirs).__enter__()
    scheduler = _scheduler()
    scheduler.get_last_lr = lambda: [0.5]
    with pytest.raises(PivotuneError, match=r"get_last_lr\(\) does not return _last_lr"):
        compat.set_last_rates(scheduler, [0.25])


# No private name elsewhere -----------------------------------------------------------------------------------------


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier() and name not in {"_", *DOCUMENTED}


def of_others(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Private names that a file reads, sets, passes or imports, and does not define itself."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith(("pivotune", "experiments", "tests")):
            names = [*str(node.module).split("."), *(one.name for one in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for one in node.names for part in one.name.split(".")]
        elif isinstance(node, ast.arg | ast.keyword):
            names = [str(node.arg)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            names = [str(one.value) for one in node.args[1:2] if isinstance(one, ast.Constant)]
        yield from ((node.lineno, name) for name in names if private(name) and name not in own)  # type: ignore[attr-defined]


FILES = [path for folder in ("src", "experiments", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) if SOURCE in path.parents else str(path)


def test_no_private_name_of_another_library_stands_outside_of_the_table() -> None:
    assert FILES
    found = []
    for path in FILES:
        module = module_of(path)
        allowed = {name.name for name in PRIVATE if name.where == module}
        allowed |= {one for name in PRIVATE if name.where == module for one in name.arguments}
        for line, name in of_others(ast.parse(path.read_text())):
            if name not in allowed:
                found.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not found, f"put these into pivotune/compat.py, each with its reason: {', '.join(found)}"


def test_the_search_finds_what_is_private() -> None:
    example = """
        from torch._dynamo import config
        from lib import _thing
        class Own:
            def __init__(self, _given):
                self._mine = 1
                self._mine + self._theirs + getattr(model, "_named") + call(_passed=1) + row._asdict()
            def _own(self):
                super()._own()
    """
    found = {name for _, name in of_others(ast.parse(textwrap.dedent(example)))}
    assert found == {"_dynamo", "_thing", "_given", "_theirs", "_named", "_passed"}


def classes_of_ours() -> Iterator[type]:
    for module in pkgutil.walk_packages([str(SOURCE)], "pivotune."):
        if not module.name.endswith("__main__"):
            for one in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(one) and one.__module__ == module.name:
                    yield one


def test_our_subclasses_override_no_private_name_by_accident() -> None:
    """Neither a method, nor an attribute that both set."""
    pytest.importorskip("lm_eval")
    for one in classes_of_ours():
        bases = [base for base in one.__mro__[1:] if base.__module__.partition(".")[0] in LIBRARIES]
        if not bases or issubclass(one, torch.autograd.Function):
            continue
        ours = {name for name in vars(one) if private(name)} | attributes_set(one)
        theirs = {name for base in bases for name in vars(base) if private(name)}
        theirs |= {name for base in bases for name in attributes_set(base)}
        known = {name.name for name in PRIVATE if name.where == one.__module__ and name.how == "overridden"}
        both = ours & theirs - known - {"_abc_impl", "_backward_hooks"}
        assert not both, f"{one.__name__} and a class that it is made of both have {sorted(both)}: rename ours"


def attributes_set(kind: type) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        return set()
    stored = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in stored if ast.unparse(node.value) == "self" and private(node.attr)}


def test_what_a_library_looks_for_on_ours_is_there() -> None:
    for name, module in PROVIDED.items():
        found = [one for one in classes_of_ours() if name in vars(one)]
        assert [one.__module__ for one in found] == [module]


def test_every_entry_is_in_use() -> None:
    """And the reasons are sentences' ends, which `lost` puts together."""
    texts = {module_of(path): path.read_text() for path in FILES}
    for name in PRIVATE:
        assert name.name in texts[name.where], f"{name.where} does not lean on {name} any more: remove the entry"
        assert name.why[0].islower() and not name.why.endswith(".") and not name.look.endswith("."), name
