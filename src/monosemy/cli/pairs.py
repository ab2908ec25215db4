"""What commands about minimal pairs share: dictionaries at several hook points, and the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monosemy.cli.console import console, names_of
from monosemy.coders import Dictionary
from monosemy.corpus.minimal_pairs import MinimalPair, minimal_pairs
from monosemy.errors import UserError
from monosemy.intervene import fitting
from monosemy.intervene.nodes import Features
from monosemy.lm import LM
from monosemy.report.numbers import percent


def open_dictionaries(
    folders: Sequence[Path], model: str | None, device: str | None
) -> tuple[dict[Path, Dictionary], LM]:
    """Load dictionaries, in the order of the model, and the one model that they belong to.

    A sweep's folder stands for the runs in it.

    Raises:
        UserError: there are none, or they belong to several models.
    """
    runs = [run for folder in folders for run in _runs_in(folder)]
    if not runs:
        raise UserError("no run was named", "name the runs of a sweep over layers, or its folder")
    found = {run: Dictionary.from_pretrained(run) for run in runs}
    models = {(d.provenance.model, d.provenance.revision) for d in found.values()}
    if model is None and len(models) > 1:
        named = ", ".join(sorted(name for name, _ in models))
        raise UserError(f"the runs are of several models: {named}", "name runs of one")
    name, revision = next(iter(models))
    lm = LM(model or name, revision=None if model else revision, device=device)
    order = [point.name for point in lm.hookpoints()]
    place = {name: number for number, name in enumerate(order)}
    runs.sort(key=lambda run: place.get(found[run].explains, len(place)))
    return {run: found[run].to(lm.device) for run in runs}, lm


def _runs_in(folder: Path) -> list[Path]:
    inside = sorted(path.parent for path in folder.glob("*/dictionary") if path.is_dir())
    return [folder] if (folder / "dictionary").is_dir() or not inside else inside


def site_names(dictionaries: dict[Path, Dictionary]) -> dict[str, dict[int, str]]:
    """Return, site by site, what features are called; nothing where a run has no index."""
    return {
        Features(d).name: {f: names[0] for f, names in names_of(run).items() if names}
        for run, d in dictionaries.items()
    }


def chosen_pairs(lm: LM, source: str, *, mistaken: bool, unequal: str) -> list[MinimalPair]:
    """Return the pairs of a source; without mistaken ones, those that the model gets right.

    Raises:
        UserError: there is no such source, or no pair is left.
    """
    pairs = minimal_pairs(source)
    if mistaken or unequal != "refuse":
        return pairs
    found = fitting(lm, pairs, mistaken=False)
    console.print(
        f"{len(found.pairs)} of {len(pairs)} pairs are kept; the model prefers the right "
        f"answer in {percent(found.preferred)}",
        style="dim",
    )
    return found.pairs
