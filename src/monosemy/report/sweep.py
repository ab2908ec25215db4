"""What came out of a sweep: `sweep.json`, one page `sweep.html`, and a table for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.table import Table
from rich.text import Text

from monosemy.artefact import write_text
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation.scaling import Prediction, ScalingFit, fit_sweep
from monosemy.evaluation.sweep import (
    BASELINES,
    SeedMean,
    SweepRow,
    compare_on_held_out,
    over_seeds,
    pareto_front,
)
from monosemy.lm import LM
from monosemy.metrics import FORMULAS
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.report.card import environment, writable
from monosemy.report.numbers import MISSING, count, figure, metric_cells, percent
from monosemy.report.svg import TONES, Mark, Scatter, Series, draw_scatter
from monosemy.training import Run
from monosemy.training.grid import names_of

FIGURES = {
    "l0": ("L0", "features that fire on a token; of baselines, numbers used"),
    "fvu": ("FVU", "share of variance left unexplained; lower is better"),
    "recovered": ("loss recovered", "1: no harm when spliced in; 0: as the mean activation"),
    "ce_increase": ("CE increase", "rise of next-token loss, nats, when spliced in"),
    "dead_share": ("dead share", "features that fired on none of the tokens measured"),
}
"""Figure of a row -> its title, and what it is; in the order of the table."""

_CURVE_POINTS = 60
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What was found, and the page that shows it."""

    path: Path
    rows: list[SweepRow]
    scaling: list[ScalingFit]
    refusal: str
    """Why no scaling law was fitted, where widths or token budgets vary."""


def sweep_report(folder: str | Path, runs: Sequence[Run], lm: LM, corpus: Corpus) -> SweepReport:
    """Compare the dictionaries of a sweep on held-out text, fit what laws there are, and report.

    Leaves `sweep.json` and `sweep.html` in the folder.

    Args:
        folder: of the sweep.
        runs: as `monosemy.training.sweep` returns them.
        lm: their model.
        corpus: whose held-out documents are read.

    Raises:
        UserError: there are no runs, there is no held-out text, or the disk refuses.
    """
    names = names_of([(run.dictionary.hookpoint, run.config) for run in runs])
    dictionaries = {name: run.dictionary for name, run in zip(names, runs, strict=True)}
    rows = compare_on_held_out(dictionaries, lm, corpus)
    try:
        fits, refusal = fit_sweep(rows), ""
    except UserError as error:
        fits, refusal = [], error.message
    return SweepReport(report_sweep(folder, rows, fits, refusal), rows, fits, refusal)


