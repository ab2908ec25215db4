"""Hook points of tiny models of many families: what is read is true, what is written counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import (
    BATCH,
    LAYERS,
    TIME,
    TINY,
    TINY_CAUSAL,
    WIDTH,
    decoder_settings,
    inputs_for,
    tiny_gpt2,
    tiny_llama,
    tiny_model,
    tiny_tokenizer,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from monosemy.errors import UserError
from monosemy.lm import LM, load
from monosemy.lm.unembedding import measure_norm

SHARED = ("lm", "causal", "llama")


@pytest.fixture(params=TINY, scope="module")
def lm(request: pytest.FixtureRequest) -> LM:
    return LM(TINY[request.param](), tiny_tokenizer())


@pytest.fixture(params=TINY_CAUSAL, scope="module")
def causal(request: pytest.FixtureRequest) -> LM:
    return LM(TINY_CAUSAL[request.param](), tiny_tokenizer())


@pytest.fixture(scope="module")
def llama() -> LM:
    return LM(tiny_llama(), tiny_tokenizer())


@pytest.fixture(autouse=True)
def nothing_stays_hooked(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in set(SHARED) & set(request.fixturenames):
        assert hook_count(request.getfixturevalue(name)) == 0


def hook_count(lm: LM) -> int:
    """Count hooks, without those that `transformers` leaves for `output_hidden_states`."""
    hooks = [
        hook
        for module in lm.model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return sum(not hook.__module__.startswith("transformers") for hook in hooks)


@torch.no_grad()
def reference(lm: LM) -> ModelOutput:
    return lm.model(**inputs_for(lm), output_hidden_states=True)


def add(amount: float) -> Callable[[Tensor, Tensor | None], Tensor]:
    return lambda x, tokens: x + amount


@contextmanager
def counted_runs(*modules: nn.Module) -> Iterator[list[int]]:
    """Count how often each module is run in the block."""
    counts = [0] * len(modules)

    def counter(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            counts[index] += 1

        return hook

    handles = [m.register_forward_pre_hook(counter(i)) for i, m in enumerate(modules)]
    yield counts
    for handle in handles:
        handle.remove()


# --- reading --------------------------------------------------------------------------------


def test_hooked_logits_equal_unhooked_logits_bit_for_bit(lm: LM) -> None:
    expected = reference(lm).logits
    assert torch.equal(lm.logits(inputs_for(lm)), expected)
    with lm.edit({point.name: lambda x, tokens: x for point in lm.hookpoints()}):
        assert torch.equal(lm.logits(inputs_for(lm)), expected)


def test_adding_zero_changes_nothing(lm: LM) -> None:
    with lm.edit({point.name: add(0.0) for point in lm.hookpoints(all=True)}):
        assert torch.equal(lm.logits(inputs_for(lm)), reference(lm).logits)


def test_captured_blocks_equal_output_hidden_states(lm: LM) -> None:
    states = list(reference(lm).hidden_states)
    if lm.config.model_type != "mamba":  # whose first state is what the first block gives
        assert torch.equal(lm.capture(inputs_for(lm), ["embed"])["embed"], states.pop(0))
    captured = lm.capture(inputs_for(lm), [f"layers.{i}" for i in range(LAYERS)])
    for i in range(LAYERS - 1):
        assert torch.equal(captured[f"layers.{i}"], states[i])


def test_the_last_hidden_state_is_the_last_block_or_its_norm(lm: LM) -> None:
    last = reference(lm).hidden_states[-1]
    names = {"final_norm", f"layers.{LAYERS - 1}"} & {point.name for point in lm.hookpoints()}
    captured = lm.capture(inputs_for(lm), names)
    assert any(torch.equal(x, last) for x in captured.values())


def test_every_hook_point_can_be_captured_in_one_forward_pass(lm: LM) -> None:
    points = lm.hookpoints(all=True)
    with counted_runs(lm.model) as runs:
        captured = lm.capture(inputs_for(lm), [point.name for point in points])
    assert runs == [1]
    for point in points:
        x = captured[point.name]
        assert (x.ndim, len(x), x.shape[-1]) == (3, BATCH, point.width)
        assert torch.equal(x, lm.capture(inputs_for(lm), [point.path])[point.path])


def test_hook_points_have_unique_names_and_paths_and_aliases(lm: LM) -> None:
    points = lm.hookpoints(all=True)
    names = [name for point in points for name in (point.name, *point.aliases)]
    assert len(set(names)) == len(names)
    assert len({point.path for point in points}) == len(points)
    for point in points:
        assert {lm.hookpoint(name) for name in (point.path, point.name, *point.aliases)} == {point}


def test_capture_stops_after_the_last_hook_point_needed(lm: LM) -> None:
    blocks = [lm.model.get_submodule(lm.hookpoint(f"layers.{i}").path) for i in range(LAYERS)]
    with counted_runs(*blocks) as runs:
        lm.capture(inputs_for(lm), ["layers.1", "layers.0"])
    assert runs == [1, 1, 0]


def test_a_captured_tensor_can_be_trained_on(llama: LM) -> None:
    x = llama.capture(inputs_for(llama), ["layers.1"])["layers.1"]
    weight = torch.ones(WIDTH, requires_grad=True)
    (x * weight).sum().backward()
    assert weight.grad is not None and not x.requires_grad


def test_capturing_nothing_gives_nothing(llama: LM) -> None:
    assert llama.capture(inputs_for(llama), []) == {}


def test_keys_are_the_names_asked_for(llama: LM) -> None:
    names = ["blocks.1.hook_resid_post", "layers.1", "model.layers.1"]
    captured = llama.capture(inputs_for(llama)["input_ids"], names)
    assert list(captured) == names
    assert torch.equal(captured[names[0]], captured[names[2]])


@pytest.mark.parametrize("family", TINY_CAUSAL)
def test_left_padding_changes_no_activation_of_real_tokens(family: str) -> None:
    lm = LM(TINY_CAUSAL[family](), tiny_tokenizer())
    tokens = inputs_for(lm)["input_ids"]
    padded = torch.cat([torch.zeros(BATCH, 3, dtype=torch.long), tokens], dim=1)
    mask = torch.arange(TIME + 3).expand(BATCH, -1) >= 3
    expected = lm.capture(tokens, ["layers.1"])["layers.1"]
    found = lm.capture(padded, ["layers.1"], attention_mask=mask)["layers.1"][:, 3:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_bad_inputs_are_refused(llama: LM) -> None:
    with pytest.raises(UserError, match=r"shape \(7,\)"):
        llama.capture(torch.arange(7), ["layers.0"])
    with pytest.raises(UserError, match="gives no logits"):
        LM(llama.model.model).logits(inputs_for(llama))


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "alias", "path"),
    [
        ("gpt2", "blocks.0.hook_resid_pre", "transformer.drop"),
        ("gpt2", "blocks.2.hook_resid_pre", "transformer.h.1"),
        ("gpt2", "blocks.2.hook_resid_post", "transformer.h.2"),
        ("gpt2", "blocks.1.hook_attn_out", "transformer.h.1.attn"),
        ("gpt2", "blocks.1.hook_mlp_out", "transformer.h.1.mlp"),
        ("gpt2", "hook_embed", "transformer.wte"),
        ("gpt2", "transformer.h.1", "transformer.h.1"),
        ("gpt2", "h.1", "transformer.h.1"),
        ("gpt2", "h.1.mlp.c_proj", "transformer.h.1.mlp.c_proj"),
        ("gpt2", "layers.1.mlp.c_proj", "transformer.h.1.mlp.c_proj"),
        ("gpt_neox", "gpt_neox.layers.1", "gpt_neox.layers.1"),
        ("gpt_neox", "layers.1.mlp", "gpt_neox.layers.1.mlp"),
        ("gpt_neox", "layers.1.attn", "gpt_neox.layers.1.attention"),
        ("llama", "model.layers.1", "model.layers.1"),
        ("llama", "hook_embed", "model.embed_tokens"),
        ("llama", "layers.1.self_attn", "model.layers.1.self_attn"),
        ("llama", "layers.1.self_attn.o_proj", "model.layers.1.self_attn.o_proj"),
        ("llama", "norm", "model.norm"),
        ("gemma2", "layers.1.mlp", "model.layers.1.mlp"),
        ("gemma2", "blocks.1.hook_mlp_out", "model.layers.1.post_feedforward_layernorm"),
        ("gemma2", "blocks.1.hook_attn_out", "model.layers.1.post_attention_layernorm"),
        ("mamba", "backbone.layers.1", "backbone.layers.1"),
        ("mamba", "layers.1.mixer", "backbone.layers.1.mixer"),
        ("bert", "encoder.layer.1", "bert.encoder.layer.1"),
        ("bert", "blocks.1.hook_normalized_resid_post", "bert.encoder.layer.1"),
        ("bert", "blocks.1.hook_mlp_out", "bert.encoder.layer.1.output.dense"),
        ("vit", "vit.layers.1", "vit.layers.1"),
    ],
)
def test_names_of_other_tools_are_understood(family: str, alias: str, path: str) -> None:
    assert LM(TINY[family]()).hookpoint(alias).path == path


def test_paths_of_a_model_with_a_head_are_understood_without_it() -> None:
    lm = LM(tiny_llama().model)
    assert lm.hookpoint("model.layers.1") == lm.hookpoint("layers.1")
    assert lm.hookpoint("model.layers.1.mlp.up_proj").path == "layers.1.mlp.up_proj"


def test_an_unknown_hook_point_names_the_nearest_and_what_there_is(llama: LM) -> None:
    with pytest.raises(UserError, match=r"(?s)`layers\.1\.mpl`.*did you mean `layers\.1\.mlp`"):
        llama.hookpoint("layers.1.mpl")
    with pytest.raises(UserError, match=r"(?s)`layers\.8`.*layers\.0 to layers\.2"):
        llama.capture(inputs_for(llama), ["layers.8"])
    with pytest.raises(UserError, match="unknown hook point"), llama.edit({"nope": add(1.0)}):
        pass


def test_a_module_without_activations_is_no_hook_point(llama: LM) -> None:
    with pytest.raises(UserError, match=r"`model\.rotary_emb` is no hook point"):
        llama.hookpoint("model.rotary_emb")


# Families beyond those above, each with a peculiarity: positions added in no module (OPT),
# attention and MLP that add to the residual stream themselves (BLOOM, MPT), parallel branches
# (GPT-J, Phi, Cohere), norms on what is written (Gemma 3, OLMo 2, GLM 4), experts (Mixtral).
OTHER_FAMILIES = {
    "OPTForCausalLM": {"word_embed_proj_dim": WIDTH, "ffn_dim": 64, "pad_token_id": 1},
    "BloomForCausalLM": {"n_head": 4},
    "MptForCausalLM": {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": 4},
    "FalconForCausalLM": {},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "PhiForCausalLM": {},
    "CohereForCausalLM": {},
    "Gemma3ForCausalLM": {"head_dim": 8},
    "Olmo2ForCausalLM": {},
    "Glm4ForCausalLM": {"head_dim": 8},
    "MixtralForCausalLM": {"num_local_experts": 4},
}


def other_model(name: str) -> PreTrainedModel:
    config = {"Gemma3ForCausalLM": "Gemma3TextConfig"}.get(
        name, name.replace("ForCausalLM", "Config")
    )
    return tiny_model(config, name, 0, **(decoder_settings(LAYERS) | OTHER_FAMILIES[name]))


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_other_families_have_their_hook_points_found(name: str) -> None:
    lm = LM(other_model(name))
    states = reference(lm).hidden_states
    captured = lm.capture(inputs_for(lm), ["layers.0", "layers.1", "final_norm"])
    assert lm.n_layers == LAYERS
    assert torch.equal(captured["layers.0"], states[1])
    assert torch.equal(captured["layers.1"], states[2])
    assert torch.equal(captured["final_norm"], states[-1])
    if name != "OPTForCausalLM":
        entry = lm.capture(inputs_for(lm), ["blocks.0.hook_resid_pre"])
        assert torch.equal(entry["blocks.0.hook_resid_pre"], states[0])


WRITERS = [
    *(TINY_CAUSAL[family] for family in TINY_CAUSAL if family != "mamba"),
    *(lambda name=name: other_model(name) for name in OTHER_FAMILIES if name != "OPTForCausalLM"),
]


@pytest.mark.parametrize("build", WRITERS, ids=lambda build: type(build()).__name__)
def test_attention_and_mlp_are_what_a_block_adds(build: Callable[[], PreTrainedModel]) -> None:
    lm = LM(build())
    names = ["hook_attn_out", "hook_mlp_out", "hook_resid_pre", "hook_resid_post"]
    captured = lm.capture(inputs_for(lm), [f"blocks.1.{name}" for name in names])
    attention, mlp, before, after = captured.values()
    torch.testing.assert_close(attention + mlp, after - before, atol=1e-4, rtol=1e-3)


def test_the_last_logits_are_the_last_of_all(causal: LM) -> None:
    whole = causal.logits(inputs_for(causal))
    few = causal.logits(inputs_for(causal), last=2)
    torch.testing.assert_close(few, whole[:, -2:])


# --- editing --------------------------------------------------------------------------------


def test_an_edit_changes_the_logits_and_what_is_read_there(lm: LM) -> None:
    expected = reference(lm)
    before = lm.capture(inputs_for(lm), ["layers.1"])["layers.1"]
    with lm.edit({"layers.1": lambda x, tokens: x * 1.5 + 0.1}):
        assert not torch.equal(lm.logits(inputs_for(lm)), expected.logits)
        after = lm.capture(inputs_for(lm), ["layers.1"])["layers.1"]
        assert torch.equal(after, before * 1.5 + 0.1)
        assert any(torch.equal(after, state) for state in reference(lm).hidden_states)
    assert torch.equal(lm.logits(inputs_for(lm)), expected.logits)


def test_an_edit_changes_nothing_before_it(llama: LM) -> None:
    names = ["layers.0", "layers.1.attn", "layers.1.mlp"]
    before = llama.capture(inputs_for(llama), names)
    with llama.edit({"layers.1": add(1.0)}):
        after = llama.capture(inputs_for(llama), names)
    assert all(torch.equal(before[name], after[name]) for name in names)


def test_an_edit_of_attention_keeps_the_tuple_it_is_in(causal: LM) -> None:
    if causal.config.model_type == "mamba":
        pytest.skip("Mamba has no attention")
    module = causal.model.get_submodule(causal.hookpoint("layers.1.attn").path)
    outputs: list[object] = []
    with causal.edit({"layers.1.attn": add(1.0)}):
        handle = module.register_forward_hook(lambda m, args, output: outputs.append(output))
        changed = causal.logits(inputs_for(causal))
        handle.remove()
    assert isinstance(outputs[0], tuple) and len(outputs[0]) == 2
    assert not torch.equal(changed, causal.logits(inputs_for(causal)))


def test_edits_nest_the_outer_one_first(llama: LM) -> None:
    plain = llama.capture(inputs_for(llama), ["layers.1"])["layers.1"]
    with llama.edit({"layers.1": add(1.0)}):
        with llama.edit({"blocks.1.hook_resid_post": lambda x, tokens: x * 2}):
            both = llama.capture(inputs_for(llama), ["layers.1"])["layers.1"]
        outer = llama.capture(inputs_for(llama), ["layers.1"])["layers.1"]
    assert torch.equal(both, (plain + 1) * 2)
    assert torch.equal(outer, plain + 1)


def test_nothing_stays_hooked_after_an_exception(llama: LM) -> None:
    def broken(x: Tensor, tokens: Tensor | None) -> Tensor:
        raise ZeroDivisionError

    expected = llama.logits(inputs_for(llama))
    with pytest.raises(ZeroDivisionError), llama.edit({"layers.1": broken, "layers.0": add(1.0)}):
        llama.logits(inputs_for(llama))
    with pytest.raises(UserError), llama.edit({"layers.1": add(1.0)}):
        llama.capture(inputs_for(llama), ["layers.0", "no.such"])
    assert hook_count(llama) == 0
    assert torch.equal(llama.logits(inputs_for(llama)), expected)


def test_an_edit_sees_the_tokens_of_its_own_forward_call(causal: LM) -> None:
    seen: list[Tensor | None] = []

    def watch(x: Tensor, tokens: Tensor | None) -> Tensor:
        assert tokens is None or tokens.shape == x.shape[:2]
        seen.append(tokens)
        return x

    tokens = inputs_for(causal)["input_ids"]
    with causal.edit({"layers.1": watch}), torch.no_grad():
        causal.model(tokens)
        causal.model(input_ids=tokens[:1])
        causal.model(inputs_embeds=causal.model.get_input_embeddings()(tokens))
    assert torch.equal(seen[0], tokens) and torch.equal(seen[1], tokens[:1]) and seen[2] is None


def test_with_a_cache_an_edit_sees_each_token_once(llama: LM) -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor, tokens: Tensor | None) -> Tensor:
        seen.append(tokens)
        return x

    with llama.edit({"layers.1": watch}):
        llama.generate("def read", max_new_tokens=4)
    prompt = llama.encode("def read")
    assert torch.equal(seen[0], prompt)
    assert [tokens.shape[1] for tokens in seen[1:]] == [1] * (len(seen) - 1)


def test_an_edit_must_keep_the_shape(llama: LM) -> None:
    cut = llama.edit({"layers.1": lambda x, tokens: x[:, :1]})
    with pytest.raises(UserError, match=r"`model\.layers\.1` returned \(2, 1, 32\)"), cut:
        llama.logits(inputs_for(llama))
    nothing = llama.edit({"layers.1": lambda x, tokens: None})
    with pytest.raises(UserError, match="returned NoneType"), nothing:
        llama.logits(inputs_for(llama))


def test_an_edit_in_fp32_leaves_a_half_precision_model_in_half_precision() -> None:
    lm = LM(tiny_llama().bfloat16())
    with lm.edit({"layers.1": lambda x, tokens: x.float() + 1}):
        assert lm.logits(inputs_for(lm)).dtype == torch.bfloat16


def test_gradients_flow_through_an_edit(llama: LM) -> None:
    direction = torch.zeros(WIDTH, requires_grad=True)
    with llama.edit({"layers.1": lambda x, tokens: x + direction}):
        llama.model(**inputs_for(llama)).logits[..., 5].sum().backward()
    assert direction.grad is not None and direction.grad.abs().sum() > 0


# --- steering and text ----------------------------------------------------------------------


class OneFeature:
    """A dictionary of one direction."""

    hookpoint = "layers.1"

    def __init__(self) -> None:
        self.direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
        self.positions: list[Tensor | None] = []

    def steer(
        self, x: Tensor, *, feature: int, scale: float, positions: Tensor | None = None
    ) -> Tensor:
        self.positions.append(positions)
        where = 1 if positions is None else positions[..., None]
        return x + scale * self.direction * where


def test_steering_writes_the_same_text_with_and_without_a_cache(causal: LM) -> None:
    with causal.steer(OneFeature(), feature=0, scale=4.0):
        cached = causal.generate("def read_file(path):", max_new_tokens=20)
        plain = causal.generate("def read_file(path):", max_new_tokens=20, use_cache=False)
    assert cached == plain
    assert cached != causal.generate("def read_file(path):", max_new_tokens=20)


def test_steering_leaves_special_tokens_alone(llama: LM) -> None:
    dictionary = OneFeature()
    tokens = torch.tensor([[0, 5, 6, 0, 7]])
    before = llama.capture(tokens, ["layers.1"])["layers.1"]
    with llama.steer(dictionary, feature=0, scale=2.0):
        after = llama.capture(tokens, ["layers.1"])["layers.1"]
    assert dictionary.positions[0].tolist() == [[False, True, True, False, True]]
    assert torch.equal(before[:, [0, 3]], after[:, [0, 3]])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_images_are_steered_everywhere() -> None:
    lm = LM(TINY["vit"]())
    dictionary = OneFeature()
    with lm.steer(dictionary, feature=0, scale=2.0):
        lm.logits(inputs_for(lm))
    assert dictionary.positions == [None]


def test_greedy_text_is_what_the_logits_say(causal: LM) -> None:
    ids = causal.encode("return file")
    expected: list[int] = []
    for _ in range(6):
        token = int(causal.logits(ids)[0, -1].argmax())
        if token in causal.special_ids:
            break
        expected.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert causal.generate("return file", max_new_tokens=6) == causal.tokenizer.decode(expected)


def test_the_prompt_is_not_part_of_the_continuation(llama: LM) -> None:
    text = llama.generate("def read", max_new_tokens=5)
    assert not text.startswith("def read") and "<|endoftext|>" not in text


def test_drawn_text_depends_on_the_seed_alone(llama: LM) -> None:
    drawn = [llama.generate("def", temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    state = torch.random.get_rng_state()
    llama.generate("def", temperature=1.0, max_new_tokens=2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_models_own_sampling_defaults_are_not_used() -> None:
    lm = LM(tiny_llama(), tiny_tokenizer())
    plain = lm.generate("def read", max_new_tokens=12)
    lm.model.generation_config.update(do_sample=True, temperature=0.1, top_k=3, top_p=0.4)
    lm.model.generation_config.update(repetition_penalty=5.0)
    assert lm.generate("def read", max_new_tokens=12) == plain


def test_bos_is_put_in_front_once_even_with_id_0(llama: LM) -> None:
    assert llama.encode("def").tolist()[0][0] == 0
    adds_none = tiny_tokenizer()
    adds_none.backend_tokenizer.post_processor = None
    assert LM(tiny_llama(), adds_none).encode("def").tolist() == llama.encode("def").tolist()
    assert llama.encode("").tolist() == [[0]]


def test_a_tokenizer_without_bos_gets_none() -> None:
    lm = LM(tiny_llama(), tiny_tokenizer(bos=False))
    assert lm.special_ids == frozenset()
    assert len(lm.tokenizer("def")["input_ids"]) == lm.encode("def").shape[1]
    with pytest.raises(UserError, match="the prompt is empty"):
        lm.generate("")


def test_text_ends_at_the_context_limit(llama: LM) -> None:
    with llama.edit({}):
        text = llama.generate("def " * 20, max_new_tokens=1000)
    assert llama.context_limit == 64
    assert len(llama.tokenizer(text, add_special_tokens=False)["input_ids"]) < 64
    with pytest.raises(UserError, match="takes fewer than 64"):
        llama.generate("def " * 100)


def test_generating_takes_a_causal_model_and_a_tokenizer(llama: LM) -> None:
    with pytest.raises(UserError, match="cannot generate text"):
        LM(TINY["bert"](), tiny_tokenizer()).generate("def")
    with pytest.raises(UserError, match="has no tokenizer"):
        LM(tiny_llama()).generate("def")


# --- unembedding ----------------------------------------------------------------------------


def test_the_unembedding_gives_the_models_logits(causal: LM) -> None:
    weight, gain, bias, centres = causal.unembedding()
    x = causal.capture(inputs_for(causal), [f"layers.{LAYERS - 1}"])[f"layers.{LAYERS - 1}"]
    if centres:
        x = x - x.mean(-1, keepdim=True)
    x = x / x.square().mean(-1, keepdim=True).sqrt() * gain
    expected = causal.logits(inputs_for(causal))
    if (cap := getattr(causal.config, "final_logit_softcapping", None)) is not None:
        expected = (expected / cap).atanh() * cap
    assert bias is None
    torch.testing.assert_close(x @ weight.T, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("width", [5, 6])
def test_the_gain_of_a_norm_is_measured_whatever_its_form(width: int) -> None:
    weight, bias = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    layer_norm, rms_norm = nn.LayerNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
    with torch.no_grad():
        layer_norm.weight.copy_(weight)
        layer_norm.bias.copy_(bias)
        rms_norm.weight.copy_(weight)
    for norm, expected in ((layer_norm, True), (rms_norm, False)):
        gain, centres = measure_norm(norm, width)
        torch.testing.assert_close(gain, weight, atol=1e-5, rtol=1e-5)
        assert centres is expected


def test_only_a_causal_model_has_an_unembedding() -> None:
    with pytest.raises(UserError, match="has no unembedding"):
        LM(TINY["bert"]()).unembedding()


# --- loading --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama().half().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_a_saved_folder_loads_in_fp32_with_its_tokenizer(folder: Path) -> None:
    lm = LM(folder, device="cpu")
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert lm.name == str(folder) and lm.special_ids == {0} and not lm.model.training
    assert LM(str(folder), device="cpu", dtype=torch.float16).model.dtype == torch.float16
    original = tiny_llama()
    for parameter in original.parameters():
        parameter.data = parameter.data.half().float()
    assert torch.equal(lm.logits(inputs_for(lm)), LM(original).logits(inputs_for(lm)))


def test_a_builtin_model_is_found_in_the_package_and_loads_in_fp32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "BUILTIN", folder.parent)
    lm = LM("builtin:tiny", device="cpu")
    assert (lm.name, lm.model.dtype) == ("builtin:tiny", torch.float32)
    with pytest.raises(UserError, match=r"did you mean `tiny`\?"):
        LM("builtin:tinny", device="cpu")


@pytest.mark.parametrize("family", ["gpt2", "bert", "vit", "mamba"])
def test_each_kind_of_model_loads_as_what_it_was(family: str, tmp_path: Path) -> None:
    model = TINY[family]()
    model.save_pretrained(tmp_path)
    lm = LM(tmp_path, None if family == "vit" else tiny_tokenizer(), device="cpu")
    assert type(lm.model) is type(model)
    assert torch.equal(lm.logits(inputs_for(lm)), LM(model).logits(inputs_for(lm)))


def test_a_config_that_names_no_class_loads_as_a_causal_model() -> None:
    config = tiny_gpt2().config
    config.architectures = None
    assert load.model_class(config) is transformers.AutoModelForCausalLM
    config.architectures = ["pipeline"]  # in `transformers`, but no model
    assert load.model_class(config) is transformers.AutoModelForCausalLM
    bert = TINY["bert"]().config
    bert.architectures = ["BertForPreTraining"]
    assert load.model_class(bert) is transformers.AutoModelForMaskedLM


def test_a_model_object_is_left_where_and_as_it_is() -> None:
    model = tiny_llama().train()
    flags = [p.requires_grad for p in model.parameters()]
    lm = LM(model)
    assert lm.model is model and not model.training and lm.name == "LlamaForCausalLM"
    assert [p.requires_grad for p in model.parameters()] == flags
    assert "3 layers" in repr(lm)


def test_a_wrapped_model_works_like_the_model_in_it(llama: LM) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = llama.model

        def forward(self, **inputs: Tensor) -> ModelOutput:
            return self.base(**inputs)

        def generate(self, **settings: object) -> Tensor:
            return self.base.generate(**settings)

    wrapped = LM(Wrapper(), llama.tokenizer)
    assert wrapped.hookpoint("layers.1").path == "base.model.layers.1"
    assert wrapped.hookpoint("model.layers.1.mlp.up_proj").name == "layers.1.mlp.up_proj"
    with wrapped.steer(OneFeature(), feature=0, scale=4.0):
        steered = wrapped.generate("def read", max_new_tokens=8)
    with llama.steer(OneFeature(), feature=0, scale=4.0):
        assert steered == llama.generate("def read", max_new_tokens=8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no such model folder"),
        ("a/b/c", "no such model folder"),
        (Path("nope"), "no such model folder"),
        ("builtin:stdlip", "no built-in model `stdlip`"),
    ],
)
def test_an_unknown_model_is_a_clear_error(name: str | Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LM(name, device="cpu")


def test_an_unreachable_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the Hub\nand more")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"(?s)cannot load `gpt3` at .* no such folder.*HF_TOKEN"):
        LM("gpt3", revision="main", device="cpu")


def test_a_folder_without_a_model_or_tokenizer_is_a_clear_error(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        LM(tmp_path, device="cpu")
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no tokenizer found"):
        LM(tmp_path, device="cpu")
    assert LM(tmp_path, folder, device="cpu").special_ids == {0}


def test_damaged_or_missing_weights_are_a_clear_error(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        LM(tmp_path, tiny_tokenizer(), device="cpu")
    tiny_llama(layers=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="lacks 9 weights of a LlamaForCausalLM"):
        LM(tmp_path, tiny_tokenizer(), device="cpu")


def test_a_model_object_keeps_its_dtype() -> None:
    with pytest.raises(UserError, match="`dtype` was given with a model object"):
        LM(tiny_llama(), dtype=torch.float16)


def test_an_object_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UserError, match="a Linear is no `transformers` model"):
        LM(nn.Linear(2, 2))
