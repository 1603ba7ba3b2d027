from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from babel import Locale
from babel.localedata import locale_identifiers
from fontTools.ttLib import TTFont

from pivotune import plotting
from pivotune.errors import PivotuneError
from pivotune.lab.templates import QUESTIONS, SCAFFOLD, STATEMENTS
from pivotune.lab.world import World
from pivotune.plotting import LEFT_TO_RIGHT, SHIPPED_FONT, drawable, language_name, new_figure, new_panels, save


def ink(text: str) -> np.ndarray:
    """Which pixels of the drawn text are dark: (height, width), cut to the text."""
    figure, axes = new_figure(8, 2)
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, fontsize=40, ha="center", va="center", fontfamily=plotting._fonts())
    figure.canvas.draw()
    dark = np.asarray(figure.canvas.buffer_rgba())[..., 0] < 128  # type: ignore[attr-defined]
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    return dark[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize("code,expected", [
    ("en", "English"),
    ("zh", "中文 · Chinese"),
    ("ja", "日本語 · Japanese"),
    ("ko", "한국어 · Korean"),
    ("ar", "العربية · Arabic"),
    ("vi", "Tiếng Việt · Vietnamese"),
    ("pt-BR", "Português (Brasil) · Portuguese (Brazil)"),
    ("zh_Hant", "中文 (繁體) · Chinese (Traditional)"),
    ("zho", "中文 · Chinese"),
    ("ka", "ქართული · Georgian"),  # no title case: Georgian capitals are for whole words
    ("tlh", "Klingon"),  # a name in CLDR, but no locale
    ("und", "Unknown language"),
    ("xx", "xx"),
    ("no language", "no language"),
    ("", ""),
])  # fmt: skip
def test_languages_by_name(code: str, expected: str) -> None:
    assert language_name(code) == expected
    assert language_name(code, own=False) == expected.split(" · ")[-1]


def test_a_name_that_no_font_can_write_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "_characters", lambda: frozenset(map(ord, "中文 ")))
    assert language_name("zh") == "中文 · Chinese"
    assert language_name("th") == "Thai"


def test_language_names_are_drawn_without_empty_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {code: language_name(code) for code in locale_identifiers()}
    assert len(names) > 500
    assert all(map(drawable, names.values()))
    figure, axes = new_figure(4, 4)
    axes.set_axis_off()
    for k, code in enumerate(("zh", "zh_Hant", "ja", "ko", "ar", "vi", "ru", "th", "bn", "te", "sw", "he")):
        axes.text(0, k / 12, names[code])
    with caplog.at_level(logging.WARNING):
        save(figure, tmp_path / "names")
    assert not caplog.records


def test_a_text_beyond_the_fonts_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    figure, axes = new_figure(2, 1)
    axes.set_title("\U0001321a")  # a hieroglyph
    save(figure, tmp_path / "plot")
    assert "no installed font has all of its characters" in caplog.text


def test_arabic_is_joined_and_runs_from_right_to_left() -> None:
    joined, apart = ink("ببب"), ink("ب\u200cب\u200cب")
    assert joined.any(axis=0).all(), "a stroke without a gap"
    assert not apart.any(axis=0).all()
    height = ink("با").argmax(axis=0)  # of each column, rows from the top to the ink
    columns = ink("با").any(axis=0)
    assert np.flatnonzero(columns & (height == 0)).max() < len(columns) / 2, "the alef, the second letter, is left"


def test_a_label_runs_from_left_to_right_behind_its_mark() -> None:
    plain, marked = ink("ب I"), ink(LEFT_TO_RIGHT + "ب I")
    assert plain[:, :3].any(axis=1).mean() > marked[:, :3].any(axis=1).mean(), "the tall I goes to the right"


def test_the_shipped_font_has_what_it_is_for() -> None:
    font = TTFont(SHIPPED_FONT)
    characters = set(map(chr, font.getBestCmap()))
    listed = SHIPPED_FONT.with_name("characters.txt").read_text("utf-8")
    assert characters == set(listed) - {"\n"}
    world = World.build()
    wanted = [
        name for fact in world.facts for names in (fact.subject_names, fact.value_names) for name in names.values()
    ]
    for templates in (STATEMENTS, QUESTIONS):
        wanted += [text for texts in templates["zh"].values() for text in texts]
    wanted += [SCAFFOLD["zh"].replace("\n", "")]
    wanted += [name for code in ("zh", "zh_Hant", "ja", "ko") for name in Locale.parse(code).languages.values()]
    assert [text for text in wanted if not drawable(text)] == []
    assert SHIPPED_FONT.stat().st_size < 400_000


def test_the_shipped_font_is_named_apart_and_licensed() -> None:
    names = {record.nameID: str(record) for record in TTFont(SHIPPED_FONT)["name"].names}
    assert names[1] == names[4] == "Pivotune CJK"
    assert "Open Font License" in names[13]
    licence = SHIPPED_FONT.with_name("OFL.txt").read_text("utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert "2014-2021 Adobe" in licence and "2014-2021 Adobe" in names[0]


def test_full_fonts_come_before_the_shipped_one() -> None:
    order = plotting.FONTS.index("Pivotune CJK")
    chinese = ("Noto Sans CJK SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei")
    assert all(plotting.FONTS.index(name) < order for name in chinese)
    assert "Pivotune CJK" in plotting._fonts()


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        figure, panels = new_panels(2, 3, 6, 4)
        assert panels.shape == (2, 3)
        panels[0, 0].set_title(language_name("zh"))
        files = save(figure, tmp_path / name / "plot")
        assert [file.name for file in files] == ["plot.png", "plot.svg"]
    for ending in ("png", "svg"):
        assert (tmp_path / "a" / f"plot.{ending}").read_bytes() == (tmp_path / "b" / f"plot.{ending}").read_bytes()


def test_a_plot_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plot.png").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PivotuneError, match=r"plot\.png: cannot be written: No space left on device"):
        save(new_panels(1, 1, 2, 2)[0], tmp_path / "plot")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
    assert (tmp_path / "plot.png").read_bytes() == b"old"