def report_sweep(
    folder: str | Path,
    rows: Sequence[SweepRow],
    scaling: ScalingFit | Sequence[ScalingFit] | None = None,
    refusal: str = "",
) -> Path:
    """Write `sweep.json` and `sweep.html`; return the path of the page.

    Args:
        folder: of the sweep; made if it is not there.
        rows: as `compare_on_held_out` returns them.
        scaling: as `fit_sweep` returns them.
        refusal: why there are none, where there might have been.

    Raises:
        UserError: there are no rows of dictionaries, or the disk refuses.
    """
    folder = Path(folder)
    fits = [scaling] if isinstance(scaling, ScalingFit) else list(scaling or [])
    html = sweep_html(rows, fits, refusal)
    values = {
        "formulas": FORMULAS,
        "front": pareto_front(rows),
        "rows": [row.to_dict() for row in rows],
        "seeds": [_seeds_to_dict(group) for group in over_seeds(rows)],
        "scaling": [fit.to_dict() for fit in fits],
        "scaling_refused": refusal,
    }
    write_text(folder / "sweep.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
    write_text(folder / "sweep.html", html)
    return folder / "sweep.html"


def sweep_html(rows: Sequence[SweepRow], fits: Sequence[ScalingFit] = (), refusal: str = "") -> str:
    """The page as text: it loads nothing and runs nothing.

    Raises:
        UserError: there are no rows of dictionaries.
    """
    trained = [row for row in rows if not row.is_baseline]
    if not trained:
        raise UserError("there are no dictionaries to report on", "give the rows of at least one")
    places = list(dict.fromkeys(row.place for row in trained))
    tones = _tones(rows)
    predictions = [fit.larger() for fit in fits]
    page = environment().get_template("sweep.html")
    html = page.render(
        title=f"{len(trained)} dictionaries compared" if len(trained) > 1 else "One dictionary",
        verdict=verdict(rows),
        facts=_facts(trained),
        places=[_place(place, rows, tones) for place in places],
        scaling=[_law(f, p) for f, p in zip(fits, predictions, strict=True)],
        refusal=refusal,
        table=_page_table(rows, tones),
        seeds=_seed_table(over_seeds(rows), tones),
    )
    return writable(html)


def pareto_plots(rows: Sequence[SweepRow], name: str) -> list[Scatter]:
    """Draw the dictionaries of a sweep at the hook point of one of them, against their L0."""
    places = {row.place for row in rows if row.name == name}
    here = [row for row in rows if row.place in places]
    plots = [_pareto(here, figure, _tones(rows)) for figure in ("fvu", "recovered")]
    return [plot for plot in plots if plot is not None]


def _tones(rows: Sequence[SweepRow]) -> dict[str, int]:
    """Return a colour for each architecture."""
    kinds = dict.fromkeys(row.architecture for row in rows if not row.is_baseline)
    return {kind: 1 + number % TONES for number, kind in enumerate(kinds)}


def verdict(rows: Sequence[SweepRow]) -> str:
    """Say which dictionaries no other beats, and how they stand to the baseline of equal size."""
    said = []
    front = set(pareto_front(rows))
    places = _by_place([row for row in rows if not row.is_baseline])
    for place, group in places:
        where = f"At {place}, " if len(places) > 1 else ""
        best = [row.name for row in group if row.name in front]
        if len(group) > 1:
            names = _join(best) if len(best) <= 3 else f"{len(best)} of {len(group)} dictionaries"
            said.append(
                f"{where}{names} {'is' if len(best) == 1 else 'are'} not beaten by another on both "
                "L0 and FVU."
            )
        said.append(_against_baseline(group, [r for r in rows if r.place == place]))
    return " ".join(filter(None, said))


def _against_baseline(group: Sequence[SweepRow], rows: Sequence[SweepRow]) -> str:
    """Say how many dictionaries explain more than the baseline of as many numbers a token."""
    baseline = sorted((r.value("l0"), r.value("fvu")) for r in rows if r.is_baseline)
    if not baseline:
        return ""
    sizes, errors = (np.array(column) for column in zip(*baseline, strict=True))
    within = [row for row in group if sizes[0] <= row.value("l0") <= sizes[-1]]
    if not within:
        return ""
    # Between two sizes that were measured, on a logarithmic scale of sizes.
    at = np.interp(np.log([r.value("l0") for r in within]), np.log(sizes), errors)
    better = sum(row.value("fvu") < error for row, error in zip(within, at, strict=True))
    held_against = {"pca": "PCA", "linear": "the best linear map"}
    name = next(held_against[row.architecture] for row in rows if row.is_baseline)
    if len(within) == 1:
        says = f"{within[0].name} {'explains' if better else 'does not explain'}"
    else:
        share = {0: "None", len(within): f"All {len(within)}"}
        says = f"{share.get(better, f'{better} of {len(within)}')} explain"
    return f"{says} more than {name} with as many numbers a token."


def sweep_table(rows: Sequence[SweepRow]) -> Table:
    """A table for the terminal: one line a dictionary, a dot before those on the Pareto front."""
    front = set(pareto_front(rows))
    settings = _settings(rows)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True, style="#c07a2c")
    table.add_column("name", overflow="fold")
    for title, _ in settings:
        table.add_column(title, justify="right")
    for title, _ in _titles(rows).values():
        table.add_column(title, justify="right")
    shown = {name: _cells(rows, name) for name in _titles(rows)}
    for place, group in _by_place(rows):
        if len({row.place for row in rows}) > 1:
            table.add_row("", Text(place, "dim"))
        for row in _in_order(group):
            cells = [Text(tell(row)) for _, tell in settings]
            figures = [_terminal_figure(row, name, shown[name]) for name in shown]
            style = "dim" if row.is_baseline else ""
            dot = "●" if row.name in front else ""
            table.add_row(dot, Text(row.name), *cells, *figures, style=style)
    return table


