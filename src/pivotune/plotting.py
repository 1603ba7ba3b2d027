"""What every plot of the lens shares: a figure that needs no screen, its two files, fonts, and languages by name.

matplotlib's object interface is used throughout: no global state, no backend to choose, nothing to leak.
"""

from __future__ import annotations

import io
import logging
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pivotune.files import make_folder, write_bytes

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Pivotune CJK",
    "Noto Sans Arabic",
    "Noto Naskh Arabic",
    "Geeza Pro",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Gujarati",
    "Noto Sans Gurmukhi",
    "Noto Sans Tamil",
    "Noto Sans Telugu",
    "Noto Sans Kannada",
    "Noto Sans Malayalam",
    "Noto Sans Sinhala",
    "Noto Sans Thai",
    "Noto Sans Khmer",
    "Noto Sans Myanmar",
    "Noto Sans Ethiopic",
    "Segoe UI",
    "Nirmala UI",
    "Leelawadee UI",
    "Arial Unicode MS",
)
"""Tried in this order for each glyph; the ones that are not installed are left out. "Pivotune CJK" ships with the
package: the characters of language names and of the lab (fonts/README.md). DejaVu Sans ships with matplotlib, and has
Latin, Cyrillic, Greek, Arabic, Hebrew and more."""

SHIPPED_FONT = Path(__file__).with_name("fonts") / "PivotuneCJK-Regular.otf"

LEFT_TO_RIGHT = "\N{LEFT-TO-RIGHT MARK}"
"""In front of a label that may begin with an Arabic or Hebrew word: the label as a whole runs from left to right."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by colour-blind readers too (Okabe and Ito 2008)."""
GREY = "#767676"


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of `width` x `height` inches and its axes, without the lines at the top and the right."""
    figure, panels = new_panels(1, 1, width, height)
    return figure, panels[0, 0]


def new_panels(
    rows: int, columns: int, width: float, height: float, *, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """Like `new_figure`, with (rows, columns) axes; `sharey`: all on one vertical scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08))  # inches
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save(figure: Figure, path_without_suffix: str | Path) -> list[Path]:
    """Write `figure` as PNG (150 dpi) and as SVG, and close it: it is empty afterwards.

    Args:
        figure: from `new_figure` or `new_panels`.
        path_without_suffix: where to write; `.png` and `.svg` are appended. Its folder is created if need be.

    Returns:
        The two files.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    path = Path(path_without_suffix)
    make_folder(path.parent)
    png, svg = (path.with_name(f"{path.name}.{ending}") for ending in ("png", "svg"))
    for text in figure.findobj(Text):
        text.set_fontfamily(_fonts())
    # The context is for labels that are made only when the figure is drawn. Without a date and with fixed ids, the
    # same figure is the same file.
    with (
        rc_context({"font.family": _fonts(), "svg.hashsalt": "pivotune"}),
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        for file, how in ((png, {"dpi": 150}), (svg, {"metadata": {"Date": None}})):
            drawn = io.BytesIO()  # so that no half of a file is left where the disk is full
            figure.savefig(drawn, format=file.suffix[1:], **how)
            write_bytes(file, drawn.getvalue())
    figure.clear()
    if any("missing from font" in str(one.message) for one in told):
        logger.warning(
            "%s: no installed font has all of its characters. Install Noto Sans for their script (e.g. Noto Sans CJK).",
            png,
        )
    return [png, svg]


def language_name(code: str, own: bool = True) -> str:
    """A language as its speakers and as English readers call it: "Tiếng Việt · Vietnamese".

    Args:
        code: "zh", "pt-BR", "zh_Hant".
        own: with the language's own name. It is left out where it is the English one, and where the fonts of the plots
            cannot write it.

    Returns:
        The name; `code` itself where CLDR knows no such language. In a plot, put `LEFT_TO_RIGHT` in front.
    """
    from babel import Locale, UnknownLocaleError

    parts = code.replace("-", "_").split("_")
    try:
        if parts[0].lower() == "und":  # undetermined, of which CLDR would guess that it is English
            raise UnknownLocaleError(code)
        locale = Locale.parse("_".join(parts))
    except (UnknownLocaleError, ValueError):  # many a language has a name in CLDR, and no locale
        return str(Locale("en").languages.get(code.lower(), code))
    # The likely script and territory are filled in; only those that were asked for belong into the name.
    named = Locale.get_language_name if len(parts) == 1 else Locale.get_display_name
    english, native = str(named(locale, "en") or code), str(named(locale) or "")
    native = native[:1].title() + native[1:]  # not upper(): Georgian capitals are for whole words
    if not own or native in ("", english) or not drawable(native):
        return english
    return f"{native} · {english}"


def drawable(text: str) -> bool:
    """Whether the fonts of the plots have every character of `text`."""
    return all(ord(character) in _characters() for character in text)


@cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    fontManager.addfont(SHIPPED_FONT)
    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]


@cache
def _characters() -> frozenset[int]:
    """Code points that at least one of the fonts has a glyph for."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = (findfont(FontProperties(family=name), fallback_to_default=False) for name in _fonts())
    return frozenset().union(*(get_font(path).get_charmap() for path in paths))
