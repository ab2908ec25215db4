"""Whether coders held sparse by a penalty reach the L0 they are asked for, on held-out data.

    python benchmarks/target_l0.py [--quick] [--json FILE] [--docs FILE] [--starts 0.5 8]

Each architecture trains on activations of the embedded model with the defaults of `monosemy train`
at target L0 16, 32, 64 and 128, and its L0 is measured on held-out tokens by its inference model.
Each is also trained, at 32, from other starts than its own, given in multiples of the target. A
claim is the largest share by which an architecture is off.
"""

import torch
from claims import Claim, parser, report, write_between
from training_quality import Setting, figures, kept, our_code, train_ours

from monosemy.device import fix_threads

TARGETS = [16, 32, 64, 128]
START_TARGET = 32
VARIANTS = {
    "relu": {},
    "jumprelu": {},
    "jumprelu, tanh": {"sparsity": "tanh"},
    "gated": {},
    "p_anneal": {},
    "relu_kl": {},
    "nonnegative": {},
}
FULL = Setting("stdlib", 2048, 0, 2048, 524_288, 65_536)
QUICK = Setting("stdlib", 512, 0, 1024, 131_072, 16_384)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    fix_threads()
    base, targets = (QUICK, [16, 32]) if args.quick else (FULL, TARGETS)
    starts = [] if args.quick else args.starts
    columns = [(target, None) for target in targets]
    columns += [(START_TARGET, start) for start in starts]
    results = {
        name: {column: result(base, name, *column) for column in columns} for name in args.variants
    }
    text = table(results, columns)
    print(text)
    if args.docs:
        write_between(args.docs, "target_l0.py", text)
    report([claim(name, row) for name, row in results.items()], args.json)


def arguments():
    options = parser(__doc__, docs=True)
    options.add_argument("--starts", type=float, nargs="*", default=[0.5, 8.0])
    options.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    return options.parse_args()


def result(base, name, target, start):
    """Return held-out figures of one training."""
    setting = Setting(base.data, base.width, target, base.batch, base.tokens, base.held_out)
    files = setting.files()

    def measure():
        x, held_out = files.load()
        architecture = name.split(",")[0]
        coder, seconds = train_ours(setting, x, architecture, 0, start=start, **VARIANTS[name])
        return {**figures(coder, held_out), "seconds": seconds}

    folder = setting.folder(files, f"target_l0-{name.replace(', ', '-')}")
    return kept(folder / f"{our_code()}-from-{start or 'default'}.json", measure)


def off(figures, target):
    return figures["l0"] / target - 1


def claim(name, row):
    worst = max(abs(off(figures, target)) for (target, _), figures in row.items())
    return Claim(f"l0_off_target_{name.replace(', ', '_')}", worst, 0.1, "share", False)


def table(results, columns):
    def title(target, start):
        return f"{target}" + ("" if start is None else f", from {start:g}x")

    lines = ["| | " + " | ".join(title(*c) for c in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in results.items():
        cells = [
            f"{f['l0']:.1f} ({off(f, target):+.1%}), FVU {f['fvu']:.3f}"
            for (target, _), f in row.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
