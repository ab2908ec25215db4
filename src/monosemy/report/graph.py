"""A circuit drawn: a row of nodes for each site, the model's order upwards, the metric on top."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from monosemy.intervene.record import CircuitRecord, EdgeRecord, NodeRecord
from monosemy.report.numbers import figure

METRIC = -1
"""Stands for the metric where nodes are told by their numbers."""

_WIDTH = 760
"""Of the drawing, pixels."""
_SLOT, _WIDEST_SLOT = 64, 120
"""Width of a node with what surrounds it, about the least and the most."""
_LETTER = 7.0
"""Width of a letter under a node, pixels."""
_LARGEST = 15
"""Radius of the strongest node."""
_LINE = 13
"""Height of a line under a node, of which there are two where features have names."""
_ABOVE = 30
"""From the top of a row to the middle of its first nodes."""
_GAP = 58
"""Room for edges between rows."""
_SWEEPS = 6
_ERROR = "M0 -1.25L1.25 0L0 1.25L-1.25 0Z"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A circuit's strongest nodes and edges, as a picture."""

    svg: Markup
    sites: Sequence[tuple[str, float]]
    """What stands at the top left of rows, and where a row begins: pixels from the top."""
    rules: Markup
    """Style sheet by which a node that is pointed at, or whose card is open, shows its edges."""
    nodes: list[int]
    """Which are drawn, by number."""
    edges: list[EdgeRecord]


@dataclass(frozen=True, slots=True)
class _Row:
    """A site's nodes, in so many lines by turns as there are too many for one."""

    nodes: list[int]
    lines: int
    top: float
    tall: float


@dataclass(frozen=True, slots=True)
class _Place:
    x: float
    y: float
    radius: float
    foot: float
    """Where edges into it end: beneath its label."""


def draw_circuit(record: CircuitRecord, *, nodes: int, edges: int) -> Drawing:
    """Draw a circuit: the metric, the strongest nodes, and the strongest edges among those.

    A node's area grows with its effect, an edge's width with its weight. Each node is a link to
    the card of its number, `#node-3`; the metric's is `#node-metric`.

    Args:
        record: the circuit.
        nodes: drawn at most.
        edges: likewise.
    """
    shown = list(range(min(nodes, len(record.nodes))))
    among = {*shown, METRIC}
    drawn = [edge for edge in record.edges if edge.source in among and target_of(edge) in among]
    drawn = drawn[:edges]
    links = [(edge.source, target_of(edge), abs(edge.weight)) for edge in drawn]
    ordered = [_by_position(record, row) for row in order_rows(_rows(record, shown), links)]
    has_names = any(record.nodes[number].name for number in shown)
    block = 2 * _LARGEST + (2 if has_names else 1) * _LINE + 8
    rows = _stacked(ordered[::-1], block)
    slot = min(_WIDTH / max((len(row.nodes) - 1) / row.lines + 1 for row in rows), _WIDEST_SLOT)
    places = _places(record, rows, slot, block)
    title = f"Circuit of {len(shown)} nodes and {len(drawn)} edges, towards the {record.metric}"
    parts = [_bands(rows[1:]), _edges(record, drawn, places, slot)]
    parts += [
        _node(record, number, drawn, places[number], slot) for row in rows for number in row.nodes
    ]
    svg = Markup(
        '<svg viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="group" '
        'aria-label="{2}">{3}</svg>'
    ).format(_WIDTH, round(rows[-1].top + rows[-1].tall), title, Markup("\n").join(parts))
    sites = [(record.nodes[row.nodes[0]].site, row.top) for row in rows[1:]]
    return Drawing(svg, sites, _rules([METRIC, *shown]), shown, drawn)


def target_of(edge: EdgeRecord) -> int:
    """Return the number of an edge's target."""
    return METRIC if edge.target is None else edge.target


def node_title(record: CircuitRecord, number: int) -> str:
    """Return what a node is called in lists: `layers.2 595`."""
    if number == METRIC:
        return record.metric
    node = record.nodes[number]
    return f"{node.site} {_number(node)}"


def signed(value: float) -> str:
    """Return an effect or a weight with its sign."""
    return f"{'+' if value >= 0 else chr(0x2212)}{figure(abs(value))}"


def key_of(number: int) -> str:
    """Return a node's part of addresses within a page."""
    return "metric" if number == METRIC else str(number)


