"""Dictionaries as other tools' formats give them: a coder, and where it belongs."""

from __future__ import annotations

import torch

from monosemy.coders import Dictionary, Provenance, SparseCoder


def dictionary_of(
    coder: SparseCoder,
    *,
    model: str = "EleutherAI/pythia-70m",
    hookpoint: str = "layers.3",
    target: str | None = None,
    context: int = 64,
) -> Dictionary:
    """A dictionary that nobody trained."""
    provenance = Provenance(
        model=model,
        hookpoint=hookpoint,
        target=target,
        context=context,
        corpus={"source": "org/text", "held_out": 0.1},
    )
    return Dictionary(
        coder.eval().requires_grad_(False),
        provenance,
        torch.zeros(coder.width),
        torch.zeros(coder.d_in),
        1.0,
        None,
        target_mean=torch.zeros(coder.d_out) if target else None,
        target_scale=1.0 if target else None,
    )
