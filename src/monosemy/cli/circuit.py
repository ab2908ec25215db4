"""Find the circuit of an answer: features at several hook points, and what leads to what."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.artefact import write_text
from monosemy.cli.console import console
from monosemy.cli.pairs import chosen_pairs, open_dictionaries, site_names
from monosemy.coders import Dictionary
from monosemy.corpus.minimal_pairs import MinimalPair
from monosemy.errors import UserError
from monosemy.formats.attribution_graph import attribution_graph
from monosemy.intervene import ERROR, Circuit, Node, Patching, carried, find_circuit, predicted
from monosemy.intervene.circuits import Carrying
from monosemy.intervene.nodes import Features
from monosemy.intervene.patching import Metric
from monosemy.intervene.prompts import Unequal
from monosemy.intervene.record import FOLDER, CircuitRecord, EdgeRecord, NodeRecord, SiteRecord
from monosemy.lm import LM
from monosemy.report.circuit import write_circuit
from monosemy.report.numbers import percent

_ENOUGH = 0.8
"""Of the metric."""
_SIZES = (5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Command:
    """Options of `monosemy circuit`."""

    run_folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Runs or dictionaries of one model, one a hook point; a sweep's folder stands for its runs."""
    pairs: str
    """Minimal pairs: bracket, self, except, quote, indent, import, or a file with the columns
    clean_prefix, patch_prefix, clean_answer, patch_answer."""
    nodes: int = 100
    """Nodes that are kept, the strongest."""
    threshold: float = 0.0
    """Least effect of a node, in units of the metric."""
    edges: int = 300
    """Edges that are kept, the strongest."""
    edge_threshold: float = 0.0
    """Least weight of an edge, in units of the metric."""
    metric: Metric = "logit difference"
    """Of the next token; kl is from the clean run's distribution."""
    steps: int = 10
    """Of integrated gradients."""
    unequal: Unequal = "refuse"
    """Prompts of a pair with different numbers of tokens: refuse, or align from the end."""
    mistaken: bool = True
    """Keep pairs of which the model prefers the wrong answer."""
    most: int = 100
    """Pairs at most: found on one half, tried on the other."""
    neurons: bool = True
    """Measure as many channels of the activations at the same hook points too."""
    name: str | None = None
    """Of the circuit; default that of the pairs."""
    out: Path | None = None
    """Folder for its files; default `circuits/` in the runs' sweep, or in the run."""
    model: str | None = None
    """Another model than the one they were trained on."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Find the circuit, try it, print it, and write its files."""
        name = self.name or Path(self.pairs).stem
        if not name.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"`{name}` is no name", "letters, digits, - and _")
        dictionaries, lm = open_dictionaries(self.run_folders, self.model, self.device)
        folder = self.out or _common(list(dictionaries)) / FOLDER
        pairs = chosen_pairs(lm, self.pairs, mistaken=self.mistaken, unequal=self.unequal)
        pairs = pairs[: self.most]
        if len(pairs) < 2:
            raise UserError(f"there is {len(pairs)} pair", "one half finds, the other half tries")
        found_on, tried_on = pairs[::2], pairs[1::2]
        sites = list(dictionaries.values())
        patching = self._patching(lm, sites, found_on)
        circuit = self._find(patching, positions=False)
        names = site_names(dictionaries)
        record = CircuitRecord(
            name=name,
            model=lm.name,
            source=self.pairs,
            found_on=len(found_on),
            tried_on=len(tried_on),
            examples=found_on[:3],
            metric=self.metric,
            value=float(patching.values.mean()),
            donor=_donor(patching),
            sites=[_site(d, run) for run, d in dictionaries.items()],
            nodes=_nodes(circuit, names),
            edges=_edges(circuit),
            found=len(circuit.ranked),
            predicted=predicted(patching, circuit),
            carried=self._carried(lm, sites, circuit.ranked.nodes, len(circuit.nodes), tried_on),
            neurons=self._neurons(lm, sites, len(circuit.nodes), found_on, tried_on)
            if self.neurons
            else None,
        )
        folder.mkdir(parents=True, exist_ok=True)
        record.save(folder / f"{name}.json")
        write_circuit(record, folder / f"{name}.html")
        self._write_graph(lm, sites, found_on[0], names, folder / f"{name}.graph.json")
        _tell(record)
        written = ", ".join(f"{name}.{kind}" for kind in ("json", "html", "graph.json"))
        console.print(f"written to {folder}: {written}", style="dim")

    def _patching(
        self, lm: LM, sites: Sequence[Dictionary | str], pairs: list[MinimalPair]
    ) -> Patching:
        return Patching(lm, sites, pairs, metric=self.metric, unequal=self.unequal)

    def _find(self, patching: Patching, *, positions: bool) -> Circuit:
        return find_circuit(
            patching,
            nodes=self.nodes,
            threshold=self.threshold,
            edges_kept=self.edges,
            edge_threshold=self.edge_threshold,
            positions=positions,
            steps=self.steps,
        )

    def _carried(
        self,
        lm: LM,
        sites: Sequence[Dictionary | str],
        ranked: list[Node],
        kept: int,
        pairs: list[MinimalPair],
    ) -> Carrying:
        """Return what the strongest nodes carry, from few to many, as many as are kept too."""
        mean = Patching(lm, sites, pairs, metric=self.metric, donor="mean", unequal=self.unequal)
        sizes = sorted({size for size in (*_SIZES, kept) if size <= len(ranked)})
        return carried(mean, [ranked[:size] for size in sizes])

    def _neurons(
        self,
        lm: LM,
        sites: Sequence[Dictionary],
        kept: int,
        found_on: list[MinimalPair],
        tried_on: list[MinimalPair],
    ) -> Carrying:
        """Return the same of channels, at the hook points that the dictionaries explain."""
        places = list(dict.fromkeys(dictionary.explains for dictionary in sites))
        effects = self._patching(lm, places, found_on).attribute(steps=self.steps).nodes()
        ranked = effects.strongest(len(effects)).nodes
        return self._carried(lm, places, ranked, kept, tried_on)

    def _write_graph(
        self,
        lm: LM,
        sites: Sequence[Dictionary],
        pair: MinimalPair,
        names: dict[str, dict[int, str]],
        path: Path,
    ) -> None:
        """Write the circuit of one pair, token by token, for viewers elsewhere."""
        patching = self._patching(lm, sites, [pair])
        placed = self._find(patching, positions=True)
        graph = attribution_graph(placed, patching, name=path.name.split(".")[0], names=names)
        write_text(path, json.dumps(graph, indent=1) + "\n")


