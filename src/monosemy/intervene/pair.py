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
