"""Pages of results: sections between markers, written by the experiments; prose outside of them is left alone.

A section is also what is read back: the cells of an experiment are many and stay where it ran, its tables are in the
repository.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pivotune.errors import PivotuneError
from pivotune.uncertainty import Interval

# Writing -------------------------------------------------------------------------------------------------------------


def write_section(path: Path, name: str, content: str) -> None:
    """Put the content between the section's markers; a section that is not there yet goes to the end."""
    begin, end = _markers(name)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    body = content.strip("\n")  # the command of the head is an indented block
    section = f"{begin}\n{body}\n{end}"
    if begin not in text:
        path.write_text(f"{text.rstrip()}\n\n{section}\n".lstrip(), encoding="utf-8")
        return
    if end not in text.split(begin, 1)[1]:
        raise PivotuneError(f"{path}: {begin} has no {end} behind it. Restore the marker.")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
    path.write_text(pattern.sub(lambda _: section, text, count=1), encoding="utf-8")


def head(name: str, given: Sequence[str], results: Iterable[Mapping[str, Any]], about: Iterable[str]) -> str:
    """The head of a section that `python -m experiments.NAME GIVEN` writes.

    Args:
        results: with the commit, versions and machine that each was made with.
        about: further lines.
    """
    command = f"    {shlex.join(['python', '-m', f'experiments.{name}', *given])}"
    return "\n".join([command, "", *origin(results), *(f"* {line}" for line in about)])


def origin(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """What made the results, in two lines: commits; versions and machines."""
    results = list(results)
    commits, machines = (sorted({one[what] for one in results}) for what in ("commit", "machine"))
    versions = sorted({", ".join(f"{name} {v}" for name, v in one["versions"].items()) for one in results})
    return [f"* commit: {'; '.join(commits)}", f"* {'; '.join(versions)}; {'; '.join(machines)}"]


def percent(value: Interval) -> str:
    mean, low, high = (f"{100 * part:.1f}" for part in value)
    return f"{mean} [{low}, {high}]"


def points(value: Interval) -> str:
    mean, low, high = (f"{round(100 * part, 1) + 0.0:+.1f}" for part in value)  # + 0.0: no minus before a zero
    return f"{mean} [{low}, {high}]"


# Reading -------------------------------------------------------------------------------------------------------------


def sections(folder: Path) -> dict[str, str]:
    """Name -> content, of all pages of a folder.

    Raises:
        PivotuneError: a marker is missing, or two sections have one name.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"<!-- begin: (.*?) -->", text):
            begin, end = _markers(name)
            if name in found:
                raise PivotuneError(f"{path}: there are two sections {name!r}. Remove one.")
            if end not in text.split(begin, 1)[1]:
                raise PivotuneError(f"{path}: {begin} has no {end} behind it. Restore the marker.")
            found[name] = text.split(begin, 1)[1].split(end, 1)[0].strip("\n")
    return found


def cell(section: str, where: str, row: str, column: str) -> str:
    """A cell of a section: of the first table behind a line with the words `where` that has this row and column.

    Raises:
        PivotuneError: there is none.
    """
    lines = iter(_behind(section, where))
    for line in lines:
        if not line.startswith("|"):
            continue
        heads = _cells(line)
        for line in lines:
            if not line.startswith("|"):
                break
            cells = _cells(line)
            if cells[0] == row and column in heads[1:]:
                return cells[heads.index(column, 1)]
    raise PivotuneError(f"no table behind {where!r} has a row {row!r} and a column {column!r}.")


def sentence(section: str, where: str, begin: str) -> str:
    """What a sentence of a section says behind the words `begin`, which a line or a sentence begins with: of the first
    one behind a line with the words `where`.

    Raises:
        PivotuneError: there is none.
    """
    pattern = re.compile(rf"(?:^|(?<=\. )){re.escape(begin)}(.*?)(?:\.?$|\. )")
    for line in _behind(section, where):
        if found := pattern.search(line):
            return found[1].strip()
    raise PivotuneError(f"no sentence behind {where!r} begins with {begin!r}.")


def _behind(section: str, where: str) -> list[str]:
    """The lines from the first one with these words on."""
    lines = section.splitlines()
    return next((lines[k:] for k, line in enumerate(lines) if where in line and not line.startswith("|")), [])


def _cells(line: str) -> list[str]:
    return [part.strip() for part in line.strip().strip("|").split("|")]


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
