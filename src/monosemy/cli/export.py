"""Write a dictionary, or what a run shows of its features, for another tool."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.cli.console import console
from monosemy.errors import UserError, nearest
from monosemy.formats import FORMATS, export, load
from monosemy.formats.neuronpedia import URL, requests, upload
from monosemy.formats.sites import SiteOptions
from monosemy.formats.writers import WRITERS, export_run

API = "neuronpedia-api"
_NAMES = [*(name for name, f in FORMATS.items() if f.write is not None), *WRITERS, API]


@dataclass(frozen=True)
class Command:
    """Options of `monosemy export`."""

    dictionary: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DICT")]
    """A run or a dictionary, of any format that can be read; a run for all but weights."""
    to: Annotated[str, tyro.conf.arg(help=f"One of {', '.join(_NAMES)}.")]
    out: Path | None = None
    """Folder to write to, new or empty; not for `neuronpedia-api`."""
    site: Annotated[SiteOptions, tyro.conf.arg(name="")] = field(default_factory=SiteOptions)
    upload: bool = False
    """Send what `neuronpedia-api` prints, with the key in NEURONPEDIA_API_KEY."""
    url: str = URL
    """Of the site that is sent to."""

    def run(self) -> None:
        """Write or send it; say what is not in it."""
        if self.to == API:
            self._send()
            return
        if self.to not in _NAMES:
            hint = f"{nearest(self.to, _NAMES)} allowed: {', '.join(_NAMES)}".strip()
            raise UserError(f"no format `{self.to}`", hint)
        if self.out is None:
            raise UserError("where to?", "give a folder with --out")
        if self.to in WRITERS:
            lost = export_run(self.dictionary, self.to, self.out, self.site)
        else:
            lost = export(load(self.dictionary), self.to, self.out)
        console.print(f"written: {self.out}", markup=False)
        for what in lost:
            console.print(f"not in it: {what}", markup=False)

    def _send(self) -> None:
        run = Path(self.dictionary)
        if self.upload:
            done = run / "neuronpedia.uploaded"
            sent = upload(
                run, self.site, done, url=self.url, say=lambda s: console.print(s, markup=False)
            )
            console.print(f"{sent} requests sent; all that there are were accepted")
            return
        for path, body in requests(run, self.site):
            features = body.get("features", [])
            console.print(
                f"POST {self.url}{path}: {len(features) or 'new set'}, "
                f"{len(json.dumps(body)):,} bytes",
                markup=False,
                highlight=False,
            )
        console.print("nothing was sent: a dry run; send it with --upload")
