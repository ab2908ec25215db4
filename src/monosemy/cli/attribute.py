"""Say which features make the model answer one prompt of a pair as it does, and not the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.artefact import write_text
from monosemy.cli.console import console
from monosemy.cli.pairs import chosen_pairs, open_dictionaries, site_names
from monosemy.coders import Dictionary
from monosemy.intervene import ERROR, Node, NodeEffects, Patching, agreement
from monosemy.intervene.patching import Method, Metric, Receiver
from monosemy.intervene.prompts import Unequal
from monosemy.lm import LM
from monosemy.report.numbers import percent


@dataclass(frozen=True)
class Command:
    """Options of `monosemy attribute`."""

    run_folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Runs or dictionaries of one model, one a hook point; a sweep's folder stands for its runs."""
    pairs: str
    """Minimal pairs: bracket, self, except, quote, indent, import, or a file with the columns
    clean_prefix, patch_prefix, clean_answer, patch_answer."""
    metric: Metric = "logit difference"
    """Of the next token; kl is from the clean run's distribution."""
    method: Method = "integrated gradients"
    """How effects are estimated; first-order is faster and further off."""
    steps: int = 10
    """Of integrated gradients."""
    receiver: Receiver = "clean"
    """Which side's run is patched with what the other side holds."""
    unequal: Unequal = "refuse"
    """Prompts of a pair with different numbers of tokens: refuse, or align from the end."""
    mistaken: bool = True
    """Keep pairs of which the model prefers the wrong answer."""
    most: int = 100
    """Pairs at most."""
    top: int = 20
    """Nodes that are listed."""
    exact: int = 50
    """Strongest nodes that are patched exactly too; 0 for none."""
    positions: bool = False
    """Tell positions, counted from the end of the prompt, apart."""
    json: Path | None = None
    """Write the nodes here."""
    model: str | None = None
    """Another model than the one they were trained on."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the strongest nodes, and how well estimates agree with patching."""
        dictionaries, lm = open_dictionaries(self.run_folders, self.model, self.device)
        patching = self._patching(lm, list(dictionaries.values()))
        effects = patching.attribute(self.method, self.steps).nodes(positions=self.positions)
        strongest = effects.strongest(max(self.top, self.exact))
        measured = patching.exact(strongest.nodes[: self.exact]) if self.exact else None
        labels = site_names(dictionaries)
        rows = [_row(node, strongest, measured, labels) for node in strongest.nodes]
        console.print(_table(rows[: self.top], self.positions))
        context = _context(patching, len(effects))
        console.print(context)
        if measured is not None and len(measured) >= 3:
            found = agreement(measured, strongest)
            console.print(
                f"on the {found.nodes} strongest, {self.method} correlates with exact patching "
                f"by {found.correlation:.2f} (ranks {found.ranks:.2f}); "
                f"{percent(found.same_sign)} have its sign"
            )
        if self.json is not None:
            told = {"pairs": self.pairs, "metric": self.metric, "method": self.method}
            write_text(self.json, json.dumps({**told, "nodes": rows}, indent=2) + "\n")
            console.print(f"written: {self.json}", style="dim")

    def _patching(self, lm: LM, dictionaries: list[Dictionary]) -> Patching:
        pairs = chosen_pairs(lm, self.pairs, mistaken=self.mistaken, unequal=self.unequal)
        return Patching(
            lm,
            dictionaries,
            pairs[: self.most],
            metric=self.metric,
            receiver=self.receiver,
            unequal=self.unequal,
        )


def _row(
    node: Node,
    effects: NodeEffects,
    exact: NodeEffects | None,
    labels: dict[str, dict[int, str]],
) -> dict:
    return {
        "site": node.site,
        "feature": "error" if node.feature == ERROR else node.feature,
        "position": node.position,
        "effect": effects[node],
        "exact": exact[node] if exact is not None and node in exact else None,
        "name": labels[node.site].get(node.feature, ""),
    }


def _table(rows: list[dict], positions: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("site", no_wrap=True)
    for name in ("feature", *(("position",) if positions else ()), "effect", "exact"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("name")
    for row in rows:
        exact = "" if row["exact"] is None else f"{row['exact']:+.3f}"
        where = (str(row["position"]),) if positions else ()
        cells = (str(row["feature"]), *where, f"{row['effect']:+.3f}", exact, row["name"])
        table.add_row(row["site"], *cells)
    return table


def _context(patching: Patching, nodes: int) -> str:
    now = float(patching.values.mean())
    text = f"{len(patching)} pairs, {nodes:,} nodes; {patching.metric} {now:+.3f}"
    if patching.prompts.corrupted is None:
        return f"{text}; nodes are set to zero"
    other = float(patching.donor_values.mean())
    side = "clean" if patching.receiver == "corrupted" else "corrupted"
    return f"{text}, of the {side} prompts {other:+.3f}"
