"""Goodfire's dictionaries of Llama: a `.pt` or `.pth` of two linear maps, ReLU between them.

Model and layer are in the file's name (`Llama-3.1-8B-Instruct-SAE-l19.pth`).
"""

from __future__ import annotations

import re
from pathlib import Path

from monosemy.formats.files import pt_shapes, read_pt, tensors_of
from monosemy.formats.format import Content, Format, Given, coder_from


def recognises(path: Path) -> bool:
    """Say whether a file has both maps."""
    if path.suffix not in (".pt", ".pth") or not path.is_file():
        return False
    return {"encoder_linear.weight", "decoder_linear.weight"} <= pt_shapes(path).keys()


def read(path: Path, given: Given) -> Content:
    """Read a dictionary.

    Raises:
        UserError: a tensor is missing or misshapen.
    """
    file = tensors_of(read_pt(path), path)
    width, d = file.size("encoder_linear.weight", 0), file.size("encoder_linear.weight", 1)
    tensors = {
        "W_enc": file.take("encoder_linear.weight", (width, d)),
        "b_enc": file.take("encoder_linear.bias", (width,)),
        "W_dec": file.take("decoder_linear.weight", (d, width)).T,
        "b_dec": file.take("decoder_linear.bias", (d,)),
    }
    file.done()
    named = re.search(r"(Llama-[\d.]+-\d+B-Instruct)-SAE-l(\d+)", path.name)
    return Content(
        coder=coder_from("relu", tensors, given.scale),
        model=f"meta-llama/{named[1]}" if named else None,
        hookpoint=f"layers.{named[2]}" if named else None,
        notes=[] if named else ["model and layer are not in the file's name"],
    )


FORMAT = Format(name="goodfire", title="Goodfire", recognises=recognises, read=read)
