"""CC-Tuning's prompts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pivotune.evaluation.benchmarks.cc_release import split_options

LETTERS = ("A", "B", "C", "D")


# Text with the separators that some readers take for ends of lines.
line = st.text(st.sampled_from("ab(A) .\x85\u2028\x0b\x1c।。"), min_size=1).filter(str.strip)


@given(question=line, options=st.lists(line.filter(lambda text: "(" not in text), min_size=4, max_size=4), tail=line)
def test_options_are_found_behind_any_question(question: str, options: list[str], tail: str) -> None:
    listed = "".join(f"\n({label}) {option}" for label, option in zip(LETTERS, options, strict=True))
    found = split_options(f"Do.\n\n{question}\n(A) in the question{listed}\n\n{tail}", LETTERS, "here")
    assert found[0] == f"Do.\n\n{question}\n(A) in the question".strip()
    assert found[1] == tuple(option.strip() for option in options)
