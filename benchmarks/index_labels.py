"""What naming features by known concepts costs, and how many concepts and features find each other.

    python benchmarks/index_labels.py [--quick] [--json FILE]

Cost: 4,096 features against 60 concepts over 2 million tokens, 32 features a token; synthetic
firings and labels, of densities and base rates as spread out as those of trained dictionaries and
of text. Coverage: a BatchTopK dictionary of 4,096 features, k 32, is trained on the embedded model
and its features are named by the syntax concepts of held-out source (`CONCEPTS`), and so are those
of an untrained dictionary of the same width and L0 on the same tokens. Ten names are shown.
"""

import time

import numpy as np
import torch
from claims import Claim, parser, report
from monosemy.interpret.text import TextRecorder

from monosemy import LM, open_corpus, train
from monosemy.activations import counted_activations
from monosemy.corpus import Document
from monosemy.evaluation.baselines import collect, untrained_coder
from monosemy.interpret import (
    NO_CONCEPT,
    Firings,
    PlaceLabels,
    collect_firings,
    label_places,
    score_features,
)

HOOKPOINT, WIDTH, K = "layers.3", 4096, 32
N_CONCEPTS, DOCUMENT = 60, 2000
EXAMPLES, CONTEXTS, WINDOW = 10, 3, 12


def main():
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    report([labels_seconds(args.quick), *concepts_covered(args.quick)], args.json)


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
    share = rng.lognormal(sigma=1.5, size=WIDTH)
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


def concepts_covered(quick):
    """Measure the share of concepts with a feature, trained and untrained; print examples."""
    lm, corpus = LM("builtin:stdlib", device="cpu"), open_corpus("builtin:stdlib")
    width, tokens = (1024, 100_000) if quick else (WIDTH, 2_000_000)
    dictionary = train(lm, corpus, HOOKPOINT, width=width, k=K, tokens=tokens).dictionary
    coders = [dictionary.coder, untrained(dictionary, lm, corpus)]
    stream = dictionary.provenance.stream(lm, corpus, "held_out")
    rows, firings = collect_firings(lm, stream, HOOKPOINT, coders, 30_000 if quick else 200_000)
    text = text_of(stream, len(rows.tokens))
    documents = [Document(*pair) for pair in zip(text.ids, text.texts, strict=True)]
    labels = label_places(text.document, text.start, text.end, rows.counted, documents)
    tables = [score_features(of, labels) for of in firings]
    for name, table in zip(("trained", "untrained"), tables, strict=True):
        show_coverage(name, table)
    show_concepts(*tables)
    show_features(tables[0], firings[0], text)
    own, random = (table.coverage["covered"] for table in tables)
    return [
        Claim("concepts_covered", own, 0.5, "share", True),
        Claim("concepts_covered_random", random, 0.2, "share", False),
    ]


def untrained(dictionary, lm, corpus):
    stream = dictionary.provenance.stream(lm, corpus, "train")
    batches = (counted_activations(lm, batch, [HOOKPOINT])[HOOKPOINT] for batch in stream)
    return untrained_coder(collect(batches, 16_384), dictionary.width, K, seed=0)


def text_of(stream, rows):
    """Return the first rows of a stream as they lead back to the text."""
    recorder = TextRecorder()
    for batch in stream:
        recorder.add(batch)
        rows -= len(batch.tokens)
        if rows <= 0:
            break
    return recorder.table()


def show_coverage(name, table):
    found = table.coverage
    print(
        f"{name}: {found['covered']:.1%} of {found['concepts']} concepts have a feature; of "
        f"{found['live']} live features {found['labelled']:.1%} have a label, "
        f"{found['part']:.1%} at precision 0.8 and lift 5"
    )


def show_concepts(table, other):
    """Print each concept's best held-out F1, beside the untrained dictionary's."""
    rest = {row["concept"]: row for row in other.concepts()}
    print(f"\n{'concept':24}{'base rate':>10}{'F1':>7}{'untrained':>11}")
    for row in sorted(table.concepts(), key=lambda row: -(row["features"][0]["f1"] or 0)):
        f1, its = (of["features"][0]["f1"] or 0 for of in (row, rest[row["concept"]]))
        print(f"{row['concept']:24}{row['base_rate']:10.3%}{f1:7.2f}{its:11.2f}")


def show_features(table, firings, text):
    """Print features of different labels, half of them parts, with where they fire most."""
    named = sorted((row for row in table.rows() if row["label"] != NO_CONCEPT), key=strength)
    first = {row["label"]: row for row in reversed(named)}.values()
    whole = [row for row in first if not row["label"].startswith("part of")]
    parts = [row for row in first if row["label"].startswith("part of")]
    for row in [*spread(whole, EXAMPLES // 2), *spread(parts, EXAMPLES - EXAMPLES // 2)]:
        its = row["part_of"] if row["label"].startswith("part of") else row
        print(
            f"\nfeature {row['feature']}: {row['label']} (F1 {its['f1']:.2f}, precision "
            f"{its['precision']:.2f}, recall {its['recall']:.2f}, lift {its['lift']:.0f})"
        )
        places, values = firings.of(row["feature"])
        for place in places[np.argsort(-values)[:CONTEXTS]].tolist():
            words, _, at = text.window(place, WINDOW)
            shown = [f"«{w}»" if i == at else w for i, w in enumerate(words)]
            print("    " + "".join(shown).replace("\n", "↵"))


def strength(row):
    return -(row["part_of"]["precision"] if row["label"].startswith("part of") else row["f1"])


def spread(rows, count):
    """Return some rows, evenly over all."""
    rows = list(rows)
    return rows[:: max(len(rows) // count, 1)][:count]


if __name__ == "__main__":
    main()
