"""Edges between nodes, and circuits of them: complete, direct, and right where it can be told."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from handmade import exact, make_transcoder
from test_patching import PAIRS, everything

from monosemy.coders import Dictionary
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.intervene import ERROR, Edge, Node, Patching, carried, edges, find_circuit, predicted
from monosemy.lm import LM

STEPS = 48
"""Of integrated gradients: features are cut off at zero somewhere on the way."""


def at(lm: LM, corpus: Corpus, *names: str) -> list[Dictionary]:
    return [replace(exact(lm, corpus, name), fingerprint=None) for name in names]


@pytest.fixture(scope="module")
def chain(lm: LM, corpus: Corpus) -> Patching:
    """Sites that every way through the model leads past."""
    return Patching(lm, at(lm, corpus, "embed", "layers.0", "layers.1"), PAIRS[1:2])


@pytest.fixture(scope="module")
def found(chain: Patching) -> list[Edge]:
    nodes = chain.attribute("first-order").nodes()
    early = [node for node in nodes.nodes if node.site != "layers.1"]
    late = [node for node in nodes.strongest(len(nodes)).nodes if node.site == "layers.1"]
    return edges(chain, early + late[:6], steps=STEPS)


def into(found: list[Edge]) -> dict[Node | None, float]:
    sums: dict[Node | None, float] = defaultdict(float)
    for edge in found:
        sums[edge.target] += edge.weight
    return sums


def test_edges_into_a_node_add_up_to_its_effect(chain: Patching, found: list[Edge]) -> None:
    effects, sums = chain.attribute(steps=STEPS).nodes(), into(found)
    late = {edge.target for edge in found if edge.target and edge.target.site == "layers.1"}
    middle = {edge.target for edge in found if edge.target and edge.target.site == "layers.0"}
    assert len(late) == 6 and len(middle) > 20
    for node in late | middle:
        assert node is not None
        assert sums[node] == pytest.approx(effects[node], rel=0.05, abs=0.02), node


def test_edges_lead_on_and_past_no_third_site(found: list[Edge]) -> None:
    order = ["embed", "layers.0", "layers.1", "metric"]
    for edge in found:
        target = "metric" if edge.target is None else edge.target.site
        assert order.index(target) - order.index(edge.source.site) == 1


def test_edges_into_the_metric_add_up_to_its_change(lm: LM, corpus: Corpus) -> None:
    """From all nodes of the last site; where the metric is linear, one step is enough."""
    for name, steps in (("layers.1", 24), ("final_norm", 1)):
        patching = Patching(lm, at(lm, corpus, "layers.0", name), PAIRS)
        last = [n for n in patching.attribute("first-order").nodes().nodes if n.site == name]
        change = float((patching.donor_values - patching.values).mean())
        sums = into(edges(patching, last, steps=steps))
        assert sums[None] == pytest.approx(change, rel=0.02)


def test_by_hand_an_edge_is_gradient_times_change(lm: LM, corpus: Corpus) -> None:
    """From what a layer held to a transcoder's feature, other ways through the model included."""
    transcoder = replace(make_transcoder(lm, corpus), fingerprint=None)
    here, there = transcoder.hookpoint, transcoder.explains
    early = at(lm, corpus, "layers.0")[0]
    patching = Patching(lm, [early, transcoder], PAIRS[:1])
    name = f"{here} -> {there}"
    effects = patching.attribute("first-order").nodes()
    target = next(n for n in effects.strongest(200).nodes if n.site == name and n.feature != ERROR)
    source = next(n for n in effects.strongest(200).nodes if n.site == "layers.0")
    (edge,) = (
        e
        for e in edges(patching, [source, target], steps=1)
        if (e.source, e.target) == (source, target)
    )

    clean, corrupted = (lm.encode(text or "") for text in (PAIRS[0].clean, PAIRS[0].corrupted))
    states = [lm.capture(tokens, ["layers.0"])["layers.0"] for tokens in (clean, corrupted)]
    middle = ((states[0] + states[1]) / 2).clone()
    middle[:, 0] = states[0][:, 0]
    middle.requires_grad_()
    held: list[torch.Tensor] = []

    def put(y: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
        return middle.clone()

    def keep(x: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
        held.append(x)
        return x

    with lm.edit({"layers.0": put, here: keep}):
        lm.logits(clean, gradients=True)
    patching_runs = next(patching.runs())
    g = patching_runs.mean_gradient(patching_runs.deltas[name], 1)
    weight = g @ transcoder.coder.W_dec[target.feature]
    with torch.enable_grad():
        z = transcoder.coder.encode(held[0][0, 1:])[:, target.feature]
        (gradient,) = torch.autograd.grad((z * weight).sum(), middle)
    moved = early.encode(states[1][0, 1:]) - early.encode(states[0][0, 1:])
    along = gradient[0, 1:] @ early.coder.W_dec[source.feature]
    assert edge.weight == pytest.approx(float((along * moved[:, source.feature]).sum()), rel=1e-3)


def test_positions_add_up(chain: Patching) -> None:
    """Edges of a node are the sum of those of its positions."""
    nodes = chain.attribute("first-order").nodes().strongest(12).nodes
    time = max(map(len, chain.prompts.clean))
    placed = [Node(n.site, n.feature, p) for n in nodes for p in range(1 - time, 0)]
    whole: dict[tuple[Node, Node | None], float] = {}
    for edge in edges(chain, nodes, steps=2):
        whole[edge.source, edge.target] = edge.weight
    parts: dict[tuple[Node, Node | None], float] = defaultdict(float)
    for edge in edges(chain, placed, steps=2):
        target = edge.target and edge.target._replace(position=None)
        parts[edge.source._replace(position=None), target] += edge.weight
    assert whole.keys() <= parts.keys()
    for pair, weight in parts.items():
        assert weight == pytest.approx(whole.get(pair, 0.0), rel=1e-3, abs=1e-5)


def test_a_circuit_of_everything_is_the_model_and_of_nothing_is_not(lm: LM, corpus: Corpus) -> None:
    patching = Patching(lm, at(lm, corpus, "layers.0", "layers.1"), PAIRS, donor="mean")
    carrying = carried(patching, [[], everything(patching)])
    none, all_ = carrying.circuits
    assert (none.features, none.errors) == (0, 0)
    assert none.faithfulness == pytest.approx(0, abs=1e-5)
    assert none.completeness == pytest.approx(1, abs=1e-5)
    assert all_.faithfulness == pytest.approx(1, abs=1e-5)
    assert all_.completeness == pytest.approx(0, abs=1e-5)
    assert all_.errors == 2


def test_neurons_are_nodes_too(lm: LM, corpus: Corpus) -> None:
    """An exact dictionary of both signs of a channel has the effects of that channel."""
    exact_nodes = Patching(lm, at(lm, corpus, "layers.0"), PAIRS).attribute().nodes()
    patching = Patching(lm, ["layers.0"], PAIRS)
    neurons = patching.attribute().nodes()
    d = patching.sites["layers.0"].width
    for channel in range(d):
        both = sum(exact_nodes[Node("layers.0", f)] for f in (channel, channel + d))
        assert neurons[Node("layers.0", channel)] == pytest.approx(both, abs=1e-5)
    assert neurons[Node("layers.0", ERROR)] == pytest.approx(0, abs=1e-6)
    whole = patching.patched(everything(patching))
    torch.testing.assert_close(whole, patching.donor_values, atol=1e-4, rtol=1e-4)


def test_patching_a_circuits_nodes_does_what_was_predicted(lm: LM, corpus: Corpus) -> None:
    patching = Patching(lm, at(lm, corpus, "layers.1", "final_norm"), PAIRS)
    circuit = find_circuit(patching, nodes=40)
    assert len(circuit.nodes) == 40 and len(circuit.ranked) > 40
    sizes = circuit.nodes.mean.abs()
    assert torch.equal(sizes, sizes.sort(descending=True).values)
    rows = predicted(patching, circuit)
    assert sum(row.nodes for row in rows) == 40
    for row in rows:
        assert abs(row.predicted) > 0.1
        assert row.measured == pytest.approx(row.predicted, rel=0.25)


def test_thresholds_leave_out_what_is_weaker(chain: Patching) -> None:
    circuit = find_circuit(
        chain, nodes=50, threshold=0.3, edge_threshold=0.02, edges_kept=20, steps=2
    )
    assert 0 < len(circuit.nodes) < 50 and 0 < len(circuit.edges) <= 20
    assert circuit.nodes.mean.abs().min() >= 0.3
    weights = [abs(edge.weight) for edge in circuit.edges]
    assert weights == sorted(weights, reverse=True) and weights[-1] >= 0.02
    with pytest.raises(UserError, match="no node has an effect of 1000"):
        find_circuit(chain, threshold=1000)
    with pytest.raises(UserError, match="`nodes` is 0"):
        find_circuit(chain, nodes=0)


def test_what_cannot_be_measured_is_refused(lm: LM, chain: Patching) -> None:
    with pytest.raises(UserError, match="the donor is the other side"):
        carried(chain, [[]])
    with pytest.raises(UserError, match=r"no site `layers\.7`"):
        edges(chain, [Node("layers.7", 0)])
    with pytest.raises(UserError, match="9999"):
        edges(chain, [Node("embed", 9999)])
    with pytest.raises(UserError, match=r"layers\.9"):
        Patching(lm, ["layers.9"], PAIRS)
