"""Changes of a code: turn features up, down, off or into each other, one change after another.

Amounts are multiples of a feature's `strength`, its largest activation on held-out text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders.coder import SparseCoder

ErrorTerm = Literal["keep", "drop"]
"""What becomes of that part of activations which a dictionary does not explain."""


class Change:
    """A step from one code to another; it touches some features, by number."""

    @property
    def features(self) -> tuple[int, ...]:
        """The features that are named."""
        raise NotImplementedError

    def apply(self, z: Touched) -> None:
        """Change the activations of touched features, and the factor of all others."""
        raise NotImplementedError

    def amounts(self) -> Mapping[int, float]:
        """Multiples of strength that features are set to or raised by; of those, strengths > 0."""
        return {}


@dataclass
class Touched:
    """A code while it is changed: the touched features' activations, the others' common factor."""

    values: dict[int, Float[Tensor, " tokens"]]
    strength: Mapping[int, float]
    others: float = 1.0


@dataclass(frozen=True)
class Amounts(Change):
    """A change by an amount for each of some features."""

    by: Mapping[int, float]

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(self.by)


@dataclass(frozen=True)
class Add(Amounts):
    """Raise activations: z + amount."""

    def apply(self, z: Touched) -> None:
        for feature, amount in self.by.items():
            z.values[feature] = z.values[feature] + amount * z.strength[feature]

    def amounts(self) -> Mapping[int, float]:
        return self.by


@dataclass(frozen=True)
class Clamp(Amounts):
    """Set activations, wherever and however a feature fires (Templeton et al. 2024); 0 ablates."""

    def apply(self, z: Touched) -> None:
        for feature, amount in self.by.items():
            z.values[feature] = torch.full_like(z.values[feature], amount * z.strength[feature])

    def amounts(self) -> Mapping[int, float]:
        return self.by


@dataclass(frozen=True)
class Scale(Amounts):
    """Multiply activations: nothing happens where a feature does not fire."""

    def apply(self, z: Touched) -> None:
        for feature, factor in self.by.items():
            z.values[feature] = z.values[feature] * factor


@dataclass(frozen=True)
class SuppressAll(Change):
    """Multiply the activations of all features by one factor; the decoder's bias stays."""

    factor: float

    @property
    def features(self) -> tuple[int, ...]:
        return ()

    def apply(self, z: Touched) -> None:
        z.others *= self.factor
        for feature, values in z.values.items():
            z.values[feature] = values * self.factor


@dataclass(frozen=True)
class Swap(Change):
    """Let two features fire where the other did, as strongly."""

    a: int
    b: int

    @property
    def features(self) -> tuple[int, ...]:
        return self.a, self.b

    def apply(self, z: Touched) -> None:
        z.values[self.a], z.values[self.b] = z.values[self.b], z.values[self.a]


@dataclass(frozen=True)
class ProjectOut(Change):
    """Take everything along features' directions out, of what is not explained too.

    It is done last, whatever changes come after.
    """

    features_out: tuple[int, ...]

    @property
    def features(self) -> tuple[int, ...]:
        return self.features_out

    def apply(self, z: Touched) -> None:
        """The code stays; see `changed`."""


def ablate(features: Sequence[int]) -> Clamp:
    """Return the change that switches features off."""
    return Clamp(dict.fromkeys(features, 0.0))


def changed(
    coder: SparseCoder,
    x: Float[Tensor, "tokens d_in"],
    y: Float[Tensor, "tokens d_out"],
    changes: Sequence[Change],
    strength: Mapping[int, float],
    error: ErrorTerm = "keep",
) -> Float[Tensor, "tokens d_out"]:
    """Return activations after changes of their code; gradients flow.

    With the error kept, y + decode(z') - decode(z): by no change y itself, bit for bit. With the
    error dropped, decode(z').

    Args:
        coder: what encodes and decodes.
        x: activations that are encoded.
        y: activations that are explained: x, but of a transcoder.
        changes: one after another.
        strength: activation that an amount of 1 stands for, of every touched feature.
        error: whether what is not explained stays.
    """
    named = list(dict.fromkeys(f for change in changes for f in change.features))
    others = error == "drop" or any(isinstance(change, SuppressAll) for change in changes)
    code = coder.encode_sparse(x) if others else None
    now = coder.encode_some(x, named) if code is None else code.columns(named)
    z = Touched(dict(zip(named, now.unbind(1), strict=True)), strength)
    for change in changes:
        change.apply(z)
    directions = coder.W_dec[named]
    then = torch.stack(list(z.values.values()), 1) if named else now
    moved = (then - now) @ directions
    if code is not None and z.others != 1.0:
        rest = code.decode(coder.W_dec) - now @ directions
        moved = moved + (z.others - 1) * rest
    if code is None or error == "keep":
        out = y + moved
    else:
        out = coder.base(x) + code.decode(coder.W_dec) + moved
    leaving = [f for change in changes if isinstance(change, ProjectOut) for f in change.features]
    if leaving:
        axes = torch.linalg.qr(coder.W_dec[leaving].T).Q
        out = out - (out @ axes) @ axes.T
    return out
