"""dictionary_learning's files by their layout; `parity/` holds them against the package."""

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
from safetensors.torch import save_file
from small_coders import WIDTH as BUILT_WIDTH
from small_coders import build
from torch import Tensor
from torch.testing import assert_close

import monosemy
from monosemy.coders import Dictionary, make_coder
from monosemy.errors import UserError
from monosemy.formats import Given, export
from monosemy.formats.dictionary_learning import CLASSES

D, WIDTH, K = 6, 20, 3
BUFFER = {"d_submodule": D, "io": "out", "ctx_len": 512}


def tensors(kind: str, d: int = D, width: int = WIDTH) -> dict[str, Tensor]:
    """Random weights of a class, by its layout."""
    linear = {
        "encoder.weight": torch.randn(width, d),
        "encoder.bias": torch.randn(width),
        "decoder.weight": torch.randn(d, width),
    }
    bare = {
        "W_enc": torch.randn(d, width),
        "b_enc": torch.randn(width),
        "W_dec": torch.randn(width, d),
        "b_dec": torch.randn(d),
    }
    k = {"k": torch.tensor(K), "threshold": torch.tensor(1.5)}
    gates = {name: torch.randn(width) for name in ("r_mag", "gate_bias", "mag_bias")}
    return {
        "AutoEncoder": {**linear, "bias": torch.randn(d)},
        "AutoEncoderNew": {**linear, "decoder.bias": torch.randn(d)},
        "GatedAutoEncoder": {
            "encoder.weight": linear["encoder.weight"],
            "decoder.weight": linear["decoder.weight"],
            "decoder_bias": torch.randn(d),
            **gates,
        },
        "JumpReluAutoEncoder": {**bare, "threshold": torch.rand(width) * 2 - 0.5},
        "AutoEncoderTopK": {**linear, "b_dec": torch.randn(d), **k},
        "BatchTopKSAE": {**linear, "b_dec": torch.randn(d), **k},
        "MatryoshkaBatchTopKSAE": {**bare, **k, "group_sizes": torch.tensor([5, 5, width - 10])},
    }[kind]


