"""One coder in training: its loss, optimiser, dead features and step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from monosemy.coders import Code, SparseCoder

AUX_WEIGHT = 1 / 32


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one step measured, on its own batch, before its update."""

    loss: float
    fvu: float
    l0: float
    dead_share: float


class Member:
    """A coder with what it needs to take steps; several can share one stream of activations.

    Activations come centred and scaled (mean zero, mean norm sqrt(d_in)). The loss is the mean
    over tokens of ||x - xhat||^2 / d_in, plus the coder's own penalty (over d_in too), plus
    AuxK: dead features predict what the live ones leave over (Gao et al. 2024, appendix A.2).

    Args:
        coder: trained in place.
        lr: peak learning rate of Adam.
        steps: the whole run; warm-up takes its first twentieth, decay its last fifth.
        dead_after: tokens without firing after which a feature counts as dead.
    """

    def __init__(self, coder: SparseCoder, *, lr: float, steps: int, dead_after: int) -> None:
        self.coder, self.dead_after = coder, dead_after
        self.tokens_since_fired = torch.zeros(
            coder.width, dtype=torch.int64, device=coder.W_enc.device
        )
        self.optimizer = torch.optim.Adam(coder.parameters(), lr=lr, eps=1e-8, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _learning_rate(step, steps)
        )

    def step(self, x: Float[Tensor, "tokens d_in"]) -> StepFigures:
        """Take one step of training on a batch."""
        coder = self.coder
        pre = coder.pre_activations(x)
        code = coder.select_training(pre)
        residual = x - coder.decode_sparse(code)
        error = residual.square().sum(1).mean()
        dead = self._count_dead(code, len(x))
        loss = (error + coder.penalty(code)) / coder.d_in
        if dead.any():
            loss = loss + AUX_WEIGHT * auxiliary_loss(coder, pre, residual.detach(), dead)
        loss.backward()
        _project_decoder_gradient(coder)
        nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        coder.normalise_decoder()
        variance = (x - x.mean(0)).square().sum(1).mean()
        return StepFigures(
            loss=loss.item(),
            fvu=(error / variance).item(),
            l0=(code.values > 0).sum().item() / len(x),
            dead_share=dead.float().mean().item(),
        )

    def _count_dead(self, code: Code, n_tokens: int) -> Bool[Tensor, " width"]:
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired[code.indices[code.values > 0]] = 0
        return self.tokens_since_fired > self.dead_after


def auxiliary_loss(
    coder: SparseCoder,
    pre: Float[Tensor, "tokens width"],
    residual: Float[Tensor, "tokens d_in"],
    dead: Bool[Tensor, " width"],
) -> Float[Tensor, ""]:
    """Return AuxK: how badly the dead features explain the residual, 1 for not at all.

    The d_in / 2 dead features with the largest pre-activations on each token reconstruct the
    residual, which is a constant here; without `b_dec`, which the residual no longer holds. The
    gradient reaches the encoder and the decoder of dead features only.
    """
    pre_dead = pre[:, dead]
    k = min(max(coder.d_in // 2, 1), pre_dead.shape[1])
    values, indices = pre_dead.topk(k, dim=1, sorted=False)
    predicted = Code.from_topk(values.relu(), indices, pre_dead.shape[1]).decode(coder.W_dec[dead])
    spread = (residual - residual.mean(0)).square().sum()
    return (residual - predicted).square().sum() / spread.clamp_min(1e-12)


@torch.no_grad()
def _project_decoder_gradient(coder: SparseCoder) -> None:
    """Take out of each direction's gradient the part along it, which the norm undoes anyway."""
    gradient = coder.W_dec.grad
    if gradient is not None:
        gradient -= (gradient * coder.W_dec).sum(1, keepdim=True) * coder.W_dec


def _learning_rate(step: int, steps: int) -> float:
    warm_up, decay = max(steps // 20, 1), max(steps // 5, 1)
    return min((step + 1) / warm_up, 1.0, max(steps - step, 0) / decay)
