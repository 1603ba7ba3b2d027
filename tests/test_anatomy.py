"""Every family: the parts that `pivotune.anatomy` names are the ones the model computes with."""

from __future__ import annotations

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pivotune.anatomy import FAMILIES as KNOWN
from pivotune.anatomy import Anatomy, unwrap
from pivotune.errors import PivotuneError
from tests.families import FAMILIES, VOCAB, tiny

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 60, 23, 77, 31, 12]])
every_family = pytest.mark.parametrize("family", FAMILIES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def inputs_and_outputs(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into and comes out of each module while the model reads `IDS`."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str):
        def hook(module, args, kwargs, output):
            received = args[0] if args else kwargs.get("hidden_states")
            seen[name] = (received, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [m.register_forward_hook(watch(name), with_kwargs=True) for name, m in modules.items()]
    with torch.no_grad():
        seen["model"] = (IDS, model(input_ids=IDS, use_cache=False).logits)
    for handle in handles:
        handle.remove()
    return seen


def test_every_known_family_has_a_tiny_model():
    assert {tiny(name).config.model_type for name in FAMILIES} == set(KNOWN)


@every_family
def test_parts_are_the_models_own(family):
    model = tiny(family)
    anatomy = Anatomy(model)
    assert anatomy.num_layers == model.config.num_hidden_layers == len(anatomy.layers)
    assert (anatomy.hidden_size, anatomy.vocab_size) == (32, VOCAB)
    assert anatomy.decoder is model.base_model
    assert anatomy.embed is model.get_input_embeddings()
    assert anatomy.head is model.get_output_embeddings()
    assert [anatomy.layer(n) for n in range(1, anatomy.num_layers + 1)] == list(anatomy.layers)


@both_dtypes
@every_family
def test_embeddings_are_what_layer_1_receives(family, dtype):
    model = tiny(family, dtype=dtype)
    anatomy = Anatomy(model)
    seen = inputs_and_outputs(model, {"layer": anatomy.layer(1)})
    assert torch.equal(anatomy.embeddings(IDS), seen["layer"][0])


@both_dtypes
@every_family
def test_lens_at_the_last_layer_is_the_models_output(family, dtype):
    model = tiny(family, dtype=dtype)
    anatomy = Anatomy(model)
    last = inputs_and_outputs(model, {"layer": anatomy.layer(anatomy.num_layers)})
    logits = last["model"][1]
    torch.testing.assert_close(anatomy.frozen_lens(last["layer"][1]), logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(anatomy.logits(anatomy.norm(last["layer"][1])), logits, rtol=1e-6, atol=1e-6)
    without_norm = anatomy.frozen_lens(last["layer"][1], final_norm=False)
    torch.testing.assert_close(without_norm, anatomy.logits(last["layer"][1]), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(without_norm, logits, atol=0.1)


@pytest.mark.parametrize("final_norm", [True, False])
@every_family
def test_lens_is_frozen_but_passes_the_gradient_on(family, final_norm):
    model = tiny(family)
    anatomy = Anatomy(model)
    hidden = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
    anatomy.frozen_lens(hidden, final_norm=final_norm).log_softmax(-1)[:, 7].sum().backward()
    assert hidden.grad.abs().min() > 0
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    trained = anatomy.norm(hidden.detach()) if final_norm else hidden.detach()
    expected = torch.autograd.functional.jacobian(
        lambda h: anatomy.logits(anatomy.norm(h) if final_norm else h).log_softmax(-1)[:, 7].sum(), hidden.detach()
    )
    assert trained.shape == hidden.shape
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-9, atol=1e-9)


@every_family
def test_sites_are_what_the_layer_adds(family):
    """Output of each layer = its input + what attention adds + what the feed-forward block adds."""
    model = tiny(family)
    anatomy = Anatomy(model)
    for number in range(1, anatomy.num_layers + 1):
        sites = {name: anatomy.site(name, number) for name in ("hidden", "attention", "feed_forward")}
        seen = inputs_and_outputs(model, sites)
        received, returned = seen["hidden"]
        torch.testing.assert_close(
            received + seen["attention"][1] + seen["feed_forward"][1], returned, rtol=1e-9, atol=1e-9
        )


@every_family
def test_truncated_runs_only_the_first_layers(family):
    model = tiny(family)
    anatomy = Anatomy(model)
    wanted = inputs_and_outputs(model, {"2": anatomy.layer(2)})["2"][1]
    names = list(model.state_dict())
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(anatomy.layers, start=1)
    ]
    with torch.no_grad(), anatomy.truncated(2):
        final = anatomy.decoder(input_ids=IDS, use_cache=False).last_hidden_state
    assert ran == [1, 2]
    torch.testing.assert_close(final, anatomy.norm(wanted), rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match="inside"), anatomy.truncated(1):
        raise RuntimeError("inside")
    assert list(model.state_dict()) == names
    for handle in handles:
        handle.remove()


def test_gemma2_bends_its_logits():
    """The soft-cap matters for the tiny model, so that the lens test above would notice a missing one."""
    model = tiny("gemma2")
    anatomy = Anatomy(model)
    hidden = inputs_and_outputs(model, {"layer": anatomy.layer(4)})["layer"][1]
    assert anatomy.frozen_lens(hidden).abs().max() < 3.0 < anatomy.head(anatomy.norm(hidden)).abs().max()


# Wrappers --------------------------------------------------------------------------------------------------------


def lora(model: nn.Module, **options) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **options))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize(
    "wrap",
    [
        lora,
        lambda model: lora(model, modules_to_save=["lm_head"]) if hasattr(model, "lm_head") else lora(model),
        lambda model: torch.compile(model),
        lambda model: torch.compile(lora(model)),
    ],
    ids=["peft", "peft_with_saved_head", "compile", "compile_over_peft"],
)
def test_wrappers_resolve(family, wrap):
    model = tiny(family)
    wrapped = wrap(model)
    anatomy = Anatomy(wrapped)
    assert unwrap(wrapped) is anatomy.lm
    assert anatomy.num_layers == model.config.num_hidden_layers
    last = inputs_and_outputs(anatomy.lm, {"layer": anatomy.layer(anatomy.num_layers)})
    torch.testing.assert_close(anatomy.frozen_lens(last["layer"][1]), last["model"][1], rtol=1e-9, atol=1e-9)
    assert torch.equal(anatomy.embeddings(IDS), inputs_and_outputs(anatomy.lm, {"layer": anatomy.layer(1)})["layer"][0])


def test_lens_through_a_trained_lora_head_stays_frozen():
    config = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    model = get_peft_model(tiny("llama"), config)
    anatomy = Anatomy(model)
    hidden = torch.randn(2, 32, dtype=torch.float64, requires_grad=True)
    logits = anatomy.frozen_lens(hidden)
    torch.testing.assert_close(logits, anatomy.logits(anatomy.norm(hidden)), rtol=1e-9, atol=1e-9)
    logits.sum().backward()
    assert hidden.grad is not None and all(p.grad is None for p in model.parameters())


# Errors ----------------------------------------------------------------------------------------------------------


def test_unknown_architecture_names_what_is_missing():
    config = AutoConfig.for_model("gpt2", vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2)
    with pytest.raises(PivotuneError) as caught:
        Anatomy(AutoModelForCausalLM.from_config(config))
    message = str(caught.value)
    assert "'gpt2'" in message and "GPT2LMHeadModel" in message
    assert "llama" in message and "FAMILIES" in message
    assert re.search(r"lacks: .*model\.layers", message)


def test_unknown_architecture_of_the_usual_layout_is_still_refused():
    config = AutoConfig.for_model("granite", vocab_size=VOCAB, hidden_size=16, intermediate_size=16)
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 2, 2, 2
    with pytest.raises(PivotuneError, match="granite"):
        Anatomy(AutoModelForCausalLM.from_config(config))


def test_not_a_causal_lm_at_all():
    with pytest.raises(PivotuneError, match="Linear"):
        Anatomy(nn.Linear(2, 2))


def test_a_known_name_on_a_model_without_a_head():
    with pytest.raises(PivotuneError, match="lm_head"):
        Anatomy(tiny("llama").model)


@pytest.mark.parametrize("value", [0, 5, -1, 2.0, "2", True, None])
def test_layer_out_of_range(value):
    anatomy = Anatomy(tiny("llama"))
    with pytest.raises(PivotuneError) as caught:
        anatomy.check_layer(value, "deep_supervision.thinking_layer")
    assert "deep_supervision.thinking_layer" in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "1..4" in str(caught.value)


def test_layers_in_range():
    anatomy = Anatomy(tiny("llama"))
    assert [anatomy.check_layer(n, "x") for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_virtual_tokens_are_refused() -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    model = get_peft_model(tiny("llama"), PromptTuningConfig(TaskType.CAUSAL_LM, num_virtual_tokens=2))
    with pytest.raises(PivotuneError, match=r"PROMPT_TUNING.*Use LoRA"):
        Anatomy(model)
