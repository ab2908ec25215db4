"""Dose and response of steering: what is wanted against what it costs, strength by strength.

Methods are to be compared at the same side effects, not at the same strength: strengths of
different methods have nothing to do with each other (AxBench, arXiv 2501.17148, shows how much
depends on it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.coders import Add, Change, Clamp, Dictionary
from monosemy.corpus import parsable_part
from monosemy.errors import UserError
from monosemy.evaluation.neutral import Neutral, Steering
from monosemy.evaluation.wanted import Sample, Wanted, log_probabilities
from monosemy.intervene import FeatureEdit, VectorEdit
from monosemy.lm import LM
from monosemy.metrics import bootstrap_weights, interval, weighted_means
from monosemy.metrics.diversity import distinct_n
from monosemy.metrics.table import MetricValue

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
_TRIES = 12
_WEAKEST, _STRONGEST = 2.0**-8, 2.0**8


@dataclass(frozen=True, slots=True)
class Family:
    """Edits of one kind, from weak to strong.

    Attributes:
        name: as shown.
        hookpoint: where edits write.
        at: makes the edit of a strength.
        reads: where they read, of a transcoder; None: where they write. What the model does before
            it is the same for all.
    """

    name: str
    hookpoint: str
    at: Callable[[float], Steering]
    reads: str | None = None

    def costs(self, neutral: Neutral, strengths: Sequence[float]) -> list[dict[str, MetricValue]]:
        """Return the side effects of each strength."""
        edits = [self.at(strength) for strength in strengths]
        return neutral.measure(self.reads or self.hookpoint, edits)


def raising(dictionary: Dictionary, feature: int) -> Family:
    """Return the edits that add to a feature's activation; strengths are multiples of its largest.

    Strength 0 is the model as it is.
    """
    return _changing(dictionary, feature, f"feature {feature}", Add)


def clamping(dictionary: Dictionary, feature: int) -> Family:
    """Return the edits that set a feature's activation; strengths are multiples of its largest.

    Strength 0 ablates it, which has effects of its own.
    """
    return _changing(dictionary, feature, f"feature {feature}, clamped", Clamp)


def _changing(
    dictionary: Dictionary, feature: int, name: str, change: Callable[[dict[int, float]], Change]
) -> Family:
    dictionary.check_scales({feature: 1.0})
    return Family(
        name,
        dictionary.explains,
        lambda strength: FeatureEdit(dictionary, [change({feature: strength})]),
        dictionary.hookpoint,
    )


def pushing(name: str, hookpoint: str, vector: Float[Tensor, " d"]) -> Family:
    """Return the edits that add multiples of a vector to the residual stream, or wherever it is.

    At every token of text, special ones and padding excepted.
    """
    return Family(name, hookpoint, lambda strength: VectorEdit(hookpoint, vector, strength))


def random_direction(dictionary: Dictionary, feature: int, seed: int = 0) -> Family:
    """Return pushes along a random direction, at each strength as far as `raising` a feature."""
    vector = dictionary.coder.W_dec[feature]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(vector), generator=generator).to(vector)
    size = float(dictionary.strength[feature]) * vector.norm() / drawn.norm()
    return pushing("random direction", dictionary.explains, drawn * size)


def random_feature(dictionary: Dictionary, but: int, seed: int = 0) -> Family:
    """Return `raising` of a feature drawn among those that fire, other than one.

    Raises:
        UserError: no other feature fires.
    """
    fires = dictionary.strength > 0
    fires[but] = False
    others = fires.nonzero()[:, 0]
    if not len(others):
        raise UserError("no other feature ever fires", "choose another dictionary")
    generator = torch.Generator().manual_seed(seed)
    return raising(dictionary, int(others[torch.randint(len(others), (), generator=generator)]))


@dataclass(frozen=True, slots=True)
class Writing:
    """How text is written: the same draws for every method and strength.

    Attributes:
        tokens: to write after each prompt.
        temperature: 0 takes the likeliest token each time.
        samples: texts for each prompt.
        seed: sample s of prompt i is drawn with seed + i * samples + s.
    """

    tokens: int = 40
    temperature: float = 0.7
    samples: int = 1
    seed: int = 0

    def write(self, lm: LM, prompts: Sequence[str], prefix: str = "") -> list[Sample]:
        """Continue prompts, samples of one prompt next to each other.

        Raises:
            UserError: as `LM.write`, or there is no prompt.
        """
        if not prompts:
            raise UserError("there is no prompt", "give one at least")
        asked = [prompt for prompt in prompts for _ in range(self.samples)]
        written = lm.write_many(
            [prefix + prompt for prompt in asked],
            max_new_tokens=self.tokens,
            temperature=self.temperature,
            seeds=list(range(self.seed, self.seed + len(asked))),
        )
        return [Sample(*pair) for pair in zip(asked, written, strict=True)]


@dataclass(frozen=True, slots=True)
class Dose:
    """One strength: what it does to what is written, and to predictions on neutral text.

    Figures with intervals of 95%: over prompts where something is written, else over documents.
    """

    strength: float
    wanted: MetricValue
    """The effect that is wanted."""
    ce: MetricValue
    """Rise of the cross-entropy of neutral text, nats a token."""
    kl: MetricValue
    """KL(original || steered) on neutral text, nats a token."""
    top1: MetricValue
    """Share of tokens of neutral text of which the likeliest successor is another."""
    perplexity: MetricValue
    """Of what is written, under the model as it is: exp of the mean over tokens. It falls, too,
    where text repeats itself."""
    distinct: MetricValue
    """Share of the pairs of neighbouring tokens written that are different ones, within a text."""
    unparsed: MetricValue | None
    """Share of the characters written that do not parse as Python, with what is open closed;
    None where the prompts do not."""
    each: Float[np.ndarray, " prompts"] = field(repr=False)
    """The effect for each prompt: to compare strengths and methods prompt by prompt."""
    example: str = ""
    """What was written after the first prompt."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "each": self.each.tolist()}


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """Doses of one method, weakest first."""

    name: str
    hookpoint: str
    effect: str
    """What is wanted."""
    doses: list[Dose]

    def best(self, budget: float) -> Dose:
        """Return the dose of the largest effect among those with a KL of at most `budget`.

        Raises:
            UserError: every dose costs more.
        """
        cheap = [dose for dose in self.doses if dose.kl.value <= budget]
        if not cheap:
            least = min(dose.kl.value for dose in self.doses)
            raise UserError(
                f"no dose of {self.name} has a KL of at most {budget:g}",
                f"the least is {least:.3g}; allow as much, or try weaker ones",
            )
        return max(cheap, key=lambda dose: dose.wanted.value)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        doses = [dose.to_dict() for dose in self.doses]
        return {
            "name": self.name,
            "hookpoint": self.hookpoint,
            "effect": self.effect,
            "doses": doses,
        }


