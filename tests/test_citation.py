"""CITATION.cff and the README cite the papers as the objectives do."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pivotune.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
CITATIONS = {name: one.citation for name, one in OBJECTIVES.items() if one.citation}


def fields(citation: str) -> dict[str, str]:
    """Of a BibTeX entry."""
    found = re.findall(r"(\w+)\s*=\s*\{(.*?)\}(?:,|\s*\n\})", citation, re.DOTALL)
    return {name: " ".join(value.split()) for name, value in found}


def test_the_papers() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["cff-version"] == "1.2.0" and cff["license"] == "Apache-2.0"
    papers = {one["title"]: one for one in cff["references"]}
    assert len(papers) == len(CITATIONS)
    for citation in CITATIONS.values():
        wanted = fields(citation)
        paper = papers[wanted["title"]]
        named = [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]]
        assert named == wanted["author"].split(" and ")
        assert paper["collection-title"] == wanted["booktitle"] and str(paper["year"]) == wanted["year"]
        assert paper["identifiers"] == [{"type": "other", "value": wanted["note"]}]


def test_the_readme_has_their_bibtex() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for citation in CITATIONS.values():
        assert citation.strip() in readme
