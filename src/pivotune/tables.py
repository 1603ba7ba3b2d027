"""Tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import combining, east_asian_width


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Cells under their heads, in columns of even width.

    Args:
        heads: one per column.
        rows: of as many cells.
        markdown: as a Markdown table.
    """
    cells = [list(heads), *map(list, rows)]
    widths = [max(_width(row[k]) for row in cells) for k in range(len(heads))]
    edge, between = ("| ", " | ") if markdown else ("", "   ")

    def line(row: list[str]) -> str:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        return (edge + between.join(padded) + edge[::-1]).rstrip()

    rule = "|".join(["", *("-" * (width + 2) for width in widths), ""]) if markdown else "-" * _width(line(cells[0]))
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _width(text: str) -> int:
    """Columns that a terminal uses: two for a wide character, none for a combining one."""
    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)
