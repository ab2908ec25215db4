"""How good trained dictionaries are, beside other libraries' on the same tokens.

    benchmarks/setup_peers.sh
    python recipes/prose_lm.py --data FILE_OR_FOLDER     # the second model, once
    python benchmarks/training_quality.py [--quick] [--json FILE] [--seeds 0 1 2]
        [--models stdlib prose synthetic] [--architectures topk batch_topk jumprelu matryoshka]

Everybody gets the same activations in the same batches, of the same width and L0, and is measured
on the same held-out tokens by its inference model: FVU over all tokens, mean L0, share of features
that never fire. Ours has the defaults of `monosemy train`, whatever the model. Each peer trains
by its own trainer (see peers.py), with three favours: a search of the learning rate on the first
seed and a quarter of the tokens, its own rule's and others, of which the one with the lowest
held-out FVU is kept; a decay of that rate over the last fifth, as in its documentation but not its
defaults; and, where a BatchTopK tracks its threshold by a slow average, the one that fits its last
batches, as ours is set.

A peer whose L0 is off the target by more than a tenth is not compared: its FVU says nothing at
another L0. If that leaves none, ours is compared with the best of those that use more features.

On synthetic activations, whose features are known, the mean max cosine (MMCS) and F1 of
recovery are measured too; they make no claim. A library whose search ends at another L0, or more
than a tenth above the best one's FVU, is trained with the first seed only.

Results are kept under benchmarks/.cache/results: a run that was interrupted goes on where it was.
Ours are made anew when the code that trains changes.
"""

import functools
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from activations import CACHE, SYNTHETIC, model_activations, synthetic_activations
from claims import Claim, parser, report, write_between
from safetensors.torch import load_file

import monosemy
from monosemy.activations import Statistics
from monosemy.artefact import write_text
from monosemy.coders import Provenance
from monosemy.coders.registry import architecture_named
from monosemy.coders.select import Scorer
from monosemy.device import fix_threads
from monosemy.errors import UserError
from monosemy.metrics import Activity, Reconstruction
from monosemy.metrics.recovery import mean_max_cosine, recovery_f1
from monosemy.training.config import TrainConfig
from monosemy.training.plan import Plan
from monosemy.training.session import (
    STATISTICS_TOKENS,
    THRESHOLD_BATCHES,
    finish_coder,
    make_member,
    start_coder,
)

HERE = Path(__file__).parent
RESULTS = CACHE / "results"
OURS = "monosemy"
PEERS = {
    "topk": ["saelens", "dictionary_learning", "sparsify"],
    "batch_topk": ["saelens", "dictionary_learning"],
    "jumprelu": ["saelens", "dictionary_learning"],
    "matryoshka": ["saelens", "dictionary_learning"],
}
# Beside each library's own; None is that.
LEARNING_RATES = {
    "saelens": [None, 4e-3, 8e-3, 1.6e-2],
    "dictionary_learning": [None, 4e-3, 8e-3, 1.6e-2],
    "sparsify": [None, 3e-3, 6e-3],
}
SEARCH = 4
"""A learning rate is chosen by runs over this part of the tokens."""
BEHIND = 1.1
"""Times the lowest FVU of that search from which a library is trained with one seed only."""
L0_TOLERANCE = 0.1
RECOVERY_ROWS = 16_384


@dataclass(frozen=True)
class Setting:
    """Activations, and the dictionary to be trained on them."""

    data: str
    width: int
    k: int
    batch: int
    tokens: int
    held_out: int

    def folder(self, files, architecture):
        """Where results are kept."""
        sizes = f"{self.tokens}-w{self.width}-k{self.k}-b{self.batch}"
        return RESULTS / f"{files.name}-{sizes}" / architecture

    def files(self):
        if self.data == "synthetic":
            return synthetic_activations(self.tokens, self.held_out)
        return model_activations(self.data, self.tokens, self.held_out)


