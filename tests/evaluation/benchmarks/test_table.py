"""The table of benchmarks, their presets and what is looked up there."""

from __future__ import annotations

from pivotune.evaluation.benchmarks import BENCHMARKS, PRESETS


def test_the_catalogue_is_consistent() -> None:
    assert len(BENCHMARKS) == 14
    assert [len(preset.benchmarks) for preset in PRESETS.values()] == [8, 6]
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())
    for preset in PRESETS.values():
        for name, languages in preset.languages.items():
            benchmark = BENCHMARKS[name]
            assert benchmark.paper == preset.name and set(languages) <= set(benchmark.languages)
            assert "en" in benchmark.languages and list(benchmark.languages) == sorted(set(benchmark.languages))
        for figure in preset.published:
            assert figure.language in (None, *preset.languages[figure.benchmark]) and 0 < figure.value < 100
    assert all(len(languages) == 10 for languages in PRESETS["cc"].languages.values())
    assert len({language for codes in PRESETS["cc"].languages.values() for language in codes}) == 22
    figures = {(f.method, f.benchmark, f.language): f.value for f in PRESETS["dft"].published}
    assert figures["DFT feature", "xcopa", "zh"] == 68.6 and figures["TFT", "xstorycloze", "ar"] == 57.51
