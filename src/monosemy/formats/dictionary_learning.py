"""dictionary_learning (Marks, Karvonen and Mueller): `ae.pt`, and `config.json` beside it.

A file's class is in its configuration; without one its tensors tell it, but for two classes that
have the same. All but JumpReLU and `AutoEncoderNew` subtract the decoder's bias from their input.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosemy.coders import Dictionary, SparseCoder
from monosemy.errors import UserError, nearest
from monosemy.formats.files import (
    Tensors,
    needed_count,
    pt_shapes,
    read_json,
    read_pt,
    tensor_shapes,
    tensors_of,
    text,
)
from monosemy.formats.format import (
    RELU,
    UNKNOWN,
    Content,
    Format,
    Given,
    coder_from,
    log_threshold,
    plain,
    subtract_first,
)
from monosemy.formats.names import hub_model, is_hookpoint, our_hookpoint

WEIGHTS, SETTINGS = "ae.pt", "config.json"
HUB_WEIGHTS = "model.safetensors"
"""Of crosscoders on the Hub."""
_THRESHOLD_STEPS = "1,000"
"""Steps of training before which its trainers set no threshold, unless told otherwise."""


@dataclass(slots=True)
class _File:
    """A file and what is known of it while it is read."""

    tensors: Tensors
    trainer: dict[str, Any]
    settings_path: Path
    given: Given
    notes: list[str] = field(default_factory=list)

    def sizes(self) -> tuple[int, int]:
        """Return width and d_in: of the configuration where it says them, else of the weights."""
        if "W_enc" in self.tensors:
            return self._size("dict_size", "W_enc", 1), self._size("activation_dim", "W_enc", 0)
        name = "encoder.weight"
        return self._size("dict_size", name, 0), self._size("activation_dim", name, 1)

    def _size(self, said: str, name: str, axis: int) -> int:
        if self.trainer.get(said) is None:
            return self.tensors.size(name, axis)
        return needed_count(self.trainer, said, self.settings_path)

    def counts(self, name: str, shape: tuple[int | None, ...]) -> list[int]:
        """Return a tensor of whole numbers above 0.

        Raises:
            UserError: it is missing, empty, or holds others.
        """
        values = self.tensors.take(name, shape).reshape(-1)
        if len(values) == 0 or (values < 1).any() or (values % 1 != 0).any():
            raise UserError(
                f"`{name}` of `{self.tensors.path}` is {values.tolist()}",
                "whole numbers above 0 were expected",
            )
        return [int(value) for value in values]

    def k(self) -> int:
        """Return how many features fire: what is given, or what file and configuration agree on."""
        said = {}
        if "k" in self.tensors:
            said["weights"] = self.counts("k", ())[0]
        if self.trainer.get("k") is not None or not said:
            said["configuration"] = needed_count(self.trainer, "k", self.settings_path)
        if self.given.k is not None:
            return self.given.k
        if len(set(said.values())) > 1:
            raise UserError(
                f"`{self.tensors.path}` has k {said['weights']}, its configuration "
                f"{said['configuration']}",
                "they are of two dictionaries; or say which with --k",
            )
        return next(iter(said.values()))


Parts = tuple[str, dict[str, Tensor], dict[str, Any]]
"""An architecture of ours, its weights as `coder_from` takes them, and its options."""


def _linear(file: _File, b_dec: str, b_enc: str = "encoder.bias") -> dict[str, Tensor]:
    """Return the weights of classes made of linear modules, whose bias is subtracted first."""
    width, d_in = file.sizes()
    take = file.tensors.take
    return {
        "W_enc": take("encoder.weight", (width, d_in)),
        "b_enc": take(b_enc, (width,)),
        "W_dec": take("decoder.weight", (d_in, width)).T,
        "b_dec": take(b_dec, (d_in,)),
    }


def _parameters(file: _File) -> dict[str, Tensor]:
    """Return the weights of classes made of bare parameters."""
    width, d_in = file.sizes()
    take = file.tensors.take
    return {
        "W_enc": take("W_enc", (d_in, width)).T,
        "b_enc": take("b_enc", (width,)),
        "W_dec": take("W_dec", (width, d_in)),
        "b_dec": take("b_dec", (d_in,)),
    }


def _relu(file: _File) -> Parts:
    """Read an `AutoEncoder` as its `from_pretrained` gives it: with directions of unit norm."""
    weights = _linear(file, "bias")
    subtract_first(weights, weights["b_dec"])
    norms = weights["W_dec"].norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms)):
        norms = torch.where(norms > 0, norms, 1)
        weights["W_dec"] = weights["W_dec"] / norms[:, None]
        weights["W_enc"] = weights["W_enc"] * norms[:, None]
        weights["b_enc"] = weights["b_enc"] * norms
        file.notes.append("directions brought to unit norm, as its `from_pretrained` does")
    return "relu", weights, {}


def _relu_new(file: _File) -> Parts:
    return "relu", _linear(file, "decoder.bias"), {}


def _gated(file: _File) -> Parts:
    weights = _linear(file, "decoder_bias", "gate_bias")
    for ours, theirs in (("r_mag", "r_mag"), ("b_mag", "mag_bias")):
        weights[ours] = file.tensors.take(theirs, weights["b_enc"].shape)
    subtract_first(weights, weights["b_dec"])
    return "gated", weights, {}


def _jumprelu(file: _File) -> Parts:
    weights = _parameters(file)
    weights["log_threshold"] = log_threshold(file.tensors.take("threshold", weights["b_enc"].shape))
    return "jumprelu", weights, {}


def _topk(file: _File) -> Parts:
    weights = _linear(file, "b_dec")
    subtract_first(weights, weights["b_dec"])
    if "threshold" in file.tensors and file.tensors.take("threshold", ()) >= 0:
        file.notes.append("its other rule, a threshold (`use_threshold`), is not kept")
    return "topk", weights, {"k": file.k()}


def _batch_topk(file: _File) -> Parts:
    weights = _linear(file, "b_dec")
    subtract_first(weights, weights["b_dec"])
    return _above_threshold("batch_topk", file, weights, {})


def _matryoshka(file: _File) -> Parts:
    weights = _parameters(file)
    subtract_first(weights, weights["b_dec"])
    ends = list(itertools.accumulate(file.counts("group_sizes", (None,))))
    return _above_threshold("matryoshka", file, weights, {"prefixes": ends})


def _above_threshold(
    architecture: str, file: _File, weights: dict[str, Tensor], options: dict[str, Any]
) -> Parts:
    """Add the threshold; where none was set, take the k largest if that is asked for.

    An unset one is negative: `encode` would then let all that is positive fire, which is far from
    what was trained, and the rule of training, the largest of a batch, is none of one token.
    """
    threshold = file.tensors.take("threshold", ()) if "threshold" in file.tensors else None
    if threshold is not None and threshold >= 0:
        weights["threshold"] = _reached(threshold)
        return architecture, weights, {"k": file.k(), **options}
    if file.given.k is None:
        raise UserError(
            f"`{file.tensors.path}` was saved before its threshold was set: which of its features "
            "fire on one token is not known",
            f"take a checkpoint after step {_THRESHOLD_STEPS}, or give k (--k) to let the k "
            "largest of each token fire",
        )
    file.notes.append("no threshold was set: the k largest of each token fire instead")
    return "topk", weights, {"k": file.k()}


def _reached(threshold: Tensor) -> Tensor:
    """Return the least number above: theirs has to be exceeded, ours reached."""
    return torch.nextafter(threshold, torch.tensor(torch.inf)) if threshold > 0 else threshold


def _exceeded(threshold: Tensor) -> Tensor:
    """Return the largest number below, at least 0: below that it would count as unset."""
    return torch.nextafter(threshold, torch.tensor(0.0)) if threshold > 0 else threshold * 0


@dataclass(frozen=True, slots=True)
class _Class:
    trainer: str
    """Its usual trainer, by which other tools know it too."""
    needed: tuple[str, ...]
    read: Callable[[_File], Parts]
    optional: tuple[str, ...] = ()


_ENCODER = ("encoder.weight", "encoder.bias", "decoder.weight")
_BARE = ("W_enc", "b_enc", "W_dec", "b_dec")
_K = ("k", "threshold")
CLASSES = {
    "AutoEncoder": _Class("StandardTrainer", (*_ENCODER, "bias"), _relu),
    "AutoEncoderNew": _Class("StandardTrainerAprilUpdate", (*_ENCODER, "decoder.bias"), _relu_new),
    "GatedAutoEncoder": _Class(
        "GatedSAETrainer",
        ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"),
        _gated,
    ),
    "JumpReluAutoEncoder": _Class("JumpReluTrainer", (*_BARE, "threshold"), _jumprelu),
    "AutoEncoderTopK": _Class("TopKTrainer", (*_ENCODER, "b_dec"), _topk, _K),
    "BatchTopKSAE": _Class("BatchTopKTrainer", (*_ENCODER, "b_dec"), _batch_topk, _K),
    "MatryoshkaBatchTopKSAE": _Class(
        "MatryoshkaBatchTopKTrainer", (*_BARE, "group_sizes"), _matryoshka, _K
    ),
}


def recognises(path: Path) -> bool:
    """Say whether there is an `ae.pt`, or a file such as one, with the tensors of a class."""
    if _is_crosscoder(tensor_shapes(path / HUB_WEIGHTS)):
        return True
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file() or file.suffix != ".pt":
        return False
    if path.is_dir() and _is_its_settings(path / SETTINGS):
        return True
    shapes = pt_shapes(file)
    return bool(_classes(shapes)) or _is_crosscoder(shapes)


def _is_its_settings(path: Path) -> bool:
    try:
        trainer = read_json(path).get("trainer")
    except UserError:
        return False
    return isinstance(trainer, dict) and "dict_class" in trainer


def _classes(names: Any) -> list[str]:
    """Return the classes whose tensors these are."""
    found = set(names)
    return [
        name
        for name, kind in CLASSES.items()
        if found >= set(kind.needed) and found <= {*kind.needed, *kind.optional}
    ]


def _is_crosscoder(shapes: dict[str, tuple[int, ...]]) -> bool:
    return all(len(shapes.get(n, ())) == 3 for n in ("encoder.weight", "decoder.weight"))


def read(path: Path, given: Given) -> Content:
    """Read a dictionary that dictionary_learning saved: a folder, or a file of weights in one.

    Raises:
        UserError: the class is unknown or cannot be told, a tensor is missing or contradicts the
            configuration, or it is a crosscoder.
    """
    weights_path = path / WEIGHTS if path.is_dir() else path
    if any(_is_crosscoder(s) for s in (tensor_shapes(path / HUB_WEIGHTS), pt_shapes(weights_path))):
        raise UserError(
            f"`{path}` is a crosscoder: it encodes several layers or models at once",
            "only dictionaries of one hook point are read",
        )
    tensors = tensors_of(read_pt(weights_path), weights_path)
    settings_path, settings = _settings(weights_path)
    trainer, buffer = (_fields(settings, part) for part in ("trainer", "buffer"))
    file = _File(tensors, trainer, settings_path, given)
    if not settings:
        file.notes.append(f"no `{SETTINGS}` beside it: model and hook point are not known")
    architecture, parts, options = CLASSES[_class_of(file)].read(file)
    tensors.done()
    hookpoint, target = _places(trainer, buffer, file.notes)
    model = trainer.get("lm_name")
    return Content(
        coder=coder_from(architecture, parts, given.scale, **options),
        model=hub_model(model) if isinstance(model, str) else None,
        hookpoint=hookpoint,
        target=target,
        context=needed_count(buffer, "ctx_len", settings_path) if buffer.get("ctx_len") else None,
        settings=settings,
        notes=file.notes,
    )


def _settings(weights: Path) -> tuple[Path, dict[str, Any]]:
    """Return the configuration beside a file of weights or its `checkpoints`; {} if none."""
    places = [weights.absolute().parent]
    if places[0].name == "checkpoints":
        places.append(places[0].parent)
    for place in places:
        settings = read_json(place / SETTINGS) if (place / SETTINGS).is_file() else {}
        if "trainer" in settings:  # else it is somebody else's file
            return place / SETTINGS, settings
    return places[0] / SETTINGS, {}


def _fields(settings: dict[str, Any], part: str) -> dict[str, Any]:
    value = settings.get(part)
    return value if isinstance(value, dict) else {}


def _class_of(file: _File) -> str:
    name = text(file.trainer, "dict_class", file.settings_path)
    fitting = _classes(file.tensors.values)
    if name is not None and name not in CLASSES:
        raise UserError(
            f"`{file.settings_path}` has dict_class `{name}`",
            f"{nearest(name, CLASSES)} allowed: {', '.join(CLASSES)}".strip(),
        )
    if name is not None:
        return name
    if len(fitting) == 1:
        return fitting[0]
    if fitting and file.given.k is not None:
        file.notes.append(f"taken for `{fitting[0]}`, as k was given: {fitting[1]} has the same")
        return fitting[0]
    if fitting:
        raise UserError(
            f"`{file.tensors.path}` has the tensors of {' and of '.join(fitting)}",
            f"put its `{SETTINGS}` beside it, or give k (--k) if it is a TopK",
        )
    raise UserError(
        f"`{file.tensors.path}` has the tensors of no class of dictionary_learning",
        f"it has {file.tensors.listed()}",
    )


_SUBMODULE = re.compile(r"(resid|mlp|attn|attention)(?:_(pre|post|in|out|output))?_?layer_?(\d+)")
"""What its users call a submodule: `resid_post_layer_8`, `mlp_out_layer8`, `attention_layer_8`."""


def _places(
    trainer: dict[str, Any], buffer: dict[str, Any], notes: list[str]
) -> tuple[str | None, str | None]:
    """Return the hook point, and a transcoder's target."""
    layer, name, io = trainer.get("layer"), trainer.get("submodule_name"), buffer.get("io") or "out"
    if io not in ("in", "out", "in_and_out"):
        raise UserError(f"`io` of its configuration is {io!r}", "allowed: in, out, in_and_out")
    place = None
    if isinstance(name, str):
        place = _place(name)
        if place is None:
            notes.append(f"its submodule, `{name}`, is no hook point that is known here")
    elif isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0:
        place = f"layers.{layer}"
        notes.append(f"no `submodule_name`: taken to be the residual stream after block {layer}")
    if io != "in_and_out":
        return (f"{place}.input" if place and io == "in" else place), None
    return (f"{place}.input" if place else None), place or UNKNOWN


