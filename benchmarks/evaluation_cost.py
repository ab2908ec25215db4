"""What an evaluation costs: by itself, against SAELens on the same tokens; and what noise scores.

    benchmarks/setup_peers.sh
    python benchmarks/evaluation_cost.py [--quick] [--json FILE]

A dictionary of 2,048 features is trained on the embedded model and measured at the tiers `quick`
and `standard`. Then SAELens's `run_evals`, with all its metrics, and our suite `reconstruction`
measure it on the very same rows of tokens, one document each, where definitions agree: the figures
are printed side by side. The ratio is that of the dictionary's figures alone, as SAELens has them;
with our three baselines it is printed too. SAELens has the better of two batch sizes. Last,
dictionaries of random directions are measured in tiny models of random weights: none may win.
"""

import io
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from claims import Claim, parser, report
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from monosemy import LM, evaluate, open_corpus, train
from monosemy.coders import Dictionary, Fingerprint, Provenance, make_coder
from monosemy.coders.provenance import TOKENS_AT_ONCE
from monosemy.corpus import Document
from monosemy.corpus.files import cut_text
from monosemy.evaluation import make_subject
from monosemy.evaluation.suites import reconstruction
from monosemy.lm.load import load_tokenizer, locate

HERE = Path(__file__).parent
PEERS = HERE / ".peers/bin/python"
HOOKPOINT, CONTEXT = "layers.2", 128
ROWS, LOSS_ROWS = 512, 128
SEEDS = 20


def main():
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    lm, corpus = LM("builtin:stdlib", device="cpu"), open_corpus("builtin:stdlib")
    tokens = 200_000 if args.quick else 1_000_000
    dictionary = train(lm, corpus, HOOKPOINT, tokens=tokens).dictionary
    claims = []
    for tier, target in (("quick", 20), ("standard", 180)):
        if tier == "quick" or not args.quick:
            seconds, result = timed(lambda tier=tier: evaluate(dictionary, lm, corpus, tier=tier))
            for suite in result.suites:
                print(f"{tier:10}{suite.suite:20}{suite.seconds:8.1f} s")
            claims.append(Claim(f"{tier}_seconds", seconds, target, "s", False))
    if PEERS.exists():
        ratio, difference = against_saelens(dictionary, lm, args.threads)
        claims.append(Claim("standard_vs_saelens", ratio, 0.5, "ratio", False))
        claims.append(Claim("figures_vs_saelens", difference, 1e-4, "difference", False))
    else:
        print("SAELens: run benchmarks/setup_peers.sh first", file=sys.stderr)
    wins = sum(random_wins(seed) for seed in range(5 if args.quick else SEEDS))
    claims.append(Claim("random_wins", wins, 0, "dictionaries", False))
    report(claims, args.json)


def timed(work):
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def against_saelens(dictionary, lm, threads):
    """Return our time over SAELens's on the same tokens, and how far figures differ."""
    corpus = pieces()
    alone = Dictionary.from_pretrained(save(dictionary))
    alone.provenance = replace(alone.provenance, packed=False, context=CONTEXT)
    whole, result, rows = ours(alone, lm, corpus)
    seconds, _, _ = ours(alone, lm, corpus, baselines=False)
    theirs = min(
        (saelens(alone, lm, rows, threads, batch) for batch in (8, 32)), key=lambda r: r["seconds"]
    )
    difference = compare(result, theirs["figures"], dictionary.d_in)
    print(
        f"monosemy {seconds:.1f} s, with three baselines {whole:.1f} s; "
        f"SAELens {theirs['seconds']:.1f} s"
    )
    return seconds / theirs["seconds"], difference