def order_rows(
    rows: Sequence[Sequence[int]], links: Sequence[tuple[int, int, float]]
) -> list[list[int]]:
    """Order nodes within rows so that few links cross: sweeps of barycentres, up and down.

    Args:
        rows: nodes, the lowest row first; each centred, its nodes one apart.
        links: two nodes of different rows each, and a weight above zero.
    """
    ordered = [list(row) for row in rows]
    level = {node: number for number, row in enumerate(rows) for node in row}
    beside: dict[int, list[tuple[int, float]]] = {node: [] for node in level}
    for source, target, weight in links:
        beside[source].append((target, weight))
        beside[target].append((source, weight))
    x = {node: place for row in ordered for node, place in zip(row, _centred(row), strict=True)}

    def centre(node: int, up: bool) -> float:
        near = [(x[n], w) for n, w in beside[node] if (level[n] < level[node]) == up]
        total = sum(weight for _, weight in near)
        return sum(place * weight for place, weight in near) / total if total else x[node]

    for sweep in range(_SWEEPS):
        up = sweep % 2 == 0
        for row in ordered if up else ordered[::-1]:
            row.sort(key=lambda node: centre(node, up))
            x.update(zip(row, _centred(row), strict=True))
    return ordered


def _centred(row: Sequence[int]) -> list[float]:
    return [number - (len(row) - 1) / 2 for number in range(len(row))]


def _rows(record: CircuitRecord, shown: Sequence[int]) -> list[list[int]]:
    """Return the nodes of each site that has some, from the first site on; then the metric.

    The stronger a node, the nearer to the middle of its row, which is seen first.
    """
    of_site: dict[str, list[int]] = {site.name: [] for site in record.sites}
    for number in shown:
        of_site[record.nodes[number].site].append(number)
    rows = [row[::2][::-1] + row[1::2] for row in of_site.values() if row]
    return [*rows, [METRIC]]


def _by_position(record: CircuitRecord, row: Sequence[int]) -> list[int]:
    """Return a row from left to right as text is read, where positions are told apart."""
    if row == [METRIC]:
        return [METRIC]
    return sorted(row, key=lambda number: record.nodes[number].position or 0)


def _stacked(rows: Sequence[list[int]], block: float) -> list[_Row]:
    """Return rows one under the other, the first on top; a line of a row is a block high."""
    stacked, top = [], 0.0
    for nodes in rows:
        lines = math.ceil(len(nodes) * _SLOT / _WIDTH)
        tall = _ABOVE - _LARGEST + lines * block
        stacked.append(_Row(nodes, lines, top, tall))
        top += tall + _GAP
    return stacked


def _places(
    record: CircuitRecord, rows: Sequence[_Row], slot: float, block: float
) -> dict[int, _Place]:
    strongest = max((abs(node.effect) for node in record.nodes), default=0) or 1
    places = {}
    for row in rows:
        for turn, (number, shift) in enumerate(zip(row.nodes, _centred(row.nodes), strict=True)):
            share = 1.0 if number == METRIC else abs(record.nodes[number].effect) / strongest
            radius = max(4.0, _LARGEST * math.sqrt(share))
            x = _WIDTH / 2 + slot / row.lines * shift
            y = row.top + _ABOVE + block * (turn % row.lines)
            places[number] = _Place(x, y, radius, y + block - _LARGEST - 4)
    return places


def _bands(rows: Sequence[_Row]) -> Markup:
    """Draw what lies behind the nodes of each site."""
    bands = (
        f'<rect x="0" y="{row.top}" width="{_WIDTH}" height="{row.tall}" rx="8"/>' for row in rows
    )
    return Markup('<g class="bands" aria-hidden="true">{}</g>').format(Markup("".join(bands)))


def _edges(
    record: CircuitRecord,
    edges: Sequence[EdgeRecord],
    places: Mapping[int, _Place],
    slot: float,
) -> Markup:
    """Draw edges, the weaker first, so that none lies over a stronger one."""
    most = max((abs(edge.weight) for edge in edges), default=0) or 1
    paths = []
    for edge in reversed(edges):
        source, target = edge.source, target_of(edge)
        title = (
            f"{node_title(record, source)} → {node_title(record, target)}: {signed(edge.weight)}"
        )
        paths.append(
            Markup(
                '<path class="edge {} e-{} e-{}" d="{}" stroke-width="{:.2f}">'
                "<title>{}</title></path>"
            ).format(
                _tone(edge.weight),
                key_of(source),
                key_of(target),
                _line(places[source], places[target], slot),
                0.8 + 5 * abs(edge.weight) / most,
                title,
            )
        )
    return Markup('<g class="edges" aria-hidden="true">{}</g>').format(Markup("\n").join(paths))


