"""What steering does on the embedded model, where the parser knows: at equal side effects.

    python benchmarks/steering.py [--quick] [--json FILE] [--docs docs/results.md]

The model continues headers of held-out functions, and Python's parser says in which of the texts
a construct begins: a docstring, a loop, a class. Every method is given the strength at which it
changes the predictions on neutral text by the same KL divergence, or half that strength. Which of
several candidates a method takes, and which of the two strengths, is chosen for each construct on
one half of the prompts; all figures are of the other half, of other files.

- best feature: two candidates by attribution, the derivative of the log-probability of the
  tokens that open the construct along a feature's direction, on training text; one by the table of
  concepts, the feature whose firing goes best with the construct (what a feature fires on and what
  it brings about are two things; marked *);
- random feature: three that fire, drawn at random; random direction: three;
- difference of means: of rows of text with and without the construct, and of the places just
  before it and all places;
- prompting: a function with the construct in front of the prompt. It has no strength; its side
  effects are what they are.

Text is drawn with the same seeds for all. Intervals of 95% are over prompts.
"""

import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from claims import Claim, parser, report, write_between

from monosemy import LM, Dictionary, open_corpus, sweep
from monosemy.corpus import label_tokens, syntax_spans
from monosemy.evaluation.dose import (
    Writing,
    dose_response,
    mean_over,
    prompted,
    pushing,
    raising,
    strength_at,
)
from monosemy.evaluation.neutral import Neutral
from monosemy.evaluation.openings import openings
from monosemy.evaluation.wanted import Concept, concepts_in
from monosemy.index import build_index
from monosemy.interpret import label_index, score_features
from monosemy.interpret.describe import firings_of
from monosemy.metrics import bootstrap_weights

PREFIXES = {
    "docstring": 'def load(path):\n    """Return what is in the file."""\n'
    "    return open(path)\n\n\n",
    "loop_for": "def show(items):\n    for item in items:\n        print(item)\n\n\n",
    "while": "def wait(queue):\n    while queue.busy:\n        queue.step()\n\n\n",
    "try": "def load(path):\n    try:\n        return open(path)\n    except OSError:\n"
    "        return None\n\n\n",
    "class": "class Point:\n    x = 0\n    y = 0\n\n\n",
    "comparison": "def larger(a, b):\n    if a > b:\n        return a\n    return b\n\n\n",
}
CONCEPTS = tuple(PREFIXES)
LAYERS = ("layers.2", "layers.0", "layers.1", "layers.3", "layers.4")  # all methods: at the first
WIDTH, K, DRAWN, BY_EFFECT = 2048, 32, 3, 2
PLACES = 100  # at which the slope is taken, of each construct
BUDGET = 0.2
METHODS = ("as it is", "best feature", "random feature", "random direction", "difference of means")
PROMPTED = "prompting"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    train: int
    index: int
    batches: int
    prompts: int
    samples: int
    tokens: int
    neutral: int
    layers: tuple[str, ...]


FULL = Size(600_000, 50_000, 8, 40, 2, 40, 2048, LAYERS)
QUICK = Size(60_000, 20_000, 2, 8, 1, 24, 512, LAYERS[:1])


@dataclass(frozen=True)
class Setting:
    """The model, its prompts and neutral text."""

    lm: LM
    choosing: list[str]
    reporting: list[str]
    calibration: Neutral
    neutral: Neutral
    size: Size

    def write(self, family, strength):
        """Return in which continuations of the prompts to choose on each construct begins."""
        with self.lm.edit(family.at(strength)):
            samples = Writing(self.size.tokens).write(self.lm, self.choosing)
        return concepts_in(samples, CONCEPTS).mean(0)


