"""Does the architecture find features that are there? Trained on activations that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.activations import SyntheticFeatures
from monosemy.coders import ARCHITECTURES
from monosemy.evaluation import baselines
from monosemy.evaluation.result import SuiteResult, Table, judge, told
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.metrics import interval, mean_max_cosine, recovery_f1
from monosemy.metrics.stability import match, partner_cosines, rotation
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.training import fit

D_IN = 64
WIDEST = 16
"""Times `D_IN`: wider dictionaries are trained at this width."""
ZIPF = 0.5
SEEDS = 3
ROWS, TEST_ROWS = 100_000, 16_384
"""Activations to train on, again and again, and to test on."""
STEPS, TOLERANCE = 200, 1e-4
"""Of independent component analysis."""

Found = tuple[Float[Tensor, "width d_in"], Float[Tensor, "tokens width"]]
"""Directions found, and how much each fires on test activations."""

_ROWS = {
    "MMCS": "mean over true directions of the largest cosine to any found",
    "MCC": "mean cosine of true directions with their partners, matched one to one",
    "recovery F1": "how well the best feature for each true one fires where that does",
}


def run(subject: Subject) -> SuiteResult:
    """Train a small dictionary of the same architecture where the features are known.

    Activations are sparse sums of random directions in 64 dimensions, with as many directions and
    features a token, for each dimension, as the dictionary has. A dictionary of the architecture,
    at its default settings, is trained on `synthetic_tokens` of them, and compared with the truth
    beside an untrained one, and the principal and independent components, of which the largest on
    a token count, as many as there are features. Data and all else differ between the 3 seeds;
    intervals are their range.

    Raises:
        NotMeaningful: it is no architecture that can be trained here, or its directions cannot
            have both signs.
    """
    dictionary = subject.dictionary
    architecture = dictionary.coder.architecture
    if architecture not in ARCHITECTURES:
        raise NotMeaningful(f"`{architecture}` is no architecture that could be trained here")
    if architecture == "nonnegative":
        raise NotMeaningful("the known directions have both signs, those of `nonnegative` one")
    width, l0 = _sizes(dictionary.width, dictionary.d_in, dictionary.l0)
    tokens = subject.size("synthetic_tokens", 50_000, 150_000, 300_000)
    each = [
        _one_seed(architecture, width, l0, tokens, subject.seed + seed) for seed in range(SEEDS)
    ]
    columns = list(each[0])
    samples = {
        row: {name: np.array([one[name][i] for one in each]) for name in columns}
        for i, row in enumerate(_ROWS)
    }

    def value(row: str, name: str) -> MetricValue:
        draws = samples[row][name]
        return MetricValue(float(draws.mean()), *interval({row: draws})[row])

    judgements = [
        judgement
        for row in ("MCC", "recovery F1")
        for judgement in judge(row, samples[row], better="higher")
    ]
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [
            Table(
                columns,
                [
                    MetricRow(row, "", "higher", said, [value(row, name) for name in columns])
                    for row, said in _ROWS.items()
                ],
                "synthetic activations",
            )
        ],
        verdict=f"A {architecture} dictionary trained on {width} known features in {D_IN} "
        f"dimensions, {l0} a token, {SEEDS} seeds: {told(judgements)}.",
        judgements=judgements,
        context={
            "architecture": architecture,
            "d_in": D_IN,
            "width": width,
            "l0": l0,
            "zipf": ZIPF,
            "tokens": tokens,
            "interval": f"range of {SEEDS} seeds",
        },
    )


def _cost(subject: Subject) -> int:
    return 0


def _sizes(width: int, d_in: int, l0: float) -> tuple[int, int]:
    """Return width and L0 of a dictionary that has as many of both a dimension, at `D_IN`."""
    scale = D_IN / d_in
    small = min(max(round(width * scale), 2), WIDEST * D_IN)
    # Frequencies must stay below 1: at this zipf the most that can fire is twice the root.
    return small, max(min(round(l0 * scale), round(small**0.5)), 1)


def _one_seed(
    architecture: str, width: int, l0: int, tokens: int, seed: int
) -> dict[str, list[float]]:
    """Return the figures of every column."""
    data = SyntheticFeatures(d_in=D_IN, n_features=width, l0=l0, zipf=ZIPF, seed=seed)
    x, _ = data.sample(ROWS, seed=0)
    test, truth = data.sample(TEST_ROWS, seed=1)
    asked: dict[str, Any] = {"k": l0} if ARCHITECTURES[architecture].has_k else {"target_l0": l0}
    trained = fit(
        x,
        architecture=architecture,
        width=width,
        tokens=tokens,
        batch=1024,
        seed=seed,
        device="cpu",
        **asked,
    ).coder
    untrained = baselines.untrained_coder(x[:TEST_ROWS], width, l0, seed + 1)
    found: dict[str, Found] = {
        name: (coder.W_dec.detach(), coder.encode(test).detach())
        for name, coder in (("dictionary", trained), ("untrained dictionary", untrained))
    }
    for name, components in (
        ("PCA", principal_components(x[:TEST_ROWS])),
        ("ICA", independent_components(x[:TEST_ROWS], seed)),
    ):
        found[name] = _half_waves(components, test - x.mean(0), l0)
    return {
        name: [
            mean_max_cosine(directions, data.directions),
            mean_partner_cosine(directions, data.directions),
            recovery_f1(z, truth),
        ]
        for name, (directions, z) in found.items()
    }


def mean_partner_cosine(found: Float[Tensor, "width d"], truth: Float[Tensor, "n d"]) -> float:
    """Return the mean cosine of true directions with their partners, matched one to one.

    A true direction without a partner, where fewer were found, counts 0.
    """
    return float(partner_cosines(truth, found, match(truth, found)).double().mean())


def principal_components(x: Float[Tensor, "tokens d"]) -> Float[Tensor, "d d"]:
    """Return orthonormal rows, uncorrelated on a sample."""
    return torch.linalg.eigh((x - x.mean(0)).double().T.cov()).eigenvectors.T.float()


def independent_components(x: Float[Tensor, "tokens d"], seed: int) -> Float[Tensor, "d d"]:
    """Return rows whose factors on a sample are as independent as can be, each of variance 1.

    FastICA (Hyvarinen & Oja 2000): the logcosh contrast, all components at once.
    """
    centred = x - x.mean(0)
    values, basis = torch.linalg.eigh(centred.double().T.cov())
    spread = values.clamp_min(1e-9 * float(values[-1])).sqrt()
    y = centred @ (basis / spread).float()
    w = rotation(y.shape[1], seed)
    for _ in range(STEPS):
        g = (y @ w.T).tanh()
        step = g.T @ y / len(y) - (1 - g.square()).mean(0)[:, None] * w
        left, _, right = torch.linalg.svd(step)
        before, w = w, left @ right
        if float((w * before).sum(1).abs().min()) > 1 - TOLERANCE:
            break
    return w @ (basis * spread).T.float()


def _half_waves(
    components: Float[Tensor, "d d"], centred: Float[Tensor, "tokens d"], l0: int
) -> Found:
    """Return each component as two features, one a sign; the largest factors of a token fire."""
    factors = torch.linalg.solve(components, centred, left=False)
    kept = factors.abs().topk(min(l0, len(components)), dim=1).indices
    factors = torch.zeros_like(factors).scatter(1, kept, factors.gather(1, kept))
    return torch.cat([components, -components]), torch.cat([factors, -factors], 1).relu()


SUITE = Suite("recovery", "Ground truth", "full", run, _cost)
