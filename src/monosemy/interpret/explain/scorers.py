"""Ways to score an explanation: what is asked of a judge, and how right the answers are.

Detection, fuzzing and simulation ask with the explanation and without what it was made from
(Paulo et al. 2024, arXiv 2410.13928; Bills et al. 2023). The intruder test asks without it, about
the contexts themselves (Paulo et al. 2025, arXiv 2507.08473).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monosemy.index import Exemplar
from monosemy.interpret.explain.contexts import QUANTILES, Contexts
from monosemy.interpret.explain.prompts import (
    Question,
    choosing,
    deciding,
    marked,
    plain,
    simulating,
)
from monosemy.metrics import bootstrap_weights, interval
from monosemy.metrics.answers import accuracy, correlation, moments, precision_at, yes_no
from monosemy.metrics.table import MetricValue

DRAWS = 1000
"""Of the bootstrap that a score's interval comes from."""

_AT_ONCE = 5
"""Contexts in one question; the last of a feature may have fewer."""
_MARKED = 0.3
"""Tokens are marked for fuzzing from this share of the window's strongest activation on."""
_SIMULATED = 8
"""Windows in which the feature fires that are simulated, and as many in which it does not."""

Answers = list[tuple[list[float], list[float | None]]]
"""For every question, what would be right and what was said."""


@dataclass(frozen=True, slots=True)
class Score:
    """How right a judge was about one feature."""

    values: dict[str, float]
    draws: dict[str, np.ndarray]
    """Figure -> [draws], of the same draws for everything asked in the same questions."""
    answered: int
    unanswered: int
    """Things asked of which nothing was said, or both; they are in no figure."""

    def figure(self, name: str) -> MetricValue | None:
        """Return a figure with its 95% interval; None where it has no value."""
        draws = self.draws[name][np.isfinite(self.draws[name])]
        if not np.isfinite(self.values[name]) or not len(draws):
            return None
        return MetricValue(self.values[name], *interval({name: draws})[name])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        figures = {name: self.figure(name) for name in self.values}
        return {
            "figures": {name: asdict(f) for name, f in figures.items() if f is not None},
            "answered": self.answered,
            "unanswered": self.unanswered,
        }


@dataclass(frozen=True, slots=True)
class Scorer:
    """A way to score an explanation."""

    name: str
    figure: str
    """The one that explanations are compared by."""
    chance: float
    """What a judge gets who knows nothing."""
    reads_explanation: bool
    """Whether the judge is told the explanation: only then another one can be put in its place."""
    ask: Callable[[str, Contexts, np.random.Generator], list[Question]]
    figures: Callable[[Contexts, Answers], dict[str, np.ndarray]]
    """Each figure as [1 + draws], the first for the answers as they are."""

    def score(self, contexts: Contexts, answers: Answers) -> Score:
        """Return how right answers to the scorer's questions are."""
        figures = self.figures(contexts, answers)
        said = [value for _, values in answers for value in values]
        return Score(
            {name: float(values[0]) for name, values in figures.items()},
            {name: values[1:] for name, values in figures.items()},
            len(said) - said.count(None),
            said.count(None),
        )


def _ask_detection(
    explanation: str, contexts: Contexts, rng: np.random.Generator
) -> list[Question]:
    """Ask in which windows the feature fires; truth is how strongly, 0 where it does not."""
    windows = [*contexts.test, *contexts.negatives]
    return _decisions(
        explanation,
        [plain("".join(e.tokens)) for e in windows],
        [max(e.activations) for e in windows],
        rng,
        marks=False,
    )


def _ask_fuzzing(explanation: str, contexts: Contexts, rng: np.random.Generator) -> list[Question]:
    """Ask whether the right tokens are marked: windows fire in all cases, so that only that tells.

    Wrong marks stand where those of other windows stand, moved off tokens on which the feature
    fires: right and wrong ones are as many, and in the same places.
    """
    order = rng.permutation(len(contexts.test))
    half = len(order) // 2
    right = [contexts.test[i] for i in order[:half]]
    wrong = [contexts.test[i] for i in order[half : 2 * half]]
    shown = [_marked_at(e, _strongest(e)) for e in right]
    truth = [1.0] * half
    for exemplar, other in zip(wrong, right, strict=True):
        if places := _moved(_strongest(other), exemplar, rng):
            shown.append(_marked_at(exemplar, places))
            truth.append(0.0)
    return _decisions(explanation, shown, truth, rng, marks=True)


