"""sparsify's files by their layout; `parity/test_sparsify.py` holds them against the package."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import dictionary_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_coders import build
from torch import Tensor
from torch.testing import assert_close

import monosemy
from monosemy.coders import make_coder
from monosemy.errors import UserError
from monosemy.formats import Given, export

D, WIDTH, K = 6, 24, 3
CONFIG: dict[str, Any] = {
    "activation": "topk",
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}
RUN = {"sae": {}, "hookpoints": ["layers.3"], "model": "EleutherAI/pythia-70m", "ctx_len": 2048}


def tensors(d_in: int = D, width: int = WIDTH) -> dict[str, Tensor]:
    return {
        "encoder.weight": torch.randn(width, d_in),
        "encoder.bias": torch.randn(width),
        "W_dec": torch.randn(width, d_in),
        "b_dec": torch.randn(d_in),
    }


def saved(
    folder: Path,
    name: str = "layers.3",
    *,
    run: dict[str, Any] | None = RUN,
    weights: dict[str, Tensor] | None = None,
    **config: Any,
) -> Path:
    """A folder as sparsify saves one; a field of None is left out."""
    (folder / name).mkdir(parents=True)
    values = {n: v for n, v in {**CONFIG, **config}.items() if v is not None}
    (folder / name / "cfg.json").write_text(json.dumps(values))
    save_file(tensors() if weights is None else weights, folder / name / "sae.safetensors")
    if run is not None:
        (folder / "config.json").write_text(json.dumps(run))
    return folder / name


def features_of(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Section 2 of the layout: ReLU, then the k largest."""
    pre = (x @ weights["encoder.weight"].T + weights["encoder.bias"]).relu()
    top = pre.topk(K, dim=1)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values)


def test_the_bias_of_the_decoder_is_subtracted_first(tmp_path: Path) -> None:
    weights, x = tensors(), torch.randn(50, D) * 3
    dictionary = monosemy.load(saved(tmp_path, weights=weights))
    features = features_of(weights, x - weights["b_dec"])
    assert_close(dictionary.encode(x), features)
    assert_close(dictionary.reconstruct(x), features @ weights["W_dec"] + weights["b_dec"])


def test_of_a_transcoder_it_is_not_and_its_output_is_the_modules(tmp_path: Path) -> None:
    weights, x = {**tensors(), "W_skip": torch.randn(D, D)}, torch.randn(50, D)
    path = saved(
        tmp_path, "layers.3.mlp", weights=weights, transcode=True, skip_connection=True, run=None
    )
    dictionary = monosemy.load(path)
    features = features_of(weights, x)
    assert_close(dictionary.encode(x), features)
    out = features @ weights["W_dec"] + weights["b_dec"] + x @ weights["W_skip"].T
    assert_close(dictionary.reconstruct(x), out)
    assert (dictionary.hookpoint, dictionary.explains) == ("layers.3.mlp.input", "layers.3.mlp")


def test_of_each_group_the_largest_fires(tmp_path: Path) -> None:
    dictionary = monosemy.load(saved(tmp_path, activation="groupmax"))
    fired = dictionary.encode(torch.randn(50, D)).unflatten(1, (K, -1)) > 0
    assert fired.sum(-1).max() == 1
    assert fired.any(-1).all(0).all()


def test_fewer_than_k_fire_where_fewer_are_positive(tmp_path: Path) -> None:
    weights = {**tensors(), "encoder.bias": torch.full((WIDTH,), -1e3)}
    weights["encoder.bias"][0] = 1e3
    dictionary = monosemy.load(saved(tmp_path, weights=weights))
    assert ((dictionary.encode(torch.randn(20, D)) > 0).sum(1) == 1).all()


def test_a_width_of_its_own_goes_before_the_factor(tmp_path: Path) -> None:
    path = saved(tmp_path, weights=tensors(width=20), num_latents=20, expansion_factor=32)
    assert monosemy.load(path).width == 20


def test_configurations_before_transcoders_are_read(tmp_path: Path) -> None:
    """The first releases had no `activation`, `transcode`, `skip_connection` or `multi_topk`."""
    weights = tensors()
    path = saved(
        *(tmp_path, "layers.0.attention"),
        **{"activation": None, "transcode": None, "skip_connection": None, "multi_topk": None},
        weights=weights,
        signed=False,
        num_latents=WIDTH,
    )
    x = torch.randn(30, D)
    assert_close(monosemy.load(path).encode(x), features_of(weights, x - weights["b_dec"]))


@pytest.mark.parametrize(
    ("folder", "hookpoint"),
    [
        ("layers.5", "layers.5"),
        ("h.5", "layers.5"),
        ("gpt_neox.layers.5", "layers.5"),
        ("transformer.h.5.attn", "layers.5.attn"),
        ("layers.0.attention", "layers.0.attn"),
        ("layers.0.self_attn", "layers.0.attn"),
        ("decoder.layers.2", "layers.2"),
        ("layers.2.mlp.down_proj", "layers.2.mlp.down_proj"),
        ("embed_tokens", "embed"),
        ("embed_in", "embed"),
        ("wte", "wte"),
        ("drop", "embed"),
        ("layers.5/seed2", "layers.5"),
        ("best/layers.5", "layers.5"),
    ],
)
def test_folders_are_hook_points_of_any_family(tmp_path: Path, folder: str, hookpoint: str) -> None:
    assert monosemy.load(saved(tmp_path, folder)).hookpoint == hookpoint


