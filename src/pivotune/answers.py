"""The file of answers that `pivotune generate --output` writes: nothing made is lost when the command is interrupted.

Answers go into OUTPUT.part as they are made, under a first line that says how; the same command then goes on from
there. When all are there, OUTPUT is written at once, in the order of the prompts, and OUTPUT.part is removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pivotune.errors import PivotuneError
from pivotune.files import as_json, check_output_file, write_text

_OWN = "pivotune generate"


class AnswerFile:
    """The answers of one call.

    Args:
        output: the file to write.
        settings: all that the answers depend on, for JSON.
        overwrite: whether the file may be replaced, and answers of other settings thrown away.

    Attributes:
        done: the answers of an interrupted call, by the place of their prompt.

    Raises:
        PivotuneError: a place where nothing can be written, a file that is not to be replaced, or an interrupted call
            with other settings.
    """

    def __init__(self, output: str, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = check_output_file("output", output, overwrite=overwrite)
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.done: dict[int, str] = {}
        self._size = 0  # of the unfinished file
        self._header = {"made by": _OWN, **settings}
        if os.path.lexists(self.part):
            self._resume(overwrite)

    def _resume(self, overwrite: bool) -> None:
        """Take over what an interrupted call has left."""
        header, *rows = self._lines()
        if not isinstance(header, dict) or header.get("made by") != _OWN:
            raise PivotuneError(
                f"output: {self.part} would hold the answers until all are made, but it is a file of yours. Move it, "
                "or name another output."
            )
        different = next((name for name, value in self._header.items() if header.get(name) != value), None)
        if different is None:
            self.done = dict(rows)
        elif not overwrite:
            raise PivotuneError(
                f"output: {self.part} holds {len(rows)} answers of an interrupted call with another {different} "
                f"({header.get(different)!r}, now {self._header[different]!r}). Repeat that call to go on, or throw "
                "them away with --overwrite true."
            )

    def _lines(self) -> list[Any]:
        """What the unfinished file holds; without a last line that was cut while it was written."""
        try:
            content = self.part.read_bytes()
            self._size = content.rfind(b"\n") + 1
            return [json.loads(line) for line in content[: self._size].splitlines()] or [None]
        except ValueError:
            return [None]
        except OSError as error:
            raise PivotuneError(f"output: {self.part} cannot be read: {error.strerror}.") from error

    def add(self, answers: Iterable[tuple[int, str]]) -> None:
        """Keep answers, each with the place of its prompt."""
        new = dict(answers)
        try:
            if not self.done:
                write_text(self.part, _line(self._header))
                self._size = self.part.stat().st_size
            with self.part.open("r+b") as file:
                file.truncate(self._size)  # a line that was cut goes
                file.seek(self._size)
                file.write("".join(map(_line, new.items())).encode())
                self._size = file.tell()
        except OSError as error:
            raise PivotuneError(f"output: {self.part} cannot be written: {error.strerror}. {self.kept}") from error
        self.done |= new

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the file itself."""
        try:
            write_text(self.path, "".join(map(_line, rows)))
            self.part.unlink(missing_ok=True)
        except OSError as error:
            raise PivotuneError(f"output: {self.path} cannot be written: {error.strerror}. {self.kept}") from error

    @property
    def kept(self) -> str:
        """What becomes of the answers made so far."""
        return f"{len(self.done)} answers are in {self.part}; the same command goes on from there."


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=as_json) + "\n"
