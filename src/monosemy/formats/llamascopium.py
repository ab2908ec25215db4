"""llamascopium (OpenMOSS, Language-Model-SAEs): `config.json` and `sae_weights`.

    pre = (s x) W_E + b_E,  z = activation(pre),  s' yhat = z W_D + b_D

`s` is sqrt(d_model) over the mean norm of activations at the hook point, 1 once it is folded
(`norm_activation` is then "inference"). With `sparsity_include_decoder_norm` what decides which
features fire is `pre` times the norm of its direction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from monosemy.coders import Dictionary, SparseCoder
from monosemy.errors import UserError
from monosemy.formats.files import (
    Tensors,
    flag,
    needed,
    needed_count,
    needed_number,
    read_json,
    read_pt,
    read_safetensors,
    tensor_shapes,
    tensors_of,
    text,
)
from monosemy.formats.format import (
    NOT_HELD,
    RELU,
    THRESHOLDED,
    Content,
    Format,
    Given,
    coder_from,
    described,
    log_threshold,
    plain,
    subtract_first,
    thresholds,
)
from monosemy.formats.names import lens_hookpoint, our_hookpoint

SETTINGS, WEIGHTS, OLD_WEIGHTS = "config.json", "sae_weights.safetensors", "sae_weights.pt"
NORM = "dataset_average_activation_norm."
_THRESHOLD = "activation_function.log_jumprelu_threshold"


def recognises(path: Path) -> bool:
    """Say whether a folder has its configuration and, beside it, its tensors."""
    if not (path / SETTINGS).is_file():
        return False
    if "W_E" in tensor_shapes(path / WEIGHTS):
        return True
    try:
        return "sae_type" in read_json(path / SETTINGS) and (path / OLD_WEIGHTS).is_file()
    except UserError:
        return False


def read(path: Path, given: Given) -> Content:
    """Read a sparse autoencoder or transcoder.

    Raises:
        UserError: a file, field or tensor is missing, they contradict each other, or it is of a
            kind that is no dictionary of one place.
    """
    settings = read_json(path / SETTINGS)
    kind = needed(settings, "sae_type", path / SETTINGS)
    if kind != "sae":
        raise UserError(
            f"`{path}` is a `{kind}` of llamascopium, which encodes or explains several places, or "
            "attention",
            "a dictionary has one place: only `sae` is read",
        )
    d, width = sizes(settings, path / SETTINGS)
    file = _weights(path)
    tensors = {
        "W_enc": file.take("W_E", (d, width)).T,
        "b_enc": file.take("b_E", (width,)),
        "W_dec": file.take("W_D", (width, d)),
    }
    if flag(settings, "use_decoder_bias", path / SETTINGS, True):
        tensors["b_dec"] = file.take("b_D", (d,))
    norms = saved_norms(file)
    bar = None
    if settings.get("act_fn") == "jumprelu":
        bar = file.take(_THRESHOLD, (width,)).exp()
    content = content_of(settings, path / SETTINGS, tensors, bar, norms, given)
    file.done()
    return content


def content_of(
    settings: dict[str, Any],
    path: Path,
    tensors: dict[str, Tensor],
    bar: Tensor | None,
    norms: Mapping[str, float],
    given: Given,
) -> Content:
    """Return a dictionary of activations as they are.

    Args:
        settings: the tool's configuration.
        path: its file.
        tensors: as `coder_from` takes them, of scaled activations; changed.
        bar: [width], JumpReLU's thresholds; features times their directions' norms are held against
            them where the configuration says so.
        norms: hook point -> mean norm of activations there; "in" and "out" in old files.
        given: what files leave out.
    """
    if settings.get("use_glu_encoder"):
        raise UserError(f"`{path}` has a gated linear encoder", "it is not among our architectures")
    hook_in, hook_out = _places(settings, path)
    lengths = tensors["W_dec"].norm(dim=1)
    by_norm = flag(settings, "sparsity_include_decoder_norm", path, True)
    if "b_dec" in tensors and flag(settings, "apply_decoder_bias_to_pre_encoder", path):
        subtract_first(tensors, tensors["b_dec"])
    for_input, for_output = scales(settings, path, norms, given)
    tensors["W_enc"] = tensors["W_enc"] * for_input
    for name in {"W_dec", "b_dec"} & tensors.keys():
        tensors[name] = tensors[name] / for_output
    activation = needed(settings, "act_fn", path)
    options: dict[str, Any] = {}
    if activation == "jumprelu":
        assert bar is not None
        tensors["log_threshold"] = log_threshold(bar / lengths if by_norm else bar)
    elif activation == "topk":
        options["k"] = given.k or needed_count(settings, "top_k", path)
        if by_norm:
            tensors["importance"], options["importance"] = lengths, True
    elif activation != "relu":
        raise UserError(
            f"`{path}` has act_fn `{activation}`"
            + (", whose threshold is not saved" if activation == "batchtopk" else ""),
            "allowed: relu, jumprelu, topk; llamascopium converts batchtopk to jumprelu",
        )
    return Content(
        coder=coder_from(activation, tensors, **options),
        hookpoint=our_hookpoint(hook_in),
        target=our_hookpoint(hook_out) if hook_out != hook_in else None,
        settings=settings,
        notes=["the model is not in these files"],
    )


def sizes(settings: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return d_model and the width that a configuration says."""
    d = needed_count(settings, "d_model", path)
    if settings.get("d_sae"):
        return d, needed_count(settings, "d_sae", path)
    factor = needed_number(settings, "expansion_factor", path)
    if factor <= 0:
        raise UserError(f"`expansion_factor` of `{path}` is {factor!r}", "it must be above 0")
    return d, round(d * factor)


