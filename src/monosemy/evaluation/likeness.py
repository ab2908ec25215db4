"""Whether features that are alike are alike in their effects, held against chance.

Likeness is by the cosine of directions, and by cluster. Nulls permute features, so that pairs that
share one are not taken for independent.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.evaluation.feature_effects import FeatureEffects
from monosemy.interpret.logit_lens import direct_logits
from monosemy.lm import LM
from monosemy.metrics import bootstrap_weights, interval

DRAWS = 1000
LEVEL = 0.05
"""p up to which likeness is not put down to chance."""
CLEAR = 0.3
"""Correlation, or difference of mean cosines, from which likeness is called clear: its interval
lies above."""
_BOOTSTRAP = 200
FEWEST = 10
"""Features that it takes."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether features that are alike in one thing are alike in another.

    Attributes:
        correlation: Pearson's, over pairs of features, of the two cosines.
        interval: that holds it with 95% confidence, features drawn anew.
        null: mean and standard deviation of the same, features of one side permuted.
        p: share of permutations, the data among them, that correlate as much (Mantel 1967).
        features: how many.
    """

    correlation: float
    interval: tuple[float, float]
    null: tuple[float, float]
    p: float
    features: int

    @property
    def size(self) -> float:
        """How alike they are, to be judged by `how_like`."""
        return self.correlation


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """Effects of the features of one cluster.

    Attributes:
        cluster: its number.
        features: how many of those measured are in it.
        within: mean cosine of effects of two of them.
        between: mean cosine of the effect of one of them and of one of another cluster.
    """

    cluster: int
    features: int
    within: float
    between: float


@dataclass(frozen=True, slots=True)
class ClusterLikeness:
    """Whether features of one cluster have more like effects than those of different ones.

    Attributes:
        within: mean cosine of effects over pairs of one cluster.
        between: over pairs of different clusters.
        interval: that holds `within` - `between` with 95% confidence, features drawn anew.
        null: mean and standard deviation of `within` - `between`, clusters of features permuted.
        p: share of permutations, the data among them, with as large a difference.
        features: how many are in a cluster.
        pairs: how many pairs are of one cluster.
        clusters: those with two features or more, the most alike first.
    """

    within: float
    between: float
    interval: tuple[float, float]
    null: tuple[float, float]
    p: float
    features: int
    pairs: int
    clusters: list[ClusterRow]

    @property
    def size(self) -> float:
        """`within` - `between`: how alike they are, to be judged by `how_like`."""
        return self.within - self.between


@dataclass(frozen=True, slots=True, eq=False)
class LensAgreement:
    """How far the logit lens, the direct path to the logits, tells what features really change.

    Attributes:
        correlations: Pearson's over tokens, of the lens and the effect of each feature.
        rest: of each effect, what the lens does not tell.
        share: of the variance of all effects over tokens that the lens tells, each scaled to fit:
            large effects count most.
        median: that of the correlations.
        null: mean and standard deviation of the median, the lens of features permuted.
        p: share of permutations, the data among them, with as large a median.
    """

    correlations: Float[np.ndarray, " n"]
    rest: Float[np.ndarray, "n tokens"]
    share: float
    median: float
    null: tuple[float, float]
    p: float


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """Whether like features of a dictionary have like effects on logits, and on later features.

    Attributes:
        direction: cosines of directions against cosines of effects.
        given_texts: the same with the part taken out that the texts explain, on which effects were
            measured: by the cosine of the logits that they have as they are.
        beyond_lens: as `direction`, of the part of effects that the logit lens does not tell: the
            lens of like directions is like. None where the dictionary has no logit lens.
        cluster: pairs of one cluster against others; None where there are no clusters.
        later: as `direction`, of effects on later features; None where there are none.
        lens: the logit lens against effects; None where the dictionary has no logit lens.
    """

    direction: Agreement
    given_texts: Agreement
    beyond_lens: Agreement | None
    cluster: ClusterLikeness | None
    later: Agreement | None
    lens: LensAgreement | None

    def lines(self) -> list[str]:
        """Return each figure beside its null, a line each."""
        n, given = self.direction.features, self.given_texts
        lines = [
            f"direction: cosines of directions and of effects correlate by "
            f"{_beside(self.direction)} over {n * (n - 1) // 2:,} pairs; by "
            f"{given.correlation:.2f} when what the texts explain is taken out (p = {given.p:.3f})"
        ]
        if (beyond := self.beyond_lens) is not None:
            lines.append(
                "direction, beyond the lens: cosines of directions and of what the logit lens does "
                f"not tell of effects correlate by {_beside(beyond)}"
            )
        if self.later is not None:
            lines.append(
                "direction, later: cosines of directions and of effects on later features "
                f"correlate by {_beside(self.later)}"
            )
        if (c := self.cluster) is not None:
            lines.append(
                f"cluster: mean cosine of effects {c.within:.3f} in {c.pairs:,} pairs of one "
                f"cluster, {c.between:.3f} in others, a difference of {_beside(c, 3)}"
            )
        if (lens := self.lens) is not None:
            lines.append(
                f"logit lens: correlates with the effect by {lens.median:.2f}, median of features "
                f"(lens of another feature: {_null(lens.null)}, p = {lens.p:.3f})"
            )
        return lines

    @property
    def verdict(self) -> str:
        """Whether like features have like effects, in words."""
        said = f"Effects of features of like direction are {how_like(self.direction)}"
        if self.direction.p <= LEVEL < self.given_texts.p:
            said += ", though not when what their texts explain is taken out"
        if self.beyond_lens is not None:
            said += (
                "; beyond the direct path to the logits, which is alike by construction, they are "
                f"{how_like(self.beyond_lens)}"
            )
        if self.cluster is not None:
            said += f"; those of features of one cluster are {how_like(self.cluster)}"
        if self.lens is None:
            return f"{said}."
        most = "most" if self.lens.share >= 0.5 else "less than half"
        return (
            f"{said}. The logit lens tells {most} of what they change in the logits "
            f"({self.lens.share:.0%} of the variance); the rest goes through the layers between."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, but for what is of single features."""
        values = {"verdict": self.verdict, **asdict(self)}
        if self.lens is not None:
            del values["lens"]["correlations"], values["lens"]["rest"]
        return values


