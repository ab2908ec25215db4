"""How activations are kept: bf16, fp32, or int8 with a scale for each token."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.errors import UserError

Precision = Literal["bf16", "fp32", "int8"]

TOKEN_BYTES = 4
"""Of the token beside each row of activations, at most."""
_SCALE = ".scale"
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def check_precision(name: str) -> Precision:
    """Refuse an unknown precision.

    Raises:
        UserError: names those that exist.
    """
    for known in get_args(Precision):
        if name == known:
            return known
    raise UserError(f"no precision `{name}`", f"allowed: {', '.join(get_args(Precision))}")


def pack(name: str, x: Float[Tensor, "tokens d"], precision: Precision) -> dict[str, Tensor]:
    """Return the tensors that stand for x in a file.

    int8 rounds each token's values to 127 steps of its largest: an error of 0.4% of that at most.
    """
    if precision != "int8":
        return {name: x.to(_DTYPES[precision])}
    scale = x.float().abs().amax(1).clamp_min(1e-30) / 127
    return {name: (x / scale[:, None]).round().to(torch.int8), name + _SCALE: scale}


def unpack(
    name: str, tensors: dict[str, Tensor], rows: Tensor | slice
) -> Float[Tensor, "tokens d"]:
    """Return some rows of what `pack` made: bf16 as it is, else fp32."""
    values = _rows(tensors[name], rows)
    scale = tensors.get(name + _SCALE)
    return values if scale is None else values.float() * _rows(scale, rows)[:, None]


def kept_dtype(precision: Precision) -> torch.dtype:
    """Return the type of what `unpack` gives."""
    return _DTYPES.get(precision, torch.float32)


def _rows(x: Tensor, rows: Tensor | slice) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def bytes_per_row(widths: dict[str, int], precision: Precision) -> int:
    """Return what one token takes at hook points of these widths."""
    if precision == "int8":
        return sum(d + 4 for d in widths.values())
    return sum(d * _DTYPES[precision].itemsize for d in widths.values())
