"""List well-known public releases of dictionaries, which `monosemy import` and `load` know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from rich.table import Table

from monosemy.cli.console import console
from monosemy.errors import UserError
from monosemy.formats.releases import Release, release_named, releases


@dataclass(frozen=True)
class Command:
    """Options of `monosemy releases`."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """List the dictionaries of this release."""
    model: str | None = None
    """Only releases for models in whose Hub id this is."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print a table of releases, or of one's dictionaries."""
        if self.name is not None:
            _show_one(release_named(self.name), self.json)
            return
        wanted = (self.model or "").lower()
        found = [r for r in releases().values() if wanted in r.model.lower()]
        if not found:
            models = sorted({release.model for release in releases().values()})
            raise UserError(
                f"no release is for a model `{self.model}`", f"there are: {', '.join(models)}"
            )
        if self.json:
            print(json.dumps([_facts(release) for release in found], indent=2))
            return
        table = Table("release", "model", "format", "width", "dictionaries", box=None)
        for release in found:
            widths, count = _widths(release), str(len(release.ids()))
            table.add_row(release.name, release.model, release.format, widths, count)
        console.print(table)
        console.print("one's dictionaries: monosemy releases NAME", style="dim", markup=False)


def _show_one(release: Release, as_json: bool) -> None:
    entries = release.entries()
    if as_json:
        rows = [{**asdict(entry), "source": f"{release.name}/{entry.id}"} for entry in entries]
        print(json.dumps({**_facts(release), "dictionaries": rows}, indent=2))
        return
    facts = [release.model, f"{release.format}: https://huggingface.co/{release.repo}"]
    facts += [f"width {_widths(release)}"] if release.widths else []
    facts += [f"k {release.k}"] if release.k is not None else []
    facts += ["of a model whose writing weights were centred"] if release.centred else []
    facts += [f"each token normalised by `{release.normalise}`"] if release.normalise else []
    console.print(f"{release.name}: {', '.join(facts)}", markup=False, soft_wrap=True)
    table = Table("id", "hook point", box=None)
    for entry in entries:
        table.add_row(entry.id, entry.explains)
    console.print(table)
    command = f"load one: monosemy import {release.name}/{entries[0].id}"
    console.print(command, style="dim", markup=False, soft_wrap=True)


def _facts(release: Release) -> dict[str, Any]:
    return {
        "name": release.name,
        "repo": release.repo,
        "format": release.format,
        "model": release.model,
        "widths": list(release.widths),
        "k": release.k,
        "centred": release.centred,
        "normalise": release.normalise,
        "count": len(release.ids()),
    }


def _widths(release: Release) -> str:
    if len(release.widths) > 3:
        return f"{release.widths[0]:,} to {release.widths[-1]:,}"
    return ", ".join(f"{width:,}" for width in release.widths)
