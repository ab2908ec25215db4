"""What activations are like, as a table and as a page with pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from monosemy.metrics.spread import SpreadFigures
from monosemy.report.card import environment, writable
from monosemy.report.numbers import figure, percent
from monosemy.report.svg import TONES, Mark, Scatter, Series, draw_scatter

Measured = Mapping[str, Mapping[str, SpreadFigures]]
"""Corpus -> hook point -> figures."""


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    why: str
    tell: Callable[[SpreadFigures], str]


COLUMNS = (
    _Column("norm", "mean norm of an activation", lambda f: figure(f.norm)),
    _Column("std", "root of the mean variance of a dimension", lambda f: figure(f.std)),
    _Column(
        "offset",
        "norm of the mean over the distance from it; above about 1, features die unless "
        "activations are centred, which training here always does",
        lambda f: f"{f.offset:.2f}",
    ),
    _Column(
        "kurtosis",
        "median excess kurtosis of a dimension; 0 for a Gaussian",
        lambda f: f"{f.kurtosis:.1f}",
    ),
    _Column("cosine", "mean cosine of two tokens", lambda f: f"{f.cosine:.2f}"),
    _Column(
        "centred", "size of the same, the mean taken out", lambda f: f"{abs(f.centred_cosine):.3f}"
    ),
    _Column(
        "dimensions",
        "participation ratio: how many dimensions carry the variance",
        lambda f: f"{f.participation:.0f} of {f.d}",
    ),
    _Column("IsoScore", "1: all dimensions alike, 0: one has all", lambda f: f"{f.iso_score:.3f}"),
    _Column("first PC", "share of variance along it", lambda f: percent(f.top_share)),
    _Column(
        "massive",
        "share of tokens with a number above 100 and above 1000 times its token's median",
        lambda f: percent(f.massive_share) if f.massive_share else "none",
    ),
)


def spread_table(measured: Measured) -> Table:
    """Return a line for each hook point and corpus."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("hook point")
    if len(measured) > 1:
        table.add_column("text", max_width=20, overflow="ellipsis", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.title, justify="right", no_wrap=True)
    for point in next(iter(measured.values())):
        for corpus, figures in measured.items():
            cells = [column.tell(figures[point]) for column in COLUMNS]
            table.add_row(point, *([corpus] if len(measured) > 1 else []), *cells)
    return table


def remarks(measured: Measured) -> list[str]:
    """Return what the figures ask a reader to do, in words; nothing where nothing is odd."""
    said = []
    for corpus, points in measured.items():
        of = f" on {corpus}" if len(measured) > 1 else ""
        for point, f in points.items():
            if f.massive_share:
                dims = ", ".join(str(d) for d, _ in f.massive_dims)
                places = ", ".join(str(p) for p, _ in f.massive_positions)
                said.append(
                    f"{point}{of}: massive activations in dimension {dims}, at position {places} "
                    "of a row; where those tokens are counted they dominate FVU, so leave them "
                    "out by the token policy"
                )
            if f.offset > 1:
                said.append(
                    f"{point}{of}: the mean is {f.offset:.1f} times as large as what varies; a "
                    "tool that does not centre loses features here"
                )
            if f.tokens < 10 * f.d:
                said.append(
                    f"{point}{of}: {f.tokens} tokens for {f.d} dimensions; IsoScore and the "
                    "spectrum need ten times as many tokens as dimensions"
                )
    return said


def spread_html(title: str, facts: Mapping[str, str], measured: Measured) -> str:
    """Return the page: it loads nothing and runs nothing."""
    places = [
        (point, _spectrum(point, measured), _norms(point, measured))
        for point in next(iter(measured.values()))
    ]
    rows = [
        (point, corpus, [(column.tell(figures[point])) for column in COLUMNS])
        for point in next(iter(measured.values()))
        for corpus, figures in measured.items()
    ]
    page = environment().get_template("spread.html")
    html = page.render(
        title=title,
        facts=facts,
        columns=COLUMNS,
        rows=rows,
        places=places,
        many=len(measured) > 1,
        remarks=remarks(measured),
    )
    return writable(html)


def _spectrum(point: str, measured: Measured) -> Scatter | None:
    lines = {
        corpus: [(i + 1.0, share) for i, share in enumerate(points[point].spectrum) if share > 1e-9]
        for corpus, points in measured.items()
    }
    return draw_scatter("principal component", "share of variance", _series(lines), log_y=True)


def _norms(point: str, measured: Measured) -> Scatter | None:
    lines = {
        corpus: [(i + 1.0, norm) for i, norm in enumerate(points[point].norms_by_position)]
        for corpus, points in measured.items()
    }
    return draw_scatter("position in a row", "mean norm", _series(lines), log_y=True)


def _series(lines: Mapping[str, Sequence[tuple[float, float]]]) -> list[Series]:
    return [
        Series(
            name=name,
            tone=1 + number % TONES,
            marks=[_mark(line[0]), _mark(line[-1]), _mark(max(line, key=lambda place: place[1]))],
            lines=[line],
        )
        for number, (name, line) in enumerate(lines.items())
        if line
    ]


def _mark(place: tuple[float, float]) -> Mark:
    x, y = place
    return Mark(x, y, y, y, f"{figure(y)} at {x:.0f}")