def ours(dictionary, lm, corpus, *, baselines=True):
    """Return the seconds that `reconstruction` takes, what it finds, and the rows it reads."""
    sizes = {"tokens": ROWS * (CONTEXT - 1), "loss_tokens": LOSS_ROWS * (CONTEXT - 2)}
    subject = make_subject(dictionary, lm, corpus, sizes=sizes)
    # Tokens are given, as to SAELens: text is read before the clock starts.
    held_out = islice(subject.stream("held_out"), ROWS * CONTEXT // TOKENS_AT_ONCE)
    batches = list(held_out)
    assert all(bool(batch.attention_mask.all()) for batch in batches), "a row is not full"
    mean = subject.sample[0].mean(0)
    fit = reconstruction.fit_baselines
    if not baselines:
        reconstruction.fit_baselines = lambda subject: ({}, mean)
    try:
        seconds, result = timed(lambda: reconstruction.run(subject))
    finally:
        reconstruction.fit_baselines = fit
    return seconds, result, torch.cat([batch.tokens for batch in batches])


def saelens(dictionary, lm, rows, threads, batch):
    """Return the seconds that SAELens's `run_evals` takes on rows of tokens, and its figures."""
    coder = dictionary.coder
    weights = {
        "W_enc": coder.W_enc.T.contiguous(),
        "W_dec": coder.W_dec.contiguous(),
        "b_enc": coder.b_enc,
        "b_dec": coder.b_dec,
        "threshold": coder.threshold.expand(coder.width).contiguous(),
    }
    with tempfile.TemporaryDirectory() as folder:
        save_file({"tokens": rows}, f"{folder}/rows.safetensors")
        save_file(weights, f"{folder}/sae.safetensors")
        command = [PEERS, HERE / "peers_eval.py", "--model", locate("builtin:stdlib")]
        command += ["--sae", f"{folder}/sae.safetensors", "--tokens", f"{folder}/rows.safetensors"]
        command += ["--hook", lm.hookpoint(HOOKPOINT).path, "--threads", str(threads)]
        command += ["--rows", str(ROWS), "--loss-rows", str(LOSS_ROWS), "--batch", str(batch)]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(ours, theirs, d):
    """Print figures side by side; return the largest difference where definitions agree.

    KL's do not: SAELens counts a row's last position too.
    """
    quality, loss = theirs["reconstruction_quality"], theirs["model_performance_preservation"]
    pairs = {
        "FVU": (ours.value("FVU"), 1 - quality["explained_variance"]),
        "MSE": (ours.value("MSE"), quality["mse"] / d),  # theirs is a sum over dimensions
        "cosine": (ours.value("cosine"), quality["cossim"]),
        "L0": (ours.value("L0"), theirs["sparsity"]["l0"]),
        "CE": (ours.value("CE"), loss["ce_loss_with_sae"]),
        "CE, original": (ours.context["ce"]["original"], loss["ce_loss_without_sae"]),
        "KL": (ours.value("KL"), theirs["model_behavior_preservation"]["kl_div_with_sae"]),
    }
    print(f"\n{'figure':16}{'monosemy':>14}{'SAELens':>14}{'difference':>14}")
    for name, (mine, its) in pairs.items():
        print(f"{name:16}{mine:14.6f}{its:14.6f}{abs(mine - its):14.2e}")
    return max(abs(mine - its) for name, (mine, its) in pairs.items() if name != "KL")


def pieces():
    """Return a corpus of pieces of the standard library, each longer than a row."""
    documents = []
    for document in open_corpus("builtin:stdlib").documents("all"):
        for start, text in cut_text(io.StringIO(document.text)):
            if len(text) > 2000:
                documents.append(Document(f"{document.id}:{start}", text))
    return open_corpus(documents, held_out=0.9)


def save(dictionary):
    return dictionary.save_pretrained(Path(tempfile.mkdtemp()) / "dictionary")


def random_wins(seed):
    """Say whether random directions in a model of random weights win."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer("builtin:stdlib")
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
    )
    lm = LM(LlamaForCausalLM(config), tokenizer)
    corpus = open_corpus("builtin:stdlib")
    coder = make_coder("topk", 64, 512, k=16, seed=seed).eval().requires_grad_(False)
    provenance = Provenance(
        model=lm.name, hookpoint="layers.0", context=CONTEXT, corpus=corpus.describe()
    )
    dictionary = Dictionary(
        coder,
        provenance,
        torch.zeros(512),
        torch.zeros(64),
        1.0,
        Fingerprint.record(lm, coder, provenance, corpus),
    )
    dictionary.provenance.training["held_out"] = {"l0": 16.0}
    return evaluate(dictionary, lm, corpus, tier="quick", seed=seed).wins


if __name__ == "__main__":
    main()
