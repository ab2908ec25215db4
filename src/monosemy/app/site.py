"""The app's pages as files, which open from disk without a server."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monosemy.app.columns import features_js
from monosemy.app.feature import feature_values
from monosemy.app.feature_map import COLOURS, map_values, points_js
from monosemy.app.overview import overview_values
from monosemy.app.pages import STATIC, Filed, file_of, render, report_css
from monosemy.app.runs import OpenRun
from monosemy.artefact import draft_of, write_text
from monosemy.errors import UserError
from monosemy.interpret import choose_features
from monosemy.progress import Task

MOST = 4096
"""Features that have a page, unless asked otherwise: each takes some 50 kB."""

_SECTIONS = {"": "Overview", "features": "Features", "map": "Map"}
_MARK = "written-by-monosemy"


@dataclass(frozen=True, slots=True)
class Site:
    """What was written."""

    path: Path
    """Of its first page."""
    features: int
    """How many have a page."""
    live: int
    """How many fire."""
    size: int
    """Bytes of all files."""


def write_site(run: str | Path, folder: str | Path | None = None, *, most: int = MOST) -> Site:
    """Write a run's overview, list, map and pages of features as files that open from disk.

    Where more features are live than have room, the most telling ones have a page, and then the
    most frequent.

    Args:
        run: its folder.
        folder: where to; default `site/` in the run. A site that is there is replaced.
        most: features that have a page.

    Raises:
        UserError: there is no run or no index, the folder holds something else, or the disk
            refuses (nothing is changed then).
    """
    opened = OpenRun(Path(run).resolve().name, Path(run))
    folder = Path(folder) if folder is not None else opened.folder / "site"
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise UserError(f"`{folder}` holds something else than a site", "choose another folder")
    features = _features(opened, most)
    with draft_of(folder) as draft:
        _write(opened, draft, features)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    live = len(opened.features.live)
    return Site(folder / file_of(""), len(features), live, size)


def _features(run: OpenRun, most: int) -> list[int]:
    """Return the features that have a page, by number."""
    if most < 1:
        raise UserError(f"pages of {most} features", "allowed: 1 and above")
    live = run.features.live
    chosen = live if len(live) <= most else [*choose_features(run.features, min(20, most)), *live]
    return sorted(list(dict.fromkeys(chosen))[:most])


def _write(run: OpenRun, folder: Path, features: Sequence[int]) -> None:
    drawn = map_values(run)
    sections = {a: name for a, name in _SECTIONS.items() if a != "map" or drawn["is_made"]}

    def write(address: str, template: str, **values: object) -> None:
        text = render(template, Filed(address), run, address, sections, **values)
        write_text(folder / file_of(address), text)

    shutil.copytree(STATIC, folder / "static")
    write_text(folder / "static" / "report.css", report_css())
    write_text(folder / "data" / "features.js", features_js(run, features))
    write_text(folder / _MARK, "")
    write("", "overview.html", circuits=[], **overview_values(run))
    write("features", "features.html", title="Features", listed=features[:200])
    if "map" in sections:
        drawn |= {"colour": COLOURS[0], "words": "", "found": [], "cluster": ""}
        write_text(folder / "map" / "points.js", points_js(run, features))
        write("map", "map.html", **drawn, has_page=set(features).__contains__)
    with Task("pages", len(features), "features") as task:
        for feature in features:
            values = feature_values(run, feature, among=features)
            write(f"features/{feature}", "feature.html", title=f"Feature {feature}", **values)
            task.advance(1)
