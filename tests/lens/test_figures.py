from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from pivotune import plotting
from pivotune.lens import figures, panels
from pivotune.objectives.cc_tuning.measure import connection_figure
from pivotune.plotting import LEFT_TO_RIGHT

LAYERS = 12
Columns = dict[str, list[float | None]]


def columns(values: np.ndarray, half: float = 0.02) -> Columns:
    return {"mean": values.tolist(), "low": (values - half).tolist(), "high": (values + half).tolist()}


def table(curve: np.ndarray, base: np.ndarray | None, half: float = 0.02) -> dict[str, Any]:
    """A table of a report: the run's means over a base's."""
    return {
        "run": columns(curve, half),
        "baseline": None if base is None else columns(base, half),
        "difference": None if base is None else columns(curve - base, half),
    }


def of_language(draw: np.random.Generator, compared: bool, L: int) -> dict[str, Any]:
    x = np.linspace(0, 1, L)
    late, early, middle = 1 / (1 + np.exp(-12 * (x - 0.75))), np.exp(-8 * x), np.exp(-12 * (x - 0.55) ** 2)

    def noisy(curve: np.ndarray) -> np.ndarray:
        return curve + 0.01 * draw.normal(size=L)

    def one(curve: np.ndarray, base: np.ndarray, half: float = 0.02) -> dict[str, Any]:
        return table(noisy(curve), noisy(base) if compared else None, half)

    masses = {"english": (0.4 * middle, 0.2 * middle), "target": (0.7 * late, 0.5 * late), "shared": (0.1 * x, 0.1 * x)}
    masses["rest"] = tuple(1 - sum(mass[k] for mass in masses.values()) for k in range(2))  # type: ignore[assignment]
    picks, other_picks = (np.clip(p, 0, None) / np.clip(p, 0, None).sum() for p in (noisy(middle**4), noisy(late)))
    similar = {
        "parallel": (0.5 + 0.4 * middle, 0.5 + 0.3 * middle),
        "non_parallel": (0.5 + 0.1 * middle, 0.5 + 0.1 * middle),
        "retrieval_to_english": (0.1 + 0.8 * middle, 0.1 + 0.6 * middle),
        "retrieval_from_english": (0.1 + 0.7 * middle, 0.1 + 0.5 * middle),
        "mexa": (0.05 + 0.6 * middle, 0.05 + 0.4 * middle),
    }
    cka: list[list[float | None]] = [[None, *(level + level * middle[1:]).tolist()] for level in (0.4, 0.3)]
    summaries = [{"cka": {"mean": one, "last_token": one}, "pairs": 120, "pool": 50} for one in cka]
    tables = {
        "entropy": {
            "target": one(4 + 6 * early + 2 * (1 - late), 5 + 5 * early + 2 * (1 - late), 0.2),
            "english": one(3 + 6 * early + 2 * (1 - late), 3.2 + 6 * early + 2 * (1 - late), 0.2),
        },
        "language": {name: one(*pair, half=0.03) for name, pair in masses.items()},
        "similarity": {f"{how}/{name}": one(*pair) for how in ("mean", "last_token") for name, pair in similar.items()},
        "deep_supervision": {
            "question_nats": one(9 - 6 * late, 10 - 5 * late, 0.3),
            "answer_nats": one(8 - 7 * late, 9 - 5 * late, 0.3),
            "question_cosine": one(0.5 + 0.4 * middle, 0.4 + 0.3 * middle),
            "answer_cosine": one(0.2 + 0.5 * late, 0.1 + 0.4 * late),
        },
    }
    found: dict[str, Any] = {"examples": 120} | {
        name: {"tables": of_name, "summary": {"run": {}, "baseline": {} if compared else None}}
        for name, of_name in tables.items()
    }
    found["similarity"]["summary"] = dict(
        zip(("run", "baseline"), summaries if compared else [summaries[0], None], strict=True)
    )
    found["language_after_blank"] = found["language"]
    found["cc_tuning"] = {  # the base has no connection
        "tables": {
            "picks_english": {"run": columns(picks), "baseline": None, "difference": None},
            "picks_matrix": {"run": columns(other_picks), "baseline": None, "difference": None},
            "agreement": {"run": {"mean": [0.71], "low": [0.62], "high": [0.79]}, "baseline": None, "difference": None},
        },
        "summary": {
            "run": {
                "r2": 0.83,
                "r2_per_layer": (0.9 - 0.4 * x).tolist(),
                "r2_of_copy": -0.4,
                "r2_of_copy_per_layer": (-3 * early + 0.2).tolist(),
                "kappa": 0.52,
            },
            "baseline": None,
        },
    }
    return found


