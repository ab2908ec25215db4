"""Public releases by name: the list, what it says, and the command that shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files

import pytest

from monosemy.cli.main import main
from monosemy.errors import UserError
from monosemy.formats.releases import expand, release_named, releases


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a", ["a"]),
        ("l{0..2}", ["l0", "l1", "l2"]),
        ("{a,b}-{x,y}", ["a-x", "a-y", "b-x", "b-y"]),
        ("{a{1,2},b}c", ["a1c", "a2c", "bc"]),
        ("x{,.mlp}", ["x", "x.mlp"]),
        ("l{9..11}_{8,32}x", ["l9_8x", "l9_32x", "l10_8x", "l10_32x", "l11_8x", "l11_32x"]),
    ],
)
def test_patterns(pattern: str, texts: list[str]) -> None:
    assert list(expand(pattern)) == texts


def test_every_dictionary_of_every_release_can_be_told() -> None:
    for release in releases().values():
        ids = release.ids()
        assert len(set(ids)) == len(ids) > 0
        assert "/" in release.repo and "/" in release.model and "/" not in release.name
        for entry in map(release.entry, {ids[0], ids[-1]}):
            assert entry.hookpoint and "{" not in entry.path + entry.id + entry.explains


def test_the_list_is_small() -> None:
    assert len(files("monosemy.formats").joinpath("releases.json").read_bytes()) < 300_000


def test_what_files_do_not_say() -> None:
    centred = release_named("gpt2-small-res-jb")
    given = centred.given(centred.entry("blocks.5.hook_resid_pre"))
    assert (given.model, given.hookpoint) == ("openai-community/gpt2", "layers.4")
    assert given.centred and given.scale is None and given.k is None
    scaled = release_named("gpt2-small-mlp-tm")
    entry = scaled.entry("blocks.0.hook_mlp_out")
    assert entry.scale == pytest.approx(1.049317316132615)
    assert entry.path == "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1"
    qwen = release_named("qwen-scope-3-8b-base-w64k-l100")
    assert qwen.given(qwen.entry("layer7")).k == 100


def test_normalisation_by_token_is_said_where_files_leave_it_out() -> None:
    release = releases()["mistral-7b-res-wg"]
    given = release.given(release.entry("blocks.8.hook_resid_pre"))
    assert (given.normalise, given.hookpoint) == ("rms", "layers.7")
    assert given.model == "mistralai/Mistral-7B-v0.1"


def test_hook_points_of_gemma_are_after_its_norms() -> None:
    release = release_named("gemma-scope-2b-pt-mlp-canonical")
    entry = release.entry("layer_3/width_16k/canonical")
    assert entry.hookpoint == "layers.3.post_feedforward_layernorm"
    assert entry.path.startswith("layer_3/width_16k/average_l0_")


def test_transcoders_have_both_ends() -> None:
    entry = release_named("mwhanna-qwen3-4b-transcoders").entry("layer_9")
    assert (entry.hookpoint, entry.target) == ("layers.9.mlp.input", "layers.9.mlp")
    # Read before the norm, not after it.
    entry = release_named("mntss-llama-3.2-1b-transcoders").entry("layer_9")
    assert (entry.hookpoint, entry.target) == ("layers.9.mid", "layers.9.mlp")


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda: release_named("gpt2-small-res"), "did you mean `gpt2-small-res-jb`"),
        (
            lambda: release_named("gpt2-small-res-jb").entry("blocks.12.hook_resid_pre"),
            "no dictionary `blocks.12.hook_resid_pre`",
        ),
        (lambda: release_named("gpt2-small-res-jb").entry(""), "which of the 13 dictionaries"),
    ],
)
def test_names_that_are_not_there(ask: Callable[[], object], match: str) -> None:
    with pytest.raises(UserError) as caught:
        ask()
    assert match in str(caught.value)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["releases", "--model", "gpt2"])
    shown = capsys.readouterr().out
    assert "gpt2-small-res-jb" in shown and "gemma" not in shown
    main(["releases", "gpt2-small-res-jb"])
    assert "blocks.11.hook_resid_post" in capsys.readouterr().out
    main(["releases", "gpt2-small-res-jb", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["centred"] is True and len(found["dictionaries"]) == found["count"] == 13
    with pytest.raises(SystemExit):
        main(["releases", "--model", "no-such-model"])
    assert "allowed" not in capsys.readouterr().out
