"""Features: all of them in a list, and one in full."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from monosemy.app.pages import ThisRun, page

router = APIRouter()


@router.get("/features")
def listed(request: Request, run: ThisRun) -> Response:
    """Show the list."""
    features = run.features
    return page("features.html", request, run, title="Features", features=features)


@router.get("/features/{feature}")
def feature(request: Request, run: ThisRun, feature: int) -> Response:
    """Show one feature."""
    view = run.features.view(feature, exemplars=12)
    return page("feature.html", request, run, title=f"Feature {feature}", view=view)
