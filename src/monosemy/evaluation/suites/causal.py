"""How many of the model's later predictions hang on one feature: ablation sparsity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.corpus import TokenBatch
from monosemy.evaluation.result import Plot, SuiteResult, Table, judge, quantiles, told
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.lm import LM
from monosemy.metrics import GroupSums, bootstrap_weights, effect_sparsity, interval
from monosemy.metrics.table import Better, MetricRow, MetricValue
from monosemy.progress import Task

HORIZON = 16
"""Positions whose logits are compared: that of the ablation and those after it."""
ABLATIONS = 4
"""Of a kind at a position, each alone: features among those active, channels among all."""

COLUMNS = ["dictionary", "untrained dictionary", "channels", "random directions"]
_JUDGED = COLUMNS[:3]

_ROWS: list[tuple[str, str, str, Better, str]] = [
    (
        "ablation sparsity",
        "sparsity",
        "",
        "lower",
        f"share of the logits of {HORIZON} positions that move, as if all that do moved alike: "
        "(L1/L2)^2/N about each position's median; noise gives 0.637",
    ),
    ("ablation sparsity, no median", "plain", "", "lower", "the same, the median left in"),
    ("no effect", "idle", "share", "", "ablations that change no logit at all, left out above"),
]


class _Position(NamedTuple):
    """A token of a text, and what comes before and after it."""

    document: str
    tokens: Int[Tensor, "1 time"]
    """Up to the last of the positions compared, which are at the end."""
    x: Float[Tensor, " d_in"]
    """What is encoded there."""
    y: Float[Tensor, " d_out"]
    """What is explained there."""


def run(subject: Subject) -> SuiteResult:
    """Measure how sparsely single features act on the logits of this and the next 15 positions.

    At `positions` tokens of held-out text, some of the active features are ablated, each alone and
    at that token alone: x - z d, so what the dictionary does not explain stays in, and the model by
    itself is what is compared with. Beside them: features of an untrained dictionary, channels
    (coordinates set to their mean over training), and random directions as long as what the
    features write. A transcoder's features are ablated where they write.

    Raises:
        NotMeaningful: the model predicts no tokens, computes in half precision, or no document is
            long enough.
    """
    _check(subject.lm)
    count = _positions(subject)
    ablations = _Ablations(subject)
    documents: dict[str, int] = {}
    sums = {name: GroupSums(4) for name in COLUMNS}
    each: dict[str, list[float]] = {name: [] for name in COLUMNS}
    with Task("causal", count, "positions") as task:
        for position in _draw(subject, count):
            writes = ablations.at(position)
            effects = _effects(subject, position, torch.cat(list(writes.values())))
            group = documents.setdefault(position.document, len(documents))
            lengths = [len(write) for write in writes.values()]
            for name, effect in zip(writes, effects.split(lengths), strict=True):
                sums[name].add(_row(effect), np.full(len(effect), group))
                each[name] += effect[:, 0].tolist()
            task.advance(1)
    return _result(subject, sums, each, len(documents))


def _check(lm: LM) -> None:
    if not lm.is_causal:
        raise NotMeaningful("the model predicts no next token, so there are no logits to change")
    half = {p.dtype for p in lm.model.parameters()} & {torch.bfloat16, torch.float16}
    if half:
        kind = str(half.pop()).removeprefix("torch.")
        raise NotMeaningful(
            f"the model computes in {kind}, whose rounding touches every logit: effects would look "
            "like noise; load it with dtype=torch.float32"
        )


def _positions(subject: Subject) -> int:
    return subject.size("positions", 24, 64, 256)


def _cost(subject: Subject) -> int:
    context = subject.dictionary.provenance.context
    runs = 1 + ABLATIONS * len(COLUMNS)
    return subject.fit_tokens + _positions(subject) * (context + runs * (context + HORIZON) // 2)


class _Ablations:
    """What ablating a feature, a channel or a random direction takes away."""

    def __init__(self, subject: Subject) -> None:
        """Fit the untrained dictionary."""
        dictionary = subject.dictionary
        self.coder = dictionary.coder
        self.untrained = subject.untrained
        self.mean = dictionary.mean if dictionary.target_mean is None else dictionary.target_mean
        self.random = torch.Generator().manual_seed(subject.seed)

    def at(self, position: _Position) -> dict[str, Float[Tensor, "_ d_out"]]:
        """Return what some ablations of each kind, each a row, take away at a position."""
        y = position.y
        mine = self._features(self.coder, position.x)
        directions = torch.randn(mine.shape, generator=self.random).to(mine)
        lengths = mine.norm(dim=1, keepdim=True) / directions.norm(dim=1, keepdim=True)
        channels = torch.randperm(len(y), generator=self.random)[:ABLATIONS].to(y.device)
        above = y.new_zeros(len(channels), len(y))
        above[torch.arange(len(channels)), channels] = (y - self.mean.to(y))[channels]
        return {
            "dictionary": mine,
            "untrained dictionary": self._features(self.untrained, position.x),
            "channels": above,
            "random directions": directions * lengths,
        }

    @torch.no_grad()
    def _features(self, coder: SparseCoder, x: Tensor) -> Float[Tensor, "_ d_out"]:
        """Return what some of the features active on a token write."""
        code = coder.encode_sparse(x[None])
        active = (code.values > 0).nonzero()[:, 0]
        chosen = active[torch.randperm(len(active), generator=self.random)[:ABLATIONS]]
        return code.values[chosen, None] * coder.W_dec[code.indices[chosen]]


def _draw(subject: Subject, count: int) -> Iterator[_Position]:
    """Yield a random counted token of each row of held-out text, its document going on after it.

    Raises:
        NotMeaningful: there is none.
    """
    dictionary, lm = subject.dictionary, subject.lm
    here, there = dictionary.hookpoint, dictionary.explains
    generator, found = torch.Generator().manual_seed(subject.seed), 0
    for batch in subject.stream("held_out"):
        values = lm.capture(batch.tokens, [here, there], attention_mask=batch.attention_mask)
        for row, possible in enumerate(_possible(batch)):
            places = possible.nonzero()[:, 0]
            if found == count or not len(places):
                continue
            t = int(places[torch.randint(len(places), (), generator=generator)])
            first = int(batch.attention_mask[row].int().argmax())
            found += 1
            yield _Position(
                batch.documents[int(batch.document[row, t])].id,
                batch.tokens[row : row + 1, first : t + HORIZON],
                values[here][row, t].float(),
                values[there][row, t].float(),
            )
        if found == count:
            return
    if not found:
        raise NotMeaningful(
            f"no held-out document has {HORIZON} tokens after one another in a row of text"
        )


def _possible(batch: TokenBatch) -> Bool[Tensor, "batch starts"]:
    """Return the counted positions whose document goes on to the end of the horizon."""
    windows = batch.document.unfold(1, min(HORIZON, batch.document.shape[1]), 1)
    same = (windows == windows[:, :, :1]).all(-1) & (windows.shape[2] == HORIZON)
    return batch.counted[:, : same.shape[1]] & same


def _effects(
    subject: Subject, position: _Position, writes: Float[Tensor, "n d_out"]
) -> Float[Tensor, "n 2"]:
    """Return the sparsity of what each ablation changes, about the median and plain; or NaN."""
    t = position.tokens.shape[1] - HORIZON

    def ablate(y: Tensor, tokens: Tensor | None) -> Tensor:
        y = y.clone()
        y[1:, t] -= writes  # the first row is the model by itself
        return y

    rows = position.tokens.expand(len(writes) + 1, -1)
    with subject.lm.edit({subject.dictionary.explains: ablate}):
        logits = subject.lm.logits(rows, last=HORIZON)
    change = logits[1:] - logits[:1]
    both = [effect_sparsity(change), effect_sparsity(change, centre=False)]
    return torch.stack(both, 1).cpu()


def _row(effect: Float[Tensor, "n 2"]) -> np.ndarray:
    """Return what is summed of each ablation: tried, without effect, and the two sparsities."""
    idle = effect.isnan().any(1, keepdim=True)
    columns = [torch.ones_like(idle), idle, effect.masked_fill(idle, 0)]
    return torch.cat([column.double() for column in columns], 1).numpy()


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    tried, idle, sparsity, plain = sums.T
    moved = tried - idle
    return {"sparsity": sparsity / moved, "plain": plain / moved, "idle": idle / tried}


def _result(
    subject: Subject,
    sums: Mapping[str, GroupSums],
    each: Mapping[str, list[float]],
    documents: int,
) -> SuiteResult:
    totals = {name: total.total() for name, total in sums.items()}
    for name, total in totals.items():
        if not (total[0, 0] > total[0, 1]):
            raise NotMeaningful(f"of the ablations of {name} none changes a logit")
    weights = bootstrap_weights(documents, subject.draws, subject.seed)
    drawn = {name: total.weighted(weights) for name, total in sums.items()}
    # A draw may hold only documents of which a column has nothing to say.
    whole = np.all([some[:, 0] > some[:, 1] for some in drawn.values()], axis=0)
    points = {name: _figures(total) for name, total in totals.items()}
    samples = {name: _figures(some[whole]) for name, some in drawn.items()}

    def value(name: str, key: str) -> MetricValue:
        return MetricValue(float(points[name][key][0]), *interval(samples[name])[key])

    judgements = judge(
        "ablation sparsity", {name: samples[name]["sparsity"] for name in _JUDGED}, better="lower"
    )
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [
            Table(
                COLUMNS,
                [
                    MetricRow(title, unit, better, said, [value(name, key) for name in COLUMNS])
                    for title, key, unit, better, said in _ROWS
                ],
                "held-out text",
            )
        ],
        verdict=f"Of {len(each['dictionary']):,} features, each ablated alone, at "
        f"{_positions(subject):,} tokens of {documents} documents: {told(judgements)}.",
        judgements=judgements,
        context={
            "ablated": {name: len(values) for name, values in each.items()},
            "documents": documents,
            "horizon": HORIZON,
            "base": "the model by itself: what the dictionary does not explain stays in",
            "interval": "95%, bootstrap over documents",
        },
        plots=[
            Plot(
                "How sparse single ablations are",
                "share of ablations",
                "sparsity",
                {name: quantiles(np.array(values)) for name, values in each.items()},
            )
        ],
    )


SUITE = Suite("causal", "Causal sparsity", "standard", run, _cost)
