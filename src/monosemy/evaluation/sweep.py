"""Dictionaries of a sweep side by side: the same held-out tokens, one pass of the model for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.activations import LiveActivations, counted_activations
from monosemy.coders import Dictionary
from monosemy.corpus import Corpus, TokenBatch, TokenStream
from monosemy.errors import UserError
from monosemy.evaluation.baselines import RIDGE
from monosemy.evaluation.splice import putting
from monosemy.lm import LM, Replay
from monosemy.metrics import (
    Activity,
    LossEffect,
    Reconstruction,
    bootstrap_weights,
    interval,
)
from monosemy.metrics.table import MetricValue
from monosemy.progress import Task
from monosemy.training.config import DEFAULT_L0

FIT_TOKENS = 32_768
"""Training tokens that the baselines and mean activations are fitted on."""
RANKS = 4
"""Sizes of the baseline measured at each hook point."""

BASELINES = {"pca": "PCA", "linear": "linear map"}
"""What stands for an architecture in rows that nobody trained -> its name.

`pca` keeps the first principal components; `linear`, beside transcoders, is the best linear map
of that rank from their input to what they explain. Where both are the same place they are one.
"""


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One dictionary of a sweep, or a baseline of one size, with its held-out figures.

    Figures, each with a 95% interval over documents: `fvu`, `l0`, `dead_share`; of causal models
    also `ce_increase` (nats a token) and `recovered` (share of the loss that the mean activation
    in its place would cost).
    """

    name: str
    architecture: str
    hookpoint: str
    """Where its input is taken."""
    width: int
    k_or_target: float | None
    """k, or the L0 asked for; None where a penalty's weight was given. Of baselines their rank."""
    tokens: int
    """It was trained, or fitted, on."""
    seed: int | None
    lr: float | None
    figures: dict[str, MetricValue]
    target: str | None = None
    """Hook point explained, where that is not its input's."""
    measured: dict[str, int] = field(default_factory=dict)
    """How much text: `tokens`, `loss_tokens`, `documents`."""

    @property
    def place(self) -> str:
        """What it explains, and from where: rows of different places do not compare."""
        return self.hookpoint if self.target is None else f"{self.target} from {self.hookpoint}"

    @property
    def is_baseline(self) -> bool:
        """Whether this is no dictionary but what one is held against."""
        return self.architecture in BASELINES

    def value(self, figure: str) -> float:
        """Return a figure; NaN where it was not measured."""
        return self.figures[figure].value if figure in self.figures else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; ends of endless intervals are null."""
        figures = {name: asdict(value) for name, value in self.figures.items()}
        finite = {
            name: {end: v if math.isfinite(v) else None for end, v in value.items()}
            for name, value in figures.items()
        }
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"figures": finite}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepRow:
        """Read what `to_dict` wrote.

        Raises:
            UserError: a field is missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        needed = known - {"target", "measured"}
        if not needed <= set(values) <= known:
            raise UserError(
                f"a row of a sweep has fields {sorted(values)}",
                f"allowed: {sorted(known)}; needed: {sorted(needed)}",
            )
        missing = {"value": math.nan, "low": -math.inf, "high": math.inf}
        figures = {
            name: MetricValue(**{e: missing[e] if v is None else v for e, v in value.items()})
            for name, value in values["figures"].items()
        }
        return cls(**{**values, "figures": figures})


@dataclass(frozen=True, slots=True)
class SeedMean:
    """Dictionaries that differ in their seed alone: mean and spread of each figure."""

    rows: list[SweepRow]
    mean: dict[str, float]
    spread: dict[str, float]
    """Standard deviation between seeds (n - 1)."""


