"""How much a sparsity penalty weighs: held by hand, or by a controller that reaches a target L0."""

from __future__ import annotations

import math
from dataclasses import dataclass

RAMP = 0.3
"""Share of the run over which the L0 asked for falls from where it starts to the target."""
LOWEST, HIGHEST = 1e-6, 1e6
_PROPORTIONAL = 1.5
_INTEGRAL_SHARE, _SHORTEST, _LONGEST = 1 / 25, 10.0, 300.0
"""Steps over which the integral takes up an error once: a share of the run, within limits. Adam
moves biases and thresholds by about the learning rate a step, so L0 takes some tens of steps to
follow, however short or long the run."""
_SMOOTHING = 0.2
_LARGEST_ERROR = 0.7
_TOO_FEW, _RELIEF = -0.3, 30.0
"""Error in log L0 from which too few features fire, and the integral's time there: a weight that
is too light only takes time, one that is too heavy kills features that are needed later."""


@dataclass(slots=True)
class Controller:
    """Moves a penalty's weight until the batch's L0 follows a path down to its target.

    A proportional-integral controller of log weight by the error in log L0. The path falls
    geometrically over the first part of the run from the L0 that the run starts with; a sudden
    weight would kill features that are needed later.
    """

    target: float
    steps: int
    weight: float = 1.0
    integral: float = 0.0
    """Log weight but for the part proportional to the error."""
    l0: float = 0.0
    """Smoothed over some five steps."""
    started_at: float = 0.0
    step_count: int = 0

    def update(self, l0: float) -> float:
        """Take note of a step's L0; return the weight for the next."""
        now = math.log(max(l0, 1e-3))
        if not self.step_count:
            self.l0 = self.started_at = math.exp(now)
            self.integral = math.log(self.weight)
        self.l0 = math.exp((1 - _SMOOTHING) * math.log(self.l0) + _SMOOTHING * now)
        error = math.log(self.l0 / self.asked())
        error = min(max(error, -4 * _LARGEST_ERROR), _LARGEST_ERROR)
        time = min(max(_INTEGRAL_SHARE * self.steps, _SHORTEST), _LONGEST)
        if error < _TOO_FEW:
            time = min(time, _RELIEF)
        low, high = math.log(LOWEST), math.log(HIGHEST)
        self.integral = min(max(self.integral + error / time, low), high)
        log_weight = min(max(self.integral + _PROPORTIONAL * error, low), high)
        self.weight = math.exp(log_weight)
        self.step_count += 1
        return self.weight

    def asked(self) -> float:
        """Return the L0 that the path asks for now."""
        share = min(self.step_count / max(RAMP * self.steps, 1), 1.0)
        start = max(self.started_at, 1e-3)
        return math.exp((1 - share) * math.log(start) + share * math.log(self.target))

    @property
    def saturated(self) -> bool:
        """Say whether the weight is at the end of its range."""
        return not LOWEST * 1.01 < self.weight < HIGHEST / 1.01

    def state_dict(self) -> dict[str, float]:
        """Return what changes as a run goes on."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a saved state."""
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("weight", "integral", "l0", "started_at", "step_count")
