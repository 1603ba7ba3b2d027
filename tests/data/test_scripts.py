"""Which texts are judged by their script, and how."""

from __future__ import annotations

import pytest

from pivotune.data.scripts import missing_script


@pytest.mark.parametrize(
    ("text", "language", "missing"),
    [
        ("你好", "zh", None),
        ("Hello", "zh", "Chinese"),
        ("Hello 你", "zh", None),
        ("123 + 4 = ?", "zh", None),  # no letter of any script
        ("nǐ hǎo", "zh-Latn", None),  # another script by its tag
        ("Hello", "zh-Hans", "Chinese"),
        ("Hello", "zh-TW", "Chinese"),
        ("かな", "ja", None),
        ("한국어", "ko", None),
        ("مرحبا", "fa", None),
        ("Привет", "en", "Latin"),
        ("Hello", "sw", None),  # Latin letters tell nothing of a language that has none of its own
        ("xin chào", "vi", None),
        ("สวัสดี", "th", None),
        ("Hello", "th", "Thai"),
    ],
)
def test_missing_script(text: str, language: str, missing: str | None) -> None:
    assert missing_script(text, language) == missing
