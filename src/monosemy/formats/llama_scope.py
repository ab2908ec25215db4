"""Llama Scope (He et al. 2024, arXiv 2410.20526) and its R1 Distill: llamascopium's older files.

The first has `hyperparams.json` and `checkpoints/final.safetensors`, and one threshold for all
features, in units of activations as they are; the second `config.json`,
`sae_weights.safetensors` and a threshold for each. Both are of scaled activations.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosemy.errors import UserError
from monosemy.formats.files import (
    Tensors,
    flag,
    needed_number,
    read_json,
    read_safetensors,
    tensor_shapes,
)
from monosemy.formats.format import Content, Format, Given
from monosemy.formats.llamascopium import content_of, saved_norms, scales, sizes
from monosemy.formats.names import spelled_path

SETTINGS, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
R1_SETTINGS, R1_WEIGHTS, _R1_THRESHOLD = (
    "config.json",
    "sae_weights.safetensors",
    "log_jumprelu_threshold",
)
CONTEXT = 1024
_MODELS = {
    "Llama3_1-8B-Base": "meta-llama/Llama-3.1-8B",
    "Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
"""A part of the path -> the model."""


def recognises(path: Path) -> bool:
    """Say whether a folder has the files of either."""
    if (path / SETTINGS).is_file():
        return "encoder.weight" in tensor_shapes(path / WEIGHTS)
    names = tensor_shapes(path / R1_WEIGHTS).keys()
    return (path / R1_SETTINGS).is_file() and {"encoder.weight", "decoder.weight"} <= names


def read(path: Path, given: Given) -> Content:
    """Read a dictionary of either kind.

    Raises:
        UserError: a file, field or tensor is missing, or they contradict each other.
    """
    is_first = (path / SETTINGS).is_file()
    settings_path = path / (SETTINGS if is_first else R1_SETTINGS)
    settings = read_json(settings_path)
    d, width = sizes(settings, settings_path)
    file = read_safetensors(path / (WEIGHTS if is_first else R1_WEIGHTS))
    tensors = {
        "W_enc": file.take("encoder.weight", (width, d)),
        "b_enc": file.take("encoder.bias", (width,)),
        "W_dec": file.take("decoder.weight", (d, width)).T,
    }
    if flag(settings, "use_decoder_bias", settings_path, True):
        tensors["b_dec"] = file.take("decoder.bias", (d,))
    norms = {**_norms(settings, settings_path), **saved_norms(file)}
    settings = {"act_fn": "jumprelu", **settings}
    if is_first:
        content = _first(settings, settings_path, tensors, norms, given)
    else:
        bar = _bar(settings, file, width)
        # Its norms count only where the configuration says so.
        full = {"sparsity_include_decoder_norm": False, **settings}
        content = content_of(full, settings_path, tensors, bar, norms, given)
    file.done()
    model = next((m for part, m in _MODELS.items() if part in spelled_path(path)), None)
    return replace(
        content,
        model=model,
        context=CONTEXT,
        settings=settings,
        notes=[] if model else content.notes,
    )


def _first(
    settings: dict[str, Any],
    path: Path,
    tensors: dict[str, Tensor],
    norms: dict[str, float],
    given: Given,
) -> Content:
    bar = None
    if settings["act_fn"] == "jumprelu":
        # Set after scales had been folded, unlike the weights that are saved with it.
        threshold = needed_number(settings, "jump_relu_threshold", path)
        scale, _ = scales(settings, path, norms, given)
        bar = torch.full((len(tensors["b_enc"]),), threshold * scale)
        # JumpReLU of this version looks at no norms, whatever the configuration says.
        settings = {**settings, "sparsity_include_decoder_norm": False}
    return content_of(settings, path, tensors, bar, norms, given)


def _bar(settings: dict[str, Any], file: Tensors, width: int) -> Tensor | None:
    if settings["act_fn"] == "jumprelu":
        return file.take(_R1_THRESHOLD, (width,)).exp()
    return None


def _norms(settings: dict[str, Any], path: Path) -> dict[str, float]:
    found = settings.get("dataset_average_activation_norm") or {}
    if not isinstance(found, dict):
        raise UserError(
            f"`dataset_average_activation_norm` is {found!r}",
            "a norm for each hook point was expected",
        )
    return {name: needed_number(found, name, path) for name in found}


FORMAT = Format(
    name="llama_scope", title="Llama Scope (OpenMOSS)", recognises=recognises, read=read
)
