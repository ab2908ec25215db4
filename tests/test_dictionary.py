"""Dictionaries on disk: bitwise round trips, and every way a folder can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from monosemy.artefact import MANIFEST, save_artefact
from monosemy.coders import Dictionary, ReLU, TopK
from monosemy.errors import UserError
from monosemy.training import Run


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    return run.dictionary.save_pretrained(tmp_path / "dictionary")


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_saving_and_loading_is_bitwise(run: Run, folder: Path) -> None:
    loaded = Dictionary.from_pretrained(folder)
    for name, weight in run.dictionary.coder.state_dict().items():
        assert torch.equal(weight, loaded.coder.state_dict()[name])
    assert loaded.provenance == run.dictionary.provenance
    assert torch.equal(loaded.strength, run.dictionary.strength)
    assert loaded.fingerprint.expected == run.dictionary.fingerprint.expected
    x = torch.randn(4, 6, run.dictionary.d_in)
    assert torch.equal(loaded.reconstruct(x), run.dictionary.reconstruct(x))


def test_saving_twice_replaces_and_leaves_nothing_beside(run: Run, folder: Path) -> None:
    run.dictionary.save_pretrained(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["dictionary"]
    Dictionary.from_pretrained(folder)


def test_the_format_is_readable_without_the_package(folder: Path) -> None:
    """Encode a token by hand from what `docs/format.md` says."""
    manifest = json.loads((folder / MANIFEST).read_text())
    weights = load_file(folder / "coder.safetensors")
    x = weights["mean"] * 1.5
    pre = weights["W_enc"] @ x + weights["b_enc"]
    z = torch.where((pre >= weights["threshold"]) & (pre > 0), pre, 0)
    ours = Dictionary.from_pretrained(folder).encode(x[None])[0]
    torch.testing.assert_close(z, ours, atol=1e-4, rtol=1e-4)
    assert manifest["provenance"]["hookpoint"] == "layers.1"


def test_what_explains_its_own_input_is_written_as_it_always_was(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    assert "target" not in manifest["provenance"]
    assert set(manifest["normalisation"]) == {"folded", "scale"}
    assert "target_mean" not in load_file(folder / "coder.safetensors")
    loaded = Dictionary.from_pretrained(folder)
    assert not loaded.is_transcoder
    assert loaded.explains == loaded.hookpoint
    assert (loaded.target_mean, loaded.target_scale) == (None, None)


def test_tied_weights_are_saved_and_tied_again(run: Run, tmp_path: Path) -> None:
    tied = TopK(run.dictionary.d_in, 96, k=8, tied=True)
    folder = replace(run.dictionary, coder=tied).save_pretrained(tmp_path / "dictionary")
    loaded = Dictionary.from_pretrained(folder).coder
    assert loaded.W_enc is loaded.W_dec
    assert torch.equal(loaded.W_dec, tied.W_dec)


def test_a_penalty_in_the_options_is_passed_over(run: Run, tmp_path: Path) -> None:
    relu = replace(run.dictionary, coder=ReLU(run.dictionary.d_in, 96))
    folder = relu.save_pretrained(tmp_path / "dictionary")
    edit_manifest(folder, options={"l1": 5.0})
    assert isinstance(Dictionary.from_pretrained(folder).coder, ReLU)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        Dictionary.from_pretrained(tmp_path / "nothing")


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest.json"):
        Dictionary.from_pretrained(tmp_path)


def test_broken_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"kind": ')
    with pytest.raises(UserError, match="not valid JSON"):
        Dictionary.from_pretrained(folder)


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_unknown_version_says_which_one_is_read(folder: Path, version: object) -> None:
    edit_manifest(folder, format_version=version)
    with pytest.raises(UserError, match="format version") as caught:
        Dictionary.from_pretrained(folder)
    assert "reads version 1" in caught.value.hint


def test_another_kind_of_artefact(folder: Path) -> None:
    edit_manifest(folder, kind="features")
    with pytest.raises(UserError, match="is of kind `features`, not `dictionary`"):
        Dictionary.from_pretrained(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_weights(folder: Path, share: float) -> None:
    path = folder / "coder.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="damaged"):
        Dictionary.from_pretrained(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "fingerprint.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        Dictionary.from_pretrained(folder)


def test_manifest_that_does_not_fit_its_weights(folder: Path) -> None:
    edit_manifest(folder, width=95)
    with pytest.raises(UserError, match="not as its manifest says"):
        Dictionary.from_pretrained(folder)


def test_another_folder_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError):
        run.dictionary.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_the_old_artefact(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(TypeError):
        save_artefact(folder, "dictionary", {"bad": object()}, {})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["dictionary"]


def test_a_file_where_the_folder_should_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        run.dictionary.save_pretrained(tmp_path / "file" / "dictionary")


def test_unknown_hub_id_says_what_was_tried() -> None:
    with pytest.raises(UserError, match="no folder `someone/something` here"):
        Dictionary.from_pretrained("someone/something")


@pytest.mark.parametrize("feature", [-1, 96, 10**9])
def test_feature_out_of_range(run: Run, feature: int) -> None:
    with pytest.raises(UserError, match=f"no feature {feature}") as caught:
        run.dictionary.check_feature(feature)
    assert "0 to 95" in caught.value.hint
