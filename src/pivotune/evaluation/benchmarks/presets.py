"""The two papers' benchmarks, languages and published figures, to run as they did and to show beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


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


@dataclass(frozen=True)
class Preset:
    """What a paper evaluates.

    Attributes:
        name: "dft" or "cc".
        paper: its citation.
        languages: per benchmark, the languages that the paper reports, in its order.
        published: its figures.
        note: how the paper's setting differs from what these files allow.
    """

    name: str
    paper: str
    languages: Mapping[str, tuple[str, ...]]
    published: tuple[Published, ...]
    note: str

    @property
    def benchmarks(self) -> tuple[str, ...]:
        return tuple(self.languages)


_VI_AR_ZH = ("vi", "ar", "zh")
_DFT_LANGUAGES = {
    "xquad": _VI_AR_ZH,
    "mlqa": _VI_AR_ZH,
    "mkqa": _VI_AR_ZH,
    "truthfulqa": _VI_AR_ZH,
    "xnli": _VI_AR_ZH,
    "xcopa": ("vi", "zh"),
    "xstorycloze": ("ar", "zh"),
    "mmlu": _VI_AR_ZH,
}
# Of LLaMA-2-7B, in the order of _DFT_LANGUAGES.
_DFT_TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    "TFT": {
        "xquad": (27.36, 21.23, 23.41),
        "mlqa": (28.80, 21.62, 23.86),
        "xnli": (44.14, 33.73, 36.87),
        "xcopa": (66.0, 65.0),
        "xstorycloze": (57.51, 64.06),
        "mmlu": (33.23, 28.05, 32.34),
    },
    "DFT logits": {
        "xquad": (29.65, 27.57, 24.77),
        "mlqa": (31.54, 28.26, 25.68),
        "xnli": (43.37, 34.06, 36.94),
        "xcopa": (66.2, 66.4),
        "xstorycloze": (58.78, 64.93),
        "mmlu": (32.60, 29.06, 33.19),
    },
    "DFT feature": {
        "xquad": (28.27, 26.35, 24.34),
        "mlqa": (32.19, 29.51, 25.29),
        "xnli": (43.50, 34.38, 37.64),
        "xcopa": (66.6, 68.6),
        "xstorycloze": (58.78, 64.40),
        "mmlu": (32.19, 28.86, 32.82),
    },
}
_CC_LANGUAGES = {
    "cc_xnli": "ar el en hi ru sw th tr ur zh",
    "cc_xstorycloze": "ar en es eu hi id ru sw te zh",
    "cc_mmmlu": "ar bn en es hi id ko pt sw yo",
    "cc_xquad": "ar de el en hi ru th tr vi zh",
    "cc_mkqa": "ar de en ja ko pt ru tr vi zh",
    "cc_xlsum": "ar en fr hi id ru sw tr ur vi",
}
_CC_BEST = {
    "cc_xnli": 53.06,
    "cc_xstorycloze": 80.93,
    "cc_mmmlu": 49.65,
    "cc_xquad": 64.26,
    "cc_mkqa": 15.94,
    "cc_xlsum": 13.05,
}

_DFT = Preset(
    name="dft",
    paper="Huo et al., Enhancing Non-English Capabilities of English-Centric Large Language Models through Deep "
    "Supervision Fine-Tuning, AAAI 2025, arXiv 2503.01275",
    languages=MappingProxyType(_DFT_LANGUAGES),
    published=tuple(
        Published("LLaMA-2-7B", method, benchmark, language, value)
        for method, row in _DFT_TABLE.items()
        for benchmark, values in row.items()
        for language, value in zip(_DFT_LANGUAGES[benchmark], values, strict=True)
    ),
    note="The paper states neither its splits nor its prompts.",
)
_CC = Preset(
    name="cc",
    paper="Ye et al., CC-Tuning: A Cross-Lingual Connection Mechanism for Improving Joint Multilingual Supervised "
    "Fine-Tuning, ACL 2025, arXiv 2506.00875",
    languages=MappingProxyType({name: tuple(codes.split()) for name, codes in _CC_LANGUAGES.items()}),
    published=tuple(Published("", "best average", name, None, value) for name, value in _CC_BEST.items()),
    note="The paper released prompts and golds, but no scorer.",
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in (_DFT, _CC)})
