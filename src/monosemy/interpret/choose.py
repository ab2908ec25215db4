"""Choose features worth a person's look."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from monosemy.interpret.features import Features

_TOP = 12
_FEWEST = 4


@dataclass(frozen=True, slots=True)
class _Candidate:
    feature: int
    peak: str
    """The token on which it fires strongest most often."""
    purity: float
    """Share of its strongest contexts, one a document, that peak on that token."""
    contrast: float
    """Its strongest activations over its median one."""
    effect: float
    """Logit weight of the token it promotes most, if that begins a word: how clearly it says what
    comes next."""


def choose_features(features: Features, count: int = 20) -> list[int]:
    """Return `count` features that are specific, well attested and unlike each other.

    Left out are the densest (above 2% of tokens, which rarely mean one thing; where most features
    are denser than that, the denser half) and those seen in few documents. Half of the rest shown
    fire on one word, ranked by how far their strongest activations stand out; half fire on many
    words that something else unites, ranked by how clearly they say what comes next. No two share
    a word.
    """
    live, counts = features.live, features.counts
    most = max(0.02 * features.n_tokens, float(np.median(counts[live])) if live else 0)
    sparse = [f for f in live if 10 <= counts[f] <= most]
    candidates = [c for f in sparse if (c := _candidate(features, f)) is not None]
    words = [
        c for c in candidates if c.purity >= 0.7 and len(c.peak) >= 3 and c.peak.isidentifier()
    ]
    themes = [c for c in candidates if c.purity <= 0.35]
    words.sort(key=lambda c: (-c.contrast * c.purity, c.feature))
    themes.sort(key=lambda c: (-c.effect, c.feature))
    chosen: list[int] = []
    seen: set[str] = set()
    for ranked, wanted in ((themes, count // 2), (words, count - count // 2), (candidates, count)):
        room = min(wanted, count - len(chosen))
        for candidate in ranked:
            if room == 0:
                break
            if candidate.peak not in seen and candidate.feature not in chosen:
                chosen.append(candidate.feature)
                seen.add(candidate.peak)
                room -= 1
    return chosen


def _candidate(features: Features, feature: int) -> _Candidate | None:
    _, values = features.index.entries(feature)
    contexts = features.index.exemplars(feature, _TOP, window=2)  # enough to read the peaks
    peaks = [e.tokens[e.peak].strip() for e in contexts]
    if len(peaks) < _FEWEST:
        return None
    peak, times = Counter(peaks).most_common(1)[0]
    strongest = np.sort(values)[-_TOP:].mean()
    return _Candidate(
        feature,
        peak,
        times / len(peaks),
        float(strongest / max(np.median(values), 1e-9)),
        _effect(features, feature),
    )


def _effect(features: Features, feature: int) -> float:
    lens = features.lens(feature)
    if not lens or lens[0][0][:1].isalnum() or not lens[0][0].isprintable():
        return 0.0
    return lens[0][1]
