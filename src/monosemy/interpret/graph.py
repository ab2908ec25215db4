"""Explanations without a language model: patterns of tokens that end where a feature fires.

A pattern is a run of tokens, some of them wildcards, of which the last is the token that the
feature fires on. The patterns of a feature are its graph: read from the last token backwards they
form a trie (Neuron-to-Graph, Foote et al. 2023, arXiv 2305.19911).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from monosemy.errors import UserError

START = -1
"""Where text begins: BOS, or nothing before it. Its own symbol, so that patterns can ask for it."""
WILDCARD = -2
"""Any token; not the start of the text."""

_AT_ONCE = 16_384
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Pattern:
    """Tokens in the order of the text; the feature fires on the last.

    Attributes:
        tokens: ids; `WILDCARD` for any token, `START` (first only) where the text must begin.
        activation: mean activation on the pattern by itself, over the exemplars that gave it.
        count: how many exemplars gave it.
    """

    tokens: tuple[int, ...]
    activation: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class Graph:
    """The patterns that explain one feature.

    Attributes:
        patterns: those of most exemplars first.
        bos: the id that begins text for the model, read as `START`; None if it has none.
    """

    patterns: tuple[Pattern, ...]
    bos: int | None = None

    def predict(self, tokens: Any) -> np.ndarray:
        """Return the activation that the patterns predict at each position, 0 where none matches.

        Every path through the trie is followed, so an exact token never hides a wildcard beside
        it. The longest match decides; of equally long ones that with fewest wildcards, then that
        with the largest activation.

        Args:
            tokens: ids as the model reads them, BOS included, [time] or [rows, time].
        """
        rows = np.atleast_2d(np.asarray(tokens, dtype=np.int64))
        _, places, values = Matcher([self]).match(as_read(rows, self.bos))
        predicted = np.zeros(rows.size)
        predicted[places] = values
        return predicted.reshape(np.shape(tokens))

    def ngrams(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return the patterns as text, such as `self[any]name`; those of most exemplars first."""
        return ["".join(_shown(t, tokenizer) for t in pattern.tokens) for pattern in self.patterns]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        patterns = [
            {"tokens": list(p.tokens), "activation": p.activation, "count": p.count}
            for p in self.patterns
        ]
        return {"bos": self.bos, "patterns": patterns}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Graph:
        """Read what `to_dict` wrote.

        Raises:
            UserError: it is something else.
        """
        try:
            patterns = tuple(
                Pattern(tuple(map(int, p["tokens"])), float(p["activation"]), int(p["count"]))
                for p in values["patterns"]
            )
            bos = values["bos"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"this is no graph of patterns: {type(error).__name__} {error}",
                "it holds `bos` and `patterns`, each with `tokens`, `activation` and `count`",
            ) from error
        for pattern in patterns:
            if not pattern.tokens or min(pattern.tokens) < WILDCARD or START in pattern.tokens[1:]:
                raise UserError(
                    f"{list(pattern.tokens)} is no pattern",
                    "token ids, -2 for any token, -1 where text begins and nowhere else",
                )
        return cls(patterns, None if bos is None else int(bos))


