"""A sweep's grid: lists of settings to the configurations they make, and their names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from monosemy.coders.registry import architecture_named
from monosemy.errors import UserError, nearest
from monosemy.training.config import TrainConfig

SHARED = (
    "context",
    "packed",
    "batch",
    "pool",
    "objective",
    "store",
    "precision",
    "autocast",
    "whiten",
)
"""Settings of the one stream of activations that a sweep trains on."""
_SHORT = {"seed": "s", "width": "w", "lr": "lr", "tokens": "t"}


def expand(base: TrainConfig, grid: Mapping[str, Sequence[Any]]) -> list[TrainConfig]:
    """Return every combination of a grid's values over a base configuration.

    k goes to the architectures that have it, target_l0 to the others, so that both can stand in
    one grid.

    Raises:
        UserError: an unknown setting, one that a sweep shares, an empty list, values that cannot
            work.
    """
    known = [f.name for f in fields(TrainConfig)]
    for name, values in grid.items():
        if name not in known:
            raise UserError(
                f"no setting `{name}`",
                f"{nearest(name, known)} allowed: {', '.join(known)}".strip(),
            )
        if name in SHARED:
            raise UserError(
                f"{name} cannot vary in a sweep, whose coders share one stream of activations",
                f"run one sweep for each {name}",
            )
        if not values:
            raise UserError(f"the list of {name} is empty", "give at least one value")
    configs = []
    for architecture in grid.get("architecture", [base.architecture]):
        other = "target_l0" if architecture_named(architecture).has_k else "k"
        names = [n for n in grid if n not in (other, "architecture")]
        kept = {**base.to_dict(), "architecture": architecture}
        if architecture != base.architecture:
            kept[other] = None
        for values in itertools.product(*(grid[n] for n in names)):
            configs.append(TrainConfig.from_dict({**kept, **dict(zip(names, values, strict=True))}))
    return configs


def names_of(pairs: Sequence[tuple[str, TrainConfig]]) -> list[str]:
    """Return a short name for each hook point and configuration: what differs, and L0.

    Raises:
        UserError: two are the same.
    """
    settings = [f.name for f in fields(TrainConfig)]
    settings = [n for n in settings if n not in ("architecture", "k", "target_l0")]
    varying = [n for n in settings if len({str(getattr(c, n)) for _, c in pairs}) > 1]
    many_points = len({point for point, _ in pairs}) > 1
    names = []
    for point, config in pairs:
        parts = [config.architecture, f"l0-{config.l0:g}"]
        for name in varying:
            parts.append(f"{_SHORT.get(name, name + '-')}{getattr(config, name)}")
        if many_points:
            parts.append(point)
        names.append("-".join(parts).replace("/", "."))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the sweep would train `{twice}` twice", "leave out the repeated value")
    return names
