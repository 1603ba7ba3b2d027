"""The two papers: what each evaluates and publishes, to run as it did and to show beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pivotune.evaluation.benchmarks.benchmark import Benchmark


@dataclass(frozen=True)
class Published:
    """One figure of a paper, in percent.

    Attributes:
        model: the model that was fine-tuned; empty where the figure is the best of several.
        method: the paper's name of the method.
        benchmark: a key of `BENCHMARKS`.
        language: the language; None for an average over the preset's languages.
        value: the figure.
    """

    model: str
    method: str
    benchmark: str
    language: str | None
    value: float


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a paper evaluates.

    Attributes:
        name: "dft" or "cc".
        paper: its citation.
        model: the model of its figures; empty where they are the best of several.
        note: how the paper's setting differs from what these files allow.
        table: all benchmarks. Those that name the preset as their paper are its own, in their order.
    """

    name: str
    paper: str
    model: str
    note: str
    table: Mapping[str, Benchmark] = field(repr=False)

    @property
    def languages(self) -> dict[str, tuple[str, ...]]:
        """Per benchmark, the languages that the paper reports, in its order."""
        return {one.name: one.reported for one in self.table.values() if one.paper == self.name}

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The names of its benchmarks."""
        return tuple(self.languages)

    @property
    def published(self) -> tuple[Published, ...]:
        """The paper's figures."""
        return tuple(
            Published(self.model, method, name, language, value)
            for name, languages in self.languages.items()
            for method, found in self.table[name].figures.items()
            for language, value in (zip(languages, found, strict=True) if isinstance(found, tuple) else [(None, found)])
        )


def presets_of(table: Mapping[str, Benchmark]) -> dict[str, Preset]:
    """The presets by name, on this table of benchmarks."""
    dft = Preset(
        name="dft",
        paper="Huo et al., Enhancing Non-English Capabilities of English-Centric Large Language Models through Deep "
        "Supervision Fine-Tuning, AAAI 2025, arXiv 2503.01275",
        model="LLaMA-2-7B",
        note="The paper states neither its splits nor its prompts.",
        table=table,
    )
    cc = Preset(
        name="cc",
        paper="Ye et al., CC-Tuning: A Cross-Lingual Connection Mechanism for Improving Joint Multilingual Supervised "
        "Fine-Tuning, ACL 2025, arXiv 2506.00875",
        model="",
        note="The paper released prompts and golds, but no scorer.",
        table=table,
    )
    return {one.name: one for one in (dft, cc)}
