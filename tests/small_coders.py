"""Small coders of every architecture, in a state such as training leaves behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monosemy.coders import ARCHITECTURES, BatchTopK, SparseCoder, make_coder
from monosemy.coders.coder import TrainingCode
from monosemy.coders.gated import Gated
from monosemy.coders.jumprelu import JumpReLU
from monosemy.coders.select import Scorer
from monosemy.coders.support import Support

D, D_OUT, WIDTH, K = 12, 9, 40, 4

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True},
    "skip": {"skip": True},
    "free": {"unit_norm": False},
    "transcoder": {"d_out": D_OUT, "skip": True, "unit_norm": False},
}

Case = tuple[str, dict[str, Any]]
"""An architecture, and options of its own."""

CASES: list[Case] = [
    *((name, {}) for name in ARCHITECTURES),
    ("topk", {"multi": True}),
    ("jumprelu", {"sparsity": "tanh"}),
    ("jumprelu", {"sparsity": "quadratic"}),
]
"""Every architecture, and what its own options change about its loss."""


def name_of(case: Case) -> str:
    return "-".join([case[0], *map(str, case[1].values())])


def own_options(architecture: str, k: int = K) -> dict[str, Any]:
    return {"k": k} if ARCHITECTURES[architecture].has_k else {}


def build(
    architecture: str, variant: str = "plain", dtype: torch.dtype = torch.float32, **options: Any
) -> SparseCoder:
    """A coder of which about K features fire on a token, nothing of it at its first value."""
    given = {**own_options(architecture), **VARIANTS[variant], **options}
    coder = make_coder(architecture, D, WIDTH, **given).to(dtype)
    x = torch.randn(400, D, dtype=dtype)
    with torch.no_grad():
        coder.b_enc.normal_(std=0.1)
        coder.b_dec.normal_()
        if coder.W_skip is not None:
            coder.W_skip.normal_(std=0.3)
        if not coder.unit_norm:
            coder.W_dec.mul_(torch.rand(WIDTH, 1) + 0.5)
        coder.start(x, K)
        if isinstance(coder, JumpReLU):
            coder.log_threshold.add_(torch.rand(WIDTH))
        if isinstance(coder, Gated):
            coder.r_mag.normal_(std=0.2)
            coder.b_mag.add_(torch.randn(WIDTH) * 0.2)
    if isinstance(coder, BatchTopK):
        coder.set_threshold([x])
    return coder


def exact() -> Scorer:
    return Scorer(torch.device("cpu"), dtype=torch.float64)


def target_for(coder: SparseCoder, x: Tensor) -> Tensor:
    """What the coder is to explain: x, or something of the width of its output."""
    return x if coder.d_out == coder.d_in else x[:, : coder.d_out] * 1.5 - 0.2


def losses(coder: SparseCoder, x: Tensor, y: Tensor, support: Support) -> dict[str, Tensor]:
    """The parts of the training loss, for places chosen before."""
    pre = support.affine(x, coder.W_enc, coder.b_enc)
    code = TrainingCode(pre, coder.activate(pre, support), support)
    rest = y - coder.base(x)
    return {
        "error": coder.error(code, rest)[0],
        "penalty": coder.penalty(code),
        "extra": coder.extra_error(code, rest),
    }


def gradients(coder: SparseCoder, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter, zero where the loss does not reach."""
    named = dict(coder.named_parameters())
    if not loss.requires_grad:
        return {name: torch.zeros_like(p) for name, p in named.items()}
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.to_dense()
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def known_features(n: int, d: int = 16, features: int = 24, active: int = 3) -> Tensor:
    """Sums of a few known directions, centred and scaled as training has them."""
    directions = torch.nn.functional.normalize(
        torch.randn(features, d, generator=torch.Generator().manual_seed(5)), dim=1
    )
    chosen = torch.rand(n, features).topk(active, dim=1).indices
    z = torch.zeros(n, features).scatter(1, chosen, torch.rand(n, active) + 0.5)
    mean = active / features * directions.sum(0)
    return (z @ directions - mean) * d**0.5 / 1.65
