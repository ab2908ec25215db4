"""Feature absorption on the first-letter task: a letter's feature silent on words of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.evaluation.result import SuiteResult, Table, cells, judge, told
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.metrics import bootstrap_weights
from monosemy.metrics.absorption import absorption
from monosemy.metrics.balanced_probes import fit_balanced, sparse_logistic
from monosemy.metrics.table import Better, MetricRow
from monosemy.progress import Task

LETTERS = "abcdefghijklmnopqrstuvwxyz"
F1 = 0.6
"""Of a letter's dense probe, above which absorption means something."""
FEWEST = 20
"""Letters that must have such a probe (SAEBench's number)."""
WORDS = 10
"""Words with a letter that training and test need each."""
SPLIT = 10
"""Features at most among which a letter is split."""
GAIN = 0.03
"""Of F1 that a further feature must bring to count as one of the letter's own."""
EXAMPLES = 4
"""Words spelled before the one that is asked about."""
L1, STEPS = 0.01, 500
_MARKS = ("\u0120", "\u2581")
"""What tokenizers (byte-level BPE, SentencePiece) put before a token that begins a word."""

COLUMNS = ["dictionary", "untrained dictionary"]


@dataclass(frozen=True, slots=True)
class _Words:
    """Single tokens that are words, in a prompt of one length, and how the model holds them."""

    letters: Bool[np.ndarray, "letters n"]
    test: Bool[np.ndarray, " n"]
    x: Float[Tensor, "n d_in"]
    y: Float[Tensor, "n d_out"]
    """What is explained: x, but for a transcoder."""

    def rows(self, test: bool) -> Tensor:
        return torch.from_numpy(np.flatnonzero(self.test == test))

    def truth(self, test: bool) -> Bool[Tensor, "letters n"]:
        return torch.from_numpy(self.letters[:, self.test == test])


def run(subject: Subject) -> SuiteResult:
    """Measure how far features of single words have swallowed those of their first letters.

    Words are tokens of the vocabulary, each at the end of the same few spelled examples. On half of
    them a dense probe is fitted for each letter, and the features that stand for it are chosen: the
    largest positive weights of an L1 probe, as long as one more brings 0.03 of F1. On the other
    half, words that the dense probe gets right are asked whether these features hold the letter, or
    others do (`metrics.absorption`). Intervals are 95%, from bootstrap draws of words.

    Raises:
        NotMeaningful: the tokenizer has no words, or the model does not tell 20 letters apart.
    """
    words = _read(subject)
    letters, probes, biases = _dense_probes(words)
    coders = {"dictionary": subject.dictionary.coder, "untrained dictionary": subject.untrained}
    found = {}
    with Task("absorption", len(coders), "dictionaries") as task:
        for name, coder in coders.items():
            found[name] = _measure(coder, words, letters, probes, biases)
            task.advance(1)
    return _result(subject, words, letters, found)


def _cost(subject: Subject) -> int:
    return _most(subject) * 8 * (EXAMPLES + 1)


def _most(subject: Subject) -> int:
    return subject.size("words", 1_000, 4_000, 16_000)


def _vocabulary(subject: Subject) -> dict[int, str]:
    """Return the tokens that are whole words of ASCII letters, by id.

    Raises:
        NotMeaningful: there are too few.
    """
    tokenizer = subject.lm.tokenizer
    table = {} if tokenizer is None else tokenizer.get_vocab()
    found = {
        id: token[1:]
        for token, id in table.items()
        if token.startswith(_MARKS) and token[1:].isascii() and token[1:].isalpha()
    }
    if len(found) < FEWEST * WORDS:
        raise NotMeaningful(
            f"the tokenizer has {len(found)} tokens that are words with a space before them; "
            f"{FEWEST * WORDS} are needed to ask for their first letters"
        )
    return dict(sorted(found.items()))


def _read(subject: Subject) -> _Words:
    """Return words in their prompt; every second one of a letter is for testing."""
    lm, dictionary = subject.lm, subject.dictionary
    words = _vocabulary(subject)
    ids = np.random.default_rng(subject.seed).permutation(list(words))
    shown, asked = ids[:EXAMPLES], ids[EXAMPLES : EXAMPLES + _most(subject)]
    lines = [f" {words[i]} has the first letter: {words[i][0].upper()}\n" for i in shown.tolist()]
    before = lm.encode("".join(lines)).cpu()
    rows = torch.cat([before.expand(len(asked), -1), torch.from_numpy(asked)[:, None]], 1)
    here, there = dictionary.hookpoint, dictionary.explains
    x, y = [], []
    for part in rows.split(256):
        values = lm.capture(part, dict.fromkeys([here, there]))
        x.append(values[here][:, -1].float())
        y.append(values[there][:, -1].float())
    first = np.array([LETTERS.index(words[i][0].lower()) for i in asked.tolist()])
    letters = first == np.arange(len(LETTERS))[:, None]
    test = (letters.cumsum(1) * letters).sum(0) % 2 == 0
    return _Words(letters, test, torch.cat(x), torch.cat(y))


