"""Compare: two dictionaries side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

import numpy as np
import torch
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from monosemy.app.asked import Form, text, whole
from monosemy.app.columns import labels
from monosemy.app.pages import Served, ThisRun, find_run, page
from monosemy.app.prompt import read_prompt
from monosemy.app.runs import OpenRun
from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.evaluation.suites.stability import SHARED
from monosemy.index import FeatureView
from monosemy.interpret import Parents, parents_by_direction
from monosemy.metrics.stability import EXACT, match, partner_cosines
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.report.numbers import count, figure, metric_cells, percent
from monosemy.report.svg import Mark, Scatter, Series, draw_intervals, draw_scatter

router = APIRouter()

METRICS = "metrics.json"
OWN = "dictionary"
"""Column of a table that is the dictionary's."""
ALONE, FAMILIES, BINS = 60, 30, 40
"""Features listed that have no partner, families listed; bars of the histogram of densities."""
_ADDRESS = 4000


@dataclass(frozen=True, slots=True)
class Alone:
    """The live features of a run that have no partner in the other.

    Attributes:
        total: how many they are.
        listed: the most frequent: feature, what it is called, cosine with its partner.
    """

    total: int
    listed: list[tuple[int, str, float]]


@dataclass(frozen=True, slots=True)
class Partners:
    """The features of two dictionaries matched one to one by the directions that they write.

    Attributes:
        of_a: [width] partner of each feature of the first, -1 where it has none.
        of_b: [width] that of each feature of the second.
        cosines: [width] of each feature of the first with its partner; 0 without one.
    """

    of_a: np.ndarray
    of_b: np.ndarray
    cosines: np.ndarray

    @property
    def shared(self) -> np.ndarray:
        """[width] whether a feature of the first and its partner are the same."""
        return self.cosines > SHARED


