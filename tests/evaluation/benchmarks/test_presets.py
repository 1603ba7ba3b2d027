"""A preset is what its paper reports, in its order, and each figure has its place."""

from __future__ import annotations

from pivotune.evaluation.benchmarks import BENCHMARKS
from pivotune.evaluation.benchmarks.presets import Published, presets_of

PRESETS = presets_of(BENCHMARKS)


def test_every_benchmark_of_a_paper_is_in_its_preset() -> None:
    assert set(PRESETS) == {"dft", "cc"}
    named = {name for preset in PRESETS.values() for name in preset.benchmarks}
    assert named == {name for name, one in BENCHMARKS.items() if one.paper}
    for preset in PRESETS.values():
        assert all(preset.languages[name] == BENCHMARKS[name].reported for name in preset.benchmarks)


def test_figures() -> None:
    for preset in PRESETS.values():
        assert preset.published
        for one in preset.published:
            assert one.language is None or one.language in preset.languages[one.benchmark]
            assert 0 < one.value < 100 and one.model == preset.model
    figures = BENCHMARKS["xcopa"].figures
    method, found = next(iter(figures.items()))
    dft = [one for one in PRESETS["dft"].published if one.benchmark == "xcopa" and one.method == method]
    assert isinstance(found, tuple) and [one.value for one in dft] == list(found)
    assert dft[0] == Published("LLaMA-2-7B", method, "xcopa", BENCHMARKS["xcopa"].reported[0], found[0])
