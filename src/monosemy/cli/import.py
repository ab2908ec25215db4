"""Read a dictionary of another tool, and keep it as one of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.artefact import new_run_folder
from monosemy.cli.console import console
from monosemy.formats import Given, load


@dataclass(frozen=True)
class Command:
    """Options of `monosemy import`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A file or folder, a Hub id (`owner/name`, `owner/name/folder`), or a release that
    `monosemy releases` lists."""
    out: Path | None = None
    """The run's folder, new; default runs/NAME, by the last part of SOURCE."""
    format: str | None = None
    """Where files fit several formats: which."""
    model: str | None = None
    """Hub id of the model, where files do not say or say it wrongly."""
    hookpoint: str | None = None
    """Where the activations that it encodes live."""
    target: str | None = None
    """Where those live that it explains: makes it a transcoder."""
    k: int | None = None
    """Features a token, where neither files nor names tell."""
    scale: float | None = None
    """What activations are to be multiplied by, where that was not folded into the weights."""
    centred: bool | None = None
    """Activations are of a model whose writing weights were centred, as TransformerLens does unless
    told not to: their mean over d_in is 0."""
    normalise: str | None = None
    """What was done to each token's activations first: `centre`, `layer_norm`, or `rms`, which
    divides by their root mean square."""

    def run(self) -> None:
        """Print what it is and what had to be assumed; write it."""
        given = Given(
            model=self.model,
            hookpoint=self.hookpoint,
            target=self.target,
            k=self.k,
            scale=self.scale,
            centred=self.centred,
            normalise=self.normalise,
        )
        dictionary = load(self.source, format=self.format, given=given)
        out = self.out or Path("runs") / _name(self.source)
        new_run_folder(out)
        dictionary.save_pretrained(out / "dictionary")
        console.print(str(dictionary), markup=False)
        for note in dictionary.provenance.training.get("imported", {}).get("notes", []):
            console.print(f"note: {note}", markup=False)
        console.print(f"written: {out}", style="dim", markup=False)
        console.print(f"next: monosemy doctor {out}", style="dim", markup=False)


def _name(source: str) -> str:
    """Return the last part of where a dictionary comes from, without a revision."""
    if Path(source).exists():
        return Path(source).resolve().name
    return source.partition("@")[0].rstrip("/").rpartition("/")[2]
