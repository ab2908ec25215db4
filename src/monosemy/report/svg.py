"""Small pictures as inline SVG, in the colours of the page they stand in.

Shapes are drawn in a box that stretches to the place it is given; labels are HTML beside it, so
that text keeps its size on a phone. Only numbers reach the markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def draw_histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    of: str = "activations",
    unit: str = "tokens",
    label: Callable[[float], str] = figure,
) -> Histogram | None:
    """Draw a histogram whose bars take the colour of the activation they stand for.

    Counts are drawn on a logarithmic scale where a few bars would hide the others.

    Args:
        edges: n + 1, ascending.
        counts: n.
        of: what is counted by its size.
        unit: what there are so many of.
        label: writes an edge.
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
            f"<title>{label(left)} to {label(right)}: {n:,} {unit}</title></rect>"
        )
    title = f"histogram of {of} from {label(low)} to {label(high)}"
    svg = Markup(_BOX).format(title, Markup("".join(bars)))
    return Histogram(svg, label(low), label(high), is_log)


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


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a scatter plot, with the ends of its interval on y; `label` shows on hovering."""

    x: float
    y: float
    low: float
    high: float
    label: str
    filled: bool = True
    size: float = 4.0
    """Half its width, in pixels."""


@dataclass(frozen=True, slots=True)
class Series:
    """Marks of one colour and shape, and lines in that colour.

    Attributes:
        name: for the legend.
        tone: number of the colour; 0 is that of baselines.
        marks: its points.
        lines: each a sequence of (x, y).
        dashed: whether the lines are.
        sets_axes: whether the y axis makes room for all its marks; of other series' it shows what
            lies near.
    """

    name: str
    tone: int
    marks: Sequence[Mark] = ()
    lines: Sequence[Sequence[tuple[float, float]]] = ()
    dashed: bool = False
    sets_axes: bool = True


@dataclass(frozen=True, slots=True)
class Scatter:
    """A scatter plot, ready for the template."""

    x_name: str
    y_name: str
    svg: Markup
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    legend: list[tuple[str, Markup]]
    """Name and symbol of each series."""
    outside: list[str]
    """Labels of the marks that lie beyond the axes."""


def draw_scatter(
    x_name: str, y_name: str, series: Sequence[Series], *, log_y: bool = False
) -> Scatter | None:
    """Draw series over one pair of axes; None where no series that sets the axes has a mark.

    x is logarithmic from a ratio of 4, y where `log_y` and from a ratio of 2. Shapes are placed in
    per cent of a picture that has no size of its own, so that nothing is distorted.
    """
    drawn = [(s.sets_axes, m) for s in series for m in s.marks if _is_drawable(m)]
    heights = [e for own, m in drawn if own for e in (m.y, m.low, m.high) if math.isfinite(e)]
    if not heights:
        return None
    low, high = min(heights), max(heights)
    room = (high - low) or abs(high) / 4
    heights += [m.y for own, m in drawn if not own and low - room <= m.y <= high + room]
    x_axis = _padded(Axis.around([m.x for _, m in drawn], log_from=4))
    y_axis = _padded(Axis.around(heights, log_from=2 if log_y else math.inf))
    outside = []
    x_ticks, y_ticks = _some_ticks(x_axis), _some_ticks(y_axis)
    shapes = [f'<path class="grid" d="M0 {100 - y_axis.place(t)}H100"/>' for t in y_ticks]
    shapes += [f'<path class="grid" d="M{x_axis.place(t)} 0V100"/>' for t in x_ticks]
    marks = []
    for s in series:
        dashes = ' stroke-dasharray="4 4"' if s.dashed else ""
        for line in s.lines:
            places = [_inside(x_axis, y_axis, x, y) for x, y in line]
            points = " ".join(f"{p[0]},{100 - p[1]}" for p in places if p is not None)
            shapes.append(f'<polyline class="tone-{s.tone}" points="{points}"{dashes}/>')
        for mark in filter(_is_drawable, s.marks):
            place = _inside(x_axis, y_axis, mark.x, mark.y)
            if place is None or not all(0 <= p <= 100 for p in place):
                outside.append(mark.label)
                continue
            marks.append(_draw_mark(s.tone, mark, place, y_axis))
    # A picture inside the picture: lines stretch with the box, marks outside it keep their shape.
    lines = _STRETCHED.format("".join(shapes))
    title = Markup("{} against {}: {}").format(y_name, x_name, ", ".join(s.name for s in series))
    return Scatter(
        x_name=x_name,
        y_name=y_name,
        svg=Markup('<svg role="img" aria-label="{}">{}{}</svg>').format(
            title, Markup(lines), Markup("").join(marks)
        ),
        x_ticks=[Tick(x_axis.place(t), _tick(t, x_name)) for t in x_ticks],
        y_ticks=[Tick(y_axis.place(t), _tick(t, y_name)) for t in y_ticks],
        legend=[(s.name, _symbol(s)) for s in series],
        outside=outside,
    )


_STRETCHED = (
    '<svg viewBox="0 0 100 100" preserveAspectRatio="none" overflow="hidden" '
    'width="100%" height="100%">{}</svg>'
)
_SHAPES = (
    "M-.7 0A.7 .7 0 1 0 .7 0A.7 .7 0 1 0 -.7 0Z",  # small circle: baselines
    "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0 -1 0Z",  # circle
    "M-.9 -.9H.9V.9H-.9Z",  # square
    "M0 -1.3L1.3 0L0 1.3L-1.3 0Z",  # diamond
    "M0 -1.2L1.15 .9H-1.15Z",  # triangle
    "M0 1.2L1.15 -.9H-1.15Z",  # triangle, point down
    "M-.4 -1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",  # cross
)
"""Outlines about the origin, one unit being a mark's size; a series keeps one."""

