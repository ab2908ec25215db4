"""Figures of several dictionaries and baselines side by side, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher", ""]


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A figure and the interval that holds it with 95% confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric for every column of a table.

    Attributes:
        name: as shown, such as "FVU".
        unit: "" for a plain number, "share" for a fraction of one (shown as a percentage), or a
            name shown beside the metric, such as "nats".
        better: which way is better; "" where neither is.
        explanation: one sentence for readers who do not know the metric.
        values: one a column; None where the metric does not apply.
        judgement: what the first column's value says, in plain words; "" where nothing is said.
        remedy: what to do about it; "" where nothing is to be done.
    """

    name: str
    unit: str
    better: Better
    explanation: str
    values: list[MetricValue | None]
    judgement: str = ""
    remedy: str = ""
