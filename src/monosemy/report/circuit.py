"""A circuit as a page: the drawn graph with a card for each node, and what the circuit carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.artefact import write_text
from monosemy.corpus.choices import shared_start
from monosemy.corpus.minimal_pairs import MinimalPair
from monosemy.intervene.circuits import Carrying
from monosemy.intervene.record import CircuitRecord, EdgeRecord
from monosemy.report.card import environment, writable
from monosemy.report.graph import (
    METRIC,
    Drawing,
    draw_circuit,
    key_of,
    node_title,
    signed,
    target_of,
)
from monosemy.report.numbers import figure, percent
from monosemy.report.svg import Mark, Scatter, Series, draw_scatter
from monosemy.report.tokens import visible

NODES, EDGES = 40, 80
"""Drawn, unless asked otherwise: as many as can be told apart."""
_LISTED = 8
"""Edges of a node that its card shows, each way."""
_STRONGEST = 40
"""Nodes in the table."""


@dataclass(frozen=True, slots=True)
class NodeCard:
    """What is known of a node: shown when it is chosen.

    Attributes:
        key: its part of the address, `#node-{key}`.
        title: what it is.
        name: what the feature is called, or nothing.
        facts: figures, by name.
        ways: edges into it and out of it: heading, how many there are, and the strongest, each
            with the other node's key, what it is called, and the weight.
    """

    key: str
    title: str
    name: str
    facts: dict[str, str]
    ways: Sequence[tuple[str, int, Sequence[tuple[str, str, float]]]]


def circuit_html(record: CircuitRecord) -> str:
    """Return the page: it loads nothing and runs nothing."""
    values = circuit_values(record, nodes=NODES, edges=EDGES)
    return writable(environment().get_template("circuit.html").render(**values))


def write_circuit(record: CircuitRecord, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    write_text(path, circuit_html(record))
    return Path(path)


def circuit_values(record: CircuitRecord, *, nodes: int, edges: int) -> dict[str, Any]:
    """Return what pages of a circuit show.

    Args:
        record: the circuit.
        nodes: drawn at most, the strongest.
        edges: likewise, among those.
    """
    drawing = draw_circuit(record, nodes=nodes, edges=edges)
    return {
        "title": f"Circuit {record.name} in {record.model}",
        "verdict": _verdict(record),
        "facts": _facts(record),
        "metric": record.metric,
        "drawing": drawing,
        "drawn": drawn_in_words(record, drawing),
        "cards": [node_card(record, number) for number in (METRIC, *range(len(record.nodes)))],
        "pairs": [_parts(pair) for pair in record.examples],
        "plots": _plots(record),
        "predicted": record.predicted,
        "strongest": list(enumerate(record.nodes[:_STRONGEST])),
        "total": len(record.nodes),
        "signed": signed,
    }


def drawn_in_words(record: CircuitRecord, drawing: Drawing) -> str:
    """Say how much of a circuit a drawing shows, and how weak what it shows is at least."""
    nodes, edges = len(drawing.nodes), len(drawing.edges)
    effect = min((abs(record.nodes[number].effect) for number in drawing.nodes), default=0.0)
    weight = min((abs(edge.weight) for edge in drawing.edges), default=0.0)
    text = f"Drawn: the strongest {nodes} of {len(record.nodes)} nodes"
    text += f" (effects of {figure(effect)} and more)" if nodes else ""
    text += f", and between them and to the metric the strongest {edges} of {len(record.edges)}"
    return text + " edges" + (f" (weights of {figure(weight)} and more)." if edges else ".")


def node_card(record: CircuitRecord, number: int) -> NodeCard:
    """Return the card of a node, or of the metric."""
    into = [edge for edge in record.edges if target_of(edge) == number]
    ways = [_way(record, "Edges in", into, [edge.source for edge in into])]
    if number == METRIC:
        facts = _values(record)
        return NodeCard(key_of(number), f"The metric: {record.metric}", "", facts, ways)
    out = [edge for edge in record.edges if edge.source == number]
    ways.append(_way(record, "Edges out", out, [target_of(edge) for edge in out]))
    node = record.nodes[number]
    what = "Error term" if node.feature is None else f"Feature {node.feature}"
    facts = {"effect": signed(node.effect)}
    if node.position is not None:
        facts["position from the end"] = str(node.position)
    return NodeCard(key_of(number), f"{what} of {node.site}", node.name, facts, ways)


def _way(
    record: CircuitRecord, title: str, edges: Sequence[EdgeRecord], others: Sequence[int]
) -> tuple[str, int, Sequence[tuple[str, str, float]]]:
    listed = [
        (key_of(other), node_title(record, other), edge.weight)
        for edge, other in zip(edges, others, strict=True)
    ]
    return title, len(listed), listed[:_LISTED]


def _facts(record: CircuitRecord) -> dict[str, str]:
    return {
        "model": record.model,
        "pairs": record.source,
        "found on": f"{record.found_on:,} pairs",
        "tried on": f"{record.tried_on:,} other pairs",
        "metric": record.metric,
        **_values(record),
        "nodes": f"{len(record.nodes):,} of {record.found:,} with an effect",
        "edges": f"{len(record.edges):,}",
    }


def _values(record: CircuitRecord) -> dict[str, str]:
    """Return the metric's mean on both sides."""
    if record.donor is None:
        return {"metric as it is": signed(record.value)}
    return {
        "metric as it is": signed(record.value),
        "metric of the other side": signed(record.donor),
    }


