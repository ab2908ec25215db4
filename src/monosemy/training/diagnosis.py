"""What goes wrong in training, seen while it does: a cause by name, numbers, and what to do.

A run is watched over windows that are a share of its steps, so that short and long runs are judged
alike. Where a sign could also be noise, nothing is said: a warning that cries wolf is not read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Literal

from torch import Tensor

from monosemy.coders.jumprelu import QUADRATIC_L0, JumpReLU
from monosemy.training.control import RAMP
from monosemy.training.member import WARM_UP, Member, StepFigures, decay_begins

Cause = Literal[
    "NaN",
    "loss spike",
    "dead features rising",
    "threshold not moving",
    "coefficient saturated",
    "L0 falling too slowly for the steps left",
]

WINDOW, SHORTEST_WINDOW = 1 / 20, 10
"""Share of the run that a judgement looks back on, half the warm-up; and its fewest steps, below
which a median and a trend mean little."""
_KEPT = 100
"""Steps kept of a window; in a longer one, every so many."""

SPIKE_TIMES, SPIKE_DEVIATIONS = 3.0, 8.0
"""A loss is a spike above so many times its median and, for losses that scatter, so many median
absolute deviations (5.4 standard deviations, were they normal) above it."""
SPIKE_FOLLOWED = 1.5
"""Times its own median that FVU or L0 reach in a spike. Where neither does, the loss has only
gained a term, as when the first dead features bring theirs."""

DEAD_MANY = 0.1
"""Share of dead features from which it is said that it rises: a tenth of the dictionary lost."""
DEAD_RISE = 0.02
"""Rise of that share over a window, more than it wavers by from step to step."""

STILL = 1e-4
"""Largest relative change of a threshold over a window that counts as none. Adam moves what has
any gradient by about the learning rate a step, over 1e-4 in all but the oddest settings."""
NEAR = 1.1
"""Sparsity asks for more while L0 is so many times what it should be: the controller's promise is
to come within a tenth."""

SLOW = 1.2
"""L0 over its target from which its fall is judged: twice what the controller's promise leaves."""
SETTLING = 300
"""Steps that the controller is given once it asks for the target itself: by 3% a step its weight
can grow ten-thousandfold, and L0 falls the faster the nearer it comes. In a short run, half of what
is left of the plateau."""
SWINGS = 0.1
"""Share of two windows' steps near or below the target beyond which L0 swings round it, as after a
fall that went too far, and does not fall too slowly."""
SURE = 2.0
"""Standard errors by which a trend is given the benefit of the doubt."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that goes wrong."""

    cause: Cause
    explanation: str
    """What is seen, with its numbers."""
    advice: str
    """What to do about it."""
    stop: bool = False
    """Training on is of no use: the weights are spoilt."""

    def __str__(self) -> str:
        return f"{self.cause}: {self.explanation}; {self.advice}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is remembered of a step."""

    step: int
    loss: float
    fvu: float
    l0: float
    dead_share: float