def _line(start: _Place, end: _Place, slot: float) -> str:
    """Return an edge's line; past a row it bends aside, so as to pass beside its nodes."""
    top = start.y - start.radius
    middle = (top + end.foot) / 2
    passes_rows = top - end.foot > 2 * _GAP
    bend = math.copysign(0.6 * slot, start.x + end.x - _WIDTH) if passes_rows else 0.0
    return (
        f"M{start.x:.1f} {top:.1f}C{start.x + bend:.1f} {middle:.1f} {end.x + bend:.1f} "
        f"{middle:.1f} {end.x:.1f} {end.foot:.1f}"
    )


def _node(
    record: CircuitRecord,
    number: int,
    edges: Sequence[EdgeRecord],
    place: _Place,
    slot: float,
) -> Markup:
    into = [edge.source for edge in edges if target_of(edge) == number]
    out = [target_of(edge) for edge in edges if edge.source == number]
    beside = "".join(f" b-{key_of(other)}" for other in dict.fromkeys([*into, *out]))
    said, lines = _said(record, number)
    said += f", edges drawn: {len(into)} in, {len(out)} out"
    room = max(3, int(slot / _LETTER)) if number != METRIC else 99
    texts = Markup("").join(
        Markup('<text x="{:.1f}" y="{:.1f}"{}>{}</text>').format(
            place.x,
            place.y + _LARGEST + _LINE * (line + 1),
            Markup(' class="called"') if line else "",
            _cut(text, room),
        )
        for line, text in enumerate(lines)
    )
    return Markup(
        '<a class="node {tone} n-{key}{beside}" href="#node-{key}" aria-label="{said}">'
        '<title>{said}</title><rect x="{left:.1f}" y="{top:.1f}" width="{slot:.1f}" '
        'height="{height}" rx="6"/>{shape}{texts}</a>'
    ).format(
        tone="metric" if number == METRIC else _tone(record.nodes[number].effect),
        key=key_of(number),
        beside=beside,
        said=said,
        left=place.x - slot / 2 + 1,
        top=place.y - _LARGEST - 3,
        slot=slot - 2,
        height=place.foot - place.y + _LARGEST + 3,
        shape=_shape(record, number, place),
        texts=texts,
    )


def _said(record: CircuitRecord, number: int) -> tuple[str, list[str]]:
    """Return a node in words, and what is written under it, in lines."""
    if number == METRIC:
        return f"the metric: {record.metric}", [record.metric]
    node = record.nodes[number]
    what = "error term" if node.feature is None else f"feature {node.feature}"
    where = "" if node.position is None else f", position {node.position}"
    name = f", {node.name}" if node.name else ""
    lines = [_number(node), *([node.name] if node.name else [])]
    return f"{node.site}, {what}{where}{name}, effect {signed(node.effect)}", lines


def _number(node: NodeRecord) -> str:
    what = "error" if node.feature is None else str(node.feature)
    return what if node.position is None else f"{what} @{node.position}"


def _shape(record: CircuitRecord, number: int, place: _Place) -> Markup:
    """Draw the metric as a square, an error term as a diamond, a feature as a circle."""
    if number == METRIC:
        return Markup('<rect class="shape" x="{:.1f}" y="{:.1f}" width="24" height="24"/>').format(
            place.x - 12, place.y - 12
        )
    if record.nodes[number].feature is None:
        return Markup(
            '<path class="shape" d="{}" transform="translate({:.1f} {:.1f}) scale({:.2f})"/>'
        ).format(_ERROR, place.x, place.y, place.radius)
    return Markup('<circle class="shape" cx="{:.1f}" cy="{:.1f}" r="{:.2f}"/>').format(
        place.x, place.y, place.radius
    )


def _tone(value: float) -> str:
    return "up" if value >= 0 else "down"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _rules(numbers: Sequence[int]) -> Markup:
    """Write the style that fades all but a node, its edges, and those it shares them with."""
    keys = [key_of(number) for number in numbers]
    asked = [f".n-{key}:is(:hover,:focus-visible),#node-{key}:target" for key in keys]
    return Markup("\n".join(_each_rule(keys, asked)))


def _each_rule(keys: Sequence[str], asked: Sequence[str]) -> Iterator[str]:
    yield f".circuit:has({','.join(asked)}) :is(.edge,.node){{opacity:.16}}"
    for key, one in zip(keys, asked, strict=True):
        yield f".circuit:has({one}) :is(.e-{key},.n-{key},.b-{key}){{opacity:1}}"
