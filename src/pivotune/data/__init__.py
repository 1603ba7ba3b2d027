"""From files to batches: read and validate, render and tokenise, collate."""

from pivotune.data.collate import Batch, ParallelCollator
from pivotune.data.examples import ParallelExample, Text, Turn
from pivotune.data.prompts import Encoded, PromptEncoder, encode, encode_prompts, render_prompt
from pivotune.data.report import DataError, Report
from pivotune.data.sources import read_examples, read_prompts
from pivotune.data.tokenize import tokenize_examples

__all__ = [
    "Batch",
    "DataError",
    "Encoded",
    "ParallelCollator",
    "ParallelExample",
    "PromptEncoder",
    "Report",
    "Text",
    "Turn",
    "encode",
    "encode_prompts",
    "read_examples",
    "read_prompts",
    "render_prompt",
    "tokenize_examples",
]