def _place(submodule: str) -> str | None:
    found = _SUBMODULE.search(submodule)
    if found is None:
        return our_hookpoint(submodule) if is_hookpoint(submodule) else None
    part, side, layer = found[1], found[2], int(found[3])
    if part == "resid":
        before = side in ("pre", "in")
        return "embed" if before and layer == 0 else f"layers.{layer - before}"
    module = f"layers.{layer}.{'mlp' if part == 'mlp' else 'attn'}"
    return f"{module}.input" if side in ("pre", "in") else module


def write(dictionary: Dictionary, folder: Path) -> list[str]:
    """Write a dictionary in the class that does the same.

    ReLU becomes an `AutoEncoder` where directions have unit norm, to which its `from_pretrained`
    would bring them, else an `AutoEncoderNew`.

    Raises:
        UserError: no class does the same.
    """
    _check_fits(dictionary)
    coder, provenance = dictionary.coder, dictionary.provenance
    kind, weights = _written(coder)
    sizes: dict[str, Any] = {"activation_dim": coder.d_in, "dict_size": coder.width}
    if coder.has_k:
        sizes["k"] = coder.options()["k"]
    if "group_sizes" in weights:
        sizes["group_sizes"] = weights["group_sizes"].tolist()
    submodule, io = _submodule(dictionary.explains), "out"
    if dictionary.is_transcoder:
        io = "in_and_out"
    elif submodule.endswith(".input"):
        submodule, io = _submodule(submodule.removesuffix(".input")), "in"
    layer = re.match(r"layers\.(\d+)", dictionary.explains)
    settings = {
        "trainer": {
            "trainer_class": CLASSES[kind].trainer,
            "dict_class": kind,
            **sizes,
            "layer": int(layer[1]) if layer else None,
            "lm_name": provenance.model,
            "wandb_name": "monosemy",
            "submodule_name": submodule,
        },
        "buffer": {"d_submodule": coder.d_in, "io": io, "ctx_len": provenance.context},
    }
    torch.save({n: t.contiguous() for n, t in weights.items()}, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=4), "utf-8")
    lost = ["the corpus, which tokens count, the fingerprint and features' strengths"]
    if dictionary.is_transcoder:
        lost.append(
            f"that it is a transcoder from `{provenance.hookpoint}`, but for `io` in its "
            "configuration: its `forward` returns the prediction"
        )
    return lost


