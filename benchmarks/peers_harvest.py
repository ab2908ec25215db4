"""SAELens's activation store: its speed on a GPT-2-small-shaped model, and its size on disk.

Runs in the environment that `benchmarks/setup_peers.sh` makes, and imports nothing of monosemy:

    benchmarks/.peers/bin/python benchmarks/peers_harvest.py --tokens rows.safetensors [--size]

The file holds "tokens" [rows, 128]. The last line on stdout is one JSON object.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Array2D, Dataset, Features, Sequence, Value
from safetensors.torch import load_file

LAYER, D, CONTEXT = 5, 768, 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--size", action="store_true", help="measure the size on disk instead")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(load_file(args.tokens)["tokens"], args)
    print(json.dumps(result))


def measure(tokens, args):
    if args.size:
        n = tokens.numel()
        return {"bytes_per_token": bytes_on_disk(torch.randn(n, D), tokens) / n}
    store = make_store(tokens)
    speeds = {}
    for mode in ("defaults", "autocast_lm"):
        store.autocast_lm = mode == "autocast_lm"
        store.get_raw_llm_batch()
        seconds = [timed(store) for _ in range(args.batches)]
        speeds[mode] = 32 * CONTEXT / min(seconds)
    return speeds


def timed(store):
    began = time.perf_counter()
    store.get_raw_llm_batch()
    return time.perf_counter() - began


def make_store(tokens):
    """Return the store with SAELens's own defaults."""
    from sae_lens import ActivationsStore
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=12,
            d_model=D,
            n_ctx=1024,
            d_head=64,
            n_heads=12,
            d_mlp=4 * D,
            d_vocab=50257,
            act_fn="gelu_new",
            normalization_type="LN",
            device="cpu",
        )
    )
    rows = Dataset.from_dict({"tokens": tokens.tolist()})
    return ActivationsStore(
        model=model,
        dataset=rows,
        streaming=False,
        hook_name=f"blocks.{LAYER}.hook_resid_post",
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=D,
        n_batches_in_buffer=20,
        total_training_tokens=2_000_000,
        store_batch_size_prompts=32,
        train_batch_size_tokens=4096,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )


def bytes_on_disk(activations, ids):
    """Return the size of a data set as `CacheActivationsRunner` writes it, by its own columns."""
    rows = activations.reshape(-1, CONTEXT, D)
    features = Features(
        {
            "hook": Array2D(shape=(CONTEXT, D), dtype="float32"),
            "token_ids": Sequence(Value(dtype="int32"), length=CONTEXT),
        }
    )
    columns = {"hook": rows.numpy(), "token_ids": ids.reshape(-1, CONTEXT).int().numpy()}
    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_dict(columns, features=features).save_to_disk(folder)
        return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


if __name__ == "__main__":
    main()
