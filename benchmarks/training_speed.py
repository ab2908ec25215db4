"""How fast a training step is: against other libraries, and against the encoder product alone.

    benchmarks/setup_peers.sh
    python benchmarks/training_speed.py [--quick] [--json FILE]

One run measures everybody one after another, on the same activations: d_in 512, width 8,192, k 32,
4,096 tokens a step, fp32 parameters, on two threads. Ours has dead-feature tracking, AuxK (a
twentieth of the features is made to count as dead, so that it has work) and metrics on; theirs are
their own trainers' steps (see peers.py). Figures are medians over steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from claims import Claim, parser, report
from safetensors.torch import save_file

from monosemy.activations.synthetic import SyntheticFeatures
from monosemy.coders import make_coder
from monosemy.coders.select import Scorer
from monosemy.training.config import TrainConfig
from monosemy.training.member import Member

D_IN, WIDTH, K, BATCH = 512, 8192, 32, 4096
MEMORY_WIDTH = 32_768
HERE = Path(__file__).parent
COMPARED = [
    ("topk", "sparsify", 2.5),
    ("topk", "saelens", 9.0),
    ("topk", "dictionary_learning", 8.0),
    ("batch_topk", "saelens", 12.0),
    ("jumprelu", "saelens", 10.0),
    ("matryoshka", "saelens", 10.0),
    ("gated", "saelens", 8.0),
    ("relu", "saelens", 5.0),
]


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.memory_child:
        print(json.dumps(step_memory()))
        return
    steps = 2 if args.quick else 7
    x = activations(4 * BATCH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "activations.safetensors"
        save_file({"x": x}, path)
        theirs = peers(path, args)
    ours = {
        name: our_seconds(name, x, 3 * steps) for name in dict.fromkeys(a for a, _, _ in COMPARED)
    }
    product = product_seconds(x)
    claims = []
    for name, peer, target in COMPARED:
        ratio = theirs[f"{peer}:{name}"] / ours[name][0]
        title = f"{name.replace('_', '')}_vs_{peer}"
        claims.append(Claim(title, ratio, target, "x", True))
    claims.append(Claim("step_over_product", ours["topk"][0] / product, 2.2, "x", False))
    claims.append(Claim("step_memory", memory(args), 1.4, "x", False))
    table(ours, theirs, product)
    report(claims, args.json)


def arguments():
    options = parser(__doc__)
    options.add_argument("--memory-child", action="store_true", help=argparse.SUPPRESS)
    return options.parse_args()


def activations(n):
    """Sums of known directions, centred and scaled to mean norm sqrt(d_in)."""
    source = SyntheticFeatures(d_in=D_IN, n_features=2 * D_IN, l0=20, zipf=0.5, noise=0.1)
    x, _ = source.sample(n, seed=1)
    x -= x.mean(0)
    return x / x.norm(dim=1).mean() * D_IN**0.5


def our_member(name, x, width=WIDTH, dead_share=0.05):
    """A member about to take steps, at L0 about k, with some features that count as dead."""
    k = {"k": K} if has_k(name) else {}
    coder = make_coder(name, x.shape[1], width, unit_norm=TrainConfig().unit_norm, **k)
    coder.start(x[:1024], K)
    member = Member(
        coder, lr=1e-3, steps=10_000, dead_after=10**9, weight=0.0 if has_k(name) else 0.01
    )
    member.tokens_since_fired[: int(dead_share * width)] = 2 * 10**9
    with torch.no_grad():
        coder.b_enc[: int(dead_share * width)] -= 3.0
    return member


def has_k(name):
    return name in ("topk", "batch_topk", "matryoshka")


def our_seconds(name, x, steps):
    """Median seconds of a step, and the L0 it had."""
    member = our_member(name, x)
    times, l0 = [], 0.0
    for i in range(steps + 2):
        batch = x[(i % 4) * BATCH :][:BATCH]
        began = time.perf_counter()
        l0 = member.step(batch).l0
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:]), l0


def product_seconds(x):
    """Median seconds of the encoder product alone, in bf16 where that is fast, output kept."""
    dtype = Scorer(x.device).dtype
    a, w = x[:BATCH].to(dtype), torch.randn(WIDTH, D_IN).to(dtype)
    out = torch.empty(BATCH, WIDTH, dtype=dtype)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        torch.mm(a, w.T, out=out)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def peers(path, args):
    """Seconds of a step of each peer's."""
    pairs = ",".join(f"{peer}:{name}" for name, peer, _ in COMPARED)
    python = HERE / ".peers/bin/python"
    if not python.exists():
        sys.exit("the peers are not set up: run benchmarks/setup_peers.sh")
    command = [python, HERE / "peers.py", "speed", "--pairs", pairs, "--activations", path]
    command += ["--width", WIDTH, "--k", K, "--batch", BATCH, "--threads", args.threads]
    command += ["--steps", 1 if args.quick else 5, "--warmup", 1]
    command += ["--warmup-batch", 256] if args.quick else []
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {pair: statistics.median(figures["seconds"]) for pair, figures in found.items()}


def memory(args):
    """Peak memory of a step over parameters, gradients and optimiser, in a process of its own."""
    command = [sys.executable, __file__, "--memory-child", "--threads", str(args.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def step_memory():
    """Return the ratio; what torch's own products allocate once is paid before."""
    x = activations(BATCH)
    warm = our_member("topk", x, width=1024)
    warm.step(x)
    del warm
    before = status("VmRSS")
    member = our_member("topk", x, width=MEMORY_WIDTH)
    for _ in range(3):
        member.step(x)
    state = sum(p.numel() for p in member.coder.parameters()) * 4 * 4
    return (status("VmHWM") - before) / state


def status(name):
    """A field of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def table(ours, theirs, product):
    print(f"{'':28}{'ms a step':>12}{'tokens/s':>12}")
    rows = {f"monosemy {name} (L0 {l0:.0f})": s for name, (s, l0) in ours.items()}
    rows |= theirs | {"encoder product alone": product}
    for name, seconds in rows.items():
        print(f"{name:28}{seconds * 1e3:12.1f}{BATCH / seconds:12,.0f}")


if __name__ == "__main__":
    main()