def best_place(curves: Sequence[DoseResponse], budget: float) -> DoseResponse:
    """Return the curve that reaches the largest effect with a KL of at most `budget`.

    Of features of dictionaries at several hook points: where to steer. Curves without a dose so
    cheap are left out.

    Raises:
        UserError: all are.
    """
    able = [c for c in curves if any(dose.kl.value <= budget for dose in c.doses)]
    if not able:
        raise UserError(
            f"none of {len(curves)} curves has a dose of a KL of at most {budget:g}",
            "allow more, or try weaker ones",
        )
    return max(able, key=lambda curve: curve.best(budget).wanted.value)


def dose_response(
    lm: LM,
    family: Family,
    wanted: Wanted,
    prompts: Sequence[str],
    neutral: Neutral,
    *,
    strengths: Iterable[float] = STRENGTHS,
    writing: Writing | None = None,
    draws: int = 1000,
) -> DoseResponse:
    """Measure what strengths of an edit do, wanted and not.

    Args:
        lm: the model.
        family: the edits.
        wanted: the effect they are for.
        prompts: continued under each of them.
        neutral: text for the side effects.
        strengths: of the edits; 0 is where others are seen from.
        writing: how text is written; None: `Writing()`.
        draws: of the bootstrap over prompts.

    Raises:
        UserError: an edit that cannot be done, no prompt, or no strength.
    """
    writing = writing or Writing()
    each = sorted(set(strengths))
    if not each:
        raise UserError("there is no strength", "give one at least, such as 1.0")
    costs = family.costs(neutral, each)
    doses = []
    for strength, cost in zip(each, costs, strict=True):
        with lm.edit(family.at(strength)):
            samples = writing.write(lm, prompts)
            effect = wanted.measure(lm, samples)
        doses.append(_dose(lm, strength, samples, effect, cost, writing.samples, draws))
    return DoseResponse(family.name, family.hookpoint, wanted.name, doses)


