"""Other people's dictionaries: any object that encodes and decodes, measured as ours are."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.activations import LiveActivations
from monosemy.coders import Code, Dictionary, Provenance, SparseCoder
from monosemy.coders.select import Choice, Scorer
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.lm import LM

CONTEXT = 128
"""Tokens in a row of text, unless the object says otherwise."""
_SAMPLE = 2048
_ROWS = 256


class ForeignCoder(SparseCoder):
    """What suites use of a coder, from an object's `encode` and `decode`.

    Directions are what `decode` adds for one unit of a feature. There is no `W_enc`: None.
    """

    architecture = "foreign"

    def __init__(self, coder: Any, d_in: int) -> None:
        """Find its sizes and directions.

        Raises:
            UserError: it does not encode activations of this width, or `decode` is not affine.
        """
        with torch.no_grad():
            try:
                z = coder.encode(torch.zeros(1, d_in))
                base = coder.decode(torch.zeros_like(z))
            except Exception as error:
                raise UserError(
                    f"{type(coder).__name__} does not encode activations of width {d_in}: {error}",
                    "is it made for this hook point, and does `encode` take [tokens, d_in]?",
                ) from error
            width = z.shape[-1]
            super().__init__(d_in, width)
            self.foreign, self.W_enc = coder, None  # type: ignore[assignment]
            units = torch.eye(width).split(_ROWS)
            self.W_dec.copy_(torch.cat([coder.decode(rows) - base for rows in units]))
            self.b_dec.copy_(base[0])
            probe = torch.rand(4, width)
            if not torch.allclose(coder.decode(probe), super().decode(probe), rtol=1e-2, atol=1e-2):
                raise UserError(
                    f"`decode` of {type(coder).__name__} is not a sum of directions",
                    "give one that is: features could not be told apart in it",
                )
        self.requires_grad_(False)

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep positive entries."""
        return Code.from_mask(pre, pre > 0)

    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Refuse: somebody else's coder is measured here, not trained."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "tokens d_in"]) -> Code:
        """Return the code of each token as its positive entries."""
        return self.select(self.foreign.encode(x).float())

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, "tokens d_in"]
    ) -> tuple[Float[Tensor, "tokens d_in"], Code]:
        """Return what the object makes of its own code, and that code."""
        z = self.foreign.encode(x)
        return self.foreign.decode(z).float(), self.select(z.float())


def adopt(coder: Any, lm: LM, corpus: Corpus, hookpoint: str) -> Dictionary:
    """Return an object with `encode` and `decode` as a dictionary without a fingerprint.

    Raises:
        UserError: it has no such methods, or does not fit the hook point.
    """
    for name in ("encode", "decode"):
        if not callable(getattr(coder, name, None)):
            raise UserError(
                f"a {type(coder).__name__} has no method `{name}`",
                "allowed: a Dictionary, a Run, or an object with `encode` and `decode`",
            )
    point = lm.hookpoint(hookpoint)
    context = min(CONTEXT, lm.context_limit or CONTEXT)
    provenance = Provenance(
        model=lm.name,
        revision=lm.revision,
        hookpoint=point.name,
        context=context,
        corpus=corpus.describe(),
    )
    made = ForeignCoder(coder, point.width)
    stream = provenance.stream(lm, corpus, "train")
    x = next(iter(LiveActivations(lm, stream, [point.name])))[point.name][:_SAMPLE]
    code = made.encode_sparse(x)
    provenance.training["held_out"] = {"l0": float(code.l0.float().mean())}
    return Dictionary(
        made,
        provenance,
        torch.zeros(made.width),
        x.mean(0),
        1.0,
        None,
    )