def projected(draw: np.random.Generator, languages: list[str], layers: list[int], pairs: int = 100) -> dict[str, Any]:
    of_pair = [language for language in languages for _ in range(pairs)]

    def points() -> dict[str, Any]:
        centres = {language: draw.normal(size=2) * 4 for language in languages}
        english = draw.normal(size=(len(of_pair), 2))
        target = english + 0.5 * draw.normal(size=english.shape) + np.stack([centres[code] for code in of_pair])
        return {"target": target.tolist(), "english": english.tolist()}

    return {
        "layers": {str(n): {"pca": points() | {"explained_variance": [0.41, 0.134]}, "tsne": points()} for n in layers},
        "language": of_pair,
        "pairs": len(of_pair),
        "pooling": "mean",
    }


def report(languages: list[str], *, compared: bool = True, layers: int = LAYERS) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    shown = [2, 6, layers]
    return {
        "run": "deep-supervision-zh",
        "baseline": "Llama-2-7b-hf" if compared else None,
        "layers": {"conversion": 2, "thinking": 6, "count": layers},
        "languages": {code: of_language(draw, compared, layers) for code in languages},
        "projection": {
            "run": projected(draw, languages, shown),
            "baseline": projected(draw, languages, shown) if compared else None,
        },
    }


NAMES = [
    "entropy",
    "language",
    "language_after_blank",
    "similarity_mean",
    "similarity_last_token",
    "supervision",
    "connection",
    "projection_pca",
    "projection_tsne",
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """By name, the figures that are made, instead of files."""
    made: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> list[Path]:
        for text in figure.findobj(Text):  # what the real one does first
            text.set_fontfamily(plotting._fonts())
        made[path.name] = figure
        return [path]

    monkeypatch.setattr(figures, "save", keep)
    monkeypatch.setattr(panels, "save", keep)
    return made


def shown(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


def line(axes: Axes, color: str, style: str) -> np.ndarray:
    """(2, K): the points of the only curve that looks like this."""
    (found,) = (
        one
        for one in axes.lines
        if one.get_color() == color and one.get_linestyle() == style and one.get_marker() == "o"
    )
    return np.array(found.get_data())


@pytest.mark.slow
def test_a_report_becomes_two_files_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        files = figures.draw(report(["zh", "ar"], layers=8), tmp_path / "lens")
    assert files == [tmp_path / "lens" / f"{name}.{ending}" for name in NAMES for ending in ("png", "svg")]
    assert all(file.stat().st_size > 5000 for file in files)
    assert not caplog.records, "every character has a glyph"


@pytest.mark.parametrize("languages,compared", [(["zh"], False), (["ar", "ja", "ko", "th"], True)])
def test_every_axis_is_labelled_and_nothing_covers_the_data(
    languages: list[str], compared: bool, drawn: dict[str, Figure], tmp_path: Path
) -> None:
    figures.draw(report(languages, compared=compared), tmp_path)
    assert list(drawn) == NAMES
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        (legend,) = figure.legends
        covered = legend.get_window_extent()
        labels = [text.get_text() for text in legend.get_texts()]
        assert len(set(labels)) == len(labels)
        assert figure.bbox.containsx(covered.x0) and figure.bbox.containsx(covered.x1), name
        panels = shown(figure)
        for axes in panels:
            assert not covered.overlaps(axes.get_tightbbox()), name
        assert all(axes.get_ylabel() for axes in panels if axes.get_subplotspec().is_first_col()), name
        assert all(axes.get_xlabel() for axes in panels if axes.get_subplotspec().is_last_row()), name
        if compared and name != "connection" and not name.startswith("projection"):
            assert {"deep-supervision-zh", "Llama-2-7b-hf"} <= set(labels)


def test_languages_head_their_panels_from_left_to_right(drawn: dict[str, Figure], tmp_path: Path) -> None:
    figures.entropy(report(["zh", "ar", "xx"]), tmp_path / "entropy")
    titles = [axes.get_title(loc="left") for axes in shown(drawn["entropy"])]
    names = ("中文 · Chinese", "العربية · Arabic", "xx")
    assert titles == [f"{LEFT_TO_RIGHT}{name} (120 pairs)" for name in names]


def test_curves_and_bands_are_the_tables(drawn: dict[str, Figure], tmp_path: Path) -> None:
    made = report(["zh"])
    figures.draw(made, tmp_path)
    found = made["languages"]["zh"]

    def check(axes: Axes, measure: str, name: str, color: str, factor: float = 1.0) -> None:
        for role, style in (("run", "-"), ("baseline", "--")):
            layer, mean = line(axes, color, style)
            np.testing.assert_array_equal(layer, np.arange(1, LAYERS + 1))
            table_of_role = found[measure]["tables"][name][role]
            np.testing.assert_allclose(mean, np.array(table_of_role["mean"]) * factor)
            bounds = np.array([table_of_role["low"], table_of_role["high"]]) * factor
            bands = [one for one in axes.collections if isinstance(one, PolyCollection)]
            bands = [one for one in bands if to_hex(one.get_facecolor()[0]).upper() == color]
            vertices = [{*map(tuple, one.get_paths()[0].vertices.round(9))} for one in bands]
            assert any(
                {(k + 1, round(bound[k], 9)) for bound in bounds for k in range(LAYERS)} <= one for one in vertices
            )

    (axes,) = shown(drawn["entropy"])
    check(axes, "entropy", "target", figures.BLUE)
    check(axes, "entropy", "english", figures.VERMILION)
    (axes,) = shown(drawn["language"])
    for name, color in (("english", figures.VERMILION), ("target", figures.BLUE), ("rest", figures.GREY)):
        check(axes, "language", name, color, 100)
    cosines, shares, cka = shown(drawn["similarity_last_token"])
    check(cosines, "similarity", "last_token/non_parallel", figures.VERMILION)
    check(shares, "similarity", "last_token/mexa", figures.PINK, 100)
    check(shares, "similarity", "last_token/retrieval_to_english", figures.GREEN, 100)
    assert 100 / 50 in [one.get_ydata()[0] for one in shares.lines if one.get_linestyle() == ":"], "chance"
    layer, values = line(cka, "black", "-")
    np.testing.assert_array_equal(layer, np.arange(2, LAYERS + 1))  # layer 1 has none
    np.testing.assert_allclose(values, found["similarity"]["summary"]["run"]["cka"]["last_token"][1:])
    nats, cosines = shown(drawn["supervision"])
    check(nats, "deep_supervision", "answer_nats", figures.VERMILION)
    check(cosines, "deep_supervision", "question_cosine", figures.BLUE)


def test_the_two_layers_are_marked(drawn: dict[str, Figure], tmp_path: Path) -> None:
    made = report(["zh"])
    figures.draw(made, tmp_path)
    for name in ("entropy", "language", "similarity_mean", "supervision"):
        for axes in shown(drawn[name]):
            assert [text.get_text() for text in axes.texts] == ["i", "j"]
            assert [text.xy[0] for text in axes.texts] == [2, 6]  # type: ignore[attr-defined]
    assert [axes.get_title().split("\n")[1] for axes in shown(drawn["projection_pca"])][:3] == [
        "layer 2 (i)",
        "layer 6 (j)",
        "layer 12",
    ]
    made["layers"] = {"conversion": 3, "thinking": 3, "count": LAYERS}
    figures.entropy(made, tmp_path / "entropy")
    assert [text.get_text() for text in drawn["entropy"].axes[0].texts] == ["i = j"]


def test_picks_are_bars_and_r2_is_cut_where_it_says_nothing(drawn: dict[str, Figure], tmp_path: Path) -> None:
    made = report(["zh"])
    connection_figure(made, tmp_path / "connection")
    picks, r2 = shown(drawn["connection"])
    heights = [bar.get_height() for bar in picks.patches]  # type: ignore[attr-defined]
    tables = made["languages"]["zh"]["cc_tuning"]["tables"]
    expected = [share * 100 for name in ("picks_english", "picks_matrix") for share in tables[name]["run"]["mean"]]
    np.testing.assert_allclose(heights, expected)
    assert "71 % [62, 79], κ 0.52" in r2.get_title(loc="left")
    assert r2.get_ylim()[0] == -1.05 and "cut off" in r2.get_ylabel()
    np.testing.assert_allclose(line(r2, figures.GREEN, "-")[1][0], 0.9)

    alone = made["languages"]["zh"]["cc_tuning"]  # without a Transform Matrix
    alone["tables"] = {"picks_english": alone["tables"]["picks_english"]}
    alone["summary"]["run"] = {"pairs": 120, "r2_of_copy": 0.2, "r2_of_copy_per_layer": [0.1] * (LAYERS - 1) + [None]}
    connection_figure(made, tmp_path / "connection")
    picks, r2 = shown(drawn["connection"])
    assert len(picks.patches) == LAYERS
    assert line(r2, figures.GREY, "-").shape == (2, LAYERS - 1)
    assert r2.get_ylabel() == "$R^2$" and r2.get_title(loc="left") == ""


def test_projections_join_pairs_and_colour_languages(drawn: dict[str, Figure], tmp_path: Path) -> None:
    made = report(["zh", "vi"])
    made["projection"]["baseline"]["layers"]["6"]["tsne"] = None
    figures.draw(made, tmp_path)
    figure = drawn["projection_pca"]
    assert len(shown(figure)) == 6
    axes = shown(figure)[4]  # the second model at layer 6
    found = made["projection"]["baseline"]["layers"]["6"]["pca"]
    (joined,) = (one for one in axes.collections if isinstance(one, LineCollection))
    expected = np.stack([found["target"], found["english"]], axis=1)
    np.testing.assert_allclose(np.stack(joined.get_segments()), expected)
    clouds = [np.array(one.get_offsets()) for one in axes.collections if isinstance(one, PathCollection)]
    np.testing.assert_allclose(clouds[0], found["english"])
    of = np.array(made["projection"]["baseline"]["language"])
    for cloud, code in zip(clouds[1:], ("vi", "zh"), strict=True):
        np.testing.assert_allclose(cloud, np.array(found["target"])[of == code])
    assert axes.get_xlabel() == "component 1 (41 % of variance)"
    assert [text.get_text() for text in shown(drawn["projection_tsne"])[4].texts] == ["too few pairs"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == [f"{LEFT_TO_RIGHT}Tiếng Việt · Vietnamese", f"{LEFT_TO_RIGHT}中文 · Chinese", "English"]


def test_further_languages_have_curves_of_their_own(drawn: dict[str, Figure], tmp_path: Path) -> None:
    made = report(["zh"])
    tables = made["languages"]["zh"]["language"]["tables"]
    tables["fr"] = tables["shared"]
    figures.language(made, tmp_path / "language")
    labels = [text.get_text() for text in drawn["language"].legends[0].get_texts()]
    assert f"{LEFT_TO_RIGHT}Français · French" in labels
    assert line(drawn["language"].axes[0], figures.GREEN, "--").shape == (2, LAYERS)
    tables |= {code: tables["shared"] for code in ("vi", "ar", "ru")}  # more than there are colours
    figures.language(made, tmp_path / "language")
    labels = [text.get_text() for text in drawn["language"].legends[0].get_texts()]
    assert labels.count("each of the other languages") == 1
    assert sum(one.get_color() == figures.SKY for one in drawn["language"].axes[0].lines) == 2 * 4


def test_what_is_not_measured_is_not_drawn(drawn: dict[str, Figure], tmp_path: Path) -> None:
    made = report(["zh", "vi"])
    for found in made["languages"].values():
        for measure in ("language", "language_after_blank", "cc_tuning"):
            del found[measure]
    del made["languages"]["vi"]["entropy"]
    del made["languages"]["zh"]["deep_supervision"]["tables"]["answer_nats"]
    for name in [name for name in made["languages"]["zh"]["similarity"]["tables"] if name.startswith("last")]:
        for found in made["languages"].values():
            del found["similarity"]["tables"][name]
    for role in ("run", "baseline"):
        for layer in made["projection"][role]["layers"].values():
            layer["tsne"] = None
    figures.draw(made, tmp_path)
    assert list(drawn) == ["entropy", "similarity_mean", "supervision", "projection_pca"]
    assert len(shown(drawn["entropy"])) == 1
    made["projection"] = None
    made["languages"] = {}
    assert figures.draw(made, tmp_path) == []


def test_a_single_example_has_no_interval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = report(["zh"], layers=3)
    for measure in ("entropy", "cc_tuning"):
        for of_name in made["languages"]["zh"][measure]["tables"].values():
            for role in ("run", "baseline"):
                if of_name[role]:
                    of_name[role] |= {bound: [None] * len(of_name[role]["mean"]) for bound in ("low", "high")}
    assert len(figures.entropy(made, tmp_path / "entropy") + connection_figure(made, tmp_path / "connection")) == 4
    assert not caplog.records


def test_names_of_models_are_no_formulas_and_no_longer_than_fits(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    made = report(["zh"])
    made["run"], made["baseline"] = "costs_$5_or_$6", "x" * 30 + "y" * 30
    figures.entropy(made, tmp_path / "entropy")
    drawn["entropy"].draw_without_rendering()
    labels = [text.get_text() for text in drawn["entropy"].legends[0].get_texts()]
    assert r"costs_\$5_or_\$6" in labels and "x" * 19 + "…" + "y" * 20 in labels
