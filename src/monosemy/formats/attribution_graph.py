"""Attribution graphs as circuit-tracer's viewer and Neuronpedia read them: JSON, one prompt each.

Nodes are drawn by layer and position, links have a weight; tokens stand at the bottom and the
output on top. Both readers know transcoder features, error terms, tokens and outputs; features of
any dictionary go under the first of these names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from monosemy.errors import UserError
from monosemy.intervene.circuits import Circuit
from monosemy.intervene.nodes import ERROR, Node
from monosemy.intervene.patching import Patching, Runs

_FEATURE, _ERROR = "cross layer transcoder", "mlp reconstruction error"


def attribution_graph(
    circuit: Circuit,
    patching: Patching,
    *,
    name: str,
    names: Mapping[str, Mapping[int, str]] | None = None,
) -> dict[str, Any]:
    """Return a circuit of one prompt as the JSON of an attribution graph.

    What the format cannot say stands in its description: that weights are direct effects on the
    metric, and which hook point a layer is.

    Args:
        circuit: with positions.
        patching: what it was found in: one pair.
        name: of the graph; letters, digits and hyphens.
        names: site -> feature -> what it is called.

    Raises:
        UserError: several pairs, or nodes without a position.
    """
    if len(patching) != 1:
        raise UserError(f"a graph is of one prompt, not of {len(patching)}", "give one pair")
    if any(node.position is None for node in circuit.nodes.nodes):
        raise UserError("a graph has every node at a token", "find the circuit with positions")
    runs = next(patching.runs())
    prompt = patching.prompts.clean[0]
    layers = _layers(list(patching.sites), patching.lm.n_layers)
    output = _output_node(patching, runs, len(prompt), max(layers.values()) + 1)
    ids: dict[Node | None, str] = {None: output["node_id"]}
    shares = _influence(circuit.nodes.mean)
    nodes = []
    for node, share in zip(circuit.nodes.nodes, shares, strict=True):
        label = (names or {}).get(node.site, {}).get(node.feature, "")
        made = _node(node, layers[node.site], len(prompt), label)
        nodes.append({**made, "influence": share, "activation": _activation(runs, node)})
        ids[node] = made["node_id"]
    tokens = [_token_node(token, place) for place, token in enumerate(prompt)]
    links = [
        {"source": ids[edge.source], "target": ids[edge.target], "weight": edge.weight}
        for edge in circuit.edges
    ]
    links += _from_tokens(circuit, ids, tokens)
    return {
        "metadata": _metadata(patching, prompt, name, layers),
        "qParams": {
            "pinnedIds": [output["node_id"]],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [*tokens, *nodes, output],
        "links": links,
    }


def _layers(sites: list[str], n_layers: int) -> dict[str, int]:
    """Return a number of each site: its block's where each is of another, else its place."""
    found = [re.match(r"layers\.(\d+)", site.rpartition(" -> ")[2]) for site in sites]
    blocks = [int(match[1]) for match in found if match]
    if len(set(blocks)) == len(sites) and max(blocks) < n_layers:
        return dict(zip(sites, blocks, strict=True))
    return {site: place for place, site in enumerate(sites)}


def _node(node: Node, layer: int, length: int, label: str) -> dict[str, Any]:
    assert node.position is not None
    place = length + node.position
    is_error = node.feature == ERROR
    return {
        "node_id": f"{layer}_{node.feature}_{place}",
        "feature": ERROR if is_error else paired(layer, node.feature),
        "layer": str(layer),
        "ctx_idx": place,
        "feature_type": _ERROR if is_error else _FEATURE,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        # The features' last part is constant: a feature is one thing at all positions.
        "jsNodeId": f"{layer}_{node.feature}-{place if is_error else 0}",
        "clerp": label,
    }


def paired(layer: int, feature: int) -> int:
    """Return layer and feature as one number (Cantor)."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def _token_node(token: int, place: int) -> dict[str, Any]:
    return {
        "node_id": f"E_{token}_{place}",
        "feature": place,
        "layer": "E",
        "ctx_idx": place,
        "feature_type": "embedding",
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"E_{token}-{place}",
        "clerp": "",
        "influence": None,
        "activation": None,
    }


def _output_node(patching: Patching, runs: Runs, length: int, layer: int) -> dict[str, Any]:
    pair, answer = patching.prompts.pairs[0], int(patching.prompts.answer[0])
    probability = float(runs.logits[0].softmax(-1)[answer])
    against = f" against {pair.wrong!r}" if patching.metric == "logit difference" else ""
    return {
        **_token_node(answer, length - 1),
        "node_id": f"{layer}_{answer}_{length - 1}",
        "feature": answer,
        "layer": str(layer),
        "feature_type": "logit",
        "token_prob": probability,
        "is_target_logit": True,
        "jsNodeId": f"L_{answer}-{length - 1}",
        "clerp": f"Output {pair.answer!r}{against} (p={probability:.3f})",
    }


def _from_tokens(
    circuit: Circuit, ids: Mapping[Node | None, str], tokens: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return links to nodes at the embedding: all that they do comes from their token."""
    links = []
    for node in circuit.nodes.nodes:
        if node.site == "embed":
            assert node.position is not None
            source = tokens[node.position]["node_id"]
            links.append({"source": source, "target": ids[node], "weight": circuit.nodes[node]})
    return links


def _activation(runs: Runs, node: Node) -> float | None:
    """Return how much a feature fires in the receiving run."""
    if node.feature == ERROR:
        return None
    there = runs.places.position == node.position
    return float(runs.now[node.site].code.columns([node.feature])[there].sum())


def _influence(effects: Tensor) -> list[float]:
    """Return of each node the share of all effects that it and the stronger ones have.

    Viewers hide nodes above a threshold of it.
    """
    order = effects.abs().argsort(descending=True, stable=True)
    shares = torch.empty_like(effects)
    shares[order] = effects.abs()[order].cumsum(0) / effects.abs().sum()
    return shares.tolist()


def _metadata(
    patching: Patching, prompt: list[int], name: str, layers: Mapping[str, int]
) -> dict[str, Any]:
    lm, pair = patching.lm, patching.prompts.pairs[0]
    assert lm.tokenizer is not None
    where = ", ".join(f"{layer}: {site}" for site, layer in layers.items())
    given = "zero" if pair.corrupted is None else f"what they hold in {pair.corrupted!r}"
    return {
        "slug": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "graph",
        "scan": lm.name,
        "transcoder_list": [],
        "prompt_tokens": [lm.tokenizer.decode([token]) for token in prompt],
        "prompt": pair.clean,
        "schema_version": 1,
        "info": {
            "description": f"Layers are {where}. Weights are direct effects on the "
            f"{patching.metric}, by integrated gradients, of giving nodes {given}.",
            "generator": {"name": "monosemy", "version": version("monosemy")},
        },
    }
