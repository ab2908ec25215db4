"""Published suites by their layouts: features, reconstructions, names, traps, what is refused."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scope_files as files
import torch
import yaml
from foreign import dictionary_of
from safetensors.torch import load_file, save_file
from scope_files import MAKERS, WIDTH, D, K, Made
from torch.testing import assert_close

import monosemy
from monosemy.coders import Dictionary, make_coder
from monosemy.errors import UserError
from monosemy.formats import FORMATS, Given, export

KINDS = {
    **MAKERS,
    "openai-relu": partial(files.openai, activation="ReLU"),
    "openai-tied": partial(files.openai, tied=True),
    "gemma_scope_2-bare": partial(files.gemma_scope_2, configured=False),
    "llama_scope-topk": partial(files.llama_scope, act_fn="topk"),
    "llamascopium-relu": partial(files.llamascopium, act_fn="relu"),
    "llamascopium-topk": partial(files.llamascopium, act_fn="topk"),
    "llamascopium-plain": partial(files.llamascopium, by_norm=False, norm="inference"),
    "circuit_tracer-relu": partial(files.circuit_tracer, jumps=False),
    "circuit_tracer-old": partial(files.circuit_tracer, old=True),
}


def holds(dictionary: Dictionary, made: Made, tolerance: float = 1e-5) -> None:
    x = 3 * torch.randn(64, D) + 1
    z = made.encode(x)
    assert 0 < (z > 0).float().mean() < 1
    assert_close(dictionary.encode(x), z, atol=tolerance, rtol=1e-5)
    assert_close(dictionary.reconstruct(x), made.decode(z, x), atol=5 * tolerance, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_reconstructions_are_those_of_the_documented_formula(
    kind: str, tmp_path: Path
) -> None:
    made = KINDS[kind](tmp_path)
    dictionary = monosemy.load(made.path)
    holds(dictionary, made)
    assert dictionary.provenance.training["imported"]["format"] == kind.partition("-")[0]
    assert dictionary.provenance.model == (made.model or "unknown")
    assert (dictionary.hookpoint, dictionary.provenance.target) == (made.hookpoint, made.target)


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_format_recognises_each(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path).path
    found = [name for name, f in FORMATS.items() if f.read is not None and f.recognises(path)]
    assert found == [kind.partition("-")[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_above_leads_to_the_one_dictionary_in_it(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path)
    holds(monosemy.load(made.path.parent), made)


@pytest.mark.parametrize("kind", [k for k in MAKERS if not k.startswith(("hook_z", "qwen"))])
def test_a_missing_tensor_is_named(kind: str, tmp_path: Path) -> None:
    path = MAKERS[kind](tmp_path).path
    file = next(p for p in [path, *path.rglob("*")] if p.suffix in WRITERS)
    values = READERS[file.suffix](file)
    name = next(n for n in values if n in LAST)
    WRITERS[file.suffix](file, {n: v for n, v in values.items() if n != name})
    with pytest.raises(UserError, match=f"no tensor `{name}|w_dec|W_dec"):
        monosemy.load(path, format=kind.partition("-")[0])


LAST = ("decoder.bias", "decoder_linear.bias", "b_dec", "b_D", "latent_bias")
READERS = {
    ".pt": partial(torch.load, weights_only=True),
    ".pth": partial(torch.load, weights_only=True),
    ".npz": lambda p: dict(np.load(p)),
    ".safetensors": load_file,
}
WRITERS = {
    ".pt": lambda p, v: torch.save(v, p),
    ".pth": lambda p, v: torch.save(v, p),
    ".npz": lambda p, v: np.savez(p, **v),
    ".safetensors": lambda p, v: save_file(v, p),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("goodfire", "decoder_linear.weight"),
        ("qwen_scope", "W_dec"),
        ("openai", "decoder.weight"),
        ("gemma_scope", "W_dec"),
        ("circuit_tracer", "W_dec"),
        ("llamascopium", "W_D"),
    ],
)
def test_a_decoder_the_other_way_round_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    path = MAKERS[kind](tmp_path).path
    file = next(p for p in [path, *path.rglob("*")] if p.suffix in WRITERS)
    values = READERS[file.suffix](file)
    values[name] = values[name].T.copy() if file.suffix == ".npz" else values[name].T.contiguous()
    WRITERS[file.suffix](file, values)
    with pytest.raises(UserError, match=f"`{name}` of .* should be"):
        monosemy.load(path)


def test_openai_places_are_named_by_folders(tmp_path: Path) -> None:
    path = files.openai(tmp_path).path
    for folder, expected in (
        ("resid_delta_attn_v5_128k", "layers.8.attn"),
        ("resid_delta_mlp_v4", "layers.8.mlp"),
        ("resid_post_attn_v5_32k", "layers.8.mid"),
        ("mlp_post_act", "blocks.8.mlp.hook_post"),
        ("downloads", "unknown"),
    ):
        new = tmp_path / folder / "autoencoders" / "8.pt"
        new.parent.mkdir(parents=True)
        path = path.rename(new)
        assert monosemy.load(path).hookpoint == expected


def test_openai_largest_kept_without_relu_are_refused(tmp_path: Path) -> None:
    path = files.openai(tmp_path).path
    values = torch.load(path, weights_only=True)
    values["activation_state_dict"]["postact_fn"] = "Identity"
    torch.save(values, path)
    with pytest.raises(UserError, match="Identity"):
        monosemy.load(path)


@pytest.mark.parametrize(
    ("repo", "at", "model", "hookpoint", "target"),
    [
        ("9b-it-res", "layer_9/w", "google/gemma-2-9b-it", "layers.9", None),
        (
            "2b-pt-mlp",
            "layer_3/w",
            "google/gemma-2-2b",
            "layers.3.post_feedforward_layernorm",
            None,
        ),
        ("27b-pt-att", "layer_3/w", "google/gemma-2-27b", "blocks.3.attn.hook_z", None),
        (
            "2b-pt-transcoders",
            "layer_12/w",
            "google/gemma-2-2b",
            "blocks.12.ln2.hook_normalized",
            "layers.12.post_feedforward_layernorm",
        ),
        ("2b-pt-res", "layerless/w", "google/gemma-2-2b", "unknown", None),
    ],
)
def test_gemma_scope_places_are_named_by_repository_and_folders(
    repo: str, at: str, model: str, hookpoint: str, target: str | None, tmp_path: Path
) -> None:
    found = monosemy.load(files.gemma_scope(tmp_path, f"gemma-scope-{repo}", at).path)
    assert (found.provenance.model, found.hookpoint) == (model, hookpoint)
    assert found.provenance.target == target


def test_gemma_scope_embeddings_are_scaled_by_the_root_of_their_width(tmp_path: Path) -> None:
    made = files.gemma_scope(tmp_path, at="embedding/width_4k/average_l0_6")
    found = monosemy.load(made.path)
    x = torch.randn(32, D)
    assert found.hookpoint == "embed"
    assert_close(found.encode(x * D**0.5), made.encode(x))
    assert_close(found.reconstruct(x * D**0.5), made.decode(made.encode(x), x) * D**0.5)


def test_cross_layer_transcoders_are_refused(tmp_path: Path) -> None:
    made = files.gemma_scope_2(tmp_path / "two")
    file = made.path / "params.safetensors"
    values = load_file(file)
    save_file({**values, "w_dec": torch.randn(WIDTH, 4, D)}, file)
    save_file({"W_enc_0": torch.randn(WIDTH, D)}, tmp_path / "W_enc_0.safetensors")
    for path in (made.path, tmp_path):
        with pytest.raises(UserError, match="cross-layer transcoder"):
            monosemy.load(path)


@pytest.mark.parametrize("kind", ["crosscoder", "clt", "lorsa", "molt"])
def test_llamascopium_of_other_kinds_is_refused(kind: str, tmp_path: Path) -> None:
    path = files.llamascopium(tmp_path).path
    change(path, sae_type=kind)
    with pytest.raises(UserError, match=f"is a `{kind}`"):
        monosemy.load(path)


def change(path: Path, /, name: str = "config.json", **fields: object) -> None:
    settings = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps({**settings, **fields}))


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("norm_activation", "token-wise", "token-wise"),
        ("act_fn", "batchtopk", "threshold is not saved"),
        ("act_fn", "softmax", "softmax"),
        ("use_glu_encoder", True, "gated linear"),
        ("d_model", D + 1, "should be"),
        ("expansion_factor", 0, "above 0"),
    ],
)
def test_llamascopium_that_cannot_be_held_is_refused(
    field: str, value: object, match: str, tmp_path: Path
) -> None:
    path = files.llamascopium(tmp_path).path
    change(path, **{field: value})
    with pytest.raises(UserError, match=match):
        monosemy.load(path)


def test_a_norm_that_is_not_in_the_files_is_asked_for(tmp_path: Path) -> None:
    made = files.llama_scope_r1(tmp_path)
    values = load_file(made.path / "sae_weights.safetensors")
    kept = {n: v for n, v in values.items() if not n.startswith("dataset")}
    save_file(kept, made.path / "sae_weights.safetensors")
    with pytest.raises(UserError, match="not in its files"):
        monosemy.load(made.path)
    holds(monosemy.load(made.path, given=Given(scale=D**0.5 / 2.5)), made)


def test_llamascopium_reads_a_pt_too(tmp_path: Path) -> None:
    made = files.llamascopium(tmp_path)
    file = made.path / "sae_weights.safetensors"
    torch.save({"sae": load_file(file), "version": "0"}, made.path / "sae_weights.pt")
    file.unlink()
    holds(monosemy.load(made.path), made)


def test_qwen_scope_asks_for_k_where_no_name_says_it(tmp_path: Path) -> None:
    made = files.qwen_scope(tmp_path)
    made.path = made.path.rename(tmp_path / "layer9.sae.pt")
    with pytest.raises(UserError, match="how many features") as caught:
        monosemy.load(made.path)
    assert "--k" in str(caught.value.hint)
    holds(monosemy.load(made.path, given=Given(k=K)), made)


@pytest.mark.parametrize("in_weights", [True, False])
def test_circuit_tracer_says_topk_and_k_in_its_configuration_or_weights(
    in_weights: bool, tmp_path: Path
) -> None:
    made = files.circuit_tracer(tmp_path, jumps=False, skip=False)
    tensors = load_file(made.path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"activation": "topk"}
    if in_weights:
        save_file({**tensors, "k": torch.tensor(K)}, made.path)
    else:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(UserError, match="does not say `k`"):
            monosemy.load(made.path)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings | {"k": K}))
    x = torch.randn(40, D)
    pre = x @ tensors["W_enc"].T + tensors["b_enc"]
    found = monosemy.load(made.path)
    assert_close(found.encode(x), files.largest(pre), atol=1e-5, rtol=1e-5)
    assert found.coder.architecture == "topk"


def test_relu_beside_thresholds_contradicts_them(tmp_path: Path) -> None:
    made = files.circuit_tracer(tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings | {"activation": "relu"}))
    with pytest.raises(UserError, match=r"also holds .*threshold"):
        monosemy.load(made.path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings | {"activation": "jump"}))
    holds(monosemy.load(made.path), made)


@pytest.mark.parametrize("above", ["embeddings", "transcoders/layer_3_of", "embedding/layer_9"])
@pytest.mark.parametrize("kind", ["gemma_scope", "gemma_scope_2-bare"])
def test_folders_above_a_suite_decide_nothing(kind: str, above: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path / above / "layer_9")
    found = monosemy.load(made.path)
    holds(found, made)
    assert (found.hookpoint, found.provenance.target) == (made.hookpoint, made.target)


def test_a_norm_named_by_its_hook_point_scales_the_threshold_of_llama_scope_too(
    tmp_path: Path,
) -> None:
    made = files.llama_scope(tmp_path)
    change(
        made.path,
        "hyperparams.json",
        dataset_average_activation_norm={"blocks.15.hook_resid_post": 4.0},
    )
    holds(monosemy.load(made.path), made)


def square(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = {"W_enc": torch.randn(D, D), "W_dec": torch.randn(D, D)}
    tensors |= {"b_enc": torch.randn(D), "b_dec": torch.randn(D)}
    torch.save(tensors, folder / "L5.pt")
    return folder / "L5.pt", tensors


def test_as_many_features_as_dimensions_are_of_the_format_whose_configuration_is_there(
    tmp_path: Path,
) -> None:
    path, t = square(tmp_path)
    assert monosemy.load(path, given=Given(k=2)).coder.architecture == "topk"
    settings = {"act_size": D, "dict_size": D, "act_name": "blocks.5.attn.hook_z"}
    files.save_json(tmp_path / "L5_cfg.json", settings)
    x = torch.randn(20, D)
    expected = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    assert_close(monosemy.load(path).encode(x), expected, atol=1e-5, rtol=1e-5)


def test_the_model_of_attention_outputs_is_the_configurations(tmp_path: Path) -> None:
    made = files.hook_z(tmp_path)
    change(tmp_path, "L5_cfg.json", model_name="gelu-2l")
    assert monosemy.load(made.path).provenance.model == "NeelNanda/GELU_2L512W_C4_Code"


@pytest.mark.parametrize("bad", [[1], {"a": 1}, 3.5, True, -4, "text", float("nan"), 10**40])
@pytest.mark.parametrize("kind", [k for k in KINDS if "bare" not in k and "openai" not in k])
def test_configurations_of_other_types_are_one_error_or_read(
    kind: str, bad: object, tmp_path: Path
) -> None:
    made = KINDS[kind](tmp_path)
    folder = made.path if made.path.is_dir() else made.path.parent
    for file in folder.glob("*.*"):
        if file.suffix in (".json", ".yaml"):
            parse = json.loads if file.suffix == ".json" else yaml.safe_load
            original = file.read_text()
            for field in parse(original):
                values = {**parse(original), field: bad}
                file.write_text(
                    json.dumps(values) if file.suffix == ".json" else yaml.safe_dump(values)
                )
                with contextlib.suppress(UserError):
                    monosemy.load(made.path)
            file.write_text(original)


@pytest.mark.parametrize("kind", [k for k in KINDS if "-" not in k])
def test_files_that_are_folders_empty_or_no_text_are_one_error(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path)
    names = [p for p in tmp_path.rglob("*") if p.is_file()]
    for name in names:
        content = name.read_bytes()
        for bad in (b"", b"\xff\xfe\x00", b"null", b"[]", b"{}", b'"text"', b"\x93NUMPY", None):
            name.unlink()
            if bad is None:
                name.mkdir()
            else:
                name.write_bytes(bad)
            with contextlib.suppress(UserError):
                monosemy.load(made.path)
            with contextlib.suppress(UserError):
                monosemy.load(tmp_path)
        name.rmdir()
        name.write_bytes(content)
    holds(monosemy.load(made.path), made)


@pytest.mark.parametrize("field", ["activation", "activation_state_dict"])
@pytest.mark.parametrize("bad", [[1], {"k": "two"}, {"k": 10**20}, 3, None])
def test_openai_of_other_types_is_one_error(field: str, bad: object, tmp_path: Path) -> None:
    made = files.openai(tmp_path)
    torch.save({**torch.load(made.path), field: bad}, made.path)
    with pytest.raises(UserError):
        monosemy.load(made.path)


@pytest.mark.parametrize(
    ("to", "architecture"),
    [
        *[("gemma_scope", a) for a in ("jumprelu", "relu", "batch_topk")],
        *[("llamascopium", a) for a in ("jumprelu", "relu", "batch_topk", "topk")],
        *[("circuit_tracer", a) for a in ("jumprelu", "relu", "batch_topk")],
    ],
)
def test_what_is_written_is_read_again(to: str, architecture: str, tmp_path: Path) -> None:
    options = {"k": K} if "topk" in architecture else {}
    # A width whose quotient by d_in, times d_in and cut off, is one less.
    coder = make_coder(architecture, 49, 47, unit_norm=False, **options).requires_grad_(False)
    coder.b_dec.copy_(torch.randn(49))
    coder.b_enc.copy_(torch.randn(47))
    if architecture == "batch_topk":
        coder.threshold.fill_(0.5)  # type: ignore[operator]
    places = {"hookpoint": "layers.3.mlp.input", "target": "layers.3.mlp"}
    dictionary = dictionary_of(coder, **(places if to == "circuit_tracer" else {}))
    lost = export(dictionary, to, tmp_path / "out")
    found = monosemy.load(tmp_path / "out")
    x = 3 * torch.randn(50, 49)
    assert lost
    assert_close(found.encode(x), dictionary.encode(x))
    assert_close(found.reconstruct(x), dictionary.reconstruct(x))
    if to == "circuit_tracer":
        settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
        assert settings["feature_input_hook"] == "mlp.hook_in"
        assert (found.hookpoint, found.explains) == ("layers.3.mlp.input", "layers.3.mlp")
    if to == "llamascopium":
        settings = json.loads((tmp_path / "out" / "config.json").read_text())
        assert int(settings["d_model"] * settings["expansion_factor"]) == 47
        assert found.hookpoint == "layers.3"


@pytest.mark.parametrize("to", ["gemma_scope", "llamascopium", "circuit_tracer"])
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(
    to: str, tmp_path: Path
) -> None:
    gated = make_coder("gated", D, WIDTH)
    normalised = make_coder("relu", D, WIDTH, normalise="layer_norm")
    for coder in (gated, normalised):
        with pytest.raises(UserError, match="has no"):
            export(dictionary_of(coder), to, tmp_path / "out")
        assert not (tmp_path / "out").exists()
