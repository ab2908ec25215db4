"""ReLU with an L1 penalty weighted by decoder norm (Anthropic, April 2024 update)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder, TrainingCode
from monosemy.coders.select import Choice, Scorer, kth_largest


class ReLU(SparseCoder):
    """z = ReLU(pre); the penalty is sum_i z_i ||W_dec_i||, the norm with its gradient."""

    architecture = "relu"

    def select(self, pre: Float[Tensor, "tokens width"]) -> Code:
        """Keep the positive entries."""
        return Code.from_mask(pre, pre > 0)

    def choose(self, x: Float[Tensor, "tokens d_in"], scorer: Scorer) -> Choice:
        """Choose the positive entries."""
        return scorer.positive(x, self.W_enc, self.b_enc), None

    def penalty(self, code: TrainingCode) -> Float[Tensor, ""]:
        """Return the weighted L1 norm of the code, a mean over tokens."""
        return self.strengths(code.values, code.support).sum() / max(code.support.n_tokens, 1)

    @torch.no_grad()
    def start(self, x: Float[Tensor, "tokens d_in"], l0: float) -> None:
        """Lower the biases until about l0 features fire on a token."""
        self.b_enc.sub_(bar_for(self, x, l0))


def bar_for(coder: SparseCoder, x: Float[Tensor, "tokens d_in"], l0: float) -> Float[Tensor, ""]:
    """Return the number that l0 pre-activations a token exceed, on at most 1,024 tokens."""
    pre = coder.pre_activations(x[:1024])
    return kth_largest(pre.flatten(), max(round(l0 * len(pre)), 1))
