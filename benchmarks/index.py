"""The feature index: what it costs, against the bare model and against SAEDashboard; and labels.

    benchmarks/setup_dashboard.sh
    python benchmarks/index.py [--quick] [--json FILE] [--docs docs/results.md]

1. Building the index of a dictionary on the embedded model, against nothing but the truncated
   model pass and the encoder product on the same rows.
2. Naming 4,096 features by 60 concepts over two million tokens, 32 features a token: synthetic
   firings and labels, of densities and base rates as spread out as those of trained dictionaries
   and of text.
3. How many concepts and features find each other: a BatchTopK dictionary of 4,096 features, k 32,
   is trained on the embedded model and its features are named by the syntax of held-out source
   (`CONCEPTS`), and so are those of an untrained dictionary of the same width and L0 on the same
   tokens. Ten names are shown.
4. Exemplars and histograms of all features of a dictionary 16,384 wide over two million tokens,
   against SAEDashboard with the same model, weights and dictionary. It is given a share of the
   features and of the tokens; its time is extrapolated in proportion, and it is said from what.
   Ours is the whole build, the model's pass included.
"""

import json
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from claims import Claim, parser, report, write_between
from safetensors.torch import save_file

from monosemy import LM, open_corpus, train
from monosemy.activations import counted_activations
from monosemy.coders import Fingerprint
from monosemy.evaluation.baselines import collect, untrained_coder
from monosemy.index import build_index
from monosemy.interpret import NO_CONCEPT, Firings, PlaceLabels, label_index, score_features
from monosemy.interpret.describe import firings_of

HERE = Path(__file__).parent
DASHBOARD = HERE / ".dashboard/bin/python"
HOOKPOINT, CONCEPTS_AT = "layers.2", "layers.3"
WIDTH, TOKENS, ROWS = 16_384, 2_000_000, 512
NAMED, K = 4096, 32
N_CONCEPTS, DOCUMENT = 60, 2000
EXAMPLES, CONTEXTS, WINDOW = 10, 3, 12


def main():
    args = parser(__doc__, docs=True).parse_args()
    torch.set_num_threads(args.threads)
    lm, corpus = LM("builtin:stdlib", device="cpu"), open_corpus("builtin:stdlib")
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        claims += against_bare(lm, corpus, Path(folder), quick=args.quick)
        claims.append(labels_seconds(args.quick))
        claims += concepts_covered(lm, corpus, Path(folder), args)
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


def labels_seconds(quick):
    """Measure the naming of every feature, from firings and labels to rows of the table."""
    tokens = 200_000 if quick else 2_000_000
    rng = np.random.default_rng(0)
    firings, labels = synthetic_firings(rng, tokens), synthetic_labels(rng, tokens)
    began = time.perf_counter()
    table = score_features(firings, labels)
    rows = list(table.rows())
    seconds = time.perf_counter() - began
    print(
        f"{len(rows)} features, {N_CONCEPTS} concepts, {tokens:,} tokens, "
        f"{len(firings.values):,} entries: {seconds:.1f} s"
    )
    return Claim("labels_seconds", seconds, 20, "s", False)


def synthetic_firings(rng, tokens):
    """Return firings at random places, features' densities spread over three decades."""
    share = rng.lognormal(sigma=1.5, size=NAMED)
    counts = rng.poisson((share / share.sum() * K * tokens).clip(1, tokens))
    places = [np.unique(rng.integers(0, tokens, n, dtype=np.int32)) for n in counts]
    offsets = np.cumsum([0, *map(len, places)])
    return Firings(offsets, np.concatenate(places), rng.exponential(size=offsets[-1]).astype("f4"))