def features_of(kind: str, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The forward passes that the layout describes, word by word."""
    if kind == "AutoEncoder":
        f = ((x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
        return f * w["decoder.weight"].norm(dim=0)  # by `from_pretrained`
    if kind == "AutoEncoderNew":
        return (x @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    if kind == "GatedAutoEncoder":
        h = (x - w["decoder_bias"]) @ w["encoder.weight"].T
        return ((h + w["gate_bias"]) > 0) * (w["r_mag"].exp() * h + w["mag_bias"]).relu()
    if kind == "JumpReluAutoEncoder":
        p = x @ w["W_enc"] + w["b_enc"]
        return (p * (p > w["threshold"])).relu()
    if kind == "MatryoshkaBatchTopKSAE":
        p = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        return p * (p > w["threshold"])
    p = ((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    if kind == "BatchTopKSAE":
        return p * (p > w["threshold"])
    top = p.topk(K, dim=1)
    return torch.zeros_like(p).scatter(1, top.indices, top.values)


def saved(
    folder: Path,
    kind: str = "AutoEncoder",
    weights: dict[str, Tensor] | None = None,
    buffer: dict[str, Any] | None = None,
    **trainer: Any,
) -> Path:
    """A folder as `trainSAE` leaves one; a field of None is left out."""
    usual = {
        "dict_class": kind,
        "activation_dim": D,
        "dict_size": WIDTH,
        "layer": 8,
        "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_8",
        "k": K if CLASSES.get(kind, CLASSES["AutoEncoder"]).optional else None,
    }
    fields = {n: v for n, v in {**usual, **trainer}.items() if v is not None}
    config = {"trainer": fields, "buffer": BUFFER if buffer is None else buffer}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors(kind) if weights is None else weights, folder / "ae.pt")
    return folder


def notes(dictionary: Dictionary) -> list[str]:
    return dictionary.provenance.training["imported"]["notes"]


@pytest.mark.parametrize("kind", CLASSES)
def test_features_and_output_are_those_of_the_layout(tmp_path: Path, kind: str) -> None:
    w, x = tensors(kind), torch.randn(60, D) * 2
    dictionary = monosemy.load(saved(tmp_path, kind, w))
    features = features_of(kind, w, x)
    assert_close(dictionary.encode(x), features, rtol=1e-5, atol=1e-5)
    W_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    if kind == "AutoEncoder":
        W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    b_dec = next(w[n] for n in ("bias", "decoder.bias", "decoder_bias", "b_dec") if n in w)
    assert_close(dictionary.reconstruct(x), features @ W_dec + b_dec, rtol=1e-5, atol=1e-5)


def test_unit_norm_as_from_pretrained_brings_about_is_said(tmp_path: Path) -> None:
    w = tensors("AutoEncoder")
    assert "unit norm" in notes(monosemy.load(saved(tmp_path / "free", "AutoEncoder", w)))[0]
    w["decoder.weight"] /= w["decoder.weight"].norm(dim=0)
    assert notes(monosemy.load(saved(tmp_path / "unit", "AutoEncoder", w))) == []


def test_a_feature_without_a_direction_stays_one(tmp_path: Path) -> None:
    w, x = tensors("AutoEncoder"), torch.randn(20, D)
    w["decoder.weight"][:, 0] = 0
    dictionary = monosemy.load(saved(tmp_path, "AutoEncoder", w))
    pre = (x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]
    assert_close(dictionary.encode(x)[:, 0], pre[:, 0].relu(), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(dictionary.reconstruct(x)).all()


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_what_equals_the_threshold_does_not_fire(tmp_path: Path, kind: str) -> None:
    """Theirs is exceeded, ours is reached; what ours is written as is exceeded again."""
    x = torch.eye(D)
    w = {n: torch.zeros_like(t) for n, t in tensors(kind).items()}
    w = {**w, "threshold": torch.tensor(0.3), "k": torch.tensor(K)}
    if kind == "BatchTopKSAE":
        w["encoder.weight"][0, 0], w["encoder.weight"][1, 0] = 0.3, 0.3000001
    else:
        w["W_enc"][0, 0], w["W_enc"][0, 1] = 0.3, 0.3000001
        w["group_sizes"] = torch.tensor([8, 12])
    dictionary = monosemy.load(saved(tmp_path / "a", kind, w))
    assert (dictionary.encode(x)[0, :2] > 0).tolist() == [False, True]
    export(dictionary, "dictionary_learning", tmp_path / "b")
    written = torch.load(tmp_path / "b" / "ae.pt", weights_only=True)
    assert float(written["threshold"]) == float(w["threshold"])


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_a_threshold_of_zero_is_one_and_a_negative_is_none(
    tmp_path: Path, threshold: float
) -> None:
    w, x = {**tensors("BatchTopKSAE"), "threshold": torch.tensor(threshold)}, torch.randn(40, D)
    path = saved(tmp_path / "a", "BatchTopKSAE", w)
    if threshold < 0:
        with pytest.raises(UserError, match="before its threshold was set"):
            monosemy.load(path)
        dictionary = monosemy.load(path, given=Given(k=2))
        assert dictionary.coder.architecture == "topk"
        assert ((dictionary.encode(x) > 0).sum(1) <= 2).all()
        assert "no threshold was set" in notes(dictionary)[0]
        return
    dictionary = monosemy.load(path)
    assert_close(dictionary.encode(x), features_of("BatchTopKSAE", w, x), rtol=1e-5, atol=1e-5)
    export(dictionary, "dictionary_learning", tmp_path / "b")
    assert float(torch.load(tmp_path / "b" / "ae.pt", weights_only=True)["threshold"]) == 0


def test_files_before_k_and_threshold_were_tensors_take_k_from_the_configuration(
    tmp_path: Path,
) -> None:
    w, x = tensors("AutoEncoderTopK"), torch.randn(40, D)
    del w["k"], w["threshold"]
    dictionary = monosemy.load(saved(tmp_path, "AutoEncoderTopK", w))
    assert_close(dictionary.encode(x), features_of("AutoEncoderTopK", w, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "io", "hookpoint", "target"),
    [
        ("resid_post_layer_8", "out", "layers.8", None),
        ("resid_out_layer8", "out", "layers.8", None),
        ("resid_pre_layer_8", "out", "layers.7", None),
        ("resid_pre_layer_0", "out", "embed", None),
        ("mlp_out_layer_8", "out", "layers.8.mlp", None),
        ("mlp_in_layer_8", "out", "layers.8.mlp.input", None),
        ("mlp_layer_8", "in", "layers.8.mlp.input", None),
        ("mlp_out_layer_8", "in_and_out", "layers.8.mlp.input", "layers.8.mlp"),
        ("attention_out_layer_8", "out", "layers.8.attn", None),
        ("attn_out_layer8", "out", "layers.8.attn", None),
        ("attention_layer_8", "out", "layers.8.attn", None),
        ("model.layers.8.mlp", "out", "layers.8.mlp", None),
        ("blocks.8.hook_resid_post", "out", "layers.8", None),
        ("embed", "out", "embed", None),
        ("strange", "out", "unknown", None),
        ("strange", "in_and_out", "unknown", "unknown"),
        (None, "out", "layers.8", None),
    ],
)
def test_submodules_are_hook_points(
    tmp_path: Path, name: str | None, io: str, hookpoint: str, target: str | None
) -> None:
    path = saved(tmp_path, buffer={**BUFFER, "io": io}, submodule_name=name)
    dictionary = monosemy.load(path)
    assert dictionary.hookpoint == hookpoint
    assert dictionary.provenance.target == target
    said = "".join(notes(dictionary))
    assert ("`strange`" in said) == (name == "strange")
    assert ("taken to be the residual stream" in said) == (name is None)


def test_the_configuration_says_model_and_context(tmp_path: Path) -> None:
    dictionary = monosemy.load(saved(tmp_path, lm_name="gpt2"))
    assert dictionary.provenance.model == "openai-community/gpt2"
    assert dictionary.provenance.context == 512
    assert dictionary.provenance.training["imported"]["settings"]["trainer"]["layer"] == 8


def test_a_checkpoint_has_the_configuration_of_the_folder_above(tmp_path: Path) -> None:
    path = saved(tmp_path, "BatchTopKSAE")
    (path / "checkpoints").mkdir()
    for step in (1000, 2000):
        torch.save(tensors("BatchTopKSAE"), path / "checkpoints" / f"ae_{step}.pt")
    dictionary = monosemy.load(path / "checkpoints" / "ae_1000.pt")
    assert (dictionary.coder.architecture, dictionary.hookpoint) == ("batch_topk", "layers.8")
    with pytest.raises(UserError, match="holds 2 dictionaries"):
        monosemy.load(path / "checkpoints")


def test_a_configuration_of_something_else_beside_a_file_is_not_taken(tmp_path: Path) -> None:
    torch.save(tensors("GatedAutoEncoder"), tmp_path / "gated.pt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "k": 7}))
    dictionary = monosemy.load(tmp_path / "gated.pt")
    assert dictionary.provenance.training["imported"]["settings"] == {}
    assert "not known" in notes(dictionary)[0]


def test_the_trainers_of_a_run_are_told_apart(tmp_path: Path) -> None:
    saved(tmp_path / "trainer_0")
    assert monosemy.load(tmp_path).coder.architecture == "relu"
    saved(tmp_path / "trainer_1", "GatedAutoEncoder")
    with pytest.raises(UserError, match=r"(?s)holds 2 dictionaries.*trainer_0, .*trainer_1"):
        monosemy.load(tmp_path)


def test_of_two_classes_with_the_same_tensors_k_tells_which(tmp_path: Path) -> None:
    torch.save(tensors("AutoEncoderTopK"), tmp_path / "ae.pt")
    with pytest.raises(UserError, match=r"AutoEncoderTopK and of BatchTopKSAE\n.*config.json.*--k"):
        monosemy.load(tmp_path)
    dictionary = monosemy.load(tmp_path, given=Given(k=K))
    assert (dictionary.coder.architecture, dictionary.coder.options()["k"]) == ("topk", K)
    assert any("BatchTopKSAE has the same" in note for note in notes(dictionary))


@pytest.mark.parametrize("has_settings", [True, False])
def test_a_crosscoder_is_named_and_refused(tmp_path: Path, has_settings: bool) -> None:
    """Layout of the fork of science-of-finetuning."""
    weights = {
        "encoder.weight": torch.randn(2, D, WIDTH),
        "encoder.bias": torch.randn(WIDTH),
        "decoder.weight": torch.randn(2, WIDTH, D),
        "decoder.bias": torch.randn(2, D),
    }
    path = saved(tmp_path, "CrossCoder", weights)
    if not has_settings:
        (path / "config.json").unlink()
    with pytest.raises(UserError, match="is a crosscoder"):
        monosemy.load(path)
    (path / "ae.pt").unlink()
    save_file(weights, path / "model.safetensors")  # as on the Hub
    with pytest.raises(UserError, match="is a crosscoder"):
        monosemy.load(path)


def test_what_is_given_goes_first(tmp_path: Path) -> None:
    w, x = tensors("GatedAutoEncoder"), torch.randn(30, D)
    known = Given(model="org/model", hookpoint="layers.9", scale=2.0)
    dictionary = monosemy.load(saved(tmp_path, "GatedAutoEncoder", w), given=known)
    assert (dictionary.provenance.model, dictionary.hookpoint) == ("org/model", "layers.9")
    features = features_of("GatedAutoEncoder", w, 2 * x)
    assert_close(dictionary.encode(x), features, rtol=1e-5, atol=1e-5)
    out = (features @ w["decoder.weight"].T + w["decoder_bias"]) / 2
    assert_close(dictionary.reconstruct(x), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "trainer", "message"),
    [
        ("AutoEncoder", {"dict_class": "AutoEncoderTop"}, "did you mean `AutoEncoderTopK`"),
        ("AutoEncoder", {"dict_class": "IdentityDict"}, "dict_class `IdentityDict`"),
        ("AutoEncoder", {"dict_class": "GatedAutoEncoder"}, "no tensor `gate_bias`"),
        ("AutoEncoder", {"dict_size": 99}, r"is \[20, 6\], but should be \[99, 6\]"),
        ("JumpReluAutoEncoder", {"activation_dim": 9}, r"is \[6, 20\], but should be \[9, 20\]"),
        ("AutoEncoder", {"dict_size": "wide"}, "`dict_size` of `.*config.json` is 'wide'"),
        ("AutoEncoderTopK", {"k": 4}, "has k 3, its configuration 4"),
        ("AutoEncoderTopK", {"k": "few"}, "`k` of `.*config.json` is 'few'"),
    ],
)
def test_a_configuration_that_is_wrong_is_said(
    tmp_path: Path, kind: str, trainer: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path, kind, **trainer)
    with pytest.raises(UserError, match=message):
        monosemy.load(path)


@pytest.mark.parametrize("kind", CLASSES)
def test_each_tensor_that_is_missing_is_named_with_those_there(tmp_path: Path, kind: str) -> None:
    for name in CLASSES[kind].needed:
        weights = tensors(kind)
        del weights[name]
        path = saved(tmp_path, kind, weights)
        with pytest.raises(UserError, match=rf"(?s)no (tensor )?`{name}`.*`\w+[.\w]*` \["):
            monosemy.load(path)


def test_k_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    weights = tensors("AutoEncoderTopK")
    del weights["k"]
    path = saved(tmp_path, "AutoEncoderTopK", weights)
    config = json.loads((path / "config.json").read_text())
    del config["trainer"]["k"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not say `k`"):
        monosemy.load(path)


def test_a_tensor_that_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, weights={**tensors("AutoEncoder"), "extra": torch.zeros(3)})
    with pytest.raises(UserError, match="also holds `extra`"):
        monosemy.load(path)


def test_groups_that_are_not_the_width_are_refused(tmp_path: Path) -> None:
    weights = {**tensors("MatryoshkaBatchTopKSAE"), "group_sizes": torch.tensor([5, 5])}
    path = saved(tmp_path, "MatryoshkaBatchTopKSAE", weights)
    with pytest.raises(UserError, match=r"prefixes are \[5, 10\]"):
        monosemy.load(path)


# Writing

WRITTEN = ["relu", "gated", "jumprelu", "topk", "batch_topk", "matryoshka"]


@settings(max_examples=40)
@given(
    d=st.integers(1, 9),
    width=st.integers(1, 12),
    k=st.integers(1, 4),
    architecture=st.sampled_from(WRITTEN),
    place=st.sampled_from(
        [
            {"hookpoint": "layers.4"},
            {"hookpoint": "embed"},
            {"hookpoint": "layers.4.mlp"},
            {"hookpoint": "layers.4.attn.input"},
            {"hookpoint": "layers.4.post_attention_layernorm"},
            {"hookpoint": "layers.4.mlp.input", "target": "layers.4.mlp"},
        ]
    ),
    seed=st.integers(0, 2**16),
)
def test_written_and_read_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    d: int,
    width: int,
    k: int,
    architecture: str,
    place: dict[str, str],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    has_k = architecture in ("topk", "batch_topk", "matryoshka")
    options = {"k": min(k, width)} if has_k else {}
    coder = make_coder(architecture, d, width, unit_norm=False, **options)
    for parameter in coder.parameters():
        torch.nn.init.normal_(parameter)
    if architecture in ("batch_topk", "matryoshka"):
        coder.threshold.fill_(torch.rand(()))
    before = dictionary_of(coder, **place)
    folder = tmp_path_factory.mktemp("any") / "out"
    export(before, "dictionary_learning", folder)
    after = monosemy.load(folder)
    assert (after.provenance.model, after.provenance.context) == ("EleutherAI/pythia-70m", 64)
    assert (after.hookpoint, after.explains) == (before.hookpoint, before.explains)
    assert after.coder.options() == before.coder.options()
    for name, weights in before.coder.state_dict().items():
        assert_close(after.coder.state_dict()[name], weights, rtol=1e-4, atol=1e-4)


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    lost = export(dictionary_of(build("relu")), "dictionary_learning", tmp_path / "a")
    assert len(lost) == 1
    place = {"hookpoint": "layers.3.mlp.input", "target": "layers.3.mlp"}
    lost = export(dictionary_of(build("relu"), **place), "dictionary_learning", tmp_path / "b")
    assert "transcoder from `layers.3.mlp.input`" in lost[1]


def test_what_it_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    transcoder = {"target": "layers.3.mlp"}
    refused = [
        (dictionary_of(build("groupmax")), "has no `groupmax`"),
        (dictionary_of(build("topk", "free", d_out=9), **transcoder), "two widths"),
        (dictionary_of(build("relu", "skip"), **transcoder), "linear path"),
        (dictionary_of(build("batch_topk", importance=True)), "weigh features"),
        (dictionary_of(build("relu", normalise="layer_norm")), "normalise each token"),
    ]
    for dictionary, message in refused:
        with pytest.raises(UserError, match=message):
            export(dictionary, "dictionary_learning", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_survives_the_way_through_both_formats(tmp_path: Path) -> None:
    before, x = dictionary_of(build("topk", "free")), torch.randn(50, 12)
    export(before, "sparsify", tmp_path / "a")
    export(monosemy.load(tmp_path / "a"), "dictionary_learning", tmp_path / "b")
    after = monosemy.load(tmp_path / "b")
    assert_close(after.encode(x), before.encode(x), rtol=1e-5, atol=1e-5)
    assert (after.width, after.hookpoint) == (BUILT_WIDTH, "layers.3")


def test_a_bare_file_of_two_linear_maps_with_biases_is_read_with_what_is_given(
    tmp_path: Path,
) -> None:
    weights, x = tensors("AutoEncoderNew"), torch.randn(30, D)
    torch.save(weights, tmp_path / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt")
    about = Given(model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B", hookpoint="layers.19")
    found = monosemy.load(tmp_path / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", given=about)
    assert (found.provenance.model, found.hookpoint) == (about.model, "layers.19")
    features = (x @ weights["encoder.weight"].T + weights["encoder.bias"]).relu()
    assert_close(found.encode(x), features, atol=1e-5, rtol=1e-5)
    out = features @ weights["decoder.weight"].T + weights["decoder.bias"]
    assert_close(found.reconstruct(x), out, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("bad", [[1], {"a": 1}, 3.5, True, "text", -4, 10**40, float("nan")])
def test_configurations_of_other_types_are_one_error_or_read(
    kind: str, bad: object, tmp_path: Path
) -> None:
    torch.save(tensors(kind), tmp_path / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": WIDTH, "k": K, "layer": 3}
    trainer |= {"lm_name": "gpt2", "submodule_name": "resid_post_layer_3"}
    good = {"trainer": trainer, "buffer": BUFFER}
    cases = [{**good, part: bad} for part in good]
    cases += [{**good, "trainer": {**trainer, field: bad}} for field in trainer]
    cases += [{**good, "buffer": {**BUFFER, field: bad}} for field in BUFFER]
    if bad != 10**40:
        cases += [{**good, "trainer": {**trainer, "submodule_name": None, "layer": bad}}]
    for case in cases:
        (tmp_path / "config.json").write_text(json.dumps(case))
        with contextlib.suppress(UserError):
            found = monosemy.load(tmp_path)
            assert found.hookpoint in ("layers.3", "unknown"), case


@pytest.mark.parametrize(
    "sizes", [[0, 5, WIDTH - 5], [-5, WIDTH + 5], [2.5, WIDTH - 2.5], [float(2**70)], []]
)
def test_groups_that_cannot_be_are_one_error(sizes: list[float], tmp_path: Path) -> None:
    values = {**tensors("MatryoshkaBatchTopKSAE"), "group_sizes": torch.tensor(sizes)}
    torch.save(values, tmp_path / "ae.pt")
    with pytest.raises(UserError):
        monosemy.load(tmp_path)


@pytest.mark.parametrize("k", [-3.0, 0.0, 2.5, 1e30, torch.inf, torch.nan])
def test_k_that_cannot_be_is_one_error(k: float, tmp_path: Path) -> None:
    torch.save({**tensors("AutoEncoderTopK"), "k": torch.tensor(k)}, tmp_path / "ae.pt")
    settings = {"trainer": {"dict_class": "AutoEncoderTopK"}, "buffer": {}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="k"):
        monosemy.load(tmp_path)
