"""Golden parity with dictionary_learning itself, both ways."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Peer
from foreign import dictionary_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_coders import D, build
from torch.testing import assert_close

import monosemy
from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.formats import export

THEIRS = {
    "standard": "relu",
    "april": "relu",
    "new": "relu",
    "p_anneal": "relu",
    "gated": "gated",
    "gated_anneal": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batch_topk": "batch_topk",
    "matryoshka": "matryoshka",
}
"""A trainer -> our architecture."""
CLASSES = {
    "relu": "AutoEncoder",
    "relu-free": "AutoEncoderNew",
    "p_anneal": "AutoEncoder",
    "relu_kl-free": "AutoEncoderNew",
    "nonnegative": "AutoEncoder",
    "gated": "GatedAutoEncoder",
    "gated-free": "GatedAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "jumprelu-free": "JumpReluAutoEncoder",
    "topk": "AutoEncoderTopK",
    "topk-tied": "AutoEncoderTopK",
    "batch_topk": "BatchTopKSAE",
    "batch_topk-free": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
}
"""Our architecture and variant -> their class."""


@pytest.fixture(scope="module")
def theirs(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    peer("peer_dictionary_learning.py", "save", folder)
    return folder


@pytest.fixture(scope="module")
def ours(
    peer: Peer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Dictionary]]:
    folder = tmp_path_factory.mktemp("ours")
    torch.manual_seed(1)
    made = {}
    for name in CLASSES:
        architecture, _, variant = name.partition("-")
        coder = build(architecture, variant or "plain")
        made[name] = dictionary_of(coder)
        made[f"{name}-predicts"] = dictionary_of(
            coder, hookpoint="layers.3.mlp.input", target="layers.3.mlp"
        )
    for name, dictionary in made.items():
        export(dictionary, "dictionary_learning", folder / name)
    save_file({"x": torch.randn(200, D) * 2 + 0.5}, folder / "x.safetensors")
    peer("peer_dictionary_learning.py", "load", folder)
    return folder, made


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("what", ["trainer_0", "trainer_0/ae.pt", "trainer_0/checkpoints/ae_5.pt"])
def test_what_it_saved_gives_here_what_it_gives_there(theirs: Path, name: str, what: str) -> None:
    golden = load_file(theirs / f"{name}.safetensors")
    dictionary = monosemy.load(theirs / name / what)
    assert_close(dictionary.encode(golden["x"]), golden["features"], rtol=1e-5, atol=1e-5)
    assert_close(dictionary.reconstruct(golden["x"]), golden["out"], rtol=1e-5, atol=1e-5)
    assert dictionary.coder.architecture == THEIRS[name]


@pytest.mark.parametrize("name", THEIRS)
def test_its_configuration_says_where_it_belongs(theirs: Path, name: str) -> None:
    dictionary = monosemy.load(theirs / name)
    provenance = dictionary.provenance
    assert (provenance.model, provenance.context) == ("EleutherAI/pythia-70m", 256)
    assert dictionary.hookpoint == ("layers.3.mlp" if name == "jumprelu" else "layers.3")


@pytest.mark.parametrize("name", THEIRS)
def test_without_a_configuration_tensors_tell_the_class_but_of_two(
    theirs: Path, name: str, tmp_path: Path
) -> None:
    golden = load_file(theirs / f"{name}.safetensors")
    shutil.copy(theirs / name / "trainer_0" / "ae.pt", tmp_path / "any.pt")
    if name in ("topk", "batch_topk"):
        with pytest.raises(UserError, match="of AutoEncoderTopK and of BatchTopKSAE"):
            monosemy.load(tmp_path / "any.pt")
        return
    dictionary = monosemy.load(tmp_path / "any.pt")
    assert_close(dictionary.encode(golden["x"]), golden["features"], rtol=1e-5, atol=1e-5)
    assert dictionary.hookpoint == "unknown"


@pytest.mark.parametrize("name", [f"{name}{end}" for name in CLASSES for end in ("", "-predicts")])
def test_what_is_written_gives_there_what_it_gives_here(
    ours: tuple[Path, dict[str, Dictionary]], name: str
) -> None:
    folder, made = ours
    golden, dictionary = load_file(folder / f"{name}.safetensors"), made[name]
    assert_close(golden["features"], dictionary.encode(golden["x"]), rtol=1e-5, atol=1e-5)
    assert_close(golden["out"], dictionary.reconstruct(golden["x"]), rtol=1e-5, atol=1e-5)
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        said = file.metadata()
    assert said["dict_class"] == CLASSES[name.removesuffix("-predicts")]
    predicts = name.endswith("-predicts")
    assert said["submodule_name"] == ("mlp_out_layer_3" if predicts else "resid_post_layer_3")
