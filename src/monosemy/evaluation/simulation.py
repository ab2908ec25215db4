"""Features as their explanations predict them, held against features as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.coders.support import SparseSupport
from monosemy.evaluation.baselines import Reconstruct
from monosemy.interpret.firings import Firings, TokenRows
from monosemy.interpret.graph import Graph, Matcher, Pattern
from monosemy.metrics import detection

Kind = Literal["own", "explained", "ablated"]
"""Features' activations as they are, as predicted, or at their means."""


class Simulation:
    """The activations that graphs predict for features of a coder.

    What a graph says is multiplied by E[s a] / E[s^2] over training tokens, s being what it says
    and a the feature's activation: the number that fits best (Gao et al. 2024, section 4.4).
    """

    def __init__(
        self,
        coder: SparseCoder,
        features: np.ndarray,
        graphs: Sequence[Graph],
        rows: TokenRows,
        firings: Firings,
    ) -> None:
        """Fit what predictions are multiplied by.

        Args:
            coder: whose features they are.
            features: those explained, each once.
            graphs: the explanation of each.
            rows: training text.
            firings: who fires where in it.
        """
        self.coder, self.features, self.graphs = coder, features, list(graphs)
        self._matcher, self._scale = Matcher(self.graphs), np.ones(len(features))
        index, places, said = self.predict(rows)
        actual = firings.at(features, index, places, rows.tokens.size)
        products = np.bincount(index, said * actual, len(features))
        squares = np.bincount(index, said * said, len(features))
        self._scale = products / np.where(squares > 0, squares, 1)
        sums = np.add.reduceat(np.append(firings.values, 0), firings.offsets[:-1])
        means = np.where(firings.counts > 0, sums, 0) / rows.n_tokens
        self._means = torch.from_numpy(means).to(coder.W_dec)
        self.replaced = torch.zeros(coder.width, dtype=torch.bool)
        self.replaced[features] = True

    def replace_all(self) -> None:
        """Take every other feature to be explained by never firing."""
        self.replaced[:] = True

    def predict(self, rows: TokenRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return index in `features`, place and activation of every prediction where counted."""
        index, places, values = self._matcher.match(rows.tokens)
        counted = rows.counted.reshape(-1)[places]
        index, places = index[counted], places[counted]
        return index, places, values[counted] * self._scale[index]

    def reconstruct(self, kind: Kind, rows: TokenRows) -> Reconstruct:
        """Return the coder's reconstruction of a batch with the features explained changed."""
        coder, W_dec = self.coder, self.coder.W_dec
        replaced = self.replaced.to(W_dec.device)

        @torch.no_grad()
        def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
            out, code = coder.reconstruct(x)
            if kind == "own":
                return out, code.l0
            left = out - code.support.decode(code.values * replaced[code.indices], W_dec)
            instead = (self._means * replaced) @ W_dec if kind == "ablated" else self._decoded(rows)
            return left + instead, code.l0

        return reconstruct

    def _decoded(self, rows: TokenRows) -> Tensor:
        """Return [counted tokens, d_out], the sum of directions times predictions."""
        index, places, values = self.predict(rows)
        order = np.argsort(places, kind="stable")
        number = np.cumsum(rows.counted) - 1
        W_dec = self.coder.W_dec
        tokens, features, predicted = (
            torch.from_numpy(a[order]).to(W_dec.device)
            for a in (number[places], self.features[index], values)
        )
        support = SparseSupport.from_places(tokens, features, rows.n_tokens, len(W_dec))
        return support.decode(predicted.to(W_dec.dtype), W_dec)


class Scores:
    """How well a simulation says where features fire, from counts by document and feature."""

    def __init__(self, simulation: Simulation, rows: TokenRows, firings: Firings) -> None:
        """Hold predictions, each an activation above 0, against what happened on some text."""
        document, features = rows.document.reshape(-1).astype(np.int64), simulation.features
        index, places, _ = simulation.predict(rows)
        hit = firings.at(features, index, places, rows.tokens.size) > 0
        fired, where, _ = firings.of_all(features)
        shape = (int(document.max()) + 1, len(features))
        counted = ((index[hit], places[hit]), (index, places), (fired, where))
        self._counts = [
            np.bincount(document[p] * shape[1] + i, minlength=shape[0] * shape[1]).reshape(shape)
            for i, p in counted
        ]
        self._tokens = np.bincount(document[rows.counted.reshape(-1)], minlength=shape[0])
        self.predictions = len(index)

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self._tokens)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return [draws, features] each feature's `detection`, for weights [draws, documents]."""
        hits, predicted, fired = (weights @ counts for counts in self._counts)
        tokens = np.broadcast_to((weights @ self._tokens)[:, None], fired.shape)
        return detection(hits, predicted, fired, tokens)


def token_rule(rows: TokenRows, firings: Firings, feature: int) -> Graph:
    """Return the set of tokens that says best, by F1 on this text, where a feature fires.

    Tokens are taken in the order of the share of their occurrences on which it fires, as many as
    give the best F1: no other set gives a better one.
    """
    text, (places, values) = rows.tokens.reshape(-1), firings.of(feature)
    size = int(text.max()) + 1
    seen = np.bincount(text[rows.counted.reshape(-1)], minlength=size)
    hits = np.bincount(text[places], minlength=size)
    sums = np.bincount(text[places], weights=values, minlength=size)
    order = np.argsort(-hits / seen.clip(1), kind="stable")[: int((hits > 0).sum())]
    f1 = 2 * hits[order].cumsum() / (seen[order].cumsum() + len(places))
    best = order[: int(f1.argmax()) + 1] if len(order) else order
    return Graph(tuple(Pattern((int(t),), float(sums[t] / hits[t]), int(hits[t])) for t in best))
