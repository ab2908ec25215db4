"""The model with what is made of its activations in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.evaluation.baselines import Reconstruct
from monosemy.lm import LM


@contextmanager
def spliced(
    lm: LM, dictionary: Dictionary, reconstruct: Reconstruct, counted: Tensor | None = None
) -> Iterator[None]:
    """Put what is made of a dictionary's input in place of what it explains, while the block runs.

    Args:
        lm: the model.
        dictionary: says where.
        reconstruct: makes it.
        counted: [batch, time], where; None: at every token that is not a special one, in
            generation with a key-value cache too.

    Raises:
        UserError: in a forward pass, where a transcoder's input comes after its target.
    """
    here, there = dictionary.hookpoint, dictionary.explains
    special = torch.tensor(sorted(lm.special_ids), dtype=torch.long)
    made: list[Tensor] = []

    def where(x: Tensor, tokens: Tensor | None) -> Tensor:
        if counted is not None:
            return counted.to(x.device)
        if tokens is None:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return ~torch.isin(tokens.to(x.device), special.to(x.device))

    def read(x: Tensor, tokens: Tensor | None) -> Tensor:
        made.append(reconstruct(x[where(x, tokens)].float())[0])
        return x

    def write(y: Tensor, tokens: Tensor | None) -> Tensor:
        if not made:
            raise UserError(
                f"`{here}` comes after `{there}` in the model, so what is made of it cannot "
                "take that one's place",
                "a transcoder's input comes before its target; `loss_tokens=0` leaves the "
                "effect on the loss out",
            )
        out = y.clone()
        out[where(y, tokens)] = made.pop().to(y.dtype)
        return out

    with lm.edit({here: read}), lm.edit({there: write}):
        yield
