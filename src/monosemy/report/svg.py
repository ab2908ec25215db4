"""Small pictures as inline SVG, in the colours of the page they stand in.

Shapes are drawn in a box that stretches to the place it is given; labels are HTML beside it, so
that text keeps its size on a phone. Only numbers reach the markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from monosemy.metrics.table import MetricValue
from monosemy.report.numbers import count, figure, percent

_BOX = '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
_MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to 0..100 over the finite values it was made for."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def around(cls, values: Sequence[float], *, log_from: float, zero: bool = False) -> Axis:
        """Fit an axis; logarithmic where the largest value is `log_from` times the smallest.

        Args:
            values: what must fit on it; at least one finite.
            log_from: ratio from which a logarithmic axis serves better.
            zero: let a linear axis of positive values begin at 0.
        """
        finite = [v for v in values if math.isfinite(v)]
        low, high = min(finite), max(finite)
        is_log = low > 0 and high / low >= log_from
        if zero and not is_log and low > 0:
            low = 0.0
        if low == high:
            low, high = (low - 0.5, high + 0.5) if low <= 0 else (low * 0.9, high * 1.1)
        return cls(low, high, is_log)

    def place(self, value: float) -> float:
        """Where `value` stands, 0 to 100."""
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * share, 2)

    def ticks(self, most: int = 4) -> list[float]:
        """Round values on the axis, at most `most`."""
        ticks = self._log_ticks() if self.is_log else self._linear_ticks(most)
        while len(ticks) > most:
            ticks = ticks[::2]
        return ticks

    def _linear_ticks(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(n * step, 12) for n in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        decades = [10.0**p for p in powers if self.low <= 10.0**p <= self.high]
        if len(decades) > 1:
            return decades
        steps = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        return [s for s in steps if self.low <= s <= self.high]


@dataclass(frozen=True, slots=True)
class Tick:
    """A label beside a picture; `place` is 0 to 100 from the left or the bottom."""

    place: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One training figure over tokens, ready for the template."""

    name: str
    last: str
    is_log: bool
    svg: Markup
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def draw_curve(name: str, tokens: Sequence[int], values: Sequence[float]) -> Curve | None:
    """Draw a training curve; None where there is no finite value to draw."""
    points = [(x, y) for x, y in zip(tokens, values, strict=True) if math.isfinite(y)]
    if not points:
        return None
    last = points[-1][1]
    stride = max(1, len(points) // _MOST_POINTS)
    points = points[::-1][::stride][::-1]  # the last point always stays
    x_axis = Axis.around([0.0, *(float(x) for x, _ in points)], log_from=math.inf)
    heights = [y for _, y in points]
    # A curve that stays at zero needs a top to be at the bottom of.
    y_axis = Axis.around(heights if any(heights) else [0.0, 0.1], log_from=20, zero=True)
    path = " ".join(f"{x_axis.place(x)},{100 - y_axis.place(y)}" for x, y in points)
    grid = "".join(
        f'<path class="grid" d="M0 {100 - y_axis.place(t)}H100"/>' for t in y_axis.ticks(4)
    )
    area = f"{x_axis.place(points[0][0])},100 {path} 100,100"
    label = percent if name.endswith("share") else figure
    shapes = f'{grid}<polygon class="area" points="{area}"/><polyline points="{path}"/>'
    title = Markup("{} against training tokens: from {} to {}").format(
        name, label(points[0][1]), label(last)
    )
    return Curve(
        name=name,
        last=label(last),
        is_log=y_axis.is_log,
        svg=Markup(_BOX).format(title, Markup(shapes)),
        x_ticks=[Tick(x_axis.place(t), count(t)) for t in x_axis.ticks(4)],
        y_ticks=[Tick(y_axis.place(t), _tick(t, name)) for t in y_axis.ticks(4)],
    )


def _tick(value: float, name: str) -> str:
    if name.endswith("share"):
        return f"{100 * value:.3g}%"
    return count(value) if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Histogram:
    """How strong a feature's activations are, ready for the template."""

    svg: Markup
    low: str
    high: str
    is_log: bool


def draw_histogram(edges: Sequence[float], counts: Sequence[int]) -> Histogram | None:
    """Draw a histogram whose bars take the colour of the activation they stand for.

    Counts are drawn on a logarithmic scale where a few bars would hide the others.
    """
    if not counts or max(counts) <= 0:
        return None
    low, high = edges[0], edges[-1]
    is_log = max(counts) >= 50 * min(c for c in counts if c > 0)
    top = math.log1p(max(counts)) if is_log else max(counts)
    bars = []
    for left, right, n in zip(edges[:-1], edges[1:], counts, strict=True):
        if n <= 0:
            continue
        x, width = 100 * (left - low) / (high - low), 100 * (right - left) / (high - low)
        height = max(2.0, 100 * (math.log1p(n) if is_log else n) / top)
        heat = 0.3 + 0.7 * (left + right) / 2 / high if high > 0 else 1
        bars.append(
            f'<rect x="{x:.2f}" y="{100 - height:.1f}" width="{0.86 * width:.2f}" '
            f'height="{height:.1f}" opacity="{heat:.2f}">'
            f"<title>{figure(left)} to {figure(right)}: {n:,} tokens</title></rect>"
        )
    title = f"histogram of activations from {figure(low)} to {figure(high)}"
    svg = Markup(_BOX).format(title, Markup("".join(bars)))
    return Histogram(svg, figure(low), figure(high), is_log)


def draw_intervals(values: Sequence[MetricValue | None]) -> Markup:
    """One line a column: a dot and its 95% interval, all on one axis; decoration for a table row.

    The figures stand in the row as text, so that the picture is hidden from screen readers.
    """
    known = [v for v in values if v is not None and math.isfinite(v.value)]
    if not known:
        return Markup("")
    ends = [e for v in known for e in (v.value, v.low, v.high)]
    axis = Axis.around(ends, log_from=12)
    lines = []
    for index, v in enumerate(values):
        if v is None or not math.isfinite(v.value):
            continue
        y = round(100 * (index + 0.5) / len(values), 1)
        low, mid, high = (
            _inset(axis, e if math.isfinite(e) else v.value) for e in (v.low, v.value, v.high)
        )
        # A line of no length with round caps is a dot that stays round when the box is stretched.
        lines.append(
            f'<g class="column-{index}"><path class="rail" d="M0 {y}H100"/>'
            f'<path class="range" d="M{low} {y}H{high}"/><path class="dot" d="M{mid} {y}h0"/></g>'
        )
    return Markup(
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(Markup("".join(lines)))


def _inset(axis: Axis, value: float) -> float:
    return round(4 + 0.92 * axis.place(value), 2)
