"""What there is to see of a feature: where it fires, how strongly, what it writes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A window of text in which a feature fires, or nearly does.

    Attributes:
        document: id of the document.
        tokens: text of each token of the window, whitespace included.
        activations: the feature's activation at each token.
        peak: index in `tokens` of the token on which the window was chosen.
        place: of that token in the index.
    """

    document: str
    tokens: list[str]
    activations: list[float]
    peak: int
    place: int = -1


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
        quantiles: share -> activation below which that share of its firings lies.
        groups: windows drawn from each fifth of those in which it fires, by their strongest
            activation; the strongest fifth first.
        random: windows drawn evenly from those in which it fires.
        near_misses: windows in which it does not fire, and how far its pre-activation came.
        names: what people and methods call it, the best first.
    """

    id: int
    density: float
    max: float
    mean_active: float
    n_tokens: int
    histogram: tuple[list[float], list[int]]
    exemplars: list[Exemplar]
    promoted: list[tuple[str, float]] = field(default_factory=list)
    suppressed: list[tuple[str, float]] = field(default_factory=list)
    quantiles: dict[float, float] = field(default_factory=dict)
    groups: list[list[Exemplar]] = field(default_factory=list)
    random: list[Exemplar] = field(default_factory=list)
    near_misses: list[tuple[Exemplar, float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
