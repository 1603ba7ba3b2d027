"""Tokenizers with chat templates in the shapes of today's model families: own short wordings, the same ends of turn."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.data.tiny_tokenizers import byte_level

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A default system prompt where the conversation brings none.
_QWEN25 = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}" + _CHATML
# Reasoning is split off the answer, written back into the last turn even if empty, and dropped from earlier turns.
_QWEN3 = """{%- for m in messages %}
{%- set content = m.content %}{%- set thoughts = '' %}
{%- if m.role == 'assistant' and '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.last %}{{- '<think>\n' + thoughts + '\n</think>\n\n' }}{%- endif %}
{{- content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
# Today's date in every prompt, trimmed contents, BOS written by the template.
_LLAMA3 = """{{- bos_token }}
{%- if date_string is not defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
# No system role, roles that alternate, the assistant called model.
_GEMMA = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
_MISTRAL = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
# Ends a whole conversation with EOS, behind the end of its last turn.
_PHI3 = """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""
# All plain text: the end of a turn is no token.
_PLAIN_WORDS = """{% for m in messages %}{{ m.role | upper + ': ' + m.content + '\n### End\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"""


@dataclass(frozen=True)
class Shape:
    """A family's tokens.

    Attributes:
        special: its own special tokens, beside <s> and </s>.
        eos: the tokenizer's.
        template: the chat template.
        end: what an answer ends with.
        stated: what config.json says, and generation_config.json: other ends, none, or too few.
    """

    special: tuple[str, ...]
    eos: str | None
    template: str
    end: str
    stated: tuple[str | tuple[str, ...] | None, str | tuple[str, ...] | None]


_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SHAPES = {
    "Llama-3": Shape(
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
        ),
        "<|end_of_text|>",
        _LLAMA3,
        "<|eot_id|>",
        ("<|end_of_text|>", ("<|end_of_text|>", "<|eom_id|>")),
    ),
    "Gemma": Shape(("<start_of_turn>", "<end_of_turn>", "<eos>"), "<eos>", _GEMMA, "<end_of_turn>", ("<eos>", None)),
    "Qwen2.5": Shape(_QWEN, "<|endoftext|>", _QWEN25, "<|im_end|>", ("<|endoftext|>", "<|endoftext|>")),
    "Qwen3": Shape(_QWEN, "<|im_end|>", _QWEN3, "<|im_end|>", ("<|endoftext|>", ("<|endoftext|>",))),
    "SmolLM2": Shape(_QWEN, "<|im_end|>", _CHATML, "<|im_end|>", (None, None)),
    "Mistral": Shape(("[INST]", "[/INST]"), "</s>", _MISTRAL, "</s>", ("</s>", "</s>")),
    "Phi-3": Shape(
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|endoftext|>",
        _PHI3,
        "<|end|>",
        (("<|endoftext|>", "<|end|>"), "<|endoftext|>"),
    ),
    "no EOS": Shape(_QWEN, None, _CHATML, "<|im_end|>", (None, None)),
    "plain words": Shape((), "</s>", _PLAIN_WORDS, "</s>", (None, "</s>")),
}


def tokenizer_of_shape(name: str) -> PreTrainedTokenizerFast:
    """A new tokenizer of this shape; <think> and </think> are added tokens that are not special, as in Qwen3."""
    shape = SHAPES[name]
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": list(shape.special)})
    if name == "Qwen3":
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.eos_token = shape.eos
    tokenizer.chat_template = shape.template
    return tokenizer
