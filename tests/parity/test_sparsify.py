"""Golden parity with sparsify itself, both ways."""

from __future__ import annotations

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
from monosemy.formats import export

OURS = {
    "topk": {"variant": "free"},
    "groupmax": {"variant": "free"},
    "topk-tied": {"variant": "tied"},
    "topk-skip": {"variant": "skip"},
    "topk-multi": {"variant": "free", "multi": True},
}
RUNS = ["topk", "groupmax", "expansion", "transcoder", "skip", "sae-skip"]


def is_transcoder(run: str) -> bool:
    return run in ("transcoder", "skip")


@pytest.fixture(scope="module")
def theirs(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    peer("peer_sparsify.py", "save", folder)
    return folder


@pytest.fixture(scope="module")
def ours(
    peer: Peer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Dictionary]]:
    folder = tmp_path_factory.mktemp("ours")
    torch.manual_seed(1)
    made = {}
    for name, options in OURS.items():
        for kind in ("sae", "transcoder"):
            coder = build(name.split("-")[0], **options)
            place = {"hookpoint": "layers.3.mlp.input", "target": "layers.3.mlp"}
            made[f"{kind}-{name}"] = dictionary_of(coder, **(place if kind != "sae" else {}))
    for name, dictionary in made.items():
        export(dictionary, "sparsify", folder / name)
    save_file({"x": torch.randn(200, D) * 2 + 0.5}, folder / "x.safetensors")
    peer("peer_sparsify.py", "load", folder)
    return folder, made


@pytest.mark.parametrize("run", RUNS)
def test_what_sparsify_saved_gives_here_what_it_gives_there(theirs: Path, run: str) -> None:
    golden = load_file(theirs / f"{run}.safetensors")
    dictionary = monosemy.load(theirs / run)
    assert_close(dictionary.encode(golden["x"]), golden["features"], rtol=1e-5, atol=1e-5)
    assert_close(dictionary.reconstruct(golden["x"]), golden["out"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_its_run_says_where_a_coder_belongs(theirs: Path, run: str) -> None:
    dictionary = monosemy.load(theirs / run)
    provenance = dictionary.provenance
    assert (provenance.model, provenance.context) == ("EleutherAI/pythia-70m", 256)
    assert dictionary.is_transcoder == is_transcoder(run)
    assert dictionary.hookpoint == ("layers.3.mlp.input" if is_transcoder(run) else "layers.3")
    assert dictionary.explains == ("layers.3.mlp" if is_transcoder(run) else "layers.3")
    notes = provenance.training["imported"]["notes"]
    assert ["4k" in note for note in notes] == [True] * (run == "expansion")


@pytest.mark.parametrize("name", [f"{kind}-{n}" for kind in ("sae", "transcoder") for n in OURS])
def test_what_is_written_gives_there_what_it_gives_here(
    ours: tuple[Path, dict[str, Dictionary]], name: str
) -> None:
    folder, made = ours
    golden, dictionary = load_file(folder / f"{name}.safetensors"), made[name]
    assert_close(golden["features"], dictionary.encode(golden["x"]), rtol=1e-5, atol=1e-5)
    assert_close(golden["out"], dictionary.reconstruct(golden["x"]), rtol=1e-5, atol=1e-5)
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        place = file.metadata()["hookpoint"]
    assert place == ("layers.3.mlp" if name.startswith("transcoder") else "layers.3")
