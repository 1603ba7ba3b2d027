"""XStoryCloze."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotune.evaluation.benchmarks import load
from pivotune.evaluation.benchmarks.xstorycloze import respaced


def test_fields(folder: Path) -> None:
    story = load("xstorycloze", "ar", folder)[0]
    assert story.context == "ar sun. Rain came. It is 8.30 now. End 0" and story.options == ("Yes.", "No.")


@given(st.text(st.sampled_from("aB8.!?。।\"' ,") | st.characters()))
def test_respacing_adds_spaces_only(story: str) -> None:
    spaced = respaced(story)
    assert "".join(spaced.split()) == "".join(story.split())
    assert respaced(spaced) == spaced


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ("I ran.He fell!She saw?We left.", "I ran. He fell! She saw? We left."),
        ('He said "No."Then he left.', 'He said "No." Then he left.'),
        ("At 8 P.M.He slept till 8.30 a.m.12 men came.", "At 8 P.M. He slept till 8.30 a.m. 12 men came."),
        ("他来了。她走了！30分钟后", "他来了。 她走了！ 30分钟后"),
        ("वह आया।वह गया।", "वह आया। वह गया।"),
        ("Wait... what?!No.", "Wait... what?! No."),
    ],
)
def test_respacing(story: str, expected: str) -> None:
    assert respaced(story) == expected


def test_stories_get_their_spaces_back(bench: Path) -> None:
    for language, end in (("en", ". "), ("zh", "。 ")):
        stories = [item.context for item in load("xstorycloze", language, bench)]
        assert sum(story.count(end) >= 2 for story in stories) / len(stories) > 0.9
    assert load("xstorycloze", "en", bench)[122].context.startswith("There is a cemetery with 199 grave stones. 12 men")
