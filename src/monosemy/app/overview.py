"""The first page of a run: what it is, and whether it is any good."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from monosemy.app.pages import ThisRun, page

router = APIRouter()


@router.get("/")
def overview(request: Request, run: ThisRun) -> Response:
    """Show the run."""
    return page("overview.html", request, run, title=run.name, dictionary=run.dictionary)
