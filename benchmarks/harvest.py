"""Speed of harvesting activations, against the bare model and SAELens; memory over a long run.

    benchmarks/setup_peers.sh
    python benchmarks/harvest.py [--quick] [--json FILE]

The model has the shape of GPT-2 small, with random weights, and is read after its sixth block of
twelve, in rows of 128 tokens. Harvesting is all of it: text from `builtin:stdlib` tokenised, the
model, activations checked and written to a store; text is timed by itself, over the 4,096 rows
that are shuffled at a time, and added. The bare pass is `transformers`' own forward of
the first six blocks on the same tokens, in the same precision, nothing kept. Both take turns.
SAELens's store is timed on the same tokens, tokenised before. Memory is the peak of a process that
trains on the embedded model.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from claims import Claim, parser, report
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from monosemy import LM, open_corpus, train
from monosemy.activations import Harvest, Recipe, can_autocast, counted_activations
from monosemy.lm.load import load_tokenizer

HERE = Path(__file__).parent
PEERS = HERE / ".peers/bin/python"
LAYER, CONTEXT = 5, 128
BATCHES = 2
"""Of 4,096 tokens, in a shard and in a turn of the bare pass."""


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.memory_child:
        print(json.dumps(peak(args.memory_child)))
        return
    rounds = 3 if args.quick else 15
    lm = gpt2_shaped()
    corpus = open_corpus("builtin:stdlib")
    recipe = Recipe(
        model="gpt2-shaped",
        hookpoints=(f"layers.{LAYER}",),
        context=CONTEXT,
        corpus=corpus.describe(),
        autocast=can_autocast(lm),
    )
    batches = list(islice(recipe.stream(lm, corpus), BATCHES))
    ours, bare = (1 / seconds for seconds in take_turns(lm, corpus, recipe, batches, rounds))
    print(f"harvest into a store   {ours:10,.0f} tokens/s")
    print(f"bare forward pass      {bare:10,.0f} tokens/s, bf16 products: {recipe.autocast}")
    claims = [Claim("harvest_over_bare", ours / bare, 0.95, "x", True)]
    if PEERS.exists():
        speeds = saelens(batches, args)
        for mode, name, target in (
            ("defaults", "harvest_vs_saelens", 1.6),
            ("autocast_lm", "harvest_vs_saelens_autocast", 1.0),
        ):
            print(f"SAELens, {mode:14}{speeds[mode]:10,.0f} tokens/s")
            claims.append(Claim(name, ours / speeds[mode], target, "x", True))
    else:
        print("the peers are not set up: run benchmarks/setup_peers.sh")
    short, long = (50_000, 100_000) if args.quick else (200_000, 2_000_000)
    repeats = 1 if args.quick else 3  # a peak moves by 5% from one process to the next
    memory = {
        tokens: statistics.median(memory_of(tokens, args) for _ in range(repeats))
        for tokens in (short, long)
    }
    for tokens, size in memory.items():
        print(f"training on {tokens:>9,} tokens: peak {size / 1e9:.3f} GB")
    claims.append(Claim("memory_growth", memory[long] / memory[short], 1.05, "x", False))
    for name, share in rounding(open_corpus("builtin:stdlib")).items():
        print(f"embedded model, {name}: moved by {share:.0e} of the variance")
    report(claims, args.json)


def rounding(corpus):
    """Return by how much bf16 moves the embedded model's activations, of their variance."""
    lm, point = LM("builtin:stdlib", device="cpu"), "layers.2"
    recipe = Recipe(model=lm.name, hookpoints=(point,), context=CONTEXT, corpus=corpus.describe())
    batches = list(islice(recipe.stream(lm, corpus), 6))
    exact, fast = (
        torch.cat([counted_activations(lm, b, [point], autocast)[point] for b in batches])
        for autocast in (False, True)
    )
    variance = (exact - exact.mean(0)).square().sum()
    return {
        "products in bf16": ((fast - exact).square().sum() / variance).item(),
        "stored in bf16": ((exact.bfloat16().float() - exact).square().sum() / variance).item(),
    }


def arguments():
    options = parser(__doc__)
    options.add_argument("--memory-child", type=int, help=argparse.SUPPRESS)
    return options.parse_args()


def gpt2_shaped():
    torch.manual_seed(0)
    return LM(GPT2LMHeadModel(GPT2Config()).eval(), load_tokenizer("builtin:stdlib"))


def take_turns(lm, corpus, recipe, batches, rounds):
    """Return seconds a token of harvesting and of the bare pass: the least of all rounds."""
    ours, theirs = [], []
    text = reading(lm, corpus, recipe)
    bare_pass(lm, batches[:1], recipe.autocast)
    size = BATCHES * recipe.tokens_at_once * lm.hookpoint(recipe.hookpoints[0]).width * 2
    with (
        tempfile.TemporaryDirectory() as folder,
        Harvest(lm, corpus, recipe, folder, tokens=10**6, shard_bytes=size) as harvest,
    ):
        harvest.grow(1)
        for number in range(rounds):
            if number % 2:
                ours.append(one_shard(harvest) + text)
            theirs.append(bare_pass(lm, batches, recipe.autocast))
            if not number % 2:
                ours.append(one_shard(harvest) + text)
    print(f"of it text             {1 / text:10,.0f} tokens/s")
    return min(ours), min(theirs)


def reading(lm, corpus, recipe):
    """Return seconds a token of text alone, over as many rows as are shuffled at a time."""
    text = iter(recipe.stream(lm, corpus))
    rows, began = 0, time.perf_counter()
    while rows < 4096:
        rows += len(next(text).tokens)
    return (time.perf_counter() - began) / (rows * CONTEXT)


def one_shard(harvest):
    """Return seconds a token of the next shard, whose text waits tokenised."""
    began = time.perf_counter()
    harvest.grow(len(harvest.store) + 1)
    return (time.perf_counter() - began) / (BATCHES * harvest.recipe.tokens_at_once)


@torch.no_grad()
def bare_pass(lm, batches, autocast):
    """Return seconds a token of the model's own forward, cut off after the block that is read."""
    core = lm.model.transformer
    blocks = core.h
    core.h = torch.nn.ModuleList(list(blocks)[: LAYER + 1])
    try:
        began = time.perf_counter()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                core(input_ids=batch.tokens, use_cache=False)
        seconds = time.perf_counter() - began
    finally:
        core.h = blocks
    return seconds / sum(batch.tokens.numel() for batch in batches)


def saelens(batches, args):
    rows = torch.cat([batch.tokens for batch in batches])
    with tempfile.TemporaryDirectory() as folder:
        save_file({"tokens": rows}, Path(folder) / "rows.safetensors")
        command = [PEERS, HERE / "peers_harvest.py", "--tokens", f"{folder}/rows.safetensors"]
        command += ["--threads", str(args.threads), "--batches", "1" if args.quick else "4"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(tokens, args):
    """Return the peak memory of a process that trains on so many tokens."""
    command = [sys.executable, __file__, "--memory-child", str(tokens)]
    command += ["--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def peak(tokens):
    train("builtin:stdlib", "builtin:stdlib", tokens=tokens, width=512, k=16, pool=32_768)
    # Not `getrusage`, whose peak begins with that of the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


if __name__ == "__main__":
    main()
