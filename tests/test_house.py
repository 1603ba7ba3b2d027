"""Where things are: what belongs to an objective or a benchmark names it alone, and imports go one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pivotune
from pivotune.evaluation.benchmarks import BENCHMARKS
from pivotune.objectives import OBJECTIVES

SOURCE = Path(pivotune.__file__).parent
ROOT = Path(__file__).parents[1]

PARTS = ("decision_maker", "DecisionMaker", "transform_matrix", "TransformMatrix")
"""Of one objective alone, besides its names."""
NAMING = ("objectives", "lab")
"""Folders that may name objectives: their own, and the experiment that compares them."""
LOWER = ("objectives", "data", "anatomy", "taps", "losses")
UPPER = ("trainer", "training", "cli", "evaluation", "lab")


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(tree: ast.AST, *, at_once: bool) -> Iterator[str]:
    """Names of this package's modules that are imported: `at_once`, or in functions too. What only type checkers read
    does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not in use here"
            for one in node.names:
                whole = f"{node.module}.{one.name}"
                yield from (name for name in (whole, str(node.module)) if name in MODULES)
        elif not (at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from imported(node, at_once=at_once)


def with_packages(importer: str, name: str) -> Iterator[str]:
    """A module, and the packages around it whose __init__ runs first, but those that the importer is in."""
    while name:
        if not f"{importer}.".startswith(f"{name}."):
            yield name
        name = name.rpartition(".")[0]


def source_files() -> list[Path]:
    return [path for path in SOURCE.rglob("*") if path.suffix in (".py", ".html", ".j2", ".css", ".js", ".toml")]


def test_no_module_outside_its_folder_names_an_objective() -> None:
    words = {name for one in OBJECTIVES.values() for name in (one.name, one.__name__)} | {*PARTS}
    pattern = re.compile("|".join(sorted(words)))
    assert pattern.search("CCTuningConfig") and pattern.search("deep_supervision.thinking_layer")
    naming = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in source_files()
        if path.relative_to(SOURCE).parts[0] not in NAMING
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not naming, "\n".join(naming)


BENCHMARK_FILES = SOURCE / "evaluation" / "benchmarks"


def plain(text: str) -> str:
    """Without case and hyphens: XL-Sum is xlsum."""
    return text.lower().replace("-", "")


def test_no_module_outside_its_file_names_a_benchmark() -> None:
    """A file of benchmarks may name those that it defines; beside these, only the table names any."""
    words = {plain(word) for one in BENCHMARKS.values() for word in (one.name, one.title)}
    homes: dict[Path, set[str]] = {
        path: {word for word in words if f'"{word}"' in plain(path.read_text("utf-8"))}
        for path in BENCHMARK_FILES.glob("*.py")
    }
    assert all(sum(word in own for own in homes.values()) == 1 for word in words), "each is defined in one file"
    naming = []
    for path in source_files():
        if path == BENCHMARK_FILES / "table.py":
            continue
        others = words - homes.get(path, set())
        pattern = re.compile(rf"(?<![a-z])({'|'.join(sorted(others))})(?![a-z])")
        naming += [
            f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
            for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
            if pattern.search(plain(line))
        ]
    assert not naming, "\n".join(naming)


def test_imports_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for importer, path in MODULES.items():
        found = imported(ast.parse(path.read_text("utf-8")), at_once=True)
        graph[importer] = {one for name in found for one in with_packages(importer, name)}
    assert "pivotune.taps" in graph["pivotune.method"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_import_reaches_upward() -> None:
    def inside(name: str, rooms: tuple[str, ...]) -> bool:
        return f"{name}.".startswith(tuple(f"pivotune.{room}." for room in rooms))

    lower = {name: path for name, path in MODULES.items() if inside(name, LOWER)}
    assert len(lower) > 20
    upward = [
        f"{importer} imports {name}"
        for importer, path in lower.items()
        for name in imported(ast.parse(path.read_text("utf-8")), at_once=False)
        if inside(name, UPPER)
    ]
    assert not upward, "\n".join(upward)


def test_every_benchmark_is_documented() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    for one in BENCHMARKS.values():
        assert f"| `{one.name}` |" in page and one.citation in " ".join(page.split()), one.name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_its_page_and_its_tests(name: str) -> None:
    page = (ROOT / "docs" / "objectives" / f"{name}.md").read_text("utf-8")
    for test in re.findall(r"`(tests/[\w/.]+)`", page):
        assert (ROOT / test).is_file(), test
    assert any((ROOT / "tests" / "objectives").glob(f"{name}/test_*.py"))
    assert OBJECTIVES[name].citation.startswith("@")


def test_the_tests_mirror_the_modules() -> None:
    """A module m.py has its test_m.py at the same place."""
    paths = {path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py") if "__" not in path.stem}
    missing = {str(path) for path in paths if not (ROOT / "tests" / path.parent / f"test_{path.name}.py").is_file()}
    assert not missing, "\n".join(sorted(missing))