@dataclass(frozen=True, slots=True)
class Family:
    """A feature of the narrower run, and those of the wider one that it has split into.

    Features are listed as number and what they are called, children nearest first.
    """

    parent: tuple[int, str]
    children: list[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Families:
    """What the features of the narrower of two runs have become in the wider one."""

    narrow: OpenRun
    wide: OpenRun
    parents: Parents
    """Of each live feature of the wider, by direction; numbers are those of the runs."""
    listed: list[Family]
    """Those with most children."""

    @property
    def summary(self) -> str:
        """Say how many features have a parent, and how many parents have several children."""
        parent = self.parents.parent
        live = int((self.wide.dictionary.strength > 0).sum())
        return (
            f"{int((parent >= 0).sum()):,} of {live:,} live features of {self.wide.name} are "
            f"nearer to one of {self.narrow.name} than chance has it (cosine above "
            f"{figure(self.parents.threshold)}); {len(self.parents.families):,} features of "
            f"{self.narrow.name} have several such children."
        )


def refusal(a: Dictionary, b: Dictionary) -> str:
    """Say why the features of two dictionaries have no partners; empty where they have."""
    mine, theirs = a.provenance, b.provenance
    for what, of_a, of_b in (
        ("are of different models", mine.model, theirs.model),
        ("read different hook points", a.hookpoint, b.hookpoint),
        ("explain different hook points", a.explains, b.explains),
    ):
        if of_a != of_b:
            return f"The two {what}, {of_a} and {of_b}: their directions cannot be compared."
    return ""


@lru_cache(maxsize=8)
def match_runs(a: OpenRun, b: OpenRun) -> Partners:
    """Match the live features of two runs one to one, so that the sum of cosines is largest."""
    live = [torch.nonzero(run.dictionary.strength > 0)[:, 0] for run in (a, b)]
    rows = [
        run.dictionary.coder.W_dec.detach()[alive] for run, alive in zip((a, b), live, strict=True)
    ]
    of_a, of_b = np.full(a.dictionary.width, -1), np.full(b.dictionary.width, -1)
    cosines = np.zeros(a.dictionary.width)
    if all(map(len, rows)):
        partners = match(*rows)
        mine, theirs = live[0][partners >= 0], live[1][partners[partners >= 0]]
        of_a[mine], of_b[theirs] = theirs, mine
        cosines[live[0]] = partner_cosines(rows[0], rows[1], partners)
    return Partners(of_a, of_b, cosines)


@lru_cache(maxsize=8)
def find_families(a: OpenRun, b: OpenRun) -> Families | None:
    """Find what features of the narrower run the wider one has split; None for equal widths."""
    if a.dictionary.width == b.dictionary.width:
        return None
    narrow, wide = sorted((a, b), key=lambda run: run.dictionary.width)
    of_narrow, of_wide = (
        np.flatnonzero(run.dictionary.strength.numpy() > 0) for run in (narrow, wide)
    )
    if not len(of_narrow) or not len(of_wide):
        return None
    found = parents_by_direction(
        narrow.dictionary.coder.W_dec[of_narrow], wide.dictionary.coder.W_dec[of_wide]
    )
    parent, score = np.full(wide.dictionary.width, -1), np.full(wide.dictionary.width, np.nan)
    parent[of_wide] = np.where(found.parent >= 0, of_narrow[found.parent], -1)
    score[of_wide] = found.score
    parents = Parents(parent, score, found.threshold)
    families = sorted(parents.families.items(), key=lambda family: -len(family[1]))[:FAMILIES]
    listed = [
        Family(
            (mother, _called(narrow, [mother])[0]),
            list(zip(near, _called(wide, near), strict=True)),
        )
        for mother, children in families
        for near in [sorted(children, key=lambda child: -score[child])]
    ]
    return Families(narrow, wide, parents, listed)


@router.get("/compare")
def compare(request: Request, run: ThisRun, b: str = "") -> Response:
    """Show two runs side by side: this one and the one of the address."""
    return _compare_page(request, run, {**request.query_params, "b": b})


@router.post("/compare")
def sent(request: Request, run: ThisRun, form: Form) -> Response:
    """Give what was asked for an address; answer at once where it would be too long."""
    asked = {n: text(form, n) for n in ("b", "feature", "match", "text") if form.get(n)}
    address = f"{request.url.path}?{urlencode(asked)}"
    if len(address) <= _ADDRESS:
        return RedirectResponse(address, 303)
    return _compare_page(request, run, asked)


def _compare_page(request: Request, a: OpenRun, asked: Mapping[str, str]) -> Response:
    runs: dict[str, OpenRun] = request.app.state.runs
    others = [name for name in runs if name != a.name]
    if not asked.get("b"):
        if not others:
            return page("compare.html", request, a, title="Compare", others=[], b=None)
        return RedirectResponse(f"{request.url.path}?{urlencode({'b': others[0]})}", 303)
    b = find_run(request, asked["b"])
    why_not = refusal(a.dictionary, b.dictionary)
    is_large = max(a.dictionary.width, b.dictionary.width) > EXACT
    partners, families = None, None
    if not why_not and (not is_large or asked.get("match")):
        partners, families = match_runs(a, b), find_families(a, b)
    feature = whole(asked, "feature", -1, -1, a.dictionary.width - 1)
    typed = text(asked, "text")
    return page(
        "compare.html",
        request,
        a,
        title="Compare",
        others=others,
        b=b,
        page_of=lambda run, address: Served(run).href(address),
        facts=facts(a, b),
        metrics=metrics(a, b),
        densities=draw_densities({run.name: run for run in (a, b)}),
        why_not=why_not,
        partners=partners,
        summary=summarise(partners, a, b) if partners else "",
        alone=[find_alone(a, partners.cosines), find_alone(b, _cosines_of_b(partners))]
        if partners
        else [],
        shared=SHARED,
        families=families,
        feature=feature if feature >= 0 else "",
        cards=_cards(a, b, partners, feature) if feature >= 0 else [],
        text=typed,
        readings=[(run, read_prompt(run, typed)) for run in (a, b)] if typed else [],
    )


def facts(a: OpenRun, b: OpenRun) -> list[tuple[str, str, str]]:
    """Return what the runs are: name of the fact, of the first, of the second."""
    both = [_facts(run) for run in (a, b)]
    return [(name, both[0][name], both[1][name]) for name in both[0]]


def _facts(run: OpenRun) -> dict[str, str]:
    dictionary = run.dictionary
    provenance, training = dictionary.provenance, dictionary.provenance.training
    return {
        "architecture": dictionary.coder.architecture.replace("_", " "),
        "model": provenance.model,
        "hook point": dictionary.hookpoint
        + (f", explains {dictionary.explains}" if dictionary.is_transcoder else ""),
        "features": f"{dictionary.width:,}",
        "live on held-out text": f"{int((dictionary.strength > 0).sum()):,}",
        "L0 on held-out text": figure(dictionary.l0),
        "text": str(provenance.corpus.get("source", "")),
        "tokens of training": count(training["tokens"]) if "tokens" in training else "",
        "seed": str(training.get("seed", "")),
    }


def metrics(a: OpenRun, b: OpenRun) -> list[tuple[str, list[Any]]]:
    """Return the figures that both runs have, by suite: rows as the macro `figures` takes them."""
    mine, theirs = (_figures(run) for run in (a, b))
    suites: dict[str, list[Any]] = {}
    for key, row in mine.items():
        if key in theirs:
            both = MetricRow(
                row.name,
                row.unit,
                row.better,
                row.explanation,
                [*row.values, *theirs[key].values],
            )
            drawn = (both, metric_cells(both), draw_intervals(both.values))
            suites.setdefault(key[0], []).append(drawn)
    return list(suites.items())


def _figures(run: OpenRun) -> dict[tuple[str, str, str], MetricRow]:
    """Return a run's own figures by suite, table and name; none where it was not evaluated.

    Raises:
        UserError: its `metrics.json` is damaged.
    """
    found = {}
    try:
        for suite in (run.json(METRICS) or {"suites": []})["suites"]:
            for table in suite["tables"]:
                if OWN not in table["columns"]:
                    continue
                own = table["columns"].index(OWN)
                for row in table["rows"]:
                    value = row["values"][own]
                    shown = {n: row[n] for n in ("name", "unit", "better", "explanation")}
                    values = [MetricValue(**value) if value else None]
                    key = suite["title"], table["title"], row["name"]
                    found[key] = MetricRow(**shown, values=values)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"`{run.folder / METRICS}` is not as it was written: {error}",
            "make it again: monosemy evaluate RUN",
        ) from error
    return found


