"""Files of published suites, made by hand from their layouts, and what they are to compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

D, WIDTH, K = 6, 20, 3


@dataclass
class Made:
    """Files, and what they compute."""

    path: Path
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, Tensor], Tensor]
    """Of features and what was encoded."""
    model: str | None = None
    hookpoint: str | None = None
    target: str | None = None


def random(*shape: int) -> Tensor:
    return torch.randn(*shape)


def jump(pre: Tensor, bar: Tensor | float) -> Tensor:
    return pre * (pre > bar) * (pre > 0)


def largest(pre: Tensor, k: int = K, by: Tensor | float = 1.0) -> Tensor:
    chosen = (pre.relu() * by).topk(k, dim=-1).indices
    return torch.zeros_like(pre).scatter(-1, chosen, pre.relu().gather(-1, chosen))


def save_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def openai(folder: Path, activation: str = "TopK", tied: bool = False) -> Made:
    bias, w_enc, b_enc = random(D), random(WIDTH, D), random(WIDTH)
    w_dec = w_enc.T.clone() if tied else random(D, WIDTH)
    decoder = {"decoder.linear.weight": w_enc} if tied else {"decoder.weight": w_dec}
    state = {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {}
    path = folder / "resid_post_mlp_v5_32k" / "autoencoders" / "8.pt"
    path.parent.mkdir(parents=True)
    torch.save(
        {
            "pre_bias": bias,
            "encoder.weight": w_enc,
            "latent_bias": b_enc,
            **decoder,
            "stats_last_nonzero": torch.zeros(WIDTH, dtype=torch.long),
            "latents_activation_frequency": torch.ones(WIDTH),
            "latents_mean_square": torch.zeros(WIDTH),
            "activation": activation,
            "activation_state_dict": state,
        },
        path,
    )

    def spread(x: Tensor) -> Tensor:
        std = (x - x.mean(-1, keepdim=True)).std(-1, keepdim=True)
        return std if activation == "TopK" else torch.ones_like(std)

    def encode(x: Tensor) -> Tensor:
        if activation == "ReLU":
            return ((x - bias) @ w_enc.T + b_enc).relu()
        normal = (x - x.mean(-1, keepdim=True)) / (spread(x) + 1e-5)
        # Their features are of the normalised token; ours are in units of x.
        return largest((normal - bias) @ w_enc.T + b_enc) * spread(x)

    def decode(z: Tensor, x: Tensor) -> Tensor:
        if activation == "ReLU":
            return z @ w_dec.T + bias
        return z @ w_dec.T + bias * spread(x) + x.mean(-1, keepdim=True)

    return Made(path, encode, decode, "openai-community/gpt2", "layers.8")


def gemma_scope(
    folder: Path, repo: str = "gemma-scope-2b-pt-res", at: str = "layer_5/width_16k/average_l0_70"
) -> Made:
    w_enc, w_dec, b_enc, b_dec = random(D, WIDTH), random(WIDTH, D), random(WIDTH), random(D)
    bar = torch.rand(WIDTH)
    path = folder / f"models--google--{repo}" / "snapshots" / "abc" / at
    path.mkdir(parents=True)
    arrays = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": bar}
    np.savez(path / "params.npz", **{n: t.numpy() for n, t in arrays.items()})
    return Made(
        path,
        lambda x: jump(x @ w_enc + b_enc, bar),
        lambda z, x: z @ w_dec + b_dec,
        "google/gemma-2-2b",
        "layers.5",
    )


def gemma_scope_2(folder: Path, configured: bool = True) -> Made:
    w_enc, w_dec, b_enc, b_dec = random(D, WIDTH), random(WIDTH, D), random(WIDTH), random(D)
    bar, skip = torch.rand(WIDTH), random(D, D)
    repo = folder / "models--google--gemma-scope-2-1b-pt" / "snapshots" / "abc"
    path = repo / "transcoder" / "layer_7_width_16k_l0_small_affine"
    path.mkdir(parents=True)
    tensors = {"w_enc": w_enc, "w_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": bar}
    save_file({**tensors, "affine_skip_connection": skip}, path / "params.safetensors")
    if configured:
        settings = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-1b-pt",
            "hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output",
            "hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output",
            "affine_connection": True,
        }
        save_json(path / "config.json", settings)
    return Made(
        path,
        lambda x: jump(x @ w_enc + b_enc, bar),
        lambda z, x: z @ w_dec + b_dec + x @ skip,
        "google/gemma-3-1b-pt",
        "layers.7.pre_feedforward_layernorm",
        "layers.7.post_feedforward_layernorm",
    )


def llama_scope(folder: Path, act_fn: str = "jumprelu") -> Made:
    w_enc, w_dec, b_enc, b_dec = random(WIDTH, D), random(D, WIDTH), random(WIDTH), random(D)
    path = folder / "Llama3_1-8B-Base-L15R-8x"
    settings = {
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "d_model": D,
        "d_sae": WIDTH,
        "expansion_factor": 8,
        "act_fn": act_fn,
        "jump_relu_threshold": 0.3,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
        "sparsity_include_decoder_norm": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_decoder_bias": True,
        "top_k": K,
    }
    save_json(path / "hyperparams.json", settings)
    (path / "checkpoints").mkdir()
    tensors = {"encoder.weight": w_enc, "encoder.bias": b_enc}
    tensors |= {"decoder.weight": w_dec, "decoder.bias": b_dec}
    save_file(tensors, path / "checkpoints" / "final.safetensors")
    scale = D**0.5 / 4.0

    def encode(x: Tensor) -> Tensor:
        pre = scale * x @ w_enc.T + b_enc
        return (
            jump(pre, 0.3 * scale) if act_fn == "jumprelu" else largest(pre, by=w_dec.norm(dim=0))
        )

    return Made(
        path,
        encode,
        lambda z, x: (z @ w_dec.T + b_dec) / scale,
        "meta-llama/Llama-3.1-8B",
        "layers.15",
    )


def llama_scope_r1(folder: Path) -> Made:
    w_enc, w_dec, b_enc, b_dec = random(WIDTH, D), random(D, WIDTH), random(WIDTH), random(D)
    log = random(WIDTH) * 0.3 - 1
    path = folder / "Llama-Scope-R1-Distill" / "400M" / "L3R"
    hook = "blocks.3.hook_resid_post"
    save_json(
        path / "config.json",
        {
            "sae_type": "sae",
            "d_model": D,
            "expansion_factor": WIDTH / D,
            "hook_point_in": hook,
            "act_fn": "jumprelu",
            "norm_activation": "dataset-wise",
            "sparsity_include_decoder_norm": False,
        },
    )
    tensors = {"encoder.weight": w_enc, "encoder.bias": b_enc}
    tensors |= {"decoder.weight": w_dec, "decoder.bias": b_dec, "log_jumprelu_threshold": log}
    norm = {f"dataset_average_activation_norm.{hook}": torch.tensor(2.5)}
    save_file({**tensors, **norm}, path / "sae_weights.safetensors")
    scale = D**0.5 / 2.5
    return Made(
        path,
        lambda x: jump(scale * x @ w_enc.T + b_enc, log.exp()),
        lambda z, x: (z @ w_dec.T + b_dec) / scale,
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "layers.3",
    )


def llamascopium(
    folder: Path, act_fn: str = "jumprelu", by_norm: bool = True, norm: str = "dataset-wise"
) -> Made:
    w_enc, w_dec, b_enc, b_dec = random(D, WIDTH), random(WIDTH, D), random(WIDTH), random(D)
    log = random(WIDTH) * 0.3 - 1
    hooks = ("blocks.4.ln2.hook_normalized", "blocks.4.hook_mlp_out")
    path = folder / "sae"
    save_json(
        path / "config.json",
        {
            "sae_type": "sae",
            "d_model": D,
            "expansion_factor": WIDTH / D,
            "use_decoder_bias": True,
            "act_fn": act_fn,
            "norm_activation": norm,
            "sparsity_include_decoder_norm": by_norm,
            "top_k": K,
            "hook_point_in": hooks[0],
            "hook_point_out": hooks[1],
            "use_glu_encoder": False,
        },
    )
    tensors = {"W_E": w_enc, "b_E": b_enc, "W_D": w_dec, "b_D": b_dec}
    if act_fn == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = log
    norms = (4.0, 7.0)
    for hook, value in zip(hooks, norms, strict=True):
        tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(value)
    save_file(tensors, path / "sae_weights.safetensors")
    scales = [D**0.5 / n if norm == "dataset-wise" else 1.0 for n in norms]
    lengths = w_dec.norm(dim=1) if by_norm else torch.ones(WIDTH)

    def encode(x: Tensor) -> Tensor:
        pre = (scales[0] * x @ w_enc + b_enc) * lengths
        if act_fn == "relu":
            return pre.relu() / lengths
        return (jump(pre, log.exp()) if act_fn == "jumprelu" else largest(pre)) / lengths

    return Made(
        path,
        encode,
        lambda z, x: (z @ w_dec + b_dec) / scales[1],
        None,
        hooks[0],
        "layers.4.mlp",
    )


def qwen_scope(folder: Path) -> Made:
    w_enc, w_dec, b_enc, b_dec = random(WIDTH, D), random(D, WIDTH), random(WIDTH), random(D)
    path = folder / f"models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}" / "snapshots" / "abc"
    path.mkdir(parents=True)
    tensors = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}
    torch.save(tensors, path / "layer9.sae.pt")
    return Made(
        path / "layer9.sae.pt",
        lambda x: largest(x @ w_enc.T + b_enc),
        lambda z, x: z @ w_dec.T + b_dec,
        "Qwen/Qwen3-1.7B-Base",
        "layers.9",
    )


def goodfire(folder: Path) -> Made:
    w_enc, w_dec, b_enc, b_dec = random(WIDTH, D), random(D, WIDTH), random(WIDTH), random(D)
    path = folder / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    tensors = {"encoder_linear.weight": w_enc, "encoder_linear.bias": b_enc}
    tensors |= {"decoder_linear.weight": w_dec, "decoder_linear.bias": b_dec}
    torch.save(tensors, path)
    return Made(
        path,
        lambda x: (x @ w_enc.T + b_enc).relu(),
        lambda z, x: z @ w_dec.T + b_dec,
        "meta-llama/Llama-3.1-8B-Instruct",
        "layers.19",
    )


def hook_z(folder: Path) -> Made:
    w_enc, w_dec, b_enc, b_dec = random(D, WIDTH), random(WIDTH, D), random(WIDTH), random(D)
    torch.save({"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}, folder / "L5.pt")
    settings = {"act_size": D, "dict_size": WIDTH, "act_name": "blocks.5.attn.hook_z"}
    save_json(folder / "L5_cfg.json", settings)
    return Made(
        folder / "L5.pt",
        lambda x: ((x - b_dec) @ w_enc + b_enc).relu(),
        lambda z, x: z @ w_dec + b_dec,
        "openai-community/gpt2",
        "blocks.5.attn.hook_z",
    )


def circuit_tracer(folder: Path, jumps: bool = True, old: bool = False, skip: bool = True) -> Made:
    w_enc, w_dec, b_enc, b_dec = random(WIDTH, D), random(WIDTH, D), random(WIDTH), random(D)
    bar, w_skip = torch.rand(WIDTH), random(D, D) * skip
    tensors = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}
    if skip:
        tensors["W_skip"] = w_skip
    if jumps:
        tensors["activation_function.threshold"] = bar
    save_file(tensors, folder / "layer_2.safetensors")
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    settings = {"model_name": "Qwen/Qwen3-0.6B", "model_kind": "transcoder_set"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings if old else settings | hooks))
    if old:
        sizes = {"d_model": {"value": D}, "d_feature": {"value": WIDTH}}
        (folder / "wandb-config.yaml").write_text(
            yaml.safe_dump(sizes | {"batch_size": {"value": 64}})
        )
    return Made(
        folder / "layer_2.safetensors",
        lambda x: jump(x @ w_enc.T + b_enc, bar if jumps else 0.0),
        lambda z, x: z @ w_dec + b_dec + x @ w_skip.T,
        "Qwen/Qwen3-0.6B",
        "layers.2.mlp.input",
        "layers.2.mlp",
    )


MAKERS: dict[str, Callable[..., Made]] = {
    "openai": openai,
    "gemma_scope": gemma_scope,
    "gemma_scope_2": gemma_scope_2,
    "llama_scope": llama_scope,
    "llama_scope-r1": llama_scope_r1,
    "llamascopium": llamascopium,
    "qwen_scope": qwen_scope,
    "goodfire": goodfire,
    "hook_z": hook_z,
    "circuit_tracer": circuit_tracer,
}
"""A format, and after a hyphen one of its kinds -> what makes its files."""