def test_a_run_names_model_context_and_text(tmp_path: Path) -> None:
    run = {**RUN, "model": "gpt2", "dataset": "org/text", "hookpoints": ["odd.place"]}
    dictionary = monosemy.load(saved(tmp_path, "odd.place", run=run))
    provenance = dictionary.provenance
    assert (provenance.model, provenance.context) == ("openai-community/gpt2", 2048)
    assert provenance.corpus == {"source": "org/text"}
    assert dictionary.hookpoint == "odd.place"
    assert provenance.training["imported"]["settings"]["k"] == K


def test_a_run_of_one_hook_point_is_that_dictionary_and_one_of_two_is_asked_for(
    tmp_path: Path,
) -> None:
    saved(tmp_path)
    (tmp_path / "optimizer_0.pt").write_bytes(b"not read")
    assert monosemy.load(tmp_path).hookpoint == "layers.3"
    saved(tmp_path, "layers.4")
    with pytest.raises(UserError, match=r"holds 2 dictionaries\n.*layers.3, .*layers.4"):
        monosemy.load(tmp_path)


@pytest.mark.parametrize("run", [None, {"model_type": "llama", "model": "other"}])
def test_what_no_file_says_is_said_to_be_unknown(
    tmp_path: Path, run: dict[str, Any] | None
) -> None:
    dictionary = monosemy.load(saved(tmp_path, "my_sae", run=run, transcode=True))
    assert dictionary.is_transcoder
    assert (dictionary.provenance.model, dictionary.hookpoint) == ("unknown", "unknown")
    no_run, no_place = dictionary.provenance.training["imported"]["notes"]
    assert "config.json" in no_run
    assert "`my_sae`" in no_place


def test_what_is_given_goes_first(tmp_path: Path) -> None:
    weights, x = tensors(), torch.randn(30, D)
    path = saved(tmp_path, weights=weights)
    known = Given(model="org/model", hookpoint="layers.9", k=WIDTH, scale=2.0)
    dictionary = monosemy.load(path, given=known)
    assert (dictionary.provenance.model, dictionary.hookpoint) == ("org/model", "layers.9")
    pre = (2 * x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
    assert_close(dictionary.encode(x), pre.relu(), rtol=1e-5, atol=1e-5)
    out = (pre.relu() @ weights["W_dec"] + weights["b_dec"]) / 2
    assert_close(dictionary.reconstruct(x), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"d_in": None}, "does not say `d_in`"),
        ({"k": None}, "does not say `k`"),
        ({"k": "many"}, "`k` of `.*cfg.json` is 'many'"),
        ({"k": 2.5}, "`k` of `.*cfg.json` is 2.5"),
        ({"k": WIDTH + 1}, f"k is {WIDTH + 1}, but the dictionary has {WIDTH} features"),
        ({"k": 5, "activation": "groupmax"}, "cannot be cut into 5 groups"),
        ({"expansion_factor": None}, "does not say `expansion_factor`"),
        ({"num_latents": -3}, "`num_latents` of `.*cfg.json` is -3"),
        ({"d_in": [6]}, r"`d_in` of `.*cfg.json` is \[6\]"),
        ({"activation": "jumprelu"}, "activation `jumprelu`"),
        ({"signed": True}, "signed features"),
        ({"num_latents": 10}, r"`encoder.weight` of .* is \[24, 6\], but should be \[10, 6\]"),
        ({"d_in": 8}, r"is \[24, 6\], but should be \[32, 8\]"),
        ({"skip_connection": True}, "no tensor `W_skip`"),
    ],
)
def test_a_configuration_that_is_wrong_is_said(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path, **config)
    with pytest.raises(UserError, match=message):
        monosemy.load(path)


def test_a_tensor_that_is_missing_is_named_with_those_there(tmp_path: Path) -> None:
    weights = tensors()
    del weights["W_dec"]
    path = saved(tmp_path, weights=weights)
    with pytest.raises(UserError, match=r"(?s)no tensor `W_dec`.*`encoder.bias` \[24\]"):
        monosemy.load(path)


def test_a_tensor_that_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, weights={**tensors(), "W_skip": torch.zeros(D, D)})
    with pytest.raises(UserError, match="also holds `W_skip`"):
        monosemy.load(path)


# Writing


