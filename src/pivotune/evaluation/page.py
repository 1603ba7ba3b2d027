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
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_HTML)


_HTML = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{{ page.title }}</title>
<style>
:root {
  --paper: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d5dae0; --band: #f4f6f8; --link: #0b57a4;
  --up: #08653a; --up-band: #dff3e6; --down: #9c2412; --down-band: #fde7e2; --warn: #fff3cd; --warn-ink: #5c4400;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e6e9ed; --soft: #a3acb7; --line: #39404a; --band: #1d2228; --link: #7db7ff;
    --up: #7fe0a5; --up-band: #12351f; --down: #ffab97; --down-band: #43190f; --warn: #3d3212; --warn-ink: #ffe29a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p, ul { max-width: 48rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; max-width: none; }
nav a { display: inline-block; padding: .3rem 0; }
.important { background: var(--warn); color: var(--warn-ink); padding: .5rem .75rem; border-radius: .375rem; }
ul.important { padding-left: 2rem; }
.scroll {
  overflow-x: auto; width: fit-content; max-width: 100%; margin: .5rem 0 1rem;
  border: 1px solid var(--line); border-radius: .375rem;
}
.scroll:focus-visible { outline: 3px solid var(--link); }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .5rem .75rem; caption-side: bottom; }
caption span { position: sticky; left: .75rem; display: block; max-width: min(46rem, calc(100vw - 4rem)); }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem; border-bottom: 1px solid var(--line); }
th, td { overflow-wrap: break-word; }
td { white-space: nowrap; }
thead th { background: var(--band); font-weight: 600; min-width: 6.5rem; max-width: 16rem; vertical-align: bottom; }
th:first-child {
  position: sticky; left: 0; z-index: 1; min-width: 6rem; max-width: min(11rem, 45vw); background: var(--band);
  border-right: 1px solid var(--line); font-weight: 600;
}
.small { display: block; color: var(--soft); font-size: .8rem; font-weight: 400; }
.delta { display: block; color: var(--soft); font-size: .8rem; }
.up, .down { font-weight: 600; padding: 0 .3rem; margin-left: -.3rem; border-radius: .25rem; width: fit-content; }
.up { color: var(--up); background: var(--up-band); }
.down { color: var(--down); background: var(--down-band); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .75rem; }
figure { margin: 0; }
.wide { grid-template-columns: minmax(0, 1fr); }
.wide figure { overflow-x: auto; }
.wide img { min-width: 46rem; max-width: 60rem; }
figure img {
  display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: .375rem;
}
pre { overflow-x: auto; background: var(--band); padding: .75rem; border-radius: .375rem; font-size: .8rem; }
pre { line-height: 1.4; overflow-wrap: normal; }
details { border: 1px solid var(--line); border-radius: .375rem; padding: 0 .75rem; margin: .75rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .6rem 0; }
td, caption { position: relative; }
@media (max-width: 40rem) { th, td { padding: .4rem .5rem; } }
@media print { details { border: 0; } .scroll { overflow: visible; } }
</style>
</head>
<body>
{% macro language(cell) %}
{% set own, english = cell.names %}
{% if own %}<bdi lang="{{ cell.language }}">{{ own }}</bdi><span class="small">{{ english }}</span>
{% else %}{{ english }}{% endif %}
{% endmacro %}
{% macro content(cell) %}
{% if cell.language is not none %}{{ language(cell) }}{% else %}{{ cell.text }}{% endif %}
{% if cell.small %}<span class="small">{{ cell.small }}</span>{% endif %}
{% if cell.delta %}<span class="delta {{ cell.change }}">
{%- if cell.change %}<span aria-hidden="true">{{ marks[cell.change] }}</span> {% endif %}
{{- cell.delta }}
{%- if cell.change %}<span class="unseen"> significantly
{{ "higher" if cell.change == "up" else "lower" }}</span>{% endif %}</span>{% endif %}
{% endmacro %}
{% macro part(one) %}
{% if one.kind == "text" %}<p>{{ one.text }}</p>
{% elif one.kind == "points" %}<ul{% if one.important %} class="important"{% endif %}>
{% for text in one.texts %}<li>{{ text }}</li>{% endfor %}</ul>
{% elif one.kind == "heading" %}<h3>{{ one.text }}</h3>
{% elif one.kind == "preformatted" %}<pre tabindex="0">{{ one.text }}</pre>
{% elif one.kind == "figures" %}<div class="figures{{ " wide" if one.wide }}">
{% for uri, words in one.embedded %}<figure{% if one.wide %} tabindex="0"{% endif %}>
<img src="{{ uri }}" alt="{{ words }}" loading="lazy"></figure>
{% endfor %}</div>
{% elif one.kind == "fold" %}<details><summary>{{ one.summary }}</summary>
{% for inner in one.parts %}{{ part(inner) }}{% endfor %}</details>
{% elif one.kind == "table" %}<div class="scroll" tabindex="0" role="region" aria-label="{{ one.caption or "table" }}">
<table>{% if one.caption %}<caption><span>{{ one.caption }}</span></caption>{% endif %}
<thead><tr>{% for head in one.heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in one.rows %}<tr>{% for cell in row %}
{% if loop.first %}<th scope="row">{{ content(cell) }}</th>{% else %}<td>{{ content(cell) }}</td>{% endif %}
{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endif %}
{% endmacro %}
<main>
<h1>{{ page.title }}</h1>
{% for one in page.lead %}{{ part(one) }}{% endfor %}
<nav aria-label="Sections"><ul>
{% for section in page.sections %}<li><a href="#section-{{ loop.index }}">{{ section.title }}</a></li>{% endfor %}
</ul></nav>
{% for section in page.sections %}
<section aria-labelledby="section-{{ loop.index }}">
<h2 id="section-{{ loop.index }}">{{ section.title }}</h2>
{% for one in section.parts %}{{ part(one) }}{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
