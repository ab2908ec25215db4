"""Qwen Scope: `layerN.sae.pt`, TopK of the residual stream; both weights are transposed.

k, model and width are in the repository's name alone (`Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50`).
"""

from __future__ import annotations

import re
from pathlib import Path

from monosemy.errors import UserError
from monosemy.formats import hook_z
from monosemy.formats.files import pt_shapes, read_pt, tensors_of
from monosemy.formats.format import Content, Format, Given, coder_from
from monosemy.formats.names import spelled_path

NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}


def recognises(path: Path) -> bool:
    """Say whether a file has these weights, with a row of the encoder for each feature.

    As wide as activations, it may have columns for them: then a configuration says so.
    """
    if path.suffix != ".pt" or not path.is_file() or hook_z.recognises(path):
        return False
    shapes = pt_shapes(path)
    return shapes.keys() == NAMES and shapes["W_enc"][:1] == shapes["b_enc"]


def read(path: Path, given: Given) -> Content:
    """Read a dictionary.

    Raises:
        UserError: a tensor is missing or misshapen, or k is not known.
    """
    file = tensors_of(read_pt(path), path)
    width, d = file.size("W_enc", 0), file.size("W_enc", 1)
    tensors = {
        "W_enc": file.take("W_enc", (width, d)),
        "b_enc": file.take("b_enc", (width,)),
        "W_dec": file.take("W_dec", (d, width)).T,
        "b_dec": file.take("b_dec", (d,)),
    }
    file.done()
    spelled = spelled_path(path)
    named = re.search(r"SAE-Res-([^/]+?)-W\d+K-L0_(\d+)", spelled)
    k = given.k or (int(named[2]) if named else None)
    if k is None:
        raise UserError(
            f"`{path}` does not say how many features fire on a token: its repository's name does",
            "give --k, or the repository's folder with its name",
        )
    layer = re.search(r"layer(\d+)", path.name)
    return Content(
        coder=coder_from("topk", tensors, given.scale, k=k),
        model=f"Qwen/{named[1]}" if named else None,
        hookpoint=f"layers.{layer[1]}" if layer else None,
        notes=[] if named else ["the model is not in the names of folders"],
    )


FORMAT = Format(name="qwen_scope", title="Qwen Scope", recognises=recognises, read=read)
