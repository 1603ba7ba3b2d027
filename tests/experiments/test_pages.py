"""Pages of results: sections are replaced, and prose is not touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.pages import write_section
from pivotune.errors import PivotuneError


def test_sections_are_replaced_and_prose_stays(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\nBefore.\n\n<!-- begin: a -->\nold\n<!-- end: a -->\n\nAfter.\n")
    write_section(path, "a", "new \\1 line\n")
    write_section(path, "b", "another")
    expected = (
        "# Results\n\nBefore.\n\n<!-- begin: a -->\nnew \\1 line\n<!-- end: a -->\n\nAfter.\n\n"
        "<!-- begin: b -->\nanother\n<!-- end: b -->\n"
    )
    assert path.read_text() == expected
    write_section(path, "a", "new \\1 line")
    assert path.read_text() == expected
    path.unlink()
    write_section(path, "a", "first")
    assert path.read_text() == "<!-- begin: a -->\nfirst\n<!-- end: a -->\n"


def test_a_lost_marker_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("<!-- begin: a -->\nold\n")
    with pytest.raises(PivotuneError, match="Restore the marker"):
        write_section(path, "a", "new")
