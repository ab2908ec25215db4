"""Every architecture, three seeds, every suite, with verdicts: one table, made by one command.

    python benchmarks/evaluation_table.py [--quick] [--docs FILE] [--json FILE] [--out FOLDER]

Dictionaries of 2,048 features on the middle of the embedded model's residual stream, trained on one
pass of the model at L0 32 with the defaults of `monosemy train`, and measured by every suite at the
sizes of the tier `quick`. What is done stays in FOLDER: started again, the command goes on.
"""

import json
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch
from claims import Claim, parser, report, write_between

from monosemy import LM, evaluate, open_corpus, resume, sweep
from monosemy.coders import ARCHITECTURES, Dictionary
from monosemy.evaluation import SUITES, Tasks

HOOKPOINT, WIDTH, L0 = "layers.2", 2048, 32
SEEDS = (0, 1, 2)
QUESTIONS, TASK_NAME = 100, "next_line"
TASK = """\
task: next_line
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""

FIGURES = {
    "reconstruction": ["FVU", "L0", "CE increase", "loss recovered (mean)", "KL"],
    "health": ["dead rate", "median density", "dense", "Gini", "nearest cosine, mean"],
    "explanations": ["F1", "loss kept"],
    "probing": ["AUROC, k=1", "AUROC, k=5"],
    "probe_loss": ["probe loss, held out"],
    "tpp": ["TPP, 20 features"],
    "scr": ["SCR about the mean, 20 features"],
    "causal": ["ablation sparsity"],
    "stability": ["PW-MCC", "shared above 0.7"],
    "recovery": ["MCC", "recovery F1"],
    "benchmarks": [f"{TASK_NAME} acc"],
}
"""Suite -> rows of its tables that are shown."""
UNTRAINED = "untrained dictionary"
FVU = ("reconstruction", "FVU")


def main():
    options = parser(__doc__, docs=True)
    options.add_argument("--out", type=Path, default=Path("runs/evaluation-table"))
    args = options.parse_args()
    if args.quick:
        args.out = args.out.with_name(f"{args.out.name}-quick")
    torch.set_num_threads(args.threads)
    lm, corpus = LM("builtin:stdlib", device="cpu"), open_corpus("builtin:stdlib")
    architectures = ["batch_topk", "relu"] if args.quick else list(ARCHITECTURES)
    seeds = SEEDS[:2] if args.quick else SEEDS
    folders = trained(lm, corpus, architectures, seeds, args.out, quick=args.quick)
    tasks = Tasks((TASK_NAME,), questions(corpus, args.out / "tasks"), samples=QUESTIONS)
    # One process a core: much of the work is small, and gains little from two threads.
    with ProcessPoolExecutor(args.threads, mp_context=get_context("spawn")) as pool:
        waiting = {
            architecture: [pool.submit(measured, own, mine, tasks) for own in mine]
            for architecture, mine in folders.items()
        }
        found = {name: [one.result() for one in each] for name, each in waiting.items()}
    text = table(found)
    print(text)
    if args.docs:
        write_between(args.docs, Path(__file__).name, text)
    everyone = [one for every in found.values() for one in every]
    worst = max(value(one, *FVU) / value(one, *FVU, UNTRAINED) for one in everyone)
    report([Claim("worst_fvu_over_untrained", worst, 1.0, "ratio", False)], args.json)


def trained(lm, corpus, architectures, seeds, out, *, quick):
    """Return each architecture's run folders, one a seed."""
    draft = out / "draft"
    if draft.exists():
        resume(draft, lm, corpus)
    elif not (out / "runs").exists():
        sweep(
            lm,
            corpus,
            [HOOKPOINT],
            grid={"architecture": architectures, "k": [L0], "target_l0": [L0], "seed": seeds},
            width=WIDTH,
            tokens=100_000 if quick else 524_288,
            out=draft,
        )
    if draft.exists():
        draft.rename(out / "runs")
    folders = {name: [] for name in architectures}
    for folder in sorted(path.parent for path in (out / "runs").glob("*/dictionary")):
        folders[Dictionary.from_pretrained(folder).coder.architecture].append(folder)
    return folders


