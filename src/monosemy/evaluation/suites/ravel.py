"""Whether features tell apart what a model knows of an entity: one attribute is swapped, no other.

RAVEL (Huang et al. 2024, arXiv 2402.17700), with masks learned as in SAEBench: multi-task
differential binary masking, MDBM.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.evaluation.prompts import BATCH, Prompts
from monosemy.evaluation.result import SuiteResult, Table, cells, judge, told
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.metrics import bootstrap_weights
from monosemy.metrics.disentanglement import cause_and_isolation
from monosemy.metrics.table import MetricRow
from monosemy.progress import Task

HELD_OUT = 0.3
"""Share of the entities, where the facts do not say which."""
FEWEST, FEWEST_ENTITIES = 20, 4
"""Prompts that the model must answer, and held-out entities that can be swapped."""
FEWEST_CAUSED = 0.1
"""Cause of the interchange, below which features have nothing to cause."""
LR = 1e-2
TEMPERATURES = 1.0, 1e-4
"""Of the mask's sigmoid, at the first step and the last."""

DICTIONARY, NO_ERROR = "dictionary", "dictionary, no error term"
UNTRAINED, NEURONS, INTERCHANGE = "untrained dictionary", "raw neurons", "interchange"
COLUMNS = [DICTIONARY, UNTRAINED, NEURONS, INTERCHANGE, NO_ERROR]
JUDGED = COLUMNS[:4]

Mask = Float[Tensor, " n"]
Swap = Callable[[Tensor, Tensor, Mask], Tensor]
"""Activations of bases and of sources [pairs, d], and how far each feature is swapped -> what is
put in the bases' place [pairs, d]."""


def run(subject: Subject) -> SuiteResult:
    """Swap an attribute's features from one entity to another, and ask for it and for the others.

    Of the facts those count whose answer's first token the model gives. A base and a source ask for
    the same attribute of two entities, and are answered differently. For each attribute a mask over
    features is learned on training entities (MDBM: all weights of the model stay), so that with
    z + m (z_source - z) at the entity's last token the model gives the source's answer where the
    attribute is asked for, and the base's elsewhere. On held-out entities, with the mask at 0 or 1,
    the shares of these answers are *cause* and *isolation*, and their mean *disentanglement*. The
    error of the reconstruction stays in, but in the column that says otherwise, as in SAEBench.
    Beside them: features of an untrained dictionary and raw neurons, with masks learned in the same
    way, and the interchange of all of x. Intervals are 95%, from bootstrap draws of entities.

    Raises:
        NotMeaningful: there are no facts, the model knows too few or reads them elsewhere, it
            predicts nothing, or the dictionary is a transcoder.
    """
    _check(subject)
    known = _known(subject)
    held_out = _parts(subject, known)
    attributes, train, test = _pairs(subject, known, held_out)
    names, number = known.numbers("attribute")
    own = torch.stack([number[test[:, 0]] == attribute for attribute in attributes])
    swaps = _swaps(subject)
    hits: dict[str, list[np.ndarray]] = {name: [] for name in swaps}
    features: dict[str, list[int]] = {}
    with Task("ravel", len(swaps) * len(attributes), "masks") as task:
        for name, (swap, size) in swaps.items():
            for attribute, mine in zip(attributes, own, strict=True):
                about = number[train[:, 0]] == attribute
                mask = torch.ones(size)
                if name != INTERCHANGE:
                    mask = _learn(subject, known, train[about], train[~about], swap, size)
                if name == DICTIONARY:
                    features[names[attribute]] = mask.nonzero()[:, 0].tolist()
                hits[name].append(_hits(known, test, mine, swap, mask))
                task.advance(1)
            if name == INTERCHANGE:
                _check_read(subject, np.stack(hits[name]), own.numpy())
    stacked = {name: np.stack(of) for name, of in hits.items()}
    return _result(subject, known, test, own.numpy(), stacked, features)


def _check(subject: Subject) -> None:
    if not subject.facts:
        raise NotMeaningful(
            "there are no facts: name a file with --facts (`facts=read_facts(...)` in Python)"
        )
    if not subject.lm.is_causal:
        raise NotMeaningful("the model predicts no next token, so it answers nothing")
    if subject.dictionary.is_transcoder:
        raise NotMeaningful("a transcoder's features are not swapped where they are read")


def _check_read(
    subject: Subject,
    hits: Bool[np.ndarray, "attributes pairs"],
    own: Bool[np.ndarray, "attributes pairs"],
) -> None:
    """See that answers depend on what is swapped, before any mask is learned."""
    cause = float(cause_and_isolation(hits, own, np.ones((1, own.shape[1])))[0][0])
    if cause < FEWEST_CAUSED:
        raise NotMeaningful(
            f"swapping all of x where entities end changes {cause:.1%} of answers to the source's, "
            f"fewer than {FEWEST_CAUSED:.0%}: after `{subject.dictionary.hookpoint}` the model "
            "does not read there what it is asked for; a dictionary of an earlier layer may do"
        )


