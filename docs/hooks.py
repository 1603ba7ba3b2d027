"""Hooks of mkdocs: pages from files outside of docs/, links as the repository has them, a reference from docstrings."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ADDED = {
    "README.md": "index.md",
    "RESULTS.md": "summary.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "speed.md",
}
"""File of the repository -> page of the site. Those in docs/ keep their names."""
GUIDES = (
    "concepts",
    "data",
    "training",
    "layers",
    "lens",
    "evaluation",
    "benchmarks",
    "serving",
    "lab",
    "troubleshooting",
)


def on_config(config: Any) -> Any:
    """The navigation. A page of docs/ that it lacks is an error in a strict build."""
    objectives = sorted(path.stem for path in (ROOT / "docs/objectives").glob("*.md"))
    results = sorted(path.stem for path in (ROOT / "docs/results").glob("*.md") if path.stem != "README")
    config.nav = [
        {"Start": "index.md"},
        {"Guides": [f"{name}.md" for name in GUIDES]},
        {"Objectives": [f"objectives/{name}.md" for name in objectives]},
        {"Results": ["summary.md", "results/README.md", *(f"results/{name}.md" for name in results), "speed.md"]},
        {"Reference": [{name.removeprefix("pivotune."): f"reference/{name}.md"} for name in modules()]},
        {"Contributing": ["contributing.md", "changelog.md"]},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """The pages that are not in docs/."""
    for source, page in ADDED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for name in modules():
        files.append(File.generated(config, f"reference/{name}.md", content=f"::: {name}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from file to file become links from page to page; what is on no page is named, not linked."""
    place = next((source for source, added in ADDED.items() if added == page.file.src_uri), f"docs/{page.file.src_uri}")

    def linked(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        file = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        if file not in ADDED and not file.startswith("docs/"):
            return text if text.startswith(("`", "!")) else f"`{file}`" if text == target else text
        found = ADDED.get(file, file.removeprefix("docs/"))
        return f"[{text}]({posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return re.sub(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)", linked, markdown)


def modules() -> list[str]:
    """Every module of the package that is not private, as it is imported."""
    paths = sorted((ROOT / "src/pivotune").rglob("*.py"))
    names = (path.relative_to(ROOT / "src").with_suffix("").parts for path in paths if path.stem != "__main__")
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names]
