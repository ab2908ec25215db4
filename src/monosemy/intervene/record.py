"""A circuit on disk: one file of JSON with all that its pages show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from monosemy.artefact import write_text
from monosemy.corpus.minimal_pairs import MinimalPair
from monosemy.errors import UserError
from monosemy.intervene.circuits import Carried, Carrying, Predicted

FOLDER = "circuits"
"""In a run or a sweep."""
_FORMAT = 1

_Part = TypeVar("_Part")
_hints = cache(get_type_hints)


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """A site of a circuit.

    Attributes:
        name: hook point, of a transcoder `input -> target`.
        run: folder of the run that its dictionary is of, as it was named.
        width: features.
        live: those that fired on held-out text.
    """

    name: str
    run: str
    width: int
    live: int


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node: a feature of a site, or None, what its dictionary leaves over."""

    site: str
    feature: int | None
    position: int | None
    """From the end of the prompt, -1 the last token; None: all."""
    effect: float
    name: str
    """What the feature is called; empty where it has no name."""


@dataclass(frozen=True, slots=True)
class EdgeRecord:
    """An edge between nodes, by their numbers; target None: the metric."""

    source: int
    target: int | None
    weight: float


@dataclass(frozen=True)
class CircuitRecord:
    """A circuit, what it was found in, and how much it carries.

    Attributes:
        name: of the circuit.
        model: whose.
        source: of the pairs.
        found_on: number of pairs it was found on.
        tried_on: number of others that it was tried on.
        examples: some pairs.
        metric: what effects and weights are in units of.
        value: of the metric, mean over the pairs, as the runs are that are patched.
        donor: the same with all nodes patched; None where pairs have one side.
        sites: in the model's order.
        nodes: the strongest first.
        edges: the strongest first.
        found: nodes that had an effect at all.
        predicted: what patching the nodes of a site should do, and does.
        carried: of circuits of its strongest nodes, smaller and larger than this one.
        neurons: the same of channels of activations at the same hook points; None: not measured.
    """

    name: str
    model: str
    source: str
    found_on: int
    tried_on: int
    examples: list[MinimalPair]
    metric: str
    value: float
    donor: float | None
    sites: list[SiteRecord]
    nodes: list[NodeRecord]
    edges: list[EdgeRecord]
    found: int
    predicted: list[Predicted]
    carried: Carrying
    neurons: Carrying | None

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: the disk refuses.
        """
        told = {
            "format": _FORMAT,
            **asdict(self),
            "predicted": [row._asdict() for row in self.predicted],
            "carried": _told(self.carried),
            "neurons": None if self.neurons is None else _told(self.neurons),
        }
        write_text(path, json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> CircuitRecord:
        """Read the file.

        Raises:
            UserError: it is not there, or does not hold a circuit.
        """
        try:
            told = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise UserError(
                f"there is no circuit `{path}`", "make one with: monosemy circuit RUN..."
            ) from error
        except ValueError as error:
            raise UserError(f"`{path}` is no JSON: {error}", "make the circuit anew") from error
        if not isinstance(told, dict) or told.pop("format", None) != _FORMAT:
            raise UserError(f"`{path}` is no circuit of format {_FORMAT}", "make the circuit anew")
        try:
            return _part(cls, _read(told))
        except (TypeError, KeyError, IndexError) as error:
            raise UserError(
                f"`{path}` is no whole circuit: {error}", "make the circuit anew"
            ) from error


def _told(carrying: Carrying) -> dict[str, Any]:
    circuits = [one._asdict() for one in carrying.circuits]
    return {**carrying._asdict(), "circuits": circuits}


def _read(told: Mapping[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "examples": [_part(MinimalPair, one) for one in told["examples"]],
        "sites": [_part(SiteRecord, one) for one in told["sites"]],
        "nodes": [_part(NodeRecord, one) for one in told["nodes"]],
        "edges": [_part(EdgeRecord, one) for one in told["edges"]],
        "predicted": [_part(Predicted, one) for one in told["predicted"]],
        "carried": _carrying(told["carried"]),
        "neurons": None if told["neurons"] is None else _carrying(told["neurons"]),
    }
    names = {site.name for site in parts["sites"]}
    for node in parts["nodes"]:
        if node.site not in names:
            raise KeyError(f"a node at `{node.site}`, which is no site")
    for edge in parts["edges"]:
        _check_ends(edge, len(parts["nodes"]))
    return {**told, **parts}


def _check_ends(edge: EdgeRecord, nodes: int) -> None:
    for end in (edge.source, edge.target):
        if end is not None and not 0 <= end < nodes:
            raise IndexError(f"an edge at node {end} of {nodes}")


def _carrying(told: Mapping[str, Any]) -> Carrying:
    circuits = [_part(Carried, one) for one in told["circuits"]]
    return _part(Carrying, {**told, "circuits": circuits})


def _part(kind: Callable[..., _Part], told: Mapping[str, Any]) -> _Part:
    """Make a part of a record of what a file says, once that is text or a number where it must."""
    for name, hint in _hints(kind).items():
        if get_origin(hint) is not list and not _is(told[name], get_args(hint) or (hint,)):
            raise TypeError(f"`{name}` is {told[name]!r}")
    return kind(**told)


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    """Say whether a value is of some kind; a number has to be finite, and truth is none."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float) and float in kinds:
        return math.isfinite(value)
    return isinstance(value, kinds)
