"""Many prompts continued at once: what a batch of texts needs that a single one does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor


class Draws(LogitsProcessor):
    """Puts that token first which is drawn for a row, with a generator of its own.

    The likeliest token of what this returns is the one that `torch.multinomial` draws from that
    row alone, with the same seed: argmax of p / q, q exponentially distributed. So what is written
    for a prompt does not depend on the others.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self._temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "rows time"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        p = torch.softmax(scores / self._temperature, -1)
        for row, generator in zip(p, self._generators, strict=True):
            row.div_(torch.empty_like(row).exponential_(generator=generator))
        return p


def padded_left(
    rows: Sequence[Int[Tensor, " _"]], pad: int
) -> tuple[Int[Tensor, "rows time"], Int[Tensor, "rows time"]]:
    """Return rows of ids with padding in front, and the attention mask."""
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), pad, device=rows[0].device)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, longest - len(row) :] = row
        mask[number, longest - len(row) :] = 1
    return tokens, mask


def padded_right(
    rows: Sequence[Int[Tensor, " _"]],
) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    """Return rows of ids with zeros behind, and which are none of these."""
    tokens = pad_sequence(list(rows), batch_first=True)
    ends = torch.tensor([[len(row)] for row in rows], device=tokens.device)
    return tokens, torch.arange(tokens.shape[1], device=tokens.device) < ends


def upto_end(tokens: Int[Tensor, " time"], start: int, ends: Sequence[int]) -> Int[Tensor, " kept"]:
    """Return a text without what stands behind the first end-of-text token written."""
    for place, token in enumerate(tokens[start:].tolist(), start):
        if token in ends:
            return tokens[: place + 1]
    return tokens