FULL = {
    "stdlib": Setting("stdlib", 2048, 32, 2048, 1_048_576, 65_536),
    "prose": Setting("prose", 2048, 32, 2048, 1_048_576, 65_536),
    "synthetic": Setting("synthetic", 1024, 8, 1024, 524_288, 65_536),
}
QUICK = {
    "stdlib": Setting("stdlib", 512, 16, 1024, 131_072, 16_384),
    "prose": Setting("prose", 512, 16, 1024, 131_072, 16_384),
    "synthetic": Setting("synthetic", 512, 8, 1024, 131_072, 16_384),
}
# One each, and those whose import is quick.
QUICK_PEERS = {
    "topk": ["dictionary_learning", "sparsify"],
    "batch_topk": ["dictionary_learning"],
    "jumprelu": ["dictionary_learning"],
    "matryoshka": ["dictionary_learning"],
}


@dataclass(frozen=True)
class Row:
    """Somebody's figures at one setting: means over seeds."""

    who: str
    lr: float | None
    fvus: list[float]
    l0: float
    dead_share: float
    seconds: float
    mmcs: float | None = None
    f1: float | None = None

    @property
    def fvu(self):
        return statistics.mean(self.fvus)

    def at(self, k):
        """Say whether L0 is close enough to what was asked."""
        return near(self.l0, k)


def near(l0, k):
    return abs(l0 / k - 1) <= L0_TOLERANCE


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    fix_threads()
    settings = QUICK if args.quick else FULL
    peers = QUICK_PEERS if args.quick else PEERS
    if not (HERE / ".peers/bin/python").exists():
        sys.exit("the peers are not set up: run benchmarks/setup_peers.sh")
    tables = {}
    try:
        for model in args.models:
            for architecture in args.architectures:
                tables[model, architecture] = compare(
                    settings[model], architecture, peers[architecture], args
                )
    except UserError as error:
        sys.exit(str(error))
    text = "\n\n".join(
        table(settings[model], {a: tables[model, a] for a in args.architectures})
        for model in args.models
    )
    print(text)
    if args.docs:
        write_between(args.docs, "training_quality.py", text)
    report(claims(settings, tables, args), args.json)


def arguments():
    options = parser(__doc__, docs=True)
    options.add_argument("--seeds", type=int, nargs="+")
    options.add_argument("--models", nargs="+", choices=list(FULL))
    options.add_argument("--architectures", nargs="+", choices=list(PEERS), default=list(PEERS))
    args = options.parse_args()
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    args.models = args.models or (["stdlib"] if args.quick else list(FULL))
    return args


def compare(setting, architecture, peers, args):
    """Return everybody's row, ours first."""
    files = setting.files()
    ours = [our_result(setting, files, architecture, seed) for seed in args.seeds]
    return [row(OURS, None, ours), *their_rows(setting, files, architecture, peers, args)]


