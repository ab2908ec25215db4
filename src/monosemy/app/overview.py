"""The first page of a run: what it is, whether it is any good, what is known of its features."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from monosemy.app.circuits import circuits_of
from monosemy.app.columns import KINDS, named_by
from monosemy.app.pages import ThisRun, page
from monosemy.app.runs import OpenRun
from monosemy.errors import UserError
from monosemy.evaluation import Evaluation, SuiteResult
from monosemy.evaluation.sweep import SweepRow
from monosemy.index import Index
from monosemy.report.build import read_history, run_facts, run_title, training_curves
from monosemy.report.evaluation import shown_suite
from monosemy.report.numbers import percent
from monosemy.report.svg import Curve, Histogram, Scatter, draw_curve, draw_histogram
from monosemy.report.sweep import pareto_plots
from monosemy.report.sweep import verdict as sweep_verdict

_BINS = 40
_SUITES = {
    "reconstruction": "how good it is",
    "health": "how healthy it is",
    "stability": "how stable features are over seeds",
}
"""Suites that pages show, and what they tell."""
_TABLES = {
    "concepts": ("names from what is known of the text", "monosemy index {} --labels FILE"),
    "explanations": ("explanations by a language model", "monosemy explain {} --model NAME"),
    "patterns": ("patterns of tokens (N2G)", "monosemy index {} --patterns 20"),
    "effects": ("what features cause", "monosemy effects {}"),
}
"""Tables of an index, what they hold, and the command that makes them."""

router = APIRouter()


@dataclass
class _Known:
    """What an index says of all features."""

    live: int
    densities: Histogram | None
    median: float
    named: dict[str, int] = field(default_factory=dict)


@router.get("/")
def overview(request: Request, run: ThisRun) -> Response:
    """Show the run."""
    return page(
        "overview.html", request, run, circuits=circuits_of(request, run), **overview_values(run)
    )


def overview_values(run: OpenRun) -> dict[str, Any]:
    """Return what the page shows; whatever is not there is left out, and said to be missing."""
    suites = _suites(run)
    measured = {suite.suite: suite for suite in suites if not suite.skipped}
    index, refusal = None, None
    try:
        index = run.features.index
    except UserError as error:
        refusal = error
    provenance = run.dictionary.provenance
    context = measured["reconstruction"].context if "reconstruction" in measured else None
    evaluation = Evaluation(suites)
    return {
        "title": run_title(run.dictionary, provenance.model),
        "facts": _facts(run, context),
        "verdict": evaluation.verdict if evaluation.judgements else "",
        "suites": [shown_suite(suite) for suite in suites],
        "curves": _curves(run),
        "sweep": _sweep(run),
        "known": _known(index) if index else None,
        "refusal": refusal,
        "missing": _missing(run, index, set(measured)),
    }


def _missing(run: OpenRun, index: Index | None, measured: set[str]) -> list[tuple[str, str]]:
    """Return what is not there, and the commands that make it."""
    missing = []
    if index is None:
        missing.append(("what features fire on", f"monosemy index {run.folder}"))
    for name, what in _SUITES.items():
        if name not in measured:
            missing.append((what, f"monosemy evaluate {run.folder} --suite {name}"))
    for table, (what, command) in _TABLES.items():
        if index is not None and not index.table(table):
            missing.append((what, command.format(run.folder)))
    return missing


def _facts(run: OpenRun, context: dict[str, Any] | None) -> dict[str, str]:
    provenance = run.dictionary.provenance
    text = str(provenance.corpus.get("source", "unknown"))
    return run_facts(run.dictionary, provenance.model, text, context)


def _suites(run: OpenRun) -> list[SuiteResult]:
    """Return what was measured: by the last evaluation, and of other suites by themselves."""
    found: dict[str, SuiteResult] = {}
    for path in sorted(run.folder.glob("metrics*.json"), key=lambda p: (len(p.name), p.name)):
        try:
            evaluation = Evaluation.from_dict(run.json(path.name) or {})
        except UserError:
            continue
        for suite in evaluation.suites:
            if suite.suite not in found or found[suite.suite].skipped:
                found[suite.suite] = suite
    return list(found.values())


def _curves(run: OpenRun) -> list[Curve]:
    try:
        curves = training_curves(read_history(run.folder))
    except (UserError, KeyError, ValueError):
        return []
    drawn = [draw_curve(name, *points) for name, points in curves.items()]
    return [curve for curve in drawn if curve is not None]


def _sweep(run: OpenRun) -> tuple[str, list[Scatter]] | None:
    """Return how the sweep that the run belongs to came out: in words, and drawn."""
    sweep = OpenRun("", run.folder.parent).json("sweep.json") or {}
    try:
        rows = [SweepRow.from_dict(row) for row in sweep.get("rows", [])]
        plots = pareto_plots(rows, run.folder.name)
        return (sweep_verdict(rows), plots) if plots else None
    except (UserError, KeyError, TypeError, AttributeError):
        return None


def _known(index: Index) -> _Known:
    density = index.counts[index.counts > 0] / max(index.n_tokens, 1)
    kinds = Counter(kind for _, kind in named_by(index).values())
    named = {kind: kinds[kind] for kind in KINDS} | {"nothing": len(density) - kinds.total()}
    return _Known(
        live=len(density),
        densities=_densities(density),
        median=float(np.median(density)) if len(density) else 0.0,
        named={kind: max(number, 0) for kind, number in named.items()},
    )


def _densities(density: np.ndarray) -> Histogram | None:
    if not len(density):
        return None
    low = np.floor(np.log10(density.min()))
    counts, edges = np.histogram(np.log10(density), _BINS, (low, 0))
    return draw_histogram(
        edges.tolist(),
        counts.tolist(),
        of="densities",
        unit="features",
        label=lambda power: percent(10**power),
    )
