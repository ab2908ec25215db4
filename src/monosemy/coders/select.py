"""Which places fire: one encoder product in bf16, then exact choices among few candidates.

The product is the one dense thing in a training step. It runs in bf16 where the hardware has it, a
piece of tokens at a time into one kept buffer: fresh memory would cost more than the arithmetic.
Candidates are found in it with some to spare and computed again in fp32; who fires is decided
there, so that bf16 never meets a threshold.

Looking for the largest of [tokens, width] scores goes by groups of columns. The k-th largest of
the groups' maxima bounds the k-th largest score from below, so few groups need a second look. Only
positive scores matter, and the bits of positive floats, read as integers, are in the same order:
integers compare several times faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.coders.support import DenseSupport, SparseSupport, Support, dot
from monosemy.device import has_fast_bf16

SLACK = 0.02
"""How far rounding x and W to bf16 may move a score, where they are scaled as in training."""
_ROUNDING = 3 * 2**-8
"""Beside that, in shares of a score: it is rounded, the score it is compared to, and the bound."""

_BUFFER = 2**24
"""Scores held at once."""
_DENSE_ABOVE = 0.15
"""Share of places from which a step is faster with dense products."""
_GROUPS = 8
"""Groups of columns for each score looked for: fewer let in more candidates, more take longer."""
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}

Choice = tuple[Support, Tensor | None]
"""A support, and the encoder's output there in fp32 if it was computed on the way."""

Places = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]
"""Tokens and features, token by token."""


