"""What is to be trained, with everything derived, before anything is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from monosemy.activations import can_autocast
from monosemy.coders import Provenance, SparseCoder, make_coder
from monosemy.corpus import Corpus, TokenPolicy
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training.config import DEFAULT_LR, DEFAULT_LR_WIDTH, TrainConfig
from monosemy.training.control import RAMP
from monosemy.training.member import DECAY, WARM_UP

FP32 = 4
COPIES = 4
"""Of each parameter: itself, its gradient, Adam's two moments."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One dictionary to be trained."""

    name: str
    folder: Path | None
    """Its run folder."""
    config: TrainConfig
    provenance: Provenance
    d_in: int
    d_out: int

    @property
    def width(self) -> int:
        """Number of features."""
        return self.config.width or 8 * self.d_in

    def make_coder(self) -> SparseCoder:
        """Build the untrained coder.

        Raises:
            UserError: an option it refuses.
        """
        coder = make_coder(
            self.config.architecture,
            self.d_in,
            self.width,
            d_out=self.d_out,
            seed=self.config.seed,
            **self.config.coder_options(),
        )
        coder.W_dec.requires_grad_(not self.config.freeze_decoder)
        return coder

    def parameters(self) -> int:
        """Return the number of trained numbers."""
        encoder = 0 if self.config.tied else self.d_in * self.width
        skip = self.d_out * self.d_in if self.config.skip else 0
        return encoder + self.d_out * self.width + skip

    def describe(self) -> dict[str, str]:
        """Return every setting as it will be, derived ones with their rule."""
        c, steps = self.config, self.config.steps
        held = "unit norm" + (", frozen" if c.freeze_decoder else "")
        asked = f"k {c.l0:.0f}" if c.has_k else f"target L0 {c.l0:g}, by a controller"
        if c.held_by_itself:
            asked = f"target L0 {c.l0:g}, by a quadratic penalty"
        elif c.penalty is not None:
            asked = f"penalty {c.penalty:g}, held"
        lr, ruled = c.learning_rate(self.width), TrainConfig().learning_rate(self.width)
        return {
            "explains": self.provenance.target or self.provenance.hookpoint,
            "from": self.provenance.hookpoint,
            "architecture": c.architecture,
            "sizes": f"d_in {self.d_in}, d_out {self.d_out}, width {self.width}",
            "sparsity": asked,
            "tokens": f"{c.tokens:,} in {steps:,} steps of {c.batch:,}",
            "text": f"rows of {c.context} tokens, {'packed' if c.packed else 'one a document'}",
            "pool": f"{c.pool:,} tokens",
            "model": "matrix products in bf16" if c.autocast else "in its own precision",
            "activations": f"from {c.store}, stored there as they come" if c.store else "used once",
            "learning rate": f"{lr:.3g}"
            + (
                f" = {DEFAULT_LR:g} / sqrt({self.width} / {DEFAULT_LR_WIDTH})"
                if lr == ruled
                else ""
            ),
            "schedule": f"rise over {max(int(steps * WARM_UP), 1):,} steps, fall over the last "
            f"{max(int(steps * DECAY), 1):,}"
            + (
                ""
                if c.has_k or c.penalty or c.held_by_itself
                else f", target L0 reached at {int(RAMP * steps):,}"
            ),
            "normalisation": "centred, scaled to mean norm sqrt(d); folded in when saved",
            "dead": f"after {c.dead_after:,} tokens without firing; revived by {c.revive}",
            "loss": c.objective,
            "start": f"{c.init} directions, b_dec at the {c.centre}, "
            + ("tied" if c.tied else "encoder a copy of the decoder"),
            "decoder": held if c.coder_options()["unit_norm"] else "free norm, folded when saved",
            "seed": str(c.seed),
        }


