"""JumpReLU: a threshold for each feature (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder, TrainingCode
from monosemy.coders.relu import bar_for
from monosemy.coders.select import Choice, Scorer
from monosemy.coders.support import Support
from monosemy.errors import UserError

Sparsity = Literal["step", "tanh", "quadratic"]

BANDWIDTH = 0.5
"""Width of the window round a threshold in which it feels gradients, where activations are scaled
to mean norm sqrt(d_in) and pre-activations have a standard deviation near 1."""
START_THRESHOLD = 0.1
"""Low, so that a feature that has just come to fire does so weakly."""
TANH_SLOPE = 4.0
THRESHOLD_RATES = {"step": 20.0, "tanh": 5.0, "quadratic": 20.0}
"""Times the learning rate at which log thresholds learn. Adam moves them by about the learning rate
a step: too little for a short run, and most of all where the penalty reaches nothing else."""
QUADRATIC_L0 = 32.0
"""Target of the quadratic penalty where nobody set one."""


class JumpReLU(SparseCoder):
    """z = pre where pre > threshold, else 0; thresholds are learned.

    The step at the threshold has no gradient; it is given that of a ramp of width `bandwidth`
    (a rectangle kernel, section 4 of the paper). The penalty is the number of features that fire,
    whose gradient reaches thresholds only, or with sparsity "tanh" sum_i tanh(4 z_i ||W_dec_i||),
    whose gradient reaches all weights (Anthropic, January 2025 update), or with "quadratic"
    (L0 / target_l0 - 1)^2 (appendix of the paper).
    """

    architecture = "jumprelu"

    def __init__(
        self,
        d_in: int,
        width: int,
        *,
        sparsity: str = "step",
        bandwidth: float = BANDWIDTH,
        **common: Any,
    ) -> None:
        """Start with thresholds of 1; `start` sets them from data.

        Raises:
            UserError: an unknown sparsity, or a bandwidth that is not positive.
        """
        super().__init__(d_in, width, **common)
        if sparsity not in get_args(Sparsity):
            raise UserError(f"no sparsity `{sparsity}`", "allowed: `step`, `tanh`, `quadratic`")
        if not bandwidth > 0:
            raise UserError(f"bandwidth is {bandwidth}, it must be above 0", "0.5 is usual")
        self.sparsity, self.bandwidth = sparsity, bandwidth
        self.log_threshold = nn.Parameter(torch.zeros(width))

    def options(self) -> dict[str, Any]:
        """Return the penalty's form and the bandwidth."""
        return {**super().options(), "sparsity": self.sparsity, "bandwidth": self.bandwidth}

    @property
    def rates(self) -> dict[str, float]:
        """Return the thresholds' rate, which the penalty's form decides."""
        return {"log_threshold": THRESHOLD_RATES[self.sparsity]}

    @property
    def threshold(self) -> Float[Tensor, " width"]:
        """What a pre-activation must exceed to fire, for each feature."""
        return self.log_threshold.exp()

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the entries above their thresholds."""
        return Code.from_mask(pre, pre > self.threshold)

    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Choose what is above its threshold, or in the window below it."""
        return scorer.positive(
            x, self.W_enc, self.b_enc - self.threshold + self.bandwidth / 2
        ), None

    def activate(self, pre: Tensor, support: Support) -> Tensor:
        """Return pre where it exceeds its threshold, else 0."""
        return _Jump.apply(pre, support.at(self.threshold), self.bandwidth)

    def penalty(self, code: TrainingCode) -> Float[Tensor, ""]:
        """Return the number of features that fire on a token, or its smooth relative."""
        if self.sparsity == "tanh":
            fired = torch.tanh(TANH_SLOPE * self.strengths(code.values, code.support))
        else:
            fired = _Step.apply(code.pre, code.support.at(self.threshold), self.bandwidth)
        l0 = fired.sum() / max(code.support.n_tokens, 1)
        if self.sparsity == "quadratic":
            return (l0 / (self.target_l0 or QUADRATIC_L0) - 1) ** 2
        return l0

    @torch.no_grad()
    def start(self, x: Float[Tensor, "tokens d_in"], l0: float) -> None:
        """Lower the biases until about l0 features fire on a token, most of them weakly.

        With biases left at 0 and thresholds as high as that takes, they would fire so strongly
        that the output overshoots, and the first steps would silence most of them.
        """
        self.log_threshold.fill_(math.log(START_THRESHOLD))
        self.b_enc.sub_(bar_for(self, x, l0) - START_THRESHOLD)

    @torch.no_grad()
    def scale_features(self, factor: Float[Tensor, " width"] | Float[Tensor, ""]) -> None:
        """Scale the thresholds too."""
        super().scale_features(factor)
        self.log_threshold.add_(factor.log())


class _Jump(torch.autograd.Function):
    """pre * 1[pre > threshold]; d/dthreshold = -threshold / bandwidth within the window."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors
        window = (pre - threshold).abs() < ctx.bandwidth / 2
        to_threshold = -threshold / ctx.bandwidth * window * gradient
        return gradient * (pre > threshold), to_threshold.sum_to_size(threshold.shape), None


class _Step(torch.autograd.Function):
    """1[pre > threshold]; d/dthreshold = -1 / bandwidth within the window."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors
        window = (pre - threshold).abs() < ctx.bandwidth / 2
        to_threshold = -gradient / ctx.bandwidth * window
        return None, to_threshold.sum_to_size(threshold.shape), None
