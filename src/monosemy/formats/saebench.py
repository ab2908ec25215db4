"""A run's evaluations as SAEBench's result files: what `monosemy evaluate` left, measured or not.

Suites that SAEBench has no kind for give no file; kinds that were not measured are named.
"""

from __future__ import annotations

from pathlib import Path

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.evaluation import Evaluation, write_autointerp, write_saebench
from monosemy.formats.files import read_json
from monosemy.formats.sites import SiteOptions
from monosemy.index import Index

_SUITES = {
    "reconstruction": "core",
    "probing": "sparse_probing",
    "scr": "scr",
    "tpp": "tpp",
    "absorption": "absorption",
    "unlearning": "unlearning",
    "ravel": "ravel",
}


def write(run: Path, folder: Path, options: SiteOptions) -> list[str]:
    """Write KIND/NAME_HOOKPOINT_eval_results.json of every kind that was measured.

    Raises:
        UserError: the run has neither an evaluation nor scored explanations, or none of a kind
            that SAEBench has.
    """
    dictionary = Dictionary.from_pretrained(run)
    explained = Index.open(run).table("explanations") if (run / "index").is_dir() else {}
    judged = write_autointerp(explained, dictionary, folder, options.name)
    files = sorted(run.glob("metrics*.json"))
    if not files and not judged:
        raise UserError(
            f"`{run}` has no evaluation", f"make one with: monosemy evaluate {run} --tier thorough"
        )
    measured = set()
    for path in files:  # those of single suites after those of a tier: they are the later ones
        evaluation = Evaluation.from_dict(read_json(path))
        write_saebench(evaluation, dictionary, folder, options.name)
        measured |= {result.suite for result in evaluation.suites if not result.skipped}
    if not measured & _SUITES.keys() and not judged:
        raise UserError(
            f"`{run}` was measured by {', '.join(sorted(measured)) or 'no suite'}",
            f"SAEBench has: {', '.join(_SUITES)}",
        )
    missing = [kind for suite, kind in _SUITES.items() if suite not in measured]
    lost = [f"{kind}: it was not measured" for kind in missing]
    return lost if judged else [*lost, "autointerp: no explanation was scored by detection"]
