"""What is written of a whole run, its index and evaluations, rather than of its weights."""

from __future__ import annotations

from pathlib import Path

from monosemy.artefact import new_folder
from monosemy.formats import delphi, feature_details, neuronpedia, saebench, saedashboard
from monosemy.formats.sites import SiteOptions, Writer

WRITERS: dict[str, Writer] = {
    "neuronpedia": neuronpedia.write,
    "saedashboard": saedashboard.write,
    "saebench": saebench.write,
    "delphi": delphi.write,
    "feature-details": feature_details.write,
}
"""Name -> what writes a run into an empty folder and returns what is not in it."""


def export_run(
    run: str | Path, to: str, folder: str | Path, options: SiteOptions | None = None
) -> list[str]:
    """Write what a run shows for another tool; return what is not in it.

    Args:
        run: its folder, with an index or, for `saebench`, an evaluation.
        to: name in `WRITERS`.
        folder: where to; new or empty.
        options: what it is to be called, and which features are shown.

    Raises:
        UserError: the run lacks what is to be written, the folder is not empty, or the disk
            refuses; nothing is written then.
    """
    with new_folder(Path(folder)) as draft:
        return WRITERS[to](Path(run), draft, options or SiteOptions())
