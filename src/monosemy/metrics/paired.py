"""Statistics of paired differences, many features at once.

A difference is one text's number less the other's; a row is a pair, a column a feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special, stats

EXACT = 20
"""Differences other than 0, up to which the signed-rank distribution is counted, not approximated.
"""


@dataclass(frozen=True, slots=True)
class SignedRanks:
    """Ranks of the sizes of differences, and what sums of them chance gives.

    Differences of 0 are left out, and equal sizes share a mean rank (Wilcoxon 1945).
    """

    signs: Float[np.ndarray, "pairs features"]
    """-1, 0, 1."""
    ranks: Float[np.ndarray, "pairs features"]
    """From 1 within a feature; 0 where the difference is 0."""

    @classmethod
    def of(cls, d: Float[np.ndarray, "pairs features"]) -> SignedRanks:
        """Rank the sizes of differences."""
        zeros = (d == 0).sum(0)
        ranks = stats.rankdata(np.abs(d), axis=0) - zeros
        return cls(np.sign(d), np.where(d == 0, 0.0, ranks))

    @property
    def n(self) -> Int[np.ndarray, " features"]:
        """Differences other than 0."""
        return (self.signs != 0).sum(0)

    def sums(self, flips: Float[np.ndarray, "draws pairs"]) -> Float[np.ndarray, "draws features"]:
        """Return W+ - W-, the sum of the signed ranks, with the signs of pairs turned."""
        return flips @ (self.signs * self.ranks)

    def effect(
        self, weights: Float[np.ndarray, "draws pairs"] | None = None
    ) -> Float[np.ndarray, "draws features"]:
        """Return the matched-pairs rank-biserial correlation, (W+ - W-) / (W+ + W-) (Kerby 2014).

        NaN where every difference is 0. With bootstrap weights of pairs, their ranks stay.
        """
        weights = np.ones((1, len(self.signs))) if weights is None else weights
        whole = weights @ self.ranks
        none = np.full(whole.shape, np.nan)
        return np.divide(self.sums(weights), whole, out=none, where=whole > 0)

    def p_values(
        self, sums: Float[np.ndarray, "draws features"]
    ) -> Float[np.ndarray, "draws features"]:
        """Return two-sided p-values of sums of signed ranks.

        Every assignment of signs is equally likely. Up to `EXACT` differences they are counted,
        ties included; for more, a normal distribution of variance sum of ranks^2 is taken, which
        says too much rather than too little of the smallest p.
        """
        spread = np.sqrt((self.ranks**2).sum(0))
        z = np.divide(np.abs(sums), spread, out=np.zeros_like(sums), where=spread > 0)
        p = 2 * special.ndtr(-z)
        few = np.flatnonzero((self.n <= EXACT) & (self.n > 0))
        if len(few):
            tails = _tails(self.ranks[:, few])
            size = np.rint(np.abs(sums[:, few])).astype(np.int64)
            p[:, few] = tails[np.arange(len(few)), size]
        return np.where(self.n > 0, p, 1.0)


def _tails(ranks: Float[np.ndarray, "pairs features"]) -> Float[np.ndarray, "features sums"]:
    """Return P(|W+ - W-| >= s), for s = 0, 1, ..., by adding one rank at a time.

    W+ - W- is whole even where ranks are halves, for these come in even numbers.
    """
    twice = np.rint(2 * ranks).astype(np.int64)
    most = int(twice.sum(0).max())
    features = np.arange(twice.shape[1])[:, None]
    place = np.arange(most + 1)
    chance = np.zeros((twice.shape[1], most + 1))
    chance[:, 0] = 1
    for step in twice:
        below = place - step[:, None]
        chance = (chance + np.where(below >= 0, chance[features, below.clip(0)], 0)) / 2
    # The sum of signed ranks is twice W+ less the whole: in units of half ranks, 2 W+ - whole.
    whole = twice.sum(0)[:, None]
    size = np.abs(place - whole / 2).astype(np.int64)
    tails = np.zeros((twice.shape[1], most + 2))
    np.add.at(tails, (np.broadcast_to(features, size.shape), size), chance)
    return tails[:, ::-1].cumsum(1)[:, ::-1].clip(0, 1)


def wilcoxon(d: Float[np.ndarray, "pairs features"]) -> Float[np.ndarray, " features"]:
    """Return two-sided p-values of the signed-rank test that differences lie about 0."""
    ranked = SignedRanks.of(d)
    return ranked.p_values(ranked.sums(np.ones((1, len(d)))))[0]


def cohen_dz(d: Float[np.ndarray, "pairs features"]) -> Float[np.ndarray, " features"]:
    """Return the mean difference over the standard deviation of differences (n - 1).

    0 where every difference is 0, infinite where all are the same.
    """
    mean, spread = d.mean(0), d.std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean == 0, 0.0, mean / spread)


def benjamini_hochberg(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return adjusted p-values: those at most q have a false-discovery rate of q.

    The running minimum, from the largest, of p times n over its rank (Benjamini & Hochberg 1995).
    """
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return adjusted


def random_flips(
    groups: Int[np.ndarray, " pairs"], draws: int, seed: int = 0
) -> Float[np.ndarray, "draws pairs"]:
    """Return signs, 1 or -1, drawn for each group of pairs, which turn together."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, int(groups.max()) + 1))
    return signs[:, groups]


def max_t(
    d: Float[np.ndarray, "pairs features"], flips: Float[np.ndarray, "draws pairs"]
) -> Float[np.ndarray, " features"]:
    """Return p-values that hold for all features together (Westfall & Young 1993, max-T).

    The share of draws, the data among them, in which the largest |t| of any feature is as large as
    this one's; signs of a pair are turned for all features at once, so their dependence stays.
    """
    every = np.concatenate([np.ones((1, len(d))), flips])
    means, square = every @ d / len(d), (d**2).mean(0)
    variance = (square - means**2).clip(0)
    ones = np.where(means == 0, 0.0, np.inf)
    close = variance <= 1e-12 * square
    t = np.abs(np.divide(means, np.sqrt(variance), out=ones, where=~close))
    return (t.max(1)[:, None] >= t[0] * (1 - 1e-9)).mean(0)


def wins(d: np.ndarray) -> np.ndarray:
    """Return 1 for a difference above 0, 0 for one below, 0.5 for 0; any shape.

    Their mean over pairs is the pairwise accuracy, 0.5 by chance.
    """
    return (np.sign(d) + 1) / 2


def steadiest(d: Float[np.ndarray, "pairs features"]) -> int:
    """Return the feature most often of one sign; of equals, that of the largest |d_z|."""
    return int(np.lexsort((-np.abs(cohen_dz(d)), -np.abs(wins(d).mean(0) - 0.5)))[0])


def halves(
    groups: Int[np.ndarray, " pairs"], kinds: Int[np.ndarray, " pairs"]
) -> Bool[np.ndarray, " pairs"]:
    """Return which pairs fall in the first of two halves that share no group.

    The largest group comes first, and each goes where it makes the halves more alike in how many
    pairs of each kind they have, or else in how many they have in all.
    """
    counts = np.zeros((int(groups.max()) + 1, int(kinds.max()) + 1))
    np.add.at(counts, (groups, kinds), 1)
    first = np.zeros(len(counts), dtype=bool)
    ahead = np.zeros(counts.shape[1])
    for group in np.argsort(-counts.sum(1), kind="stable"):
        first[group] = (ahead @ counts[group] or ahead.sum()) <= 0
        ahead += counts[group] if first[group] else -counts[group]
    return first[groups]
