"""What `pivotune lens` has found in the runs, layer by layer: lens/lens.json of the run folders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pivotune.errors import PivotuneError
from pivotune.evaluation.compare.comparison import Comparison
from pivotune.evaluation.compare.entries import Member
from pivotune.evaluation.compare.plots import file_name
from pivotune.evaluation.page import Figures, Fold, Preformatted, Section
from pivotune.files import read_json


def lens_sections(comparison: Comparison, plots: Path) -> list[Section]:
    """One section, or none where no run was looked into."""
    found: dict[Path, Member] = {}
    for member in comparison.members():
        path = None if member.run is None else member.run / "lens" / "lens.json"
        if path is not None and path.is_file():
            found.setdefault(path.resolve(), member)
    names = Counter(member.name for member in found.values())
    parts = [
        _lens_part(path, member.name if names[member.name] == 1 else member.given, plots)
        for path, member in found.items()
    ]
    return [Section("Layer by layer", parts)] if parts else []


def _lens_part(path: Path, name: str, plots: Path) -> Fold:
    """The text of `pivotune lens` and its plots, drawn again where they are missing or older than the numbers."""
    from pivotune.lens.figures import draw
    from pivotune.lens.report import text

    report = read_json(path)
    try:
        content = Preformatted(text(report), text(report, markdown=True))
        written = path.stat().st_mtime
        pictures = [one for one in sorted(path.parent.glob("*.svg")) if one.stat().st_mtime >= written]
        if not pictures:
            pictures = [one for one in draw(report, plots / f"lens-{file_name(name)}") if one.suffix == ".svg"]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise PivotuneError(f"{path}: is no report of `pivotune lens` ({problem}). Run it again.") from error
    described = [(_lighter(one), f"{name}, lens: {one.stem.replace('_', ' ')}") for one in pictures]
    return Fold(f"{name}: language, similarity and calibration of each layer", [content, Figures(described, wide=True)])


def _lighter(svg: Path) -> Path:
    """Of a picture with thousands of points, the PNG is the smaller file."""
    png = svg.with_suffix(".png")
    return png if png.is_file() and png.stat().st_size < svg.stat().st_size else svg
