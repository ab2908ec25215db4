"""In TransformerLens's environment: what its names hold in models saved in a folder.

For each model folder: `tokens.safetensors` in, `theirs.safetensors` out, name -> activations; heads
are laid side by side. With `centred.` before a name, of a model with centred writing weights.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as loading
from transformer_lens.config import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_llama_weights,
)
from transformers import AutoModelForCausalLM

WANTED = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    *("attn.hook_z", "mlp.hook_post"),
)


def by_hand(model):
    """Llama and Gemma 2, whose configurations it knows by the names of releases only."""
    c = model.config
    is_gemma = c.model_type == "gemma2"
    settings = {
        "d_model": c.hidden_size,
        "d_head": getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        "n_heads": c.num_attention_heads,
        "n_key_value_heads": c.num_key_value_heads,
        "d_mlp": c.intermediate_size,
        "n_layers": c.num_hidden_layers,
        "n_ctx": c.max_position_embeddings,
        "eps": c.rms_norm_eps,
        "d_vocab": c.vocab_size,
        "act_fn": "gelu_pytorch_tanh" if is_gemma else "silu",
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        "rotary_base": 10000.0,
        "rotary_adjacent_pairs": False,
        "final_rms": True,
        "gated_mlp": True,
        "original_architecture": type(model).__name__,
        "device": "cpu",
    }
    if is_gemma:
        settings |= {
            "use_normalization_before_and_after": True,
            "attn_scores_soft_cap": c.attn_logit_softcapping,
            "output_logits_soft_cap": c.final_logit_softcapping,
            "attn_scale": c.query_pre_attn_scalar**0.5,
            "use_local_attn": True,
            "window_size": c.sliding_window,
            "attn_types": ["global", "local"] * 8,
        }
    lens = HookedTransformer(HookedTransformerConfig(**settings))
    convert = convert_gemma_weights if is_gemma else convert_llama_weights
    lens.load_and_process_state_dict(
        convert(model, lens.cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return lens


def open_lens(folder, model, centred=False):
    if model.config.model_type in ("llama", "gemma2"):
        return by_hand(model)
    cfg = loading.get_pretrained_model_config(str(folder), fold_ln=centred, device="cpu")
    lens = HookedTransformer(cfg)
    lens.load_and_process_state_dict(
        loading.get_pretrained_state_dict(str(folder), cfg, model),
        fold_ln=centred,
        center_writing_weights=centred,
        center_unembed=centred,
        fold_value_biases=False,
    )
    return lens


@torch.no_grad()
def main(folders) -> None:
    for folder in map(Path, folders):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        tokens = load_file(folder / "tokens.safetensors")["tokens"]
        _, cache = open_lens(folder, model).run_with_cache(tokens)
        kept = {n: x for n, x in cache.items() if n.endswith(WANTED) or n == "hook_embed"}
        if model.config.model_type == "gpt2":
            _, cache = open_lens(folder, model, centred=True).run_with_cache(tokens)
            kept |= {f"centred.{n}": x for n, x in cache.items() if "hook_resid" in n}
        flat = {n: x.flatten(2).contiguous().clone() for n, x in kept.items()}
        save_file(flat, folder / "theirs.safetensors")


main(sys.argv[1:])