@settings(max_examples=25)
@given(
    d=st.integers(1, 9),
    groups=st.integers(1, 5),
    size=st.integers(1, 5),
    architecture=st.sampled_from(["topk", "groupmax"]),
    skip=st.booleans(),
    transcoder=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_written_and_read_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    d: int,
    groups: int,
    size: int,
    architecture: str,
    skip: bool,
    transcoder: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    coder = make_coder(architecture, d, groups * size, k=groups, skip=skip, unit_norm=False)
    for parameter in coder.parameters():
        torch.nn.init.normal_(parameter)
    place = {"hookpoint": "layers.1.mlp.input", "target": "layers.1.mlp"} if transcoder else {}
    before = dictionary_of(coder, **place)
    folder = tmp_path_factory.mktemp("any") / "out"
    export(before, "sparsify", folder)
    after = monosemy.load(folder)
    assert after.provenance.model == before.provenance.model
    assert (after.hookpoint, after.explains) == (before.hookpoint, before.explains)
    assert after.coder.options() == before.coder.options()
    for name, weights in before.coder.state_dict().items():
        assert_close(after.coder.state_dict()[name], weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "hookpoint", "folder"),
    [
        ("openai-community/gpt2", "layers.5", "h.5"),
        ("openai-community/gpt2", "layers.5.attn", "h.5.attn"),
        ("openai-community/gpt2", "embed", "drop"),
        ("EleutherAI/pythia-70m", "layers.5.attn", "layers.5.attention"),
        ("EleutherAI/pythia-70m", "embed", "embed_in"),
        ("meta-llama/Llama-3.2-1B", "layers.5.attn", "layers.5.self_attn"),
        ("google/gemma-2-2b", "layers.5.mlp", "layers.5.mlp"),
        ("google/gemma-2-2b", "embed", "embed_tokens"),
        ("facebook/opt-125m", "layers.5", "decoder.layers.5"),
        ("/some/where", "layers.5.mlp.up_proj", "layers.5.mlp.up_proj"),
    ],
)
def test_the_folder_is_the_module_in_that_model(
    tmp_path: Path, model: str, hookpoint: str, folder: str
) -> None:
    out = tmp_path / "out"
    export(dictionary_of(build("topk"), model=model, hookpoint=hookpoint), "sparsify", out)
    assert sorted(path.name for path in out.iterdir()) == sorted(["config.json", folder])
    assert sorted(path.name for path in (out / folder).iterdir()) == ["cfg.json", "sae.safetensors"]
    run = json.loads((out / "config.json").read_text())
    assert (run["model"], run["hookpoints"], run["ctx_len"]) == (model, [folder], 64)
    assert run["dataset"] == "org/text"


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    place = {"hookpoint": "layers.3.post_attention_layernorm", "target": "layers.3.mlp"}
    lost = export(dictionary_of(build("topk"), **place), "sparsify", tmp_path / "a")
    assert any("`layers.3.post_attention_layernorm`" in line for line in lost)
    lost = export(dictionary_of(build("topk"), model="unknown"), "sparsify", tmp_path / "b")
    assert any("not known" in line for line in lost)


@pytest.mark.parametrize("architecture", ["batch_topk", "jumprelu", "relu", "gated", "matryoshka"])
def test_what_does_not_keep_a_fixed_number_is_refused(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(UserError, match=f"no `{architecture}`: it keeps a fixed number"):
        export(dictionary_of(build(architecture)), "sparsify", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_it_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    refused = [
        (dictionary_of(build("topk", "transcoder"), target="layers.3.mlp"), "one width"),
        (dictionary_of(build("topk", importance=True)), "cannot weigh features"),
        (dictionary_of(build("topk", normalise="centre")), "cannot normalise"),
        (dictionary_of(build("topk"), hookpoint="layers.3.mlp.input"), "what modules put out"),
    ]
    for dictionary, message in refused:
        with pytest.raises(UserError, match=message):
            export(dictionary, "sparsify", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_tied_weights_are_written_twice(tmp_path: Path) -> None:
    export(dictionary_of(build("topk", "tied")), "sparsify", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "layers.3" / "sae.safetensors")
    assert_close(weights["encoder.weight"], weights["W_dec"])


@pytest.mark.parametrize("place", ["../outside", "a/b", "/root", "..", ""])
def test_no_hook_point_leads_out_of_the_folder(place: str, tmp_path: Path) -> None:
    dictionary = dictionary_of(make_coder("topk", D, WIDTH, k=K), hookpoint=place)
    with pytest.raises(UserError, match="folder"):
        export(dictionary, "sparsify", tmp_path / "in" / "out")
    assert not (tmp_path / "in" / "outside").exists() and not (tmp_path / "in" / "out").exists()


@pytest.mark.parametrize("field", [*CONFIG, "signed"])
@pytest.mark.parametrize("bad", [[1], {"a": 1}, 3.5, "false", -4, 10**40, float("nan")])
def test_configurations_of_other_types_are_one_error_or_read(
    field: str, bad: object, tmp_path: Path
) -> None:
    run = {"sae": {}, "hookpoints": 3, "model": ["a"], "dataset": 3}
    with contextlib.suppress(UserError):
        monosemy.load(saved(tmp_path, run=run, **{field: bad}))


def test_text_for_true_or_false_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transcode"):
        monosemy.load(saved(tmp_path, transcode="false"))
