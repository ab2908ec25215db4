"""How fast the app answers: pages of features of a wide dictionary, and its first page.

    python benchmarks/app.py [--quick] [--json FILE]

A dictionary of 65,536 features has an index of 10 million tokens of the standard library's source.
Its codes are random, and repeat every million tokens: a feature fires anywhere, on a share of
tokens that falls as 1/rank (Zipf), 32 features a token. Names, explanations, neighbours and logit
weights are random too, and there for every feature, so that its page has everything to show. The
server runs in a process of its own; pages of random features are asked for one after the other
over one connection, and timed here, from asking to the last byte. The first page is timed in
headless Chromium, freshly started: from the navigation to the load event or the first contentful
paint, whichever is later.
"""

import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from claims import Claim, parser, report

from monosemy import open_corpus
from monosemy.coders import Dictionary, Provenance, make_coder
from monosemy.corpus import TokenPolicy, TokenStream
from monosemy.index import Index
from monosemy.index.join import join_parts
from monosemy.index.part import Entries, Misses, Part
from monosemy.index.text import TokenRecorder
from monosemy.lm.load import load_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import BROWSER, Browser

CONTEXT, L0, DENSEST = 128, 32, 0.3
DRAWN = 4  # parts of 250,000 tokens of different codes; an index repeats them
PORT = 8460
LENSES = ("logits", "logits_without_norm", "reads", "writes")
MOMENTS = ("mean", "std", "skewness", "kurtosis")


def main():
    args = parser(__doc__).parse_args()
    width, tokens, asked = (4096, 500_000, 200) if args.quick else (65_536, 10_000_000, 1000)
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        run = Path(folder) / "wide"
        began = time.perf_counter()
        index = make_run(run, width, tokens)
        print(f"{index}\nmade in {time.perf_counter() - began:.0f} s")
        with Server(run) as server:
            first = first_page(server.port, Path(folder) / "profile") if BROWSER else None
            for times in ("the first", "another"):
                seconds = timed_get(server.port, "/wide/features/search?q=lock")
                print(f"{times} search: {seconds:.2f} s")
            print(f"columns of the list: {timed_get(server.port, '/wide/data/features.js'):.2f} s")
            times = feature_pages(server.port, width, asked)
    claims = [
        Claim("feature_page_median_ms", 1e3 * statistics.median(times), 10, "ms", False),
        Claim("feature_page_p99_ms", 1e3 * float(np.quantile(times, 0.99)), 50, "ms", False),
    ]
    if first is None:
        print("first page: no Chromium on PATH", file=sys.stderr)
    else:
        claims.append(Claim("first_page_s", first, 1, "s", False))
    report(claims, args.json)


