"""What steering vectors do on texts that they were not made from: log-odds, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from monosemy.interpret.decompose import Decomposition
from monosemy.intervene.positions import Positions
from monosemy.intervene.sides import LogProbabilities, Sides
from monosemy.intervene.vectors import SteeringVector
from monosemy.metrics import bootstrap_weights, interval
from monosemy.metrics.table import MetricValue

STRENGTHS = (-1.0, 0.5, 1.0, 2.0)
"""Multiples of a vector, which is not normalised."""
DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely a model finds what is wanted, beside what is not.

    Intervals are 95%, over bootstrap draws of groups.
    """

    log_odds: MetricValue
    """Of pairs, the mean of log P(wanted) - log P(other) after what they share, nats; of texts,
    mean log-probability of a token on the wanted side less that on the other."""
    change: MetricValue
    """Of `log_odds` by what was done; the same draws with and without."""
    wanted: float
    """Change of the mean log-probability of the wanted side."""
    other: float
    """Likewise of the other: odds may rise because both sides became unlikely."""
    right: float | None
    """Share of pairs in which the wanted answer is the likelier, ties half; None of texts."""


@dataclass(frozen=True, slots=True)
class SteeredOdds:
    """What a multiple of a vector does at a hook point."""

    hookpoint: str
    strength: float
    size: float
    """|m v| over the mean norm of activations."""
    odds: Odds
    random: Odds | None
    """Of random directions as long; the mean over several."""


def plain_odds(sides: Sides) -> Odds:
    """Return the odds of the model as it is."""
    found = sides.log_probabilities()
    return compare_odds([found], found)


def steer_by(
    vector: SteeringVector,
    sides: Sides,
    *,
    hookpoints: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    positions: Positions | None = None,
    random: int = 2,
) -> list[SteeredOdds]:
    """Return what a vector does to the odds of texts, by hook point and strength.

    Args:
        vector: what steers.
        sides: texts that it was not made from.
        hookpoints: one at a time; None: all that the vector has.
        strengths: multiples.
        positions: where; None: from the prompt's last token on for pairs, everywhere for texts.
        random: random directions of the same norm beside it; 0 for none.
    """
    base = sides.log_probabilities()
    where = sides.positions if positions is None else positions
    beside = [vector.random(seed) for seed in range(random)]
    found = []
    for name in vector.vectors if hookpoints is None else hookpoints:
        for strength in strengths:

            def odds(
                vectors: Sequence[SteeringVector], name: str = name, strength: float = strength
            ) -> Odds:
                scores = []
                for each in vectors:
                    with sides.lm.edit(each.at(name, strength, positions=where)):
                        scores.append(sides.log_probabilities())
                return compare_odds(scores, base)

            found.append(
                SteeredOdds(
                    name,
                    strength,
                    vector.size(name, strength),
                    odds([vector]),
                    odds(beside) if beside else None,
                )
            )
    return found


def steer_by_features(
    vector: SteeringVector,
    decomposition: Decomposition,
    sides: Sides,
    hookpoint: str,
    strength: float,
    *,
    sizes: Sequence[int],
    positions: Positions | None = None,
) -> dict[str, dict[int, Odds]]:
    """Return the odds when a vector is replaced by what features make of it, by method and number.

    Each is added as many times as the vector would be: one that is made of too little moves less.

    Args:
        vector: what is replaced.
        decomposition: of its part at the hook point.
        sides: texts that it was not made from.
        hookpoint: where.
        strength: multiple.
        sizes: numbers of features, of those the decomposition has.
        positions: as for `steer_by`.
    """
    base = sides.log_probabilities()
    where = sides.positions if positions is None else positions
    found: dict[str, dict[int, Odds]] = {}
    for method, rebuilt in decomposition.rebuilt.items():
        found[method] = {}
        for size in sizes:
            made = replace(vector, vectors={hookpoint: rebuilt[size].vector})
            with sides.lm.edit(made.at(hookpoint, strength, positions=where)):
                found[method][size] = compare_odds([sides.log_probabilities()], base)
    return found


def compare_odds(
    scores: Sequence[LogProbabilities], base: LogProbabilities, draws: int = DRAWS, seed: int = 0
) -> Odds:
    """Return the odds by the mean of some scores, and what they changed.

    Args:
        scores: of the same texts, with something done; the mean over them counts.
        base: without.
        draws: bootstrap draws of groups.
        seed: of the draws.
    """
    wanted, other = (
        np.mean([getattr(s, side) for s in scores], axis=0) for side in ("wanted", "other")
    )
    groups = max(base.wanted_group.max(), base.other_group.max()) + 1
    weights = np.concatenate([np.ones((1, groups)), bootstrap_weights(int(groups), draws, seed)])
    high, low = weights[:, base.wanted_group], weights[:, base.other_group]

    def figure(wanted: np.ndarray, other: np.ndarray) -> MetricValue:
        return _value(_mean(high, wanted) - _mean(low, other))

    above = [(np.sign(s.wanted - s.other) + 1) / 2 for s in scores] if base.paired else []
    return Odds(
        log_odds=figure(wanted, other),
        change=figure(wanted - base.wanted, other - base.other),
        wanted=float((wanted - base.wanted).mean()),
        other=float((other - base.other).mean()),
        right=float(np.mean(above)) if base.paired else None,
    )


def _mean(
    weights: Float[np.ndarray, "draws n"], values: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " draws"]:
    whole = weights.sum(1)
    return np.divide(weights @ values, whole, out=np.full(len(weights), np.nan), where=whole > 0)


def _value(draws: Float[np.ndarray, " draws"]) -> MetricValue:
    known = draws[1:][np.isfinite(draws[1:])]
    if not len(known):
        known = draws[:1]
    return MetricValue(float(draws[0]), *interval({"": known})[""])
