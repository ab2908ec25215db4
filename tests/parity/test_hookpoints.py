"""What TransformerLens calls a place holds, in its models, what ours holds there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import Peer
from tiny_models import TINY, inputs_for

from monosemy.errors import UserError
from monosemy.lm import LM

BUILD: dict[str, Callable[[], PreTrainedModel]] = {
    name: TINY[name] for name in ("gpt2", "gpt_neox", "llama", "qwen2", "gemma2")
}
PARALLEL = ("gpt_neox",)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, peer: Peer) -> dict[str, Path]:
    """Each family's folder, with what TransformerLens read in it: one child for all."""
    parent = tmp_path_factory.mktemp("lens")
    made = {name: parent / f"tiny-{number}" for number, name in enumerate(BUILD)}
    for name, folder in made.items():
        model = BUILD[name]()
        model.config.n_ctx = 64  # files on the Hub say it, and it is read there
        model.save_pretrained(folder)
        tokens = inputs_for(LM(model))["input_ids"]
        save_file({"tokens": tokens}, folder / "tokens.safetensors")
    peer("peer_hookpoints.py", *made.values())
    return made


@pytest.fixture(params=BUILD)
def both(
    request: pytest.FixtureRequest, folders: dict[str, Path]
) -> tuple[LM, dict[str, Tensor], str]:
    lm = LM(BUILD[request.param]())
    lm.model.set_attn_implementation("eager")
    return lm, load_file(folders[request.param] / "theirs.safetensors"), request.param


def test_every_name_that_is_understood_holds_the_same(
    both: tuple[LM, dict[str, Tensor], str],
) -> None:
    lm, theirs, family = both
    theirs = {name: x for name, x in theirs.items() if not name.startswith("centred.")}
    ours = lm.capture(inputs_for(lm), list(theirs))
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name], x, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: n + m)
    claimed = {alias for point in lm.hookpoints() for alias in point.aliases if "hook_" in alias}
    # Not compared: TransformerLens 3 reads a LayerNorm before its gain, older ones after.
    assert claimed == set(theirs)
    assert ("blocks.1.hook_resid_mid" in theirs) == (family not in PARALLEL)


def test_centred_writing_weights_take_the_mean_over_width_away(folders: dict[str, Path]) -> None:
    lm = LM(BUILD["gpt2"]())
    theirs = load_file(folders["gpt2"] / "theirs.safetensors")
    centred = {n.removeprefix("centred."): x for n, x in theirs.items() if n.startswith("centred.")}
    ours = lm.capture(inputs_for(lm), list(centred))
    assert len(centred) == 9
    for name, x in centred.items():
        mine = ours[name] - ours[name].mean(-1, keepdim=True)
        torch.testing.assert_close(mine, x, atol=1e-5, rtol=1e-4)
        assert ours[name].mean(-1).abs().max() > 1e-3


def test_a_place_that_only_transformer_lens_has_is_refused() -> None:
    with pytest.raises(UserError, match="unknown hook point"):
        LM(BUILD["gpt_neox"]()).hookpoint("blocks.1.hook_resid_mid")
