"""What interventions cost on the embedded model, and how far their estimates are right.

    python benchmarks/intervention.py [--quick] [--json FILE] [--docs docs/results.md]

Six dictionaries of 2,048 features (`embed` and the five layers) are trained on one pass over the
text. Then, for minimal pairs of every built-in set:

- `attribution_seconds`: integrated gradients (10 steps) of all features and error terms of the six
  hook points, 100 pairs; the slowest set counts. Reading the pairs is in it, training is not.
- `attribution_vs_exact`: correlation of those effects with exact patching on the 200 strongest
  nodes (summed over positions, mean over pairs); the mean over the sets. Beside it the correlation
  of ranks, that of first-order effects, and that of effects at single positions.

- `circuits_faithful`: on how many sets the strongest nodes, as many as 5% of the live features,
  keep 0.8 to 1.2 of the logit difference when all other features and error terms of the six hook
  points are ablated to their mean. Found on every other pair, tried on the rest; in the table
  beside as many channels of the activations at the same hook points.

And for the embedded model and one with random weights of the shape of GPT-2 small, in turns:

- `edit_overhead`: what clamping a feature adds to the time of writing 48 tokens; the larger counts.
- `capture_overhead`: what keeping activations and an edit that changes nothing add to a pass over
  eight rows of 128 tokens; the larger counts.
"""

import time
from functools import partial

import torch
from claims import Claim, parser, report, write_between
from transformers import GPT2Config, GPT2LMHeadModel

from monosemy import LM, open_corpus
from monosemy.coders import Clamp, Dictionary, Provenance, Scale, make_coder
from monosemy.corpus.minimal_pairs import MINIMAL_PAIRS, minimal_pairs
from monosemy.intervene import ERROR, FeatureEdit, Node, Patching, agreement, carried
from monosemy.lm.load import load_tokenizer
from monosemy.training import sweep

HOOKPOINTS = ["embed", *(f"layers.{i}" for i in range(5))]


def main():
    args = parser(__doc__, docs=True).parse_args()
    torch.set_num_threads(args.threads)
    lm = LM("builtin:stdlib", device="cpu")
    dictionaries = train_dictionaries(lm, 65_536 if args.quick else 524_288)
    claims = attribution(lm, dictionaries, args.quick)
    more, table = circuits(lm, dictionaries, args.quick)
    claims += more
    if args.docs:
        write_between(args.docs, "intervention.py", table)
    claims += overheads(lm, dictionaries[3], args.quick)
    report(claims, args.json)


def train_dictionaries(lm, tokens):
    """Return a dictionary of 2,048 features at each of six hook points."""
    settings = {"width": 2048, "k": 32, "tokens": tokens, "pool": 16_384}
    runs = sweep(lm, open_corpus("builtin:stdlib"), HOOKPOINTS, **settings)
    return [run.dictionary for run in runs]


def attribution(lm, dictionaries, quick):
    """Return the claims `attribution_seconds` and `attribution_vs_exact`."""
    count, top = (20, 40) if quick else (100, 200)
    slowest, correlations = 0.0, []
    print(
        f"\n{'pairs':10}{'seconds':>9}{'first':>8}{'nodes':>8}{'IG':>7}{'ranks':>7}{'1st':>7}{'placed':>8}"
    )
    for name in list(MINIMAL_PAIRS)[: 2 if quick else None]:
        pairs = minimal_pairs(name)[:count]
        Patching(lm, dictionaries, pairs[:2])  # what is loaded and cached once
        began = time.perf_counter()
        patching = Patching(lm, dictionaries, pairs)
        effects = patching.attribute()
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        first = patching.attribute("first-order").nodes()
        first_seconds = time.perf_counter() - began
        nodes, placed = effects.nodes(), effects.nodes(positions=True)
        exact = patching.exact(nodes.strongest(top).nodes)
        found = agreement(exact, nodes, top)
        plain = agreement(exact, first, top)
        exact_placed = patching.exact(placed.strongest(top).nodes)
        at_places = agreement(exact_placed, placed, top)
        slowest = max(slowest, seconds)
        correlations.append(found.correlation)
        print(
            f"{name:10}{seconds:9.1f}{first_seconds:8.1f}{len(nodes):8,}{found.correlation:7.3f}"
            f"{found.ranks:7.3f}{plain.correlation:7.3f}{at_places.correlation:8.3f}"
        )
    return [
        Claim("attribution_seconds", slowest, 60, "s", False),
        Claim("attribution_vs_exact", sum(correlations) / len(correlations), 0.9, "", True),
    ]


