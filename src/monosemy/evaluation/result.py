"""The result of an evaluation: tables with baselines, and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

from monosemy.errors import UserError
from monosemy.metrics import interval
from monosemy.metrics.table import MetricRow, MetricValue

SCHEMA = 2
"""Version of what `Evaluation.to_dict` writes; `docs/evaluation.md` says what it holds."""

Outcome = Literal["wins against", "ties with", "loses to"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One figure held against that of one baseline.

    A win or loss is a difference whose 95% interval excludes zero.
    """

    figure: str
    baseline: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Table:
    """Figures, one column for the dictionary and one for each baseline."""

    columns: list[str]
    rows: list[MetricRow]
    title: str = ""

    def value(self, row: str, column: str) -> float:
        """Return one figure.

        Raises:
            KeyError: no such row or column, or no figure there.
        """
        for candidate in self.rows if column in self.columns else ():
            if candidate.name == row:
                cell = candidate.values[self.columns.index(column)]
                if cell is not None:
                    return cell.value
        raise KeyError(f"no figure `{row}` for `{column}`")

    def __repr__(self) -> str:
        lines = [f"{self.title:28}" + "".join(f"{name:>28}" for name in self.columns)]
        for row in self.rows:
            cells = [
                "" if v is None else f"{v.value:.3f} [{v.low:.3f}, {v.high:.3f}]"
                for v in row.values
            ]
            said = "; ".join(filter(None, [row.judgement, row.remedy]))
            lines.append(f"{row.name:28}" + "".join(f"{cell:>28}" for cell in cells) + f"  {said}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        said = ["judgement", "remedy"] if any(row.judgement for row in self.rows) else []
        names = [self.title, *self.columns, *said]
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join(
            f"<tr><th>{escape(row.name)}</th>"
            + "".join(
                "<td></td>"
                if v is None
                else f"<td title='95%: {v.low:.4g} to {v.high:.4g}'>{v.value:.3f}</td>"
                for v in row.values
            )
            + "".join(f"<td>{escape(getattr(row, what))}</td>" for what in said)
            + "</tr>"
            for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines of points, each with the interval it lies in."""

    title: str
    x_name: str
    y_name: str
    lines: dict[str, list[tuple[float, float, float, float]]]
    """Name -> (x, y, low, high); low and high are y where there is no interval."""
    log_y: bool = False


def quantiles(values: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Return the values at 0%, 5%, ... 100% of them as a line of a plot; NaN is left out."""
    shares = np.linspace(0, 1, 21)
    ends = np.nanquantile(values, shares).tolist()
    return [(float(x), y, y, y) for x, y in zip(shares, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What one suite found, or why it found nothing."""

    suite: str
    title: str
    tables: list[Table] = field(default_factory=list)
    verdict: str = ""
    """Where the dictionary wins, ties or loses, in a sentence."""
    judgements: list[Judgement] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)
    """What was measured, on how much, with which formulas: JSON values."""
    plots: list[Plot] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)
    """Whatever later pages show, such as results of single features: JSON values."""
    skipped: str = ""
    """Why there is no figure, where there is none."""
    seconds: float = field(default=0.0, compare=False)

    @property
    def table(self) -> Table:
        """The first table."""
        return self.tables[0]

    def value(self, row: str, column: str = "dictionary") -> float:
        """Return one figure, of the first table that has it.

        Raises:
            KeyError: no such row or column, or no figure there.
        """
        for table in self.tables:
            if column in table.columns and any(r.name == row for r in table.rows):
                return table.value(row, column)
        raise KeyError(f"no figure `{row}` for `{column}`")

    def __repr__(self) -> str:
        said = self.skipped or self.verdict
        return "\n".join([self.title, *(repr(table) for table in self.tables), said])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What every suite found."""

    suites: list[SuiteResult]
    context: dict[str, Any] = field(default_factory=dict)
    """Model, dictionary, text, environment."""

    def __getitem__(self, suite: str) -> SuiteResult:
        for result in self.suites:
            if result.suite == suite:
                return result
        raise KeyError(f"suite `{suite}` did not run, only {[s.suite for s in self.suites]}")

    @property
    def judgements(self) -> list[Judgement]:
        """Every comparison with a baseline that a suite made."""
        return [judgement for suite in self.suites for judgement in suite.judgements]

    @property
    def wins(self) -> bool:
        """Whether it beats its baselines: no comparison is lost and most are won."""
        outcomes = [judgement.outcome for judgement in self.judgements]
        return "loses to" not in outcomes and 2 * outcomes.count("wins against") > len(outcomes)

    @property
    def verdict(self) -> str:
        """The whole in a line or two."""
        return verdict(self.judgements, self.wins)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"schema": SCHEMA, "verdict": self.verdict, "wins": self.wins} | asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Read what `to_dict` wrote, JSON between.

        Raises:
            UserError: it is of another version, or not whole.
        """
        if values.get("schema") != SCHEMA:
            raise UserError(
                f"this evaluation has schema {values.get('schema')!r}",
                f"this monosemy reads {SCHEMA}; evaluate again",
            )
        try:
            return cls([_suite(suite) for suite in values["suites"]], values["context"])
        except (KeyError, TypeError) as error:
            raise UserError(f"this is no evaluation: {error}", "evaluate again") from error

    def __repr__(self) -> str:
        return "\n\n".join([*(repr(suite) for suite in self.suites), self.verdict])

    def _repr_html_(self) -> str:
        parts = []
        for suite in self.suites:
            parts.append(f"<h4>{escape(suite.title)}</h4>")
            parts += [table._repr_html_() for table in suite.tables]
            parts.append(f"<p>{escape(suite.skipped or suite.verdict)}</p>")
        return "".join([*parts, f"<p><b>{escape(self.verdict)}</b></p>"])


def _suite(values: Mapping[str, Any]) -> SuiteResult:
    read = {
        "tables": [
            Table(t["columns"], [*map(_row, t["rows"])], t["title"]) for t in values["tables"]
        ],
        "judgements": [Judgement(**judgement) for judgement in values["judgements"]],
        "plots": [*map(_plot, values["plots"])],
    }
    return SuiteResult(**{**values, **read})


def _plot(values: Mapping[str, Any]) -> Plot:
    lines = {name: [tuple(point) for point in line] for name, line in values["lines"].items()}
    return Plot(**{**values, "lines": lines})


def _row(values: Mapping[str, Any]) -> MetricRow:
    cells = [None if cell is None else MetricValue(**cell) for cell in values["values"]]
    return MetricRow(**{**values, "values": cells})


def judge(
    figure: str,
    samples: Mapping[str, np.ndarray],
    *,
    better: Literal["lower", "higher"],
    of: str = "dictionary",
) -> list[Judgement]:
    """Hold one figure against every other's, by paired draws.

    Args:
        figure: its name.
        samples: name -> [draws], of the same draws of documents or seeds for all.
        better: which way.
        of: whose is judged.
    """
    sign = -1 if better == "lower" else 1
    judgements = []
    for name, draws in samples.items():
        if name != of:
            low, high = interval({"d": sign * (samples[of] - draws)})["d"]
            outcome: Outcome = "ties with"
            if low > 0 or high < 0:
                outcome = "wins against" if low > 0 else "loses to"
            judgements.append(Judgement(figure, name, outcome))
    return judgements


def cells(
    points: Mapping[str, Mapping[str, np.ndarray]],
    samples: Mapping[str, Mapping[str, np.ndarray]],
    figure: str,
) -> list[MetricValue | None]:
    """Return a figure of every column, with the interval that its draws lie in.

    Args:
        points: column -> figure -> [1].
        samples: column -> figure -> [draws].
        figure: which.
    """
    ends = interval({name: figures[figure] for name, figures in samples.items()})
    return [MetricValue(float(points[name][figure][0]), *ends[name]) for name in points]


def told(judgements: Iterable[Judgement]) -> str:
    """Say against what each figure wins, ties and loses."""
    figures: dict[str, dict[str, list[str]]] = {}
    for judgement in judgements:
        outcomes = figures.setdefault(
            judgement.figure, {"wins against": [], "ties with": [], "loses to": []}
        )
        outcomes[judgement.outcome].append(judgement.baseline)
    said: dict[str, list[str]] = {}
    for figure, outcomes in figures.items():
        parts = [f"{outcome} {joined(names)}" for outcome, names in outcomes.items() if names]
        said.setdefault(joined(parts), []).append(figure)
    return "; ".join(f"on {joined(names)} it {outcome}" for outcome, names in said.items())


def verdict(judgements: Sequence[Judgement], wins: bool) -> str:
    """Say how many comparisons with baselines were won, and which were not."""
    if not judgements:
        return "Verdict: nothing was compared with a baseline."
    won = [j for j in judgements if j.outcome == "wins against"]
    lost = [j for j in judgements if j.outcome == "loses to"]
    count = f"{len(won)} of {len(judgements)} comparisons won, {len(lost)} lost"
    if wins:
        return f"Verdict: better than its baselines ({count})."
    rest = told(lost or [j for j in judgements if j.outcome == "ties with"])
    what = "mixed" if won else "no better than its baselines"
    return f"Verdict: {what} ({count}): {rest}."


def joined(names: Sequence[str]) -> str:
    """Join names as a sentence does."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
