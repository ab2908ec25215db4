"""The suites there are, and running some of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from monosemy.errors import UserError, nearest
from monosemy.evaluation.result import SuiteResult
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite, Tier
from monosemy.evaluation.suites import (
    absorption,
    benchmarks,
    causal,
    compute,
    decompositions,
    explanations,
    health,
    perturbation,
    probe_loss,
    probing,
    ravel,
    reconstruction,
    recovery,
    stability,
    unlearning,
)

SUITES = {
    suite.name: suite
    for suite in (
        reconstruction.SUITE,
        health.SUITE,
        decompositions.SUITE,
        compute.SUITE,
        explanations.SUITE,
        probing.SUITE,
        probe_loss.SUITE,
        perturbation.TPP,
        perturbation.SCR,
        absorption.SUITE,
        unlearning.SUITE,
        ravel.SUITE,
        causal.SUITE,
        stability.SUITE,
        recovery.SUITE,
        benchmarks.SUITE,
    )
}
"""By name, in the order in which they run."""


def choose_suites(tier: str, names: Sequence[str] = ()) -> list[Suite]:
    """Return the suites named, or all of a tier.

    Raises:
        UserError: no such tier or suite.
    """
    tiers = get_args(Tier)
    if tier not in tiers:
        raise UserError(f"no tier `{tier}`", f"allowed: {', '.join(tiers)}")
    for name in names:
        if name not in SUITES:
            raise UserError(
                f"no suite `{name}`",
                f"{nearest(name, SUITES)} allowed: {', '.join(SUITES)}".strip(),
            )
    if names:
        return [suite for name, suite in SUITES.items() if name in names]
    return [s for s in SUITES.values() if tiers.index(s.tier) <= tiers.index(tier)]


def run_suites(subject: Subject, suites: Sequence[Suite]) -> Iterator[SuiteResult]:
    """Yield each suite's result as it is done."""
    for suite in suites:
        began = time.monotonic()
        try:
            result = suite.run(subject)
        except NotMeaningful as reason:
            result = SuiteResult(suite.name, suite.title, skipped=str(reason))
        yield replace(result, seconds=time.monotonic() - began)
