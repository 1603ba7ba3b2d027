"""Tables in columns of even width, whatever the script."""

from __future__ import annotations

from pivotune.tables import table


def test_plain_and_markdown() -> None:
    rows = [["a", "1"], ["long", "22"]]
    assert table(["", "n"], rows).splitlines() == ["       n", "--------", "a      1", "long   22"]
    assert table(["", "n"], rows, markdown=True).splitlines() == [
        "|      | n  |",
        "|------|----|",
        "| a    | 1  |",
        "| long | 22 |",
    ]


def test_wide_and_combining_characters_count_as_a_terminal_shows_them() -> None:
    lines = table(["x", "y"], [["中文", "1"], ["e\u0301", "2"], ["abcd", "3"]], markdown=True).splitlines()
    assert lines[2] == "| 中文 | 1 |" and lines[3] == "| e\u0301    | 2 |" and lines[4] == "| abcd | 3 |"
