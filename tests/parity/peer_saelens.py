"""SAELens's side: `save FOLDER` writes dictionaries and what they give, `run FOLDER` runs ours."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import sae_lens as sl
import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
D, WIDTH, OUT, K = 12, 40, 7, 6


def randomise(sae):
    """All parameters random, decoder norms from 0.5 to 2, thresholds positive."""
    with torch.no_grad():
        for name, values in sae.named_parameters():
            values.copy_(torch.randn_like(values) * 0.3)
            if name == "W_dec":
                norms = 0.5 + 1.5 * torch.rand(len(values), 1)
                values.copy_(values / values.norm(dim=1, keepdim=True) * norms)
            if name == "threshold":
                values.copy_(values.abs())
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.4)
    return sae


def keep(sae, x, folder):
    with torch.no_grad():
        z = sae.encode(x)
        found = {"z": z.to_dense().clone(), "out": sae(x).clone(), "x": x}
    save_file({n: t.contiguous() for n, t in found.items()}, folder / "found.safetensors")


def save(folder):
    about = {
        "model_name": "gpt2-small",
        "hook_name": "blocks.1.hook_resid_post",
        "context_size": 64,
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
    }

    def config(kind, **fields):
        return kind(d_in=D, d_sae=WIDTH, metadata=meta(), **fields)

    def meta():
        from sae_lens.saes.sae import SAEMetadata

        return SAEMetadata(**about, hook_name_out="blocks.1.hook_mlp_out")

    x = torch.randn(30, D) * 2 + 0.5
    small = sl.MatchingPursuitSAEConfig
    plain = {
        "standard": (sl.StandardSAE, sl.StandardSAEConfig, {}),
        "bare": (sl.StandardSAE, sl.StandardSAEConfig, {"apply_b_dec_to_input": False}),
        "topk": (sl.TopKSAE, sl.TopKSAEConfig, {"k": K}),
        "topk_norms": (
            sl.TopKSAE,
            sl.TopKSAEConfig,
            {"k": K, "rescale_acts_by_decoder_norm": True},
        ),
        "abstopk": (sl.AbsTopKSAE, sl.AbsTopKSAEConfig, {"k": K}),
        "abstopk_norms": (
            sl.AbsTopKSAE,
            sl.AbsTopKSAEConfig,
            {"k": K, "rescale_acts_by_decoder_norm": True},
        ),
        "jumprelu": (sl.JumpReLUSAE, sl.JumpReLUSAEConfig, {}),
        "gated": (sl.GatedSAE, sl.GatedSAEConfig, {}),
        "layer_norm": (
            sl.StandardSAE,
            sl.StandardSAEConfig,
            {"normalize_activations": "layer_norm"},
        ),
        "rms": (
            sl.JumpReLUSAE,
            sl.JumpReLUSAEConfig,
            {"normalize_activations": "constant_norm_rescale"},
        ),
        "pursuit": (sl.MatchingPursuitSAE, small, {"max_iterations": 9}),
        "pursuit_bare": (
            sl.MatchingPursuitSAE,
            small,
            {
                "stop_on_duplicate_support": False,
                "residual_threshold": 1.0,
                "apply_b_dec_to_input": False,
                "max_iterations": 9,
            },
        ),
    }
    across = {"d_out": OUT, "apply_b_dec_to_input": False}
    plain |= {
        "transcoder": (sl.Transcoder, sl.TranscoderConfig, across),
        "skip": (sl.SkipTranscoder, sl.SkipTranscoderConfig, across),
        "jump": (sl.JumpReLUTranscoder, sl.JumpReLUTranscoderConfig, across),
        "jump_skip": (sl.JumpReLUSkipTranscoder, sl.JumpReLUSkipTranscoderConfig, across),
    }
    for name, (kind, settings, fields) in plain.items():
        sae = randomise(kind(config(settings, **fields)))
        if "pursuit" in name:  # of unit norm, as it is trained
            with torch.no_grad():
                sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.save_model(folder / name)
        keep(sae, x, folder / name)
    trained = {
        "standard": (sl.StandardTrainingSAE, sl.StandardTrainingSAEConfig, {}),
        "gated": (sl.GatedTrainingSAE, sl.GatedTrainingSAEConfig, {}),
        "jumprelu": (sl.JumpReLUTrainingSAE, sl.JumpReLUTrainingSAEConfig, {}),
        "topk": (sl.TopKTrainingSAE, sl.TopKTrainingSAEConfig, {"k": K}),
        "abstopk": (sl.AbsTopKTrainingSAE, sl.AbsTopKTrainingSAEConfig, {"k": K}),
        "batchtopk": (sl.BatchTopKTrainingSAE, sl.BatchTopKTrainingSAEConfig, {"k": 4.6}),
        "batchtopk_free": (
            sl.BatchTopKTrainingSAE,
            sl.BatchTopKTrainingSAEConfig,
            {"k": 5, "rescale_acts_by_decoder_norm": False},
        ),
        "matryoshka": (
            sl.MatryoshkaBatchTopKTrainingSAE,
            sl.MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": 5, "matryoshka_widths": [8, 20, WIDTH]},
        ),
        "pursuit": (
            sl.MatchingPursuitTrainingSAE,
            sl.MatchingPursuitTrainingSAEConfig,
            {"max_iterations": 5},
        ),
    }
    whitener = torch.randn(D, D, dtype=torch.float64) / D**0.5 + torch.eye(D, dtype=torch.float64)
    mean = torch.randn(D, dtype=torch.float64)
    for name, (kind, settings, fields) in trained.items():
        for how in ("none", "expected_average_only_in", "covariance_whitening"):
            if name == "pursuit" and how != "none":
                continue
            sae = randomise(kind(config(settings, normalize_activations=how, **fields)))
            if name == "pursuit":
                with torch.no_grad():
                    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
            at = folder / f"checkpoint_{name}_{how}"
            sae.save_model(at)
            scaler = {"scaling_factor": None, "has_whitening": False}
            if how == "expected_average_only_in":
                scaler["scaling_factor"] = 0.6
                sae.fold_activation_norm_scaling_factor(0.6)
            if how == "covariance_whitening":
                inverse = torch.linalg.inv(whitener).contiguous()
                save_file(
                    {"mean": mean, "matrix": whitener, "inverse_matrix": inverse},
                    at / "activation_whitening.safetensors",
                )
                sae.fold_activation_whitening(mean, whitener, inverse)
            (at / "activation_scaler.json").write_text(json.dumps(scaler))
            end = folder / f"inference_{name}_{how}"
            sae.save_inference_model(end)
            final = sl.SAE.load_from_disk(end)
            keep(final, x, end)
            keep(final, x, at)
    # The flat layouts, as they were, with what its own loader makes of them.
    flat = {
        "v5": {
            "architecture": "standard",
            "activation_fn_str": "relu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "hook_name": "blocks.1.hook_resid_post",
        },
        "v5_topk": {
            "architecture": "standard",
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 5},
            "hook_name": "blocks.1.hook_mlp_out",
        },
        "v5_jumprelu": {
            "architecture": "jumprelu",
            "activation_fn_str": "relu",
            "hook_name": "blocks.1.hook_resid_pre",
        },
        "v5_gated": {"architecture": "gated", "hook_name": "blocks.1.hook_resid_pre"},
        "oldest": {
            "hook_point": "blocks.1.hook_resid_pre",
            "hook_point_layer": 1,
            "normalize_activations": False,
        },
    }
    for name, fields in flat.items():
        at = folder / f"flat_{name}"
        shape = {"W_enc": (D, WIDTH), "W_dec": (WIDTH, D), "b_dec": (D,)}
        architecture = fields.get("architecture", "standard")
        more = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
        shape |= dict.fromkeys(more.get(architecture, ("b_enc",)), (WIDTH,))
        tensors = {n: torch.randn(s) * 0.4 for n, s in shape.items()}
        if name == "oldest":
            tensors["scaling_factor"] = torch.ones(WIDTH)
        at.mkdir()
        save_file(tensors, at / "sae_weights.safetensors")
        settings = {
            "d_in": D,
            "d_sae": WIDTH,
            "dtype": "torch.float32",
            "model_name": "gpt2-small",
            "context_size": 64,
            "dataset_path": "someone/text",
            **fields,
        }
        (at / "cfg.json").write_text(json.dumps(settings))
        keep(sl.SAE.load_from_disk(at), x, at)


def run(folder):
    for at in sorted(folder.iterdir()):
        x = load_file(at / "given.safetensors")["x"]
        sae = sl.SAE.load_from_disk(at / "exported")
        keep(sae, x, at)


if __name__ == "__main__":
    torch.manual_seed(0)
    {"save": save, "run": run}[sys.argv[1]](Path(sys.argv[2]))