def _steps(subject: Subject) -> int:
    return subject.size("ravel_steps", 50, 100, 200)


def _limit(subject: Subject) -> int:
    """Return how many held-out pairs of each attribute are asked, at most."""
    return subject.size("ravel_pairs", 32, 64, 128)


def _cost(subject: Subject) -> int:
    if not subject.facts:
        return 0
    lengths = [subject.lm.encode(fact.prompt).shape[1] for fact in subject.facts]
    attributes = len({fact.attribute for fact in subject.facts})
    pairs = _steps(subject) * BATCH + attributes * _limit(subject)
    return 2 * sum(lengths) + len(COLUMNS) * attributes * pairs * max(lengths)


# --- pairs ------------------------------------------------------------------------------------


def _known(subject: Subject) -> Prompts:
    """Return what the model knows.

    Raises:
        NotMeaningful: that is too little.
    """
    known = Prompts.ask(subject.lm, subject.dictionary.hookpoint, subject.facts).known()
    attributes = len({fact.attribute for fact in known.facts})
    if len(known.facts) < FEWEST or attributes < 2:
        raise NotMeaningful(
            f"the model knows too few: it answers {len(known.facts)} of {len(subject.facts)} "
            f"prompts, for {attributes} attributes; {FEWEST} and 2 are needed"
        )
    return known


def _parts(subject: Subject, known: Prompts) -> Bool[Tensor, " n"]:
    """Return which facts are of held-out entities: as they say, else of some drawn at random."""
    names, number = known.numbers("entity")
    drawn = np.random.default_rng(subject.seed).permutation(len(names)) < HELD_OUT * len(names)
    return torch.tensor(
        [
            fact.split == "held_out" if fact.split else bool(drawn[entity])
            for fact, entity in zip(known.facts, number.tolist(), strict=True)
        ]
    )


def _pairs(
    subject: Subject, known: Prompts, held_out: Bool[Tensor, " n"]
) -> tuple[list[int], Int[Tensor, "train 2"], Int[Tensor, "test 2"]]:
    """Return the attributes that can be swapped in either part, and pairs (base, source) of them.

    Raises:
        NotMeaningful: fewer than two, or too few held-out entities.
    """
    (_, entity), (names, attribute) = known.numbers("entity"), known.numbers("attribute")
    differ = (entity[:, None] != entity) & (known.answer[:, None] != known.answer)
    fitting = differ & (attribute[:, None] == attribute)
    generator = torch.Generator().manual_seed(subject.seed)
    parts = []
    for part in (~held_out, held_out):
        pairs = (fitting & part[:, None] & part).nonzero()
        parts.append(pairs[torch.randperm(len(pairs), generator=generator)])
    there = [set(attribute[pairs[:, 0]].tolist()) for pairs in parts]
    both = sorted(there[0] & there[1])
    train, test = (p[torch.isin(attribute[p[:, 0]], torch.tensor(both))] for p in parts)
    entities = len(entity[test[:, 0]].unique())
    if len(both) < 2 or entities < FEWEST_ENTITIES:
        raise NotMeaningful(
            f"the model knows too few: {len(both)} of {len(names)} attributes have answers that "
            f"differ in both parts, of {entities} held-out entities; 2 and {FEWEST_ENTITIES} are "
            "needed"
        )
    some = [test[attribute[test[:, 0]] == one][: _limit(subject)] for one in both]
    return both, train, torch.cat(some)


# --- swaps ------------------------------------------------------------------------------------


def _swaps(subject: Subject) -> dict[str, tuple[Swap, int]]:
    """Return how each column swaps, and the size of its mask; the interchange comes first."""
    d, coder = subject.dictionary.d_in, subject.dictionary.coder
    return {
        INTERCHANGE: (_coordinates, d),
        DICTIONARY: (_features(coder), coder.width),
        UNTRAINED: (_features(subject.untrained), subject.untrained.width),
        NEURONS: (_coordinates, d),
        NO_ERROR: (_without_error(coder), coder.width),
    }


def _coordinates(base: Tensor, source: Tensor, mask: Mask) -> Tensor:
    return base + mask * (source - base)


def _features(coder: SparseCoder) -> Swap:
    def swap(base: Tensor, source: Tensor, mask: Mask) -> Tensor:
        with torch.no_grad():
            change = coder.encode(source) - coder.encode(base)
        return base + (mask * change) @ coder.W_dec.detach()

    return swap


