"""SAEDashboard's output, as its converter to Neuronpedia reads it: a JSON file a batch of features.

Activations come in groups: the strongest first, then equal intervals from the largest activation
down to 0, whose share is of all tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monosemy.formats.sites import BATCH, LOST, Group, Showing, SiteOptions, finite

_DIGITS = 5


def write(run: Path, folder: Path, options: SiteOptions) -> list[str]:
    """Write `batch-N.json`, `run_settings.json` and `skipped_indexes.json`.

    Raises:
        UserError: the run has no index.
    """
    showing = Showing(run, options)
    about = {"model_id": showing.model, "layer": showing.layer, "sae_set": options.name}
    for number, features in enumerate(showing.batches()):
        batch = {
            **about,
            "sae_id_suffix": None,
            "features": [_feature(showing, feature) for feature in features],
        }
        _write(folder / f"batch-{number}.json", finite(batch, _DIGITS))
    shown = set(showing.shown)
    skipped = [f for f in range(showing.index.width) if f not in shown]
    _write(folder / "skipped_indexes.json", {**about, "skipped_indexes": skipped})
    settings = {
        "sae_set": options.name,
        "model_id": showing.model,
        "layer": showing.layer,
        "n_prompts_total": showing.rows,
        "n_tokens_in_prompt": showing.index.text.context,
        "n_features_at_a_time": BATCH,
        "start_batch": 0,
        "end_batch": None,
        "huggingface_dataset_path": showing.corpus,
        "hook_point": showing.dictionary.provenance.explains,
    }
    _write(folder / "run_settings.json", settings)
    return list(LOST)


def _feature(showing: Showing, feature: int) -> dict[str, Any]:
    return {
        "feature_index": feature,
        **showing.columns(feature),
        "n_prompts_total": showing.rows,
        "n_tokens_in_prompt": showing.index.text.context,
        "dataset": showing.corpus,
        "activations": [row for group in showing.groups(feature) for row in _rows(group)],
        "vector": showing.directions[feature].tolist(),
    }


def _rows(group: Group) -> list[dict[str, Any]]:
    return [
        {
            "bin_min": group.low,
            "bin_max": group.high,
            "bin_contains": group.share,
            "tokens": context.tokens,
            "values": context.activations,
            "qualifying_token_index": context.peak,
        }
        for context in group.contexts
    ]


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, allow_nan=False), "utf-8")
