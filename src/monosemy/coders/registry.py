"""The architectures there are: one line each."""

from __future__ import annotations

import inspect
from typing import Any

from monosemy.coders.batch_topk import BatchTopK
from monosemy.coders.coder import SparseCoder
from monosemy.coders.gated import Gated
from monosemy.coders.groupmax import GroupMax
from monosemy.coders.jumprelu import JumpReLU
from monosemy.coders.matching_pursuit import MatchingPursuit
from monosemy.coders.matryoshka import MatryoshkaBatchTopK
from monosemy.coders.nonnegative import NonNegative
from monosemy.coders.p_anneal import PAnneal
from monosemy.coders.relu import ReLU
from monosemy.coders.relu_kl import ReLUKL
from monosemy.coders.topk import TopK
from monosemy.errors import UserError, nearest

ARCHITECTURES: dict[str, type[SparseCoder]] = {
    "batch_topk": BatchTopK,
    "topk": TopK,
    "groupmax": GroupMax,
    "matryoshka": MatryoshkaBatchTopK,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "relu": ReLU,
    "p_anneal": PAnneal,
    "relu_kl": ReLUKL,
    "nonnegative": NonNegative,
}
READ_ONLY: dict[str, type[SparseCoder]] = {"matching_pursuit": MatchingPursuit}
"""Those of other tools' files, which are not trained here."""


def architecture_named(name: str) -> type[SparseCoder]:
    """Return an architecture that can be trained.

    Raises:
        UserError: there is none of that name.
    """
    if name in READ_ONLY:
        raise UserError(
            f"`{name}` is read from other tools' files, not trained",
            f"allowed: {', '.join(ARCHITECTURES)}",
        )
    if name not in ARCHITECTURES:
        raise UserError(
            f"no architecture `{name}`",
            f"{nearest(name, ARCHITECTURES)} allowed: {', '.join(ARCHITECTURES)}".strip(),
        )
    return ARCHITECTURES[name]


def make_coder(architecture: str, d_in: int, width: int, **options: Any) -> SparseCoder:
    """Build an untrained coder.

    Args:
        architecture: its name in `ARCHITECTURES` or `READ_ONLY`.
        d_in: width of the activations encoded.
        width: number of features.
        options: its own options, and those of every `SparseCoder`, seed among them.

    Raises:
        UserError: no such architecture, an option it does not have, or a value it refuses.
    """
    kind = READ_ONLY.get(architecture) or architecture_named(architecture)
    known = coder_options(kind)
    for name in options:
        if name not in known:
            raise UserError(
                f"`{architecture}` has no option `{name}`",
                f"{nearest(name, known)} allowed: {', '.join(known)}".strip(),
            )
    return kind(d_in, width, **options)


def coder_options(kind: type[SparseCoder]) -> list[str]:
    """Return the names of an architecture's options, its own first."""
    names: list[str] = []
    for base in kind.__mro__:
        if base is not SparseCoder.__base__ and issubclass(base, SparseCoder):
            parameters = inspect.signature(base.__init__).parameters
            names += [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    return list(dict.fromkeys(names))