TONES = 9
"""Colours that the style sheet has, beside that of baselines."""


def _is_drawable(mark: Mark) -> bool:
    return math.isfinite(mark.x) and math.isfinite(mark.y)


def _some_ticks(axis: Axis, most: int = 6) -> list[float]:
    """Round values on an axis; on a logarithmic one between powers of ten too, if they are few."""
    if not axis.is_log:
        return axis.ticks(most)
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5)):
        found = [m * 10.0**p for p in powers for m in steps]
        found = [v for v in found if axis.low <= v <= axis.high]
        if len(found) <= most:
            return found
    return axis.ticks(most)


def _padded(axis: Axis, share: float = 0.06) -> Axis:
    """Return an axis with room at both ends for marks."""
    if axis.is_log:
        factor = (axis.high / axis.low) ** share
        return Axis(axis.low / factor, axis.high * factor, True)
    room = share * (axis.high - axis.low)
    return Axis(axis.low - room, axis.high + room, False)


def _inside(x_axis: Axis, y_axis: Axis, x: float, y: float) -> tuple[float, float] | None:
    """Return where a point stands, in per cent; None where the axes have no place for it."""
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    if (x_axis.is_log and x <= 0) or (y_axis.is_log and y <= 0):
        return None
    return x_axis.place(x), y_axis.place(y)


def _draw_mark(tone: int, mark: Mark, place: tuple[float, float], y_axis: Axis) -> Markup:
    x, y = place
    low, high = (
        rest if (at := _inside(y_axis, y_axis, end, end)) is None else min(100, max(0, at[1]))
        for end, rest in ((mark.low, 0.0), (mark.high, 100.0))
    )
    between = ""
    if high > low:
        between = f'<line x1="{x}%" x2="{x}%" y1="{100 - low:.2f}%" y2="{100 - high:.2f}%"/>'
    shape = (
        f'<svg x="{x}%" y="{100 - y:.2f}%" overflow="visible"><path d="{_outline(tone)}" '
        f'transform="scale({mark.size:.1f})"/></svg>'
    )
    kind = "mark" if mark.filled else "mark hollow"
    return Markup('<g class="{} tone-{}"><title>{}</title>{}</g>').format(
        kind, tone, mark.label, Markup(between + shape)
    )


def _outline(tone: int) -> str:
    return _SHAPES[1 + (tone - 1) % (len(_SHAPES) - 1) if tone else 0]


def _symbol(series: Series) -> Markup:
    """Return a series' line and mark, for the legend."""
    dashes = ' stroke-dasharray="4 4"' if series.dashed else ""
    line = f'<path class="rule" d="M0 8H26"{dashes}/>' if series.lines else ""
    mark = ""
    if series.marks:
        mark = f'<path d="{_outline(series.tone)}" transform="translate(13 8) scale(4)"/>'
    return Markup(
        '<svg class="symbol mark tone-{}" viewBox="0 0 26 16" aria-hidden="true">{}</svg>'
    ).format(series.tone, Markup(line + mark))