def make_plan(
    lm: LM,
    corpus: Corpus,
    hookpoint: str,
    config: TrainConfig,
    policy: TokenPolicy,
    *,
    name: str = "",
    folder: Path | None = None,
) -> Plan:
    """Resolve what a configuration leaves open.

    Raises:
        UserError: a hook point, context or option that cannot work.
    """
    point = lm.hookpoint(hookpoint)
    target = lm.hookpoint(config.target) if config.target else None
    if target is not None:
        _check_order(lm, point.name, target.name)
    if config.objective != "mse" and not lm.is_causal:
        raise UserError(
            f"objective is `{config.objective}`, but {lm.name} predicts no next token", "use `mse`"
        )
    if config.objective != "mse":
        lm.require_whole(f"objective is `{config.objective}`")
    width = config.width or 8 * point.width
    config = replace(
        config,
        width=width,
        context=context_for(lm, config.context),
        lr=config.learning_rate(width),
        autocast=can_autocast(lm) if config.autocast is None else config.autocast,
    )
    provenance = Provenance(
        model=lm.name,
        revision=lm.revision,
        hookpoint=point.name,
        target=target.name if target else None,
        context=config.context or 0,
        packed=config.packed,
        policy=policy,
        corpus=corpus.describe(),
        training=config.to_dict(),
    )
    d_out = target.width if target else point.width
    plan = Plan(name, folder, config, provenance, point.width, d_out)
    check_options(plan)
    return plan


def _check_order(lm: LM, hookpoint: str, target: str) -> None:
    """Refuse to explain what has been computed before the input; module paths have no order."""
    order = [point.name for point in lm.hookpoints()]
    if hookpoint in order and target in order and order.index(target) < order.index(hookpoint):
        raise UserError(
            f"target `{target}` is computed before `{hookpoint}`, which cannot be its cause",
            f"did you mean hookpoint `{target}` and target `{hookpoint}`?",
        )


def check_options(plan: Plan) -> None:
    """Refuse options that the width does not allow.

    Raises:
        UserError: a clamped feature that does not exist, more features to fire than there are.
    """
    config, width = plan.config, plan.width
    for feature in config.clamp:
        if not 0 <= feature < width:
            raise UserError(f"clamp names feature {feature}", f"allowed: 0 to {width - 1}")
    times = 4 if config.multi else 1
    if times * config.l0 > width:
        option = "k" if config.has_k else "target_l0"
        needs = f", and multi needs {times} times as many features" if times > 1 else ""
        raise UserError(
            f"{option} is {config.l0:g}, but the dictionary has {width} features{needs}",
            f"choose {option} up to {width // times}, or a larger width",
        )


def check_memory(plans: Sequence[Plan], device: torch.device) -> None:
    """Refuse what will not fit, before any work.

    Raises:
        UserError: the estimate exceeds what is free; says which part is how large.
    """
    needed = memory_needed(plans)
    free = free_memory(device)
    total = sum(needed.values())
    if total <= free:
        return
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in needed.items())
    widest = max(plan.width for plan in plans)
    raise UserError(
        f"training needs {_gb(total)} of memory, {_gb(free)} is free on {device}: {parts}",
        f"choose a width below {widest}, a smaller --pool or --batch, or fewer coders at once",
    )


def memory_needed(plans: Sequence[Plan]) -> dict[str, int]:
    """Return an estimate of what training allocates beside the model, bytes by part."""
    points: dict[str, int] = {}
    for plan in plans:
        points[plan.provenance.hookpoint] = plan.d_in
        points[plan.provenance.target or plan.provenance.hookpoint] = plan.d_out
    config = plans[0].config
    copies = [COPIES + (p.config.ema > 0) for p in plans]
    weights = sum(c * p.parameters() * FP32 for c, p in zip(copies, plans, strict=True))
    widest = max(plan.width for plan in plans)
    l0 = max(plan.config.l0 for plan in plans)
    step = step_memory(config.batch, max(points.values()), l0)
    return {
        f"weights, gradients and optimiser of {len(plans)} x up to {widest} features": weights,
        "pool": config.pool * sum(points.values()) * FP32,
        "one step": step,
    }


def step_memory(batch: int, d: int, l0: float) -> int:
    """Return an estimate of what one step allocates, bytes."""
    return batch * (8 * d + int(60 * l0)) * FP32 + 64 * 2**20


def free_memory(device: torch.device) -> int:
    """Return the bytes free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def context_for(lm: LM, context: int | None) -> int:
    """Return the tokens in a row of text: those asked for, or 128 as far as the model reads them.

    Raises:
        UserError: the model reads fewer than asked for.
    """
    if context is None:
        return min(128, lm.context_limit or 128)
    if lm.context_limit is not None and context > lm.context_limit:
        raise UserError(
            f"context is {context}, but {lm.name} reads at most {lm.context_limit} tokens",
            f"choose a context up to {lm.context_limit}",
        )
    return context


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e13 else f"{size / 1e12:,.0f} TB"
