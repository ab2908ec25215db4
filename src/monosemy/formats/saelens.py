"""SAELens: `cfg.json` and `sae_weights.safetensors`.

Version 6, the flat layouts before it, and training checkpoints are read; version 6 is written.
Encoders are stored transposed. What is done to activations first is folded: `b_dec` subtracted, a
scale, a whitening, decoder norms by which TopK weighs features. Features are those that SAELens
gives; where it normalises each token, times the token's spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosemy.coders import SparseCoder
from monosemy.errors import UserError, nearest
from monosemy.formats.files import (
    Tensors,
    flag,
    needed,
    needed_count,
    needed_number,
    read_json,
    read_safetensors,
    text,
)
from monosemy.formats.format import (
    Content,
    Format,
    Given,
    coder_from,
    log_threshold,
    scale_input,
    subtract_first,
)
from monosemy.formats.saelens_metadata import SETTINGS, as_v6, told
from monosemy.formats.saelens_write import WEIGHTS, write

SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
"""Of training checkpoints: what activations were multiplied by, or how they were whitened."""
ARCHITECTURES = {
    "standard": "relu",
    "topk": "topk",
    "abstopk": "topk",
    "batchtopk": "batch_topk",
    "matryoshka_batchtopk": "matryoshka",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "matching_pursuit": "matching_pursuit",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""Theirs -> ours."""
NORMALISATIONS = {"layer_norm": "layer_norm", "constant_norm_rescale": "rms"}
"""Of each token by itself: theirs -> ours."""
_SCALE, _WHITEN = "expected_average_only_in", "covariance_whitening"


def recognises(path: Path) -> bool:
    """Say whether a folder has SAELens's two files."""
    return (path / SETTINGS).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, given: Given) -> Content:
    """Read a dictionary that SAELens saved, at the end of training or in the midst of it.

    Raises:
        UserError: a file or tensor is missing or contradicts the configuration, the architecture
            or normalisation is none that can be had here, or a scale or k is nowhere said.
    """
    raw = read_json(path / SETTINGS)
    settings = as_v6(raw)
    architecture = _architecture(settings, path)
    if given.k is not None:
        settings["k"] = given.k
    tensors, skip = _weights(architecture, settings, path)
    known = told(settings, given, is_transcoder="transcoder" in architecture)
    per_token, notes = _preprocess(tensors, architecture, settings, path, given)
    if known.centred and not per_token:
        per_token = "centre"
    if "transcoder" in architecture and per_token:
        raise UserError(
            f"a transcoder with `{per_token}` of its own input cannot be held",
            "none is known; one without normalises nothing",
        )
    if skip is not None:
        tensors["W_skip"] = skip
    if architecture == "abstopk":
        _double(tensors)
        width = len(tensors["b_enc"]) // 2
        notes.append(
            f"features of abstopk fire on both sides; here feature f is the positive side of "
            f"theirs and feature {width} + f the negative one"
        )
    if known.centred and per_token == "rms":
        notes.append("that its model's writing weights were centred is not kept")
    if per_token in NORMALISATIONS.values():
        notes.append("SAELens's features are these divided by each token's spread")
    return Content(
        coder=_coder(architecture, tensors, settings, path, per_token),
        model=known.model,
        hookpoint=known.hookpoint,
        target=known.target,
        context=known.context,
        policy=known.policy,
        corpus=known.corpus,
        settings=raw,
        notes=[*known.notes, *notes],
    )


def _architecture(settings: Mapping[str, Any], path: Path) -> str:
    name = text(settings, "architecture", path / SETTINGS) or "standard"
    if name == "temporal":
        raise UserError(
            "a temporal SAE's code of a token depends on the tokens before it",
            "dictionaries here encode each token by itself; take another architecture",
        )
    if name not in ARCHITECTURES:
        raise UserError(
            f"`{path / SETTINGS}` has architecture `{name}`",
            f"{nearest(name, ARCHITECTURES)} allowed: {', '.join(ARCHITECTURES)}".strip(),
        )
    activation = settings.get("activation_fn") or "relu"
    if activation not in ("relu", "topk"):
        raise UserError(
            f"`{path / SETTINGS}` has activation `{activation}`", "allowed: `relu`, `topk`"
        )
    return name


