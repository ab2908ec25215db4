"""Nodes: features of dictionaries at several hook points, and what each dictionary leaves over.

A site is a place in a model, most often with a dictionary. What that explains is, token by token,

    y = z W_dec + b_dec + err

so that a feature writes z_i d_i, and whatever features and bias do not write is the error term (of
a transcoder with a linear path, that path too). Nodes of one site add up to y, wherever they come
from. Only places where a feature fires are ever held. Where there is no dictionary, nodes are the
channels of activations, and nothing is left over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.coders import Code, Dictionary
from monosemy.coders.dictionary import check_feature
from monosemy.coders.support import SparseSupport, dot
from monosemy.errors import UserError
from monosemy.lm import LM

ERROR = -1
"""In place of a feature's number: the error term."""


class Node(NamedTuple):
    """A feature, or with `ERROR` what is left over, at one position or over all of them."""

    site: str
    """Hook point, of a transcoder `input -> target`."""
    feature: int
    position: int | None = None
    """Counted from the end, -1 the last token; None: all."""


class Site(ABC):
    """A place in a model that nodes explain: read at `here`, written at `there`.

    Attributes:
        here: hook point.
        there: hook point.
        W_dec: [width, d_out], directions of features.
        bias: [d_out], what is there when no feature fires and nothing is left over.
    """

    def __init__(self, here: str, there: str, W_dec: Tensor, bias: Tensor) -> None:
        self.here, self.there, self.W_dec, self.bias = here, there, W_dec, bias

    @property
    def name(self) -> str:
        """Hook point, of a transcoder `input -> target`."""
        return self.here if self.here == self.there else f"{self.here} -> {self.there}"

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.W_dec)

    @abstractmethod
    def encode(self, x: Float[Tensor, "rows d_in"]) -> Code:
        """Return which features fire; gradients flow."""

    @torch.no_grad()
    def state(self, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> State:
        """Return what the site holds, from its input and what it explains."""
        return State(y.detach().float(), self.encode(x.detach().float()))

    def nothing(self, rows: int) -> State:
        """Return the site with no feature firing and nothing left over."""
        none = torch.zeros(0, dtype=torch.long, device=self.bias.device)
        support = SparseSupport.from_places(none, none, rows, self.width)
        return State(self.bias.expand(rows, -1), Code(self.bias.new_zeros(0), support))


class Features(Site):
    """A dictionary in a model."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._coder = coder = dictionary.coder
        W_dec, bias = coder.W_dec.detach(), coder.b_dec.detach().float()
        super().__init__(dictionary.hookpoint, dictionary.explains, W_dec, bias)

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Code:
        """Return which features fire; gradients flow."""
        return self._coder.encode_sparse(x)


class Neurons(Site):
    """A hook point without a dictionary: each channel of its activations is a node."""

    def __init__(self, lm: LM, hookpoint: str) -> None:
        """Find the hook point.

        Raises:
            UserError: unknown hook point.
        """
        width = lm.hookpoint(hookpoint).width
        eye, zeros = torch.eye(width, device=lm.device), torch.zeros(width, device=lm.device)
        super().__init__(hookpoint, hookpoint, eye, zeros)

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Code:
        """Return every channel, as a code; gradients flow."""
        return Code.from_mask(x, torch.ones_like(x, dtype=torch.bool))


def sites_of(lm: LM, asked: Iterable[Dictionary | str]) -> dict[str, Site]:
    """Return sites by name: dictionaries', or at hook points those of neurons.

    Raises:
        UserError: there are none, two have one name, or an unknown hook point.
    """
    sites: dict[str, Site] = {}
    for one in asked:
        site = Neurons(lm, one) if isinstance(one, str) else Features(one)
        if site.name in sites:
            raise UserError(
                f"two dictionaries at `{site.name}`", "nodes are of one dictionary a hook point"
            )
        sites[site.name] = site
    if not sites:
        raise UserError("there is no dictionary", "give at least one")
    return sites


class State(NamedTuple):
    """What a site holds at some tokens of a run."""

    y: Float[Tensor, "rows d_out"]
    code: Code


@dataclass(frozen=True)
class Delta:
    """What changes at a site from one run to another: the nodes there, and what they add up to."""

    site: Site
    y: Float[Tensor, "rows d_out"]
    code: Code
    """Of features, at every place where one fires in either run."""

    @classmethod
    def between(cls, site: Site, now: State, then: State) -> Delta:
        """Return what leads from one state to the other."""
        width, rows = site.width, len(now.y)
        codes = (now.code, then.code)
        places = torch.cat([code.tokens * width + code.indices for code in codes])
        places, where = places.unique(return_inverse=True)
        values = torch.cat([-now.code.values, then.code.values])
        values = values.new_zeros(len(places)).index_add(0, where, values)
        support = SparseSupport.from_places(places // width, places % width, rows, width)
        return cls(site, then.y - now.y, Code(values, support))

    @cached_property
    def error(self) -> Float[Tensor, "rows d_out"]:
        """Of the error term."""
        return self.y - self.code.decode(self.site.W_dec)

    def along(self, g: Float[Tensor, "rows d_out"]) -> tuple[Tensor, Float[Tensor, " rows"]]:
        """Return each node's change times the gradient along it: features' at places, errors'.

        dm/dz_i = g . d_i, so nothing is as wide as the dictionary; together they are y . g.
        """
        support = self.code.support
        features = self.code.values * dot(g, self.site.W_dec, support)
        return features, (self.y * g).sum(1) - support.per_token(features)

    def of(self, chosen: Bool[Tensor, "_ width_plus_1"], rows: Int[Tensor, " rows"]) -> Tensor:
        """Return what chosen nodes add, [rows, d_out]; `rows` says which line of `chosen` holds."""
        support = self.code.support
        kept = chosen[rows[support.tokens], support.indices]
        moved = support.decode(self.code.values * kept, self.site.W_dec)
        error = chosen[rows, -1]
        return moved + self.error * error[:, None] if error.any() else moved


class Places(NamedTuple):
    """Which pair and position, from the end, each row of a batch is."""

    pair: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    row: Int[Tensor, " rows"]
    """Within the batch."""

    @classmethod
    def of(cls, pairs: Int[Tensor, " batch"], text: Bool[Tensor, "batch time"]) -> Places:
        """Return where text is in a batch."""
        row, column = text.nonzero(as_tuple=True)
        return cls(pairs.to(text.device)[row], column - text.shape[1], row)


def chosen_nodes(
    nodes: Iterable[Node], site: Site, positions: Sequence[int], device: torch.device
) -> Bool[Tensor, "positions width_plus_1"]:
    """Return which nodes of a site are among some, at each position; the last is the error term."""
    chosen = torch.zeros(len(positions), site.width + 1, dtype=torch.bool)
    line = {position: number for number, position in enumerate(positions)}
    for node in nodes:
        if node.site != site.name:
            continue
        if node.position is None:
            chosen[:, node.feature] = True
        elif node.position in line:
            chosen[line[node.position], node.feature] = True
    return chosen.to(device)


def check_nodes(nodes: Iterable[Node], sites: Mapping[str, Site]) -> None:
    """Refuse nodes that there are not.

    Raises:
        UserError: an unknown site, a feature out of range, a position that is not negative.
    """
    for node in nodes:
        if node.site not in sites:
            raise UserError(f"no site `{node.site}`", f"there are: {', '.join(sites)}")
        if node.feature != ERROR:
            check_feature(node.feature, sites[node.site].width)
        if node.position is not None and node.position >= 0:
            raise UserError(
                f"position {node.position}", "count from the end: -1 is the last token of a prompt"
            )


@dataclass(frozen=True, eq=False)
class Effects:
    """The effect of every node at every position of every pair: those that are not zero.

    Attributes:
        sites: names.
        n_pairs: how many pairs were asked.
        site: number of each entry's site.
        pair: number of its pair.
        position: from the end, -1 the last token.
        feature: its number, or `ERROR`.
        value: in units of the metric.
    """

    sites: tuple[str, ...]
    n_pairs: int
    site: Int[Tensor, " n"]
    pair: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    feature: Int[Tensor, " n"]
    value: Float[Tensor, " n"]

    def per_pair(self, site: str) -> Float[Tensor, " pairs"]:
        """Return the sum over a site's nodes, error terms among them."""
        mine = self.site == self.sites.index(site)
        zeros = torch.zeros(self.n_pairs, dtype=self.value.dtype)
        return zeros.index_add(0, self.pair[mine], self.value[mine])

    def nodes(self, *, positions: bool = False) -> NodeEffects:
        """Return each node's effect: summed over positions unless kept, mean over pairs."""
        if not len(self.value):
            return NodeEffects([], self.value, self.value)
        pairs, times, width = (
            self.n_pairs,
            1 - int(self.position.min()),
            int(self.feature.max()) + 2,
        )
        place = -self.position if positions else torch.zeros_like(self.position)
        key = (self.site * width + self.feature + 1) * times + place
        of_pair, where = (key * pairs + self.pair).unique(return_inverse=True)
        sums = self.value.new_zeros(len(of_pair)).index_add(0, where, self.value)
        found, where = (of_pair // pairs).unique(return_inverse=True)
        zeros = self.value.new_zeros(len(found))
        parts = [found // times // width, found // times % width - 1, -(found % times)]
        nodes = [
            Node(self.sites[s], f, p if positions else None)
            for s, f, p in torch.stack(parts, 1).tolist()
        ]
        return NodeEffects(
            nodes,
            zeros.index_add(0, where, sums) / self.n_pairs,
            zeros.index_add(0, where, sums.abs()) / self.n_pairs,
        )


@dataclass(frozen=True, eq=False)
class NodeEffects:
    """Effects of nodes, over pairs.

    Attributes:
        nodes: which.
        mean: over pairs, signs kept.
        size: mean over pairs of the absolute effect: nodes that push some pairs up and others
            down vanish in the mean.
    """

    nodes: list[Node]
    mean: Float[Tensor, " nodes"]
    size: Float[Tensor, " nodes"]

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, node: Node) -> bool:
        return node in self._places

    def __getitem__(self, node: Node) -> float:
        """Return a node's mean effect; 0 for one that never changes."""
        place = self._places.get(node)
        return 0.0 if place is None else float(self.mean[place])

    @cached_property
    def _places(self) -> dict[Node, int]:
        return {node: place for place, node in enumerate(self.nodes)}

    def strongest(self, count: int) -> NodeEffects:
        """Return the nodes of the largest mean effect, up or down, in that order."""
        return self._at(self.mean.abs().sort(descending=True, stable=True).indices[:count])

    def above(self, threshold: float) -> NodeEffects:
        """Return the nodes whose mean effect, up or down, is at least a threshold."""
        return self._at((self.mean.abs() >= threshold).nonzero()[:, 0])

    def _at(self, places: Int[Tensor, " some"]) -> NodeEffects:
        kept = [self.nodes[i] for i in places.tolist()]
        return NodeEffects(kept, self.mean[places], self.size[places])


class Agreement(NamedTuple):
    """How far effects by one method are those by another."""

    nodes: int
    """On how many."""
    correlation: float
    """Pearson's; a few strong nodes decide it."""
    ranks: float
    """Spearman's."""
    slope: float
    """Of the exact effects on the approximate ones, through zero; 1: right in size too."""
    same_sign: float
    """Share."""


def agreement(exact: NodeEffects, approximate: NodeEffects, top: int = 200) -> Agreement:
    """Return how approximate effects agree with exact ones on the strongest nodes.

    The strongest are those of the largest approximate effect among those that have an exact one.

    Raises:
        UserError: fewer than three nodes have both.
    """
    both = [node for node in exact.nodes if node in approximate]
    both = sorted(both, key=lambda node: -abs(approximate[node]))[:top]
    if len(both) < 3:
        raise UserError(
            f"{len(both)} nodes have an exact and an approximate effect", "a correlation takes 3"
        )
    a, b = (torch.tensor([e[n] for n in both], dtype=torch.float64) for e in (exact, approximate))
    ranks = [x.argsort().argsort().double() for x in (a, b)]
    correlation, by_rank = (float(torch.corrcoef(torch.stack(p))[0, 1]) for p in ([a, b], ranks))
    slope = float((a * b).sum() / (b * b).sum())
    same = float((a.sign() == b.sign()).double().mean())
    return Agreement(len(both), correlation, by_rank, slope, same)
