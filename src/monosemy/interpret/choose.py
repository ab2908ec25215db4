"""Choose features worth a person's look."""

from __future__ import annotations

import numpy as np

from monosemy.interpret.features import Features


def choose_features(features: Features, count: int = 20) -> list[int]:
    """Return `count` features that are specific, well attested and unlike each other.

    Left out are the densest (above 2% of tokens, which rarely mean one thing) and those seen in
    fewer than five documents. The rest are ranked by how far their strongest activations stand
    out from their usual ones, and no two may peak on the same token.
    """
    context = features.text.document.shape[1]
    places = features.text.places
    documents = features.text.document.reshape(-1)
    ranked: list[tuple[float, int, str]] = []
    for feature in features.live:
        tokens, values = features.entries(feature)
        if len(tokens) > 0.02 * features.n_tokens or len(tokens) < 10:
            continue
        best = np.argsort(-values, kind="stable")[:10]
        if len(np.unique(documents[places[tokens[best]]])) < 5:
            continue
        words = [_word(features, int(places[token]), context) for token in tokens[best]]
        common = max(set(words), key=words.count)
        if not any(c.isalnum() for c in common):
            continue
        # Strong where it fires, and always for the same kind of token.
        strength = values[best].mean() / max(np.median(values), 1e-9)
        purity = words.count(common) / len(words)
        ranked.append((float(np.log1p(strength) * (0.5 + purity)), feature, common.strip()))
    ranked.sort(key=lambda entry: (-entry[0], entry[1]))
    chosen: dict[str, int] = {}
    for _, feature, common in ranked:
        chosen.setdefault(common, feature)
    return list(chosen.values())[:count]


def _word(features: Features, place: int, context: int) -> str:
    row, time = divmod(place, context)
    text = features.text.texts[features.text.document[row, time]]
    return text[features.text.start[row, time] : features.text.end[row, time]]
