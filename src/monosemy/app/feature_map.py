"""Map: every feature as a point, near those that write alike."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from monosemy.app.columns import labels
from monosemy.app.pages import ThisRun, page
from monosemy.errors import UserError
from monosemy.index import Index

router = APIRouter()

MAP = "map"
"""Name of the index's arrays: `xy` [width, 2], NaN for features that never fire, and `cluster`
[width], -1 for those in none."""
COLOURS = ("density", "name", "cluster")
LABELS, CLUSTERS, MEMBERS, FOUND = 10, 200, 40, 500
"""Names that have a colour, clusters listed, features listed of each, features found by words."""
_COMMONEST = 4


@dataclass(frozen=True, slots=True)
class Cluster:
    """Features that lie together.

    Attributes:
        number: its own.
        size: how many features are in it.
        names: what most of them are called.
        features: some of them, most frequent first, and what each is called.
    """

    number: int
    size: int
    names: list[str]
    features: list[tuple[int, str]]


def read_map(index: Index) -> dict[str, np.ndarray]:
    """Return the map's arrays; nothing where none was made.

    Raises:
        UserError: they are of an index of another width.
    """
    arrays = index.arrays(MAP)
    if arrays and not len(arrays["xy"]) == len(arrays["cluster"]) == index.width:
        raise UserError(
            f"the map has {len(arrays['xy'])} features, the index {index.width}",
            "make it again with: monosemy index RUN --map",
        )
    return arrays


def points(index: Index, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what the page draws: arrays of the features on the map, in base64, and their names.

    `feature` int32, `xy` float32 [points, 2], `density` float32, `cluster` int32 and `label` int32:
    the place of the feature's name in `labels`, -1 for others; `called`: a line each.
    """
    drawn = np.flatnonzero(np.isfinite(arrays["xy"]).all(1))
    given = {f: names[0] for f, names in index.names.items()}
    commonest = [name for name, _ in Counter(given.values()).most_common(LABELS)]
    rank = {name: number for number, name in enumerate(commonest)}
    label = [rank.get(given.get(f, ""), -1) for f in drawn.tolist()]
    density = index.counts[drawn] / max(index.n_tokens, 1)
    columns = {
        "feature": drawn.astype("<i4"),
        "xy": arrays["xy"][drawn].astype("<f4"),
        "density": density.astype("<f4"),
        "cluster": arrays["cluster"][drawn].astype("<i4"),
        "label": np.array(label, "<i4"),
    }
    packed = {name: base64.b64encode(a.tobytes()).decode() for name, a in columns.items()}
    return {**packed, "labels": commonest, "called": labels(index, drawn.tolist())}


def clusters(index: Index, arrays: Mapping[str, np.ndarray]) -> list[Cluster]:
    """Return the clusters of the map, largest first."""
    cluster = np.where(np.isfinite(arrays["xy"]).all(1), arrays["cluster"], -1)
    numbers, sizes = np.unique(cluster[cluster >= 0], return_counts=True)
    order = np.argsort(-sizes, kind="stable")[:CLUSTERS]
    found = []
    for number, size in zip(numbers[order].tolist(), sizes[order].tolist(), strict=True):
        members = np.flatnonzero(cluster == number)
        members = members[np.argsort(-index.counts[members], kind="stable")]
        lines = labels(index, members.tolist())
        commonest = [name for name, _ in Counter(lines).most_common(_COMMONEST)]
        listed = list(zip(members[:MEMBERS].tolist(), lines, strict=False))
        found.append(Cluster(number, size, commonest, listed))
    return found


@router.get("/map")
def map_page(
    request: Request, run: ThisRun, colour: str = COLOURS[0], q: str = "", cluster: str = ""
) -> Response:
    """Show the map; points found by words, or of a cluster, stand out."""
    if colour not in COLOURS:
        raise UserError(f"`colour` is {colour[:40]!r}", f"allowed: {', '.join(COLOURS)}")
    index = run.features.index
    arrays = read_map(index)
    stamp = id(index), id(index.names), id(arrays)
    return page(
        "map.html",
        request,
        run,
        title="Map",
        colour=colour,
        colours=COLOURS,
        words=q,
        found=index.search(q, FOUND) if arrays else [],
        cluster=cluster if cluster.isdecimal() else "",
        is_made=bool(arrays),
        silent=int(np.isnan(arrays["xy"][:, 0]).sum()) if arrays else 0,
        drawn=int(np.isfinite(arrays["xy"]).all(1).sum()) if arrays else 0,
        clusters=run.kept("clusters", stamp, lambda: clusters(index, arrays)) if arrays else [],
    )


@router.get("/map/points.js")
def points_script(run: ThisRun) -> Response:
    """Return the points as a script, which pages that are files can load too."""
    index = run.features.index
    arrays = read_map(index)
    stamp = id(index), id(index.names), id(arrays)
    drawn = run.kept(
        "points.js", stamp, lambda: json.dumps(points(index, arrays) if arrays else None)
    )
    return Response(f"const MAP = {drawn};", media_type="text/javascript")
