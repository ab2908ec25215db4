"""What a format is: how its files are known, read and written, and what reading one gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monosemy.coders import Dictionary, Provenance, SparseCoder, make_coder
from monosemy.coders.coder import DIVIDING, NORMALISATIONS
from monosemy.coders.first import UNKNOWN
from monosemy.corpus import TokenPolicy
from monosemy.errors import UserError

RELU = ("relu", "p_anneal", "relu_kl", "nonnegative")
"""Architectures that differ in training alone: all that is positive fires."""
THRESHOLDED = (*RELU, "jumprelu", "batch_topk", "matryoshka")
"""Those of which a threshold for each feature decides; see `thresholds`."""
NOT_HELD = "text, which tokens count, the fingerprint and features' strengths"
"""Of what `write` returns: what formats of weights alone have no place for."""
CONTEXT = 128
"""Tokens in a row of text where a file does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What files may leave out and somebody knows: said by the user, or by the list of releases."""

    model: str | None = None
    """Hub id of the model, where files do not say or say it wrongly."""
    hookpoint: str | None = None
    """Where the activations that it encodes live."""
    target: str | None = None
    """Where those live that it explains: makes it a transcoder."""
    k: int | None = None
    """Features a token, where neither files nor names tell."""
    scale: float | None = None
    """What activations are to be multiplied by, where that was not folded into the weights."""
    centred: bool | None = None
    """Activations are of a model whose writing weights were centred, as TransformerLens does unless
    told not to: their mean over d_in is 0."""
    normalise: str | None = None
    """What was done to each token's activations first: `centre`, `layer_norm`, or `rms`, which
    divides by their root mean square."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be.

        Raises:
            UserError: k is below 1, the scale not above 0 or not finite, or `normalise` unknown.
        """
        if self.normalise is not None and self.normalise not in NORMALISATIONS:
            allowed = ", ".join(name for name in NORMALISATIONS if name)
            raise UserError(f"no normalisation `{self.normalise}`", f"allowed: {allowed}")
        if self.k is not None and self.k < 1:
            raise UserError(f"k is {self.k}", "it must be 1 or more")
        if self.scale is not None:
            check_scale(self.scale)
            if self.normalise in DIVIDING:
                raise UserError(
                    f"a scale of {self.scale:g} and `{self.normalise}` of each token are given",
                    "drop either: a token that is divided by its own size has no scale",
                )


def check_scale(scale: float) -> float:
    """Check what activations are to be multiplied by.

    Raises:
        UserError: it is not above 0, or not finite.
    """
    if not 0 < scale < math.inf:
        raise UserError(f"the scale of activations is {scale}", "it must be above 0, and finite")
    return scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the files of a dictionary hold, in our terms."""

    coder: SparseCoder
    model: str | None = None
    """Hub id."""
    hookpoint: str | None = None
    target: str | None = None
    """Of a transcoder: where what it explains lives."""
    context: int | None = None
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    corpus: dict[str, Any] = field(default_factory=dict)
    """Arguments with which `open_corpus` opens the text it was trained on, where that is known."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The tool's own configuration, as it was."""
    notes: list[str] = field(default_factory=list)
    """What had to be assumed, and what was in the files that is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of dictionaries.

    Attributes:
        name: on the command line.
        title: what its tool or release is called.
        recognises: whether a file or folder is one dictionary of this format, told by what files
            and tensors there are, never by a name that people choose.
        read: None where it is only written.
        write: writes into an empty folder and returns what the format cannot hold, one sentence
            each; refuses a dictionary it cannot hold at all. None where it is only read.
    """

    name: str
    title: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Given], Content] | None
    write: Callable[[Dictionary, Path], list[str]] | None = None


def as_dictionary(content: Content, given: Given, source: str, format_name: str) -> Dictionary:
    """Return what was read as a dictionary that has yet to be attached to its model.

    Until then it has no fingerprint, and no strengths: features' scale is not known.

    Raises:
        UserError: what is given makes no sense of such a dictionary.
    """
    coder, target = content.coder, given.target or content.target
    if target is None and coder.d_out != coder.d_in:
        target = UNKNOWN
    if given.k is not None and not coder.has_k:
        raise UserError(f"k {given.k} is given, but `{coder.architecture}` has no k", "drop it")
    how = given.normalise or ("centre" if given.centred else "")
    if how:
        _normalise(coder, how, is_transcoder=target is not None or coder.W_skip is not None)
    imported = {
        "source": source,
        "format": format_name,
        "settings": content.settings,
        "notes": content.notes,
    }
    provenance = Provenance(
        model=given.model or content.model or UNKNOWN,
        hookpoint=given.hookpoint or content.hookpoint or UNKNOWN,
        target=target,
        context=content.context or CONTEXT,
        policy=content.policy,
        corpus=content.corpus,
        training={"imported": imported},
    )
    is_transcoder = provenance.target is not None
    return Dictionary(
        coder,
        provenance,
        torch.zeros(coder.width),
        torch.zeros(coder.d_in),
        1.0,
        None,
        target_mean=torch.zeros(coder.d_out) if is_transcoder else None,
        target_scale=1.0 if is_transcoder else None,
    )


