"""The model card: a head that YAML reads, and what a record says. Whole cards: tests/test_export.py."""

from __future__ import annotations

from pathlib import Path

import yaml

from pivotune.card import card, of_run


def head(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def test_names_stay_what_they_are() -> None:
    """YAML alone would read these as a number, a truth value and a comment."""
    for name in ("1e5", "no", "a: b #c"):
        assert head(card({"objectives": {}, "base_model": name, "rows": {"no": 3}}, ""))["base_model"] == name
    assert head(card({"objectives": {}, "rows": {"no": 3}}, ""))["language"] == ["no"]


def test_an_empty_record_makes_a_card() -> None:
    text = card({}, "How.")
    assert "# Plain fine-tuning, by Pivotune\n\nHow." in text and "## Training" not in text and "bibtex" not in text


def test_files_as_users_give_them() -> None:
    for files in ("a/x.jsonl", Path("a/x.jsonl"), ["a/x.jsonl"], [Path("a/x.jsonl")]):
        assert "* data: `x.jsonl`\n" in card({"data": {"train": files}}, "")


def test_of_a_run() -> None:
    connected = of_run({"objectives": {"cc_tuning": {"ridge": 0.01, "relative_norm": None}}, "adapter": True}, "x.json")
    assert "connection of this model is OFF" in connected and "`x.json`" in connected
    assert head(connected)["library_name"] == "peft" and "* cc_tuning: ridge 0.01\n" in connected
    both = of_run({"objectives": {"deep_supervision": {}, "cc_tuning": {}}}, "x.json")
    assert both.count("@inproceedings") == 2
    assert "ordinary model folder" in of_run({"objectives": {"deep_supervision": {}}}, "x.json")
