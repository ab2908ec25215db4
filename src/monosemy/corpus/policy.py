"""Which positions count: one rule for training, evaluation, index and steering."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from monosemy.errors import UserError, nearest

_Choice = Literal["all", "last", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """Which positions of a row of tokens count.

    By default all but padding and special tokens. Padding is known by the attention mask, never
    by a token's id, so that a real end-of-text token is not taken for padding where both share
    an id.
    """

    special: bool = False
    """Count special tokens (BOS, EOS and the tokenizer's others)?"""
    padding: bool = False
    """Count padding? Only of use to see everything."""
    first: int | None = None
    """Count this many positions only, from `start` on; None: to the end of the row."""
    start: int = 0
    """The first position that counts; 0 is the row's first token that is not padding."""
    choose: _Choice = "all"
    """Of the positions that remain in a row, count all, the last, or one at random."""
    seed: int = 0
    """Of the random choice, which besides depends on the row's tokens alone."""

    def __post_init__(self) -> None:
        if self.start < 0:
            raise UserError(f"start is {self.start}", "allowed: 0 and above")
        if self.first is not None and self.first < 1:
            raise UserError(f"first is {self.first}", "allowed: 1 and above, or None for no limit")
        if self.choose not in get_args(_Choice):
            raise UserError(f"choose is `{self.choose}`", "allowed: `all`, `last`, `random`")

    @classmethod
    def everything(cls) -> TokenPolicy:
        """Count every position, special tokens and padding included."""
        return cls(special=True, padding=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenPolicy:
        """Return the policy that `to_dict` described.

        Raises:
            UserError: a key or value is unknown, as in a file of a later version.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                hint = nearest(key, known) or f"known: {', '.join(known)}"
                raise UserError(f"unknown key `{key}` in a token policy", hint)
        return cls(**values)

    def mask(
        self,
        tokens: Int[Tensor, "batch context"],
        attention_mask: Bool[Tensor, "batch context"],
        special_ids: Collection[int],
        inside: Bool[Tensor, "batch context"] | None = None,
    ) -> Bool[Tensor, "batch context"]:
        """Return True where a position counts.

        Args:
            tokens: token ids.
            attention_mask: True at tokens, False at padding, on whichever side that is.
            special_ids: the tokenizer's special tokens.
            inside: False where a document's own `spans` let nothing count.
        """
        position = _positions(attention_mask)
        counts = position >= self.start if self.start else torch.ones_like(attention_mask)
        if self.first is not None:
            counts &= (position >= 0) & (position < self.start + self.first)
        if not self.padding:
            counts &= attention_mask
        if not self.special:
            special = torch.tensor(sorted(special_ids), dtype=tokens.dtype, device=tokens.device)
            counts &= ~(torch.isin(tokens, special) & attention_mask)
        if inside is not None:
            counts &= inside
        if self.choose == "last":
            return _only(counts, position)
        if self.choose == "random":
            return _only(counts, _scores(tokens, attention_mask, position, self.seed))
        return counts


def _positions(attention_mask: Bool[Tensor, "batch context"]) -> Int[Tensor, "batch context"]:
    """Return each position's distance from the row's first token, negative in left padding."""
    index = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return index - attention_mask.int().argmax(dim=1, keepdim=True)


def _only(
    counts: Bool[Tensor, "batch context"], score: Int[Tensor, "batch context"]
) -> Bool[Tensor, "batch context"]:
    """Return True at each row's position of highest score among those that count, if any does."""
    lowest = torch.iinfo(score.dtype).min
    best = score.masked_fill(~counts, lowest).argmax(dim=1, keepdim=True)
    return counts & torch.zeros_like(counts).scatter(1, best, True)


def _scores(
    tokens: Int[Tensor, "batch context"],
    attention_mask: Bool[Tensor, "batch context"],
    position: Int[Tensor, "batch context"],
    seed: int,
) -> Int[Tensor, "batch context"]:
    """Return random numbers that a row's tokens and the seed decide, and padding does not."""
    mixed = _mix(tokens.long() + _mix(position + _mix(torch.full_like(position, seed))))
    row = (mixed * attention_mask).sum(dim=1, keepdim=True)
    return _mix(row + _mix(position))


def _mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Scramble 64 bits (the finaliser of SplitMix64, shifts being arithmetic)."""
    x = (x + 0x1E3779B97F4A7C15) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 30)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31)