def prompted(
    lm: LM,
    prefix: str,
    wanted: Wanted,
    prompts: Sequence[str],
    neutral: Neutral,
    *,
    writing: Writing | None = None,
    draws: int = 1000,
) -> Dose:
    """Measure what a text in front of the prompts does: what steering has to be better than.

    Its side effects are those of the same text in front of neutral text; its strength is 1.

    Raises:
        UserError: as `dose_response`, or with neutral text the prefix is too long for the model.
    """
    writing = writing or Writing()
    samples = writing.write(lm, prompts, prefix)
    cost = neutral.measure_prefix(prefix)
    return _dose(lm, 1.0, samples, wanted.measure(lm, samples), cost, writing.samples, draws)


def strength_at(family: Family, neutral: Neutral, budget: float) -> float:
    """Return the strength at which an edit's KL on neutral text reaches a budget.

    It is between 98% and 100% of the budget then, where that is found within 12 measurements; else
    the strength is the largest of those seen to cost no more. 256 where even that costs less, and
    0 where 1/256 costs more. The search takes the KL to grow as the square of the strength, which
    it does at first, and keeps to the interval that is left.
    """
    low, high, strength = 0.0, math.inf, 1.0
    for _ in range(_TRIES):
        kl = family.costs(neutral, [strength])[0]["kl"].value
        if kl <= budget:
            low = strength
        else:
            high = strength
        if 0.98 * budget <= kl <= budget or low >= _STRONGEST or high <= _WEAKEST:
            break
        factor = (0.99 * budget / kl) ** 0.5 if kl > 0 else math.inf
        guess = strength * min(max(factor, 1 / 16), 16.0)
        if not low < guess < high:
            guess = (max(low, _WEAKEST) * min(high, _STRONGEST)) ** 0.5
        strength = min(max(guess, _WEAKEST), _STRONGEST)
    return low


def _dose(
    lm: LM,
    strength: float,
    samples: Sequence[Sample],
    effect: Float[np.ndarray, " samples"],
    cost: dict[str, MetricValue],
    per_prompt: int,
    draws: int,
) -> Dose:
    rows = [sample.written.tokens for sample in samples]
    starts = [sample.written.start for sample in samples]
    known = log_probabilities(lm, rows, starts)
    tokens = np.array([len(row) for row in known], dtype=float)
    surprise = np.array([-float(row.sum()) for row in known])
    pairs = [distinct_n(row[start:].tolist(), 2) for row, start in zip(rows, starts, strict=True)]
    unparsed = unparsed_shares(samples)
    n = len(samples) // per_prompt

    def by_prompt(values: np.ndarray) -> np.ndarray:
        return values.reshape(n, per_prompt).mean(1)

    weights = bootstrap_weights(n, draws)
    each = by_prompt(effect)
    return Dose(
        strength=strength,
        wanted=mean_over(each, weights),
        **cost,
        perplexity=_perplexity(by_prompt(surprise), by_prompt(tokens), weights),
        distinct=mean_over(by_prompt(np.array(pairs)), weights),
        unparsed=None if unparsed is None else mean_over(by_prompt(unparsed), weights),
        each=each,
        example=samples[0].written.text,
    )


def unparsed_shares(samples: Sequence[Sample]) -> Float[np.ndarray, " samples"] | None:
    """Return the share of each text's characters behind its part that parses.

    None where prompts are not Python source.
    """
    if any(parsable_part(sample.prompt)[1] < len(sample.prompt) for sample in samples):
        return None
    shares = []
    for sample in samples:
        prompt, text = sample.prompt, sample.written.text
        end = parsable_part(prompt + text)[1]
        shares.append(1 - max(end - len(prompt), 0) / len(text) if text else 0.0)
    return np.array(shares)


def mean_over(
    each: Float[np.ndarray, " prompts"], weights: Float[np.ndarray, "draws prompts"]
) -> MetricValue:
    """Return the mean over prompts and its interval; NaN is left out."""
    known = np.isfinite(each)
    if not known.any():
        return MetricValue(float("nan"), float("nan"), float("nan"))
    with np.errstate(invalid="ignore"):
        drawn = weighted_means(np.broadcast_to(each, weights.shape), weights)
    ends = interval({"mean": drawn[np.isfinite(drawn)]})["mean"]
    return MetricValue(float(each[known].mean()), *ends)


def _perplexity(
    surprise: np.ndarray, tokens: np.ndarray, weights: Float[np.ndarray, "draws prompts"]
) -> MetricValue:
    """Return exp of the mean over all tokens; the model may write none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.exp((weights @ surprise) / (weights @ tokens))
        value = float(np.exp(surprise.sum() / tokens.sum()))
    return MetricValue(value, *interval({"mean": drawn})["mean"])
