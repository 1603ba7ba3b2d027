"""An objective is one class and one entry in the table: this one is defined here, and everything works with it.

It pulls the states of one layer towards a vector of its own (L2), fits an offset after training, adds it at inference,
and measures the distance of each layer. Nothing of `src/` knows its name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from pivotune.anatomy import Anatomy
from pivotune.checkpoint import load_run, read_info
from pivotune.cli import main
from pivotune.config import RunConfig
from pivotune.connection import connect
from pivotune.data import Batch
from pivotune.generation import generate_texts, load
from pivotune.method import Method
from pivotune.objectives import OBJECTIVES
from pivotune.objectives.base import AfterTraining, Connection, Objective, Pass, Wants
from pivotune.taps import Tap
from pivotune.training import train
from tests.batches import random_batch
from tests.families import tiny
from tests.runs import LAYERS, configuration, log, rows, same, write_base, write_rows

ASKED = ["保持健康", "给出三个提示"]


@dataclass
class PullConfig:
    """Options of the pull.

    Args:
        layer: decoder layer (1..L) whose states are pulled.
        weight: of its term in the loss.
    """

    layer: int = 2
    weight: float = 0.5


class Pull(Objective):
    name = "pull"
    title = "a pull"
    summary = "pull one layer towards a vector"
    citation = "@misc{pull}"
    Options = PullConfig
    fewest_pairs = 0
    connects = True
    lens_columns = (("distance", "distance", 1),)

    def __init__(self, options: PullConfig, model: nn.Module):
        super().__init__(options, model)
        self.anatomy.check_layer(options.layer, "pull.layer")
        weight = next(model.parameters())
        self.centre = nn.Parameter(torch.zeros(self.anatomy.hidden_size, dtype=weight.dtype, device=weight.device))

    def weights(self) -> dict[str, float]:
        return {"pull": self.options.weight}

    def target_wants(self) -> Wants:
        return Wants(frozenset([self.options.layer]), gradient=True)

    def terms(self, batch: Batch, target: Pass, english: Pass | None) -> dict[str, Tensor]:
        distance_BT = ((target.hidden[self.options.layer] - self.centre) ** 2).sum(dim=-1)
        return {"pull": (distance_BT * batch["attention_mask"]).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"pull": batch["attention_mask"].sum()}

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        with Tap(self.anatomy, hidden=[self.options.layer]) as tap:
            self.decode(batch["input_ids"], batch["attention_mask"])
        return {"states": tap.hidden[self.options.layer][batch["attention_mask"].bool()]}

    def after_training(self, after: AfterTraining) -> dict[str, Any]:
        batch = {name: tensor.to(self.centre.device) for name, tensor in after.collator(list(after.rows)[:4]).items()}
        with torch.no_grad():
            states = after.method(batch, collect="pull")["states"]
        self.fitted = {"offset": states.mean(dim=0).float()}
        return {"tokens": len(states)}

    @classmethod
    def modes(cls, tensors: Sequence[str]) -> tuple[str, ...]:
        return ("on", "none") if "offset" in tensors else ("none",)

    @classmethod
    def connection(cls, model: nn.Module, options: PullConfig, tensors: Mapping[str, Tensor]) -> Connection | None:
        return Offset(model, options.layer, tensors["offset"]) if "offset" in tensors else None

    @classmethod
    def measure(
        cls, anatomy: Anatomy, options: PullConfig | None, connection: Connection | None
    ) -> Callable[[], Distance] | None:
        return None if options is None else Distance

    @classmethod
    def lens_lines(cls, found: Mapping[str, Any]) -> list[str]:
        return [f"pulled: {found['summary']['run']['pairs']} pairs"]


class Offset(Connection):
    """Adds a vector behind a layer, everywhere."""

    modes = ("on", "none")
    site = "hidden"

    def __init__(self, model: nn.Module, layer: int, offset: Tensor):
        self.anatomy, self.layer, self.offset = Anatomy(model), layer, offset

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden - self.offset.to(hidden)

    @contextmanager
    def generating(self, mode: str, connected: Tensor | None, english: Mapping[str, Tensor]) -> Iterator[None]:
        with Tap(self.anatomy, injections=[self]):  # type: ignore[list-item]
            yield

    def lend(self, input_ids: Tensor, attention_mask: Tensor) -> list[None]:
        return [None] * len(input_ids)

    @contextmanager
    def at(self, lent: Sequence[Any], last_B: Tensor) -> Iterator[None]:
        with Tap(self.anatomy, injections=[self]):  # type: ignore[list-item]
            yield


class Distance:
    """The mean squared state of each layer."""

    def __init__(self) -> None:
        self.pairs = 0

    def add(self, reading: Any) -> dict[str, Tensor]:
        self.pairs += len(reading.examples)
        layers = sorted(reading.target.hidden)
        table = [reading.target.pooled(layer, "mean").pow(2).mean(dim=-1).double() for layer in layers]
        return {"distance": torch.stack(table, dim=1)}

    def finish(self) -> dict[str, Tensor]:
        return {}

    def summary(self) -> dict[str, Any]:
        return {"pairs": self.pairs}


@pytest.fixture(autouse=True)
def in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "pull", Pull)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_base(folder / "base")
    write_rows(folder / "train.jsonl", rows(16))
    return folder


def pulled(folder: Path, output: Path, *also: Any, lora: int = 0, **training: Any) -> RunConfig:
    config = configuration(folder / "base", folder / "train.jsonl", output, lora=lora, **training)
    return replace(config, objectives=[*also, PullConfig(weight=0.25)])


def test_its_term_and_gradients() -> None:
    torch.manual_seed(0)
    model, batch = tiny("llama").double(), random_batch()
    method = Method(model, [PullConfig(weight=0.5)]).double()
    output = method(batch)
    plain = Method(model)(batch)
    pull = output["terms"]["pull"]
    torch.testing.assert_close(output["loss"], plain["loss"] + 0.5 * pull.sum / pull.count)
    output["loss"].backward()
    assert method.objectives["pull"].centre.grad.any()


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("also", [[], [LAYERS]], ids=["alone", "with deep supervision"])
def test_train_resume_save_load_generate(folder: Path, tmp_path: Path, lora: int, also: list[Any]) -> None:
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "lora": lora}
    run = train(pulled(folder, tmp_path / "run", *also, **options))
    assert {"lm", "pull"} <= log(run)[0].keys()
    info = read_info(run)
    assert info["objectives"]["pull"] == {"layer": 2, "weight": 0.25}
    assert info["found"]["pull"]["tokens"] > 0
    assert info["tensors"] == ["pull.centre", "pull.offset"]
    assert "@misc{pull}" in (run / "README.md").read_text()

    again = train(pulled(folder, tmp_path / "again", *also, **options | {"max_steps": 1, "save_strategy": "no"}))
    assert again.is_dir()
    resumed = pulled(
        folder, tmp_path / "resumed", *also, **options | {"resume_from_checkpoint": str(run / "checkpoint-1")}
    )
    same(run, train(resumed))

    model, tokenizer = load(run)
    on, off = (generate_texts(model, tokenizer, ASKED, connection=mode, max_new_tokens=8) for mode in ("on", "none"))
    assert on == generate_texts(model, tokenizer, ASKED, max_new_tokens=8) != off
    opened = load_run(run)
    connect(opened.model, Offset(opened.model, 2, opened.tensors["pull.offset"]))
    assert on == generate_texts(opened.model, opened.tokenizer, ASKED, max_new_tokens=8)


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A section in the YAML file is all it takes; help, generate and lens know it."""
    content = {
        "output": str(tmp_path / "run"),
        "model": {"path": str(folder / "base")},
        "data": {"train": str(folder / "train.jsonl")},
        "pull": {"weight": 0.25},
        "training": {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "report_to": "none", "learning_rate": 0.01},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    main(["train", str(tmp_path / "run.yaml"), "--pull.layer", "1"])
    assert read_info(tmp_path / "run")["objectives"]["pull"] == {"layer": 1, "weight": 0.25}
    with pytest.raises(SystemExit) as refused:
        main(["train", str(tmp_path / "run.yaml"), "--pull.weigth", "1", "--output", str(tmp_path / "other")])
    assert refused.value.code == 2
    assert "did you mean 'pull.weight'?" in capsys.readouterr().err

    main(["generate", str(tmp_path / "run"), *ASKED, "--connection", "on", "--max_new_tokens", "4"])
    capsys.readouterr()
    main(["lens", str(tmp_path / "run"), "--data", str(folder / "train.jsonl"), "--measures", "calibration"])
    printed = capsys.readouterr().out
    assert "distance" in printed and "pulled: " in printed
    report = json.loads((tmp_path / "run" / "lens" / "lens.json").read_text())
    assert len(report["languages"]["zh"]["pull"]["tables"]["distance"]["run"]["mean"]) == 3


def test_it_is_evaluated_with_its_connection(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra pivotune[evaluation]")
    from pivotune.evaluation.results import read_items
    from pivotune.evaluation.runner import evaluate
    from tests.evaluation.benchmarks.made_up import put_json, put_lines, squad

    question = {"premise": "It rained.", "choice1": "It got wet.", "choice2": "It got dry.", "question": "effect"}
    for split in ("val", "test"):
        rows_of = [{**question, "idx": n, "label": 0} for n in range(3)]
        put_lines(tmp_path / "data" / "xcopa" / f"{split}-vi.jsonl", rows_of)
    put_json(tmp_path / "data" / "xquad" / "xquad.vi.json", squad("vi"))
    run = train(pulled(folder, tmp_path / "run"))
    said: dict[str, list[Any]] = {}
    for mode in ("on", "none"):
        output = tmp_path / mode
        options: dict[str, Any] = {"connection": None if mode == "on" else mode, "output": str(output)}
        evaluate(str(run), benchmarks="xcopa,xquad", languages="vi", data_dir=str(tmp_path / "data"), **options)
        ranked, answered = (
            read_items(output / "items" / f"{name}.vi.{mode}.jsonl")[0]
            for name in ("likelihood.xcopa", "generation.xquad")
        )
        said[mode] = [*(one.loglikelihoods for one in ranked), *(one.prediction for one in answered)]
    assert len(said["on"]) == 6
    assert all(on != none for on, none in zip(said["on"], said["none"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_equal_one_process(folder: Path, tmp_path: Path, kind: str) -> None:
    from tests.test_distributed import launch

    alone = train(pulled(folder, tmp_path / "alone", LAYERS, optim="sgd", per_device_train_batch_size=8))
    launch("-m", "tests.test_toy_objective", kind, folder, tmp_path / "together")
    same(alone, tmp_path / "together", tolerance=1e-6)


def worker(kind: str, folder: str, output: str) -> None:
    """What each rank runs."""
    from tests.distributed_worker import force_fsdp2

    torch.set_num_threads(1)
    OBJECTIVES["pull"] = Pull
    if kind == "fsdp":
        force_fsdp2(activation_checkpointing=False)
    train(pulled(Path(folder), Path(output), LAYERS, optim="sgd", per_device_train_batch_size=4))


if __name__ == "__main__":
    worker(*sys.argv[1:])
