"""A paper's figures and ours in one table."""

from __future__ import annotations

from pivotune.evaluation.benchmarks import PRESETS
from pivotune.evaluation.published import published_tables


def texts(preset: str, protocol: str, scores: dict[str, dict[tuple[str, str], float]]) -> dict[str, list[list[str]]]:
    """By title, heads and rows."""
    return {
        title: [list(table.heads), *([cell.words for cell in row] for row in table.rows)]
        for title, table in published_tables(PRESETS[preset], protocol, scores)
    }


def test_a_table_for_each_benchmark_that_was_evaluated() -> None:
    scores = {
        "a": {("xcopa", "vi"): 0.5, ("xcopa", "zh"): 0.6, ("xcopa", "en"): 1.0, ("xquad", "vi"): 0.3},
        "b": {("xcopa", "vi"): 0.7},
        "c": {("xnli", "en"): 0.7},
    }
    (table,) = texts("dft", "likelihood", scores).values()
    assert table == [
        ["", "Vietnamese", "Chinese", "mean"],
        ["TFT, LLaMA-2-7B published", "66.0", "65.0", "65.5"],
        ["DFT logits, LLaMA-2-7B published", "66.2", "66.4", "66.3"],
        ["DFT feature, LLaMA-2-7B published", "66.6", "68.6", "67.6"],
        ["a here", "50.0", "60.0", "55.0"],
        ["b here", "70.0", "–", "– 1 of 2 languages"],
    ]
    assert list(texts("dft", "generation", scores)) == ["xquad"]


def test_a_benchmark_without_published_figures_is_shown_all_the_same() -> None:
    (table,) = texts("dft", "generation", {"a": {("mkqa", "vi"): 0.25}}).values()
    assert table[1:] == [["a here", "25.0", "–", "–", "– 1 of 3 languages"]]


def test_published_averages_stand_beside_ours() -> None:
    languages = PRESETS["cc"].languages["cc_xnli"]
    scores = {"a": {("cc_xnli", code): 0.4 for code in languages}, "b": {("cc_xlsum", "ar"): 0.1}}
    (table,) = texts("cc", "generation", scores).values()
    assert table == [
        ["benchmark", "published", "a, here", "b, here"],
        ["cc_xnli accuracy", "53.06 (best average)", "40.0", "– 0 of 10 languages"],
        ["cc_xlsum ROUGE-L", "13.05 (best average)", "– 0 of 10 languages", "– 1 of 10 languages"],
    ]
