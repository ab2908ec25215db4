"""What there is to see of a feature: where it fires, how strongly, what it writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A window of text in which a feature fires.

    Attributes:
        document: id of the document.
        tokens: text of each token of the window, whitespace included.
        activations: the feature's activation at each token.
        peak: index in `tokens` of the token on which the window was chosen.
    """

    document: str
    tokens: list[str]
    activations: list[float]
    peak: int


@dataclass(frozen=True, slots=True)
class FeatureView:
    """A feature, seen over a corpus.

    Attributes:
        id: index of the feature in its dictionary.
        density: share of tokens on which it fires.
        max: largest activation.
        mean_active: mean activation where it fires.
        n_tokens: how many tokens were looked at.
        histogram: of positive activations: n + 1 edges and n counts.
        exemplars: strongest first.
        promoted: tokens whose logit its direction raises most, and by how much (logit lens).
        suppressed: tokens whose logit its direction lowers most (negative figures).
    """

    id: int
    density: float
    max: float
    mean_active: float
    n_tokens: int
    histogram: tuple[list[float], list[int]]
    exemplars: list[Exemplar]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
