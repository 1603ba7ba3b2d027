"""What every plot of the lens shares: a figure that needs no screen, and its two files.

matplotlib's object interface is used throughout: no global state, no backend to choose, nothing to leak.
"""

from __future__ import annotations

import logging
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Noto Sans Arabic",
    "Noto Naskh Arabic",
    "Geeza Pro",
    "Segoe UI",
    "Arial Unicode MS",
)
"""Tried in this order for each glyph; the ones that are not installed are left out."""


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of `width` x `height` inches and its axes, without the lines at the top and the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path_without_suffix: str | Path) -> list[Path]:
    """Write `figure` as PNG (150 dpi) and as SVG, and close it: it is empty afterwards.

    Args:
        figure: from `new_figure`.
        path_without_suffix: where to write; `.png` and `.svg` are appended. Its folder is created if need be.

    Returns:
        The two files.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    path = Path(path_without_suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
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
        figure.savefig(png, dpi=150)
        figure.savefig(svg, metadata={"Date": None})
    figure.clear()
    if any("missing from font" in str(one.message) for one in told):
        logger.warning(
            "%s: no installed font has all of its characters. Install e.g. Noto Sans CJK and Noto Sans Arabic.", png
        )
    return [png, svg]


@cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]
