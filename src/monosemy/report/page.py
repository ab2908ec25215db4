"""The report of a run: one HTML file that opens anywhere and asks the network for nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from monosemy.artefact import write_text
from monosemy.index.view import FeatureView
from monosemy.intervene.pair import SteeringPair
from monosemy.metrics.table import MetricRow
from monosemy.report.card import environment, writable
from monosemy.report.numbers import metric_cells
from monosemy.report.svg import draw_curve, draw_intervals


@dataclass
class ReportData:
    """Everything a report shows; a part that is left empty is left out of the page.

    Attributes:
        title: heading of the page.
        run: facts about the run, shown in this order: model, hook point, corpus, ...
        curves: name -> (tokens seen, value there); names ending in "share" are percentages.
        columns: of the metrics table, the dictionary first, then what it is held against.
        rows: of the metrics table; each has as many values as there are columns.
        verdict: where the dictionary wins, ties or loses, in a sentence.
        features: shown as cards, in this order.
        steering: prompts continued with and without a feature.
        commands: shell commands with which to go on.
    """

    title: str
    run: dict[str, str] = field(default_factory=dict)
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    rows: list[MetricRow] = field(default_factory=list)
    verdict: str = ""
    features: list[FeatureView] = field(default_factory=list)
    steering: list[SteeringPair] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def report_html(data: ReportData) -> str:
    """The page as text. Everything in `data` is escaped; nothing in it can run or load."""
    curves = [draw_curve(name, *points) for name, points in data.curves.items()]
    return (
        environment()
        .get_template("page.html")
        .render(
            data=data,
            curves=[c for c in curves if c is not None],
            metrics=[(row, metric_cells(row), draw_intervals(row.values)) for row in data.rows],
            split_pair=split_pair,
            feature_ids={view.id for view in data.features},
        )
    )


def write_report(data: ReportData, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    write_text(path, writable(report_html(data)))
    return Path(path)


def split_pair(pair: SteeringPair) -> tuple[str, str, str]:
    """What both continuations begin with, then the rest of the original and of the steered one."""
    letters = zip(pair.original, pair.steered, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], letters))
    while _inside_word(pair.original, shared) or _inside_word(pair.steered, shared):
        shared -= 1
    return pair.original[:shared], pair.original[shared:], pair.steered[shared:]


def _inside_word(text: str, place: int) -> bool:
    return 0 < place < len(text) and (text[place - 1] + text[place]).isalnum()