def _dense_probes(
    words: _Words,
) -> tuple[Int[np.ndarray, " letters"], Float[Tensor, "letters d_out"], Float[Tensor, " letters"]]:
    """Return the letters that the model tells from others, and their probes.

    Raises:
        NotMeaningful: there are too few.
    """
    enough = [
        letter
        for letter, of in enumerate(words.letters)
        if min((of & words.test).sum(), (of & ~words.test).sum()) >= WORDS // 2
    ]
    train, test = words.rows(False), words.rows(True)
    w, b = fit_balanced(words.y[train], words.truth(False)[enough])
    f1 = _f1(words.y[test] @ w.T + b > 0, words.truth(True)[enough].T)
    good = f1 > F1
    if int(good.sum()) < FEWEST:
        raise NotMeaningful(
            f"the model does not hold the spelling of words here: of {len(enough)} letters with "
            f"words enough, probes find {int(good.sum())} with an F1 above {F1} (median "
            f"{f1.median():.2f}); {FEWEST} are needed, which models below a billion parameters "
            "seldom reach"
        )
    return np.array(enough)[good.numpy()], w[good], b[good]


def _f1(
    said: Bool[Tensor, "n labels"], truth: Bool[Tensor, "n labels"]
) -> Float[Tensor, " labels"]:
    both = (said & truth).sum(0)
    return 2 * both / (said.sum(0) + truth.sum(0)).clamp_min(1)


@dataclass(frozen=True, slots=True)
class _Found:
    """Of one dictionary: a row a letter, a column a test word; zeros but at true positives."""

    fraction: Float[np.ndarray, "letters n"]
    full: Float[np.ndarray, "letters n"]
    right: Bool[np.ndarray, "letters n"]
    """Words of the letter that its dense probe gets right."""
    said: Bool[np.ndarray, "letters n"]
    """Words that the letter's own features say to begin with it."""
    truth: Bool[np.ndarray, "letters n"]
    own: list[int]
    """Features that stand for each letter."""


def _measure(
    coder: SparseCoder,
    words: _Words,
    letters: Int[np.ndarray, " letters"],
    probes: Float[Tensor, "letters d_out"],
    biases: Float[Tensor, " letters"],
) -> _Found:
    """Find each letter's features on training words, and whether they hold it on the others."""
    z, W_dec = _codes(coder, words.x)
    test = words.rows(True)
    own, said = _own_features(z, W_dec, words, letters)
    y, truth = words.y[test], words.truth(True)[letters]
    right = truth & (probes @ y.T + biases[:, None] > 0)
    fraction, full = torch.zeros(right.shape), torch.zeros(right.shape)
    for letter, (mine, probe) in enumerate(zip(own, probes, strict=True)):
        unit = probe / probe.norm()
        which = right[letter].nonzero()[:, 0]
        # About b_dec, which no feature writes.
        projection = (y[which] - coder.b_dec.to(y)) @ unit
        which, projection = which[projection > 0], projection[projection > 0]
        chosen = torch.zeros(len(W_dec), dtype=torch.bool)
        chosen[mine] = True
        found = absorption(z[test][which], W_dec, unit, chosen, projection)
        fraction[letter, which], full[letter, which] = found[0], found[1].float()
    return _Found(
        fraction.numpy(),
        full.numpy(),
        right.numpy(),
        said.numpy(),
        truth.numpy(),
        [len(mine) for mine in own],
    )


@torch.no_grad()
def _codes(
    coder: SparseCoder, x: Float[Tensor, "n d_in"]
) -> tuple[Float[Tensor, "n live"], Float[Tensor, "live d_out"]]:
    """Return the activations and directions of the features that fire on any word."""
    codes = [coder.encode_sparse(part) for part in x.split(1024)]
    fired = torch.zeros(coder.width, dtype=torch.bool, device=x.device)
    for code in codes:
        fired[code.indices[code.values > 0]] = True
    z = torch.cat([code.dense()[:, fired] for code in codes])
    return z, coder.W_dec.detach()[fired]