def seeds_table(rows: Sequence[SweepRow]) -> Table | None:
    """Means and standard deviations over seeds for the terminal; None where no seeds differ."""
    groups = over_seeds(rows)
    if not groups:
        return None
    settings = [(title, tell) for title, tell in _settings(rows) if title != "seed"]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("seeds", justify="right")
    for title in [*(title for title, _ in settings), *(t for t, _ in _titles(rows).values())]:
        table.add_column(title, justify="right")
    for group in groups:
        cells = [Text(tell(group.rows[0])) for _, tell in settings]
        figures = [_mean_and_spread(group, name) for name in _titles(rows)]
        texts = [Text.assemble(mean, (f" {spread}", "dim")) for mean, spread in figures]
        table.add_row(str(len(group.rows)), *cells, *texts)
    return table


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    plots: list[Scatter]
    note: str


@dataclass(frozen=True, slots=True)
class _LawPlot:
    sentence: str
    formula: str
    plot: Scatter | None
    parameters: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the page's table."""

    name: str
    tone: int
    is_baseline: bool
    is_best: bool
    settings: list[str]
    figures: list[tuple[str, str]]


def _place(place: str, rows: Sequence[SweepRow], tones: dict[str, int]) -> _Place:
    here = [row for row in rows if row.place == place]
    plots = [_pareto(here, name, tones) for name in ("fvu", "recovered")]
    drawn = [plot for plot in plots if plot is not None]
    notes = [
        f"Beyond the picture of {plot.y_name}: {'; '.join(plot.outside)}."
        for plot in drawn
        if plot.outside
    ]
    return _Place(place, drawn, " ".join(notes))


def _pareto(rows: Sequence[SweepRow], name: str, tones: dict[str, int]) -> Scatter | None:
    """One figure against L0: architectures by colour and shape, widths by size of the mark."""
    front = set(pareto_front(rows))
    widths = sorted({row.width for row in rows if not row.is_baseline})
    series = []
    for kind in dict.fromkeys([*tones, *BASELINES]):
        mine = [r for r in rows if r.architecture == kind and math.isfinite(r.value(name))]
        if not mine:
            continue
        is_baseline = kind in BASELINES
        marks = [
            Mark(
                row.value("l0"),
                row.figures[name].value,
                row.figures[name].low,
                row.figures[name].high,
                f"{row.name} (L0 {figure(row.value('l0'))}, {FIGURES[name][0]} "
                f"{figure(row.value(name))})",
                filled=is_baseline or row.name in front,
                size=4 if is_baseline else 3.6 + 2.4 * _rank(row.width, widths),
            )
            for row in mine
        ]
        title = BASELINES.get(kind, kind.replace("_", " "))
        lines = _lines(mine, name)
        series.append(
            Series(title, tones.get(kind, 0), marks, lines, is_baseline, sets_axes=not is_baseline)
        )
    return draw_scatter("L0", FIGURES[name][0], series)


def _lines(rows: Sequence[SweepRow], name: str) -> list[list[tuple[float, float]]]:
    """Join what differs in L0 alone, through the means over seeds."""
    alike: dict[tuple, dict[float | None, list[SweepRow]]] = {}
    for row in rows:
        key = (None, None) if row.is_baseline else (row.width, row.tokens)
        alike.setdefault(key, {}).setdefault(row.k_or_target, []).append(row)
    lines = []
    for by_k in alike.values():
        if None in by_k:  # no L0 was asked for: nothing says which rows belong together
            continue
        points = [
            (fmean(r.value("l0") for r in group), fmean(r.value(name) for r in group))
            for group in by_k.values()
        ]
        if len(points) > 1:
            lines.append(sorted(points))
    return lines


