"""An evaluation as a page: every suite's tables, verdict and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.artefact import write_text
from monosemy.evaluation import Evaluation, Plot, SuiteResult
from monosemy.metrics.table import MetricRow
from monosemy.report.card import environment, writable
from monosemy.report.numbers import Cell, figure, metric_cells
from monosemy.report.svg import TONES, Mark, Scatter, Series, draw_intervals, draw_scatter


@dataclass(frozen=True, slots=True)
class _Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[MetricRow, list[Cell | None], Any]]


@dataclass(frozen=True, slots=True)
class ShownSuite:
    """What a suite found, ready for the template."""

    name: str
    title: str
    said: str
    tables: Sequence[_Table]
    plots: Sequence[tuple[str, Scatter]]


def evaluation_html(evaluation: Evaluation) -> str:
    """Return the page: it loads nothing and runs nothing."""
    context = evaluation.context
    facts = {
        "model": context["model"],
        "hook point": context["hookpoint"],
        "architecture": str(context["architecture"]).replace("_", " "),
        "features": f"{context['width']:,}",
        "text": str(context["corpus"].get("source", "")),
        "tier": context["tier"],
        "took": f"{sum(suite.seconds for suite in evaluation.suites):.0f} s",
    }
    html = (
        environment()
        .get_template("evaluation.html")
        .render(
            title=f"How good are the features of {context['hookpoint']} in {context['model']}?",
            verdict=evaluation.verdict,
            facts=facts,
            suites=[shown_suite(result) for result in evaluation.suites],
        )
    )
    return writable(html)


def write_evaluation(evaluation: Evaluation, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    write_text(path, evaluation_html(evaluation))
    return Path(path)


def shown_suite(result: SuiteResult) -> ShownSuite:
    """Make ready what a suite found: tables with intervals, and plots."""
    tables = [
        _Table(
            table.title,
            table.columns,
            [(row, metric_cells(row), draw_intervals(row.values)) for row in table.rows],
        )
        for table in result.tables
    ]
    drawn = [(plot.title, _draw(plot)) for plot in result.plots]
    plots = [(title, plot) for title, plot in drawn if plot is not None]
    return ShownSuite(result.suite, result.title, result.skipped or result.verdict, tables, plots)


def _draw(plot: Plot) -> Scatter | None:
    series = [
        Series(
            name=name,
            tone=1 + number % TONES,
            marks=[
                Mark(x, y, low, high, f"{figure(y)} at {figure(x)}") for x, y, low, high in line
            ],
            lines=[[(x, y) for x, y, _, _ in line]],
        )
        for number, (name, line) in enumerate(plot.lines.items())
        if line
    ]
    return draw_scatter(plot.x_name, plot.y_name, series, log_y=plot.log_y)
