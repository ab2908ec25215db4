"""The feature index: what it costs, against the bare model and against SAEDashboard; and labels.

    benchmarks/setup_dashboard.sh
    python benchmarks/index.py [--quick] [--json FILE] [--docs docs/results.md]

1. Building the index of a dictionary on the embedded model, against nothing but the truncated model
   pass and the encoder product on the same rows.
2. Exemplars and histograms of all features of a dictionary 16,384 wide over two million tokens,
   against SAEDashboard with the same model, weights and dictionary. It is given a share of the
   features and of the tokens; its time is extrapolated in proportion, and it is said from what.
   Ours is the whole build, the model's pass included.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from claims import Claim, parser, report
from safetensors.torch import save_file

from monosemy import LM, open_corpus, train
from monosemy.activations import counted_activations
from monosemy.index import build_index

HERE = Path(__file__).parent
DASHBOARD = HERE / ".dashboard/bin/python"
HOOKPOINT = "layers.2"
WIDTH, TOKENS, ROWS = 16_384, 2_000_000, 512


def main():
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    lm, corpus = LM("builtin:stdlib", device="cpu"), open_corpus("builtin:stdlib")
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        claims += against_bare(lm, corpus, Path(folder), quick=args.quick)
        if DASHBOARD.exists():
            claims += against_dashboard(lm, corpus, Path(folder), args)
    report(claims, args.json)


def against_bare(lm, corpus, folder, quick):
    """Time the build, and what no build can do without, on the same rows."""
    dictionary = train(lm, corpus, HOOKPOINT, width=4096, tokens=100_000).dictionary
    tokens = 60_000 if quick else 200_000
    bare = [bare_pass(lm, corpus, dictionary, tokens)]
    began = time.perf_counter()
    index = build_index(dictionary, lm, corpus, folder / "index", tokens=tokens)
    seconds = time.perf_counter() - began
    bare.append(bare_pass(lm, corpus, dictionary, tokens))
    rate = index.n_tokens / seconds
    print(
        f"build {seconds:.1f} s ({rate:,.0f} tokens/s), bare {min(bare):.1f} to {max(bare):.1f} s"
    )
    print(f"{index}, L0 {len(index.values) / index.n_tokens:.1f}")
    return [Claim("build_over_bare", seconds / (sum(bare) / 2), 1.3, "ratio", False)]


@torch.no_grad()
def bare_pass(lm, corpus, dictionary, tokens):
    """Return seconds of the truncated model pass and the encoder product."""
    stream = dictionary.provenance.stream(lm, corpus, "held_out", shuffled_rows=False)
    began, seen = time.perf_counter(), 0
    for batch in stream:
        x = counted_activations(lm, batch, [HOOKPOINT])[HOOKPOINT]
        x @ dictionary.coder.W_enc.T
        seen += len(x)
        if seen >= tokens:
            break
    return time.perf_counter() - began


def against_dashboard(lm, corpus, folder, args):
    """Time exemplars and histograms of 16,384 features over two million tokens, theirs and ours."""
    dictionary = train(lm, corpus, HOOKPOINT, width=WIDTH, tokens=100_000).dictionary
    tokens = 100_000 if args.quick else TOKENS
    began = time.perf_counter()
    index = build_index(dictionary, lm, corpus, folder / "wide", part="all", tokens=tokens)
    ours = (time.perf_counter() - began) * TOKENS / index.n_tokens
    print(f"ours: {ours:.0f} s for {TOKENS:,} tokens, measured on {index.n_tokens:,}")
    rows = torch.from_numpy(index.text.ids[: ROWS * index.text.context].copy())
    theirs = dashboard(dictionary, lm, index, rows.view(ROWS, -1), folder, args.threads)
    first, *others = theirs["seconds"]
    batches = WIDTH / theirs["batch"]
    each = sum(others) / len(others)
    seconds = (first + (batches - 1) * each) * TOKENS / theirs["tokens"]
    print(
        f"SAEDashboard: {seconds:,.0f} s for as many, from {len(theirs['seconds'])} of "
        f"{batches:.0f} batches of features ({first:.1f} s the first, {each:.1f} s another) and "
        f"{theirs['tokens']:,} tokens"
    )
    return [Claim("exemplars_vs_saedashboard", seconds / ours, 20, "ratio", True)]


def dashboard(dictionary, lm, index, rows, folder, threads):
    """Run SAEDashboard in its own environment, and see that it finds the same strongest firings."""
    coder = dictionary.coder
    inputs = {
        "W_enc": coder.W_enc.T,
        "W_dec": coder.W_dec,
        "b_enc": coder.b_enc,
        "b_dec": coder.b_dec,
        "threshold": coder.threshold.expand(WIDTH),
        "tokens": rows,
    }
    save_file({k: v.detach().contiguous().clone() for k, v in inputs.items()}, folder / "in.st")
    lm.model.save_pretrained(folder / "model")
    command = [DASHBOARD, HERE / "peers_dashboard.py", "--model", folder / "model"]
    command += ["--inputs", folder / "in.st", "--hook", "blocks.2.hook_resid_post"]
    done = subprocess.run(
        [*map(str, command), "--threads", str(threads)], check=True, stdout=subprocess.PIPE
    )
    result = json.loads(done.stdout.splitlines()[-1])
    for feature, strongest in result["strongest"].items():
        places, values = index.entries(int(feature))
        own = float(values[places < rows.numel()].max(initial=0))
        if abs(own - strongest) > 0.01 + 0.01 * own:
            print(f"feature {feature}: strongest {own:.3f} here, {strongest:.3f} there")
    return result


if __name__ == "__main__":
    main()
