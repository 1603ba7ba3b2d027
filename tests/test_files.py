"""Files that commands write: what is there already, what cannot be written, and two processes at a time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotune import files
from pivotune.errors import PivotuneError
from pivotune.files import (
    LOCK,
    check_output_file,
    check_output_files,
    locked,
    read_json,
    reason,
    size,
    write_text,
    writing,
)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("mine")
    with pytest.raises(PivotuneError, match=r"^output: .*mine\.json already exists.*--overwrite true"):
        check_output_file("output", mine)
    assert check_output_file("output", mine, overwrite=True) == mine
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for link in ("link", "dangling"):
        with pytest.raises(PivotuneError, match="already exists"):
            check_output_file("output", tmp_path / link)
    assert check_output_files("output", tmp_path, ["other.json"]) == tmp_path
    with pytest.raises(PivotuneError, match="already exists"):
        check_output_files("output", tmp_path, ["other.json", "mine.json"])


def test_places_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path, problem in {
        tmp_path: "is a folder; name a file",
        tmp_path / "new" / "x": "the folder of .* does not exist",
        tmp_path / "file" / "x": "the folder of .* does not exist",
    }.items():
        with pytest.raises(PivotuneError, match=f"^output: .*{problem}"):
            check_output_file("output", path)
    assert check_output_file("output", tmp_path / "new" / "x", new_folder=True)
    with pytest.raises(PivotuneError, match="is a file, so"):
        check_output_file("output", tmp_path / "file" / "new" / "x", new_folder=True)
    with pytest.raises(PivotuneError, match="is a file; name a folder"):
        check_output_files("output", tmp_path / "file", ["x"])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PivotuneError, match="no permission"):
        check_output_file("output", tmp_path / "x")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    (tmp_path / "scores.json.tmp").write_text("a file of the user's")
    write_text(path, "北京\n")
    assert path.read_text(encoding="utf-8") == "北京\n"
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(PivotuneError, match=r"scores\.json: cannot be written: No space left on device\."):
                write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "北京\n"
    assert {one.name for one in tmp_path.iterdir()} == {"scores.json", "scores.json.tmp"}
    assert (tmp_path / "scores.json.tmp").read_text() == "a file of the user's"


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_what_cannot_be_written_is_one_line(code: int) -> None:
    with pytest.raises(PivotuneError) as error, writing("runs/zh"):
        raise OSError(code, os.strerror(code))
    assert str(error.value).startswith(f"runs/zh: cannot be written: {os.strerror(code)}. ")
    assert "\n" not in str(error.value)


def test_json_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1,\n"b": ')
    with pytest.raises(PivotuneError, match=r"config\.json:2: is not valid JSON"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(PivotuneError, match=r"config\.json:1: is not valid JSON"):
        read_json(path)
    with pytest.raises(PivotuneError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "content.json"
    write_text(path, json.dumps(content))
    assert read_json(path) == content


def test_reasons_are_one_line() -> None:
    assert reason(OSError(errno.EIO, "Input/output error", "x")) == "Input/output error"
    assert reason(ValueError("first.\nsecond")) == "first"
    assert reason(KeyError("peft_type")) == "'peft_type' is missing"
    assert reason(EOFError()) == "EOFError"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (14 * 10**9, "14.0 GB"), (10**16, "10000.0 TB")],
)
def test_sizes_are_as_people_read_them(count: int, shown: str) -> None:
    assert size(count) == shown


# Two processes at a time -----------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from pivotune.files import locked
with locked("output", Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    arguments = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(PivotuneError, match=r"^output: another process is writing into .*run\."),
            locked("output", folder),
        ):
            pass
        assert (folder / LOCK).exists()
        other.kill()
    with locked("output", folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_folder_that_nothing_came_of_goes_again(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(RuntimeError), locked("output", tmp_path / name):
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoLock(files.FileLock):
        def _acquire(self) -> None:
            raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(files, "FileLock", NoLock)
    with locked("output", tmp_path):
        pass
    assert "cannot be locked against a second process" in caplog.text
