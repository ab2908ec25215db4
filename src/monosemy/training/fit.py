"""Fit a dictionary to activations that somebody brings: no language model, no text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.activations import Statistics
from monosemy.activations.arrays import Rows
from monosemy.coders import Dictionary, Provenance, SparseCoder
from monosemy.coders.select import Scorer
from monosemy.device import choose_device, fix_threads
from monosemy.errors import UserError, nearest
from monosemy.metrics import Activity, Reconstruction
from monosemy.progress import Task
from monosemy.training.config import TrainConfig
from monosemy.training.diagnosis import Watch
from monosemy.training.plan import Plan, check_memory, check_options
from monosemy.training.session import (
    HELD_OUT_TOKENS,
    STATISTICS_TOKENS,
    THRESHOLD_BATCHES,
    finish_coder,
    make_member,
    start_coder,
)

ARRAYS = "python:arrays"
"""In place of a model's name."""
OF_TEXT = (*("context", "packed", "pool", "store", "precision", "autocast", "target", "objective"),)
"""Settings that mean nothing without a model and text."""
_BLOCKS = 100
"""Stretches of rows that are held out or not as a whole: neighbours are often alike."""


def fit(
    x: Any,
    y: Any = None,
    *,
    held_out: float = 0.1,
    device: str | None = None,
    **settings: Any,
) -> Dictionary:
    """Fit a dictionary to activations.

    Rows are gone over again and again, each time in another random order, until `tokens` of them
    have been seen. A share of them, in a hundred stretches spread over all, is held out; FVU, L0
    and the share of dead features there, and the FVU of as many principal components, are in the
    result's `provenance.training["held_out"]`.

    Args:
        x: activations [tokens, d_in]: a tensor, array or memory-map, a store or its folder.
        y: what is to be explained, row by row, where it is not x (a transcoder).
        held_out: share of the rows that training never sees.
        device: where to compute; default the best there is.
        settings: fields of `TrainConfig`, those about text apart: architecture, width, k, tokens,
            batch, lr, seed and so on.

    Raises:
        UserError: a setting, shape or value that cannot work, or too little memory.
    """
    fix_threads()
    config, where = _config(settings), choose_device(device)
    inputs, target = Rows(x, "x"), None if y is None else Rows(y, "y")
    if target is not None and len(target) != len(inputs):
        raise UserError(f"x has {len(inputs)} rows, y {len(target)}", "they must have as many")
    train, test = _split(len(inputs), held_out, config.batch)
    plan = _plan(config, inputs, target)
    check_memory([plan], where)

    def read(rows: Tensor) -> dict[str, Tensor]:
        values = {"x": inputs.read(rows).to(where)}
        return values if target is None else {**values, "y": target.read(rows).to(where)}

    batches = _batches(train, config.batch, config.seed)
    sample = read(torch.cat([next(batches) for _ in range(_sample_batches(train, config.batch))]))
    statistics = {
        name: Statistics.of([values], whiten=config.whiten) for name, values in sample.items()
    }
    coder, final, seconds = _train(plan, batches, read, statistics, sample, where)
    own, explained = statistics["x"], statistics[plan.provenance.explains]
    rows = test[torch.randperm(len(test), generator=_generator(config.seed))[:HELD_OUT_TOKENS]]
    activity, figures = _measure(coder, plan, read, rows, sample)
    training = {
        **plan.provenance.training,
        "seconds": round(seconds, 1),
        "final": final,
        "offset": own.offset,
        "held_out": figures,
    }
    return Dictionary(
        coder,
        replace(plan.provenance, training=training),
        activity.max,
        own.mean,
        own.scale,
        None,
        target_mean=None if target is None else explained.mean,
        target_scale=None if target is None else explained.scale,
    )


def _config(settings: dict[str, Any]) -> TrainConfig:
    known = [f.name for f in fields(TrainConfig) if f.name not in OF_TEXT]
    for name in settings:
        if name not in known:
            about = "is about text" if name in OF_TEXT else nearest(name, known)
            raise UserError(
                f"`fit` has no setting `{name}`", f"{about}; allowed: {', '.join(known)}"
            )
    return TrainConfig.from_dict(settings)


def _plan(config: TrainConfig, x: Rows, y: Rows | None) -> Plan:
    width = config.width or 8 * x.shape[1]
    config = replace(config, width=width, lr=config.learning_rate(width))
    provenance = Provenance(
        model=ARRAYS,
        hookpoint="x",
        target=None if y is None else "y",
        context=0,
        training=config.to_dict(),
    )
    plan = Plan("", None, config, provenance, x.shape[1], (x if y is None else y).shape[1])
    check_options(plan)
    return plan


