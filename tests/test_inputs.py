"""What modules read, as hook points: read truly, edited like the output it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_lm import OTHER_FAMILIES, other_model
from tiny_models import TINY, WIDTH, inputs_for, tiny_gpt2, tiny_llama, tiny_tokenizer
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from monosemy.cli.main import main
from monosemy.coders import diagnose
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.index import build_index
from monosemy.interpret.logit_lens import in_stream
from monosemy.lm import LM, Replay, empty_model
from monosemy.training import train

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    **TINY,
    **{name: (lambda name=name: other_model(name)) for name in OTHER_FAMILIES},
}
NORM_BEFORE_MLP = {
    "gpt2": "ln_2",
    "gpt_neox": "post_attention_layernorm",
    "llama": "post_attention_layernorm",
    "qwen2": "post_attention_layernorm",
    "qwen3_moe": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm",
    "olmo": "post_attention_layernorm",
    "bert": "attention.output.LayerNorm",
    "vit": "layernorm_after",
    "BloomForCausalLM": "post_attention_layernorm",
    "MptForCausalLM": "norm_2",
    "FalconForCausalLM": "input_layernorm",
    "GPTJForCausalLM": "ln_1",
    "PhiForCausalLM": "input_layernorm",
    "CohereForCausalLM": "input_layernorm",
    "Gemma3ForCausalLM": "pre_feedforward_layernorm",
    "Glm4ForCausalLM": "post_attention_layernorm",
    "MixtralForCausalLM": "post_attention_layernorm",
}
PARALLEL = ("gpt_neox", "FalconForCausalLM", "GPTJForCausalLM", "PhiForCausalLM")
PARALLEL += ("CohereForCausalLM",)
NOTHING_BETWEEN = (*PARALLEL, "mamba", "OPTForCausalLM")
"""Attention and MLP side by side, or none; OPT has no module for its MLP."""
WITHOUT_NEURONS = ("mamba", "OPTForCausalLM", "qwen3_moe", "MixtralForCausalLM")
"""No module reads all of an MLP's neurons: experts have a projection each."""

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tiny(family: str) -> LM:
    return LM(FAMILIES[family](), tiny_tokenizer())


@pytest.fixture(scope="module")
def llama() -> LM:
    return LM(tiny_llama(), tiny_tokenizer())


def shifted(x: Tensor, tokens: Tensor | None) -> Tensor:
    return x + torch.linspace(-1, 1, x.shape[-1])


def edited(lm: LM, name: str) -> Tensor:
    with lm.edit({name: shifted}):
        return lm.logits(inputs_for(lm))


def named(lm: LM, ending: str) -> list[str]:
    return [
        p.name for p in lm.hookpoints() if any(n.endswith(ending) for n in (p.name, *p.aliases))
    ]


# --- what is there ----------------------------------------------------------------------------


def test_an_edit_that_changes_nothing_changes_no_bit(tiny: LM) -> None:
    paths = [*tiny._measured_widths(), *(p.path for p in tiny.hookpoints())]
    expected = tiny.logits(inputs_for(tiny))
    for edit in (lambda x, tokens: x, lambda x, tokens: x + 0.0):
        with tiny.edit({path: edit for path in paths}):
            assert torch.equal(tiny.logits(inputs_for(tiny)), expected)
    assert torch.equal(tiny.logits(inputs_for(tiny)), expected)


def test_listed_inputs_have_the_width_they_are_said_to_have(tiny: LM) -> None:
    points = tiny.hookpoints()
    captured = tiny.capture(inputs_for(tiny), [p.name for p in points])
    assert {p.name: p.width for p in points} == {n: x.shape[-1] for n, x in captured.items()}
    assert len({p.path for p in points}) == len(points)


def test_the_input_of_a_block_is_the_output_of_the_one_before(tiny: LM) -> None:
    x, y = tiny.capture(inputs_for(tiny), ["layers.2.input", "layers.1"]).values()
    assert torch.equal(x, y)
    torch.testing.assert_close(edited(tiny, "layers.2.input"), edited(tiny, "layers.1"))
    assert not torch.equal(edited(tiny, "layers.1"), tiny.logits(inputs_for(tiny)))


