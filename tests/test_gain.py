"""What TransformerLens reads within a norm, before its gain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_gemma2, tiny_gpt2, tiny_llama
from transformers import PreTrainedModel

from monosemy.coders import Dictionary, Provenance
from monosemy.coders.gain import take_gain_back
from monosemy.coders.jumprelu import JumpReLU
from monosemy.errors import UserError
from monosemy.lm import LM

TOKENS = torch.tensor([[0, 5, 17, 40, 3, 99]])
NORMS: dict[str, tuple[Callable[[], PreTrainedModel], str, bool]] = {
    "llama": (tiny_llama, "layers.1.post_attention_layernorm", False),
    "gpt2": (tiny_gpt2, "layers.1.ln_2", True),
    "gemma2": (tiny_gemma2, "layers.1.pre_feedforward_layernorm", False),
}


def transcoder(d: int) -> Dictionary:
    coder = JumpReLU(d, 3 * d).requires_grad_(False)
    for weights in (coder.W_enc, coder.b_enc, coder.b_dec, coder.log_threshold):
        weights.normal_()
    provenance = Provenance(
        model="m",
        hookpoint="blocks.1.ln2.hook_normalized",
        target="layers.1.mlp",
        context=16,
        training={"imported": {}},
    )
    return Dictionary(coder, provenance, torch.zeros(3 * d), torch.zeros(d), 1.0, None)


@pytest.mark.parametrize("family", NORMS)
def test_features_of_the_mlps_input_are_those_before_the_gain(family: str) -> None:
    make, norm_name, centres = NORMS[family]
    lm = LM(make())
    norm = lm.model.get_submodule(lm.hookpoint(norm_name).path)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        if centres:
            norm.bias.normal_()
    theirs = transcoder(lm.hookpoint("layers.1.mid").width)
    ours = replace(theirs, coder=transcoder(theirs.d_in).coder)
    ours.coder.load_state_dict(theirs.coder.state_dict())
    take_gain_back(ours, lm)
    assert ours.hookpoint == "layers.1.mlp.input"
    stream, given = lm.capture(TOKENS, ["layers.1.mid", "layers.1.mlp.input"]).values()
    if centres:
        stream = stream - stream.mean(-1, keepdim=True)
    normal = stream / (stream.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(ours.encode(given), theirs.encode(normal), rtol=1e-3, atol=1e-3)
    before = ours.coder.W_enc.clone()
    take_gain_back(ours, lm)  # it is done once
    assert torch.equal(ours.coder.W_enc, before)


def test_a_gain_of_nothing_cannot_be_taken_back() -> None:
    lm = LM(tiny_llama())
    with torch.no_grad():
        lm.model.get_submodule("model.layers.1.post_attention_layernorm").weight[3] = 0
    theirs = transcoder(lm.hookpoint("layers.1.mid").width)
    before = theirs.coder.W_enc.clone()
    with pytest.raises(UserError, match="hook_normalized"):
        take_gain_back(theirs, lm)
    assert torch.equal(theirs.coder.W_enc, before)
    assert theirs.hookpoint == "blocks.1.ln2.hook_normalized"
