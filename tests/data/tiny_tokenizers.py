"""Tokenizers of the kinds that LLMs use, trained at once on a handful of sentences; other scripts become bytes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: Give three tips for staying healthy. ### Input: ### Response:",
    "保持健康的三个提示：饮食要均衡，定期运动，保持充足的睡眠。",
    "Đưa ra ba mẹo để giữ sức khỏe. Ăn một chế độ ăn cân bằng.",
    "أعط ثلاث نصائح للبقاء بصحة جيدة. تناول نظاما غذائيا متوازنا.",
] * 3
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(trim_offsets: bool = False, template: str = "$A") -> PreTrainedTokenizerFast:
    """Byte-level BPE as in Llama-3 or Qwen. `trim_offsets` leaves white space out of the offsets, as Llama-3 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=[BOS, EOS], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    byte_offsets = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.post_processor = processors.Sequence([byte_offsets, _specials(tokenizer, template)])
    return _wrap(tokenizer)


def metaspace_bpe(template: str = f"{BOS} $A") -> PreTrainedTokenizerFast:
    """BPE with byte fallback, a "▁" put before the text and a BOS, as in Llama-2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    _use_metaspace(tokenizer)
    # As a SentencePiece vocabulary: bytes are ordinary pieces, not added tokens that plain text could spell.
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", BOS, EOS], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {piece: len(vocabulary) + index for index, piece in enumerate(_BYTES)}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = _specials(tokenizer, template)
    return _wrap(tokenizer)


def unigram(template: str = f"{BOS} $A") -> PreTrainedTokenizerFast:
    """Unigram with byte fallback, as SentencePiece's default."""
    tokenizer = Tokenizer(models.Unigram())
    _use_metaspace(tokenizer)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", BOS, EOS], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] += [[piece, -20.0] for piece in _BYTES]
    state["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = _specials(tokenizer, template)
    return _wrap(tokenizer)


KINDS = {
    "byte-level": byte_level,
    "byte-level with trimmed offsets and BOS": lambda: byte_level(True, f"{BOS} $A"),
    "metaspace BPE with byte fallback and BOS": metaspace_bpe,
    "unigram with byte fallback and BOS": unigram,
}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """One shared tokenizer per kind; a test that changes one builds its own."""
    return KINDS[kind]()


def _use_metaspace(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)


def _specials(tokenizer: Tokenizer, template: str) -> Any:
    ids = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    return processors.TemplateProcessing(single=template, special_tokens=ids)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