def test_what_the_mlp_reads_is_what_the_norm_before_it_gives(tiny: LM, family: str) -> None:
    if family not in NORM_BEFORE_MLP:
        assert family in ("mamba", "OPTForCausalLM", "Olmo2ForCausalLM")
        return
    norm = f"layers.1.{NORM_BEFORE_MLP[family]}"
    x, y = tiny.capture(inputs_for(tiny), ["layers.1.mlp.input", norm]).values()
    assert torch.equal(x, y)


def test_an_edit_of_what_the_mlp_reads_is_one_of_what_the_norm_gives(tiny: LM, family: str) -> None:
    norm = NORM_BEFORE_MLP.get(family)
    shared = ("bert", "FalconForCausalLM", "GPTJForCausalLM", "PhiForCausalLM", "CohereForCausalLM")
    if norm is None or family in shared:  # where others read the norm too
        return
    assert torch.equal(edited(tiny, "layers.1.mlp.input"), edited(tiny, f"layers.1.{norm}"))


@pytest.mark.parametrize(("theirs", "part"), [("attn.hook_z", "attn"), ("mlp.hook_post", "mlp")])
def test_a_last_projection_makes_the_output_of_what_it_reads(
    tiny: LM, family: str, theirs: str, part: str
) -> None:
    names = named(tiny, f"blocks.1.{theirs}")
    if not names:
        none = ["mamba"] if part == "attn" else WITHOUT_NEURONS
        assert family in none
        return
    x, y = tiny.capture(inputs_for(tiny), [names[0], f"layers.1.{part}"]).values()
    module = tiny.model.get_submodule(tiny.hookpoint(names[0]).path.removesuffix(".input"))
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    torch.testing.assert_close(linear(x, weight, module.bias), y, **CLOSE)


# --- the stream between attention and MLP -----------------------------------------------------


def test_the_stream_in_the_middle_is_there_unless_branches_are_parallel(
    tiny: LM, family: str
) -> None:
    assert bool(named(tiny, "layers.1.mid")) == (family not in NOTHING_BETWEEN)


def test_the_stream_in_the_middle_is_the_block_s_input_and_attention(tiny: LM, family: str) -> None:
    if family in NOTHING_BETWEEN:
        return
    attention = "layers.1.attn" if family in ("bert", "vit") else "blocks.1.hook_attn_out"
    names = ["layers.1.input", attention, "layers.1.mid"]
    before, written, middle = tiny.capture(inputs_for(tiny), names).values()
    torch.testing.assert_close(before + written, middle, **CLOSE)


def test_an_edit_of_the_stream_in_the_middle_reaches_the_mlp_and_what_follows(
    tiny: LM, family: str
) -> None:
    """As an edit of what attention writes does."""
    if family in NOTHING_BETWEEN:
        return
    attention = "layers.1.attn" if family in ("bert", "vit") else "blocks.1.hook_attn_out"
    found = edited(tiny, "layers.1.mid")
    torch.testing.assert_close(found, edited(tiny, attention), **CLOSE)
    assert (found - tiny.logits(inputs_for(tiny))).abs().max() > 1e-2


def test_an_edit_of_the_middle_is_seen_where_it_is_and_not_before(llama: LM) -> None:
    names = ["layers.1.attn", "layers.1.mid", "layers.1"]
    before = llama.capture(inputs_for(llama), names)
    with llama.edit({"layers.1.mid": lambda x, tokens: x * 2}):
        after = llama.capture(inputs_for(llama), names)
    assert torch.equal(after[names[0]], before[names[0]])
    assert torch.equal(after[names[1]], before[names[1]] * 2)
    assert not torch.equal(after[names[2]], before[names[2]])


# --- editing ----------------------------------------------------------------------------------