def _split(n: int, share: float, batch: int) -> tuple[Int[Tensor, " a"], Int[Tensor, " b"]]:
    """Return the rows to train on, and those held out."""
    if not 0 < share < 1:
        raise UserError(f"held_out is {share}", "allowed: above 0 and below 1, such as 0.1")
    block = torch.arange(n) * _BLOCKS // n
    # Every so many blocks, counted so that any share comes out.
    out = ((block + 1) * share).floor() > (block * share).floor()
    train, test = (~out).nonzero()[:, 0], out.nonzero()[:, 0]
    if len(train) < batch or not len(test):
        raise UserError(
            f"of {n} rows {len(train)} are left to train on, fewer than a batch of {batch}"
            if len(train) < batch
            else f"of {n} rows none is held out at a share of {share}",
            "give more rows, a smaller batch, or another held_out",
        )
    return train, test


def _sample_batches(train: Tensor, batch: int) -> int:
    return max(min(STATISTICS_TOKENS, len(train)) // batch, 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batches(rows: Int[Tensor, " n"], batch: int, seed: int) -> Iterator[Int[Tensor, " batch"]]:
    """Yield row numbers for ever, each once in an epoch, but for a rest smaller than a batch."""
    generator = _generator(seed)
    while True:
        order = rows[torch.randperm(len(rows), generator=generator)]
        yield from order[: len(rows) // batch * batch].split(batch)


def _train(
    plan: Plan,
    batches: Iterator[Tensor],
    read: Any,
    statistics: dict[str, Statistics],
    sample: dict[str, Tensor],
    device: torch.device,
) -> tuple[SparseCoder, dict[str, float], float]:
    def normal(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: statistics[name].apply(x) for name, x in values.items()}

    config, began = plan.config, time.monotonic()
    coder = plan.make_coder().to(device)
    coder.target_l0 = config.l0
    start_coder(coder, plan, normal(sample))
    explained = statistics[plan.provenance.explains]
    member = make_member(coder, plan, Scorer(device), explained.colour)
    watch = Watch(member, config.steps)
    with Task("fit", config.steps * config.batch, "rows") as task:
        while member.step_count < member.end:
            values = normal(read(next(batches)))
            figures = member.step(values["x"], values.get("y"))
            tokens = member.step_count * config.batch
            for finding in watch.update(figures, tokens):
                task.say(f"{finding.cause}: {finding.explanation}; {finding.advice}")
                if finding.stop:
                    raise UserError(finding.explanation, finding.advice)
            task.advance(config.batch, f"FVU {figures.fvu:.3f}  L0 {figures.l0:.0f}")
    member.finish()
    last = [normal(read(next(batches)))["x"] for _ in range(THRESHOLD_BATCHES)]
    finish_coder(coder, last, statistics["x"], explained)
    final = {"tokens": tokens, "step": member.step_count, **asdict(figures)}
    return coder, final, time.monotonic() - began


@torch.no_grad()
def _measure(
    coder: SparseCoder, plan: Plan, read: Any, rows: Tensor, sample: dict[str, Tensor]
) -> tuple[Activity, dict[str, float]]:
    """Return which features fire on held-out rows, and the figures there."""
    explains = plan.provenance.explains
    y = sample[explains]
    sums, pca = Reconstruction(y.mean(0)), Reconstruction(y.mean(0))
    activity = Activity(coder.width)
    basis = _principal(sample["x"], y, math.ceil(plan.config.l0))
    for some in rows.split(4096):
        values = read(some)
        out, code = coder.reconstruct(values["x"])
        sums.update(values[explains], out, code.l0)
        pca.update(values[explains], basis(values["x"]))
        activity.update(code.values, code.indices, len(some))
    return activity, {
        "tokens": activity.n_tokens,
        "fvu": sums.compute()["fvu"],
        "fvu_pca": pca.compute()["fvu"],
        "l0": activity.l0,
        "dead_share": activity.dead_share,
    }


def _principal(x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], components: int) -> Any:
    """Return the best linear map from x to y of a rank: of x to itself, principal components.

    Reduced-rank regression (Izenman 1975).
    """
    mean_x, mean_y = x.mean(0), y.mean(0)
    X, Y = (x - mean_x).double().cpu(), (y - mean_y).double().cpu()
    inner = X.T @ X
    whole = torch.linalg.pinv(inner, hermitian=True) @ (X.T @ Y)
    directions = torch.linalg.eigh(whole.T @ inner @ whole).eigenvectors[:, -components:]
    best = (whole @ directions @ directions.T).float().to(x.device)
    return lambda values: mean_y + (values - mean_x) @ best
