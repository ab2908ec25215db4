"""What is said of a dictionary beside its files: it counts in every format, or is refused."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import scope_files as files
import torch
from foreign import dictionary_of
from safetensors import SafetensorError
from scope_files import MAKERS, D
from torch.testing import assert_close

import monosemy
from monosemy.coders import make_coder
from monosemy.errors import UserError
from monosemy.formats import Given, export


@pytest.mark.parametrize("kind", ["gemma_scope", "goodfire", "qwen_scope", "hook_z"])
def test_a_scale_counts_where_files_say_none(kind: str, tmp_path: Path) -> None:
    made, x = MAKERS[kind](tmp_path), torch.randn(40, D)
    found = monosemy.load(made.path, given=Given(scale=2.5))
    z = made.encode(2.5 * x)
    assert_close(found.encode(x), z, atol=1e-5, rtol=1e-5)
    assert_close(found.reconstruct(x), made.decode(z, 2.5 * x) / 2.5, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gemma_scope_2", "circuit_tracer"])
def test_a_scale_leaves_a_linear_path_as_it_is(kind: str, tmp_path: Path) -> None:
    made, x = MAKERS[kind](tmp_path), torch.randn(40, D)
    found = monosemy.load(made.path, given=Given(scale=2.5))
    expected = made.decode(made.encode(2.5 * x), 2.5 * x) / 2.5
    assert_close(found.reconstruct(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "norm"), [("llama_scope", 4.0), ("llama_scope-r1", 2.5)])
def test_a_scale_goes_before_the_files_own_and_not_on_top_of_it(
    kind: str, norm: float, tmp_path: Path
) -> None:
    made, x = MAKERS[kind](tmp_path), torch.randn(40, D)
    own = D**0.5 / norm  # as the files say
    same = monosemy.load(made.path, given=Given(scale=own))
    assert_close(same.encode(x), monosemy.load(made.path).encode(x))
    twice = monosemy.load(made.path, given=Given(scale=2 * own))
    assert not torch.allclose(twice.encode(x), same.encode(x))


def test_a_scale_of_what_each_token_is_divided_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scale of 2"):
        monosemy.load(files.openai(tmp_path).path, given=Given(scale=2.0))


def test_a_scale_that_is_folded_already_is_refused(tmp_path: Path) -> None:
    made = files.llamascopium(tmp_path, norm="inference")
    with pytest.raises(UserError, match="folded"):
        monosemy.load(made.path, given=Given(scale=2.0))


@pytest.mark.parametrize("kind", ["openai", "qwen_scope"])
def test_k_goes_before_what_files_say(kind: str, tmp_path: Path) -> None:
    found = monosemy.load(MAKERS[kind](tmp_path).path, given=Given(k=2))
    assert found.encode(torch.randn(30, D)).count_nonzero(1).max() == 2


@pytest.mark.parametrize("kind", ["goodfire", "gemma_scope", "openai-relu"])
def test_k_of_what_has_none_is_refused(kind: str, tmp_path: Path) -> None:
    name, _, activation = kind.partition("-")
    made = MAKERS[name](tmp_path, **({"activation": "ReLU"} if activation else {}))
    with pytest.raises(UserError, match="has no k"):
        monosemy.load(made.path, given=Given(k=2))


@pytest.mark.parametrize("kind", ["gemma_scope_2", "circuit_tracer"])
def test_centring_a_transcoder_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="centred"):
        monosemy.load(MAKERS[kind](tmp_path).path, given=Given(centred=True))


def test_centring_makes_no_difference_but_to_the_mean(tmp_path: Path) -> None:
    made, x = files.goodfire(tmp_path), torch.randn(40, D) + 2
    found = monosemy.load(made.path, given=Given(centred=True))
    mean = x.mean(1, keepdim=True)
    z = made.encode(x - mean)
    assert_close(found.encode(x), z, atol=1e-5, rtol=1e-5)
    assert_close(found.reconstruct(x), made.decode(z, x) + mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": -3}, "k is -3"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"scale": 2.0, "normalise": "rms"}, "scale of 2"),
        ({"normalise": "spread"}, "spread"),
    ],
)
def test_values_that_cannot_be(fields: dict[str, float | str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Given(**fields)  # type: ignore[arg-type]


def test_our_own_folders_say_all_themselves(tmp_path: Path) -> None:
    dictionary_of(make_coder("relu", 4, 8)).save_pretrained(tmp_path / "ours")
    assert monosemy.load(tmp_path / "ours").width == 8
    with pytest.raises(UserError, match="monosemy's own"):
        monosemy.load(tmp_path / "ours", given=Given(hookpoint="layers.2"))


def test_a_transcoder_that_does_not_say_what_it_explains_is_one_all_the_same(
    tmp_path: Path,
) -> None:
    made = files.circuit_tracer(tmp_path)
    (tmp_path / "config.yaml").unlink()
    assert monosemy.load(made.path).provenance.target == "unknown"
    coder = make_coder("jumprelu", 6, 20, d_out=5)
    export(dictionary_of(coder, target="layers.3.mlp"), "gemma_scope", tmp_path / "out")
    assert monosemy.load(tmp_path / "out").provenance.target == "unknown"
    given = Given(target="layers.3.mlp")
    assert monosemy.load(tmp_path / "out", given=given).explains == "layers.3.mlp"


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for source in (tmp_path / "loop", "x" * 5000, "no\0name", str(tmp_path / "a\udcff")):
        with pytest.raises(UserError):
            monosemy.load(source)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (".", "here"),
        ("../here", "here"),
        ("x/..", "here"),
        ("owner/saes/layers.3@refs/pr/1", "layers.3"),
        ("owner/saes/", "saes"),
    ],
)
def test_a_run_is_named_after_the_last_part_of_its_source(
    source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = importlib.import_module("monosemy.cli.import")
    (tmp_path / "here" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert command._name(source) == name


def test_a_disk_that_refuses_while_weights_are_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("monosemy.formats.saelens_write.save_file", refuse)
    with pytest.raises(UserError, match="No space left"):
        export(dictionary_of(make_coder("relu", 4, 8)), "saelens", tmp_path / "out")
    assert not list(tmp_path.iterdir())
