"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder named after a hook point.

A coder subtracts `b_dec` from its input unless it is a transcoder, which predicts a module's output
from that module's input. The run's folder has the training configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.formats.files import needed, read_json, read_safetensors, tensor_shapes
from monosemy.formats.format import Content, Format, Given, coder_from, plain, subtract_first
from monosemy.formats.names import our_hookpoint

SETTINGS, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
ACTIVATIONS = ("topk", "groupmax")


def recognises(path: Path) -> bool:
    """Say whether a folder has sparsify's two files."""
    return (path / SETTINGS).is_file() and "encoder.weight" in tensor_shapes(path / WEIGHTS)


def read(path: Path, given: Given) -> Content:
    """Read a sparse coder that sparsify saved.

    Raises:
        UserError: a file or tensor is missing, or contradicts the configuration.
    """
    settings = read_json(path / SETTINGS)
    d_in = int(needed(settings, "d_in", path / SETTINGS))
    width = settings.get("num_latents") or d_in * int(
        needed(settings, "expansion_factor", path / SETTINGS)
    )
    activation = settings.get("activation", "topk")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"`{path / SETTINGS}` has activation `{activation}`",
            f"allowed: {', '.join(ACTIVATIONS)}",
        )
    file = read_safetensors(path / WEIGHTS)
    tensors = {
        "W_enc": file.take("encoder.weight", (width, d_in)),
        "b_enc": file.take("encoder.bias", (width,)),
        "W_dec": file.take("W_dec", (width, d_in)),
        "b_dec": file.take("b_dec", (d_in,)),
    }
    if settings.get("skip_connection"):
        tensors["W_skip"] = file.take("W_skip", (d_in, d_in))
    file.done()
    transcode = bool(settings.get("transcode"))
    if not transcode:
        subtract_first(tensors, tensors["b_dec"])
    run = read_json(path.parent / RUN) if (path.parent / RUN).is_file() else {}
    hookpoint = our_hookpoint(path.name)
    return Content(
        coder=coder_from(activation, tensors, k=int(needed(settings, "k", path / SETTINGS))),
        model=run.get("model"),
        hookpoint=f"{hookpoint}.input" if transcode else hookpoint,
        target=hookpoint if transcode else None,
        context=run.get("ctx_len"),
        corpus=_corpus(run),
        settings={**run, **settings},
        notes=[] if run else [f"no `{RUN}` beside the folder: the model is not known"],
    )


def write(dictionary: Dictionary, folder: Path) -> list[str]:
    """Write a TopK or GroupMax dictionary as sparsify reads it.

    Raises:
        UserError: the architecture or sizes are none of sparsify's.
    """
    coder = dictionary.coder
    if coder.architecture not in ACTIVATIONS or coder.d_out != coder.d_in or coder.normalise:
        raise UserError(
            f"sparsify has no `{coder.architecture}` from {coder.d_in} to {coder.d_out}",
            f"allowed: {', '.join(ACTIVATIONS)}, input and output of one width",
        )
    if coder.importance is not None:
        raise UserError("sparsify cannot weigh features when it chooses the largest", "allowed: no")
    weights = plain(coder)
    transcode = dictionary.is_transcoder
    if not transcode:
        weights["b_enc"] += weights["W_enc"] @ weights["b_dec"]
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
    save_file({names.get(n, n): t for n, t in weights.items()}, folder / WEIGHTS)
    settings: dict[str, Any] = {
        "activation": coder.architecture,
        "expansion_factor": coder.width // coder.d_in,
        "normalize_decoder": False,
        "num_latents": coder.width,
        "k": coder.options()["k"],
        "multi_topk": False,
        "skip_connection": coder.W_skip is not None,
        "transcode": transcode,
        "d_in": coder.d_in,
    }
    (folder / SETTINGS).write_text(json.dumps(settings), "utf-8")
    return [
        f"the model ({dictionary.provenance.model}) and hook point ({dictionary.hookpoint}): "
        "sparsify tells them by the run's config and the folder's name",
        "which tokens count, the fingerprint and features' strengths",
    ]


def _corpus(run: dict[str, Any]) -> dict[str, Any]:
    return {"source": run["dataset"]} if run.get("dataset") else {}


FORMAT = Format(
    name="sparsify",
    title="sparsify (EleutherAI)",
    recognises=recognises,
    read=read,
    write=write,
)