def _own_features(
    z: Float[Tensor, "n live"],
    W_dec: Float[Tensor, "live d_out"],
    words: _Words,
    letters: Int[np.ndarray, " letters"],
) -> tuple[list[list[int]], Bool[Tensor, "letters n_test"]]:
    """Return the features that stand for each letter, and on which test words they say so."""
    train, test = words.rows(False), words.rows(True)
    truth = words.truth(False)[letters]
    lengths = W_dec.norm(dim=1)
    scaled = z * lengths / (z * lengths).square().sum(1).mean().sqrt()
    weights = sparse_logistic(scaled[train], truth, L1, STEPS)
    top, order = weights.topk(min(SPLIT, z.shape[1]), dim=1)
    best, count = torch.zeros(len(letters)), torch.ones(len(letters), dtype=torch.long)
    growing = torch.ones(len(letters), dtype=torch.bool)
    said = torch.zeros(len(letters), len(test), dtype=torch.bool)
    for k in range(1, order.shape[1] + 1):
        chosen = z[:, order[:, :k]].transpose(0, 1)  # [letters, n, k]
        w, b = fit_balanced(chosen[:, train], truth)
        logits = (chosen @ w[..., None])[..., 0] + b[:, None]
        f1 = _f1((logits[:, train] > 0).T, truth.T)
        growing &= (top[:, k - 1] > 0) & (f1 > best + GAIN)
        if not growing.any():
            break
        best = torch.where(growing, f1, best)
        count[growing] = k
        said = torch.where(growing[:, None], logits[:, test] > 0, said)
    own = [row[:n].tolist() for row, n in zip(order, count.tolist(), strict=True)]
    return own, said


_ROWS: list[tuple[str, str, str, Better, str]] = [
    (
        "absorption fraction",
        "fraction",
        "share",
        "lower",
        "of what words say of their first letter, what other features say than the letter's own",
    ),
    (
        "full absorption",
        "full",
        "share",
        "lower",
        "words on which the letter's own features are silent and one other holds the letter",
    ),
    ("F1 of the letter's features", "f1", "", "higher", "of a probe on the features chosen"),
]


def _figures(found: _Found, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the figures of each row of weights of test words [draws, n]: means over letters."""

    def total(values: np.ndarray) -> np.ndarray:
        return weights @ values.T.astype(np.float64)

    right = np.maximum(total(found.right), 1)
    says = total(found.said) + total(found.truth)
    return {
        "fraction": (total(found.fraction) / right).mean(1),
        "full": (total(found.full) / right).mean(1),
        "f1": (2 * total(found.said & found.truth) / np.maximum(says, 1)).mean(1),
    }


def _result(
    subject: Subject, words: _Words, letters: np.ndarray, found: dict[str, _Found]
) -> SuiteResult:
    n = int(words.test.sum())
    weights = bootstrap_weights(n, subject.draws, subject.seed)
    points = {name: _figures(one, np.ones((1, n))) for name, one in found.items()}
    samples = {name: _figures(one, weights) for name, one in found.items()}
    rows = []
    for title, key, unit, better, said in _ROWS:
        rows.append(MetricRow(title, unit, better, said, cells(points, samples, key)))
    figure = _ROWS[-1][0]
    # Features that hold no letter absorb none: absorption by itself would praise what is untrained.
    judgements = judge(figure, {name: samples[name]["f1"] for name in COLUMNS}, better="higher")
    mine = found["dictionary"]
    right = np.maximum(mine.right.sum(1), 1)
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [Table(COLUMNS, rows, "held-out words")],
        verdict=f"Of the first letters of {n:,} words, {len(letters)} of which the model holds: "
        f"{told(judgements)}; absorption means something only where a letter has features.",
        judgements=judgements,
        context={
            "words": len(words.test),
            "letters": len(letters),
            "probe_f1_above": F1,
            "centre": "b_dec: what no feature writes is no projection",
            "interval": "95%, bootstrap over words",
        },
        series={"letters": _by_letter(mine, letters.tolist(), right)},
    )


def _by_letter(found: _Found, letters: Sequence[int], right: np.ndarray) -> list[dict]:
    return [
        {
            "first_letter": LETTERS[letter],
            "mean_absorption_fraction": float(found.fraction[i].sum() / right[i]),
            "full_absorption_rate": float(found.full[i].sum() / right[i]),
            "num_full_absorption": int(found.full[i].sum()),
            "num_probe_true_positives": int(found.right[i].sum()),
            "num_split_features": found.own[i],
        }
        for i, letter in enumerate(letters)
    ]


SUITE = Suite("absorption", "Feature absorption", "full", run, _cost)
