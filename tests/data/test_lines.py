"""Lines of files and streams."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotune.data import DataError
from pivotune.data.lines import text_lines


def read(content: bytes, encoding: str = "utf-8") -> list[str]:
    return [text for _, text in text_lines(io.BytesIO(content), "p.txt", encoding)]


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"])), min_size=1),
    st.sampled_from(["\n", "\r\n"]),
)
def test_lines_come_back_as_they_were_written(lines: list[str], end: str) -> None:
    lines = [line.strip("\ufeff").rstrip("\r") for line in lines]
    content = "".join(line + end for line in lines).encode()
    assert read(content) == read(b"\xef\xbb\xbf" + content) == lines


def test_places_and_encodings() -> None:
    assert list(text_lines([b"a\n", b"b"], "standard input")) == [("standard input:1", "a"), ("standard input:2", "b")]
    assert read(b"caf\xe9\n", "latin-1") == ["café"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\ncaf\xe9\n", ["p.txt:2: malformed text: not UTF-8 at byte 3", "save it as UTF-8"]),
        ("a\nb".encode("utf-16"), ["p.txt:1", "not UTF-8 at byte 0"]),
        ("ab".encode("utf-16-le"), ["p.txt:1", "NUL byte"]),
        (b"\x7fELF\0\0", ["p.txt:1", "NUL byte"]),
    ],
)
def test_what_is_no_text(content: bytes, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(content)
    assert all(word in str(caught.value) for word in words), caught.value
