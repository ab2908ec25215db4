"""A run's evaluations as SAEBench's result files: what `monosemy evaluate` left, measured or not.

Suites that SAEBench has no kind for give no file; kinds that were not measured are named.
"""

from __future__ import annotations

from pathlib import Path

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.evaluation import Evaluation, write_saebench
from monosemy.formats.files import read_json
from monosemy.formats.sites import SiteOptions

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
        UserError: the run has no evaluation.
    """
    files = sorted(run.glob("metrics*.json"))
    if not files:
        raise UserError(
            f"`{run}` has no evaluation", f"make one with: monosemy evaluate {run} --tier thorough"
        )
    dictionary = Dictionary.from_pretrained(run)
    measured = set()
    for path in files:  # those of single suites after those of a tier: they are the later ones
        evaluation = Evaluation.from_dict(read_json(path))
        write_saebench(evaluation, dictionary, folder, options.name)
        measured |= {result.suite for result in evaluation.suites if not result.skipped}
    if not measured & _SUITES.keys():
        raise UserError(
            f"`{run}` was measured by {', '.join(sorted(measured)) or 'no suite'}",
            f"SAEBench has: {', '.join(_SUITES)}",
        )
    missing = [kind for suite, kind in _SUITES.items() if suite not in measured]
    lost = [f"{kind}: it was not measured" for kind in missing]
    return [*lost, "autointerp: SAEBench's judge reads other prompts than `monosemy explain`'s"]