def test_edits_of_an_input_nest_and_are_left_out_when_suspended(llama: LM) -> None:
    name = "layers.1.mlp.input"
    plain = llama.capture(inputs_for(llama), [name])[name]
    with llama.edit({name: lambda x, t: x + 1}), llama.edit({name: lambda x, t: x * 2}):
        assert torch.equal(llama.capture(inputs_for(llama), [name])[name], (plain + 1) * 2)
        with llama.unedited():
            assert torch.equal(llama.capture(inputs_for(llama), [name])[name], plain)
    with (
        pytest.raises(UserError, match=r"the edit at `.*mlp\.input` returned \(2, 7, 3\)"),
        llama.edit({name: lambda x, t: x[..., :3]}),
    ):
        llama.logits(inputs_for(llama))


@pytest.mark.parametrize("name", ["layers.1.mlp.input", "layers.1.mid", "layers.1.input"])
def test_gradients_reach_what_an_edit_puts_in(llama: LM, name: str) -> None:
    added = torch.zeros(WIDTH, requires_grad=True)
    with llama.edit({name: lambda x, tokens: x + added}):
        logits = llama.logits(inputs_for(llama), gradients=True)
    (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), added)
    step = 1e-2 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    moved = []
    for sign in (1, -1):
        with llama.edit({name: lambda x, tokens, s=sign: x + s * step}):
            moved.append(llama.logits(inputs_for(llama)).logsumexp(-1).sum())
    expected = (moved[0] - moved[1]) / 2
    torch.testing.assert_close(gradient @ step, expected, atol=1e-2, rtol=2e-2)


@pytest.mark.parametrize(
    "name",
    ["layers.1.input", "layers.1.self_attn.o_proj.input", "layers.2.mid", "model.norm.input"],
)
def test_a_replay_gives_what_a_whole_pass_gives(llama: LM, name: str) -> None:
    tokens = inputs_for(llama)["input_ids"]
    replay = Replay(llama, name)
    before = replay.record(tokens)
    with llama.edit({name: lambda x, t: x.flip(-1) * 1.5}):
        assert torch.equal(replay.again(), llama.logits(tokens))
        assert not torch.equal(replay.again(), before)
    assert torch.equal(replay.again(), before)


def test_text_is_written_alike_with_and_without_a_cache(llama: LM) -> None:
    for name in ("layers.1.mlp.input", "layers.1.mid", "layers.0.self_attn.o_proj.input"):
        with llama.edit({name: lambda x, tokens: x * 3}):
            cached, whole = (
                llama.generate("def read", max_new_tokens=8, use_cache=use) for use in (True, False)
            )
        assert cached == whole


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "path"),
    [
        ("gpt2", "blocks.1.attn.hook_z", "transformer.h.1.attn.c_proj.input"),
        ("gpt2", "blocks.1.mlp.hook_post", "transformer.h.1.mlp.c_proj.input"),
        ("gpt2", "blocks.1.hook_resid_mid", "transformer.h.1.ln_2.stream"),
        ("gpt2", "h.1.mlp.input", "transformer.h.1.mlp.input"),
        ("gpt2", "layers.1.ln_2.input", "transformer.h.1.ln_2.input"),
        ("gpt2", "layers.1.input", "transformer.h.1.input"),
        ("gpt_neox", "layers.1.attn.input", "gpt_neox.layers.1.attention.input"),
        ("llama", "model.layers.1.mlp.input", "model.layers.1.mlp.input"),
        ("gemma2", "blocks.1.hook_resid_mid", "model.layers.1.pre_feedforward_layernorm.stream"),
        ("bert", "layers.1.mlp.input", "bert.encoder.layer.1.intermediate.input"),
        ("BloomForCausalLM", "layers.1.mlp.input", "transformer.h.1.mlp.input"),
        ("BloomForCausalLM", "layers.1.attn.input", "transformer.h.1.self_attention.input"),
        ("OPTForCausalLM", "blocks.0.hook_resid_pre", "model.decoder.layers.0.input"),
        ("Olmo2ForCausalLM", "blocks.1.hook_resid_mid", "model.layers.1.mlp.stream"),
    ],
)
def test_names_of_inputs_are_understood(family: str, name: str, path: str) -> None:
    lm = LM(FAMILIES[family]())
    point = lm.hookpoint(name)
    assert point.path == path
    assert {lm.hookpoint(n) for n in (point.name, point.path, *point.aliases)} == {point}


