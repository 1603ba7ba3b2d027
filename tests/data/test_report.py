"""Nothing is dropped without being counted, and the places of the first few are kept."""

from __future__ import annotations

from pivotune.data.report import PLACES_SHOWN, DataError, Report


def test_an_error_names_place_reason_problem_and_fix() -> None:
    error = DataError("a.jsonl:3", "duplicate id", "id 'x' is there twice", "rename one")
    assert str(error) == "a.jsonl:3: duplicate id: id 'x' is there twice. Fix: rename one"
    assert (error.where, error.reason) == ("a.jsonl:3", "duplicate id")


def test_counted_and_told() -> None:
    report = Report()
    for paired in (True, True, False):
        report.keep("zh", paired)
    report.keep("vi", False)
    for line in range(PLACES_SHOWN + 1):
        report.skip(DataError(f"a:{line}", "empty answer", "", ""))
    report.note("an odd field", "a:9")
    report.truncated, report.ends["</s>"] = 2, 5
    report.remarks.append("a remark")
    assert report.kept == 4 and report.pair_share("zh") == 2 / 3 and report.pair_share("en") == 0.0
    assert str(report).splitlines() == [
        "4 kept, 6 skipped",
        "  zh: 3 rows, 2 with English (66.7%)",
        "  vi: 1 rows, 0 with English (0.0%)",
        "  skipped, empty answer: 6 (a:0, a:1, a:2, a:3, a:4, ...)",
        "  rows with an odd field: 1 (a:9)",
        "  answers cut at the end: 2 target, 0 English",
        "  answers end with </s> (5)",
        "  a remark",
    ]


def test_notes_of_an_earlier_pass() -> None:
    earlier, later = Report(), Report()
    earlier.note("n", "a:1")
    earlier.skip(DataError("a:2", "r", "", ""))
    later.take_notes(earlier)
    assert later.notes == {"n": 1} and later.places == {"n": ["a:1"]} and not later.skipped