class Matcher:
    """The graphs of many features as one trie, matched against text all at once."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        """Build the trie; a graph is known by its place in the sequence."""
        children: dict[tuple[int, int], int] = {}
        ends: list[tuple[int, int, int, float]] = []
        for number, graph in enumerate(graphs):
            for pattern in graph.patterns:
                node = _ROOT
                for token in reversed(pattern.tokens):
                    node = children.setdefault((node, token), len(children) + 1)
                exact = len(pattern.tokens) - pattern.tokens.count(WILDCARD)
                ends.append((node, number, exact, pattern.activation))
        nodes = len(children) + 1
        self._any = np.full(nodes, -1)
        exact_children = []
        for (node, token), child in children.items():
            if token == WILDCARD:
                self._any[node] = child
            else:
                exact_children.append((node, token, child))
        table = np.array(exact_children, dtype=np.int64).reshape(-1, 3)
        self._stride = int(table[:, 1].max(initial=0)) + 3  # beyond START and one unknown token
        keys = table[:, 0] * self._stride + table[:, 1] + 1
        order = np.argsort(keys)
        self._keys, self._children = keys[order], table[order, 2]
        ends.sort(key=lambda end: end[0])
        self._graph = np.array([end[1] for end in ends], dtype=np.int64)
        self._exact = np.array([end[2] for end in ends], dtype=np.int64)
        self._activation = np.array([end[3] for end in ends], dtype=np.float64)
        at = np.array([end[0] for end in ends], dtype=np.int64)
        self._first = np.searchsorted(at, np.arange(nodes))
        self._count = np.bincount(at, minlength=nodes)
        self._depth = max((len(p.tokens) for g in graphs for p in g.patterns), default=0)

    def match(self, rows: Int[np.ndarray, "rows time"]) -> tuple[np.ndarray, ...]:
        """Return where graphs predict that their feature fires, and how much.

        Args:
            rows: ids, `START` where text begins and at padding (`as_read`).

        Returns:
            The number of the graph, the place in the flattened rows and the activation of every
            prediction, by graph and then by place.
        """
        at_once = max(_AT_ONCE // max(rows.shape[1], 1), 1)
        parts = [
            (graph, place + first * rows.shape[1], value)
            for first in range(0, max(len(rows), 1), at_once)
            for graph, place, value in [self._match(rows[first : first + at_once])]
        ]
        graph, place, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(graph, kind="stable")
        return graph[order], place[order], value[order]

    def _match(self, rows: Int[np.ndarray, "rows time"]) -> tuple[np.ndarray, ...]:
        """Follow all paths of all places at once, a token further back each time."""
        flat, context = rows.reshape(-1).astype(np.int64), rows.shape[1]
        place = np.flatnonzero(flat != START)
        node = np.full(len(place), _ROOT)
        found = [(place[:0], place[:0], place[:0])]
        for depth in range(self._depth):
            token = np.where(place % context >= depth, flat[np.maximum(place - depth, 0)], START)
            exact, anything = self._exact_child(node, token), self._any[node]
            anything = np.where(token == START, -1, anything)
            place = np.concatenate([place[exact >= 0], place[anything >= 0]])
            node = np.concatenate([exact[exact >= 0], anything[anything >= 0]])
            first, counts = self._first[node], self._count[node]
            end = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
            found.append((np.repeat(place, counts), end, np.full(len(end), depth)))
        places, ends, depths = (np.concatenate(columns) for columns in zip(*found, strict=True))
        graphs = self._graph[ends]
        order = np.lexsort((self._activation[ends], self._exact[ends], depths, places, graphs))
        graphs, places, ends = graphs[order], places[order], ends[order]
        last = np.ones(len(ends), dtype=bool)  # of its graph and place: the one that decides
        last[:-1] = (np.diff(graphs) != 0) | (np.diff(places) != 0)
        return graphs[last], places[last], self._activation[ends[last]]

    def _exact_child(self, node: np.ndarray, token: np.ndarray) -> np.ndarray:
        """Return the child that a token leads to; -1 where there is none."""
        keys = node * self._stride + np.minimum(token + 1, self._stride - 1)
        return look_up(self._keys, self._children, keys, -1)


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    """Return the value of each key wanted, of keys that ascend from 0 or above."""
    at = np.searchsorted(keys, wanted)
    found = np.append(keys, -1)[at] == wanted
    return np.where(found, np.append(values, missing)[at], missing)


def as_read(
    tokens: Int[np.ndarray, "rows time"],
    bos: int | None,
    attention_mask: Bool[np.ndarray, "rows time"] | None = None,
) -> Int[np.ndarray, "rows time"]:
    """Return token ids with `START` for BOS and padding."""
    starts = np.zeros(tokens.shape, dtype=bool) if bos is None else tokens == bos
    if attention_mask is not None:
        starts |= ~attention_mask
    return np.where(starts, START, tokens)


def _shown(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if token == WILDCARD:
        return "[any]"
    if token == START:
        return "[start]"
    return str(tokenizer.decode([token])).replace("\n", "↵").replace("\t", "⇥")
