"""A dictionary: a trained sparse coder with all that says what it was trained on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.artefact import MANIFEST, load_manifest, load_tensors, save_artefact, write_text
from monosemy.coders.card import model_card
from monosemy.coders.changes import Clamp, changed
from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder
from monosemy.coders.fingerprint import Figures, Fingerprint
from monosemy.coders.provenance import Provenance
from monosemy.coders.registry import make_coder
from monosemy.errors import UserError
from monosemy.hub import fetch, hub_place, upload

KIND = "dictionary"
WEIGHTS = "coder.safetensors"
FINGERPRINT = "fingerprint.safetensors"


@dataclass(slots=True)
class Dictionary:
    """A trained sparse coder that takes the model's own activations: nothing is left to scale.

    It explains the activations it encodes, or, a transcoder, those at another hook point
    (`explains`), whose width is `d_out`.

    Attributes:
        coder: the weights, with centring and scale folded in; directions have unit norm.
        provenance: what it was trained on.
        strength: [width], each feature's largest activation on held-out text; 0 if it never fired.
        mean: [d_in], mean activation in training.
        scale: what centred activations were multiplied by in training; folded, kept for `doctor`.
        fingerprint: tokens and what is expected on them; None if it was fitted to bare arrays, or
            is another tool's and was never attached to its model.
        target_mean: [d_out], mean of what a transcoder explains; else None.
        target_scale: what that was multiplied by, centred, in a transcoder's training; else None.
    """

    coder: SparseCoder
    provenance: Provenance
    strength: Float[Tensor, " width"]
    mean: Float[Tensor, " d_in"]
    scale: float
    fingerprint: Fingerprint | None
    target_mean: Float[Tensor, " d_out"] | None = None
    target_scale: float | None = None

    @property
    def hookpoint(self) -> str:
        """Where in the model the activations that it encodes live."""
        return self.provenance.hookpoint

    @property
    def explains(self) -> str:
        """Where in the model the activations that it explains live; `hookpoint` for most."""
        return self.provenance.explains

    @property
    def is_transcoder(self) -> bool:
        """Whether it explains activations at another hook point than it encodes."""
        return self.provenance.target is not None

    @property
    def belongs_to_model(self) -> bool:
        """Whether there is a model to hold it against: it was not fitted to bare arrays."""
        return self.fingerprint is not None or "imported" in self.provenance.training

    @property
    def width(self) -> int:
        """Number of features."""
        return self.coder.width

    @property
    def d_in(self) -> int:
        """Width of the activations encoded."""
        return self.coder.d_in

    @property
    def d_out(self) -> int:
        """Width of the activations explained."""
        return self.coder.d_out

    @property
    def l0(self) -> float:
        """Mean number of features that fired on a token of held-out text after training."""
        held_out = self.provenance.training.get("held_out", {})
        if "l0" not in held_out and self.fingerprint is not None:
            return self.fingerprint.expected.l0
        return float(held_out.get("l0", math.nan))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch width"]:
        """Return how much each feature fires."""
        return self.coder.encode(x)

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "tokens d_in"]) -> Code:
        """Return the features that fire on each token, and how much."""
        return self.coder.encode_sparse(x)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch d_out"]:
        """Return the activations a code stands for; without a linear path, which needs x."""
        return self.coder.decode(z)

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return decode(encode(x)), with the linear path where there is one.

        That is x again, as far as features explain it; of a transcoder, the activations that it
        predicts at `explains`.
        """
        return self.coder(x)

    @torch.no_grad()
    def steer(
        self,
        x: Float[Tensor, "batch time d_in"],
        *,
        feature: int,
        scale: float,
        positions: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time d_in"]:
        """Return activations with one feature clamped and everything else as it was.

        The feature's activation is set to `scale` times its `strength`, wherever `positions` is
        true (default: everywhere): x + decode(z') - decode(z), so what the dictionary does not
        explain stays in (Templeton et al. 2024). scale 0 ablates the feature.

        Raises:
            UserError: no such feature, one that never fired, which has no scale, or a transcoder:
                what it changes is elsewhere than x. Edits of the model take one (`FeatureEdit`).
        """
        return self.clamp(x, {feature: scale}, positions=positions)

    @torch.no_grad()
    def clamp(
        self,
        x: Float[Tensor, "batch time d_in"],
        scales: Mapping[int, float],
        *,
        positions: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time d_in"]:
        """Return activations with several features clamped at once, each as `steer` clamps one.

        Raises:
            UserError: as `steer`.
        """
        self.check_one_place()
        self.check_scales(scales)
        strength = {feature: float(self.strength[feature]) for feature in scales}
        rows = x.reshape(-1, self.d_in).float()
        made = changed(self.coder, rows, rows, [Clamp(scales)], strength).to(x.dtype)
        made = made.reshape(x.shape)
        return made if positions is None else torch.where(positions[..., None], made, x)

    def check_scales(self, scales: Mapping[int, float]) -> None:
        """Refuse multiples of the strength of a feature that has none.

        Raises:
            UserError: no such feature, or one that never fired and is not just ablated.
        """
        for feature, scale in scales.items():
            self.check_feature(feature)
            if scale != 0 and self.strength[feature] == 0:
                raise UserError(
                    f"feature {feature} never fired on held-out text, so it has no scale to "
                    "steer by",
                    "choose a feature that `monosemy features` lists",
                )

    def check_feature(self, feature: int) -> None:
        """Refuse a feature number that does not exist.

        Raises:
            UserError: it is negative or not below the width.
        """
        check_feature(feature, self.width)

    def check_one_place(self) -> None:
        """Refuse a transcoder where bare activations, or vectors among them, are all there is.

        Raises:
            UserError: it is a transcoder.
        """
        if self.is_transcoder:
            raise UserError(
                f"this dictionary is a transcoder: its features fire at `{self.hookpoint}` and "
                f"write at `{self.explains}`, and here both must be one place",
                "to steer, edit the model with `lm.edit(FeatureEdit(dictionary, changes))`; for "
                "all else take a dictionary trained without a target",
            )

    def identity(self) -> str:
        """Return a checksum of the weights: the same wherever and however they are saved."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.coder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Dictionary:
        """Move weights to a device; returns itself."""
        self.coder.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the dictionary as a folder; see `docs/format.md`.

        Raises:
            UserError: the folder holds something else, or the disk refuses.
        """
        weights = {
            **self.coder.state_dict(),
            "strength": self.strength,
            "mean": self.mean,
        }
        if self.coder.tied:  # one tensor under two names cannot be written
            weights["W_enc"] = weights["W_enc"].clone()
        normalisation: dict[str, Any] = {"folded": True, "scale": self.scale}
        if self.target_mean is not None:
            weights["target_mean"] = self.target_mean
            normalisation["target_scale"] = self.target_scale
        manifest = {
            "architecture": self.coder.architecture,
            "d_in": self.d_in,
            "width": self.width,
            "options": self.coder.options(),
            "normalisation": normalisation,
            "provenance": self.provenance.to_dict(),
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        }
        files = {WEIGHTS: weights}
        if self.fingerprint is not None:
            manifest["fingerprint"] = asdict(self.fingerprint.expected)
            manifest["fingerprint_texts"] = self.fingerprint.texts
            files[FINGERPRINT] = self.fingerprint.tensors()
        return save_artefact(folder, KIND, manifest, files)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Dictionary:
        """Read a dictionary from a folder, a run's folder, or the Hugging Face hub.

        Args:
            source: a folder, `owner/name` or `owner/name/folder`, the latter two with `@revision`
                for another than the hub's newest.

        Raises:
            UserError: it is not there, damaged, or of a format this version does not read.
        """
        folder = folder_of(source)
        if folder.exists() and not (folder / MANIFEST).is_file():
            raise UserError(
                f"`{folder}` is no dictionary of monosemy: it has no {MANIFEST}",
                f"if it is another tool's: monosemy import {folder}",
            )
        manifest = load_manifest(folder, KIND)
        weights = load_tensors(folder, WEIGHTS, manifest)
        try:
            # `l1`, the weight of a penalty, is in some manifests of `relu`; only training needs it.
            options = {name: v for name, v in manifest["options"].items() if name != "l1"}
            coder = make_coder(
                manifest["architecture"], manifest["d_in"], manifest["width"], **options
            )
            provenance = Provenance.from_dict(manifest["provenance"])
            strength, mean = weights.pop("strength"), weights.pop("mean")
            target_mean = weights.pop("target_mean") if provenance.target else None
            coder.load_state_dict(weights)
            fingerprint = None
            if FINGERPRINT in manifest["files"]:
                fingerprint = Fingerprint(
                    texts=manifest["fingerprint_texts"],
                    expected=Figures(**manifest["fingerprint"]),
                    **load_tensors(folder, FINGERPRINT, manifest),
                )
            scale = float(manifest["normalisation"]["scale"])
            target_scale = manifest["normalisation"]["target_scale"] if provenance.target else None
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"the dictionary in `{folder}` is not as its manifest says: {error}",
                "it was edited or made by a different version; copy or train it again",
            ) from error
        coder.eval().requires_grad_(False)
        return cls(
            coder,
            provenance,
            strength,
            mean,
            scale,
            fingerprint,
            target_mean=target_mean,
            target_scale=target_scale,
        )

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        evaluation: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload the dictionary to the Hugging Face hub, with a model card; return its address.

        Args:
            repo: `owner/name`; made where there is none.
            private: make it one that only its owner sees.
            evaluation: what `Evaluation.to_dict` gives, for the card.

        Raises:
            UserError: no right to write there, or no network.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = self.save_for_hub(Path(parent) / "dictionary", repo, evaluation=evaluation)
            return upload(folder, repo, private=private)

    def save_for_hub(
        self, folder: str | Path, repo: str, *, evaluation: Mapping[str, Any] | None = None
    ) -> Path:
        """Write what `push_to_hub` uploads: the dictionary and its model card.

        Raises:
            UserError: as `save_pretrained`.
        """
        folder = self.save_pretrained(folder)
        write_text(folder / "README.md", model_card(self, repo, evaluation))
        return folder

    def __repr__(self) -> str:
        place, sizes = f"of `{self.hookpoint}`", f"d_in {self.d_in}"
        if self.is_transcoder:
            place = f"explaining `{self.explains}` from `{self.hookpoint}`"
            sizes += f", d_out {self.d_out}"
        return (
            f"Dictionary({self.coder.architecture}, {self.width} features {place} "
            f"in {self.provenance.model}, {sizes})"
        )


def check_feature(feature: int, width: int) -> None:
    """Refuse a feature number that does not exist.

    Raises:
        UserError: it is negative or not below the width.
    """
    if not 0 <= feature < width:
        raise UserError(
            f"there is no feature {feature}", f"this dictionary has features 0 to {width - 1}"
        )


_VERSIONS = ("monosemy", "torch", "transformers")


def folder_of(source: str | Path) -> Path:
    """Return the folder of a dictionary given by its own path, its run's, or a hub id."""
    folder = Path(source)
    if (folder / "dictionary").is_dir():
        return folder / "dictionary"
    place = None if folder.exists() else hub_place(str(source))
    return folder if place is None else fetch(place).path
