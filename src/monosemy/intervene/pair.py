"""A continuation with and without an intervention."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SteeringPair:
    """What the model wrote after `prompt` by itself, and with one feature clamped.

    The feature is clamped to `scale` times its largest activation. `original` and `steered` are
    continuations: they do not repeat the prompt.
    """

    feature: int
    scale: float
    prompt: str
    original: str
    steered: str


@dataclass(frozen=True, slots=True)
class Written:
    """A continuation of a prompt, and how likely it is.

    Attributes:
        text: without the prompt.
        tokens: how many were written, the end-of-text token included.
        by_original: mean log-probability of a token under the model as it is, nats.
        by_steered: the same under the steered model; steered on the prompt too.
        distinct: n -> share of its n-grams of tokens that are different ones, for n = 1, 2, 3.
    """

    text: str
    tokens: int
    by_original: float
    by_steered: float
    distinct: dict[int, float]
