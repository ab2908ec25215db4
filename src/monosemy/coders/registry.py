"""The architectures there are: one line each."""

from __future__ import annotations

import inspect
from typing import Any

from monosemy.coders.batch_topk import BatchTopK
from monosemy.coders.coder import SparseCoder
from monosemy.coders.relu import ReLU
from monosemy.coders.topk import TopK
from monosemy.errors import UserError, nearest

ARCHITECTURES: dict[str, type[SparseCoder]] = {
    "batch_topk": BatchTopK,
    "topk": TopK,
    "relu": ReLU,
}


def make_coder(
    architecture: str, d_in: int, width: int, *, seed: int = 0, **options: Any
) -> SparseCoder:
    """Build an untrained coder.

    Raises:
        UserError: no such architecture, an option it does not have, or a value it refuses.
    """
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"no architecture `{architecture}`",
            f"{nearest(architecture, ARCHITECTURES)} allowed: {', '.join(ARCHITECTURES)}".strip(),
        )
    kind = ARCHITECTURES[architecture]
    known = [name for name in inspect.signature(kind).parameters if name not in _COMMON]
    for name in options:
        if name not in known:
            raise UserError(
                f"`{architecture}` has no option `{name}`", f"allowed: {', '.join(known)}"
            )
    return kind(d_in, width, seed=seed, **options)


_COMMON = ("d_in", "width", "seed")