def draw_densities(runs: Mapping[str, OpenRun]) -> Scatter | None:
    """Draw how many features of each run fire how often; of those with an index."""
    densities = {}
    for name, run in runs.items():
        try:
            features = run.features
        except UserError:
            continue
        live = features.counts[features.counts > 0] / features.n_tokens
        densities[name] = np.log10(live)
    if not any(map(len, densities.values())):
        return None
    every = np.concatenate(list(densities.values()))
    edges = np.linspace(every.min(), every.max() + 1e-9, BINS + 1)
    middles = 10 ** ((edges[1:] + edges[:-1]) / 2)
    series = []
    for tone, (name, values) in enumerate(densities.items(), start=1):
        counts = np.histogram(values, edges)[0].tolist()
        line = list(zip(middles.tolist(), counts, strict=True))
        marks = [
            Mark(x, n, n, n, f"{name}: {n} features at {percent(x)} of tokens", size=2.5)
            for x, n in line
        ]
        series.append(Series(name, tone, marks, [line]))
    return draw_scatter("share of tokens", "features", series)


def summarise(partners: Partners, a: OpenRun, b: OpenRun) -> str:
    """Say how many features the runs share."""
    live = a.dictionary.strength.numpy() > 0
    shared = int(partners.shared.sum())
    mean = partners.cosines[live].mean() if live.any() else 0.0
    return (
        f"{shared:,} of {int(live.sum()):,} live features of {a.name} have a partner in {b.name} "
        f"with a cosine above {SHARED}; the mean cosine of partners is {figure(float(mean))}."
    )


def _cosines_of_b(partners: Partners) -> np.ndarray:
    """[width of b] cosine of each feature of the second with its partner; 0 without one."""
    has = partners.of_b >= 0
    found = np.zeros(len(partners.of_b))
    found[has] = partners.cosines[partners.of_b[has]]
    return found


def find_alone(run: OpenRun, cosines: np.ndarray) -> Alone:
    """Return a run's live features whose cosines with their partners are not above `SHARED`."""
    alone = np.flatnonzero((run.dictionary.strength.numpy() > 0) & (cosines <= SHARED))
    try:
        counts = run.features.index.counts
    except UserError:
        counts = np.zeros(run.dictionary.width)
    order = alone[np.argsort(-counts[alone], kind="stable")][:ALONE].tolist()
    lines = _called(run, order)
    return Alone(
        len(alone), [(f, line, float(cosines[f])) for f, line in zip(order, lines, strict=True)]
    )


def _called(run: OpenRun, features: list[int]) -> list[str]:
    """Return what features are called; empty text where there is no index."""
    try:
        return labels(run.features.index, features)
    except UserError:
        return [""] * len(features)


def _cards(
    a: OpenRun, b: OpenRun, partners: Partners | None, feature: int
) -> list[tuple[OpenRun, FeatureView]]:
    """Return a feature of the first and its partner in the second."""
    cards = [(a, a.features.view(feature, exemplars=6))]
    if partners is not None and partners.of_a[feature] >= 0:
        cards.append((b, b.features.view(int(partners.of_a[feature]), exemplars=6)))
    return cards