def circuits(lm, dictionaries, quick):
    """Return the claim `circuits_faithful`, and a table in Markdown."""
    live = sum(int((dictionary.strength > 0).sum()) for dictionary in dictionaries)
    sizes = [10, 25, 50, 100, 200, 400, round(0.05 * live)]
    columns = ["faithfulness (completeness)", "nodes", *map(str, sizes), "error terms alone"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    faithful = 0
    for name in list(MINIMAL_PAIRS)[: 2 if quick else None]:
        pairs = minimal_pairs(name)[: 40 if quick else None]
        for kind, sites in (("features", dictionaries), ("neurons", HOOKPOINTS)):
            effects = Patching(lm, sites, pairs[::2]).attribute().nodes()
            ranked = effects.strongest(len(effects)).nodes
            tried = [ranked[:size] for size in sizes]
            if kind == "features":
                tried.append([Node(site, ERROR) for site in HOOKPOINTS])
            mean = Patching(lm, sites, pairs[1::2], donor="mean")
            found = carried(mean, tried).circuits
            cells = [f"{one.faithfulness:.2f} ({one.completeness:.2f})" for one in found]
            cells += [""] * (len(sizes) + 1 - len(cells))
            lines.append(f"| `{name}` | {kind} | {' | '.join(cells)} |")
            print(lines[-1])
            enough = 0.8 <= found[len(sizes) - 1].faithfulness <= 1.2
            faithful += kind == "features" and enough
    claim = Claim("circuits_faithful", faithful, 1 if quick else 3, "sets of pairs", True)
    return [claim], "\n".join(lines)


def overheads(lm, dictionary, quick):
    """Return the claims `edit_overhead` and `capture_overhead`."""
    rounds = 3 if quick else 9
    models = {"the embedded model": (lm, dictionary), "a GPT-2 small": gpt2_small()}
    edited = {name: edit_overhead(*pair, rounds) for name, pair in models.items()}
    captured = {name: capture_overhead(*pair, rounds) for name, pair in models.items()}
    for name in models:
        print(f"{name}: edited {edited[name]:+.1%}, kept under a zero edit {captured[name]:+.1%}")
    return [
        Claim("edit_overhead", max(edited.values()), 0.15, "share", False),
        Claim("capture_overhead", max(captured.values()), 0.10, "share", False),
    ]


def edit_overhead(lm, dictionary, rounds):
    """Return what clamping a feature adds to the time of writing."""
    edit = FeatureEdit(dictionary, [Clamp({0: 0.5})])
    write = partial(lm.write, "def read(", max_new_tokens=48)
    return ratio(write, partial(under, lm, edit, write), rounds) - 1


def capture_overhead(lm, dictionary, rounds):
    """Return what keeping activations under an edit that changes nothing adds to a pass."""
    tokens = torch.randint(100, 1000, (8, 128), generator=torch.Generator().manual_seed(0))
    zero, read = FeatureEdit(dictionary, [Scale({0: 1.0})]), partial(lm.logits, tokens)
    return ratio(read, partial(under, lm, zero, read, dictionary.hookpoint), rounds) - 1


def under(lm, edit, work, captured=None):
    """Do some work under an edit, activations kept at a hook point."""
    kept = []

    def keep(x, tokens):
        kept.append(x)
        return x

    with lm.edit({captured: keep} if captured else {}, edit):
        return work()


def seconds(work):
    """Return how long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(plain, other, rounds):
    """Return the least time of one over that of the other, taken in turns: noise only adds."""
    times = []
    for _ in range(rounds + 1):
        times.append([seconds(plain), seconds(other)])
    a, b = (min(column) for column in zip(*times[1:], strict=True))
    return b / a


def gpt2_small():
    """Return a model of GPT-2 small's shape with random weights, and a dictionary for it."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer("builtin:stdlib")
    lm = LM(GPT2LMHeadModel(GPT2Config()).eval(), tokenizer, device="cpu")
    coder = make_coder("batch_topk", 768, 8192, k=32, seed=0)
    coder.threshold.fill_(3.5)
    provenance = Provenance(
        model=lm.name, hookpoint="layers.6", context=128, corpus={}, training={}
    )
    return lm, Dictionary(coder, provenance, torch.ones(8192), torch.zeros(768), 1.0, None)


if __name__ == "__main__":
    main()