def their_rows(setting, files, architecture, peers, args):
    """Return the rows of libraries; of those out of the running, of the first seed only."""
    search = replace(setting, tokens=setting.tokens // SEARCH)
    rates, found = {}, {}
    for library in peers:
        pair = f"{library}:{architecture}"
        tried = {
            lr: peer_result(search, files, pair, lr, args.seeds[0], args)
            for lr in ([None] if args.quick else LEARNING_RATES[library])
        }
        rates[library] = best_rate(tried, setting.k)
        found[library] = tried[rates[library]]
    lowest = min((f["fvu"] for f in found.values() if near(f["l0"], setting.k)), default=0.0)
    rows = []
    for library in peers:
        behind = found[library]["fvu"] > BEHIND * lowest or not near(
            found[library]["l0"], setting.k
        )
        results = [
            peer_result(setting, files, f"{library}:{architecture}", rates[library], seed, args)
            for seed in (args.seeds[:1] if behind else args.seeds)
        ]
        rows.append(row(library, rates[library], results))
    return rows


def row(who, lr, results):
    def mean(name):
        return statistics.mean(r[name] for r in results) if name in results[0] else None

    return Row(
        who,
        lr,
        [r["fvu"] for r in results],
        mean("l0"),
        mean("dead_share"),
        mean("seconds"),
        mean("mmcs"),
        mean("f1"),
    )


def best_rate(tried, k):
    """Return the learning rate of the lowest FVU near the L0 asked for, else of the nearest L0."""
    close = {lr: r for lr, r in tried.items() if near(r["l0"], k)}
    if close:
        return min(close, key=lambda lr: close[lr]["fvu"])
    return min(tried, key=lambda lr: abs(tried[lr]["l0"] - k))


# --- one training ---------------------------------------------------------------------------


def our_result(setting, files, architecture, seed):
    def measure():
        x, held_out = files.load()
        coder, seconds = train_ours(setting, x, architecture, seed)
        result = {**figures(coder, held_out), "seconds": seconds}
        if setting.data == "synthetic":
            fired = coder.encode(held_out[:RECOVERY_ROWS]) > 0
            result |= recovery(coder.W_dec, fired)
        return result

    name = f"{OURS}-{our_code()}-seed{seed}"
    return kept(setting.folder(files, architecture) / f"{name}.json", measure)


def train_ours(setting, x, architecture, seed, *, start=None, **options):
    """Train on batches of rows in order, with the defaults of `monosemy train`.

    Where a penalty decides what fires, training starts at `start` times its L0; None: the default.
    """
    has_k = architecture_named(architecture).has_k
    asked = {"k": setting.k} if has_k else {"target_l0": setting.k}
    config = TrainConfig(
        architecture=architecture,
        width=setting.width,
        tokens=setting.tokens,
        batch=setting.batch,
        seed=seed,
        **asked,
        **options,
    )
    provenance = Provenance(model=setting.data, hookpoint="x", context=0)
    plan = Plan("", None, config, provenance, d_in=x.shape[1], d_out=x.shape[1])
    coder = plan.make_coder()
    coder.target_l0 = config.l0
    began = time.perf_counter()
    start_coder(coder, plan, {"x": x[:STATISTICS_TOKENS]}, start)
    member = make_member(coder, plan, Scorer(coder.W_enc.device))
    batches = x.split(setting.batch)
    for batch in batches:
        member.step(batch)
    member.finish()
    as_it_is = Statistics(torch.zeros(x.shape[1]), 1.0, 0.0)
    finish_coder(coder, batches[-THRESHOLD_BATCHES:], as_it_is, as_it_is)
    return coder, time.perf_counter() - began


@torch.no_grad()
def figures(coder, held_out, size=4096):
    """Return FVU over all tokens, mean L0 and the share of features that never fire."""
    sums, activity = Reconstruction(held_out.mean(0)), Activity(coder.width)
    for x in held_out.split(size):
        out, code = coder.reconstruct(x)
        sums.update(x, out, code.l0)
        activity.update(code.values, code.indices, len(x))
    return {
        "fvu": sums.compute()["fvu"],
        "l0": activity.l0,
        "dead_share": activity.dead_share,
    }


def recovery(directions, fired):
    """Return how much of the known features was found."""
    z = SYNTHETIC.sample(RECOVERY_ROWS, seed=2)[1][: len(fired)]
    return {
        "mmcs": mean_max_cosine(directions, SYNTHETIC.directions),
        "f1": recovery_f1(fired.float(), z),
    }


def peer_result(setting, files, pair, lr, seed, args):
    def measure():
        with tempfile.TemporaryDirectory() as folder:
            directions, codes = Path(folder) / "directions", Path(folder) / "codes"
            known = setting.data == "synthetic"
            saved = ["--save", directions, "--codes", codes] if known else []
            result = train_peer(setting, files, pair, lr, seed, args.threads, saved)
            if known:
                result |= recovery(load_file(directions)["W_dec"], load_file(codes)["fired"])
        return result

    library, architecture = pair.split(":")
    name = f"{library}-lr{lr or 'default'}-seed{seed}"
    return kept(setting.folder(files, architecture) / f"{name}.json", measure)


def train_peer(setting, files, pair, lr, seed, threads, more):
    """Train in the peers' environment, a process of its own."""
    command = [HERE / ".peers/bin/python", HERE / "peers.py", "train", "--pair", pair]
    command += ["--train", files.train, "--held-out", files.held_out]
    command += ["--width", setting.width, "--k", setting.k, "--batch", setting.batch]
    command += ["--steps", setting.tokens // setting.batch, "--seed", seed, "--threads", threads]
    command += ["--decay", 0.2, "--calibrate"]
    command += more + (["--lr", lr] if lr else [])
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{pair} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def kept(path, measure):
    """Return a result that is there, or measure and keep it."""
    if path.exists():
        return json.loads(path.read_text())
    began = time.monotonic()
    result = measure()
    said = ", ".join(f"{name} {result[name]:.4g}" for name in ("fvu", "l0", "dead_share"))
    print(f"{path.parent.name:11} {path.stem}: {said}", end="", file=sys.stderr)
    print(f" ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    write_text(path, json.dumps(result, indent=2) + "\n")
    return result


@functools.cache
def our_code():
    """Return a digest of the code that decides what training gives."""
    root = Path(monosemy.__file__).parent
    training = ["config", "control", "dead", "member", "session"]
    files = [*sorted((root / "coders").glob("*.py"))]
    files += [root / "training" / f"{name}.py" for name in training]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:8]


# --- what it says ---------------------------------------------------------------------------


def compared(rows, k):
    """Return the peers' row to compare with; why, if it is not simply the best."""
    ours, *peers = rows
    close = [r for r in peers if r.at(k)]
    if close:
        return min(close, key=lambda r: r.fvu), ""
    more = [r for r in peers if r.l0 >= ours.l0]
    if more:
        return min(more, key=lambda r: r.fvu), "no peer is at this L0: compared with more features"
    return None, "no peer is at this L0, or above it: not compared"


def claims(settings, tables, args):
    """Return, for each architecture, means over models, and how far off ours is where farthest."""
    found = []
    for architecture in args.architectures:
        pairs, ours_at = [], {}
        for model in args.models:
            rows = tables[model, architecture]
            best, _ = compared(rows, settings[model].k)
            if best is not None and model != "synthetic":
                pairs.append((rows[0], best))
                ours_at[model] = rows[0]
        if not pairs:
            continue
        ratio = statistics.mean(ours.fvu / best.fvu for ours, best in pairs)
        dead = statistics.mean(ours.dead_share - best.dead_share for ours, best in pairs)
        found.append(Claim(f"fvu_over_best_peer_{architecture}", ratio, 1.01, "x", False))
        off = max(abs(ours.l0 / settings[m].k - 1) for m, ours in ours_at.items())
        found.append(Claim(f"dead_minus_best_peer_{architecture}", dead, 0.0, "share", False))
        found.append(Claim(f"l0_off_target_{architecture}", off, L0_TOLERANCE, "share", False))
    return found


def table(setting, by_architecture):
    """Return a setting's figures as a table in Markdown."""
    known = setting.data == "synthetic"
    seeds = len(next(iter(by_architecture.values()))[0].fvus)
    head = ["", "", "FVU", "over best peer", "L0", "dead share"]
    head += ["MMCS", "F1"] if known else []
    head += ["learning rate", "s"]
    lines = [
        f"**{setting.data}**: width {setting.width:,}, k {setting.k}, {setting.tokens:,} tokens "
        f"in batches of {setting.batch:,}, {setting.held_out:,} held out, "
        + ("1 seed" if seeds == 1 else f"{seeds} seeds"),
        "",
        _line(head),
        _line(["---"] * len(head)),
    ]
    notes = []
    for architecture, rows in by_architecture.items():
        best, why = compared(rows, setting.k)
        if why:
            notes.append(f"{architecture}: {why}")
        for number, r in enumerate(rows):
            cells = [architecture if not number else "", r.who, spread(r.fvus)]
            cells.append(f"{r.fvu / best.fvu:.3f}" if best and r.at(setting.k) else "-")
            cells.append(f"{r.l0:.1f}" + ("" if r.at(setting.k) else " (off)"))
            cells.append(f"{r.dead_share:.2%}")
            cells += [f"{r.mmcs:.3f}", f"{r.f1:.3f}"] if known else []
            cells += [f"{r.lr:g}" if r.lr else "its rule", f"{r.seconds:.0f}"]
            lines.append(_line(cells))
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def spread(values):
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f} to {max(values):.4f})"


def _line(cells):
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
