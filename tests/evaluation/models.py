"""Models for the tests of evaluation that answer as a function says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pivotune.data.examples import Text
from pivotune.data.prompts import render_prompt
from pivotune.evaluation.benchmarks import Item
from tests.data.tiny_tokenizers import byte_level

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra pivotune[evaluation]")

from lm_eval.api.model import LM  # noqa: E402

Reply = Callable[[Item], str]


class SpeakingModel(torch.nn.Module):
    """Replies to the prompts of these items as a function says. It knows a prompt only if nothing of it is changed."""

    def __init__(self, items: Sequence[Item], reply: Reply, style: str = "plain") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=10**6))
        self.tokenizer = byte_level()
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.get_input_embeddings = lambda: SimpleNamespace(weight=torch.zeros(len(self.tokenizer), 1))
        self.replies = {render_prompt(Text(prompt=item.prompt), self.tokenizer, style): reply(item) for item in items}

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options["do_sample"] is False and options["max_new_tokens"] == 40
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            reply = self.replies[self.tokenizer.decode(ids[mask.bool()])]
            rows.append(self.tokenizer(reply, add_special_tokens=False).input_ids)
        width = max(map(len, rows)) + 1
        eos = self.tokenizer.eos_token_id
        new = torch.tensor([[*row, *[eos] * (width - len(row))] for row in rows])
        return torch.cat([input_ids, new], dim=1)


class RankingModel(LM):
    """Log-likelihoods of the options as a function says. Finds an item by the id that its row carries."""

    def __init__(self, items: Sequence[Item], log_p: Callable[[Item, int], float]) -> None:
        super().__init__()
        self.items = {(item.language, item.id): item for item in items}
        self.log_p = log_p
        self.english_tasks: tuple[str, ...] = ()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        answers = []
        for request in requests:
            item = self.items[request.doc["language"], request.doc["id"]]
            _, continuation = request.args
            assert item.options is not None
            if item.benchmark == "mmlu":
                assert continuation.strip() == "ABCD"[request.idx]
            elif item.benchmark != "xnli":  # there the harness puts the whole sentence together
                assert continuation.strip().casefold() == item.options[request.idx].casefold()
            answers.append((self.log_p(item, request.idx), False))
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise AssertionError("nothing is generated")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise AssertionError("nothing is rolled")


def right_answer(item: Item) -> str:
    return item.answers[0]
