"""Map: every feature as a point, near those that write alike."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from monosemy.app.columns import labels
from monosemy.app.pages import ThisRun, page
from monosemy.app.runs import OpenRun
from monosemy.errors import UserError
from monosemy.index import Index
from monosemy.interpret import KINDS_OF_TEXT

router = APIRouter()

MAP = "map"
"""Name of the index's arrays: `xy` [width, 2], NaN for features that never fire, and `cluster`
[width], -1 for those in none."""
COLOURS = ("density", "name", "cluster")
LABELS, CLUSTERS, MEMBERS, FOUND, TEXTS = 10, 200, 40, 500, 3
"""Names that have a colour, clusters listed, features listed of each, features found by words,
texts shown of a kind."""
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


@dataclass(frozen=True, slots=True)
class Kind:
    """Rows of text that activate the same features.

    Attributes:
        size: how many rows.
        features: those that set it apart: number, what it is called, and how many times as strong
            it is here as in all text.
        texts: the most typical: name of the document, and the text.
    """

    size: int
    features: list[tuple[int, str, float]]
    texts: list[tuple[str, str]]


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


def kinds_of_text(run: OpenRun) -> list[Kind]:
    """Return the kinds of text that were found; none where nobody looked for them."""
    index = run.features.index
    told = run.json(f"index/{KINDS_OF_TEXT}") or []
    stamp = id(index), id(index.names), id(told)
    return run.kept("kinds", stamp, lambda: [_kind(index, **kind) for kind in told])


def _kind(index: Index, size: int, features: list[list[Any]], rows: list[int]) -> Kind:
    lines = labels(index, [feature for feature, _ in features])
    known = [(f, line, lift) for (f, lift), line in zip(features, lines, strict=True)]
    return Kind(size, known, [_row(index, row) for row in rows[:TEXTS]])


def _row(index: Index, row: int) -> tuple[str, str]:
    """Return the first document that a row holds text of, and that text."""
    text = index.text
    places = np.arange(row * text.context, (row + 1) * text.context)
    document = text.document[places]
    number = int(document[document >= 0][0])
    return text.names[number], "".join(text.words(places[document == number]))


def map_values(run: OpenRun) -> dict[str, Any]:
    """Return what the page shows of the map itself.

    Raises:
        UserError: there is no index, or the map is another one's.
    """
    index = run.features.index
    arrays = read_map(index)
    stamp = id(index), id(index.names), id(arrays)
    drawn = np.isfinite(arrays["xy"]).all(1) if arrays else np.zeros(0, bool)
    return {
        "title": "Map",
        "colours": COLOURS,
        "is_made": bool(arrays),
        "silent": int((~drawn).sum()),
        "drawn": int(drawn.sum()),
        "kinds": kinds_of_text(run),
        "clusters": run.kept("clusters", stamp, lambda: clusters(index, arrays)) if arrays else [],
    }


def points_js(run: OpenRun, paged: Sequence[int] | None = None) -> str:
    """Return a script that sets `MAP`: the points as JSON that pages from disk can load too.

    Args:
        run: whose features.
        paged: those that have a page, which `MAP.paged` lists then; None: all.
    """
    index = run.features.index
    arrays = read_map(index)
    if paged is not None:
        return _script({**points(index, arrays), "paged": list(paged)})
    stamp = id(index), id(index.names), id(arrays)
    return run.kept("points.js", stamp, lambda: _script(points(index, arrays) if arrays else None))


def _script(drawn: dict[str, Any] | None) -> str:
    return f"const MAP = {json.dumps(drawn)};"


@router.get("/map")
def map_page(
    request: Request, run: ThisRun, colour: str = COLOURS[0], q: str = "", cluster: str = ""
) -> Response:
    """Show the map; points found by words, or of a cluster, stand out."""
    if colour not in COLOURS:
        raise UserError(f"`colour` is {colour[:40]!r}", f"allowed: {', '.join(COLOURS)}")
    values = map_values(run)
    return page(
        "map.html",
        request,
        run,
        **values,
        colour=colour,
        words=q,
        found=run.features.index.search(q, FOUND) if values["is_made"] else [],
        cluster=cluster if cluster.isdecimal() else "",
        has_page=lambda feature: True,
    )


@router.get("/map/points.js")
def points_script(run: ThisRun) -> Response:
    """Return the points as a script."""
    return Response(points_js(run), media_type="text/javascript")
