"""What pages have in common: the frame around them, and how they are made."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from monosemy.app.runs import OpenRun
from monosemy.errors import UserError
from monosemy.report.card import environment, writable

_TEMPLATES = Path(__file__).parent / "templates"

SECTIONS = {
    "": "Overview",
    "features": "Features",
    "prompt": "Prompt",
    "map": "Map",
    "steer": "Steer",
    "compare": "Compare",
}
"""Pages of a run, by their address below it."""


def run_named(request: Request, name: str) -> OpenRun:
    """Return the run of an address.

    Raises:
        UserError: there is none.
    """
    runs: dict[str, OpenRun] = request.app.state.runs
    if name not in runs:
        raise UserError(f"there is no run `{name}`", f"shown are: {', '.join(runs)}")
    return runs[name]


ThisRun = Annotated[OpenRun, Depends(run_named)]
"""The run that a page is of."""


def page(
    template: str, request: Request, run: OpenRun | None = None, **values: Any
) -> HTMLResponse:
    """Return a page in the common frame. Everything put into it is escaped."""
    runs: dict[str, OpenRun] = request.app.state.runs
    text = (
        _environment()
        .get_template(template)
        .render(
            href=lambda a: f"/{run.name}/{a}",
            asset=lambda a: f"/static/{a}",
            run=run,
            runs=runs,
            sections=SECTIONS,
            path=request.url.path,
            **values,
        )
    )
    return HTMLResponse(writable(text))


def error_page(request: Request, error: UserError) -> HTMLResponse:
    """Return a page that says what is wrong."""
    response = page("error.html", request, title="That did not work", error=error)
    response.status_code = 400
    return response


def runs_page(request: Request, runs: list[OpenRun]) -> HTMLResponse:
    """Return the list of runs."""
    return page("runs.html", request, title="Runs", listed=runs)


@cache
def _environment() -> Environment:
    report = environment()
    assert report.loader is not None
    return report.overlay(loader=ChoiceLoader([FileSystemLoader(_TEMPLATES), report.loader]))
