"""Figures as people read them; the page and the terminal show the same digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from monosemy.metrics.table import MetricRow, MetricValue

MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric value ready to be shown.

    `best` marks the best of its row and those its interval does not tell apart from the best.
    """

    value: str
    interval: str
    best: bool


def figure(value: float, digits: int = 3) -> str:
    """`value` with about `digits` significant digits, never in scientific notation below 1e6."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 6 or size < -4:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def count(value: float) -> str:
    """A large count in short: 950, 12.5k, 3.2M, 1.1B."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A fraction of one as a percentage, exact enough that a rare event is not shown as 0%."""
    if not math.isfinite(share):
        return MISSING
    if share == 0:
        return "0%"
    if abs(share) < 1e-6:
        return f"{100 * share:.0e}%".replace("e-0", "e-")
    decimals = max(0, 1 - math.floor(math.log10(abs(100 * share))))
    return f"{100 * share:.{min(decimals, 5)}f}%" if abs(share) < 1 else f"{100 * share:.0f}%"


def metric_cells(row: MetricRow) -> list[Cell | None]:
    """The cells of a row, with as many decimals as the narrowest interval in it deserves."""
    factor = 100 if row.unit == "share" else 1
    sign = "%" if row.unit in ("share", "%") else ""
    decimals = _decimals([v for v in row.values if v is not None], factor)

    def shown(value: float) -> str:
        if not math.isfinite(value):
            return MISSING
        value *= factor
        size = math.floor(math.log10(abs(value))) if value else 0
        # Four digits are enough for a baseline that is far off the others.
        text = f"{value:,.{max(0, min(decimals, 3 - size)) if size > 0 else decimals}f}"
        return f"{'0' if value == 0 else text.replace('-', _MINUS)}{sign}"

    best = _best(row)
    return [
        None
        if v is None
        else Cell(
            value=shown(v.value),
            interval="" if v.low == v.high else f"{shown(v.low)} to {shown(v.high)}",
            best=best is not None and _not_worse(v, best, row.better),
        )
        for v in row.values
    ]


def _decimals(values: list[MetricValue], factor: int) -> int:
    widths = [factor * (v.high - v.low) for v in values if math.isfinite(v.high - v.low)]
    widths = [w for w in widths if w > 0]
    if not widths:
        return 3
    return min(4, max(0, -math.floor(math.log10(min(widths) / 3))))


def _best(row: MetricRow) -> MetricValue | None:
    values = [v for v in row.values if v is not None and math.isfinite(v.value)]
    if not row.better or len(values) < 2:
        return None
    choose = min if row.better == "lower" else max
    return choose(values, key=lambda v: v.value)


def _not_worse(value: MetricValue, best: MetricValue, better: str) -> bool:
    if not math.isfinite(value.value):
        return False
    return value.low <= best.high if better == "lower" else value.high >= best.low