def _weights(
    architecture: str, settings: Mapping[str, Any], path: Path
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the tensors in our orientation, thresholds as they are, and a linear path."""
    file = read_safetensors(path / WEIGHTS)
    d_in = _count(settings, "d_in", path) or file.size("W_dec", 1)
    width = _count(settings, "d_sae", path) or file.size("W_dec", 0)
    d_out = d_in
    if "transcoder" in architecture:
        d_out = _count(settings, "d_out", path) or file.size("W_dec", 1)
    tensors = {"W_dec": file.take("W_dec", (width, d_out)), "b_dec": file.take("b_dec", (d_out,))}
    if architecture == "matching_pursuit":
        tensors["W_enc"], tensors["b_enc"] = tensors["W_dec"], torch.zeros(width)
    else:
        tensors["W_enc"] = file.take("W_enc", (d_in, width)).T
        bias = "b_gate" if architecture == "gated" else "b_enc"
        tensors["b_enc"] = file.take(bias, (width,))
    if architecture == "gated":
        tensors |= {name: file.take(name, (width,)) for name in ("b_mag", "r_mag")}
    if ARCHITECTURES[architecture] == "jumprelu":
        log = "log_threshold" in file and "threshold" not in file
        threshold = file.take(("threshold", "log_threshold"), (width,))
        tensors["threshold"] = threshold.exp() if log else threshold
    if ARCHITECTURES[architecture] in ("batch_topk", "matryoshka"):
        tensors["threshold"] = file.take("topk_threshold", ())
    skip = file.take("W_skip", (d_out, d_in)) if "skip" in architecture else None
    _finetuned(tensors, file, settings, path)
    file.done()
    return tensors, skip


def _finetuned(
    tensors: dict[str, Tensor], file: Tensors, settings: Mapping[str, Any], path: Path
) -> None:
    """Fold the factors that finetuning gave features' contributions; their activations stay."""
    names = ("scaling_factor", "finetuning_scaling_factor")
    if not any(name in file for name in names):
        return
    factor = file.take(names, (len(tensors["b_enc"]),))
    if torch.allclose(factor, torch.ones_like(factor)):
        return
    if not settings.get("finetuning_scaling_factor"):
        raise UserError(
            f"`{path / WEIGHTS}` holds a `scaling_factor` that is not 1, but `{SETTINGS}` does not "
            "say that it is used",
            "set `finetuning_scaling_factor` there if it is",
        )
    tensors["W_dec"] = tensors["W_dec"] * factor[:, None]


def _preprocess(
    tensors: dict[str, Tensor],
    architecture: str,
    settings: dict[str, Any],
    path: Path,
    given: Given,
) -> tuple[str, list[str]]:
    """Fold what SAELens does to activations before it encodes them.

    Returns:
        What is left to do for each token, as `SparseCoder` calls it, and notes.
    """
    kind = (
        "none"
        if given.normalise
        else text(settings, "normalize_activations", path / SETTINGS) or "none"
    )
    allowed = ["none", _SCALE, _WHITEN, *NORMALISATIONS]
    if kind not in allowed:
        raise UserError(
            f"`{path / SETTINGS}` has normalize_activations `{kind}`",
            f"allowed: {', '.join(allowed)}",
        )
    _subtract_b_dec(tensors, architecture, settings, path)
    weighs = flag(settings, "rescale_acts_by_decoder_norm", path / SETTINGS)
    notes = []
    if kind == _WHITEN:
        if architecture == "matching_pursuit":
            raise UserError("matching pursuit cannot be whitened", "SAELens does not either")
        if weighs:
            _fold_norms(tensors)
        _whiten(tensors, path)
    scale = _scale(kind, path, given)
    if scale is not None:
        scale_input(tensors, scale)
        if weighs and "threshold" in tensors:
            tensors["threshold"] = tensors["threshold"] / scale
        if architecture == "matching_pursuit":
            settings["residual_threshold"] = _residual(settings, path) / scale
        notes.append(f"activations were multiplied by {scale:g} in training; that is folded")
    if weighs and kind != _WHITEN:
        _fold_norms(tensors)
    return NORMALISATIONS.get(kind, ""), notes


def _subtract_b_dec(
    tensors: dict[str, Tensor], architecture: str, settings: Mapping[str, Any], path: Path
) -> None:
    if "transcoder" in architecture:
        return
    applied = flag(settings, "apply_b_dec_to_input", path / SETTINGS, True)
    if architecture == "matching_pursuit":  # subtracts by itself what it adds
        if not applied:
            tensors["b_dec"] = torch.zeros_like(tensors["b_dec"])
        return
    if applied:
        subtract_first(tensors, tensors["b_dec"])


def _scale(kind: str, path: Path, given: Given) -> float | None:
    """Return what activations are to be multiplied by, where it is not folded yet.

    Raises:
        UserError: it is nowhere said, or makes no sense beside another normalisation.
    """
    if given.scale is not None and kind not in ("none", _SCALE):
        raise UserError(f"a scale of {given.scale} is given, but `{kind}` has its own", "drop it")
    if given.scale is not None or kind != _SCALE:
        return given.scale
    scaler = read_json(path / SCALER) if (path / SCALER).is_file() else {}
    if "scaling_factor" not in scaler:
        raise UserError(
            f"activations were scaled in training (`{_SCALE}`), and `{path}` does not say by what",
            "give it with --scale: sqrt(d_in) over the mean norm of activations; SAELens lists it "
            "for its releases as `norm_scaling_factor`",
        )
    return needed_number(scaler, "scaling_factor", path / SCALER)


def _whiten(tensors: dict[str, Tensor], path: Path) -> None:
    """Fold (x - mean) @ matrix on the way in, and its inverse on the way out."""
    d_in = tensors["W_enc"].shape[1]
    file = read_safetensors(path / WHITENING)
    mean = file.take("mean", (d_in,))
    matrix = file.take("matrix", (d_in, d_in))
    inverse = file.take("inverse_matrix", (d_in, d_in))
    tensors["W_enc"] = tensors["W_enc"] @ matrix.T
    subtract_first(tensors, mean)
    tensors["W_dec"] = tensors["W_dec"] @ inverse
    tensors["b_dec"] = tensors["b_dec"] @ inverse + mean


def _fold_norms(tensors: dict[str, Tensor]) -> None:
    """Multiply features by their decoder norms: so they are compared, and so SAELens gives them."""
    norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
    tensors["W_enc"] = tensors["W_enc"] * norms[:, None]
    tensors["b_enc"] = tensors["b_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / norms[:, None]


def _double(tensors: dict[str, Tensor]) -> None:
    """Turn features of both signs into twice as many of one."""
    for name in ("W_enc", "b_enc", "W_dec"):
        tensors[name] = torch.cat([tensors[name], -tensors[name]])


def _coder(
    architecture: str,
    tensors: dict[str, Tensor],
    settings: Mapping[str, Any],
    path: Path,
    per_token: str,
) -> SparseCoder:
    ours = ARCHITECTURES[architecture]
    options: dict[str, Any] = {"normalise": per_token}
    threshold = tensors.pop("threshold", None)
    if threshold is not None and ours == "jumprelu":
        tensors["log_threshold"] = log_threshold(threshold)
    elif threshold is not None:  # ours fires where it is reached, theirs above it
        tensors["threshold"] = threshold.nextafter(torch.tensor(torch.inf))
    if ours in ("topk", "batch_topk", "matryoshka"):
        k = needed_number(settings, "k", path / SETTINGS)  # BatchTopK's may be a fraction
        if k <= 0:
            raise UserError(f"`k` of `{path / SETTINGS}` is {k:g}", "it must be above 0")
        options["k"] = max(round(k), 1)
    if ours == "matryoshka":
        width = len(tensors["b_enc"])
        widths = needed(settings, "matryoshka_widths", path / SETTINGS)
        if not isinstance(widths, list) or not all(isinstance(w, int) for w in widths):
            raise UserError(
                f"`{path / SETTINGS}` has matryoshka_widths `{widths}`",
                "rising widths were expected",
            )
        options["prefixes"] = widths if widths[-1:] == [width] else [*widths, width]
    if ours == "matching_pursuit":
        options["steps"] = _count(settings, "max_iterations", path)
        options["stop_norm"] = _residual(settings, path)
        options["stop_repeating"] = flag(
            settings, "stop_on_duplicate_support", path / SETTINGS, True
        )
    return coder_from(ours, tensors, **options)


def _count(settings: Mapping[str, Any], name: str, path: Path) -> int | None:
    """Return a number that the configuration states; None where it does not."""
    return None if settings.get(name) is None else needed_count(settings, name, path / SETTINGS)


def _residual(settings: Mapping[str, Any], path: Path) -> float:
    """Return the norm below which matching pursuit stops; SAELens's own where none is said."""
    return needed_number(
        {"residual_threshold": 0.01, **settings}, "residual_threshold", path / SETTINGS
    )


FORMAT = Format(name="saelens", title="SAELens", recognises=recognises, read=read, write=write)
