"""SAELens itself against us: its dictionaries here, ours there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Peer
from safetensors.torch import load_file, save_file
from torch import Tensor

from monosemy.coders import Dictionary, Provenance, make_coder
from monosemy.formats import export, load


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5, relative to the largest value."""
    scale = theirs.abs().max().clamp_min(1)
    torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def theirs(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saelens")
    peer("peer_saelens.py", "save", folder)
    return folder


def features(folder: Path, z: Tensor, x: Tensor) -> Tensor:
    """Ours in SAELens's terms."""
    settings = json.loads((folder / "cfg.json").read_text())
    if settings.get("architecture") == "abstopk":
        z = z[:, : z.shape[1] // 2] - z[:, z.shape[1] // 2 :]
    if settings.get("normalize_activations") == "layer_norm":
        z = z / x.std(1, keepdim=True)
    if settings.get("normalize_activations") == "constant_norm_rescale":
        z = z / x.square().mean(1, keepdim=True).sqrt()
    return z


def test_their_dictionaries_do_here_what_they_do_there(theirs: Path) -> None:
    folders = sorted(path for path in theirs.iterdir())
    assert len(folders) > 60
    for folder in folders:
        found = load_file(folder / "found.safetensors")
        dictionary = load(folder)
        z = dictionary.encode(found["x"])
        assert (z > 0).any(), folder.name
        try:
            assert_same(features(folder, z, found["x"]), found["z"])
            assert_same(dictionary.reconstruct(found["x"]), found["out"])
        except AssertionError as error:
            raise AssertionError(folder.name) from error


OURS = {
    "relu": {},
    "p_anneal": {},
    "relu_kl": {},
    "nonnegative": {},
    "topk": {"k": 5},
    "batch_topk": {"k": 5},
    "matryoshka": {"k": 5},
    "jumprelu": {},
    "gated": {},
}
MORE = {
    "importance": ("topk", {"k": 5, "importance": True}),
    "batch_importance": ("batch_topk", {"k": 5, "importance": True}),
    "layer_norm": ("relu", {"normalise": "layer_norm"}),
    "rms": ("jumprelu", {"normalise": "rms"}),
    "transcoder": ("relu", {"d_out": 7}),
    "skip": ("relu", {"d_out": 7, "skip": True}),
    "jump": ("batch_topk", {"k": 5, "d_out": 7}),
    "jump_skip": ("jumprelu", {"d_out": 7, "skip": True}),
}


def ours(architecture: str, **options: object) -> Dictionary:
    coder = make_coder(architecture, 12, 40, unit_norm=False, **options).requires_grad_(False)
    for name, values in coder.state_dict().items():
        values.copy_(torch.randn_like(values) * 0.4)
        if name in ("threshold", "importance"):
            values.abs_().add_(0.3)
    target = "layers.1.mlp" if coder.d_out != 12 else None
    return Dictionary(
        coder,
        Provenance(model="openai-community/gpt2", hookpoint="layers.1", target=target, context=64),
        torch.zeros(40),
        torch.zeros(12),
        1.0,
        None,
        target_mean=torch.zeros(coder.d_out) if target else None,
        target_scale=1.0 if target else None,
    )


def test_our_dictionaries_do_there_what_they_do_here(peer: Peer, tmp_path: Path) -> None:
    cases = {**{name: (name, options) for name, options in OURS.items()}, **MORE}
    made, x = {}, torch.randn(30, 12) * 2 + 0.5
    for name, (architecture, options) in cases.items():
        made[name] = ours(architecture, **options)
        assert export(made[name], "saelens", tmp_path / name / "exported")
        save_file({"x": x}, tmp_path / name / "given.safetensors")
    peer("peer_saelens.py", "run", tmp_path)
    for name, dictionary in made.items():
        found = load_file(tmp_path / name / "found.safetensors")
        z = features(tmp_path / name / "exported", dictionary.encode(x), x)
        if name == "importance":
            z = z * dictionary.coder.importance
        assert (z > 0).any(), name
        try:
            assert_same(z, found["z"])
            assert_same(dictionary.reconstruct(x), found["out"])
            back = load(tmp_path / name / "exported")
            assert_same(back.reconstruct(x), found["out"])
            assert back.hookpoint == dictionary.hookpoint
            assert back.explains == dictionary.explains
        except AssertionError as error:
            raise AssertionError(name) from error