def questions(corpus, folder):
    """Write a task for `lm-eval`: which of four lines of held-out source comes next."""
    draw, rows = random.Random(0), []
    documents = [document.text.splitlines() for document in corpus.documents("held_out")]
    lines = [line for text in documents for line in text if len(line.strip()) > 20]
    while len(rows) < QUESTIONS:
        text = draw.choice(documents)
        at = draw.randrange(len(text))
        if at < 8 or len(text[at].strip()) <= 20:
            continue
        choices = [text[at], *draw.sample(lines, 3)]
        draw.shuffle(choices)
        question = "\n".join(text[at - 8 : at]) + "\n"
        rows.append({"question": question, "choices": choices, "answer": choices.index(text[at])})
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{TASK_NAME}.jsonl").resolve()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{TASK_NAME}.yaml").write_text(TASK.format(file=file))
    return folder


def measured(folder, seeds, tasks):
    """Return what every suite finds of a dictionary beside those of the other seeds, as JSON."""
    path = folder / "metrics.json"
    if not path.exists():
        torch.set_num_threads(1)
        others = [Dictionary.from_pretrained(other) for other in seeds if other != folder]
        # Ground truth is about the architecture, and has three seeds of its own.
        suites = [name for name in SUITES if name != "recovery" or folder == seeds[0]]
        result = evaluate(
            Dictionary.from_pretrained(folder),
            LM("builtin:stdlib", device="cpu"),
            tier="quick",
            suites=suites,
            others=others,
            tasks=tasks,
        )
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(result.to_dict()))
        draft.rename(path)
        print(f"{folder.name}: {result.verdict}", flush=True)
    return json.loads(path.read_text())


def table(found):
    """Return figures, a row each, of architectures, a column each: the mean of seeds, and range."""
    everyone = [one for every in found.values() for one in every]
    rows = [["", *found, UNTRAINED], ["---"] * (2 + len(found))]
    for suite, names in FIGURES.items():
        for name in names:
            cells = [cell([value(one, suite, name) for one in every]) for every in found.values()]
            beside = cell([value(one, suite, name, UNTRAINED) for one in everyone])
            rows.append([f"{suite}: {name}", *cells, beside])
    rows.append(["**verdict**", *(verdicts(every) for every in found.values()), ""])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *skipped(everyone)])


def value(one, suite, name, column="dictionary"):
    """Return a figure in one evaluation; None where there is none."""
    for result in one["suites"]:
        for each in result["tables"] if result["suite"] == suite else ():
            for row in each["rows"] if column in each["columns"] else ():
                found = row["values"][each["columns"].index(column)]
                if row["name"] == name and found is not None:
                    return found["value"]
    return None


def skipped(everyone):
    """Say which suites gave no figure, and why."""
    said = {}
    for one in everyone:
        for result in one["suites"]:
            if result["skipped"]:
                said.setdefault((result["suite"], result["skipped"]), []).append(one)
    for (suite, why), those in said.items():
        kinds = {one["context"]["architecture"] for one in those}
        of = "" if len(those) == len(everyone) else f" ({', '.join(sorted(kinds))})"
        yield f"- {suite}{of}: {why}"


def cell(values):
    """Return the mean of seeds, and their range."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    low, high = f"{min(known):.3f}", f"{max(known):.3f}"
    return low if low == high else f"{mean(known):.3f} ({low} to {high})"


def verdicts(every):
    """Say how many comparisons with baselines each seed's dictionary won and lost."""
    counts = []
    for one in every:
        outcomes = [j["outcome"] for suite in one["suites"] for j in suite["judgements"]]
        won, lost = outcomes.count("wins against"), outcomes.count("loses to")
        counts.append(f"{won} won, {lost} lost of {len(outcomes)}")
    better = sum(one["wins"] for one in every)
    return f"{better} of {len(every)} better than baselines: {'; '.join(counts)}"


if __name__ == "__main__":
    main()