class Server:
    """The app in a process of its own."""

    def __init__(self, run):
        self.run = run

    def __enter__(self):
        program = "from monosemy.cli.main import main; main()"
        command = [sys.executable, "-c", program, "app", str(self.run)]
        command += ["--no-browser", "--port", str(PORT)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        self.port = int(line.rsplit(":", 1)[1].rstrip("/\n"))
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def feature_pages(port, width, asked):
    """Return the seconds that pages of random features take."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times = []
    for feature in np.random.default_rng(1).integers(width, size=asked + 20).tolist():
        began = time.perf_counter()
        get(connection, f"/wide/features/{feature}")
        times.append(time.perf_counter() - began)
    print(f"the first one {1e3 * times[0]:.0f} ms")
    return times[20:]


def timed_get(port, address):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    began = time.perf_counter()
    get(connection, address)
    return time.perf_counter() - began


def get(connection, address):
    connection.request("GET", address)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body[:300]
    return body


def first_page(port, profile):
    """Return the seconds until a browser has painted and loaded the first page."""
    with Browser(profile) as browser:
        browser.open(f"http://127.0.0.1:{port}/wide/")
        browser.wait("performance.getEntriesByName('first-contentful-paint').length")
        return browser.run(
            "Math.max(performance.getEntriesByType('navigation')[0].loadEventEnd,"
            " performance.getEntriesByName('first-contentful-paint')[0].startTime) / 1000"
        )


# --- the run ------------------------------------------------------------------------------------


def make_run(run, width, tokens):
    """Write a run of a random dictionary, and its index of random codes."""
    coder = make_coder("topk", 16, width, k=L0, seed=0)
    corpus = open_corpus("builtin:stdlib")
    provenance = Provenance(
        model="builtin:stdlib",
        hookpoint="layers.2",
        context=CONTEXT,
        corpus=corpus.describe(),
        training={"tokens": tokens, "seconds": 0.0, "seed": 0, "held_out": {"l0": float(L0)}},
    )
    dictionary = Dictionary(coder, provenance, torch.zeros(width), torch.zeros(16), 1.0, None)
    dictionary.save_pretrained(run / "dictionary")
    text, rng = real_text(corpus), np.random.default_rng(0)
    density = zipf(width)
    drawn = [random_part(text, density, rng) for _ in range(DRAWN)]
    parts, n_tokens = [], 0
    while n_tokens < tokens:
        part = drawn[len(parts) % DRAWN]
        part = replace(part, names=[f"{len(parts)}/{name}" for name in text.names])
        n = int(part.columns["counted"].sum())
        folder = run / f"part-{len(parts)}"
        part.save(folder, {"n_tokens": n, "place": {}, "complete": True})
        parts.append(folder)
        n_tokens += n
    manifest = {
        "dictionary": Dictionary.from_pretrained(run).identity(),
        "provenance": provenance.to_dict(),
        "text": corpus.describe(),
        "context": CONTEXT,
        "tokens_asked": tokens,
    }
    tokenizer = load_tokenizer("builtin:stdlib")
    words = [str(tokenizer.decode([i])) for i in range(len(tokenizer))]
    join_parts(parts, run / "index", manifest, words)
    index = Index.open(run)
    add_meaning(index, len(words), rng)
    return index


def real_text(corpus, tokens=250_000):
    """Return the standard library's first tokens, as an index records them."""
    stream = TokenStream(
        corpus,
        load_tokenizer("builtin:stdlib"),
        part="all",
        context=CONTEXT,
        packed=True,
        policy=TokenPolicy(),
        seed=None,
    )
    recorder, places = TokenRecorder(), 0
    for batch in stream:
        recorder.add(batch)
        places += batch.tokens.numel()
        if places >= tokens:
            return recorder
    return recorder


def zipf(width):
    """Return densities that fall as 1/rank, of 32 features a token."""
    density = 1 / np.arange(1, width + 1)
    for _ in range(20):  # what is above the cap is shared out among the rest
        density = np.minimum(density * L0 / density.sum(), DENSEST)
    return np.random.default_rng(0).permutation(density)


def random_part(text, density, rng):
    """Return a part in which features fire at random."""
    columns, width = text.columns(), len(density)
    counted = np.flatnonzero(columns["counted"])
    counts = rng.poisson(density * len(counted))
    keys = np.repeat(np.arange(width), counts) * len(counted)
    keys = np.unique(keys + rng.integers(len(counted), size=len(keys)))
    features, places = np.divmod(keys, len(counted))
    offsets = np.searchsorted(features, np.arange(width + 1))
    values = rng.gamma(2, 2, len(keys)).astype(np.float32)
    misses = Misses(
        rng.choice(counted, (width, 12)).astype(np.int32),
        rng.normal(0, 1, (width, 12)).astype(np.float32),
    )
    entries = Entries(offsets, counted[places].astype(np.int32), values)
    return Part(entries, misses, columns, text.names, text.texts)


def add_meaning(index, n_words, rng):
    """Write names, explanations, neighbours and logit weights for every feature."""
    width = index.width
    index.write_table(
        "concepts",
        (
            {"feature": f, "name": f"concept {f % 60}", "label": f"concept {f % 60}", "f1": 0.5}
            for f in range(width)
        ),
    )
    index.write_table(
        "explanations",
        (
            {"feature": f, "explanation": f"fires on things such as {f}", "score": 0.7}
            for f in range(width)
        ),
    )
    shape = (width, 20)
    ids = rng.integers(n_words, size=shape).astype(np.int32)
    weights = {"tokens": ids, "values": rng.normal(size=shape).astype(np.float32)}
    weights |= {name: rng.normal(size=width).astype(np.float32) for name in MOMENTS}
    index.write_arrays("lens", {f"{t}.{name}": a for t in LENSES for name, a in weights.items()})
    near = rng.integers(width, size=(width, 10)).astype(np.int32)
    scores = -np.sort(-rng.random((width, 10)), axis=1).astype(np.float32)
    kinds = ("decoder", "coactive")
    index.write_arrays(
        "similar",
        {f"{kind}_ids": near for kind in kinds} | {f"{kind}_scores": scores for kind in kinds},
    )


if __name__ == "__main__":
    main()
