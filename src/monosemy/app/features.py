"""Features: all of them in a list, and one in full."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from monosemy.app.columns import features_js
from monosemy.app.contexts import context_html
from monosemy.app.feature import feature_values
from monosemy.app.pages import Served, ThisRun, page
from monosemy.app.runs import OpenRun
from monosemy.errors import UserError
from monosemy.index import Exemplar, Name, add_name
from monosemy.report.card import writable
from monosemy.report.numbers import figure, percent

FOUND = 2000
"""Features that a search finds, at most."""

router = APIRouter()


@router.get("/features")
def listed(request: Request, run: ThisRun) -> Response:
    """Show the list; without scripts, the most frequent ones."""
    return page("features.html", request, run, title="Features", listed=run.features.live[:200])


@router.get("/data/features.js")
def data(request: Request, run: ThisRun) -> Response:
    """Return the columns of the list."""
    return Response(features_js(run), media_type="text/javascript")


@router.get("/features/search")
def search(run: ThisRun, q: str = "") -> Response:
    """Return the features that words are found in, best first."""
    return JSONResponse([found.feature for found in run.features.index.search(q, FOUND)])


@router.get("/features/{feature}")
def feature(request: Request, run: ThisRun, feature: int) -> Response:
    """Show one feature."""
    runs: dict[str, OpenRun] = request.app.state.runs
    values = feature_values(run, feature, beside=runs.values())
    return page("feature.html", request, run, title=f"Feature {feature}", me=_me(), **values)


@router.get("/features/{feature}/context")
def context(run: ThisRun, feature: int, place: int, window: int) -> Response:
    """Return the text around a place, with a feature's activations in it.

    Raises:
        UserError: there is no such feature, or no text at the place.
    """
    index = run.features.index
    index.check_feature(feature)
    if not 0 <= place < len(index.text) or index.text.document[place] < 0:
        raise UserError(f"there is no text at place {place}", f"0 to {len(index.text) - 1}")
    window = min(max(window, 1), index.text.context)
    exemplar = index.exemplar(feature, place, window)
    return HTMLResponse(writable(context_html(exemplar, float(index.max[feature]))))


@router.post("/features/{feature}/name")
async def name(request: Request, run: ThisRun, feature: int) -> Response:
    """Keep what somebody calls a feature, and show it.

    Raises:
        UserError: there is no such feature, the name is too long, or the disk refuses.
    """
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    given, by = (form.get(field, [""])[0].strip() for field in ("name", "by"))
    index = run.features.index
    index.check_feature(feature)
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    add_name(index.folder, Name(feature, given, by or _me(), now))
    return RedirectResponse(Served(run).href(f"features/{feature}"), 303)


@router.post("/features/{feature}/fire")
def fire(run: ThisRun, feature: int, text: Annotated[str, Body(embed=True)]) -> Response:
    """Return how a feature fires on a text, as HTML and in words.

    Raises:
        UserError: there is no such feature, or the text is empty or too long.
    """
    index = run.features.index
    index.check_feature(feature)
    with run.model:
        fired = index.top(text, run.dictionary, run.lm)
    activations, largest = fired.activations(feature), float(index.max[feature])
    on = sum(activation > 0 for activation in activations)
    strongest = max(activations, default=0.0)
    said = "does not fire"
    if on:
        share = f", {percent(strongest / largest)} of its largest" if largest else ""
        said = f"fires on {on} of {len(activations)} tokens, at most {figure(strongest)}{share}"
    exemplar = Exemplar("", fired.tokens, activations, activations.index(strongest) if on else -1)
    return JSONResponse({"said": said, "html": writable(context_html(exemplar, largest))})


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # nobody has that user's number
        return ""