def main():
    args = arguments().parse_args()
    torch.set_num_threads(args.threads)
    size = QUICK if args.quick else FULL
    lm, corpus = LM("builtin:stdlib", device="cpu"), open_corpus("builtin:stdlib")
    given = [Dictionary.from_pretrained(path) for path in args.dictionaries]
    if not given:
        runs = sweep(lm, corpus, size.layers, width=WIDTH, k=K, tokens=size.train)
        given = [run.dictionary for run in runs]
    dictionaries = {dictionary.hookpoint: dictionary for dictionary in given}
    main = given[0].hookpoint
    setting = make_setting(lm, corpus, given[0], size)
    print(f"{len(setting.choosing)} prompts to choose on, {len(setting.reporting)} to report on")
    slopes, means = look_at_training_text(lm, corpus, dictionaries, size)
    named = {layer: named_features(d, lm, corpus, size) for layer, d in dictionaries.items()}
    found = {}
    for layer, dictionary in dictionaries.items():
        families = candidates(dictionary, slopes[layer], named[layer], means[layer], layer == main)
        found[layer] = measure(setting, families)
    main_table = found[main] | {
        "as it is": as_it_is(setting, main, given[0].d_in),
        PROMPTED: prompting(setting),
    }
    text = "\n".join(
        [
            *share_lines(main_table),
            "",
            *cost_lines(main_table),
            "",
            *([*layer_lines(found), ""] if len(found) > 1 else ()),
            *difference_lines(main_table),
        ]
    )
    print(text)
    if args.docs:
        write_between(args.docs, "steering.py", text)
    value = difference(main_table, "best feature", "random direction")
    report(
        [
            Claim("feature_over_random", value.value, 0.0, "share", True),
            Claim("feature_over_random_low", value.low, 0.0, "share", True),
        ],
        args.json,
    )


def arguments():
    made = parser(__doc__, docs=True)
    made.add_argument(
        "--dictionaries",
        type=Path,
        nargs="*",
        default=[],
        help="trained ones at several hook points, instead of training some",
    )
    return made


def make_setting(lm, corpus, dictionary, size):
    """Draw prompts, and text to measure side effects on; no file is on both sides."""
    found = openings(corpus, 2 * size.prompts + 2, per_document=4)
    choosing = found[: size.prompts]
    own = {document.id for document in choosing}
    reporting = [d for d in found[size.prompts :] if d.id not in own][: size.prompts]
    batches = iter(dictionary.provenance.stream(lm, corpus, "held_out"))
    return Setting(
        lm,
        [document.text for document in choosing],
        [document.text for document in reporting],
        Neutral(lm, batches, tokens=min(size.neutral, 1024)),
        Neutral(lm, batches, tokens=size.neutral),
        size,
    )


@functools.cache
def openings_of(document):
    """Return the first character of every stretch of each construct."""
    spans = syntax_spans(document.text)
    return spans and {name: [(a, a + 1) for a, _ in spans[name]] for name in CONCEPTS}


def look_at_training_text(lm, corpus, dictionaries, size):
    """Return for each layer slopes of log-probabilities, and differences of means, by construct.

    A slope is the derivative, along activations at all places, of the log-probability of the token
    that opens a construct; the mean over places where one begins.
    """
    layers, d = list(dictionaries), next(iter(dictionaries.values())).d_in
    provenance = dictionaries[layers[0]].provenance
    stream = provenance.stream(lm, corpus, "train")
    slope = {layer: torch.zeros(len(CONCEPTS), d) for layer in layers}
    sums = {layer: torch.zeros(3, len(CONCEPTS), d) for layer in layers}
    whole = {layer: torch.zeros(d) for layer in layers}
    begun, counts, seen = torch.zeros(len(CONCEPTS)), torch.zeros(3, len(CONCEPTS)), 0
    for _, batch in zip(range(size.batches), stream, strict=False):
        held, target = pass_holding(lm, batch, layers)
        opens, _ = label_tokens(batch, openings_of, CONCEPTS)
        before = opens[:, :, 1:] & batch.next_tokens()[1][:, :-1]
        inside = opens.any(-1)[..., None] & batch.counted
        outside = ~opens.any(-1)[..., None] & batch.counted
        seen += int(batch.counted.sum())
        for layer in layers:
            whole[layer] += held[layer].detach()[batch.counted].sum(0)
        for number in range(len(CONCEPTS)):
            kinds = (before[number], inside[number], outside[number])
            counts[:, number] += torch.tensor([int(kind.sum()) for kind in kinds])
            for layer in layers:
                x = held[layer].detach()
                rows = (x[:, :-1][kinds[0]], x[kinds[1]], x[kinds[2]])
                sums[layer][:, number] += torch.stack([row.sum(0) for row in rows])
            if before[number].any() and begun[number] < PLACES:
                begun[number] += before[number].sum()
                its = [held[layer] for layer in layers]
                slopes = torch.autograd.grad(target[before[number]].sum(), its, retain_graph=True)
                for layer, gradient in zip(layers, slopes, strict=True):
                    slope[layer][number] += gradient[batch.counted].sum(0)
    print("places where each begins:", dict(zip(CONCEPTS, begun.int().tolist(), strict=True)))
    means = {}
    for layer in layers:
        before, inside, outside = sums[layer] / counts.clamp_min(1)[..., None]
        means[layer] = inside - outside, before - whole[layer] / seen
    return {layer: slope[layer] / begun.clamp_min(1)[:, None] for layer in layers}, means