class Scorer:
    """Computes encoder products and chooses places; coders trained together share one.

    Scores are x W^T + b, and where a scale for each feature is given, that times the scale; only
    positive ones are ever chosen. Each method returns a support, and x W^T + b there in fp32 where
    it was computed on the way.
    """

    def __init__(self, device: torch.device, *, dtype: torch.dtype | None = None) -> None:
        fast = torch.bfloat16 if has_fast_bf16(device) else torch.float32
        self.dtype = dtype or fast
        self._buffer = torch.empty(0, dtype=self.dtype, device=device)
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def topk(
        self,
        x: Float[Tensor, "tokens d"],
        W: Tensor,
        b: Float[Tensor, " width"],
        k: int,
        scale: Float[Tensor, " width"] | None = None,
    ) -> tuple[SparseSupport, Tensor]:
        """Choose the k largest scores of each token."""
        found = [
            _places_above(piece, _loosened(_kth_of_rows(piece, k)))
            for piece in self._pieces(x, W, b, k, scale)
        ]
        support, values = self._recompute(found, x, W, b)
        # Few more than k of each row are left: lay them out as a table and cut it.
        counts = support.offsets.diff()
        column = torch.arange(len(values), device=x.device) - support.at_tokens(
            support.offsets[:-1]
        )
        longest = int(counts.max()) if len(counts) else 0
        if longest <= k:
            return support, values
        table = values.new_full((len(x), longest), -torch.inf)
        table[support.tokens, column] = _scaled(values, support, scale)
        kth = table.topk(k, dim=1, sorted=False)
        keep = torch.zeros_like(table, dtype=torch.bool).scatter_(1, kth.indices, True)
        keep_places = keep[support.tokens, column]
        return support.subset(keep_places), values[keep_places]

    @torch.no_grad()
    def batch_topk(
        self,
        x: Float[Tensor, "tokens d"],
        W: Tensor,
        b: Float[Tensor, " width"],
        count: int,
        scale: Float[Tensor, " width"] | None = None,
    ) -> tuple[SparseSupport, Tensor]:
        """Choose the `count` largest scores of the whole batch, the first of equal ones."""
        level: Tensor | None = None
        while True:
            found = []
            for piece in self._pieces(x, W, b, count // max(len(x), 1), scale):
                if level is None:
                    level = _level_of_all(piece, count * piece.n_tokens // max(len(x), 1))
                found.append(_places_above(piece, _loosened(level)))
            support, values = self._recompute(found, x, W, b)
            scores = _scaled(values, support, scale)
            last = kth_largest(scores, count) if len(scores) >= count else scores.new_zeros(())
            # Nothing was missed, unless the level of the first piece was too high for the others.
            if level is None or level <= 0 or last + SLACK >= level:
                break
            level = (0.9 * level - SLACK).clamp_min(0)
        if len(values) <= count:
            return support, values
        keep = scores >= last
        surplus = int(keep.sum()) - count
        if surplus:
            keep[(scores == last).nonzero().squeeze(1)[-surplus:]] = False
        return support.subset(keep), values[keep]

    @torch.no_grad()
    def positive(
        self, x: Float[Tensor, "tokens d"], W: Tensor, b: Float[Tensor, " width"]
    ) -> Support:
        """Choose every positive score, and those that bf16 may have put below zero.

        Where so many are that dense products are faster, every place is chosen.
        """
        found = []
        for piece in self._pieces(x, W, b, 1):
            places = _places_above(piece, x.new_zeros(()))
            if len(places[1]) > _DENSE_ABOVE * piece.n_tokens * len(W):
                return DenseSupport(len(x), len(W), self.dtype)
            found.append(places)
        return self._join(found, len(x), len(W))

    def _pieces(
        self, x: Tensor, W: Tensor, b: Tensor, k: int, scale: Tensor | None = None
    ) -> Iterator[_Piece]:
        """Yield scores, too high by `SLACK`, so that no positive one is below 0.

        Each piece is overwritten by the next; about k scores of each row are looked for.
        """
        width = len(W)
        self._piece = max(min(_BUFFER // width, len(x)), 1)
        if self._buffer.numel() < self._piece * width:
            self._buffer = self._buffer.new_empty(self._piece * width)
        bias = (b if scale is None else b * scale) + SLACK
        rounded = bias.to(self.dtype)
        rest = bias - rounded.to(b.dtype)
        weights = self._with_columns("W", W, rounded, rest, scale=scale)
        inputs = self._with_columns("x", x, 1.0, 1.0)
        for part in inputs.split(self._piece):
            out = self._buffer[: len(part) * width].view(len(part), width)
            yield _Piece.of(torch.mm(part, weights.T, out=out), k)

    def _with_columns(
        self,
        name: str,
        rows: Float[Tensor, "n d"],
        *columns: Float[Tensor, " n"] | float,
        scale: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n d_and_more"]:
        """Return scaled rows and more columns in the product's dtype, in memory that is kept.

        The bias goes into the product as two columns, rounded and what rounding left: adding it
        afterwards would take another pass over all scores, and lose half its digits.
        """
        n, d = rows.shape
        shape = (n, d + len(columns))
        kept = self._kept.get(name)
        if kept is None or kept.shape != shape:
            kept = self._kept[name] = rows.new_empty(shape, dtype=self.dtype)
        if scale is None:
            kept[:, :d].copy_(rows)
        else:
            torch.mul(rows, scale[:, None], out=kept[:, :d])
        for number, column in enumerate(columns):
            kept[:, d + number] = column
        return kept

    def _recompute(
        self, found: list[Places], x: Tensor, W: Tensor, b: Tensor
    ) -> tuple[SparseSupport, Tensor]:
        """Return the candidates that are positive in fp32, with x W^T + b there."""
        support = self._join(found, len(x), len(W))
        values = dot(x, W, support) + support.at(b)
        keep = values > 0
        return (support, values) if keep.all() else (support.subset(keep), values[keep])

    def _join(self, found: list[Places], n_tokens: int, width: int) -> SparseSupport:
        """Return the support of places found piece by piece."""
        nothing = torch.zeros(0, dtype=torch.int64, device=self._buffer.device)
        tokens = [token + number * self._piece for number, (token, _) in enumerate(found)]
        features = [feature for _, feature in found]
        return SparseSupport.from_places(
            torch.cat(tokens or [nothing]), torch.cat(features or [nothing]), n_tokens, width
        )


def _scaled(values: Tensor, support: SparseSupport, scale: Tensor | None) -> Tensor:
    return values if scale is None else values * support.at(scale)


def kth_largest(values: Float[Tensor, " n"], k: int) -> Float[Tensor, ""]:
    """Return the k-th largest of all, the smallest if there are fewer, 0 of nothing."""
    if not len(values):
        return values.new_zeros(())
    return values.kthvalue(min(max(len(values) - k + 1, 1), len(values))).values


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some tokens' scores, with columns in groups: every (width / size)-th one is a group.

    Maxima over the middle dimension of a view are far faster than over the last.
    """

    bits: Int[Tensor, "tokens size groups"]
    """Of the scores."""
    maxima: Int[Tensor, "tokens groups"]
    dtype: torch.dtype
    """Of the scores."""

    @classmethod
    def of(cls, scores: Float[Tensor, "tokens width"], k: int) -> _Piece:
        """Group so that the k largest scores seldom meet in a group, up to 32 columns in one."""
        tokens, width = scores.shape
        enough = max(64, _GROUPS * k)
        size = next((n for n in (32, 16, 8, 4, 2) if width % n == 0 and width // n >= enough), 1)
        bits = scores.view(_BITS[scores.dtype]).view(tokens, size, width // size)
        return cls(bits, bits.amax(1), scores.dtype)

    @property
    def n_tokens(self) -> int:
        return len(self.bits)

    def scores(self, bits: Tensor) -> Tensor:
        """Return what bits stand for."""
        return bits.view(self.dtype).float()


def _places_above(piece: _Piece, bound: Float[Tensor, "*one"]) -> Places:
    """Return the places of scores above a bound of at least 0, or each token's own bound."""
    tokens, size, n_groups = piece.bits.shape
    bits = bound.to(piece.dtype).view(piece.bits.dtype).expand(tokens)
    token, group = (piece.maxima > bits[:, None]).nonzero(as_tuple=True)
    if len(token) > 0.5 * tokens * n_groups:
        token, feature = (piece.bits.view(tokens, -1) > bits[:, None]).nonzero(as_tuple=True)
        return token, feature
    inside = piece.bits.transpose(1, 2)[token, group] > bits[token, None]
    place = inside.view(-1).nonzero().squeeze(1)
    which = place // size
    return token[which], place % size * n_groups + group[which]


def _kth_of_rows(piece: _Piece, k: int) -> Float[Tensor, " tokens"]:
    """Return a number that at least k scores of each row reach, or 0."""
    if piece.maxima.shape[1] < k:
        return torch.zeros(piece.n_tokens, device=piece.bits.device)
    return piece.scores(piece.maxima.topk(k, dim=1, sorted=False).values.amin(1))


def _level_of_all(piece: _Piece, count: int) -> Float[Tensor, ""]:
    """Return a number that somewhat more than `count` of these scores reach, at least 0."""
    maxima = piece.scores(piece.maxima.flatten())
    if len(maxima) < 1.1 * count:
        return maxima.new_zeros(())
    return kth_largest(maxima, int(1.1 * count)).clamp_min(0)


def _loosened(level: Float[Tensor, "*one"]) -> Float[Tensor, "*one"]:
    """Return a bound, at least 0, that whatever truly reaches a level of scores exceeds."""
    return ((1 - _ROUNDING) * level - SLACK).clamp_min(0)
