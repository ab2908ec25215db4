"""What circuit-tracer's viewer shows of a feature: `features/NUMBER.json`, a file a feature.

The number joins layer and feature as an attribution graph's `feature` does (Cantor's pairing), so
that a folder can hold the features of all layers. Fields as Neuronpedia's schema of feature details
requires them, and those of circuit-tracer's own files that an index has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monosemy.formats.attribution_graph import paired
from monosemy.formats.sites import Group, Showing, SiteOptions, finite


def write(run: Path, folder: Path, options: SiteOptions) -> list[str]:
    """Write `features/NUMBER.json`.

    Raises:
        UserError: the run has no index.
    """
    showing = Showing(run, options)
    place = folder / "features"
    place.mkdir()
    for feature in showing.shown:
        content = finite(_details(showing, feature))
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        (place / f"{paired(showing.layer, feature)}.json").write_text(text, "utf-8")
    return ["quantiles of activations: an index has equal intervals", "explanations"]


def _details(showing: Showing, feature: int) -> dict[str, Any]:
    promoted, suppressed = showing.lens(feature)
    view = showing.view(feature)
    return {
        "transcoder_id": showing.source,
        "index": feature,
        "examples_quantiles": [_examples(group) for group in showing.groups(feature)],
        "top_logits": [token for token, _ in promoted],
        "bottom_logits": [token for token, _ in suppressed],
        "act_min": 0.0,
        "act_max": float(showing.index.max[feature]),
        "histogram": [float(count) for count in view.histogram[1]],
        "activation_frequency": view.density,
    }


def _examples(group: Group) -> dict[str, Any]:
    name = "Top activations" if group.low < 0 else f"From {group.low:.4g} to {group.high:.4g}"
    return {
        "quantile_name": name,
        "examples": [
            {
                "tokens_acts_list": context.activations,
                "train_token_ind": context.peak,
                "is_repeated_datapoint": False,
                "tokens": context.tokens,
            }
            for context in group.contexts
        ],
    }
