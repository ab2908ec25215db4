"""Edges of a circuit: how far a node's change changes another directly, past no third site.

From the receiving run to the donor's, every site's activations are moved along a straight line, all
sites at once, and at each the graph is cut: what a later site holds is then a function of what the
sites before it were given, and its gradient reaches them only by ways that lead through no other
site. An edge is

    E(u -> d) = dm/dd . mean over the line of dd/du . (u' - u)

(Marks et al. 2024, arXiv 2403.19647, take the gradient at the receiving run alone, where a feature
that only the donor fires has none). So edges are complete: where sites cover every way into a node,
those into it, from features and error terms, add up to its effect; those into the metric add up to
its change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders import Code
from monosemy.intervene.nodes import ERROR, Node, check_nodes
from monosemy.intervene.patching import AT_ONCE, STEPS, Patching, Runs
from monosemy.progress import Task


class Edge(NamedTuple):
    """A direct effect, in units of the metric, mean over pairs."""

    source: Node
    target: Node | None
    """None: the metric itself."""
    weight: float


def edges(patching: Patching, nodes: Iterable[Node], *, steps: int = STEPS) -> list[Edge]:
    """Return the edges among some nodes and to the metric, those that are not zero.

    Args:
        patching: the pairs, their sites and metric.
        nodes: which.
        steps: on the line, its midpoints.

    Raises:
        UserError: a site, feature or position that there is not.
    """
    asked = list(dict.fromkeys(nodes))
    check_nodes(asked, patching.sites)
    targets: list[Node | None] = [*asked, None]
    weights = torch.zeros(len(targets), len(asked))
    with Task("edges", len(targets) * len(patching), "nodes") as task:
        for runs in patching.runs():
            written = _Written.of(runs, asked)
            gradients = {
                name: runs.mean_gradient(runs.deltas[name], steps)
                for name in dict.fromkeys(node.site for node in asked)
            }
            shares = (torch.arange(steps, device=runs.batch.text.device) + 0.5) / steps
            at_once = max(AT_ONCE // len(runs.batch.pairs), 1)
            passes = [_Line(runs, some, gradients) for some in shares.split(at_once)]
            for number, target in enumerate(targets):
                for line in passes:
                    weights[number] += written.along(line.gradients(target)).cpu() / steps
                task.advance(len(runs.batch.pairs))
    weights /= len(patching)
    return [
        Edge(asked[source], targets[target], float(weights[target, source]))
        for target, source in weights.nonzero().tolist()
    ]


@dataclass(frozen=True)
class _Written:
    """What nodes change at their sites in a batch: site by site, entries of rows and nodes."""

    n_nodes: int
    entries: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    """Site -> each entry's row, what is added there [entries, d_out], and node."""

    @classmethod
    def of(cls, runs: Runs, nodes: Sequence[Node]) -> _Written:
        entries = {}
        for name, delta in runs.deltas.items():
            numbers = [number for number, node in enumerate(nodes) if node.site == name]
            if not numbers:
                continue
            row, value, direction, which = runs.writes(delta, [nodes[n] for n in numbers])
            added = value[:, None] * torch.cat([delta.site.W_dec, delta.error])[direction]
            entries[name] = row, added, torch.tensor(numbers, device=row.device)[which]
        return cls(len(nodes), entries)

    def along(self, gradients: Mapping[str, Float[Tensor, "rows d"]]) -> Float[Tensor, " nodes"]:
        """Return each node's change times a gradient at its site; 0 where there is none."""
        found = torch.zeros(self.n_nodes)
        for name, g in gradients.items():
            if name in self.entries:
                row, added, node = self.entries[name]
                found = found.to(g.device).index_add(0, node, (added * g[row]).sum(1))
        return found


class _Line:
    """A pass at some points of the line, each pair at each, cut at every site."""

    def __init__(
        self,
        runs: Runs,
        shares: Float[Tensor, " points"],
        gradients: Mapping[str, Float[Tensor, "rows d_out"]],
    ) -> None:
        """Run the model; `gradients` are those of the metric at sites that hold targets."""
        self.runs, self.weights = runs, gradients
        self.sites, self.points = runs.of_all.sites, len(shares)
        batch = len(runs.batch.pairs)
        self.rows = torch.arange(batch, device=shares.device).repeat(len(shares))
        self.text = runs.batch.text.repeat(len(shares), 1)
        self._by = shares.repeat_interleave(len(runs.places.row))[:, None]
        self._arrived: dict[str, Tensor] = {}
        self._left: dict[str, Tensor] = {}
        self._leaves: dict[str, Tensor] = {}
        self._codes: dict[str, Code] = {}
        self._cuts = {site.there: name for name, site in self.sites.items()}
        names = dict.fromkeys(n for site in self.sites.values() for n in (site.here, site.there))
        lm, read = runs.of_all.lm, runs.read
        with lm.edit({name: partial(self._pass, name) for name in names}):
            logits = lm.logits(
                read.tokens[self.rows], attention_mask=read.mask[self.rows], gradients=True, last=1
            )
        self.logits = logits[:, -1]

    def _pass(self, name: str, y: Tensor, tokens: Tensor | None) -> Tensor:
        self._arrived[name] = self._left[name] = y
        if name in self._cuts:
            site = self._cuts[name]
            then = self.runs.now[site].y.repeat(self.points, 1) + self._by * self.runs.deltas[
                site
            ].y.repeat(self.points, 1)
            leaf = y.detach().clone()
            leaf[self.text] = then.to(y.dtype)
            self._leaves[name] = leaf.requires_grad_()
            self._left[name] = leaf.clone()  # later code may change it in place (Falcon)
        return self._left[name]

    def gradients(self, target: Node | None) -> dict[str, Float[Tensor, "rows d_out"]]:
        """Return, site by site, the gradient of a target times what the metric makes of it."""
        with torch.enable_grad():
            value = self._value(target)
        found: dict[str, Tensor] = {}
        if not value.requires_grad:
            return found
        leaves = list(self._leaves.values())
        got = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        by_hook = dict(zip(self._leaves, got, strict=True))
        text = self.runs.batch.text
        for name, site in self.sites.items():
            g = by_hook[site.there]
            if g is not None:
                found[name] = g.float().view(self.points, *text.shape, -1).sum(0)[text]
        return found

    def _value(self, target: Node | None) -> Float[Tensor, ""]:
        """Return what a gradient is taken of, over all rows."""
        if target is None:
            return self.runs.measure(self.logits, self.rows).sum()
        site, code = self.sites[target.site], self._code(target.site)
        places = self.runs.places.position.repeat(self.points)
        weight = self.weights[target.site]
        if target.feature == ERROR:
            y = self._arrived[site.there][self.text].float()
            error = y - code.decode(site.W_dec)
            rows = (error * weight.repeat(self.points, 1)).sum(1)
        else:
            z = code.columns([target.feature])[:, 0]
            rows = z * (weight @ site.W_dec[target.feature].float()).repeat(self.points)
        return (rows if target.position is None else rows[places == target.position]).sum()

    def _code(self, name: str) -> Code:
        if name not in self._codes:
            site = self.sites[name]
            held = self._arrived if site.here == site.there else self._left
            x = held[site.here][self.text].float()
            self._codes[name] = site.encode(x)
        return self._codes[name]