def _beside(found: Agreement | ClusterLikeness, digits: int = 2) -> str:
    low, high = (_shown(end, digits) for end in found.interval)
    return (
        f"{_shown(found.size, digits)} ({low} to {high}; features permuted: "
        f"{_null(found.null, digits)}, p = {found.p:.3f})"
    )


def _null(null: tuple[float, float], digits: int = 2) -> str:
    return " ± ".join(_shown(value, digits) for value in null)


def _shown(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # never -0.00


def agreement(
    one: Float[np.ndarray, "n d"],
    other: Float[np.ndarray, "n e"],
    *,
    given: Float[np.ndarray, "n f"] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Agreement:
    """Say whether things that are alike in one respect are alike in another.

    Args:
        one: such as directions of features.
        other: such as their effects; rows are of the same features.
        given: a third respect, whose part in both is taken out by linear regression (partial
            Mantel test, Smouse et al. 1986): such as the texts that effects were measured on.
        draws: permutations.
        seed: of them.

    Raises:
        UserError: there are fewer than `FEWEST`.
    """
    _check_enough(len(one))
    upper = np.triu_indices(len(one), 1)
    a, b = cosines(one), cosines(other)
    if given is not None:
        c = cosines(given)
        a, b = (_without(x, c, upper) for x in (a, b))
    b = b[upper]

    def correlate(order: Int[np.ndarray, " n"]) -> float:
        return _correlation(a[order][:, order][upper], b)

    found, null, p = _permuted(correlate, len(one), draws, seed)
    a = a[upper]
    ends = _bootstrapped(lambda weights: _correlation(a, b, weights), len(one), seed)
    return Agreement(found, ends, null, p, len(one))


def cluster_likeness(
    effects: Float[np.ndarray, "n d"],
    clusters: Int[np.ndarray, " n"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> ClusterLikeness:
    """Say whether features of one cluster have like effects.

    Args:
        effects: of features.
        clusters: which each is in, -1 for those in none, which are left out.
        draws: permutations.
        seed: of them.

    Raises:
        UserError: there are fewer than `FEWEST` in a cluster, all of them in the same, or no two.
    """
    placed = clusters >= 0
    effects, clusters = effects[placed], clusters[placed]
    _check_enough(len(effects), " in a cluster")
    likeness, upper = cosines(effects), np.triu_indices(len(effects), 1)
    same = clusters[:, None] == clusters
    pairs = int(same[upper].sum())
    if pairs in (0, len(upper[0])):
        raise UserError(
            f"{len(effects)} features, all in {'one cluster' if pairs else 'different clusters'}",
            "measure more features",
        )

    near = likeness[upper]

    def difference(order: Int[np.ndarray, " n"]) -> float:
        return float(np.subtract(*_parted(near, same[order][:, order][upper])))

    def weighted(weights: Float[np.ndarray, " pairs"]) -> float:
        return float(np.subtract(*_parted(near, same[upper], weights)))

    _, null, p = _permuted(difference, len(effects), draws, seed)
    rows = []
    for cluster in np.flatnonzero(np.bincount(clusters) > 1).tolist():
        mine = clusters == cluster
        inside = likeness[mine][:, mine][np.triu_indices(int(mine.sum()), 1)]
        outside = likeness[mine][:, ~mine]
        rows.append(
            ClusterRow(cluster, int(mine.sum()), float(inside.mean()), float(outside.mean()))
        )
    return ClusterLikeness(
        *_parted(near, same[upper]),
        _bootstrapped(weighted, len(effects), seed),
        null,
        p,
        len(effects),
        pairs,
        sorted(rows, key=lambda row: -row.within),
    )


def lens_agreement(
    effects: Float[np.ndarray, "n tokens"],
    lens: Float[np.ndarray, "n tokens"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> LensAgreement:
    """Say how far what features change in the logits is what the logit lens says.

    Args:
        effects: change of logits by more of each feature.
        lens: weights of the direct path, of the same features and tokens.
        draws: permutations.
        seed: of them.
    """
    effects, lens = (x - x.mean(1, keepdims=True) for x in (effects, lens))
    both, size = cosines(effects, lens), np.square(effects).sum(1)
    n = np.arange(len(effects))
    found, null, p = _permuted(lambda order: float(np.median(both[n, order])), len(n), draws, seed)
    own = both.diagonal().copy()
    units = lens / np.maximum(np.linalg.norm(lens, axis=1, keepdims=True), 1e-30)
    rest = effects - (effects * units).sum(1, keepdims=True) * units
    share = float((np.square(own.clip(0)) * size).sum() / max(float(size.sum()), 1e-30))
    return LensAgreement(own, rest, share, found, null, p)


def lens_of(
    lm: LM, dictionary: Dictionary, effects: FeatureEffects, *, draws: int = DRAWS, seed: int = 0
) -> LensAgreement | None:
    """Say how far the logit lens tells what more of each feature changes, as ablation shows it.

    None where the dictionary has no logit lens.
    """
    lens = direct_logits(lm, dictionary, effects.features.tolist())
    if lens is None:
        return None
    weights = lens[:, effects.tokens].cpu().numpy()
    return lens_agreement(-effects.ablated, weights, draws=draws, seed=seed)


def measure_likeness(
    dictionary: Dictionary,
    effects: FeatureEffects,
    clusters: Int[np.ndarray, " width"] | None = None,
    lens: LensAgreement | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Likeness:
    """Say whether features of like direction, and of one cluster, have like effects by ablation.

    Args:
        dictionary: whose features.
        effects: theirs.
        clusters: of all features, as `read_clusters` returns; too few of a cluster are left out.
        lens: see `lens_of`.
        draws: permutations for each null.
        seed: of them.

    Raises:
        UserError: effects are of fewer than `FEWEST` features.
    """
    directions = dictionary.coder.W_dec[effects.features.tolist()].cpu().numpy()
    compare = partial(agreement, draws=draws, seed=seed)
    by_cluster = None
    if clusters is not None:
        own = clusters[effects.features]
        with suppress(UserError):
            by_cluster = cluster_likeness(effects.ablated, own, draws=draws, seed=seed)
    return Likeness(
        compare(directions, effects.ablated),
        compare(directions, effects.ablated, given=effects.original),
        None if lens is None else compare(directions, lens.rest),
        by_cluster,
        None if effects.later is None else compare(directions, effects.later),
        lens,
    )


def how_like(found: Agreement | ClusterLikeness) -> str:
    """Say in words how alike the effects of like features are."""
    if found.p > LEVEL:
        return "not shown to be more alike than by chance"
    return "clearly alike" if found.interval[0] >= CLEAR else "more alike than by chance"


def cosines(
    rows: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"] | None = None
) -> Float[np.ndarray, "n m"]:
    """Return the cosine of each row with each of others, or of the same."""
    units, other_units = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
        for x in (rows, rows if others is None else others)
    )
    return units @ other_units.T


def _check_enough(count: int, where: str = "") -> None:
    if count < FEWEST:
        raise UserError(
            f"{count} features{where}", f"it takes {FEWEST} to say whether like ones act alike"
        )


def _permuted(
    statistic: Callable[[Int[np.ndarray, " n"]], float], n: int, draws: int, seed: int
) -> tuple[float, tuple[float, float], float]:
    """Return a statistic of features in their order; its null over other orders; and p."""
    rng = np.random.default_rng(seed)
    found = statistic(np.arange(n))
    null = np.array([statistic(rng.permutation(n)) for _ in range(draws)])
    p = (1 + int((null >= found).sum())) / (1 + draws)
    return found, (float(null.mean()), float(null.std())), p


def _bootstrapped(
    statistic: Callable[[Float[np.ndarray, " pairs"]], float], n: int, seed: int
) -> tuple[float, float]:
    """Return the interval of a statistic of weighted pairs, features drawn with replacement.

    A pair of a feature and itself, drawn twice, is none.
    """
    first, second = np.triu_indices(n, 1)
    drawn = bootstrap_weights(n, _BOOTSTRAP, seed)
    found = np.array([statistic(weights[first] * weights[second]) for weights in drawn])
    known = found[np.isfinite(found)]
    return interval({"": known})[""] if len(known) else (-np.inf, np.inf)


def _correlation(
    a: Float[np.ndarray, " pairs"],
    b: Float[np.ndarray, " pairs"],
    weights: Float[np.ndarray, " pairs"] | None = None,
) -> float:
    """Return Pearson's correlation; 0 where one side does not vary, as of orthogonal directions."""
    weights = np.ones(len(a)) if weights is None else weights
    a, b = (x - _mean(x, weights) for x in (a, b))
    size = float(np.sqrt((weights @ (a * a)) * (weights @ (b * b))))
    return float(weights @ (a * b)) / size if size > 1e-12 else 0.0


def _parted(
    values: Float[np.ndarray, " pairs"],
    same: Bool[np.ndarray, " pairs"],
    weights: Float[np.ndarray, " pairs"] | None = None,
) -> tuple[float, float]:
    """Return the means of pairs that are the same and of those that are not."""
    weights = np.ones(len(values)) if weights is None else weights
    return _mean(values, weights * same), _mean(values, weights * ~same)


def _mean(values: Float[np.ndarray, " pairs"], weights: Float[np.ndarray, " pairs"]) -> float:
    total = float(weights.sum())
    return float(weights @ values) / total if total > 0 else np.nan


def _without(
    x: Float[np.ndarray, "n n"], given: Float[np.ndarray, "n n"], upper: tuple[np.ndarray, ...]
) -> Float[np.ndarray, "n n"]:
    """Return what is left of likeness when the part that another explains is taken away."""
    c = given - given[upper].mean()
    return x - c * (x[upper] @ c[upper] / max(float(c[upper] @ c[upper]), 1e-30))
