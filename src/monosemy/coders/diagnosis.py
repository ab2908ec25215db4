"""What holding a dictionary against a model shows, and where else it may belong."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from monosemy.coders.dictionary import Dictionary
from monosemy.coders.fingerprint import Figures
from monosemy.errors import UserError
from monosemy.lm import LM, HookPoint
from monosemy.lm.hooks import INPUT

_AT_ONCE = 32
"""Hook points captured in one forward pass when many are tried."""
_PART_OF_BLOCK = re.compile(r"layers\.\d+\.[^.]+")

Cause = Literal["", "hook point", "scale", "BOS", "tokenizer", "base model"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What replaying a fingerprint showed, or a first meeting with the model."""

    expected: Figures | None
    """None at a first meeting: nothing is known yet."""
    observed: Figures | None
    """None where the activations do not even have the dictionary's width."""
    hookpoint: str
    """Where it was tried; `input -> target` for a transcoder."""
    cause: Cause = ""
    explanation: str = "wired as it was trained: the fingerprint replays"
    advice: str = ""
    elsewhere: dict[str, Figures] = field(default_factory=dict)
    """Figures at the other hook points (`input -> target`), when they were tried."""

    @property
    def healthy(self) -> bool:
        """Say whether nothing is wrong."""
        return self.cause == ""


def place_name(hookpoint: str, target: str) -> str:
    """Return how a place is told: `input -> target` of a transcoder."""
    return hookpoint if hookpoint == target else f"{hookpoint} -> {target}"


def misfit(dictionary: Dictionary, lm: LM, hookpoint: str, target: str) -> str | None:
    """Say which activations, encoded or explained, do not have the dictionary's width, if any."""
    sizes = {hookpoint: dictionary.d_in, target: dictionary.d_out}
    for name, size in sizes.items():
        width = lm.hookpoint(name).width
        if width != size:
            return f"activations at `{name}` have width {width}, not {size}"
    return None


def a_few_at_once(
    names: Sequence[str], capture: Callable[[list[str]], Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield activations at many hook points, of which only some are in memory at a time."""
    for start in range(0, len(names), _AT_ONCE):
        yield from capture(list(names[start : start + _AT_ONCE])).items()


def likely_hookpoints(dictionary: Dictionary, lm: LM, width: int) -> list[str]:
    """Return hook points of a width that a dictionary may belong to.

    The standard ones, those called as the dictionary's own in other layers, and for a transcoder
    every part of a block: what it encodes is often the norm before an MLP.
    """
    # What a module reads is mostly what the norm before it gives: of the two, one is tried.
    of_inputs = dictionary.hookpoint.endswith(INPUT)
    points = [p for p in lm.hookpoints() if of_inputs or not p.name.endswith(INPUT)]
    if dictionary.is_transcoder:
        points += [p for p in lm.hookpoints(all=True) if _PART_OF_BLOCK.fullmatch(p.name)]
    for name in (dictionary.hookpoint, dictionary.explains):
        points += _kin(lm, name)
    return list(dict.fromkeys(point.name for point in points if point.width == width))


def _kin(lm: LM, name: str) -> list[HookPoint]:
    """Return what is called so in every layer, as far as this model has it."""
    start, layer, rest = [*name.split(".", 2), "", ""][:3]
    in_layer = start == "layers" and layer.isdigit() and rest
    names = [f"layers.{i}.{rest}" for i in range(lm.n_layers)] if in_layer else [name]
    found = []
    for each in names:
        with contextlib.suppress(UserError):
            found.append(lm.hookpoint(each))
    return found
