"""Sparse feature circuits: the nodes that carry an answer, and how much of it they carry.

A circuit is found on some pairs and tried on others: all nodes of its sites but its own are given
their mean over the corrupted prompts, position by position, and what is left of the metric, between
that of the whole model and that with every node so ablated, is the circuit's faithfulness (Marks et
al. 2024, arXiv 2403.19647, section 3). Its completeness is what is left when the circuit alone is
ablated: the less, the less was missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from monosemy.errors import UserError
from monosemy.intervene.edges import Edge, edges
from monosemy.intervene.nodes import ERROR, Node, NodeEffects
from monosemy.intervene.patching import STEPS, Patching


@dataclass(frozen=True, eq=False)
class Circuit:
    """Nodes and the edges between them.

    Attributes:
        nodes: the strongest first.
        edges: among them and to the metric, the strongest first.
        ranked: all nodes that had an effect, the strongest first; `nodes` are the first of them.
    """

    nodes: NodeEffects
    edges: list[Edge]
    ranked: NodeEffects


def find_circuit(
    patching: Patching,
    *,
    nodes: int = 100,
    threshold: float = 0.0,
    edges_kept: int = 300,
    edge_threshold: float = 0.0,
    positions: bool = False,
    steps: int = STEPS,
) -> Circuit:
    """Return the strongest nodes of some pairs, by integrated gradients, and their edges.

    Args:
        patching: the pairs, their sites and metric; its donor is the other side, where there is.
        nodes: at most so many; error terms among them.
        threshold: least effect of a node, up or down, in units of the metric, mean over pairs.
        edges_kept: at most so many.
        edge_threshold: least weight of an edge, likewise.
        positions: tell positions apart, counted from the end.
        steps: of integrated gradients.

    Raises:
        UserError: no node has such an effect, or numbers below one.
    """
    for what, number in (("nodes", nodes), ("edges_kept", edges_kept), ("steps", steps)):
        if number < 1:
            raise UserError(f"`{what}` is {number}", "allowed: 1 and more")
    effects = patching.attribute(steps=steps).nodes(positions=positions)
    ranked = effects.strongest(len(effects))
    kept = ranked.strongest(nodes).above(threshold)
    if not len(kept):
        most = float(ranked.mean[0].abs()) if len(ranked) else 0.0
        raise UserError(f"no node has an effect of {threshold:g}", f"the strongest has {most:.3g}")
    found = edges(patching, kept.nodes, steps=steps)
    found = [edge for edge in found if abs(edge.weight) >= edge_threshold]
    found.sort(key=lambda edge: -abs(edge.weight))
    return Circuit(kept, found[:edges_kept], ranked)


class Predicted(NamedTuple):
    """What giving a circuit's nodes at one site what the donor holds should do, and does."""

    site: str
    nodes: int
    predicted: float
    """Sum of their effects, in units of the metric."""
    measured: float


def predicted(patching: Patching, circuit: Circuit) -> list[Predicted]:
    """Patch a circuit's nodes, site by site, beside the sum of their effects."""
    rows = []
    for site in patching.sites:
        mine = [node for node in circuit.nodes.nodes if node.site == site]
        if mine:
            measured = (patching.patched(mine) - patching.values).mean()
            expected = sum(circuit.nodes[node] for node in mine)
            rows.append(Predicted(site, len(mine), expected, float(measured)))
    return rows


class Carried(NamedTuple):
    """What some nodes carry of an answer, on pairs they were tried on."""

    features: int
    """Features among the nodes."""
    errors: int
    """Error terms among them."""
    faithfulness: float
    """With all nodes but these ablated: 0 as with all ablated, 1 as the whole model."""
    completeness: float
    """The same with these ablated and all others kept; the lower the better."""

    @property
    def nodes(self) -> int:
        """How many there are of both."""
        return self.features + self.errors


class Carrying(NamedTuple):
    """What circuits carry, and between which values of the metric that is counted."""

    whole: float
    """Of the model as it is."""
    nothing: float
    """With every node ablated."""
    circuits: list[Carried]


def carried(patching: Patching, circuits: Sequence[Sequence[Node]]) -> Carrying:
    """Return how much of the answers to some pairs circuits carry.

    Args:
        patching: pairs that the nodes were not found on; its donor is the mean or zero.
        circuits: the nodes of each; without a position, a node is kept at all of them.

    Raises:
        UserError: the donor is the other side, ablating everything changes nothing, or a site,
            feature or position that there is not.
    """
    if patching.donor == "other side":
        raise UserError(
            "faithfulness is of nodes that are ablated, and the donor is the other side",
            'make the patching with donor="mean"',
        )
    asked: list[tuple[Sequence[Node], bool]] = [([], True)]
    asked += [(nodes, others) for nodes in circuits for others in (True, False)]
    nothing, *values = patching.patched_each(asked).mean(1).tolist()
    whole = float(patching.values.mean())
    if abs(whole - nothing) < 1e-6:
        raise UserError(
            f"{patching.metric} is {whole:.3g} with every node ablated as without",
            "take other pairs, or dictionaries at places that matter to them",
        )
    shares = [(value - nothing) / (whole - nothing) for value in values]
    errors = [sum(node.feature == ERROR for node in nodes) for nodes in circuits]
    return Carrying(
        whole,
        nothing,
        [
            Carried(len(nodes) - n, n, kept, left)
            for nodes, n, kept, left in zip(
                circuits, errors, shares[::2], shares[1::2], strict=True
            )
        ],
    )
