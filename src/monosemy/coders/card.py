"""The model card of a dictionary on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosemy.errors import UserError

if TYPE_CHECKING:
    from monosemy.coders.dictionary import Dictionary

TAGS = ("sparse-autoencoder", "interpretability", "monosemy")
EVALUATION = "metrics.json"
"""In a run's folder: its last evaluation."""
_SUITE = "reconstruction"
_FIGURES = ("FVU", "L0", "CE increase")
"""Of the evaluation, beside its baselines."""


def read_evaluation(run: str | Path) -> dict[str, Any] | None:
    """Return the last evaluation in a run's folder; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = Path(run) / EVALUATION
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"`{path}` is damaged: {error}", "measure again, or remove it") from error


def model_card(
    dictionary: Dictionary, repo: str, evaluation: Mapping[str, Any] | None = None
) -> str:
    """Return README.md: what it is, how to load it, what it was trained on, and figures.

    Args:
        dictionary: what is described.
        repo: where it will be, for the code that loads it.
        evaluation: what `Evaluation.to_dict` gives.
    """
    parts = [
        _front_matter(dictionary.provenance.model),
        f"# {repo.rpartition('/')[2]}",
        _what(dictionary),
        f'```python\nimport monosemy\n\ndictionary = monosemy.load("{repo}")\n'
        f'lm = monosemy.LM("{dictionary.provenance.model}")\n```',
        "## Trained on",
        _rows(_training(dictionary)),
        *_figures(dictionary, evaluation),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(model: str) -> str:
    lines = ["---", "library_name: monosemy", "tags:", *(f"- {tag}" for tag in TAGS)]
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        lines.append(f"base_model: {model}")
    return "\n".join([*lines, "---"])


def _what(dictionary: Dictionary) -> str:
    what, place = "Sparse autoencoder", f"the activations at `{dictionary.hookpoint}`"
    if dictionary.is_transcoder:
        what = "Transcoder"
        place = f"`{dictionary.explains}`, predicted from `{dictionary.hookpoint}`,"
    return (
        f"{what} (`{dictionary.coder.architecture}`) of {dictionary.width:,} features for {place} "
        f"of `{dictionary.provenance.model}`, made with monosemy. It takes the model's own "
        "activations: centring and scale are in its weights."
    )


def _training(dictionary: Dictionary) -> dict[str, Any]:
    """Return what is known of how it came about, where there is a value."""
    made, training = dictionary.provenance, dictionary.provenance.training
    imported = training.get("imported", {})
    facts = {
        "model": f"`{made.model}`" + (f" at `{made.revision}`" if made.revision else ""),
        "hook point": f"`{made.hookpoint}`",
        "explains": f"`{made.target}`" if made.target else None,
        "corpus": f"`{made.corpus['source']}`" if made.corpus.get("source") else None,
        "tokens": f"{training['tokens']:,}" if training.get("tokens") else None,
        "context": f"{made.context} tokens",
        "k": training.get("k"),
        "target L0": training.get("target_l0"),
        "learning rate": training.get("lr"),
        "seed": training.get("seed"),
        "imported from": f"`{imported['source']}` ({imported['format']})" if imported else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _figures(dictionary: Dictionary, evaluation: Mapping[str, Any] | None) -> list[str]:
    parts = []
    held_out = dictionary.provenance.training.get("held_out", {})
    if held_out:
        found = {"tokens": f"{held_out['tokens']:,}"} if "tokens" in held_out else {}
        if "l0" in held_out:
            found["L0 (features a token)"] = f"{held_out['l0']:.2f}"
        if "dead_share" in held_out:
            found["features that never fire"] = f"{held_out['dead_share']:.1%}"
        parts += ["## On held-out text", _rows(found)]
    if evaluation is not None:
        parts += _evaluated(evaluation)
    if dictionary.fingerprint is not None:
        expected = dictionary.fingerprint.expected
        parts += [
            "## Fingerprint",
            "What it makes of the texts that are saved with it; `monosemy doctor` measures it again"
            " on your machine.",
            _rows(
                {
                    "FVU (variance not explained)": f"{expected.fvu:.4f}",
                    "L0": f"{expected.l0:.2f}",
                    "mean norm of activations": f"{expected.norm:.2f}",
                }
            ),
        ]
    return parts


def _evaluated(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the verdict and the main figures beside their baselines."""
    tables = [
        table
        for suite in evaluation.get("suites", [])
        if suite.get("suite") == _SUITE
        for table in suite["tables"]
    ]
    parts = ["## Evaluation", str(evaluation.get("verdict", ""))]
    for table in tables:
        rows = [row for row in table["rows"] if row["name"] in _FIGURES]
        if rows:
            head = ["", *table["columns"]]
            lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
            for row in rows:
                cells = ["" if v is None else f"{v['value']:.4g}" for v in row["values"]]
                lines.append(f"| {' | '.join([row['name'], *cells])} |")
            parts.append("\n".join(lines))
    return parts


def _rows(facts: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
