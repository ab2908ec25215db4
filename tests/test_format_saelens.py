"""SAELens's files by their layout: what is folded, what is noted, what is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import dictionary_of
from safetensors.torch import save_file
from torch import Tensor

from monosemy.coders import Dictionary, Provenance, make_coder
from monosemy.errors import UserError
from monosemy.formats import Given, export, load

D, WIDTH = 6, 20


def made(folder: Path, settings: dict[str, Any], **changed: Tensor | None) -> Path:
    """A folder in SAELens's layout; tensors of None are left out."""
    tensors: dict[str, Tensor | None] = {
        "W_enc": torch.randn(D, WIDTH),
        "b_enc": torch.randn(WIDTH),
        "W_dec": torch.randn(WIDTH, D),
        "b_dec": torch.randn(D),
        **changed,
    }
    folder.mkdir()
    kept = {n: t.contiguous() for n, t in tensors.items() if t is not None}
    save_file(kept, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))
    return folder


def v6(
    architecture: str = "standard", *, about: dict[str, Any] | None = None, **fields: Any
) -> Any:
    said = {"sae_lens_version": "6.10.0", "model_name": "gpt2-small"}
    said |= {"hook_name": "blocks.3.hook_resid_post", **(about or {})}
    sizes = {"d_in": D, "d_sae": WIDTH, "dtype": "float32"}
    return {"architecture": architecture, **sizes, **fields, "metadata": said}


def notes(dictionary: Dictionary) -> str:
    return " ".join(dictionary.provenance.training["imported"]["notes"])


def test_b_dec_is_subtracted_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = load(made(tmp_path / "a", v6()))
    torch.manual_seed(1)
    second = load(made(tmp_path / "b", v6(apply_b_dec_to_input=False)))
    x = torch.randn(9, D)
    expected = second.encode(x - second.coder.b_dec)
    torch.testing.assert_close(first.encode(x), expected)


def test_a_threshold_is_no_logarithm_and_at_most_0_lets_all_that_is_positive_fire(
    tmp_path: Path,
) -> None:
    threshold = torch.full((WIDTH,), 0.7)
    threshold[0] = -1.0
    folder = made(tmp_path / "a", v6("jumprelu", apply_b_dec_to_input=False), threshold=threshold)
    coder = load(folder).coder
    x = torch.randn(50, D)
    pre = coder.pre_activations(x)
    torch.testing.assert_close(coder.encode(x), pre.relu() * (pre > threshold))


def test_an_unfolded_scale_is_needed_and_folded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = load(made(tmp_path / "a", v6()))
    torch.manual_seed(1)
    folder = made(tmp_path / "b", v6(normalize_activations="expected_average_only_in"))
    with pytest.raises(UserError, match="does not say by what"):
        load(folder)
    scaled = load(folder, given=Given(scale=0.5))
    x = torch.randn(9, D)
    torch.testing.assert_close(scaled.encode(x), plain.encode(0.5 * x))
    torch.testing.assert_close(scaled.reconstruct(x), plain.reconstruct(0.5 * x) / 0.5)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    torch.testing.assert_close(load(folder).encode(x), scaled.encode(x))