def pass_holding(lm, batch, layers):
    """Return activations that gradients reach, and the log-probability of each next token."""
    held = {}

    def holding(layer):
        def hold(x, tokens):
            held[layer] = x if x.requires_grad else x.detach().requires_grad_()
            return held[layer]

        return hold

    with lm.edit({layer: holding(layer) for layer in layers}):
        logits = lm.logits(batch.tokens, attention_mask=batch.attention_mask, gradients=True)
    log_p = logits[:, :-1].log_softmax(-1)
    return held, log_p.gather(-1, batch.tokens[:, 1:, None])[..., 0]


def named_features(dictionary, lm, corpus, size):
    """Return of each construct the feature that the table of concepts gives it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index = build_index(dictionary, lm, corpus, path, part="train", tokens=size.index)
        table = score_features(firings_of(index), label_index(index))
    return [int(table.features[table.names.index(concept), 0]) for concept in CONCEPTS]


def candidates(dictionary, slope, named, means, all_methods):
    """Return of each method its candidates, by construct."""
    layer, alive = dictionary.hookpoint, dictionary.strength > 0
    effect = (slope @ dictionary.coder.W_dec.T).masked_fill(~alive, -torch.inf)
    best = effect.topk(BY_EFFECT, 1).indices.tolist()
    made = {}
    features = [
        list(dict.fromkeys([*by_effect, by_name]))
        for by_effect, by_name in zip(best, named, strict=True)
    ]
    for feature in {f for some in features for f in some}:
        if alive[feature]:
            family = raising(dictionary, feature)
            by_effect = any(feature in some for some in best)
            made[feature] = family if by_effect else replace(family, name=f"{family.name}*")
    methods = {"best feature": [[made[f] for f in some if f in made] for some in features]}
    if not all_methods:
        return methods
    generator = torch.Generator().manual_seed(0)
    drawn = alive.nonzero()[:, 0]
    drawn = drawn[torch.randperm(len(drawn), generator=generator)[:DRAWN]].tolist()
    random = [raising(dictionary, feature) for feature in drawn]
    vectors = torch.randn(DRAWN, dictionary.d_in, generator=generator)
    directions = [pushing("direction", layer, v / v.norm()) for v in vectors]
    methods["random feature"] = [random] * len(CONCEPTS)
    methods["random direction"] = [directions] * len(CONCEPTS)
    methods["difference of means"] = [
        [
            pushing(name, layer, vectors[number] / vectors[number].norm().clamp_min(1e-9))
            for name, vectors in zip(("of rows", "of places before"), means, strict=True)
        ]
        for number in range(len(CONCEPTS))
    ]
    return methods


def measure(setting, methods):
    """Choose each method's candidate and strength for each construct, and measure it."""
    written = {}
    found = {}
    for method, by_concept in methods.items():
        found[method] = []
        for number, (concept, families) in enumerate(zip(CONCEPTS, by_concept, strict=True)):
            options = []
            for family in families:
                if id(family) not in written:
                    full = strength_at(family, setting.calibration, BUDGET)
                    written[id(family)] = [(s, setting.write(family, s)) for s in (full, full / 2)]
                options += [(shares[number], family, s) for s, shares in written[id(family)]]
            _, family, strength = max(options, key=lambda option: option[0])
            curve = dose_response(
                setting.lm,
                family,
                Concept(concept),
                setting.reporting,
                setting.neutral,
                strengths=[strength],
                writing=writing(setting),
            )
            found[method].append((family.name, curve.doses[0]))
            said = f"{curve.doses[0].wanted.value:.2f}, KL {curve.doses[0].kl.value:.3f}"
            print(f"{concept:12}{method:22}{family.hookpoint} {family.name}: {said}", flush=True)
    return found


