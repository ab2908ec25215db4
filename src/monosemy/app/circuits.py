"""Circuits: those that lie in the folders shown, and each as a graph whose nodes have cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from monosemy.app.asked import whole
from monosemy.app.pages import page
from monosemy.app.runs import OpenRun
from monosemy.artefact import MANIFEST
from monosemy.coders import Provenance
from monosemy.errors import UserError
from monosemy.intervene.record import FOLDER, CircuitRecord, SiteRecord
from monosemy.report.circuit import EDGES, NODES, circuit_values

_CONTEXTS = 5
"""Shown on a card."""

router = APIRouter(prefix=f"/{FOLDER}")


def circuit_paths(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the files of circuits by the names they have in addresses, as they lie there now."""
    paths = [path for folder in folders for path in sorted((folder / FOLDER).glob("*.json"))]
    named: dict[str, Path] = {}
    for path in {path.resolve(): path for path in paths}.values():
        if path.name.endswith(".graph.json"):  # the same for viewers elsewhere
            continue
        name, number = path.stem, 2
        while name in named:
            name, number = f"{path.stem}-{number}", number + 1
        named[name] = path
    return named


def circuits_of(request: Request, run: OpenRun) -> list[str]:
    """Return the names of the circuits that have a site whose dictionary is a run's."""
    found = []
    for name, record in _circuits(request).items():
        if isinstance(record, CircuitRecord) and run in _runs_of(request, record).values():
            found.append(name)
    return found


def has_circuits(request: Request) -> bool:
    """Say whether there is any."""
    return bool(_paths(request))


def _paths(request: Request) -> dict[str, Path]:
    runs: dict[str, OpenRun] = request.app.state.runs
    return circuit_paths([*request.app.state.folders, *(run.folder for run in runs.values())])


def _circuits(request: Request) -> dict[str, CircuitRecord | UserError]:
    """Return the circuits there are, or why they cannot be read."""
    found: dict[str, CircuitRecord | UserError] = {}
    for name, path in _paths(request).items():
        try:
            found[name] = CircuitRecord.load(path)
        except UserError as error:
            found[name] = error
    return found


def _runs_of(request: Request, record: CircuitRecord) -> dict[str, OpenRun]:
    """Return site -> the open run that its dictionary is of; only of sites whose run is open.

    A run is known by its folder, else by its folder's name, and has to be of the site's hook point
    and width.
    """
    runs: dict[str, OpenRun] = request.app.state.runs
    matched = {}
    for site in record.sites:
        folder = Path(site.run).resolve()
        alike = [run for run in runs.values() if run.folder.name == folder.name]
        alike.sort(key=lambda run: run.folder != folder)
        fitting = next((run for run in alike if _fits(run, site)), None)
        if fitting is not None:
            matched[site.name] = fitting
    return matched


def _fits(run: OpenRun, site: SiteRecord) -> bool:
    """Say so by the dictionary's manifest: its weights need not be read for that."""
    manifest = run.json(f"dictionary/{MANIFEST}")
    try:
        provenance = Provenance.from_dict(manifest["provenance"])
        width = manifest["width"]
    except (KeyError, TypeError):
        return False
    here, there = provenance.hookpoint, provenance.explains
    return (here if here == there else f"{here} -> {there}", width) == (site.name, site.width)


def _circuit_named(request: Request, circuit: str) -> CircuitRecord:
    paths = _paths(request)
    if circuit not in paths:
        raise UserError(
            f"there is no circuit `{circuit}`", f"shown are: {', '.join(paths) or 'none'}"
        )
    return CircuitRecord.load(paths[circuit])


ThisCircuit = Annotated[CircuitRecord, Depends(_circuit_named)]
"""The circuit that a page is of."""


@router.get("")
def listed(request: Request) -> Response:
    """Show the list of circuits; of those that cannot be read, why."""
    circuits = [
        (name, None, found) if isinstance(found, UserError) else (name, found, None)
        for name, found in _circuits(request).items()
    ]
    return page("circuits.html", request, title="Circuits", circuits=circuits)


@router.get("/{circuit}")
def drawn(request: Request, circuit: str, record: ThisCircuit) -> Response:
    """Show a circuit."""
    values = _values(record, request.query_params)
    runs = _runs_of(request, record)
    sites = [None, *(node.site for node in record.nodes)]
    return page(
        "circuit_page.html", request, name=circuit, record=record, runs=runs, sites=sites, **values
    )


@router.get("/{circuit}/graph")
def graph(request: Request, record: ThisCircuit) -> Response:
    """Return the graph alone, as many nodes and edges as are asked for."""
    return page("circuit_graph.html", request, **_values(record, request.query_params))


@router.get("/{circuit}/{node}")
def card(request: Request, record: ThisCircuit, node: int) -> Response:
    """Return what is known of the feature of a node, as a part of its card.

    Raises:
        UserError: there is no such feature, its run is not open here, or it has no index.
    """
    feature = record.nodes[node].feature if 0 <= node < len(record.nodes) else None
    if feature is None:
        raise UserError(f"node {node} of {len(record.nodes)} is no feature", "choose another")
    site = record.nodes[node].site
    run = _runs_of(request, record).get(site)
    if run is None:
        raise UserError(f"the run of `{site}` is not open here", "start the app with its folder")
    view = run.features.view(feature, exemplars=_CONTEXTS)
    return page("circuit_card.html", request, run, view=view)


def _values(record: CircuitRecord, asked: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows, as many nodes and edges as are asked for."""
    most = {"nodes": max(len(record.nodes), 1), "edges": len(record.edges)}
    nodes = whole(asked, "nodes", min(NODES, most["nodes"]), 1, most["nodes"])
    edges = whole(asked, "edges", min(EDGES, most["edges"]), 0, most["edges"])
    values = circuit_values(record, nodes=nodes, edges=edges)
    return {**values, "asked": {"nodes": nodes, "edges": edges}, "most": most}
