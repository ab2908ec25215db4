"""Activations taken from the model as text streams through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.activations.ahead import Ahead
from monosemy.corpus import Place, TokenBatch, TokenStream
from monosemy.device import has_fast_bf16
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.progress import Stages

Activations = dict[str, Tensor]
"""Activations of the same tokens at one or several hook points: name -> [tokens, d_in]."""


class LiveActivations:
    """Iterate over the counted tokens' activations, one batch of text at a time.

    One forward pass, which stops after the last hook point, serves all hook points. Each
    iteration reads text from the same `place` on. `autocast` as for `counted_activations`;
    `stages` counts the time of text and model. On a GPU text is read in a thread of its own.
    """

    def __init__(
        self,
        lm: LM,
        stream: TokenStream,
        hookpoints: Sequence[str],
        *,
        place: Place | None = None,
        autocast: bool = False,
        stages: Stages | None = None,
    ) -> None:
        self.lm, self.stream, self.hookpoints = lm, stream, list(hookpoints)
        self._begins = self.place = place or Place()
        """Where the text goes on after the last activations given."""
        self.autocast, self.stages = autocast, stages or Stages()

    def __iter__(self) -> Iterator[Activations]:
        text = self.stream.read(self._begins)
        if self.lm.device.type == "cpu":  # reading would take the model's cores
            yield from self._run(text)
            return
        ahead = Ahead(text)
        try:
            yield from self._run(ahead)
        finally:
            ahead.close()

    def _run(self, text: Iterator[TokenBatch]) -> Iterator[Activations]:
        while True:
            with self.stages("text"):
                batch = next(text, None)
            if batch is None:
                return
            with self.stages("model"):
                values = counted_activations(self.lm, batch, self.hookpoints, self.autocast)
            self.place = batch.place
            yield values


def counted_activations(
    lm: LM, batch: TokenBatch, hookpoints: Sequence[str], autocast: bool = False
) -> Activations:
    """Return activations of a batch's counted tokens, in fp32, from one forward pass.

    Args:
        lm: the model.
        batch: text.
        hookpoints: where.
        autocast: compute the model's matrix products in bf16. Activations then differ by some
            1e-5 to 1e-4 of their variance: good enough to train on, not to measure on.

    Raises:
        UserError: some are NaN or infinite; names the documents they came from.
    """
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=autocast):
        captured = _capture(lm, batch, hookpoints)
    return counted_of(captured, batch)


def counted_of(captured: Activations, batch: TokenBatch) -> Activations:
    """Return the counted tokens' activations, in fp32, of those of all: [batch, time, d].

    Raises:
        UserError: some are NaN or infinite; names the documents they came from.
    """
    values = {name: x[batch.counted.to(x.device)].float() for name, x in captured.items()}
    for name, x in values.items():
        _check_finite(x, name, batch)
    return values


def _capture(lm: LM, batch: TokenBatch, hookpoints: Sequence[str]) -> Activations:
    """Return activations of all rows, in passes of as many as the device's memory holds.

    Raises:
        UserError: it does not hold a pass of one row.
    """
    while True:
        rows = min(lm.rows_at_once or len(batch.tokens), len(batch.tokens))
        parts = zip(batch.tokens.split(rows), batch.attention_mask.split(rows), strict=True)
        try:
            passes = [lm.capture(t, hookpoints, attention_mask=mask) for t, mask in parts]
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise UserError(
                    f"{lm.device} has too little memory for one row of {batch.tokens.shape[1]} "
                    f"tokens through {lm.name}",
                    "choose a smaller context, or load the model in bf16",
                ) from error
            lm.rows_at_once = rows // 2
            continue
        if len(passes) == 1:
            return passes[0]
        return {name: torch.cat([p[name] for p in passes]) for name in passes[0]}


def can_autocast(lm: LM) -> bool:
    """Say whether bf16 products would be faster than the model's own here."""
    in_full = all(p.dtype == torch.float32 for p in lm.model.parameters())
    return in_full and has_fast_bf16(lm.device)


def rows_not_finite(x: Float[Tensor, "rows d"]) -> Bool[Tensor, " rows"] | None:
    """Return which rows hold a NaN or infinity, on the CPU; None where none does."""
    if bool(x.sum().isfinite()):  # nothing to look for, at a fifth of the cost of looking
        return None
    bad = ~torch.isfinite(x).all(-1).cpu()
    return bad if bool(bad.any()) else None


def _check_finite(x: Tensor, hookpoint: str, batch: TokenBatch) -> None:
    bad = rows_not_finite(x)
    if bad is None:
        return
    numbers = batch.document[batch.counted][bad].unique().tolist()
    names = [batch.documents[i].id for i in numbers if i >= 0]
    raise UserError(
        f"activations at `{hookpoint}` are NaN or infinite on {int(bad.sum())} tokens, in "
        + ", ".join(f"`{name}`" for name in names[:5]),
        "the model overflows on this text: load it in float32 or bfloat16, or leave the text out",
    )
