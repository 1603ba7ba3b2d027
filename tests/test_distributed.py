"""Two ranks over gloo train the model that one process trains: DistributedDataParallel, FSDP2, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.nn.functional as F
import yaml

from pivotune.training import train
from tests.distributed_worker import JOBS, can_resume, job
from tests.runs import configuration, log, rows, same, without_noise, write_base, write_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LAUNCH = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]


def launch(*arguments: str | Path) -> str:
    """Run a program on two ranks, as `accelerate launch` does where there are GPUs."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *LAUNCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_base(folder / "base")
    write_rows(folder / "train.jsonl", rows(16))
    write_rows(folder / "few.jsonl", rows(16, english=0.125))
    write_rows(folder / "eval.jsonl", rows(11, seed=5))  # no multiple of what two ranks read at a time
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The same runs in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "gumbel_softmax", without_noise)
        for name in JOBS:
            train(job(name, folder, "alone", 1))
    return folder / "alone"


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def together(request: pytest.FixtureRequest, folder: Path) -> Path:
    launch("-m", "tests.distributed_worker", request.param, folder, *JOBS)
    return folder / request.param


@pytest.mark.parametrize("name", JOBS)
def test_two_ranks_equal_one_process(name: str, alone: Path, together: Path) -> None:
    """Weights, Decision Maker and Transform Matrix, each logged term, and the evaluation, to rounding."""
    same(alone / name, together / name, tolerance=1e-6)
    for ours, theirs in zip(log(alone / name), log(together / name), strict=True):
        names = [name for name in ours if not name.endswith(("runtime", "second")) and name != "total_flos"]
        assert [ours[name] for name in names] == pytest.approx([theirs[name] for name in names], rel=1e-4), names


def test_chosen_layers_are_the_same_on_two_ranks(alone: Path, together: Path) -> None:
    """The choice, its curve and the files, written once."""
    ours, theirs = (json.loads((folder / "auto" / "pivotune.json").read_text()) for folder in (alone, together))
    assert ours["found"] == theirs["found"]
    assert ours["objectives"] == theirs["objectives"]
    assert (together / "auto" / "layers.png").is_file()


def test_resumed_equals_uninterrupted_on_two_ranks(together: Path) -> None:
    if not can_resume(together.name):
        pytest.skip("this transformers cannot load an optimizer on several CPU ranks")
    same(together / "resumed", together / "resumed-again")


def test_all_ranks_refuse_alike(together: Path) -> None:
    """A NaN in one rank's last parameter at the second checkpoint; the folder of a run as a checkpoint; no change."""
    ours, theirs = (json.loads((together / f"refused-{rank}.json").read_text()) for rank in (0, 1))
    assert ours == theirs
    broken, folder, untrained = ours
    assert broken.startswith("step 2: NaN or infinity in cc_tuning.decision_maker.weight. Nothing of it is saved.")
    assert "is the folder of a run" in folder
    assert "not a bit of any parameter has changed" in untrained
    assert sorted(path.name for path in (together / "broken-run").iterdir()) == ["checkpoint-1", "pivotune.unfinished"]


def test_the_command_line_on_two_ranks(folder: Path) -> None:
    """What is printed is printed once."""
    base, data = folder / "base", folder / "train.jsonl"
    config = configuration(base, data, folder / "line", "cc_tuning", per_device_train_batch_size=4)
    file = folder / "run.yaml"
    content = {
        "output": config.output,
        "cc_tuning": {},
        "model": {"path": str(base)},
        "data": {"train": str(data)},
        "training": {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4},
    }
    file.write_text(yaml.safe_dump(content))
    printed = launch("-m", "pivotune", "train", file)
    assert printed.count("data.train: 16 kept") == 1
    assert printed.count("The run is in") == 1
    assert json.loads((folder / "line" / "pivotune.json").read_text())["steps"] == 2
