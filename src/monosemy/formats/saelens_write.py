"""Dictionaries as SAELens 6 reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from monosemy.coders import Dictionary, SparseCoder
from monosemy.coders.coder import DIVIDING
from monosemy.errors import UserError
from monosemy.formats.format import RELU, plain
from monosemy.formats.saelens_metadata import SETTINGS, metadata

WEIGHTS = "sae_weights.safetensors"
NORMALISATIONS = {
    "": "none",
    "centre": "none",
    "layer_norm": "layer_norm",
    "rms": "constant_norm_rescale",
}
_TRAINED_AS = {"batch_topk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}


def write(dictionary: Dictionary, folder: Path) -> list[str]:
    """Write a dictionary in SAELens's version 6.

    Raises:
        UserError: SAELens has no architecture that does the same.
    """
    coder, lost = dictionary.coder, ["the fingerprint, features' strengths and mean activation"]
    weights = plain(coder)
    architecture, extra = _architecture(coder, weights, lost)
    if dictionary.is_transcoder or coder.W_skip is not None:
        architecture = _transcoder(coder, architecture)
        extra["d_out"] = coder.d_out
    if coder.normalise in DIVIDING:
        lost.append("features in units of activations: SAELens gives them per token's spread")
    about = metadata(dictionary, lost)
    if coder.architecture in _TRAINED_AS:
        about["training_architecture"] = _TRAINED_AS[coder.architecture]
        about["training_architecture_details"] = _details(coder)
    if not math.isnan(dictionary.l0):
        about["l0"] = dictionary.l0
    settings = {
        "architecture": architecture,
        "d_in": coder.d_in,
        "d_sae": coder.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": architecture == "matching_pursuit",
        "normalize_activations": NORMALISATIONS[coder.normalise],
        "reshape_activations": "none",
        **extra,
        "metadata": about,
    }
    weights["W_enc"] = weights["W_enc"].T.contiguous()
    if architecture == "matching_pursuit":
        del weights["W_enc"]
    save_file(weights, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2), "utf-8")
    return lost


def _architecture(
    coder: SparseCoder, weights: dict[str, Tensor], lost: list[str]
) -> tuple[str, dict[str, Any]]:
    """Bring weights into SAELens's form; return its architecture and fields of its own."""
    ours, importance = coder.architecture, weights.pop("importance", None)
    if ours in RELU:
        return "standard", {}
    if ours == "topk":
        if importance is not None:
            _weigh(weights, importance)
            lost.append("features' scale: they come out times the importance they compare by")
        return "topk", {"k": coder.options()["k"], "rescale_acts_by_decoder_norm": False}
    if ours == "jumprelu":
        weights["threshold"] = weights.pop("log_threshold").exp()
        return "jumprelu", {}
    if ours in _TRAINED_AS:
        weights["threshold"] = _thresholds(weights["threshold"], importance, weights["b_enc"])
        lost.append("that its threshold was set by k: it is a JumpReLU there")
        return "jumprelu", {}
    if ours == "gated":
        weights["b_gate"] = weights.pop("b_enc")
        return "gated", {}
    if ours == "matching_pursuit" and torch.equal(weights["W_enc"], weights["W_dec"]):
        del weights["b_enc"]
        options = coder.options()
        return "matching_pursuit", {
            "max_iterations": options["steps"],
            "residual_threshold": options["stop_norm"],
            "stop_on_duplicate_support": options["stop_repeating"],
        }
    raise UserError(
        f"SAELens has no architecture that does what `{ours}` does",
        f"allowed: {', '.join([*RELU, 'topk', 'jumprelu', *_TRAINED_AS, 'gated'])}",
    )


def _weigh(weights: dict[str, Tensor], importance: Tensor) -> None:
    """Make features what they compare by."""
    weights["W_enc"] = weights["W_enc"] * importance[:, None]
    weights["b_enc"] = weights["b_enc"] * importance
    weights["W_dec"] = weights["W_dec"] / importance[:, None]


def _thresholds(threshold: Tensor, importance: Tensor | None, like: Tensor) -> Tensor:
    """Return what each feature must exceed, where all must reach a bar times their importance."""
    bar = torch.full_like(like, float(threshold))
    if importance is not None:
        bar = bar / importance
    return bar.nextafter(torch.tensor(-torch.inf)).clamp_min(0)


def _transcoder(coder: SparseCoder, architecture: str) -> str:
    if architecture not in ("standard", "jumprelu") or coder.normalise:
        normalised = f" with `{coder.normalise}`" if coder.normalise else ""
        raise UserError(
            f"SAELens has no transcoder of `{coder.architecture}`{normalised}",
            f"allowed: {', '.join([*RELU, 'jumprelu', *_TRAINED_AS])}, with no normalisation",
        )
    start = "" if architecture == "standard" else "jumprelu_"
    return f"{start}{'skip_' if coder.W_skip is not None else ''}transcoder"


def _details(coder: SparseCoder) -> dict[str, Any]:
    options = coder.options()
    widths = {"matryoshka_widths": options["prefixes"]} if "prefixes" in options else {}
    return {"k": options["k"], **widths}