@pytest.mark.parametrize("family", PARALLEL)
def test_parallel_branches_have_no_middle(family: str) -> None:
    with pytest.raises(UserError, match=r"unknown hook point `blocks\.1\.hook_resid_mid`"):
        LM(FAMILIES[family]()).hookpoint("blocks.1.hook_resid_mid")


def test_what_is_no_input_of_activations_is_refused(llama: LM) -> None:
    with pytest.raises(UserError, match=r"`model\.embed_tokens\.input` is no hook point"):
        llama.hookpoint("embed.input")
    with pytest.raises(
        UserError, match=r"(?s)unknown hook point `layers\.1\.mpl\.input`.*`layers\.1\.mlp\.input`"
    ):
        llama.hookpoint("layers.1.mpl.input")
    with pytest.raises(UserError, match="unknown hook point"):
        llama.hookpoint("blocks.1.hook_mlp_out.input")


def test_a_module_that_is_called_input_is_itself() -> None:
    model = tiny_llama()
    block = model.model.layers[1]
    block.mlp.act_fn = nn.Sequential()
    block.mlp.act_fn.input = nn.SiLU()
    lm = LM(model)
    x, y = lm.capture(
        inputs_for(lm), ["layers.1.mlp.gate_proj", "layers.1.mlp.act_fn.input"]
    ).values()
    assert torch.equal(nn.functional.silu(x), y)


def test_inputs_are_in_the_stream_only_where_what_reads_them_is_beside_it(llama: LM) -> None:
    inside = {"layers.1.self_attn.o_proj.input", "layers.1.mlp.down_proj.input", "lm_head.input"}
    beside = {"layers.1.mlp.input", "layers.1.attn.input", "layers.1.mid", "layers.1.input"}
    assert llama.hookpoint("layers.1.self_attn.o_proj.input").width == WIDTH
    assert {name for name in inside | beside if in_stream(llama, name)} == beside


def test_inputs_are_listed_without_weights_and_not_for_every_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_gpt2().save_pretrained(tmp_path)
    assert LM(empty_model(tmp_path)).hookpoints() == LM(tiny_gpt2()).hookpoints()
    main(["hookpoints", str(tmp_path)])
    listed = capsys.readouterr().out
    assert "blocks.1.attn.hook_z" in listed and "layers.1.mlp.input" in listed
    everything = LM(tiny_gpt2()).hookpoints(all=True)
    inputs = [p for p in everything if p.name.startswith("layers.1") and p.name.endswith("input")]
    assert len(inputs) == 4


# --- who uses it ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layers.1.mlp.input", "layers.1.mid", "layers.1.input"])
def test_a_model_is_loaded_as_far_as_an_input(tmp_path: Path, name: str) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    part = LM(tmp_path, device="cpu", upto=name)
    whole = LM(tiny_llama())
    assert part.upto == "layers.1"
    assert part.count_parameters() == whole.count_parameters(name) < whole.count_parameters()
    found, expected = (lm.capture(inputs_for(lm), [name])[name] for lm in (part, whole))
    assert torch.equal(found, expected)
    with pytest.raises(UserError, match=r"no `layers\.2\.mlp\.input`: this model was loaded up"):
        part.hookpoint("layers.2.mlp.input")


def test_a_transcoder_reads_the_input_of_what_it_explains(
    lm: LM, corpus: Corpus, tmp_path: Path
) -> None:
    small = {"width": 48, "k": 6, "tokens": 4096, "batch": 512, "pool": 2048, "context": 32}
    run = train(lm, corpus, "layers.1.mlp.input", target="layers.1.mlp", **small)
    dictionary = run.dictionary
    assert (dictionary.hookpoint, dictionary.explains) == ("layers.1.mlp.input", "layers.1.mlp")
    assert diagnose(dictionary, lm).healthy
    index = build_index(dictionary, lm, corpus, tmp_path / "index", tokens=500)
    same = train(lm, corpus, "layers.1.post_attention_layernorm", target="layers.1.mlp", **small)
    assert torch.equal(same.dictionary.coder.W_enc, dictionary.coder.W_enc)
    assert index.width == 48 and index.live