def _common(runs: list[Path]) -> Path:
    """Return the folder of one run, or the one that several lie in."""
    paths = [run.resolve() for run in runs]
    return Path(os.path.commonpath(paths))


def _donor(patching: Patching) -> float | None:
    one_sided = patching.prompts.corrupted is None
    return None if one_sided else float(patching.donor_values.mean())


def _site(dictionary: Dictionary, run: Path) -> SiteRecord:
    live = int((dictionary.strength > 0).sum())
    return SiteRecord(Features(dictionary).name, str(run), dictionary.width, live)


def _nodes(circuit: Circuit, names: dict[str, dict[int, str]]) -> list[NodeRecord]:
    return [
        NodeRecord(
            node.site,
            None if node.feature == ERROR else node.feature,
            node.position,
            circuit.nodes[node],
            names[node.site].get(node.feature, ""),
        )
        for node in circuit.nodes.nodes
    ]


def _edges(circuit: Circuit) -> list[EdgeRecord]:
    numbers = {node: number for number, node in enumerate(circuit.nodes.nodes)}
    return [
        EdgeRecord(
            numbers[edge.source],
            None if edge.target is None else numbers[edge.target],
            edge.weight,
        )
        for edge in circuit.edges
    ]


def _tell(record: CircuitRecord) -> None:
    console.print(
        f"{record.name}: {len(record.nodes)} of {record.found:,} nodes with an effect, "
        f"{len(record.edges)} edges; hook points: {', '.join(site.name for site in record.sites)}"
    )
    console.print(_nodes_table(record))
    console.print(_carried_table(record))
    console.print(_verdict(record))


def _verdict(record: CircuitRecord) -> str:
    """Say how few nodes keep four fifths of the metric."""
    live = sum(site.live for site in record.sites)
    enough = (one for one in record.carried.circuits if one.faithfulness >= _ENOUGH)
    least = next(enough, None)
    if least is None:
        most = record.carried.circuits[-1]
        return (
            f"no circuit here keeps {percent(_ENOUGH)} of the {record.metric} on "
            f"{record.tried_on} other pairs; {most.nodes:,} nodes keep "
            f"{percent(most.faithfulness)}"
        )
    return (
        f"{least.features:,} features ({percent(least.features / max(live, 1))} of the live ones) "
        f"and {least.errors} error terms keep {percent(least.faithfulness)} of the "
        f"{record.metric} on {record.tried_on} other pairs; without them "
        f"{percent(least.completeness)} is left"
    )


def _nodes_table(record: CircuitRecord, most: int = 12) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("site", no_wrap=True)
    for name in ("feature", "effect"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("strongest source", no_wrap=True)
    table.add_column("name")
    for number, node in enumerate(record.nodes[:most]):
        into = [edge for edge in record.edges if edge.target == number]
        source = max(into, key=lambda edge: abs(edge.weight), default=None)
        told = ""
        if source is not None:
            told = f"{_called(record.nodes[source.source])} {source.weight:+.2f}"
        feature = "error" if node.feature is None else str(node.feature)
        table.add_row(node.site, feature, f"{node.effect:+.3f}", told, node.name)
    return table


def _called(node: NodeRecord) -> str:
    return f"{node.site} {'error' if node.feature is None else node.feature}"


def _carried_table(record: CircuitRecord) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("nodes", "errors", "faithfulness", "completeness"):
        table.add_column(name, justify="right", no_wrap=True)
    beside = {}
    if record.neurons is not None:
        beside = {one.nodes: one for one in record.neurons.circuits}
        for name in ("of neurons", "completeness"):
            table.add_column(name, justify="right", no_wrap=True)
    for one in record.carried.circuits:
        cells = [
            str(one.nodes),
            str(one.errors),
            f"{one.faithfulness:.2f}",
            f"{one.completeness:.2f}",
        ]
        if one.nodes in beside:
            neuron = beside[one.nodes]
            cells += [f"{neuron.faithfulness:.2f}", f"{neuron.completeness:.2f}"]
        table.add_row(*cells)
    return table
