"""What a sweep costs, over as many single runs: language model included.

    python benchmarks/sweep_cost.py [--quick] [--json FILE]

Eight BatchTopK coders (four values of k, two seeds) on the embedded model, trained as a sweep and
one after another; seconds of everything `sweep` and `train` do. Quickly, only every fourth single
run is made, and counts four times. Beside its one pass over the text, a sweep has the model read a
few rows for the fingerprint of each dictionary.

It also measures what stacking the coders' encoder products into one would save.
"""

import itertools
import statistics
import time

import torch
from claims import Claim, parser, report

from monosemy import LM, open_corpus
from monosemy.coders.select import Scorer
from monosemy.training import sweep, train

KS, SEEDS = [16, 32, 64, 128], [0, 1]


def main():
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    lm, corpus = LM("builtin:stdlib", device="cpu"), open_corpus("builtin:stdlib")
    settings = {"width": 2048, "tokens": 32_768 if args.quick else 524_288, "pool": 16_384}
    passes = count_passes(lm)

    train(lm, corpus, **{**settings, "tokens": 2048})  # what is loaded and cached once
    alone = list(itertools.product(KS, SEEDS))[:: 4 if args.quick else 1]
    passes.clear()
    began = time.perf_counter()
    for k, seed in alone:
        train(lm, corpus, k=k, seed=seed, **settings)
    one = (time.perf_counter() - began) / len(alone)
    one_passes = len(passes) / len(alone)
    singles = one * len(KS) * len(SEEDS)

    passes.clear()
    began = time.perf_counter()
    sweep(lm, corpus, grid={"k": KS, "seed": SEEDS}, **settings)
    swept, sweep_passes = time.perf_counter() - began, len(passes)

    print(f"{'':32}{'seconds':>10}{'model batches':>15}")
    print(f"{'one run':32}{one:10.1f}{one_passes:15.0f}")
    print(f"{'eight runs, one after another':32}{singles:10.1f}{8 * one_passes:15.0f}")
    print(f"{'a sweep of eight':32}{swept:10.1f}{sweep_passes:15}")
    alone, stacked = products()
    print(f"encoder products of eight, one by one {alone * 1e3:.1f} ms, as one {stacked * 1e3:.1f}")
    report([Claim("sweep_over_singles", swept / singles, 0.6, "x", False)], args.json)


def products(width=2048, d=256, batch=2048, rounds=30):
    """Return the seconds of eight products, one after another and as one, outputs kept."""
    dtype = Scorer(torch.device("cpu")).dtype
    x, W = torch.randn(batch, d).to(dtype), torch.randn(8, width, d).to(dtype)
    one, all_of_them = (torch.empty(batch, n * width, dtype=dtype) for n in (1, 8))
    times = {"alone": [], "stacked": []}
    for _ in range(rounds):
        began = time.perf_counter()
        for weights in W:
            torch.mm(x, weights.T, out=one)
        times["alone"].append(time.perf_counter() - began)
        began = time.perf_counter()
        torch.mm(x, W.view(-1, d).T, out=all_of_them)
        times["stacked"].append(time.perf_counter() - began)
    return [statistics.median(t) for t in times.values()]


def count_passes(lm):
    """Return a list that grows by one with each forward pass of the model."""
    passes = []
    lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


if __name__ == "__main__":
    main()