def test_a_model_with_centred_writing_weights_means_centred_activations(tmp_path: Path) -> None:
    about = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    centred = load(made(tmp_path / "a", v6(about=about)))
    assert centred.coder.normalise == "centre"
    assert "centred" in notes(centred)
    x = torch.randn(9, D)
    torch.testing.assert_close(centred.encode(x), centred.encode(x + 3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(centred.reconstruct(x + 3), centred.reconstruct(x) + 3)


@pytest.mark.parametrize(
    "about",
    [
        {"model_name": "gemma-2-2b"},  # TransformerLens leaves models with RMS norms as they are
        {"hook_name": "blocks.3.attn.hook_z"},  # nothing is written there
    ],
)
def test_centring_is_left_out_where_it_does_nothing(tmp_path: Path, about: dict[str, Any]) -> None:
    about = {"model_from_pretrained_kwargs": {"center_writing_weights": True}, **about}
    assert load(made(tmp_path / "a", v6(about=about))).coder.normalise == ""


def test_what_may_have_been_centred_and_does_not_say_is_noted(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", v6())
    assert "--centred" in notes(load(folder))
    assert load(folder, given=Given(centred=True)).coder.normalise == "centre"


def test_the_oldest_flat_layout_is_read(tmp_path: Path) -> None:
    settings = {
        "hook_point": "blocks.{layer}.hook_resid_pre",
        "hook_point_layer": 3,
        "model_name": "gpt2-small",
        "d_in": D,
        "expansion_factor": 4,
        "normalize_activations": False,
        "context_size": 64,
        "dataset_path": "someone/text",
    }
    wide = {"W_enc": torch.randn(D, 24), "b_enc": torch.randn(24), "W_dec": torch.randn(24, D)}
    dictionary = load(made(tmp_path / "a", settings, **wide, scaling_factor=torch.ones(24)))
    assert (dictionary.hookpoint, dictionary.width) == ("layers.2", 24)
    assert dictionary.provenance.model == "openai-community/gpt2"
    assert dictionary.provenance.context == 64
    assert dictionary.provenance.corpus == {"source": "someone/text"}
    assert dictionary.provenance.policy.special


def test_flat_topk_is_known_by_its_activation(tmp_path: Path) -> None:
    flat = {"d_in": D, "d_sae": WIDTH, "architecture": "standard", "activation_fn_str": "topk"}
    folder = made(tmp_path / "a", {**flat, "activation_fn_kwargs": {"k": 3}})
    assert load(folder).coder.options()["k"] == 3
    with pytest.raises(UserError, match="`k`"):
        load(made(tmp_path / "b", flat))
    assert load(tmp_path / "b", given=Given(k=4)).coder.options()["k"] == 4


def test_finetuned_factors_scale_what_features_add_not_how_they_fire(tmp_path: Path) -> None:
    factor = torch.rand(WIDTH) + 0.5
    flat = {"d_in": D, "d_sae": WIDTH, "hook_name": "blocks.3.hook_resid_post"}
    W_dec = torch.randn(WIDTH, D)
    used = {**flat, "finetuning_scaling_factor": True}
    coder = load(made(tmp_path / "a", used, W_dec=W_dec, scaling_factor=factor)).coder
    torch.testing.assert_close(coder.W_dec.data, W_dec * factor[:, None])
    with pytest.raises(UserError, match="scaling_factor"):
        load(made(tmp_path / "b", flat, scaling_factor=factor))


def test_positions_and_special_tokens_become_a_policy(tmp_path: Path) -> None:
    about = {"exclude_special_tokens": True, "seqpos_slice": [5, -5], "context_size": 64}
    policy = load(made(tmp_path / "a", v6(about=about))).provenance.policy
    assert (policy.special, policy.start, policy.first) == (False, 5, 54)


def test_a_transcoder_explains_another_place(tmp_path: Path) -> None:
    about = {"hook_name": "blocks.3.hook_mlp_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    settings = v6("skip_transcoder", about=about, d_out=4, apply_b_dec_to_input=False)
    W_dec, skip = torch.randn(WIDTH, 4), torch.randn(4, D)
    folder = made(tmp_path / "a", settings, W_dec=W_dec, b_dec=torch.zeros(4), W_skip=skip)
    dictionary = load(folder)
    assert dictionary.explains == "layers.3.mlp"
    x = torch.randn(5, D)
    expected = dictionary.encode(x) @ W_dec + x @ skip.T
    torch.testing.assert_close(dictionary.reconstruct(x), expected)


@pytest.mark.parametrize(
    ("settings", "changed", "said"),
    [
        (v6("temporal"), {}, "tokens before it"),
        (v6("gatd"), {}, "gated"),
        (v6(), {"W_dec": None}, "no tensor `W_dec`"),
        (v6(), {"W_enc": torch.randn(WIDTH, D)}, r"\[20, 6\], but should be \[6, 20\]"),
        (v6(), {"b_other": torch.zeros(1)}, "also holds `b_other`"),
        (v6(), {"b_dec": torch.full((D,), torch.nan)}, "not finite"),
        (v6(normalize_activations="odd"), {}, "normalize_activations `odd`"),
        (v6(normalize_activations="covariance_whitening"), {}, "activation_whitening"),
        (v6("jumprelu"), {}, "threshold"),
        (v6(d_sae="many"), {}, "d_sae. of .*many"),
        (v6("topk", k="few"), {}, "k. of .*few"),
        (v6("topk", k=99), {}, "k is 99"),
        (v6(activation_fn="tanh-relu"), {}, "tanh-relu"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    tmp_path: Path, settings: dict[str, Any], changed: dict[str, Any], said: str
) -> None:
    folder = made(tmp_path / "a", settings, **changed)
    with pytest.raises(UserError) as error:
        load(folder)
    assert error.match(said) or said in str(error.value.hint)


def ours(architecture: str, **options: Any) -> Dictionary:
    coder = make_coder(architecture, D, WIDTH, **options).requires_grad_(False)
    provenance = Provenance(model="openai-community/gpt2", hookpoint="layers.3", context=32)
    return Dictionary(coder, provenance, torch.zeros(WIDTH), torch.zeros(D), 1.0, None)


def test_what_is_at_the_bar_fires_before_and_after(tmp_path: Path) -> None:
    dictionary = ours("batch_topk", k=3)
    dictionary.coder.threshold.fill_(0.5)
    dictionary.coder.W_enc.zero_()
    dictionary.coder.b_enc.copy_(torch.linspace(0, 1, WIDTH))
    dictionary.coder.b_enc[3] = 0.5
    lost = export(dictionary, "saelens", tmp_path / "out")
    assert any("JumpReLU" in sentence for sentence in lost)
    x = torch.randn(2, D)
    torch.testing.assert_close(load(tmp_path / "out").encode(x) > 0, dictionary.encode(x) > 0)


def test_what_saelens_has_not_is_refused_and_nothing_written(tmp_path: Path) -> None:
    for dictionary in (ours("groupmax", k=4), ours("topk", k=4, skip=True)):
        with pytest.raises(UserError, match="SAELens has no"):
            export(dictionary, "saelens", tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_metadata_names_places_as_transformer_lens_does(tmp_path: Path) -> None:
    export(ours("relu"), "saelens", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert said["hook_name"] == "blocks.3.hook_resid_post"
    assert said["hf_hook_name"] == "transformer.h.3"
    assert said["model_name"] == "gpt2-small"
    back = load(tmp_path / "out")
    assert back.hookpoint == "layers.3"
    assert not back.provenance.policy.special


def test_matching_pursuit_stops_when_nothing_is_left_and_is_not_trained() -> None:
    coder = make_coder("matching_pursuit", 2, 3).requires_grad_(False)
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    coder.W_enc.copy_(rows)
    coder.W_dec.copy_(rows)
    x = torch.tensor([[3.0, 1], [-2, 0], [0, 0]])
    torch.testing.assert_close(coder.encode(x), torch.tensor([[3.0, 1, 0], [0, 0, 2], [0, 0, 0]]))
    from monosemy.coders.registry import architecture_named

    with pytest.raises(UserError, match="not trained"):
        architecture_named("matching_pursuit")


BAD = [[1], {"a": 1}, 3.5, True, "text", -4, 0, 10**40, float("nan"), float("inf")]
FIELDS = {
    "d_in": {},
    "d_sae": {},
    "architecture": {},
    "normalize_activations": {},
    "apply_b_dec_to_input": {},
    "rescale_acts_by_decoder_norm": {},
    "activation_fn": {},
    "k": {"architecture": "topk"},
    "max_iterations": {"architecture": "matching_pursuit"},
    "residual_threshold": {"architecture": "matching_pursuit"},
    "stop_on_duplicate_support": {"architecture": "matching_pursuit"},
    "metadata": {},
}
"""A field -> what else is said, so that it counts."""
ABOUT = [
    "model_name",
    "hook_name",
    "hf_hook_name",
    "hook_head_index",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "prepend_bos",
    "exclude_special_tokens",
    "model_from_pretrained_kwargs",
]


@pytest.mark.parametrize("bad", BAD)
def test_configurations_of_other_types_are_one_error_or_read(bad: object, tmp_path: Path) -> None:
    cases = [v6(**{**more, field: bad}) for field, more in FIELDS.items() if field != "metadata"]
    cases += [v6(about={field: bad}) for field in ABOUT]
    cases += [{**v6(), "metadata": bad}, {**v6()["metadata"], "d_in": D, "expansion_factor": bad}]
    cases += [{"d_in": D, "d_sae": WIDTH, "activation_fn": "topk", "activation_fn_kwargs": bad}]
    for number, settings in enumerate(cases):
        pursuit = settings.get("architecture") == "matching_pursuit"
        left_out = {"W_enc": None, "b_enc": None} if pursuit else {}
        with contextlib.suppress(UserError):
            load(made(tmp_path / str(number), settings, **left_out))


@pytest.mark.parametrize(
    "about",
    [
        {"seqpos_slice": "0:5"},
        {"seqpos_slice": ["a"]},
        {"context_size": "128"},
        {"hook_name": ["blocks.3"]},
        {"model_name": 3},
        {"model_from_pretrained_kwargs": ["center_writing_weights"]},
    ],
)
def test_metadata_of_another_type_is_named(about: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=next(iter(about))):
        load(made(tmp_path / "a", v6(about=about)))


def test_text_for_true_or_false_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="apply_b_dec_to_input"):
        load(made(tmp_path / "a", v6(apply_b_dec_to_input="false")))


@pytest.mark.parametrize(
    ("model", "module"),
    [
        ("google/gemma-3-1b-pt", "model.layers.3"),
        ("google/gemma-3-270m", "model.layers.3"),
        ("google/gemma-3-4b-it", None),
        ("google/gemma-3-27b-pt", None),
        ("google/gemma-2-2b", "model.layers.3"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", None),
    ],
)
def test_a_module_is_named_only_where_the_models_name_tells_it(
    model: str, module: str | None, tmp_path: Path
) -> None:
    export(dictionary_of(make_coder("relu", D, WIDTH), model=model), "saelens", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert settings["metadata"]["hf_hook_name"] == module


@pytest.mark.parametrize(
    ("model", "hookpoint", "kept"),
    [
        ("openai-community/gpt2", "layers.3", True),
        ("openai-community/gpt2", "layers.3.mlp.input", False),
        ("meta-llama/Llama-3.1-8B", "layers.3", False),
    ],
)
def test_that_activations_are_centred_is_written_only_where_it_is_read_again(
    model: str, hookpoint: str, kept: bool, tmp_path: Path
) -> None:
    coder = make_coder("relu", D, WIDTH, normalise="centre")
    lost = export(dictionary_of(coder, model=model, hookpoint=hookpoint), "saelens", tmp_path / "a")
    assert load(tmp_path / "a").coder.normalise == ("centre" if kept else "")
    assert ("others without" in " ".join(lost)) is not kept


def test_a_normalisation_that_is_given_goes_before_the_files(tmp_path: Path) -> None:
    tensors = {"W_enc": torch.randn(D, WIDTH), "W_dec": torch.randn(WIDTH, D)}
    tensors |= {"b_enc": torch.randn(WIDTH), "b_dec": torch.randn(D)}
    said = load(made(tmp_path / "a", v6(normalize_activations="constant_norm_rescale"), **tensors))
    scaled = v6(normalize_activations="expected_average_only_in")
    folder, x = made(tmp_path / "b", scaled, **tensors), torch.randn(9, D)
    given = load(folder, given=Given(normalise="rms"))
    torch.testing.assert_close(given.encode(x), said.encode(x))
    torch.testing.assert_close(given.reconstruct(x), said.reconstruct(x))
    with pytest.raises(UserError, match="no normalisation"):
        Given(normalise="spread")
