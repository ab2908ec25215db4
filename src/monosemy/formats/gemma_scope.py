"""Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147): `params.npz`, JumpReLU.

Beside weights there is nothing: layer, site and model are in the names of folders and repository
(`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`).
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.formats.files import read_npz
from monosemy.formats.format import (
    NOT_HELD,
    THRESHOLDED,
    Content,
    Format,
    Given,
    coder_from,
    described,
    log_threshold,
    plain,
    thresholds,
)
from monosemy.formats.names import our_hookpoint, spelled_path

WEIGHTS, CONTEXT = "params.npz", 1024
_ARRAYS = {"threshold.npy", "b_enc.npy", "b_dec.npy"}
_SITES = {
    "res": ("blocks.{}.hook_resid_post", None),
    "mlp": ("blocks.{}.hook_mlp_out", None),
    "att": ("blocks.{}.attn.hook_z", None),
    "transcoders": ("blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"),
}
"""How a repository's name ends -> what TransformerLens calls the places encoded and explained."""

_EMBEDDING = re.compile(r"/embedding/width_[^/]+/[^/]+(/params\.npz)?$")
"""How a path ends whose dictionary is of embeddings."""


def recognises(path: Path) -> bool:
    """Say whether there is a `params.npz`, or a file such as one, with thresholds."""
    file = _file(path)
    if file.suffix != ".npz" or not file.is_file() or not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
    return names >= _ARRAYS and bool({"W_enc.npy", "w_enc.npy"} & names)


def read(path: Path, given: Given) -> Content:
    """Read a dictionary or transcoder.

    Raises:
        UserError: an array is missing or misshapen.
    """
    file = read_npz(_file(path))
    name = "W_enc" if "W_enc" in file else "w_enc"
    d_in, width = file.size(name, 0), file.size(name, 1)
    tensors = {
        "W_enc": file.take(name, (d_in, width)).T,
        "b_enc": file.take("b_enc", (width,)),
        "W_dec": file.take(("W_dec", "w_dec"), (width, None)),
        "log_threshold": log_threshold(file.take("threshold", (width,))),
    }
    tensors["b_dec"] = file.take("b_dec", (tensors["W_dec"].shape[1],))
    file.done()
    spelled = spelled_path(path)
    if _EMBEDDING.search(spelled):
        # Trained on embeddings before the model multiplies them by sqrt(d).
        tensors["W_enc"] = tensors["W_enc"] / d_in**0.5
        tensors["W_dec"] = tensors["W_dec"] * d_in**0.5
        tensors["b_dec"] = tensors["b_dec"] * d_in**0.5
    model, hookpoint, target = _names(spelled)
    notes = []
    if model is None or hookpoint is None:
        notes.append("not all of model, site and layer is in the names of folders")
    if hookpoint and hookpoint.endswith("ln2.hook_normalized"):
        notes.append("it encodes what the norm before the MLP gives, before its gain")
    return Content(
        coder=coder_from("jumprelu", tensors, given.scale),
        model=model,
        hookpoint=hookpoint,
        target=target,
        context=CONTEXT,
        notes=notes,
    )


def _names(spelled: str) -> tuple[str | None, str | None, str | None]:
    """Return the model and hook points that a path names, each None where it does not."""
    found = re.search(r".*gemma-scope-(\d+b)-(pt|it)-(\w+)", spelled)
    if found is None:
        return None, "embed" if _EMBEDDING.search(spelled) else None, None
    size, kind, site = found[1], found[2], found[3]
    model = f"google/gemma-2-{size}" + ("-it" if kind == "it" else "")
    if _EMBEDDING.search(spelled):
        return model, "embed", None
    layer = re.search(r".*/layer_(\d+)", spelled)
    if layer is None or site not in _SITES:
        return model, None, None
    places = [our_hookpoint(p.format(layer[1]), model) if p else None for p in _SITES[site]]
    return model, places[0], places[1]


def write(dictionary: Dictionary, folder: Path) -> list[str]:
    """Write a dictionary that fires above thresholds.

    Raises:
        UserError: it does not, or has a linear path.
    """
    coder = dictionary.coder
    bar = thresholds(coder)
    if bar is None or coder.W_skip is not None:
        raise UserError(
            f"Gemma Scope has no {described(coder)}",
            f"allowed: {', '.join(THRESHOLDED)}, with nothing beside",
        )
    weights = plain(coder)
    arrays = {
        "W_enc": weights["W_enc"].T.contiguous(),
        "W_dec": weights["W_dec"],
        "b_enc": weights["b_enc"],
        "b_dec": weights["b_dec"],
        "threshold": bar,
    }
    named: dict[str, Any] = {name: values.numpy() for name, values in arrays.items()}
    np.savez(folder / WEIGHTS, **named)
    return [
        f"the model ({dictionary.provenance.model}) and hook point ({dictionary.hookpoint}): "
        "Gemma Scope says them in the names of folders",
        NOT_HELD,
    ]


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


FORMAT = Format(
    name="gemma_scope",
    title="Gemma Scope",
    recognises=recognises,
    read=read,
    write=write,
)
