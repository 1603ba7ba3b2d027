"""Pages of results: sections are replaced, prose is not touched, and what is read back is what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.pages import cell, sections, sentence, write_section
from pivotune.errors import PivotuneError


def test_sections_are_replaced_and_prose_stays(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
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
    assert sections(tmp_path) == {"a": "new \\1 line", "b": "another"}
    path.unlink()
    write_section(path, "a", "first")
    assert path.read_text() == "<!-- begin: a -->\nfirst\n<!-- end: a -->\n"


def test_a_lost_marker_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("<!-- begin: a -->\nold\n")
    with pytest.raises(PivotuneError, match="Restore the marker"):
        write_section(path, "a", "new")
    with pytest.raises(PivotuneError, match="Restore the marker"):
        sections(tmp_path)


def test_two_sections_of_one_name_are_an_error(tmp_path: Path) -> None:
    for name in ("one.md", "two.md"):
        write_section(tmp_path / name, "a", "text")
    with pytest.raises(PivotuneError, match=r"two\.md: there are two sections 'a'"):
        sections(tmp_path)


SECTION = """    python -m experiments.x

* commit: abc; def

### First

| a | x, % | y |
|---|------|---|
| r | 1.0  | 2 |
| s | 3.0  | 4 |

### Second

|   | x, % |
|---|------|
| r | 5.0  |

| a | z |
|---|---|
| r | 6 |

Gain: none. Lose: r, s. The best scores 3.5 [1.0, 6.0], rank 2 of 3; the median 1.5.
"""


def test_cells_are_read_behind_their_heading() -> None:
    assert cell(SECTION, "First", "s", "x, %") == "3.0"
    assert cell(SECTION, "Second", "r", "x, %") == "5.0"
    assert cell(SECTION, "Second", "r", "z") == "6"
    for wrong in (("Second", "s", "x, %"), ("First", "r", "a"), ("Third", "r", "z")):
        with pytest.raises(PivotuneError, match=f"no table behind '{wrong[0]}'"):
            cell(SECTION, *wrong)


def test_sentences_are_read_to_their_end() -> None:
    assert sentence(SECTION, "python -m", "* commit:") == "abc; def"
    assert sentence(SECTION, "Second", "Gain:") == "none"
    assert sentence(SECTION, "Second", "Lose:") == "r, s"
    assert sentence(SECTION, "First", "The best scores") == "3.5 [1.0, 6.0], rank 2 of 3; the median 1.5"
    with pytest.raises(PivotuneError, match="no sentence behind 'Second' begins with 'Lost:'"):
        sentence(SECTION, "Second", "Lost:")