def synthetic_labels(rng, tokens):
    """Return labels that hold in runs of ten tokens, of base rates from 0.05% to 50%."""
    rates = np.geomspace(0.0005, 0.5, N_CONCEPTS)[:, None]
    labels = np.repeat(rng.random((N_CONCEPTS, tokens // 10)) < rates, 10, axis=1)
    names = tuple(f"concept {i}" for i in range(N_CONCEPTS))
    return PlaceLabels(names, labels, np.arange(tokens, dtype=np.int32) // DOCUMENT)


def concepts_covered(lm, corpus, folder, args):
    """Measure the share of concepts with a feature, trained and untrained; show examples."""
    width, tokens = (1024, 100_000) if args.quick else (NAMED, 2_000_000)
    trained = train(lm, corpus, CONCEPTS_AT, width=width, k=K, tokens=tokens).dictionary
    indexes = [
        build_index(dictionary, lm, corpus, folder / name, tokens=30_000 if args.quick else 10**6)
        for name, dictionary in (("own", trained), ("random", untrained(trained, lm, corpus)))
    ]
    labels = label_index(indexes[0])
    own, random = (score_features(firings_of(index), labels) for index in indexes)
    text = "\n".join([*coverage_lines(own, random), "", *example_lines(own, indexes[0])])
    print(f"{text}\n\n" + "\n".join(concept_lines(own, random)))
    if args.docs:
        write_between(args.docs, "index.py concepts", text)
    return [
        Claim("concepts_covered", own.coverage["covered"], 0.5, "share", True),
        Claim("concepts_covered_random", random.coverage["covered"], 0.2, "share", False),
    ]


def untrained(dictionary, lm, corpus):
    """Return an untrained dictionary as wide as another, of its L0, on the same activations."""
    stream = dictionary.provenance.stream(lm, corpus, "train")
    name = dictionary.hookpoint
    batches = (counted_activations(lm, batch, [name])[name] for batch in stream)
    coder = untrained_coder(collect(batches, 16_384), dictionary.width, K, seed=0)
    fingerprint = Fingerprint.record(lm, coder, dictionary.provenance, corpus)
    return replace(dictionary, coder=coder, fingerprint=fingerprint)


def coverage_lines(own, random):
    """Yield a table of how many concepts and features find each other."""
    yield "| held out | trained | untrained |"
    yield "|---|---|---|"
    said = {
        "concepts": "concepts of base rate 0.05% to 50%",
        "covered": "of them with a feature of F1 0.5 or more",
        "live": "live features",
        "labelled": "of them with a name: F1 0.5, or precision 0.8 and lift 5",
        "part": "of them with precision 0.8 and lift 5",
    }
    for name, what in said.items():
        form = ",.0f" if name in ("concepts", "live") else ".1%"
        a, b = own.coverage[name], random.coverage[name]
        yield f"| {what} | {a:{form}} | {b:{form}} |"


def example_lines(table, index):
    """Yield features of different labels, half of them parts, with where they fire most."""
    named = sorted((row for row in table.rows() if row["label"] != NO_CONCEPT), key=strength)
    first = {row["label"]: row for row in reversed(named)}.values()
    whole = [row for row in first if not row["label"].startswith("part of")]
    parts = [row for row in first if row["label"].startswith("part of")]
    yield "| feature | stands for | F1 | precision | recall | lift | fires most on |"
    yield "|---|---|---|---|---|---|---|"
    for row in [*spread(whole, EXAMPLES // 2), *spread(parts, EXAMPLES - EXAMPLES // 2)]:
        its = row["part_of"] if row["label"].startswith("part of") else row
        figures = [f"{its[name]:.2f}" for name in ("f1", "precision", "recall")]
        shown = " &nbsp; ".join(
            map(shown_context, index.exemplars(row["feature"], CONTEXTS, WINDOW))
        )
        cells = [str(row["feature"]), row["label"], *figures, f"{its['lift']:,.0f}", shown]
        yield "| " + " | ".join(cells) + " |"


def shown_context(exemplar):
    """Return a context as code on one line of a table, the token it fires on between marks."""
    words = [f"«{w}»" if i == exemplar.peak else w for i, w in enumerate(exemplar.tokens)]
    text = " ".join("".join(words).replace("\n", "↵").split())
    return f"`{text.replace('|', '¦').replace('`', chr(39))}`"


def concept_lines(own, random):
    """Yield each concept's best held-out F1, beside the untrained dictionary's."""
    rest = {row["concept"]: row for row in random.concepts()}
    yield f"{'concept':24}{'base rate':>10}{'F1':>7}{'untrained':>11}"
    for row in sorted(own.concepts(), key=lambda row: -(row["features"][0]["f1"] or 0)):
        f1, its = (of["features"][0]["f1"] or 0 for of in (row, rest[row["concept"]]))
        yield f"{row['concept']:24}{row['base_rate']:10.3%}{f1:7.2f}{its:11.2f}"


def strength(row):
    return -(row["part_of"]["precision"] if row["label"].startswith("part of") else row["f1"])


def spread(rows, count):
    """Return some rows, evenly over all."""
    rows = list(rows)
    return rows[:: max(len(rows) // count, 1)][:count]


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
    for feature, (strongest, token) in result["strongest"].items():
        if token in lm.special_ids:  # the index holds text alone
            continue
        places, values = index.entries(int(feature))
        column = places % rows.shape[1]  # it leaves out places at either end of a row
        shown = (places < rows.numel()) & (column > 5) & (column < rows.shape[1] - 5)
        own = float(values[shown].max(initial=0))
        if abs(own - strongest) > 0.01 + 0.01 * own:
            print(f"feature {feature}: strongest {own:.3f} here, {strongest:.3f} there")
    return result


if __name__ == "__main__":
    main()