class Watch:
    """Looks on while a coder trains.

    Each cause is said once, and again only if it was gone for two windows. Nothing of this is
    saved: a run that is gone on with is watched anew from there.

    Args:
        member: the coder in training.
        steps: of the whole run, up to where its learning rate reaches zero.
    """

    def __init__(self, member: Member, steps: int) -> None:
        self.member = member
        self.window = max(int(steps * WINDOW), SHORTEST_WINDOW)
        self.warm_up, self.plateau_end = int(member.steps * WARM_UP), decay_begins(steps)
        self._every = max(self.window // _KEPT, 1)
        self._past: deque[_Seen] = deque(maxlen=2 * self.window // self._every + 2)
        self._usual: _Usual | None = None
        self._thresholds: tuple[int, Tensor] | None = None
        self._last_found: dict[Cause, int] = {}

    def update(self, figures: StepFigures, tokens: int) -> list[Finding]:
        """Take note of the step just taken; return what is newly wrong.

        Args:
            figures: of that step.
            tokens: trained on so far.
        """
        step = self.member.step_count
        broken = self._broken(figures, step, tokens)
        if broken is not None:
            return [broken]
        found = [
            self._spike(figures, step, tokens),
            self._dead_rising(figures, step),
            self._threshold_still(figures, step),
            self._saturated(figures),
            self._falling_slowly(step),
        ]
        self._remember(figures, step)
        return self._news([finding for finding in found if finding is not None], step)

    def _remember(self, figures: StepFigures, step: int) -> None:
        if self._past and step < self._past[-1].step + self._every:
            return
        seen = _Seen(step, figures.loss, figures.fvu, figures.l0, figures.dead_share)
        self._past.append(seen)
        self._usual = _Usual.of(self._since(step - self.window))

    def _since(self, step: int) -> list[_Seen]:
        return [seen for seen in self._past if seen.step >= step]

    def _news(self, found: Sequence[Finding], step: int) -> list[Finding]:
        gone = step - 2 * self.window
        news = [f for f in found if self._last_found.get(f.cause, gone - 1) < gone]
        self._last_found.update({finding.cause: step for finding in found})
        return news

    def _broken(self, figures: StepFigures, step: int, tokens: int) -> Finding | None:
        wrong = {
            "the loss": figures.loss,
            "FVU": figures.fvu,
            "the gradient's norm": figures.gradient,
        }
        wrong = {name: value for name, value in wrong.items() if not math.isfinite(value)}
        if not wrong:
            return None
        seen = ", ".join(f"{name} is {value}" for name, value in wrong.items())
        return Finding(
            "NaN",
            f"{seen} at step {step:,} ({tokens:,} tokens)",
            f"lower lr, which is {self.member.lr:.3g}",
            stop=True,
        )

    def _spike(self, figures: StepFigures, step: int, tokens: int) -> Finding | None:
        usual = self._usual
        if usual is None or step <= self.warm_up:
            return None
        bar = max(SPIKE_TIMES * usual.loss, usual.loss + SPIKE_DEVIATIONS * usual.deviation)
        fvu, l0 = figures.fvu / max(usual.fvu, 1e-12), figures.l0 / max(usual.l0, 1e-12)
        if figures.loss <= bar or max(fvu, l0) < SPIKE_FOLLOWED:
            return None
        return Finding(
            "loss spike",
            f"the loss is {figures.loss:.3g} at step {step:,} ({tokens:,} tokens), its median was "
            f"{usual.loss:.3g}; FVU is {fvu:.1f} times its own and L0 {l0:.1f} times, the "
            f"gradient's norm is {figures.gradient:.3g}",
            "a single one does no harm; if they go on, lower lr, which is "
            f"{self.member.lr:.3g}, or leave tokens of huge norm out with the token policy",
        )

    def _dead_rising(self, figures: StepFigures, step: int) -> Finding | None:
        now = figures.dead_share
        if now < DEAD_MANY or not self._reaches_back(self.window, step):
            return None
        past = self._since(step - self.window) or [self._past[-1]]
        before = past[0].dead_share
        late = [seen.dead_share for seen in past if seen.step >= step - self.window // 2]
        # The first count comes as a jump, from which it may well fall: half a window decides.
        if now < before + DEAD_RISE or min(late, default=0) < DEAD_MANY or now < late[0]:
            return None
        member = self.member
        revive = "" if member.revival == "auxk" else "revive them with auxk, "
        return Finding(
            "dead features rising",
            f"{now:.0%} of {member.coder.width:,} features have not fired for "
            f"{member.dead_after:,} tokens; {step - past[0].step:,} steps before it was "
            f"{before:.0%}",
            f"{revive}lower lr, which is {member.lr:.3g}, choose a smaller width, or "
            f"{_let_more_fire(member)}",
        )

    def _threshold_still(self, figures: StepFigures, step: int) -> Finding | None:
        """Compare thresholds with those of a window before, once a window."""
        coder, before = self.member.coder, self._thresholds
        if not isinstance(coder, JumpReLU) or not self.warm_up <= step <= self.plateau_end:
            return None
        if before is not None and step < before[0] + self.window:
            return None
        now = coder.log_threshold.detach().clone()
        self._thresholds = step, now
        if before is None or not self._asks_for_fewer(figures, coder):
            return None
        moved = math.expm1((now - before[1]).abs().max().item())
        if moved > STILL:
            return None
        asked = self._l0_asked(coder)
        return Finding(
            "threshold not moving",
            f"in {step - before[0]:,} steps no threshold has moved by more than {moved:.1g} of "
            f"itself, while L0 is {figures.l0:.1f}"
            + (f" and {asked:.1f} is asked for" if asked else " and is penalised"),
            f"widen bandwidth, which is {coder.bandwidth:g}: only pre-activations within half of "
            f"it from a threshold move it; or raise lr, which is {self.member.lr:.3g}",
        )

    def _l0_asked(self, coder: JumpReLU) -> float | None:
        """Return the L0 that a step is to have; None where a weight alone decides."""
        if self.member.controller is not None:
            return self.member.controller.asked()
        return (coder.target_l0 or QUADRATIC_L0) if coder.sparsity == "quadratic" else None

    def _asks_for_fewer(self, figures: StepFigures, coder: JumpReLU) -> bool:
        asked = self._l0_asked(coder)
        if asked is None:
            return figures.weight > 0
        l0 = self._usual.l0 if self._usual else figures.l0
        return l0 > NEAR * asked

    def _saturated(self, figures: StepFigures) -> Finding | None:
        controller = self.member.controller
        if controller is None or not controller.saturated:
            return None
        seen = f"L0 is {figures.l0:.1f}, {controller.asked():.1f} is asked for"
        if controller.weight > 1:
            return Finding(
                "coefficient saturated",
                f"the penalty's weight is at its largest, {controller.weight:g}; {seen}",
                f"more weight would not bring L0 down: raise lr, which is {self.member.lr:.3g}, "
                f"or ask for a larger target_l0 than {controller.target:g}",
            )
        return Finding(
            "coefficient saturated",
            f"the penalty's weight is at its smallest, {controller.weight:g}; {seen}",
            "nothing holds L0 down any more: choose a larger width, or ask for a smaller "
            f"target_l0 than {controller.target:g}",
        )

    def _falling_slowly(self, step: int) -> Finding | None:
        """Draw the trend of log L0 on to where the learning rate begins to fall."""
        controller, usual = self.member.controller, self._usual
        if controller is None or usual is None or usual.l0 <= SLOW * controller.target:
            return None
        ramp_end = RAMP * controller.steps
        settled = min(ramp_end + SETTLING, (ramp_end + self.plateau_end) / 2)
        if step < settled or not self._reaches_back(2 * self.window, step):
            return None
        target, left = controller.target, max(self.plateau_end - step, 0)
        near = sum(seen.l0 <= NEAR * target for seen in self._past)
        if near > SWINGS * len(self._past):
            return None
        logs = [math.log(max(seen.l0, 1e-3)) for seen in self._past]
        now, slope, error = _trend([seen.step for seen in self._past], logs)
        slope = min(slope, 0.0)
        if math.exp(now + (slope - SURE * error) * left) <= NEAR * target:
            return None
        return Finding(
            "L0 falling too slowly for the steps left",
            f"L0 is {math.exp(now):.1f}, {target:g} is asked for; as it goes it will be "
            f"{math.exp(now + slope * left):.1f} in {left:,} steps, when the learning rate falls",
            f"train on more tokens, raise lr, which is {self.member.lr:.3g}, or ask for a larger "
            "target_l0",
        )

    def _reaches_back(self, steps: int, step: int) -> bool:
        """Say whether enough steps were seen, over so many steps, to judge."""
        return len(self._past) >= SHORTEST_WINDOW and self._past[0].step <= step - steps


@dataclass(frozen=True, slots=True)
class _Usual:
    """Medians over a window."""

    loss: float
    deviation: float
    """Median absolute deviation of the loss."""
    fvu: float
    l0: float

    @staticmethod
    def of(past: Sequence[_Seen]) -> _Usual | None:
        if len(past) < SHORTEST_WINDOW // 2:
            return None
        loss = median(seen.loss for seen in past)
        return _Usual(
            loss,
            median(abs(seen.loss - loss) for seen in past),
            median(seen.fvu for seen in past),
            median(seen.l0 for seen in past),
        )


def _trend(steps: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """Draw a straight line through points; return its end, slope and the slope's error."""
    x, y = mean(steps), mean(values)
    spread = sum((step - x) ** 2 for step in steps)
    slope = sum((s - x) * (v - y) for s, v in zip(steps, values, strict=True)) / spread
    rest = sum((v - y - slope * (s - x)) ** 2 for s, v in zip(steps, values, strict=True))
    return y + slope * (steps[-1] - x), slope, math.sqrt(rest / (len(steps) - 2) / spread)


def _let_more_fire(member: Member) -> str:
    """Say how to ask for more features a token."""
    if member.coder.has_k:
        return "a larger k"
    return "a smaller penalty" if member.controller is None else "a larger target_l0"
