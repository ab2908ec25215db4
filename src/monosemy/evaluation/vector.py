"""A steering vector on texts it was not made from, and what features of a dictionary make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monosemy.coders import Dictionary, attach
from monosemy.errors import UserError
from monosemy.interpret.decompose import CODES, ENCODER, SIZES, Decomposition, decompose
from monosemy.intervene.log_odds import (
    STRENGTHS,
    Odds,
    SteeredOdds,
    plain_odds,
    steer_by,
    steer_by_features,
)
from monosemy.intervene.sides import Sides
from monosemy.intervene.vectors import SteeringVector, code_difference

STEERED_SIZES = (4, 16, 64)
"""Numbers of features that are steered with."""


@dataclass(frozen=True, slots=True)
class VectorResult:
    """What was measured of a steering vector."""

    vector: SteeringVector
    hookpoint: str
    """The dictionary's, where the vector is decomposed."""
    plain: Odds
    """Of the model as it is."""
    steered: list[SteeredOdds]
    """By hook point and strength, on held-out texts."""
    best: SteeredOdds
    """Of those, the one that moves the odds furthest on the texts the vector is made of: what is
    chosen on held-out texts would look better than it is."""
    strength: float
    """At which features are steered with: the largest."""
    decomposition: Decomposition
    by_features: dict[str, dict[int, Odds]]
    """Method -> number of features -> odds at the dictionary's hook point."""

    @property
    def whole(self) -> SteeredOdds:
        """The vector itself, where and as strongly as features are steered with."""
        return next(
            s for s in self.steered if (s.hookpoint, s.strength) == (self.hookpoint, self.strength)
        )

    def verdict(self) -> str:
        """Say in words whether the vector steers, and whether its features do."""
        best = self.best
        change, random = best.odds.change, best.random
        beats = random is None or change.low > random.change.high
        told = (
            f"`{best.hookpoint}` times {best.strength:g}, chosen on the texts it is made of, "
            f"changes held-out log-odds by {change.value:+.2f} "
            f"({change.low:+.2f} to {change.high:+.2f})"
        )
        if random is not None:
            told += f", random directions {random.change.value:+.2f}"
        told += "." if beats and change.low > 0 else "; that is not more than chance."
        if beats and best.odds.wanted < 0:
            told += (
                f" Both sides became less likely, the wanted one by {-best.odds.wanted:.2f} nats: "
                "look at smaller strengths."
            )
        whole = self.whole.odds.change.value
        size = max(STEERED_SIZES)
        if CODES in self.by_features and whole > 0:
            shares = {m: self.by_features[m][size].change.value / whole for m in (CODES, ENCODER)}
            told += (
                f" At `{self.hookpoint}` the {size} strongest features of the code difference do "
                f"{shares[CODES]:.0%} of what the vector does, those that the encoder finds in it "
                f"{shares[ENCODER]:.0%}."
            )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, fit for JSON; vectors are left out."""
        parts = self.decomposition
        return {
            "model": self.vector.model,
            "made": self.vector.made,
            "verdict": self.verdict(),
            "plain": asdict(self.plain),
            "steered": [asdict(s) for s in self.steered],
            "best": asdict(self.best),
            "hookpoint": self.hookpoint,
            "strength": self.strength,
            "decomposition": {
                "at_zero": parts.at_zero,
                "biased": parts.biased,
                "negative": parts.negative,
                "methods": {
                    method: {
                        size: {
                            "features": found.features.chosen.tolist(),
                            "weights": found.features.weights.tolist(),
                            "cosine": found.cosine,
                            "fvu": found.fvu,
                        }
                        for size, found in rebuilt.items()
                    }
                    for method, rebuilt in parts.rebuilt.items()
                },
            },
            "by_features": {
                method: {size: asdict(odds) for size, odds in found.items()}
                for method, found in self.by_features.items()
            },
        }


def measure_vector(
    dictionary: Dictionary,
    discovery: Sides,
    held_out: Sides,
    *,
    hookpoints: Sequence[str] = (),
    strengths: Sequence[float] = STRENGTHS,
    random: int = 2,
) -> VectorResult:
    """Make a steering vector, measure it, and decompose it into a dictionary's features.

    Args:
        dictionary: whose features; checked against the model.
        discovery: what the vector is made of.
        held_out: what it is measured on.
        hookpoints: where; none: after every block, and the dictionary's own.
        strengths: multiples of the vector.
        random: random directions of the same norm beside it.

    Raises:
        UserError: the dictionary does not fit the model or is a transcoder, no strength above 0, or
            as `SteeringVector.from_sides`.
    """
    lm = discovery.lm
    dictionary.check_one_place()
    attach(dictionary, lm)
    if not strengths or max(strengths) <= 0:
        raise UserError(
            f"strengths are {', '.join(f'{s:g}' for s in strengths) or 'none'}",
            "at least one must be above 0: features are steered with at the largest",
        )
    own = lm.hookpoint(dictionary.hookpoint).name
    names = [lm.hookpoint(name).name for name in hookpoints or every_block(lm.n_layers)]
    names = list(dict.fromkeys([*names, own]))
    vector = SteeringVector.from_sides(discovery, names)
    parts = decompose(
        dictionary,
        vector.vectors[own],
        vector.norms[own],
        code_difference(discovery, dictionary),
        sizes=SIZES,
    )
    steered = steer_by(vector, held_out, strengths=strengths, random=random)
    seen = steer_by(vector, discovery, strengths=strengths, random=0)
    best = max(range(len(seen)), key=lambda i: seen[i].odds.change.value)
    strength = max(strengths)
    return VectorResult(
        vector,
        own,
        plain_odds(held_out),
        steered,
        steered[best],
        strength,
        parts,
        steer_by_features(vector, parts, held_out, own, strength, sizes=STEERED_SIZES),
    )


def every_block(layers: int) -> list[str]:
    """Return the hook points after each block."""
    return [f"layers.{number}" for number in range(layers)]
