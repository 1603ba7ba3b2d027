"""A report as one HTML file and as Markdown, from the same parts.

The HTML needs no network, no script and no other file: styles and pictures are in it, and a content security policy
forbids anything else. It follows the reader's light or dark setting and the width of the screen; a wide table scrolls
inside itself with its first column in place. All text is escaped.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import jinja2

from pivotune.plotting import language_name
from pivotune.tables import table

Change = Literal["", "up", "down"]
MARKS = {"": "", "up": "▲*", "down": "▼*"}
"""Beside a significant difference, so that colour is never alone."""


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes:
        text: what it says.
        small: what stands under it.
        delta: a difference.
        change: "up" or "down" where the difference is significant.
        language: a language tag; its name stands in place of `text`.
    """

    text: str = ""
    small: str = ""
    delta: str = ""
    change: Change = ""
    language: str | None = None

    @property
    def words(self) -> str:
        """All but the difference, on one line."""
        text = self.text if self.language is None else " · ".join(filter(None, self.names))
        return " ".join(filter(None, (text, self.small)))

    @property
    def names(self) -> tuple[str, str]:
        """The language's own name, empty where it is the English one, and the English one."""
        assert self.language is not None
        both, english = language_name(self.language), language_name(self.language, own=False)
        return both.removesuffix(english).removesuffix(" · "), english


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each a heading."""

    heads: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Figures:
    """Pictures (PNG or SVG), each with the words that stand for it; wide ones scroll on a small screen."""

    pictures: Sequence[tuple[Path, str]]
    wide: bool = False
    kind: str = "figures"

    @property
    def embedded(self) -> list[tuple[str, str]]:
        """As data URIs."""
        return [(_data_uri(path), words) for path, words in self.pictures]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Points:
    """A list; an important one stands out."""

    texts: Sequence[str]
    important: bool = False
    kind: str = "points"


@dataclass(frozen=True)
class Preformatted:
    """Text with its line breaks; `markdown` is how Markdown writes it."""

    text: str
    markdown: str
    kind: str = "preformatted"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: str = "heading"


@dataclass(frozen=True)
class Fold:
    """Parts that are opened by a click."""

    summary: str
    parts: Sequence[Part]
    kind: str = "fold"


Part = Table | Figures | Paragraph | Points | Preformatted | Heading | Fold


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    lead: Sequence[Part]
    sections: Sequence[Section] = field(default_factory=list)


# Markdown ------------------------------------------------------------------------------------------------------------


def markdown(page: Page, folder: Path) -> str:
    """The page as Markdown, its pictures linked relative to `folder`."""
    parts = [f"# {_plain(page.title)}", *_written(page.lead, folder)]
    for section in page.sections:
        parts += [f"## {_plain(section.title)}", *_written(section.parts, folder)]
    return "\n\n".join(parts) + "\n"


def _written(parts: Iterable[Part], folder: Path) -> list[str]:
    return [text for part in parts for text in _markdown_of(part, folder)]


def _markdown_of(part: Part, folder: Path) -> list[str]:
    match part:
        case Table():
            rows = [[_markdown_cell(cell) for cell in row] for row in part.rows]
            caption = [_plain(part.caption)] if part.caption else []
            return [*caption, table([_plain(head) for head in part.heads], rows, markdown=True)]
        case Figures():
            return [f"![{_plain(words)}](<{_link(path, folder)}>)" for path, words in part.pictures]
        case Paragraph():
            return [_plain(part.text)]
        case Points():
            mark = "**Note:** " if part.important else ""
            return ["\n".join(f"* {mark}{_plain(text)}" for text in part.texts)]
        case Preformatted():
            return [part.markdown.replace("&", "&amp;").replace("<", "&lt;")]
        case Heading():
            return [f"### {_plain(part.text)}"]
        case Fold():
            return [f"### {_plain(part.summary)}", *_written(part.parts, folder)]


def _markdown_cell(cell: TableCell) -> str:
    delta = f"**{cell.delta}** {MARKS[cell.change]}" if cell.change else cell.delta
    return _plain("; ".join(filter(None, (cell.words, delta))))


def _link(path: Path, folder: Path) -> str:
    """The PNG, which every reader of Markdown shows, as seen from `folder`."""
    png = path.with_suffix(".png")
    return Path(os.path.relpath(png if png.exists() else path, folder)).as_posix()


def _plain(text: str) -> str:
    """Text that Markdown takes for text: no HTML, no border of a cell, no code, no link, and on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\|`":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("](", "]\\(")


# HTML ----------------------------------------------------------------------------------------------------------------


def html(page: Page) -> str:
    """The page as one HTML file."""
    return _template().render(page=page, marks=MARKS)


def _data_uri(path: Path) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("page.html.jinja").read_text("utf-8"))
