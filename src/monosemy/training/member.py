"""One coder in training: its loss, optimiser, dead features and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosemy.coders import SparseCoder
from monosemy.coders.coder import TrainingCode, mean_square
from monosemy.coders.select import Scorer
from monosemy.coders.support import SparseSupport
from monosemy.training.control import Controller
from monosemy.training.dead import (
    AUXK_WEIGHT,
    RESAMPLES,
    Revival,
    auxk_loss,
    fired,
    ghost_loss,
    resample,
)

BETAS = (0.8, 0.99)
"""Of Adam: shorter memories than usual, for gradients that turn as features form."""
WARM_UP, DECAY = 1 / 10, 1 / 5
"""Shares of a run over which the learning rate rises, and at the end falls."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one step measured, on its own batch, before its update."""

    loss: float
    fvu: float
    l0: float
    dead_share: float
    weight: float
    """Of the sparsity penalty; 0 where there is none."""
    gradient: float
    """Norm of all gradients, before clipping."""


Judge = Callable[[Tensor], Tensor]


class Member:
    """A coder with what it needs to take steps; several can share one stream of activations.

    Activations come centred and scaled (mean zero, mean norm sqrt(d_in)). The loss is the mean
    over tokens of ||y - yhat||^2 / d, plus the coder's penalty over d times its weight, plus what
    revives dead features.

    Args:
        coder: trained in place.
        lr: peak learning rate of Adam.
        steps: the whole run; warm-up takes its first tenth, decay its last fifth.
        dead_after: tokens without firing after which a feature counts as dead.
        weight: of the penalty, a number held or a controller.
        revival: how dead features are brought back.
        ema: decay of an average of the weights that the finished coder takes; 0 for none.
        clamp: features held at an activation on every token, while the others train round them.
        colour: where activations come whitened, what takes the explained ones back to the model's
            own: FVU is measured there.
        scorer: shared by members that take turns.
    """

    def __init__(
        self,
        coder: SparseCoder,
        *,
        lr: float,
        steps: int,
        dead_after: int,
        weight: float | Controller = 0.0,
        revival: Revival = "auxk",
        ema: float = 0.0,
        clamp: Mapping[int, float] | None = None,
        colour: Float[Tensor, "d_out d_out"] | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        device = coder.W_enc.device
        self.coder, self.lr, self.steps, self.dead_after = coder, lr, steps, dead_after
        self.end = steps
        """When the learning rate reaches zero: later than `steps` if the run is extended. Warm-up,
        annealing and the controller's path keep to `steps`."""
        self.controller = weight if isinstance(weight, Controller) else None
        self.weight = weight.weight if isinstance(weight, Controller) else weight
        self.revival = revival
        self.scorer = scorer or Scorer(device)
        self.clamp = dict(clamp or {})
        self.colour = None if colour is None else colour.to(device)
        self.step_count = 0
        self.tokens_since_fired = torch.zeros(coder.width, dtype=torch.int64, device=device)
        groups = [
            {"params": [parameter], "rate": coder.rates.get(name, 1.0)}
            for name, parameter in coder.named_parameters()
        ]
        self.optimizer = torch.optim.Adam(groups, lr=lr, betas=BETAS, eps=1e-8, fused=True)
        self.generator = torch.Generator().manual_seed(0)
        self.ema = WeightAverage(coder, ema) if ema else None

    def step(
        self,
        x: Float[Tensor, "tokens d_in"],
        y: Float[Tensor, "tokens d_out"] | None = None,
        judge: Judge | None = None,
    ) -> StepFigures:
        """Take one step of training.

        Args:
            x: a batch of inputs.
            y: what is to be explained, where it is not x.
            judge: turns the output, [tokens, d_out], into the loss that takes the place of the
                squared error's.
        """
        coder = self.coder
        y = x if y is None else y
        coder.advance(min(self.step_count / self.steps, 1.0))
        code = self._clamped(coder.encode_training(x, self.scorer))
        rest = y - coder.base(x)
        error, left = coder.error(code, rest)
        loss = error + coder.extra_error(code, rest)
        if judge is not None:
            loss = judge(y - left) * coder.d_out
        if self.weight:
            loss = loss + self.weight * coder.penalty(code)
        loss = loss / coder.d_out
        dead = self._count_dead(code, len(x))
        n_dead = int(dead.sum())
        if n_dead and self.revival == "auxk":
            loss = loss + AUXK_WEIGHT * auxk_loss(coder, x, left, dead, code.values.numel())
        if n_dead and self.revival == "ghost":
            loss = loss + ghost_loss(coder, x, left, dead, code.values.numel())
        loss.backward()
        figures = self._figures(loss, left, y, code, n_dead)
        self._update(figures.gradient)
        if self.revival == "resample" and n_dead and self._resamples_now():
            resample(coder, self.optimizer, x, left.detach(), dead, self.generator)
            self.tokens_since_fired[dead] = 0
        if self.controller is not None:
            self.weight = self.controller.update(figures.l0)
        return figures

    def _clamped(self, code: TrainingCode) -> TrainingCode:
        return clamp_code(code, self.clamp) if self.clamp else code

    def learning_rate(self) -> float:
        """Return this step's: a linear rise, a plateau, a linear fall to zero."""
        warm_up = max(int(self.steps * WARM_UP), 1)
        decay = max(self.end - decay_begins(self.end), 1)
        rise, fall = (self.step_count + 1) / warm_up, (self.end - self.step_count) / decay
        return self.lr * max(min(rise, 1.0, fall), 0.0)

    def finish(self) -> None:
        """Give the coder the averaged weights, if there are any."""
        if self.ema is not None:
            self.ema.copy_to(self.coder)
            self.coder.constrain()

    def _update(self, norm: float) -> None:
        """Follow the gradients, clipped to norm 1."""
        if norm > 1:
            for parameter in self.coder.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.coder.constrain()
        self.step_count += 1
        if self.ema is not None:
            self.ema.update(self.coder)

    def _figures(
        self, loss: Tensor, left: Tensor, y: Tensor, code: TrainingCode, n_dead: int
    ) -> StepFigures:
        self.coder.project_gradient()
        gradients = [p.grad for p in self.coder.parameters() if p.grad is not None]
        with torch.no_grad():
            if self.colour is not None:
                left, y = left @ self.colour, y @ self.colour
            # Activations are centred, so nothing cancels here; var(0) is many times slower.
            deviation = mean_square(y) - y.mean(0).square().sum()
            return StepFigures(
                loss=loss.item(),
                fvu=(mean_square(left) / deviation.clamp_min(1e-12)).item(),
                l0=(code.values > 0).sum().item() / max(len(y), 1),
                dead_share=n_dead / self.coder.width,
                weight=self.weight,
                gradient=nn.utils.get_total_norm(gradients).item(),
            )

    def _count_dead(self, code: TrainingCode, n_tokens: int) -> Tensor:
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired[fired(code)] = 0
        return self.tokens_since_fired > self.dead_after

    def _resamples_now(self) -> bool:
        every = max(int(self.steps * 2 / 3) // RESAMPLES, 1)
        return self.step_count % every == 0 and self.step_count <= every * RESAMPLES

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers from which training goes on as if never interrupted."""
        return {
            "coder": dict(self.coder.named_parameters()) | dict(self.coder.named_buffers()),
            "optimizer": {
                name: self.optimizer.state[p] for name, p in self.coder.named_parameters()
            },
            "tokens_since_fired": self.tokens_since_fired,
            "generator": self.generator.get_state(),
            "step_count": self.step_count,
            "weight": self.weight,
            "controller": self.controller.state_dict() if self.controller else None,
            "ema": self.ema.average if self.ema else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.coder.load_state_dict(state["coder"], strict=False)  # tied: one name of two
        for name, parameter in self.coder.named_parameters():
            self.optimizer.state[parameter] = {
                moment: value.to(parameter.device)
                for moment, value in state["optimizer"][name].items()
            }
        self.tokens_since_fired.copy_(state["tokens_since_fired"])
        self.generator.set_state(state["generator"])
        self.step_count, self.weight = state["step_count"], state["weight"]
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        if self.ema is not None:
            for name, average in self.ema.average.items():
                average.copy_(state["ema"][name])


def decay_begins(steps: int) -> int:
    """Return the step from which the learning rate falls."""
    return steps - max(int(steps * DECAY), 1)


def clamp_code(code: TrainingCode, clamp: Mapping[int, float]) -> TrainingCode:
    """Hold features at given activations on every token; no gradient passes through them."""
    support = code.support
    features = torch.tensor(list(clamp), device=code.values.device)
    held = torch.tensor(list(clamp.values()), dtype=code.values.dtype, device=features.device)
    if not isinstance(support, SparseSupport):
        values, pre = code.values.clone(), code.pre.clone()
        values[:, features], pre[:, features] = held, 0.0
        return replace(code, values=values, pre=pre)
    free = ~torch.isin(support.indices, features)
    tokens = torch.arange(support.n_tokens, device=features.device)
    every = tokens.repeat_interleave(len(features))
    order = torch.cat([support.tokens[free], every]).sort(stable=True).indices
    indices = torch.cat([support.indices[free], features.repeat(support.n_tokens)])[order]
    values = torch.cat([code.values[free], held.repeat(support.n_tokens)])[order]
    pre = torch.cat([code.pre[free], torch.zeros_like(held).repeat(support.n_tokens)])[order]
    counts = torch.bincount(support.tokens[free], minlength=support.n_tokens) + len(features)
    joined = SparseSupport(indices, nn.functional.pad(counts.cumsum(0), (1, 0)), support.width)
    return TrainingCode(pre, values, joined)


class WeightAverage:
    """An exponential moving average of weights, with its bias from starting at zero taken out."""

    def __init__(self, coder: SparseCoder, decay: float) -> None:
        self.decay = decay
        self.average = {n: torch.zeros_like(p) for n, p in coder.named_parameters()}
        self.average["total"] = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, coder: SparseCoder) -> None:
        """Add the weights as they are now."""
        for name, parameter in coder.named_parameters():
            self.average[name].lerp_(parameter, 1 - self.decay)
        self.average["total"].lerp_(torch.ones((), dtype=torch.float64), 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, coder: SparseCoder) -> None:
        """Set the weights to their average."""
        for name, parameter in coder.named_parameters():
            parameter.copy_(self.average[name] / self.average["total"].item())