def _decisions(
    explanation: str,
    shown: list[str],
    truth: list[float],
    rng: np.random.Generator,
    *,
    marks: bool,
) -> list[Question]:
    order = rng.permutation(len(shown))
    return [
        deciding(explanation, [shown[i] for i in part], [truth[i] for i in part], marks=marks)
        for part in np.array_split(order, -(-len(order) // _AT_ONCE))
    ]


def _ask_simulation(
    explanation: str, contexts: Contexts, rng: np.random.Generator
) -> list[Question]:
    """Ask for every token's activation, of windows of all quantiles and of silent ones."""
    chosen = _spread(contexts.test, _SIMULATED) + _spread(contexts.negatives, _SIMULATED)
    return [simulating(explanation, e.tokens, e.activations) for e in chosen]


def _ask_intruder(explanation: str, contexts: Contexts, rng: np.random.Generator) -> list[Question]:
    """Ask which window is not the feature's among four of one quantile.

    The intruder's marks stand where those of a fifth window stand; every window is used once.
    """
    questions = []
    size = _AT_ONCE - 1
    for negative, first in zip(
        contexts.negatives, range(0, len(contexts.test) - size + 1, size), strict=False
    ):
        group = contexts.test[first : first + size]
        shown = [_marked_at(e, _strongest(e)) for e in group]
        model = contexts.test[(first + size) % len(contexts.test)]
        intruder = int(rng.integers(_AT_ONCE))
        marks = _moved(_strongest(model), negative, rng)
        shown.insert(intruder, _marked_at(negative, marks))
        questions.append(choosing(shown, intruder + 1))
    return questions


def _figures_of_fuzzing(contexts: Contexts, answers: Answers) -> dict[str, np.ndarray]:
    truth, said = _told(answers)
    return yes_no(truth > 0, said > 0, _weights(truth > 0))


def _figures_of_detection(contexts: Contexts, answers: Answers) -> dict[str, np.ndarray]:
    truth, said = _told(answers)
    weights = _weights(truth > 0)
    figures = yes_no(truth > 0, said > 0, weights)
    figures["precision at its rate"] = precision_at(contexts.rate, figures)
    groups = np.array_split(sorted(e.activations[e.peak] for e in contexts.test), QUANTILES)
    for number, group in enumerate(groups, 1):
        inside = (truth >= group[0]) & (truth <= group[-1])
        found = yes_no(truth[inside] > 0, said[inside] > 0, weights[:, inside])
        figures[f"recall in quantile {number}"] = found["recall"]
    return figures


def _figures_of_simulation(contexts: Contexts, answers: Answers) -> dict[str, np.ndarray]:
    known = [(np.array(t), np.array(s, float)) for t, s in answers if None not in s]
    if not known:
        return {"correlation": np.full(1 + DRAWS, np.nan)}
    sums = np.array([moments(said, truth) for truth, said in known])
    return {"correlation": correlation(sums, _weights(np.ones(len(known), bool)))}


def _figures_of_intruder(contexts: Contexts, answers: Answers) -> dict[str, np.ndarray]:
    truth, said = _told(answers)
    return {"accuracy": accuracy(truth, said, _weights(np.ones(len(truth), bool)))}


SCORERS = {
    scorer.name: scorer
    for scorer in (
        Scorer("detection", "balanced accuracy", 0.5, True, _ask_detection, _figures_of_detection),
        Scorer("fuzzing", "balanced accuracy", 0.5, True, _ask_fuzzing, _figures_of_fuzzing),
        Scorer("simulation", "correlation", 0.0, True, _ask_simulation, _figures_of_simulation),
        Scorer("intruder", "accuracy", 1 / _AT_ONCE, False, _ask_intruder, _figures_of_intruder),
    )
}


def _strongest(exemplar: Exemplar) -> list[int]:
    """Return the tokens that are marked: those near the window's strongest activation."""
    least = _MARKED * exemplar.activations[exemplar.peak]
    return [i for i, a in enumerate(exemplar.activations) if a >= least and a > 0]


def _moved(places: Sequence[int], exemplar: Exemplar, rng: np.random.Generator) -> list[int]:
    """Return as many places in a window, each the nearest at which the feature does not fire."""
    free = [i for i, a in enumerate(exemplar.activations) if a == 0]
    found = []
    for place in rng.permutation(places):
        if free:
            found.append(min(free, key=lambda i: abs(i - place)))
            free.remove(found[-1])
    return sorted(found)


def _marked_at(exemplar: Exemplar, places: Sequence[int]) -> str:
    return marked(exemplar.tokens, dict.fromkeys(places, ""))


def _spread(exemplars: Sequence[Exemplar], count: int) -> list[Exemplar]:
    """Return `count` of a list, evenly from its beginning to its end."""
    wanted = np.linspace(0, len(exemplars) - 1, min(count, len(exemplars)))
    return [exemplars[i] for i in wanted.round().astype(int)]


def _told(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Return what is right and what was said of everything of which something was."""
    pairs = [(t, s) for truth, said in answers for t, s in zip(truth, said, strict=True)]
    known = [(t, s) for t, s in pairs if s is not None]
    truth, said = np.array(known, dtype=float).reshape(-1, 2).T
    return truth, said


def _weights(stratum: np.ndarray) -> np.ndarray:
    """Return bootstrap weights [1 + draws, n], drawn within either stratum; the first are 1."""
    weights = np.ones((1 + DRAWS, len(stratum)))
    for seed, part in enumerate((stratum, ~stratum)):
        if part.any():
            weights[1:, part] = bootstrap_weights(int(part.sum()), DRAWS, seed)
    return weights
