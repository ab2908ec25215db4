"""The model with what is made of its activations in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.activations import Activations, counted_of
from monosemy.coders import Dictionary
from monosemy.corpus import TokenBatch
from monosemy.errors import UserError
from monosemy.evaluation.baselines import Reconstruct
from monosemy.lm import LM, Edit, Replay


@contextmanager
def spliced(lm: LM, dictionary: Dictionary, reconstruct: Reconstruct) -> Iterator[None]:
    """Put what is made of a dictionary's input in place of what it explains, while the block runs.

    At every token that is not a special one, in generation with a key-value cache too.

    Raises:
        UserError: in a forward pass, where a transcoder's input comes after its target.
    """
    here, there = dictionary.hookpoint, dictionary.explains
    special = torch.tensor(sorted(lm.special_ids), dtype=torch.long)
    made: list[Tensor] = []

    def where(x: Tensor, tokens: Tensor | None) -> Tensor:
        if tokens is None:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return ~torch.isin(tokens.to(x.device), special.to(x.device))

    def read(x: Tensor, tokens: Tensor | None) -> Tensor:
        made.append(reconstruct(x[where(x, tokens)].float())[0])
        return x

    def write(y: Tensor, tokens: Tensor | None) -> Tensor:
        if not made:
            raise comes_after(here, there)
        out = y.clone()
        out[where(y, tokens)] = made.pop().to(y.dtype)
        return out

    with lm.edit({here: read}), lm.edit({there: write}):
        yield


class Splices:
    """Logits of a batch as they are, and with other activations in place of counted ones.

    What runs before the place is computed once a batch.
    """

    def __init__(self, lm: LM, dictionary: Dictionary) -> None:
        """Splice in place of what a dictionary explains."""
        self.lm = lm
        self.here, self.there = dictionary.hookpoint, dictionary.explains
        self._replay = Replay(lm, self.there)

    def original(self, batch: TokenBatch) -> tuple[Tensor, Activations]:
        """Return logits [batch, time, vocab], and the counted tokens' activations.

        Raises:
            UserError: activations are NaN or infinite, or a transcoder's input comes after its
                target.
        """
        found: Activations = {}

        def reading(name: str) -> Edit:
            def keep(x: Tensor, tokens: Tensor | None) -> Tensor:
                found[name] = x.clone()  # later code may change it in place (Falcon)
                return x

            return keep

        with self.lm.edit({name: reading(name) for name in {self.here, self.there}}):
            logits = self._replay.record(batch.tokens, batch.attention_mask)
        if next(iter(found)) != self.here:
            raise comes_after(self.here, self.there)
        return logits, counted_of(found, batch)

    def spliced(self, batch: TokenBatch, values: Float[Tensor, "*tokens d_out"]) -> Tensor:
        """Return logits with these in place of the counted tokens' activations.

        `batch` is the one that `original` was given last; `values` may be one row for all.
        """
        with self.lm.edit({self.there: putting(values, batch.counted)}):
            return self._replay.again()


def putting(values: Float[Tensor, "*tokens d_out"], counted: Bool[Tensor, "batch time"]) -> Edit:
    """Return the edit that puts activations, or one row for all, in place of counted ones."""

    def put(y: Tensor, tokens: Tensor | None) -> Tensor:
        out = y.clone()
        out[counted.to(y.device)] = values.to(y)
        return out

    return put


def comes_after(here: str, there: str) -> UserError:
    """Return what is wrong where a transcoder's input comes after its target."""
    return UserError(
        f"`{here}` comes after `{there}` in the model, so what is made of it cannot take that "
        "one's place",
        "a transcoder's input comes before its target; `loss_tokens=0` leaves the effect on the "
        "loss out",
    )
