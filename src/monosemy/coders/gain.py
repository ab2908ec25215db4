"""Dictionaries of what a norm gives before its gain, which TransformerLens reads there.

`blocks.N.ln2.hook_normalized` is normalised, but not yet multiplied by the norm's gain, nor is its
bias added. `transformers` has no module that gives this; the MLP's input is the same after both,
and both can be taken back in the encoder: W n = (W / g) (out - b).
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from monosemy.coders.dictionary import Dictionary
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.lm.hooks import STREAM

_NORMALIZED = re.compile(r"blocks\.(\d+)\.ln2\.hook_normalized")
_LEAST = 1e-6
"""Gain below which a coordinate cannot be told from what comes after the gain."""


@torch.no_grad()
def take_gain_back(dictionary: Dictionary, lm: LM) -> None:
    """Turn a dictionary of an MLP's normalised input into that of its input; in place.

    Others are left alone. It is of one kind or the other throughout: what failed can be repeated.

    Raises:
        UserError: the model has no such norm, or one whose gain cannot be taken back.
    """
    found = _NORMALIZED.fullmatch(dictionary.hookpoint)
    if found is None:
        return
    norm = lm.model.get_submodule(lm.hookpoint(f"layers.{found[1]}.mid").path.removesuffix(STREAM))
    gain, bias = _affine(norm, dictionary.hookpoint)
    coder = dictionary.coder
    if coder.normalise or coder.tied:
        raise UserError(
            f"`{dictionary.hookpoint}` is read before a gain, which tied weights and those with a "
            "normalisation of their own cannot take back"
        )
    gain, bias = gain.to(coder.W_enc), bias.to(coder.W_enc)
    coder.W_enc.div_(gain)
    coder.shift_features(coder.W_enc @ bias)
    provenance = dictionary.provenance
    dictionary.provenance = replace(provenance, hookpoint=f"layers.{found[1]}.mlp.input")


def _affine(norm: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Return gain and bias of a norm, seen by what it does."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor):
        raise UserError(f"the norm that `{name}` is in has no gain", "give its --hookpoint")
    bias = getattr(norm, "bias", None)
    bias = bias.float() if isinstance(bias, Tensor) else torch.zeros_like(weight.float())
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    out = norm(x).float() - bias
    flat = x.float()
    centred = flat - flat.mean(1, keepdim=True)
    for values in (flat, centred):  # RMSNorm, LayerNorm
        normal = values / values.square().mean(1, keepdim=True).sqrt()
        for gain in (weight.float(), 1 + weight.float()):  # Gemma's is told from 1
            if (
                torch.allclose(out, normal * gain, rtol=1e-2, atol=1e-2)
                and gain.abs().min() > _LEAST
            ):
                return gain, bias
    raise UserError(
        f"what `{name}` is multiplied by afterwards cannot be told from its {type(norm).__name__}",
        "give its --hookpoint",
    )