def _law(fit: ScalingFit, prediction: Prediction) -> _LawPlot:
    """A law over its points, as far as the prediction, which is drawn hollow."""
    scaled = fit.quantities[0]
    seen = [getattr(p, scaled) for p in fit.points]
    xs = np.geomspace(min(seen), prediction.at[scaled], _CURVE_POINTS)
    series = []
    levels = fit.levels if "k" in fit.quantities else {None: fit.middle_k}
    for number, (k, l0) in enumerate(levels.items()):
        marks = [
            Mark(
                getattr(p, scaled),
                p.loss,
                p.loss,
                p.loss,
                f"{scaled} {count(getattr(p, scaled))}, L0 {figure(p.fires)}: {figure(p.loss)}",
            )
            for p in fit.points
            if k in (None, p.k)
        ]
        if l0 == fit.middle_k:
            loss = prediction.loss
            label = f"predicted: {figure(loss.value)} ({figure(loss.low)} to {figure(loss.high)})"
            x = prediction.at[scaled]
            marks.append(Mark(x, loss.value, loss.low, loss.high, label, filled=False, size=5))
        fixed = {"k": l0} if "k" in fit.quantities else {}
        curve = [(float(x), fit.value(**{scaled: float(x)}, **fixed)) for x in xs]
        series.append(Series(f"L0 {l0:.3g}", 1 + number % TONES, marks, [curve]))
    return _LawPlot(
        sentence=fit.sentence(prediction),
        formula=f"{fit.metric.upper()} = {fit.law.formula}",
        plot=draw_scatter(scaled, fit.metric.upper(), series, log_y=True),
        parameters=[_parameter(name, value) for name, value in _told(fit).items()],
    )


def _told(fit: ScalingFit) -> dict[str, MetricValue]:
    """A law's parameters; a floor that is one number as that number, not its logarithm."""
    if fit.floor and "eta" not in fit.parameters:
        return {"exp(zeta)" if n == "zeta" else n: p for n, p in fit.parameters.items()} | {
            "exp(zeta)": fit.floor
        }
    return fit.parameters


def _parameter(name: str, value: MetricValue) -> tuple[str, str, str]:
    low, high = (
        figure(end) if math.isfinite(end) else ("∞" if end > 0 else f"{_MINUS}∞")
        for end in (value.low, value.high)
    )
    return name, figure(value.value), f"{low} to {high}"


def _page_table(rows: Sequence[SweepRow], tones: dict[str, int]) -> dict:
    """What the page's table holds: columns with explanations, and lines under each place."""
    front = set(pareto_front(rows))
    settings, titles = _settings(rows), _titles(rows)
    shown = {name: _cells(rows, name) for name in titles}
    groups = []
    for place, group in _by_place(rows):
        lines = [
            _Line(
                name=row.name,
                tone=tones.get(row.architecture, 0),
                is_baseline=row.is_baseline,
                is_best=row.name in front,
                settings=[tell(row) for _, tell in settings],
                figures=[shown[name].get(_key(row), (MISSING, "")) for name in titles],
            )
            for row in _in_order(group)
        ]
        groups.append((place, lines))
    return {
        "settings": [title for title, _ in settings],
        "figures": list(titles.values()),
        "groups": groups,
    }


def _seed_table(groups: Sequence[SeedMean], tones: dict[str, int]) -> dict:
    if not groups:
        return {}
    rows = [row for group in groups for row in group.rows]
    settings = [(t, tell) for t, tell in _settings(rows) if t != "seed"]
    titles = _titles(rows)
    lines = []
    for group in groups:
        first = group.rows[0]
        figures = [_mean_and_spread(group, name) for name in titles]
        name = f"{_label(first)}, {len(group.rows)} seeds"
        told = [tell(first) for _, tell in settings]
        lines.append(_Line(name, tones[first.architecture], False, False, told, figures))
    return {
        "settings": [title for title, _ in settings],
        "figures": list(titles.values()),
        "groups": [("", lines)],
    }


_Setting = tuple[str, Callable[[SweepRow], str]]


def _settings(rows: Sequence[SweepRow]) -> list[_Setting]:
    """The columns of settings that differ between dictionaries, and width and k in any case."""
    columns: list[tuple[str, str, Callable[[SweepRow], str]]] = [
        ("architecture", "architecture", lambda r: r.architecture.replace("_", " ")),
        ("width", "width", lambda r: f"{r.width:,}"),
        ("k or target", "k_or_target", lambda r: _optional(r.k_or_target, "{:g}")),
        ("tokens", "tokens", lambda r: count(r.tokens)),
        ("lr", "lr", lambda r: _optional(r.lr, "{:.2g}")),
        ("seed", "seed", lambda r: _optional(r.seed, "{}")),
    ]
    trained = [row for row in rows if not row.is_baseline]
    always = ("width", "k_or_target")
    return [
        (title, _of_dictionaries(tell) if name not in always else tell)
        for title, name, tell in columns
        if name in always or len({getattr(row, name) for row in trained}) > 1
    ]


