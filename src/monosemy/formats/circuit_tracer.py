"""circuit-tracer's transcoders: `config.yaml`, and `layer_N.safetensors` for each layer.

A layer's file is one transcoder: ReLU, JumpReLU where there are thresholds, TopK where the
configuration says so. Older folders have Weights & Biases' configuration in place of, or beside,
`config.yaml`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.formats.files import (
    Tensors,
    needed_count,
    read_safetensors,
    read_yaml,
    tensor_shapes,
    text,
)
from monosemy.formats.format import (
    NOT_HELD,
    RELU,
    THRESHOLDED,
    UNKNOWN,
    Content,
    Format,
    Given,
    coder_from,
    described,
    log_threshold,
    plain,
    thresholds,
)
from monosemy.formats.names import hub_model, lens_hookpoint, our_hookpoint

SETTINGS, OLD_SETTINGS = "config.yaml", ("wandb-config.yaml", "wanb-config.yaml")
_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}
_THRESHOLD = "activation_function.threshold"


def recognises(path: Path) -> bool:
    """Say whether it is a layer's file, or a folder of a cross-layer transcoder."""
    if path.is_dir():
        return "W_enc_0" in tensor_shapes(path / "W_enc_0.safetensors")
    if path.suffix != ".safetensors" or not re.fullmatch(r"layer_\d+", path.stem):
        return False
    return tensor_shapes(path).keys() >= _NAMES


def read(path: Path, given: Given) -> Content:
    """Read a layer's transcoder.

    Raises:
        UserError: a tensor is missing or misshapen, or it is a cross-layer transcoder.
    """
    if path.is_dir():
        raise UserError(
            f"`{path}` is a cross-layer transcoder: each feature writes to all later layers",
            "a dictionary explains one place; take a set of transcoders, one a layer",
        )
    file = read_safetensors(path)
    width, d_out = file.size("b_enc", 0), file.size("b_dec", 0)
    tensors = {
        "W_enc": file.take("W_enc", (width, None)),
        "b_enc": file.take("b_enc", (width,)),
        "W_dec": file.take("W_dec", (width, d_out)),
        "b_dec": file.take("b_dec", (d_out,)),
    }
    if "W_skip" in file:
        tensors["W_skip"] = file.take("W_skip", (d_out, tensors["W_enc"].shape[1]))
    settings = _settings(path.parent)
    architecture, options, notes = _activation(file, tensors, settings, given)
    file.done()
    layer, said = path.stem.removeprefix("layer_"), path.parent / SETTINGS
    model = hub_model(text(settings, "model_name", said) or "") or None
    hooks = [text(settings, f"feature_{side}_hook", said) for side in ("input", "output")]
    if None in hooks:
        notes.append(f"`{SETTINGS}` beside it does not say where in the model it belongs")
    return Content(
        coder=coder_from(architecture, tensors, given.scale, **options),
        model=model,
        hookpoint=_place(hooks[0], layer, model or ""),
        target=_place(hooks[1], layer, model or "") or UNKNOWN,
        settings=settings,
        notes=notes,
    )


def _activation(
    file: Tensors, tensors: dict[str, Tensor], settings: dict[str, Any], given: Given
) -> tuple[str, dict[str, Any], list[str]]:
    """Return the architecture, its options and notes; tensors get the thresholds.

    `topk` and `relu` in the configuration decide, and where it says neither what weights there are.
    """
    path, width = file.path.parent / SETTINGS, len(tensors["b_enc"])
    said = text(settings, "activation", path)
    if said == "topk" or (said != "relu" and "k" in file):
        saved = {"k": float(file.take("k", ()))} if "k" in file else settings
        k = given.k or needed_count(saved, "k", path)
        return "topk", {"k": k}, ["of the k largest, those below 0 fire there and not here"]
    if said != "relu" and _THRESHOLD in file:
        tensors["log_threshold"] = log_threshold(file.take(_THRESHOLD, (width,)))
        return "jumprelu", {}, []
    return "relu", {}, []


def _settings(folder: Path) -> dict[str, Any]:
    """Return what is said beside the layers; old folders are of what an MLP reads and writes."""
    settings = read_yaml(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if any((folder / name).is_file() for name in OLD_SETTINGS):
        old = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
        settings = {**old, **settings}
    return settings


def _place(hook: str | None, layer: str, model: str) -> str | None:
    if hook is None:
        return None
    if hook == "mlp.hook_in":
        return f"layers.{layer}.mlp.input"
    hook = "hook_mlp_out" if hook == "mlp.hook_out" else hook
    return our_hookpoint(f"blocks.{layer}.{hook}", model)


def write(dictionary: Dictionary, folder: Path) -> list[str]:
    """Write a transcoder of a block's MLP, as one layer of a set.

    Raises:
        UserError: it is none, does not fire above thresholds, or circuit-tracer has no name for its
            hook points.
    """
    coder, model = dictionary.coder, dictionary.provenance.model
    bar = thresholds(coder)
    if not dictionary.is_transcoder or bar is None or coder.d_in != coder.d_out:
        raise UserError(
            f"circuit-tracer has no {described(coder)} that explains `{dictionary.explains}`, "
            f"{coder.d_out} wide, from `{dictionary.hookpoint}`, {coder.d_in} wide",
            f"allowed: transcoders of one width: {', '.join(THRESHOLDED)}, not normalised",
        )
    layer, reads = _hook(dictionary.hookpoint, model)
    written_at, writes = _hook(dictionary.explains, model)
    if layer != written_at:
        raise UserError(
            f"it explains layer {written_at} from layer {layer}", "allowed: both of one layer"
        )
    weights = plain(coder)
    saved = {name: t for name, t in weights.items() if name in {*_NAMES, "W_skip"}}
    if coder.architecture not in RELU:
        saved[_THRESHOLD] = bar
    save_file(saved, folder / f"layer_{layer}.safetensors")
    settings = {
        "model_name": model,
        "model_kind": "transcoder_set",
        "feature_input_hook": reads,
        "feature_output_hook": writes,
        "scan": f"monosemy/{model.rpartition('/')[2]}",
    }
    (folder / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return [
        f"the other layers: circuit-tracer needs a file for each, and this is layer {layer}",
        NOT_HELD,
    ]


def _hook(name: str, model: str) -> tuple[str, str]:
    """Return the layer, and what circuit-tracer calls a hook point within it."""
    read = re.fullmatch(r"layers\.(\d+)\.mlp\.input", name)
    if read:
        return read[1], "mlp.hook_in"
    mid = re.fullmatch(r"layers\.(\d+)\.mid", name)
    if mid:
        return mid[1], "hook_resid_mid"
    found = re.fullmatch(r"blocks\.(\d+)\.([\w.]+)", lens_hookpoint(name, model) or "")
    if found is None:
        raise UserError(
            f"circuit-tracer has no name for `{name}`", "it knows what an MLP reads and writes"
        )
    return found[1], found[2]


FORMAT = Format(
    name="circuit_tracer",
    title="circuit-tracer's transcoders",
    recognises=recognises,
    read=read,
    write=write,
)
