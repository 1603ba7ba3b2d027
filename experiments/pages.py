"""Pages of results: sections between markers, written by the experiments; prose outside of them is left alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.intervals import Interval
from pivotune.errors import PivotuneError


def write_section(path: Path, name: str, content: str) -> None:
    """Put the content between the section's markers; a section that is not there yet goes to the end."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
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


def publish(
    name: str,
    given: Sequence[str],
    results: Iterable[Mapping[str, Any]],
    about: Iterable[str],
    body: str,
    path: Path | None,
    section: str | None = None,
) -> None:
    """Print the section of `python -m experiments.NAME GIVEN`; write it into the file, where there is one.

    `results` have the commit, versions and machine that each was made with; `about` are further lines of the head. The
    section is called as the experiment, unless `section` gives it a name.
    """
    head = [f"    {shlex.join(['python', '-m', f'experiments.{name}', *given])}", "", *origin(results)]
    text = "\n".join([*head, *(f"* {line}" for line in about)]) + f"\n\n{body}"
    print(f"\n{text}")
    if path:
        write_section(path, section or name, text)


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