def _submodule(hookpoint: str) -> str:
    found = re.fullmatch(r"layers\.(\d+)(?:\.(mlp|attn))?", hookpoint)
    if found is None:
        return hookpoint
    part = {None: "resid_post", "mlp": "mlp_out", "attn": "attention_out"}[found[2]]
    return f"{part}_layer_{found[1]}"


def _written(coder: SparseCoder) -> tuple[str, dict[str, Tensor]]:
    """Return the class that does what a coder does, and its weights."""
    weights = plain(coder)
    before = weights["W_enc"] @ weights["b_dec"]  # what their classes subtract
    linear = {
        "encoder.weight": weights["W_enc"],
        "encoder.bias": weights["b_enc"] + before,
        "decoder.weight": weights["W_dec"].T,
    }
    bare = {
        "W_enc": weights["W_enc"].T,
        "b_enc": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    if coder.architecture in RELU:
        norms = weights["W_dec"].norm(dim=1)
        if torch.allclose(norms, torch.ones_like(norms)):
            return "AutoEncoder", {"bias": weights["b_dec"], **linear}
        linear["encoder.bias"] = weights["b_enc"]
        return "AutoEncoderNew", {**linear, "decoder.bias": weights["b_dec"]}
    if coder.architecture == "gated":
        del linear["encoder.bias"]
        return "GatedAutoEncoder", {
            "decoder_bias": weights["b_dec"],
            "r_mag": weights["r_mag"],
            "gate_bias": weights["b_enc"] + before,
            "mag_bias": weights["b_mag"] + weights["r_mag"].exp() * before,
            **linear,
        }
    if coder.architecture == "jumprelu":
        return "JumpReluAutoEncoder", {**bare, "threshold": weights["log_threshold"].exp()}
    k = {
        "k": torch.tensor(coder.options()["k"], dtype=torch.int32),
        "threshold": torch.tensor(-1.0),
    }
    if coder.architecture == "topk":
        return "AutoEncoderTopK", {"b_dec": weights["b_dec"], **k, **linear}
    k["threshold"] = _exceeded(weights["threshold"])
    if coder.architecture == "batch_topk":
        return "BatchTopKSAE", {"b_dec": weights["b_dec"], **k, **linear}
    prefixes = torch.tensor([0, *coder.options()["prefixes"]])
    bare["b_enc"] = weights["b_enc"] + before
    return "MatryoshkaBatchTopKSAE", {**bare, **k, "group_sizes": prefixes.diff()}


_WRITTEN = (*RELU, "gated", "jumprelu", "topk", "batch_topk", "matryoshka")


def _check_fits(dictionary: Dictionary) -> None:
    coder = dictionary.coder
    if coder.architecture not in _WRITTEN:
        raise UserError(
            f"dictionary_learning has no `{coder.architecture}`", f"allowed: {', '.join(_WRITTEN)}"
        )
    if coder.d_out != coder.d_in or coder.W_skip is not None:
        what = "two widths" if coder.W_skip is None else "a linear path from input to output"
        raise UserError(
            f"dictionary_learning has no dictionaries with {what}",
            "circuit-tracer's and SAELens's formats hold such transcoders",
        )
    if coder.normalise or coder.importance is not None:
        what = "normalise each token" if coder.normalise else "weigh features when it chooses"
        raise UserError(
            f"dictionary_learning cannot {what}",
            "export a dictionary without, or in another format",
        )


FORMAT = Format(
    name="dictionary_learning",
    title="dictionary_learning",
    recognises=recognises,
    read=read,
    write=write,
)
