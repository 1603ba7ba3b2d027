"""What the README tells a newcomer to type works, with a miniature model and the README's own example row."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import pivotune
from pivotune.cli import main
from tests.runs import write_base

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def block(language: str) -> str:
    return max(blocks(language), key=len)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and the README's row, several times, as zh.jsonl."""
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "model", layers=16)
    row = json.loads(block("json"))
    rows = [json.dumps({**row, "id": str(number)}, ensure_ascii=False) for number in range(8)]
    (tmp_path / "zh.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def test_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = Path(pivotune.__file__).parents[2] / "configs"
    lines = (
        block("sh").replace("\\\n", " ").replace("configs/", f"{configs}/").replace("meta-llama/Llama-2-7b-hf", "model")
    )
    train, generate = (line.split()[1:] for line in lines.splitlines() if line.startswith("pivotune"))
    main(
        [
            *train,
            "--training.max_steps",
            "1",
            "--training.per_device_train_batch_size",
            "2",
            "--training.use_cpu",
            "true",
        ]
    )
    assert (here / "runs" / "zh" / "pivotune.json").is_file()
    capsys.readouterr()
    main([argument.strip('"') for argument in generate])
    assert capsys.readouterr().out.endswith("\n")
    (look,) = [line for line in blocks("sh") if line.startswith("pivotune lens")]
    look = look.replace("held-out.jsonl", "zh.jsonl").replace("meta-llama/Llama-2-7b-hf", "model")
    main(look.split()[1:])
    assert (here / "runs" / "zh" / "lens" / "lens.json").is_file()


def test_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) < 10
    small = "data=pivotune.DataConfig('zh.jsonl'), training=pivotune.TrainingOptions(max_steps=1, use_cpu=True)"
    code = code.replace("meta-llama/Llama-3.1-8B", "model").replace('data=pivotune.DataConfig("zh.jsonl")', small)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip().endswith("]")


def test_the_tree_is_there() -> None:
    """Each name of the tree exists, and no folder of the package is missing from it."""
    root = Path(__file__).parents[1]
    package = root / "src" / "pivotune"
    tree = next(one for one in blocks("text") if one.startswith("src/pivotune/"))
    named = re.findall(r"^  (\S+)", tree, flags=re.MULTILINE)
    for name in named + [found for line in tree.splitlines() for found in re.findall(r"[;,] (\w+\.py)", line)]:
        assert (package / name).exists(), name
    for name in re.findall(r"^(\w+/)", tree, flags=re.MULTILINE)[1:]:
        assert (root / name).is_dir(), name
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert folders <= set(named)
