"""Reading a store, shuffled: its speed, its size, and how well it mixes.

    benchmarks/setup_peers.sh
    python benchmarks/store.py [--quick] [--json FILE]

A store of rows of 768 numbers in bf16 is read in random batches of 4,096 from a pool of 65,536, as
training reads it, and read through from end to end by plain `read`, the bound. Before each the
operating system is asked to forget the files; both are also read again from its memory. The
training step is that of a TopK coder with 6,144 features. Size is against a data set written with
the columns of SAELens's `CacheActivationsRunner`.

Mixing is that of live training batches of the embedded model: the cosine between neighbours in a
batch, and the share of a batch that comes from one document, less what a uniform shuffle of the
same 262,144 tokens gives.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
from claims import Claim, parser, report
from safetensors.torch import save_file

from monosemy import LM, open_corpus
from monosemy.activations import Recipe, ShufflePool, Store, StoreWriter, counted_activations
from monosemy.activations.precision import pack
from monosemy.coders import make_coder
from monosemy.training import Member
from monosemy.training.feed import StoreFeed

HERE = Path(__file__).parent
PEERS = HERE / ".peers/bin/python"
D, BATCH, POOL = 768, 4096, 65_536
SHARD_ROWS = 43_690


def main():
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    rows = (200 if args.quick else 800) * BATCH
    claims = []
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        store = filled(Path(folder) / "store", rows)
        row_bytes = store.bytes / len(store)
        cold = best(lambda: shuffled(folder), folder), best(lambda: plain(store), folder)
        warm = best(lambda: shuffled(folder)), best(lambda: plain(store))
        for name, (ours, bound) in (("from disk", cold), ("from memory", warm)):
            print(
                f"{name:12} shuffled {ours * row_bytes / 1e9:5.2f} GB/s, plain read "
                f"{bound * row_bytes / 1e9:5.2f} GB/s"
            )
        step = training_step()
        print(f"shuffled {cold[0]:,.0f} tokens/s; a training step takes {step:,.0f} tokens/s")
        claims.append(Claim("read_over_disk", cold[0] / cold[1], 0.7, "x", True))
        claims.append(Claim("read_over_training_step", cold[0] / step, 1.0, "x", True))
        if PEERS.exists():
            theirs = saelens_bytes()
            print(f"bytes a token: {row_bytes:.1f}, SAELens {theirs:.1f}")
            claims.append(Claim("size_vs_saelens", row_bytes / theirs, 0.5, "x", False))
        else:
            print("the peers are not set up: run benchmarks/setup_peers.sh")
    neighbours, documents = mixing(65_536 if args.quick else 262_144)
    claims.append(Claim("neighbour_correlation", neighbours, 0.01, "cosine", False))
    claims.append(Claim("one_document_share", documents, 0.01, "share", False))
    report(claims, args.json)


def filled(folder, rows):
    generator = torch.Generator().manual_seed(0)
    with StoreWriter(folder, {"x": D}) as writer:
        for first in range(0, rows, SHARD_ROWS):
            n = min(SHARD_ROWS, rows - first)
            x = torch.randn(n, D, generator=generator)
            tokens = torch.randint(0, 50_000, (n,), generator=generator)
            writer.add(pack("x", x, "bf16"), tokens=tokens)
    os.sync()
    return Store(folder)


def best(run, forget=None):
    """Return the most tokens/s of three runs, on files that the system has forgotten if asked."""
    speeds = []
    for _ in range(3):
        if forget:
            drop(forget)
        began = time.perf_counter()
        tokens = run()
        speeds.append(tokens / (time.perf_counter() - began))
    return max(speeds)


def drop(folder):
    for file in Path(folder).rglob("shard-*"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def shuffled(folder):
    """Read every batch; return the number of tokens."""
    store = Store(Path(folder) / "store")
    device = torch.device("cpu")
    feed = StoreFeed(store, None, ["x"], device=device, size=POOL, batch=BATCH, seed=0)
    tokens = 0
    while True:
        try:
            tokens += len(next(feed).activations["x"])
        except StopIteration:
            return tokens


def plain(store):
    buffer = bytearray(8 * 2**20)
    for shard in store.shards:
        with (store.folder / shard.name).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return len(store)


def training_step():
    """Return tokens/s of a coder's own step."""
    member = Member(make_coder("topk", D, 8 * D, k=32), lr=1e-3, steps=100, dead_after=10**7)
    x = torch.randn(BATCH, D)
    member.step(x)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        member.step(x)
        seconds.append(time.perf_counter() - began)
    return BATCH / min(seconds)


def saelens_bytes():
    with tempfile.TemporaryDirectory() as folder:
        save_file({"tokens": torch.randint(0, 50_000, (64, 128))}, Path(folder) / "rows")
        command = [PEERS, HERE / "peers_harvest.py", "--tokens", f"{folder}/rows", "--size"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])["bytes_per_token"]


def mixing(tokens):
    """Return how much closer neighbours, and tokens of one document, are than by chance."""
    lm, corpus = LM("builtin:stdlib", device="cpu"), open_corpus("builtin:stdlib")
    recipe = Recipe(model=lm.name, hookpoints=("layers.2",), context=128, corpus=corpus.describe())
    numbers = {}

    def source():
        for batch in recipe.stream(lm, corpus):
            x = counted_activations(lm, batch, ["layers.2"])["layers.2"]
            ids = [numbers.setdefault(d.id, len(numbers)) for d in batch.documents] + [-1]
            yield {"x": x, "document": torch.tensor(ids)[batch.document[batch.counted]]}

    pool = ShufflePool(source(), size=POOL, batch_size=BATCH)
    batches = list(islice(pool, tokens // BATCH))
    x = torch.cat([b["x"] for b in batches])
    documents = torch.cat([b["document"] for b in batches])
    mean, order = x.mean(0), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    found = near(x, mean), largest(documents)
    uniform = near(x[order], mean), largest(documents[order])
    print(
        f"neighbours' cosine {found[0]:.4f}, uniformly shuffled {uniform[0]:.4f}; largest share of "
        f"a batch from one document {found[1]:.4f}, uniformly shuffled {uniform[1]:.4f}"
    )
    return abs(found[0] - uniform[0]), abs(found[1] - uniform[1])


def near(x, mean):
    x = torch.nn.functional.normalize(x - mean, dim=1)
    return (x[1:] * x[:-1]).sum(1).mean().item()


def largest(documents):
    shares = [max(Counter(b.tolist()).values()) / len(b) for b in documents.split(BATCH)]
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
