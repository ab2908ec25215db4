"""SAELens's `run_evals` on a dictionary and tokens of ours: its time, and its figures.

Runs in the environment that `benchmarks/setup_peers.sh` makes, and imports nothing of monosemy:

    benchmarks/.peers/bin/python benchmarks/peers_eval.py --model FOLDER --sae sae.safetensors \
        --hook model.layers.4 --tokens rows.safetensors --rows 512 --loss-rows 128

The first file holds W_enc [d, width], W_dec, b_enc, b_dec and threshold [width]; the second
"tokens" [rows, context]. The last line on stdout is one JSON object.
"""

import argparse
import contextlib
import json
import sys
import time

import torch
from datasets import Dataset
from safetensors.torch import load_file


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--sae", required=True)
    parser.add_argument("--hook", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--rows", type=int, required=True, help="for reconstruction")
    parser.add_argument("--loss-rows", type=int, required=True, help="for the effect on the loss")
    parser.add_argument("--batch", type=int, default=32, help="rows at a time")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(args)
    print(json.dumps(result))


def measure(args):
    from sae_lens import ActivationsStore, JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.load_model import load_model
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.activation_scaler import ActivationScaler

    tokens = load_file(args.tokens)["tokens"]
    weights = load_file(args.sae)
    d, width = weights["W_enc"].shape
    model = load_model(
        "AutoModelForCausalLM",
        args.model,
        device="cpu",
        hook_names=[args.hook],
        model_from_pretrained_kwargs={"dtype": torch.float32},  # else it is the checkpoint's, fp16
    )
    metadata = SAEMetadata(hook_name=args.hook, model_name=args.model, prepend_bos=True)
    sae = JumpReLUSAE(
        JumpReLUSAEConfig(d_in=d, d_sae=width, apply_b_dec_to_input=False, metadata=metadata)
    )
    sae.load_state_dict(weights)
    store = ActivationsStore(
        model=model,
        dataset=Dataset.from_dict({"tokens": tokens.tolist()}),
        streaming=False,
        hook_name=args.hook,
        hook_head_index=None,
        context_size=tokens.shape[1],
        d_in=d,
        n_batches_in_buffer=2,
        total_training_tokens=tokens.numel(),
        store_batch_size_prompts=args.batch,
        train_batch_size_tokens=4096,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
    config = get_eval_everything_config(
        batch_size_prompts=args.batch,
        n_eval_reconstruction_batches=args.loss_rows // args.batch,
        n_eval_sparsity_variance_batches=args.rows // args.batch,
    )
    began = time.perf_counter()
    figures, _ = run_evals(
        sae=sae,
        activation_store=store,
        model=model,
        activation_scaler=ActivationScaler(),
        eval_config=config,
    )
    return {"seconds": time.perf_counter() - began, "figures": figures}


if __name__ == "__main__":
    main()
