"""Edits written in words, as commands and addresses have them: `clamp 28=0.8,30=-0.5`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from monosemy.coders import Add, Change, Clamp, ProjectOut, Scale, SuppressAll, Swap, ablate
from monosemy.errors import UserError
from monosemy.intervene.positions import Firing, Positions

_FORMS = (
    "clamp 28=0.8,30=-0.5",
    "add 28=1",
    "scale 28=2",
    "ablate 28,30",
    "suppress 0.5",
    "swap 28,30",
    "project-out 28",
)


def parse_change(text: str) -> Change:
    """Return the change that is meant; amounts are multiples of a feature's strength.

    Raises:
        UserError: it is not written in one of the forms allowed.
    """
    verb, _, rest = text.strip().partition(" ")
    try:
        return _VERBS[verb](rest.strip())
    except (KeyError, ValueError) as error:
        allowed = ", ".join(f"`{form}`" for form in _FORMS)
        raise UserError(f"`{text[:60]}` is no edit", f"forms: {allowed}") from error


def split_edits(text: str) -> list[str]:
    """Return the edits of a text that has them one after another, semicolons between them."""
    return [part.strip() for part in text.split(";") if part.strip()]


def parse_positions(text: str) -> Positions:
    """Return the positions that are meant: `all`, `prompt`, `generated`, `3:10` or `fires 28`.

    Raises:
        UserError: it is not written so.
    """
    if text in ("all", "prompt", "generated"):
        return text  # type: ignore[return-value]
    if span := re.fullmatch(r"(\d+):(\d+)", text):
        return range(int(span[1]), int(span[2]))
    if fires := re.fullmatch(r"fires (\d+)", text):
        return Firing(int(fires[1]))
    raise UserError(
        f"`{text[:60]}` says no positions", "allowed: all, prompt, generated, 3:10, `fires 28`"
    )


def _features(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _amounts(text: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for part in text.split(","):
        feature, equals, amount = part.partition("=")
        if not equals or int(feature) in found:
            raise ValueError(part)
        found[int(feature)] = _amount(amount)
    return found


def _amount(text: str) -> float:
    amount = float(text)
    if not math.isfinite(amount):
        raise ValueError(text)
    return amount


def _pair(text: str) -> Swap:
    a, b = _features(text)
    return Swap(a, b)


_VERBS: Mapping[str, Callable[[str], Change]] = {
    "clamp": lambda text: Clamp(_amounts(text)),
    "add": lambda text: Add(_amounts(text)),
    "scale": lambda text: Scale(_amounts(text)),
    "ablate": lambda text: ablate(_features(text)),
    "suppress": lambda text: SuppressAll(_amount(text)),
    "swap": _pair,
    "project-out": lambda text: ProjectOut(tuple(_features(text))),
}
