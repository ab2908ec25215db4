"""SAEDashboard on a model, a dictionary and rows of tokens of ours: its time for some features.

Runs in the environment that `benchmarks/setup_dashboard.sh` makes, and imports nothing of monosemy:

    benchmarks/.dashboard/bin/python benchmarks/peers_dashboard.py --model FOLDER --inputs FILE \
        --hook blocks.2.hook_resid_post --features 512

The model's folder holds a Llama's config.json and model.safetensors; the other file W_enc
[d, width], W_dec, b_enc, b_dec, threshold [width] and "tokens" [rows, context]. The model's
activations are cached on disk, as it can do: the first batch of features runs the model, the others
read. The last line on stdout is one JSON object.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import HookedSAETransformer
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import load_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import LlamaConfig, LlamaForCausalLM

BATCH = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--hook", required=True)
    parser.add_argument("--features", type=int, default=2 * BATCH)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(args)
    print(json.dumps(result))


def measure(args):
    inputs = load_file(args.inputs)
    tokens = inputs.pop("tokens").long()
    model, sae = make_model(args.model), make_sae(inputs, args.hook)
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for first in range(0, args.features, BATCH):
            features = list(range(first, first + BATCH))
            config = SaeVisConfig(
                hook_point=args.hook,
                features=features,
                minibatch_size_features=BATCH,
                cache_dir=Path(cache),
            )
            began = time.perf_counter()
            data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
            seconds.append(time.perf_counter() - began)
    strongest = {}
    for feature in features[:32]:
        groups = data.feature_data_dict[feature].sequence_data.seq_group_data
        shown = [
            pair
            for group in groups
            for s in group.seq_data
            for pair in zip(s.feat_acts, s.token_ids, strict=True)
        ]
        strongest[feature] = max(shown, default=(0.0, -1))  # and the token it is at
    return {"seconds": seconds, "batch": BATCH, "tokens": tokens.numel(), "strongest": strongest}


def make_model(folder):
    """Return the model as TransformerLens has it."""
    values = json.loads((folder / "config.json").read_text())
    theta = values.pop("rope_parameters")["rope_theta"]
    llama = LlamaForCausalLM(LlamaConfig(**{**values, "dtype": "float32", "rope_theta": theta}))
    llama.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    llama.tie_weights()
    config = HookedTransformerConfig(
        n_layers=values["num_hidden_layers"],
        d_model=values["hidden_size"],
        n_ctx=values["max_position_embeddings"],
        n_heads=values["num_attention_heads"],
        d_head=values["head_dim"],
        d_mlp=values["intermediate_size"],
        d_vocab=values["vocab_size"],
        act_fn="silu",
        normalization_type="RMS",
        eps=values["rms_norm_eps"],
        positional_embedding_type="rotary",
        rotary_dim=values["head_dim"],
        rotary_base=theta,
        final_rms=True,
        gated_mlp=True,
        default_prepend_bos=False,
        original_architecture="LlamaForCausalLM",
        dtype=torch.float32,
        device="cpu",
    )
    model = HookedSAETransformer(config)
    model.load_state_dict(convert_llama_weights(llama.float(), config), strict=False)
    return model.eval()


def make_sae(weights, hook):
    """Return the dictionary as SAELens has it: BatchTopK at inference is a threshold."""
    d, width = weights["W_enc"].shape
    config = JumpReLUSAEConfig(
        d_in=d, d_sae=width, dtype="float32", device="cpu", apply_b_dec_to_input=False
    )
    config.metadata.hook_name = hook
    sae = JumpReLUSAE(config)
    sae.load_state_dict(weights)
    return sae.eval()


if __name__ == "__main__":
    main()