def _without_error(coder: SparseCoder) -> Swap:
    kept = _features(coder)

    def swap(base: Tensor, source: Tensor, mask: Mask) -> Tensor:
        with torch.no_grad():
            error = base - coder(base)
        return kept(base, source, mask) - error

    return swap


def _learn(
    subject: Subject,
    known: Prompts,
    own: Int[Tensor, "own 2"],
    others: Int[Tensor, "others 2"],
    swap: Swap,
    size: int,
) -> Mask:
    """Return the mask, 0 or 1, learned to change the answers to its own pairs and no others'.

    Half of a batch is of either kind.
    """
    generator = torch.Generator().manual_seed(subject.seed)
    scores = torch.zeros(size, device=known.x.device, requires_grad=True)
    optimiser = torch.optim.Adam([scores], lr=LR)
    half = BATCH // 2
    for temperature in np.geomspace(*TEMPERATURES, _steps(subject)).tolist():
        drawn = [of[torch.randint(len(of), (half,), generator=generator)] for of in (own, others)]
        base, source = torch.cat(drawn).unbind(1)
        put = swap(known.x[base], known.x[source], torch.sigmoid(scores / temperature))
        wanted = torch.cat([source[:half], base[half:]])
        logits = known.logits(base, put)
        loss = F.cross_entropy(logits, known.answer[wanted].to(logits.device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (scores.detach() > 0).float()


def _hits(
    known: Prompts,
    pairs: Int[Tensor, "pairs 2"],
    own: Bool[Tensor, " pairs"],
    swap: Swap,
    mask: Mask,
) -> Bool[np.ndarray, " pairs"]:
    """Return which answers are as they should be: the sources' to own pairs, else the bases'."""
    found = []
    for some, mine in zip(pairs.split(BATCH), own.split(BATCH), strict=True):
        base, source = some.unbind(1)
        put = swap(known.x[base], known.x[source], mask.to(known.x))
        answer = known.logits(base, put).argmax(-1).cpu()
        found.append(answer == known.answer[torch.where(mine, source, base)])
    return torch.cat(found).numpy()


# --- the result -------------------------------------------------------------------------------

_SAID = {
    "cause": "answers that become the source's, where the attribute swapped is asked for",
    "isolation": "answers that stay the base's, where another attribute is asked for",
    "disentanglement": "mean of cause and isolation; 0.5 for swapping nothing, or everything",
}


def _figures(
    hits: Bool[np.ndarray, "attributes pairs"],
    own: Bool[np.ndarray, "attributes pairs"],
    weights: Float[np.ndarray, "draws pairs"],
) -> dict[str, Float[np.ndarray, " draws"]]:
    cause, isolation = cause_and_isolation(hits, own, weights)
    return dict(zip(_SAID, (cause, isolation, (cause + isolation) / 2), strict=True))


def _result(
    subject: Subject,
    known: Prompts,
    test: Int[Tensor, "pairs 2"],
    own: Bool[np.ndarray, "attributes pairs"],
    hits: dict[str, np.ndarray],
    features: dict[str, list[int]],
) -> SuiteResult:
    entities, of = np.unique(known.numbers("entity")[1][test[:, 0]].numpy(), return_inverse=True)
    weights = bootstrap_weights(len(entities), subject.draws, subject.seed)[:, of]
    points = {name: _figures(hits[name], own, np.ones((1, len(of)))) for name in COLUMNS}
    samples = {name: _figures(hits[name], own, weights) for name in COLUMNS}
    rows = []
    for figure, said in _SAID.items():
        rows.append(MetricRow(figure, "share", "higher", said, cells(points, samples, figure)))
    judgements = judge(
        rows[-1].name, {name: samples[name][rows[-1].name] for name in JUDGED}, better="higher"
    )
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [Table(COLUMNS, rows, "held-out entities")],
        verdict=f"Of {len(features)} attributes of {len(entities)} held-out entities: "
        f"{told(judgements)}.",
        judgements=judgements,
        context={
            "facts": len(subject.facts),
            "answered": len(known.facts),
            "attributes": list(features),
            "held_out_entities": len(entities),
            "held_out_pairs": len(test),
            "answer": "by its first token, the likeliest",
            "error_term": f"kept, but in the column `{NO_ERROR}`",
            "mask": f"Adam, learning rate {LR}, {_steps(subject)} steps of {BATCH} pairs, "
            f"temperature {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}; 0 or 1 where it is measured",
            "interval": "95%, bootstrap over entities",
        },
        series={"features": features},
    )


SUITE = Suite("ravel", "Swapped attributes (RAVEL)", "full", run, _cost)