def compare_on_held_out(
    dictionaries: Mapping[str, Dictionary],
    lm: LM,
    corpus: Corpus,
    *,
    tokens: int = 32_768,
    loss_tokens: int = 8_192,
    draws: int = 1000,
    seed: int = 0,
) -> list[SweepRow]:
    """Measure dictionaries of one model, at any hook points, on the same held-out tokens.

    One forward pass a batch serves them all, and each encodes it once. The effect on the model's
    loss, measured on the first `loss_tokens` of the tokens, costs one further pass a dictionary.
    At every hook point a baseline is measured too, at a few sizes around the dictionaries' L0,
    fitted on training text. Fingerprints are not replayed: `attach` dictionaries that come from
    elsewhere first.

    Args:
        dictionaries: by name.
        lm: their model.
        corpus: whose held-out documents are read.
        tokens: held-out tokens for reconstruction.
        loss_tokens: held-out tokens for the loss.
        draws: bootstrap draws of documents.
        seed: of the bootstrap.

    Returns:
        A row for each dictionary, in the order given, then the baselines'.

    Raises:
        UserError: no dictionaries; some cut or count text differently, so that there are no
            tokens to compare them on; there is no held-out text.
    """
    provenance = _common_text(dictionaries)
    corpus.check("train", "held_out")
    if lm.is_causal:
        lm.require_whole("the effect on the loss cannot be measured")
    for dictionary in dictionaries.values():
        dictionary.to(lm.device)
    moments = _fit(lm, provenance.stream(lm, corpus, "train"), dictionaries.values())
    candidates = [_of_dictionary(name, d) for name, d in dictionaries.items()]
    for places, fitted in moments.items():
        here = [d for d in dictionaries.values() if _places(d) == places]
        candidates += [fitted.baseline(rank) for rank in _ranks(here, fitted.largest)]
    means = {explained: fitted.mean for (_, explained), fitted in moments.items()}
    comparison = _Comparison(lm, candidates, means)
    comparison.run(provenance.stream(lm, corpus, "held_out"), tokens, loss_tokens)
    return comparison.rows(draws, seed)


def pareto_front(rows: Sequence[SweepRow]) -> list[str]:
    """Return the names of the dictionaries that no other at the same place beats.

    To beat is to be no worse on both L0 and FVU, and better on one; by the figures themselves,
    whose intervals may overlap. Baselines take no part.
    """

    def beaten(row: SweepRow) -> bool:
        mine = row.value("l0"), row.value("fvu")
        others = ((r.value("l0"), r.value("fvu")) for r in trained if r.place == row.place)
        return any(l0 <= mine[0] and fvu <= mine[1] and (l0, fvu) != mine for l0, fvu in others)

    trained = [row for row in rows if not row.is_baseline]
    return [row.name for row in trained if not beaten(row)]


def over_seeds(rows: Sequence[SweepRow]) -> list[SeedMean]:
    """Return mean and spread of dictionaries that differ in their seed alone, where there are."""
    alike: dict[tuple, list[SweepRow]] = {}
    for row in rows:
        if not row.is_baseline:
            alike.setdefault(_but_seed(row), []).append(row)
    found = []
    for group in alike.values():
        if len({row.seed for row in group}) < 2:
            continue
        figures = {name: [row.value(name) for row in group] for name in group[0].figures}
        mean = {name: fmean(values) for name, values in figures.items()}
        spread = {name: stdev(values) for name, values in figures.items()}
        found.append(SeedMean(group, mean, spread))
    return found


def _but_seed(row: SweepRow) -> tuple:
    return (row.place, row.architecture, row.width, row.k_or_target, row.tokens, row.lr)


class _Candidate(NamedTuple):
    """Something that explains activations at one hook point from those at another."""

    row: SweepRow
    explained: str
    explain: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Activations -> what they explain, numbers used a token [tokens]."""
    activity: Activity | None


def _of_dictionary(name: str, dictionary: Dictionary) -> _Candidate:
    training = dictionary.provenance.training
    source, explained = _places(dictionary)
    activity = Activity(dictionary.width)
    row = SweepRow(
        name=name,
        architecture=dictionary.coder.architecture,
        hookpoint=source,
        width=dictionary.width,
        k_or_target=_asked(dictionary),
        tokens=int(training.get("tokens", 0)),
        seed=training.get("seed"),
        lr=training.get("lr"),
        figures={},
        target=None if explained == source else explained,
    )

    @torch.no_grad()
    def explain(x: Tensor) -> tuple[Tensor, Tensor]:
        xhat, code = dictionary.coder.reconstruct(x)
        activity.update(code.values, code.indices, len(x))
        return xhat, code.l0

    return _Candidate(row, explained, explain, activity)


def _places(dictionary: Dictionary) -> tuple[str, str]:
    """Return the hook points that a dictionary reads and explains."""
    return dictionary.hookpoint, dictionary.explains


def _asked(dictionary: Dictionary) -> float | None:
    """Return k, or the L0 asked for; None where a penalty's weight was given instead."""
    training = dictionary.provenance.training
    k = getattr(dictionary.coder, "k", None) or training.get("target_l0")
    if k is None and "target_l0" in training and training.get("penalty") is None:
        k = DEFAULT_L0
    return None if k is None else float(k)