def _normalise(coder: SparseCoder, how: str, *, is_transcoder: bool) -> None:
    """Let a coder normalise each token; what divides by the spread centres already.

    Raises:
        UserError: it is a transcoder, whose output has another mean and spread than its input, or
            normalises in another way.
    """
    if coder.normalise == how or (coder.normalise == "layer_norm" and how == "centre"):
        return
    if is_transcoder or coder.normalise:
        what = "a transcoder" if is_transcoder else f"what does `{coder.normalise}` to each token"
        raise UserError(
            f"{what} cannot be made one of activations that are normalised by `{how}`",
            "drop --centred or --normalise: that is not how it was trained",
        )
    coder.normalise = how


@torch.no_grad()
def coder_from(
    architecture: str, tensors: dict[str, Tensor], scale: float | None = None, **options: Any
) -> SparseCoder:
    """Return a coder with given weights.

    Args:
        architecture: one of `ARCHITECTURES`.
        tensors: its state: `W_enc` [width, d_in], `W_dec` [width, d_out], `b_enc` [width], `b_dec`
            [d_out], and what the architecture has beside them. Missing biases are 0.
        scale: what activations were multiplied by; folded, see `scale_input`.
        options: the architecture's.

    Raises:
        UserError: a scale of activations that each token's own spread divides anyway.
    """
    if scale is not None:
        if options.get("normalise"):
            raise UserError(
                f"a scale of {scale:g} is given, but each token is normalised by itself", "drop it"
            )
        tensors = dict(tensors)
        scale_input(tensors, scale)
    width, d_in = tensors["W_enc"].shape
    d_out = tensors["W_dec"].shape[1]
    coder = make_coder(
        architecture, d_in, width, d_out=d_out, skip="W_skip" in tensors, unit_norm=False, **options
    )
    weights = {"b_enc": torch.zeros(width), "b_dec": torch.zeros(d_out), **tensors}
    coder.load_state_dict({name: value.contiguous() for name, value in weights.items()})
    return coder.eval().requires_grad_(False)


def subtract_first(tensors: dict[str, Tensor], before: Tensor) -> None:
    """Fold the subtraction of a bias from activations, before they are encoded, into another.

    W (x - before) + b is W x + (b - W before).

    Args:
        tensors: as `coder_from` takes them; changed.
        before: [d_in], what is subtracted.
    """
    moved = tensors["W_enc"] @ before
    tensors["b_enc"] = tensors["b_enc"] - moved
    if "b_mag" in tensors:  # of a gated coder, whose magnitudes have an encoder r_mag as large
        tensors["b_mag"] = tensors["b_mag"] - tensors["r_mag"].exp() * moved


def scale_input(tensors: dict[str, Tensor], scale: float) -> None:
    """Fold a scale of activations, and of what is explained, into weights.

    A dictionary of x * scale becomes the dictionary of x whose features fire as they did: inputs
    are multiplied by it, outputs divided.
    """
    check_scale(scale)
    tensors["W_enc"] = tensors["W_enc"] * scale
    for name in {"W_dec", "b_dec"} & tensors.keys():
        tensors[name] = tensors[name] / scale


def log_threshold(threshold: Tensor) -> Tensor:
    """Return JumpReLU thresholds as its coder keeps them; those below 0 count as 0."""
    finite = torch.finfo(torch.float32)
    return threshold.clamp(finite.tiny, finite.max).log()


def thresholds(coder: SparseCoder) -> Tensor | None:
    """Return what each pre-activation must exceed to fire, [width]; None if that does not decide.

    Known of ReLU, JumpReLU and BatchTopK, as long as nothing is normalised or weighed beside it.
    """
    if coder.normalise or coder.importance is not None:
        return None
    if coder.architecture in RELU:
        return torch.zeros(coder.width)
    if coder.architecture == "jumprelu":
        return plain(coder)["log_threshold"].exp()
    if coder.architecture in ("batch_topk", "matryoshka"):
        bar = plain(coder)["threshold"]
        return torch.nextafter(bar, -torch.ones(())).clamp_min(0).repeat(coder.width)
    return None


def described(coder: SparseCoder) -> str:
    """Return what a coder is that a format cannot hold, for messages."""
    beside = [
        f"that does `{coder.normalise}` to each token" if coder.normalise else "",
        "that weighs features when it chooses" if coder.importance is not None else "",
        "with a linear path" if coder.W_skip is not None else "",
    ]
    return " and ".join([f"`{coder.architecture}`", *filter(None, beside)])


def plain(module: nn.Module) -> dict[str, Tensor]:
    """Return a coder's weights, detached, on the CPU, each in memory of its own."""
    return {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
