"""What interventions cost on the embedded model, and how far their estimates are right.

    python benchmarks/intervention.py [--quick] [--json FILE]

Six dictionaries of 2,048 features (`embed` and the five layers) are trained on one pass over the
text. Then, for minimal pairs of every built-in set:

- `attribution_seconds`: integrated gradients (10 steps) of all features and error terms of the six
  hook points, 100 pairs; the slowest set counts. Reading the pairs is in it, training is not.
- `attribution_vs_exact`: correlation of those effects with exact patching on the 200 strongest
  nodes (summed over positions, mean over pairs); the mean over the sets. Beside it the correlation
  of ranks, that of first-order effects, and that of effects at single positions.
"""

import time

import torch
from claims import Claim, parser, report

from monosemy import LM, open_corpus
from monosemy.corpus.minimal_pairs import MINIMAL_PAIRS, minimal_pairs
from monosemy.intervene import Patching, agreement
from monosemy.training import sweep

HOOKPOINTS = ["embed", *(f"layers.{i}" for i in range(5))]


def main():
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    lm = LM("builtin:stdlib", device="cpu")
    dictionaries = train_dictionaries(lm, 65_536 if args.quick else 524_288)
    # Further claims go in here, each by a function of its own: `edit_overhead`,
    # `capture_overhead`, `circuits_faithful`.
    claims = attribution(lm, dictionaries, args.quick)
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


if __name__ == "__main__":
    main()
