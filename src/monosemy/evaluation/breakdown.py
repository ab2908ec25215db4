"""Errors by where a token stands, and by how common it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.corpus import TokenBatch
from monosemy.evaluation.result import Table
from monosemy.metrics import Breakdown, interval
from monosemy.metrics.table import Better, MetricRow, MetricValue

_SAID: dict[str, tuple[str, Better, str]] = {
    "FVU": ("", "", "squared error over squared distance from the training mean"),
    "CE increase": ("nats", "", "rise of the loss of predicting what follows the token"),
}

FIFTHS = ("commonest fifth", "second", "third", "fourth", "rarest fifth")
"""Of the training text's tokens: kinds of token by how common they are, as much text in each."""


class Kinds:
    """Kinds of tokens: by place in the row, and by how often the training text has them."""

    def __init__(self, context: int, training: Int[Tensor, " tokens"], vocabulary: int) -> None:
        """Divide places at powers of four, tokens at fifths of the training text."""
        self.edges = [4**i for i in range(1, 8) if 4**i < context]
        counts = torch.bincount(training, minlength=vocabulary)
        order = counts.argsort(descending=True, stable=True)
        before = counts[order].cumsum(0) - counts[order]
        fifth = (before * len(FIFTHS) / max(len(training), 1)).long()
        self.fifth = torch.zeros_like(order).scatter(0, order, fifth.clamp(max=len(FIFTHS) - 1))

    @property
    def names(self) -> dict[str, Sequence[str]]:
        """The kinds of both divisions."""
        starts = [0, *self.edges]
        ends = [f" to {edge - 1}" for edge in self.edges] + [" on"]
        places = [f"{start}{end}" for start, end in zip(starts, ends, strict=True)]
        return {"by place in the row": places, "by how common the token is": FIFTHS}

    def of(self, batch: TokenBatch) -> list[Int[Tensor, "batch time"]]:
        """Return the kinds of each token by both divisions."""
        place = batch.attention_mask.long().cumsum(1) - 1
        return [
            torch.bucketize(place, torch.tensor(self.edges), right=True),
            self.fifth[batch.tokens],
        ]


@dataclass(slots=True)
class ErrorsByKind:
    """Sums of errors of several columns, for each kind of token."""

    kinds: Kinds
    columns: Sequence[str]
    _errors: list[Breakdown] = field(init=False)
    _losses: list[Breakdown] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [len(names) for names in self.kinds.names.values()]
        count = 2 + len(self.columns)
        self._errors = [Breakdown(size, count) for size in sizes]
        self._losses = [Breakdown(size, count) for size in sizes]

    def add_errors(
        self,
        batch: TokenBatch,
        groups: Int[Tensor, "batch time"],
        spread: Float[Tensor, " tokens"],
        errors: Sequence[Float[Tensor, " tokens"]],
    ) -> None:
        """Add counted tokens' squared distance from the mean, and squared error of each column."""
        columns = [torch.ones_like(spread), spread, *errors]
        rows = torch.stack([c.double().cpu() for c in columns], 1).numpy()
        self._add(self._errors, batch, groups, batch.counted, rows)

    def add_losses(
        self,
        batch: TokenBatch,
        groups: Int[Tensor, "batch time"],
        counted: Bool[Tensor, "batch time"],
        rows: Float[np.ndarray, "tokens columns"],
    ) -> None:
        """Add tokens' losses: 1, the model's own, and that with each column in place."""
        self._add(self._losses, batch, groups, counted, rows)

    def _add(
        self,
        into: Sequence[Breakdown],
        batch: TokenBatch,
        groups: Tensor,
        counted: Tensor,
        rows: np.ndarray,
    ) -> None:
        for breakdown, kinds in zip(into, self.kinds.of(batch), strict=True):
            breakdown.add(rows, kinds[counted].numpy(), groups[counted].numpy())

    def tables(self, weights: Float[np.ndarray, "draws groups"]) -> list[Table]:
        """Return a table for each division: figures of each column by kind."""
        found = []
        for number, (title, names) in enumerate(self.kinds.names.items()):
            rows = self._rows("FVU", self._errors[number], weights, _share_of_spread)
            rows += self._rows("CE increase", self._losses[number], weights, _increase)
            shares = self._errors[number].total()[0, :, 0]
            whole = (shares / shares.sum()).tolist()
            share: list[MetricValue | None] = [MetricValue(v, v, v) for v in whole]
            head = MetricRow("tokens", "share", "", "of all that are measured", share)
            found.append(Table(list(names), [head, *rows], title))
        return found

    def _rows(
        self,
        figure: str,
        breakdown: Breakdown,
        weights: np.ndarray,
        of: Callable[[np.ndarray], np.ndarray],
    ) -> list[MetricRow]:
        total = breakdown.total()
        if not total.any():
            return []
        points, draws = of(total)[0], of(breakdown.weighted(weights))
        names = [figure, *(f"{figure}, {column}" for column in self.columns[1:])]
        rows = []
        for name, values, drawn in zip(names, points.T, draws.T, strict=True):
            cells = [_value(value, some) for value, some in zip(values, drawn, strict=True)]
            rows.append(MetricRow(name, *_SAID[figure], cells))
        return rows


def _share_of_spread(sums: Float[np.ndarray, "draws kinds sums"]) -> np.ndarray:
    return _over(sums[..., 2:], sums[..., 1:2])


def _increase(sums: Float[np.ndarray, "draws kinds sums"]) -> np.ndarray:
    return _over(sums[..., 2:] - sums[..., 1:2], sums[..., :1])


def _over(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    none = np.full(sums.shape, np.nan)
    return np.divide(sums, counts, out=none, where=counts > 0)


def _value(point: float, draws: Float[np.ndarray, " draws"]) -> MetricValue | None:
    """Return a figure; None where there is no such token."""
    if not np.isfinite(point):
        return None
    return MetricValue(float(point), *interval({"d": draws[np.isfinite(draws)]})["d"])