def _common_text(dictionaries: Mapping[str, Dictionary]) -> Any:
    """Return a provenance that cuts and counts text as it is for all dictionaries.

    Raises:
        UserError: there are none, or two differ.
    """
    if not dictionaries:
        raise UserError("there are no dictionaries to compare", "give at least one")
    (first, one), *others = dictionaries.items()
    for name, other in others:
        for what in ("model", "revision", "context", "packed", "policy"):
            seen = getattr(one.provenance, what), getattr(other.provenance, what)
            if seen[0] != seen[1]:
                raise UserError(
                    f"`{first}` and `{name}` differ in their {what}: {seen[0]} and {seen[1]}",
                    "dictionaries compare only on the same tokens; compare those that share it",
                )
    return one.provenance


class _Moments:
    """Means and covariances of what is read (x) and what is explained (y), on training text."""

    def __init__(self, source: str, explained: str) -> None:
        self.source, self.explained = source, explained
        self.tokens = 0
        self._start: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []

    def add(self, x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"]) -> None:
        """Add tokens; sums are kept about the first batch's mean, so that nothing cancels."""
        if x.device.type == "mps":  # has no doubles
            x, y = x.cpu(), y.cpu()
        x, y = x.double(), y.double()
        if self._start is None:
            self._start = x.mean(0), y.mean(0)
        x, y = x - self._start[0], y - self._start[1]
        new = [x.sum(0), y.sum(0), x.T @ x, x.T @ y]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self._sums else new
        self.tokens += len(x)

    def finish(self, device: torch.device) -> None:
        """Find the directions along which most of y can be told from x."""
        assert self._start is not None
        x, y, xx, xy = (total / self.tokens for total in self._sums)
        xx, xy = xx - torch.outer(x, x), xy - torch.outer(x, y)
        if self.source == self.explained:
            told, through = xx, torch.eye(len(x), dtype=xx.dtype, device=xx.device)
        else:
            ridge = RIDGE * xx.diagonal().mean().clamp_min(1e-12)
            through = torch.linalg.solve(xx + ridge * torch.eye(len(x)).to(xx), xy)
            told = through.T @ xx @ through
        basis = torch.linalg.eigh(told).eigenvectors.flip(1)
        self.largest = min(len(x), len(y))
        self.mean = (self._start[1] + y).float().to(device)
        self._centre = (self._start[0] + x).float().to(device)
        self._read, self._write = (through @ basis).float().to(device), basis.float().to(device)

    def baseline(self, rank: int) -> _Candidate:
        """Return the linear map of a rank that explains y best: of y from itself, PCA."""
        architecture = "pca" if self.source == self.explained else "linear"
        read, write = self._read[:, :rank], self._write[:, :rank]
        target = None if self.source == self.explained else self.explained
        row = SweepRow(
            name=f"{BASELINES[architecture]}-{rank}",
            architecture=architecture,
            hookpoint=self.source,
            width=rank,
            k_or_target=float(rank),
            tokens=self.tokens,
            seed=None,
            lr=None,
            figures={},
            target=target,
        )

        def explain(x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.mean + ((x - self._centre) @ read) @ write.T
            return y, torch.full((len(x),), rank, device=x.device)

        return _Candidate(row, self.explained, explain, None)


def _fit(
    lm: LM, stream: TokenStream, dictionaries: Iterable[Dictionary]
) -> dict[tuple[str, str], _Moments]:
    """Return the moments of every pair of places, from one pass over training text."""
    moments = {places: _Moments(*places) for places in map(_places, dictionaries)}
    points = sorted({point for places in moments for point in places})
    for values in LiveActivations(lm, stream, points):
        for (source, explained), fitted in moments.items():
            fitted.add(values[source], values[explained])
        if min(fitted.tokens for fitted in moments.values()) >= FIT_TOKENS:
            break
    for fitted in moments.values():
        fitted.finish(lm.device)
    return moments


def _ranks(dictionaries: Sequence[Dictionary], largest: int) -> list[int]:
    """Return sizes of the baseline, from half the least L0 to twice the largest."""
    l0 = [max(dictionary.l0, 1.0) for dictionary in dictionaries]
    ranks = np.geomspace(min(l0) / 2, 2 * max(l0), RANKS).round().astype(int)
    return sorted({int(rank) for rank in ranks.clip(1, largest)})


class _Comparison:
    """The sums of every candidate over held-out text."""

    def __init__(
        self, lm: LM, candidates: Sequence[_Candidate], means: Mapping[str, Tensor]
    ) -> None:
        self.lm, self.candidates, self.means = lm, candidates, means
        self.points = sorted({p for c in candidates for p in (c.row.hookpoint, c.explained)})
        self.sums = [Reconstruction(means[c.explained]) for c in candidates]
        self.ablations = {point: f"mean at {point}" for point in means}
        # Names of rows need not be different from those of ablations: numbers are.
        variants = [*map(str, range(len(candidates))), *self.ablations.values()]
        self.loss = LossEffect(variants, list(self.ablations.values()))
        first = min(means, key=lambda point: len(lm.blocks_before(point)))
        self.replay = Replay(lm, first)  # what runs before any of them runs once a batch
        self.documents: dict[str, int] = {}
        self.tokens = self.loss_tokens = 0

    def run(self, stream: TokenStream, tokens: int, loss_tokens: int) -> None:
        with Task("compare", tokens) as task:
            for batch in stream:
                groups = batch.numbers(self.documents)
                values = counted_activations(self.lm, batch, self.points)
                explained = self._explain(values, groups[batch.counted])
                if self.loss_tokens < loss_tokens and self.lm.is_causal:
                    self._splice(batch, groups, explained)
                else:
                    for _ in explained:
                        pass
                count = int(batch.counted.sum())
                self.tokens += count
                task.advance(count)
                if self.tokens >= tokens:
                    break

    def _explain(
        self, values: Mapping[str, Tensor], groups: Int[Tensor, " tokens"]
    ) -> Iterator[Tensor]:
        """Yield what each candidate makes of a batch, one at a time, and add it to the sums."""
        for candidate, sums in zip(self.candidates, self.sums, strict=True):
            y, used = candidate.explain(values[candidate.row.hookpoint])
            sums.update(values[candidate.explained], y, used, groups)
            yield y

    def _splice(self, batch: TokenBatch, groups: Tensor, explained: Iterator[Tensor]) -> None:
        """Run the model as it is, with each explanation in place, and with means in place."""
        targets, counted = batch.next_tokens()
        original = self.replay.record(batch.tokens, batch.attention_mask)
        self.loss.update(original.cpu(), self._spliced(batch, explained), targets, counted, groups)
        self.loss_tokens += int(counted.sum())

    def _spliced(
        self, batch: TokenBatch, explained: Iterator[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for number, y in enumerate(explained):
            yield str(number), self._logits_with(batch, self.candidates[number].explained, y)
        for point, name in self.ablations.items():
            yield name, self._logits_with(batch, point, self.means[point])

    def _logits_with(self, batch: TokenBatch, point: str, values: Tensor) -> Tensor:
        """Return the recorded batch's logits with counted tokens' activations replaced.

        [batch, time, vocab]
        """
        with self.lm.edit({point: putting(values, batch.counted)}):
            return self.replay.again().cpu()

    def rows(self, draws: int, seed: int) -> list[SweepRow]:
        weights = bootstrap_weights(len(self.documents), draws, seed)
        effects = self._effects(weights) if self.loss_tokens else [{}] * len(self.candidates)
        measured = {
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "documents": len(self.documents),
        }
        rows = []
        for candidate, sums, effect in zip(self.candidates, self.sums, effects, strict=True):
            points, samples = sums.compute(), sums.resample(weights)
            ends = interval({name: samples[name] for name in ("fvu", "l0")})
            figures = {name: MetricValue(points[name], *ends[name]) for name in ends} | effect
            if candidate.activity is not None:
                dead = candidate.activity.dead_share
                figures["dead_share"] = MetricValue(dead, dead, dead)
            values = {f.name: getattr(candidate.row, f.name) for f in fields(SweepRow)}
            rows.append(SweepRow(**(values | {"figures": figures, "measured": measured})))
        return rows

    def _effects(self, weights: np.ndarray) -> list[dict[str, MetricValue]]:
        """Return each candidate's effect on the loss."""
        points, samples = self.loss.compute(), self.loss.resample(weights)
        effects = []
        for number, candidate in enumerate(self.candidates):
            recovered = f"recovered_{self.ablations[candidate.explained]}"
            own, drawn = points[str(number)], samples[str(number)]
            increase = drawn["ce"] - samples["original"]["ce"]
            ends = interval({"ce_increase": increase, "recovered": drawn[recovered]})
            value = {
                "ce_increase": own["ce"] - points["original"]["ce"],
                "recovered": own[recovered],
            }
            effects.append({name: MetricValue(value[name], *ends[name]) for name in value})
        return effects
