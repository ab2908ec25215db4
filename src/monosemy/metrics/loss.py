"""What replacing activations does to the model's predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.metrics.groups import GroupSums

_AT_ONCE = 2**20
"""Logits compared at a time: few enough to stay in a processor's cache."""


class LossEffect:
    """Cross-entropy and KL divergence, in nats a token, of a model with replaced activations.

    The loss counted at position t is that of predicting token t+1 from position t. Figures for
    each variant: `ce`, `kl` (of the variant's distribution from the original's), and
    `recovered_<ablation>` = (CE_ablation - CE_variant) / (CE_ablation - CE_original) for every
    variant named in `ablations`: 1 for a perfect reconstruction, 0 for the ablation itself.
    """

    def __init__(self, variants: Sequence[str], ablations: Sequence[str] = ()) -> None:
        self.variants, self.ablations = list(variants), list(ablations)
        self._sums = GroupSums(2 + 2 * len(self.variants))

    def update(
        self,
        original: Float[Tensor, "batch time vocab"],
        replaced: Iterable[tuple[str, Float[Tensor, "batch time vocab"]]],
        targets: Int[Tensor, "batch time"],
        counted: Bool[Tensor, "batch time"],
        groups: Int[Tensor, "batch time"] | None = None,
    ) -> Float[np.ndarray, "tokens columns"]:
        """Add predictions; `targets[b, t]` is the token after position t, where `counted`.

        `replaced` yields every variant once, by name; made one at a time, only one set of logits
        is held beside the original's.

        Returns:
            What was added of each counted token, in double precision: 1, the original's
            cross-entropy, and of each variant cross-entropy and divergence.
        """
        where = counted.to(original.device)
        target = targets.to(original.device)[where]
        log_p = torch.log_softmax(original[where].float(), -1)
        columns = {"original": [torch.ones(len(target)), -log_p.gather(-1, target[:, None])[:, 0]]}
        normaliser = torch.logsumexp(original[where].float(), -1)
        for name, logits in replaced:
            columns[name] = _compare(logits, where, target, log_p, normaliser)
        ordered = [c for name in ("original", *self.variants) for c in columns[name]]
        rows = torch.stack([column.double().cpu() for column in ordered], 1).numpy()
        self._sums.add(rows, None if groups is None else groups[counted].cpu().numpy())
        return rows

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the figures of each variant, and of "original"."""
        figures = self._figures(self._sums.total())
        return {
            name: {figure: float(value[0]) for figure, value in by_figure.items()}
            for name, by_figure in figures.items()
        }

    def resample(self, weights: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return the figures for each row of group weights [draws, groups]."""
        return self._figures(self._sums.weighted(weights))

    def _figures(self, sums: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        n, original = sums[:, 0], sums[:, 1] / sums[:, 0]
        ce = {name: sums[:, 2 + 2 * i] / n for i, name in enumerate(self.variants)}
        kl = {name: sums[:, 3 + 2 * i] / n for i, name in enumerate(self.variants)}
        figures = {"original": {"ce": original}}
        for name in self.variants:
            figures[name] = {"ce": ce[name], "kl": kl[name]}
            for ablation in self.ablations:
                gap = ce[ablation] - original
                figures[name][f"recovered_{ablation}"] = (ce[ablation] - ce[name]) / gap
        return figures


def _compare(
    logits: Float[Tensor, "batch time vocab"],
    where: Bool[Tensor, "batch time"],
    target: Int[Tensor, " tokens"],
    log_p: Float[Tensor, "tokens vocab"],
    normaliser: Float[Tensor, " tokens"],
) -> list[Tensor]:
    """Return each token's cross-entropy, and its divergence from the original's distribution.

    `normaliser` is the log-sum-exp of the original's logits. Measured from it, the variant's are
    of the size of `log_p`, and where both agree their rounding does too.
    """
    rows, ce, kl = where.flatten().nonzero()[:, 0], [], []
    flat = logits.reshape(-1, logits.shape[-1])
    size = max(_AT_ONCE // logits.shape[-1], 1)
    for some, t, p, n in zip(
        *(x.split(size) for x in (rows, target, log_p, normaliser)), strict=True
    ):
        q = flat[some].float().sub_(n[:, None])
        sums = torch.logsumexp(q, -1)
        ce.append(sums - q.gather(-1, t[:, None])[:, 0])
        kl.append(torch.linalg.vecdot(p.exp(), p - q) + sums)
    return [torch.cat(ce), torch.cat(kl)]
