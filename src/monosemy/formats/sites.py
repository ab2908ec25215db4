"""What a run shows of its features, gathered for sites and tools that show features."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.formats.names import lens_model
from monosemy.index import FeatureView, Index
from monosemy.index.view import Exemplar
from monosemy.interpret import Features

BATCH = 128
"""Features in a file or request."""
TOP, INTERVALS, PER_INTERVAL = 20, 5, 5
"""Strongest contexts shown; equal intervals from 0 to the largest activation; contexts of each."""
WINDOW = 64
"""Tokens in a context."""
_NEURONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOptions:
    """What is not in a run: what it is to be called, by whom, and how much of it is shown."""

    name: str = "monosemy"
    """Of the set of features: lower-case letters, digits, hyphens and underscores."""
    creator: str = "monosemy"
    """Who made the dictionary: a name, or an id where a site asks for one."""
    features: tuple[int, ...] = ()
    """These only; default: all that fire."""

    def __post_init__(self) -> None:
        """Refuse a name that no site takes."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise UserError(
                f"`{self.name}` is no name for a set of features",
                "allowed: lower-case letters, digits, hyphens and underscores",
            )


@dataclass(frozen=True, slots=True)
class Group:
    """Contexts chosen in one way."""

    low: float
    """Of the interval of activations; -1: the strongest."""
    high: float
    share: float
    """Of all tokens, whose activation is in the interval; -1: the strongest."""
    contexts: list[Exemplar] = field(default_factory=list)


class Showing:
    """A run's features as sites show them: only arrays of the index and weights are read."""

    def __init__(self, run: str | Path, options: SiteOptions) -> None:
        """Open a run that has an index.

        Raises:
            UserError: it has none, a feature that is asked for does not exist, or none fires.
        """
        self.options = options
        self.dictionary = Dictionary.from_pretrained(run)
        self.features = Features(Index.open(run))
        for feature in options.features:
            self.index.check_feature(feature)
        self.shown = sorted(options.features or self.index.live)
        if not self.shown:
            raise UserError(f"no feature of `{run}` fires", "look at more: monosemy index RUN")

    @property
    def index(self) -> Index:
        """Who fires where."""
        return self.features.index

    @property
    def model(self) -> str:
        """What Neuronpedia and TransformerLens call the model."""
        return lens_model(self.dictionary.provenance.model)

    @property
    def layer(self) -> int:
        """The block that its hook point is in; 0 where the hook point is in none."""
        found = re.match(r"layers\.(\d+)", self.dictionary.provenance.explains)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """What Neuronpedia calls a dictionary: layer and set."""
        return f"{self.layer}-{self.options.name}"

    @property
    def rows(self) -> int:
        """Rows of text looked at."""
        return len(self.index.text) // self.index.text.context

    @property
    def corpus(self) -> str:
        """What text was looked at."""
        return str(self.index.manifest["text"].get("source", ""))

    @cached_property
    def directions(self) -> np.ndarray:
        """[width, d_out] what each feature writes."""
        return self.dictionary.coder.W_dec.detach().float().cpu().numpy()

    def batches(self) -> Iterator[list[int]]:
        """Yield the features shown, as many at a time as go into a file."""
        for first in range(0, len(self.shown), BATCH):
            yield self.shown[first : first + BATCH]

    def view(self, feature: int) -> FeatureView:
        """Return figures and logit lens of a feature."""
        return self.features.view(feature, exemplars=0)

    def groups(self, feature: int) -> list[Group]:
        """Return a feature's strongest contexts, then some of each interval, strongest first."""
        index = self.index
        places, values = index.entries(feature)
        top = float(index.max[feature])
        strongest = index.exemplars(feature, TOP, WINDOW)
        found = [Group(-1.0, top, -1.0, strongest)]
        if not len(values):
            return found
        edges = np.linspace(0, top, INTERVALS + 1)
        chance = np.random.default_rng(feature)
        for i in reversed(range(INTERVALS)):
            low, high = float(edges[i]), float(edges[i + 1])
            inside = np.flatnonzero((values >= low) & (values <= high))
            silent = index.n_tokens - len(values) if i == 0 else 0
            drawn = np.sort(chance.permutation(inside)[:PER_INTERVAL])
            contexts = [index.exemplar(feature, int(p), WINDOW) for p in places[drawn]]
            share = (len(inside) + silent) / max(index.n_tokens, 1)
            found.append(Group(low, high, share, contexts))
        return found

    def lens(self, feature: int) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """Return the tokens that it promotes and those that it suppresses, furthest first."""
        found = self.features.lens(feature)
        return found[: len(found) // 2], found[len(found) // 2 :]

    def columns(self, feature: int) -> dict[str, Any]:
        """Return the fields that SAEDashboard and Neuronpedia share."""
        view = self.view(feature)
        promoted, suppressed = self.lens(feature)
        edges, counts = view.histogram
        middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
        direction = self.directions[feature]
        largest = np.argsort(-direction, kind="stable")[:_NEURONS]
        total = float(np.abs(direction).sum()) or 1.0
        others, pearson, cosine = self._correlated(feature)
        return {
            "neuron_alignment_indices": largest.tolist(),
            "neuron_alignment_values": direction[largest].tolist(),
            "neuron_alignment_l1": (np.abs(direction[largest]) / total).tolist(),
            "correlated_neurons_indices": [],
            "correlated_neurons_pearson": [],
            "correlated_neurons_l1": [],
            "correlated_features_indices": others,
            "correlated_features_pearson": pearson,
            "correlated_features_l1": cosine,
            "neg_str": [token for token, _ in suppressed],
            "neg_values": [value for _, value in suppressed],
            "pos_str": [token for token, _ in promoted],
            "pos_values": [value for _, value in promoted],
            "frac_nonzero": view.density,
            "freq_hist_data_bar_values": middles,
            "freq_hist_data_bar_heights": [float(count) for count in counts],
            "logits_hist_data_bar_heights": [],
            "logits_hist_data_bar_values": [],
            "decoder_weights_dist": [],
        }

    def _correlated(self, feature: int) -> tuple[list[int], list[float], list[float]]:
        arrays = self.index.arrays("similar")
        if "correlated_ids" not in arrays:
            return [], [], []
        ids, scores = arrays["correlated_ids"][feature], arrays["correlated_scores"][feature]
        ids, scores = ids[ids >= 0][:_NEURONS], scores[ids >= 0][:_NEURONS]
        norms = np.linalg.norm(self.directions[[feature, *ids]], axis=1).clip(1e-12)
        cosines = self.directions[ids] @ self.directions[feature] / (norms[0] * norms[1:])
        return ids.tolist(), scores.tolist(), cosines.tolist()


def finite(value: Any, digits: int | None = None) -> Any:
    """Return JSON values without NUL characters; numbers that are not finite become 0.

    `digits`: places that floats are rounded to.
    """
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        if not math.isfinite(value):
            return 0.0
        return value if digits is None else round(value, digits)
    if isinstance(value, dict):
        return {key: finite(inside, digits) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inside, digits) for inside in value]
    return value


LOST = [
    "correlated neurons, and the histogram of logits: an index has only a feature's own",
    "the fingerprint, which tokens count, names that people gave, and tables of concepts",
]

Writer = Callable[[Path, Path, SiteOptions], list[str]]
"""Writes what a run shows into an empty folder; returns what is not in it."""
