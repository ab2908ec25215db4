"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder named after a hook point.

A coder subtracts `b_dec` from its input unless it is a transcoder, which predicts what a module
puts out from what goes into it. The folder around it is the run's, with the configuration of the
training. Hook points are modules, by their names in `transformers` below the model's base.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.formats.files import flag, needed_count, read_json, read_safetensors, tensor_shapes
from monosemy.formats.format import (
    UNKNOWN,
    Content,
    Format,
    Given,
    coder_from,
    plain,
    subtract_first,
)
from monosemy.formats.names import hub_model, is_hookpoint, module_path, our_hookpoint

SETTINGS, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
ACTIVATIONS = ("topk", "groupmax")
_SEED = re.compile(r"seed\d+")


def recognises(path: Path) -> bool:
    """Say whether a folder has sparsify's two files."""
    return (path / SETTINGS).is_file() and "encoder.weight" in tensor_shapes(path / WEIGHTS)


def read(path: Path, given: Given) -> Content:
    """Read a sparse coder that sparsify saved.

    Raises:
        UserError: a file or tensor is missing, or contradicts the configuration.
    """
    file, settings = path / SETTINGS, read_json(path / SETTINGS)
    d_in = needed_count(settings, "d_in", file)
    width = (
        needed_count(settings, "num_latents", file)
        if settings.get("num_latents")
        else needed_count(settings, "expansion_factor", file) * d_in
    )
    activation = settings.get("activation", "topk")
    if activation not in ACTIVATIONS or settings.get("signed"):
        kind = "signed features" if settings.get("signed") else f"activation `{activation}`"
        raise UserError(
            f"`{file}` has {kind}", f"allowed: {', '.join(ACTIVATIONS)}, features not below 0"
        )
    weights = read_safetensors(path / WEIGHTS)
    tensors = {
        "W_enc": weights.take("encoder.weight", (width, d_in)),
        "b_enc": weights.take("encoder.bias", (width,)),
        "W_dec": weights.take("W_dec", (width, d_in)),
        "b_dec": weights.take("b_dec", (d_in,)),
    }
    if flag(settings, "skip_connection", file):
        tensors["W_skip"] = weights.take("W_skip", (d_in, d_in))
    weights.done()
    transcode = flag(settings, "transcode", file)
    if not transcode:
        subtract_first(tensors, tensors["b_dec"])
    k = given.k or needed_count(settings, "k", file)
    content = Content(
        coder=coder_from(activation, tensors, given.scale, k=k),
        settings=settings,
        **_provenance(path.absolute(), transcode=transcode),
    )
    if settings.get("multi_topk"):
        content.notes.append(
            f"{k} features fire, as in sparsify's `encode`; its `forward` takes 4k"
        )
    return content


def _provenance(path: Path, *, transcode: bool) -> dict[str, Any]:
    """Return what the folders' names and the run's configuration say, as `Content` takes it."""
    if _SEED.fullmatch(path.name):  # of several runs that differ by it
        path = path.parent
    file = path.parent / RUN
    run = read_json(file) if file.is_file() else {}
    run = run if "sae" in run else {}  # else it is somebody else's file
    notes = [] if run else [f"no `{RUN}` of sparsify beside the folder: the model is not known"]
    hookpoint, target = None, UNKNOWN if transcode else None
    known = run.get("hookpoints")
    known = known if isinstance(known, list) else []
    if path.name not in known and not is_hookpoint(path.name):
        notes.append(f"the folder's name, `{path.name}`, is no hook point: that is not known")
    elif transcode:
        target = our_hookpoint(path.name)
        hookpoint = f"{target}.input"
    else:
        hookpoint = our_hookpoint(path.name)
    dataset = run.get("dataset")
    return {
        "model": hub_model(run["model"]) if isinstance(run.get("model"), str) else None,
        "hookpoint": hookpoint,
        "target": target,
        "context": needed_count(run, "ctx_len", file) if run.get("ctx_len") else None,
        "corpus": {"source": dataset} if isinstance(dataset, str) else {},
        "notes": notes,
    }


def write(dictionary: Dictionary, folder: Path) -> list[str]:
    """Write a TopK or GroupMax dictionary as a run of sparsify with one hook point.

    Raises:
        UserError: the architecture or sizes are none of sparsify's.
    """
    coder, provenance = dictionary.coder, dictionary.provenance
    _check_fits(dictionary)
    weights = plain(coder)
    transcode = dictionary.is_transcoder
    if not transcode:
        weights["b_enc"] += weights["W_enc"] @ weights["b_dec"]
    settings = {
        "activation": coder.architecture,
        "expansion_factor": max(coder.width // coder.d_in, 1),
        "normalize_decoder": False,
        "num_latents": coder.width,
        "k": coder.options()["k"],
        # Of training; besides, where it is true, `forward` returns the output with 4k features.
        "multi_topk": False,
        "skip_connection": coder.W_skip is not None,
        "transcode": transcode,
    }
    name = module_path(dictionary.explains, provenance.model)
    run = {
        "sae": settings,
        "hookpoints": [name],
        "model": provenance.model,
        "ctx_len": provenance.context,
        "dataset": provenance.corpus.get("source"),
    }
    (folder / name).mkdir()
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
    save_file({names.get(n, n): t for n, t in weights.items()}, folder / name / WEIGHTS)
    text = json.dumps({**settings, "d_in": coder.d_in}, indent=2)
    (folder / name / SETTINGS).write_text(text, "utf-8")
    (folder / RUN).write_text(json.dumps(run, indent=2), "utf-8")
    lost = ["which tokens count, the fingerprint and features' strengths"]
    if UNKNOWN in (dictionary.explains, provenance.model):
        lost.append("its model and hook point, which are not known here either")
    if transcode and provenance.hookpoint != f"{provenance.target}.input":
        lost.append(f"that its input is `{provenance.hookpoint}`: to sparsify it is `{name}`'s own")
    return lost


def _check_fits(dictionary: Dictionary) -> None:
    coder = dictionary.coder
    if coder.architecture not in ACTIVATIONS:
        raise UserError(
            f"sparsify has no `{coder.architecture}`: it keeps a fixed number of a token's "
            "features, of all or of each group",
            f"allowed: {', '.join(ACTIVATIONS)}; other tools' formats hold the rest",
        )
    if coder.d_out != coder.d_in:
        raise UserError(
            f"sparsify has one width for input and output, not {coder.d_in} and {coder.d_out}",
            "circuit-tracer's and SAELens's formats hold such transcoders",
        )
    if coder.normalise:
        raise UserError(
            f"sparsify cannot normalise each token (`{coder.normalise}`)",
            "export a dictionary without",
        )
    if coder.importance is not None:
        raise UserError(
            "sparsify cannot weigh features when it chooses the largest",
            "export a dictionary that was trained without whitening",
        )
    place = dictionary.explains
    if not re.fullmatch(r"\w[\w.-]*", place):
        raise UserError(
            f"sparsify names a folder after the hook point, and `{place}` is no name of one",
            "attach it to its model first: monosemy doctor",
        )
    if place.endswith(".input"):
        raise UserError(
            f"sparsify explains what modules put out, not `{place}`", "choose another format"
        )


FORMAT = Format(
    name="sparsify",
    title="sparsify (EleutherAI)",
    recognises=recognises,
    read=read,
    write=write,
)
