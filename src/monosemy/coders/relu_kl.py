"""ReLU whose features are each held to a firing rate.

Ng, CS294A lecture notes, sparse autoencoders.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.coder import TrainingCode
from monosemy.coders.relu import ReLU
from monosemy.errors import UserError

SOFTNESS = 0.25
"""Activations well below this feel how often a feature fires; those well above are left alone."""
DEFAULT_L0 = 32.0
_SMALL = 1e-6


class ReLUKL(ReLU):
    """ReLU whose penalty is the sum over features of KL(rate || share of the batch it fires on).

    Ng's features are sigmoids, whose mean is a rate already. The share of tokens that a ReLU fires
    on has no gradient; it is given that of the mean of 1 - exp(-z ||W_dec_i|| / 0.25), which is 0
    where a feature does not fire and near 1 where it fires well. The batch must be large against
    1 / rate.
    """

    architecture = "relu_kl"

    def __init__(self, d_in: int, width: int, *, rate: float | None = None, **common: Any) -> None:
        """Hold features to `rate`, a share of tokens; None: that of the target L0, else of 32.

        Raises:
            UserError: it is not between 0 and 1.
        """
        super().__init__(d_in, width, **common)
        self.rate = rate
        if rate is not None and not 0 < rate < 1:
            raise UserError(f"rate is {rate}", "allowed: between 0 and 1, such as 32 / width")

    def options(self) -> dict[str, Any]:
        """Return the rate, where one was given."""
        return {**super().options(), **({} if self.rate is None else {"rate": self.rate})}

    def penalty(self, code: TrainingCode) -> Float[Tensor, ""]:
        """Return the divergence of firing rates from the one asked, summed over features."""
        soft = 1 - torch.exp(-self.strengths(code.values, code.support) / SOFTNESS)
        fired = (code.values > 0).to(soft.dtype) + (soft - soft.detach())
        rates = code.support.per_feature(fired) / max(code.support.n_tokens, 1)
        rates = rates.clamp(_SMALL, 1 - _SMALL)
        rate = self.rate or min((self.target_l0 or DEFAULT_L0) / self.width, 0.5)
        asked = torch.tensor(rate, dtype=rates.dtype, device=rates.device)
        on = asked * (asked.log() - rates.log())
        off = (1 - asked) * ((1 - asked).log() - (1 - rates).log())
        return (on + off).sum()