def saved_norms(file: Tensors) -> dict[str, float]:
    """Take the mean norms of activations that are among the weights: hook point -> norm."""
    names = [name for name in file.values if name.startswith(NORM)]
    return {name.removeprefix(NORM): float(file.take(name, ())) for name in names}


def scales(
    settings: Mapping[str, Any],
    path: Path,
    norms: Mapping[str, float],
    given: Given,
) -> tuple[float, float]:
    """Return what input and output were multiplied by in training.

    Raises:
        UserError: their mean norms are not known, or are none, or each token had its own.
    """
    how = settings.get("norm_activation", "dataset-wise")
    if how == "inference":
        if given.scale is not None:
            raise UserError(
                f"a scale of {given.scale:g} is given, but `{path}` says that it is folded",
                "drop it",
            )
        return 1.0, 1.0
    if how != "dataset-wise":
        raise UserError(
            f"`{path}` scales activations {how}: by a factor of their own, not one of the weights",
            "allowed: dataset-wise and inference",
        )
    if given.scale is not None:
        return given.scale, given.scale
    found = []
    for hook, side in zip(_places(settings, path), ("in", "out"), strict=True):
        norm = norms.get(hook, norms.get(side))
        if norm is None or not math.isfinite(norm) or norm <= 0:
            raise UserError(
                f"`{path.parent}` has activations scaled by their mean norm at `{hook}`, which is "
                + ("not in its files" if norm is None else f"given as {norm}"),
                "give --scale: sqrt(d_model) over that norm",
            )
        found.append(math.sqrt(settings["d_model"]) / norm)
    return found[0], found[1]


def _places(settings: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """Return the hook points encoded and explained."""
    hook_in = text(settings, "hook_point_in", path) or needed(settings, "hook_point_in", path)
    return hook_in, text(settings, "hook_point_out", path) or hook_in


def _weights(path: Path) -> Tensors:
    if (path / WEIGHTS).is_file() or not (path / OLD_WEIGHTS).is_file():
        return read_safetensors(path / WEIGHTS)
    values = read_pt(path / OLD_WEIGHTS)
    inside = values.get("sae") if isinstance(values, Mapping) else values
    return tensors_of(inside, path / OLD_WEIGHTS)


def write(dictionary: Dictionary, folder: Path) -> list[str]:
    """Write a dictionary as llamascopium reads it; scales are folded already.

    Raises:
        UserError: it has no such architecture, or a linear path, or input and output differ in
            width.
    """
    coder = dictionary.coder
    bar = thresholds(coder)
    is_topk = coder.architecture == "topk" and coder.importance is None and not coder.normalise
    if (bar is None and not is_topk) or coder.W_skip is not None or coder.d_in != coder.d_out:
        raise UserError(
            f"llamascopium has no {described(coder)}, from {coder.d_in} to {coder.d_out}",
            f"allowed: topk, {', '.join(THRESHOLDED)} of one width, with nothing beside",
        )
    weights = plain(coder)
    saved = {
        "W_E": weights["W_enc"].T.contiguous(),
        "b_E": weights["b_enc"],
        "W_D": weights["W_dec"],
        "b_D": weights["b_dec"],
    }
    activation = "topk" if is_topk else "relu" if coder.architecture in RELU else "jumprelu"
    if activation == "jumprelu":
        assert bar is not None
        saved[_THRESHOLD] = log_threshold(bar)
    save_file(saved, folder / WEIGHTS)
    model = dictionary.provenance.model
    hooks = [lens_hookpoint(p, model) or p for p in (dictionary.hookpoint, dictionary.explains)]
    settings = {
        "sae_type": "sae",
        "d_model": coder.d_in,
        "expansion_factor": _factor(coder),
        "use_decoder_bias": True,
        "act_fn": activation,
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
        "top_k": coder.options().get("k", 50),
        "use_triton_kernel": False,
        "sparsity_threshold_for_triton_spmm_kernel": 0.996,
        "jumprelu_threshold_window": 2.0,
        "hook_point_in": hooks[0],
        "hook_point_out": hooks[1],
        "use_glu_encoder": False,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=4), "utf-8")
    return [
        f"the model ({model}): llamascopium's configuration does not name it",
        NOT_HELD,
    ]


def _factor(coder: SparseCoder) -> float:
    """Return width over d_in, such that d_in times it, cut off, is the width."""
    factor = coder.width / coder.d_in
    if int(coder.d_in * factor) < coder.width:
        factor = math.nextafter(factor, math.inf)
    return factor


FORMAT = Format(
    name="llamascopium",
    title="llamascopium (OpenMOSS)",
    recognises=recognises,
    read=read,
    write=write,
)