def writing(setting):
    return Writing(setting.size.tokens, samples=setting.size.samples, seed=10_000)


def as_it_is(setting, layer, d):
    nothing = pushing("nothing", layer, torch.zeros(d))
    doses = []
    for concept in CONCEPTS:
        curve = dose_response(
            setting.lm,
            nothing,
            Concept(concept),
            setting.reporting,
            setting.neutral,
            strengths=[0.0],
            writing=writing(setting),
        )
        doses.append(("", curve.doses[0]))
    return doses


def prompting(setting):
    return [
        (
            "",
            prompted(
                setting.lm,
                PREFIXES[concept],
                Concept(concept),
                setting.reporting,
                setting.neutral,
                writing=writing(setting),
            ),
        )
        for concept in CONCEPTS
    ]


def each_prompt(doses):
    """Return a method's effect for each prompt, the mean over constructs."""
    return np.mean([dose.each for _, dose in doses], 0)


def over_prompts(each):
    return mean_over(each, bootstrap_weights(len(each)))


def difference(table, one, other):
    return over_prompts(each_prompt(table[one]) - each_prompt(table[other]))


def columns(table):
    return [name for name in (*METHODS, PROMPTED) if name in table]


def shown(value):
    return f"{value.value:.0%} ({value.low:.0%} to {value.high:.0%})"


def share_lines(table):
    """Yield a table of shares of texts with each construct."""
    names = columns(table)
    yield "| share of texts with | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for number, concept in enumerate(CONCEPTS):
        cells = [shown(table[name][number][1].wanted) for name in names]
        feature = table["best feature"][number][0]
        yield f"| {concept} ({feature}) | " + " | ".join(cells) + " |"
    cells = [shown(over_prompts(each_prompt(table[name]))) for name in names]
    yield "| **mean** | " + " | ".join(cells) + " |"


def cost_lines(table):
    """Yield a table of what methods cost, the mean over constructs."""
    said = {
        "KL, nats": ("kl", ".2f"),
        "CE rise, nats": ("ce", ".2f"),
        "top-1 changed": ("top1", ".0%"),
        "perplexity of texts": ("perplexity", ".1f"),
        "distinct-2 of texts": ("distinct", ".0%"),
        "characters that do not parse": ("unparsed", ".0%"),
    }
    yield "| side effects | " + " | ".join(columns(table)) + " |"
    yield "|---" * (len(columns(table)) + 1) + "|"
    for name, (figure, form) in said.items():
        means = [
            np.mean([getattr(dose, figure).value for _, dose in table[method]])
            for method in columns(table)
        ]
        yield f"| {name} | " + " | ".join(f"{mean:{form}}" for mean in means) + " |"


def layer_lines(found):
    """Yield a table of the best feature of each layer."""
    yield "| best feature at | " + " | ".join(CONCEPTS) + " | mean |"
    yield "|---" * (len(CONCEPTS) + 2) + "|"
    for layer, methods in found.items():
        doses = methods["best feature"]
        cells = [shown(dose.wanted) for _, dose in doses]
        mean = shown(over_prompts(each_prompt(doses)))
        yield f"| {layer} | " + " | ".join(cells) + f" | {mean} |"


def difference_lines(table):
    """Yield how much the best feature does more than each other method, over all constructs."""
    for other in columns(table):
        if other != "best feature":
            value = difference(table, "best feature", other)
            yield (
                f"- best feature over {other}: {100 * value.value:+.0f} points "
                f"({100 * value.low:+.0f} to {100 * value.high:+.0f})"
            )


if __name__ == "__main__":
    main()
