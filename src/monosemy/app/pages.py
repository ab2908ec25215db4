"""What pages have in common: the frame around them, and how they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from monosemy.app.contexts import contexts_html
from monosemy.app.runs import OpenRun
from monosemy.errors import UserError
from monosemy.report.card import environment, stylesheet, writable

STATIC = Path(__file__).parent / "static"
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


@dataclass(frozen=True, slots=True)
class Served:
    """Links of pages that the app serves."""

    run: OpenRun | None
    is_served = True

    def href(self, address: str) -> str:
        """Return the link to a page of the run, by its address below it, such as `features/28`."""
        return f"/{quote(self.run.name)}/{address}" if self.run else "/"

    def asset(self, name: str) -> str:
        """Return the link to a file of `static/`."""
        return f"/static/{name}"


@dataclass(frozen=True, slots=True)
class Filed:
    """Links of pages that are files, which open from disk wherever they lie.

    Attributes:
        here: address of the page that links.
    """

    here: str
    is_served = False

    def href(self, address: str) -> str:
        """Return the link to a page of the run, by its address below it, such as `features/28`."""
        path, rest = re.fullmatch(r"([^?#]*)(.*)", address, re.DOTALL).groups()  # type: ignore[union-attr]
        return self._up() + file_of(path) + rest

    def asset(self, name: str) -> str:
        """Return the link to a file of `static/`."""
        return f"{self._up()}static/{name}"

    def _up(self) -> str:
        return "../" * self.here.count("/")


def file_of(address: str) -> str:
    """Return the file that an address is of a site: `index.html`, `features/28.html`, `data.js`."""
    name = address or "index"
    return name if "." in name.rpartition("/")[2] else f"{name}.html"


def report_css() -> str:
    """Return the style sheet that pages share with reports: `report.css` among the assets."""
    return "\n".join(map(stylesheet, ("page.css", "card.css", "sweep.css", "circuit.css")))


async def run_named(request: Request, name: str) -> OpenRun:
    """Return the run of an address: a coroutine, for which no thread is asked.

    Raises:
        UserError: there is none.
    """
    return find_run(request, name)


def find_run(request: Request, name: str) -> OpenRun:
    """Return the run of a name.

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
    """Return a page in the common frame. Everything put into it is escaped.

    Templates link by `href(address)`, to a page of the run by its address below it, and
    `asset(name)`, to a file of `static/`; `is_served` says whether there is a server to ask.
    """
    here = request.url.path.removeprefix(f"/{run.name}/") if run else ""
    return HTMLResponse(render(template, Served(run), run, here, SECTIONS, **values))


def render(
    template: str,
    links: Served | Filed,
    run: OpenRun | None,
    here: str,
    sections: dict[str, str],
    **values: Any,
) -> str:
    """Return the text of a page.

    Args:
        template: its name.
        links: how pages lead to each other.
        run: which the page is of.
        here: its address below the run.
        sections: the pages that all lead to.
        values: for the template.
    """
    text = (
        _environment()
        .get_template(template)
        .render(
            run=run,
            here=here.partition("/")[0],
            sections=sections,
            href=links.href,
            asset=links.asset,
            is_served=links.is_served,
            **values,
        )
    )
    return writable(text)


def error_page(request: Request, error: UserError) -> HTMLResponse:
    """Return a page that says what is wrong."""
    response = page("error.html", request, title="That did not work", error=error)
    response.status_code = 400
    return response


def runs_page(request: Request, runs: list[OpenRun], has_circuits: bool) -> HTMLResponse:
    """Return the list of runs."""
    return page("runs.html", request, title="Runs", listed=runs, has_circuits=has_circuits)


@cache
def _environment() -> Environment:
    report = environment()
    assert report.loader is not None
    env = report.overlay(loader=ChoiceLoader([FileSystemLoader(_TEMPLATES), report.loader]))
    env.globals["contexts_html"] = contexts_html
    return env