def _verdict(record: CircuitRecord) -> str:
    """Say what the circuit carries by itself, and what is left without it."""
    mine = [one for one in record.carried.circuits if one.nodes == len(record.nodes)]
    if not mine:
        return ""
    return (
        f"On pairs that it was not found on, the circuit's {len(record.nodes):,} nodes alone carry "
        f"{percent(mine[0].faithfulness)} of the {record.metric}; ablated, they leave "
        f"{percent(mine[0].completeness)} of it."
    )


def _plots(record: CircuitRecord) -> list[tuple[str, Scatter]]:
    """Draw what circuits carry by their size, of features and of neurons."""
    whose = [("features and error terms", record.carried)]
    if record.neurons is not None:
        whose.append(("neurons", record.neurons))
    plots = []
    for name, title in (
        ("faithfulness", "Faithfulness: what the nodes alone carry"),
        ("completeness", "Completeness: what is left without them, the less the better"),
    ):
        series = [_series(number, of, found, name) for number, (of, found) in enumerate(whose, 1)]
        plot = draw_scatter("nodes", name, series)
        if plot is not None:
            plots.append((title, plot))
    return plots


def _series(tone: int, of: str, carrying: Carrying, name: str) -> Series:
    points = sorted((float(one.nodes), getattr(one, name)) for one in carrying.circuits)
    marks = [Mark(x, y, y, y, f"{x:,.0f} {of}: {percent(y)}") for x, y in points]
    return Series(name=of, tone=tone, marks=marks, lines=[points])


def _parts(pair: MinimalPair) -> list[tuple[str, str, str, str, str]]:
    """Return the sides of a pair: which, its text before, where and after it differs, its end."""
    if pair.corrupted is None:
        return [("prompt", pair.clean, "", "", visible(pair.answer))]
    before = shared_start(pair.clean, pair.corrupted)
    ends = pair.clean[before:][::-1], pair.corrupted[before:][::-1]
    after = shared_start(*ends)
    return [
        (
            side,
            text[:before],
            text[before : len(text) - after],
            text[len(text) - after :],
            "" if answer is None else visible(answer),
        )
        for side, text, answer in (
            ("clean", pair.clean, pair.answer),
            ("corrupted", pair.corrupted, pair.wrong),
        )
    ]