def _of_dictionaries(tell: Callable[[SweepRow], str]) -> Callable[[SweepRow], str]:
    return lambda row: "" if row.is_baseline else tell(row)


def _optional(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


def _titles(rows: Sequence[SweepRow]) -> dict[str, tuple[str, str]]:
    """The figures that any row has."""
    return {name: told for name, told in FIGURES.items() if any(name in r.figures for r in rows)}


def _key(row: SweepRow) -> tuple[str, str]:
    return row.place, row.name


def _cells(rows: Sequence[SweepRow], name: str) -> dict[tuple[str, str], tuple[str, str]]:
    """A figure of each row that has it, and its interval, all with as many decimals."""
    having = [row for row in rows if name in row.figures]
    if name == "dead_share":
        return {_key(row): (percent(row.value(name)), "") for row in having}
    cells = metric_cells(MetricRow(name, "", "", "", [row.figures[name] for row in having]))
    return {
        _key(row): (cell.value, cell.interval)
        for row, cell in zip(having, cells, strict=True)
        if cell is not None
    }


def _terminal_figure(row: SweepRow, name: str, cells: dict) -> Text:
    """A figure, and half the width of its interval where space is best spent on it."""
    value, between = cells.get(_key(row), (MISSING, ""))
    if name not in ("fvu", "recovered") or not between:
        return Text(value)
    half = (row.figures[name].high - row.figures[name].low) / 2
    decimals = len(value.partition(".")[2])
    return Text.assemble(value, (f" ±{half:.{decimals}f}", "dim"))


def _mean_and_spread(group: SeedMean, name: str) -> tuple[str, str]:
    if name not in group.mean:
        return MISSING, ""
    mean, spread = group.mean[name], group.spread[name]
    if name == "dead_share":
        return percent(mean), f"±{percent(spread)}"
    return figure(mean), f"±{figure(spread, 2)}"


def _facts(rows: Sequence[SweepRow]) -> dict[str, str]:
    """What all dictionaries have in common, and over what they range."""

    def some(values: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    by_width = sorted(rows, key=lambda row: row.width)
    by_k = sorted(rows, key=lambda row: row.k_or_target or 0)
    by_tokens = sorted(rows, key=lambda row: row.tokens)
    facts = {
        "hook points": some([row.place for row in rows]),
        "architectures": some([row.architecture.replace("_", " ") for row in rows]),
        "widths": some([f"{row.width:,}" for row in by_width]),
        "k or target L0": some([_optional(row.k_or_target, "{:g}") for row in by_k]),
        "trained on": some([count(row.tokens) for row in by_tokens]) + " tokens",
        "seeds": some([_optional(row.seed, "{}") for row in rows]),
    }
    measured = rows[0].measured
    if measured:
        facts["measured on"] = (
            f"{measured['tokens']:,} held-out tokens of {measured['documents']} documents"
        )
        if measured.get("loss_tokens"):
            facts["loss measured on"] = f"{measured['loss_tokens']:,} of them"
    return facts


def _by_place(rows: Sequence[SweepRow]) -> list[tuple[str, list[SweepRow]]]:
    order = {place: number for number, place in enumerate(dict.fromkeys(r.place for r in rows))}
    ordered = sorted(rows, key=lambda row: order[row.place])
    return [(place, list(group)) for place, group in groupby(ordered, lambda row: row.place)]


def _in_order(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Dictionaries by architecture, width and L0; baselines last."""
    return sorted(
        rows,
        key=lambda r: (r.is_baseline, r.architecture, r.width, r.tokens, r.value("l0")),
    )


def _label(row: SweepRow) -> str:
    return f"{row.architecture.replace('_', ' ')} at {row.place}"


def _rank(value: float, ordered: Sequence[float]) -> float:
    """Where a value stands among those there are: 0 the least, 1 the largest."""
    return ordered.index(value) / (len(ordered) - 1) if len(ordered) > 1 else 0.5


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _seeds_to_dict(group: SeedMean) -> dict:
    return {
        "rows": [row.name for row in group.rows],
        "mean": {n: v if math.isfinite(v) else None for n, v in group.mean.items()},
        "spread": {n: v if math.isfinite(v) else None for n, v in group.spread.items()},
    }
