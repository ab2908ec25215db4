"""A dictionary: a trained sparse coder with all that says what it was trained on."""

from __future__ import annotations

import importlib.metadata
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.artefact import load_manifest, load_tensors, save_artefact
from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder
from monosemy.coders.fingerprint import Figures, Fingerprint
from monosemy.coders.provenance import Provenance
from monosemy.coders.registry import make_coder
from monosemy.errors import UserError

KIND = "dictionary"
WEIGHTS = "coder.safetensors"
FINGERPRINT = "fingerprint.safetensors"


@dataclass(slots=True)
class Dictionary:
    """A trained sparse coder that takes the model's own activations: nothing is left to scale.

    Attributes:
        coder: the weights, with centring and scale folded in; directions have unit norm.
        provenance: what it was trained on.
        strength: [width], each feature's largest activation on held-out text; 0 if it never fired.
        mean: [d_in], mean activation in training.
        scale: what centred activations were multiplied by in training; folded, kept for `doctor`.
        fingerprint: tokens and what is expected on them.
    """

    coder: SparseCoder
    provenance: Provenance
    strength: Float[Tensor, " width"]
    mean: Float[Tensor, " d_in"]
    scale: float
    fingerprint: Fingerprint

    @property
    def hookpoint(self) -> str:
        """Where in the model its activations live."""
        return self.provenance.hookpoint

    @property
    def width(self) -> int:
        """Number of features."""
        return self.coder.width

    @property
    def d_in(self) -> int:
        """Activation width."""
        return self.coder.d_in

    @property
    def l0(self) -> float:
        """Mean number of features that fired on a token of held-out text after training."""
        held_out = self.provenance.training.get("held_out", {})
        return float(held_out.get("l0", self.fingerprint.expected.l0))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch width"]:
        """Return how much each feature fires."""
        return self.coder.encode(x)

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "tokens d_in"]) -> Code:
        """Return the features that fire on each token, and how much."""
        return self.coder.encode_sparse(x)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch d_in"]:
        """Return the activations a code stands for."""
        return self.coder.decode(z)

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return decode(encode(x))."""
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
            UserError: no such feature, or one that never fired, which has no scale.
        """
        self.check_feature(feature)
        target = scale * float(self.strength[feature])
        if target == 0 and scale != 0:
            raise UserError(
                f"feature {feature} never fired on held-out text, so it has no scale to steer by",
                "choose a feature that `monosemy features` lists",
            )
        z = self.encode_sparse(x.reshape(-1, self.d_in).float())
        mine = z.indices == feature
        now = torch.zeros(x[..., 0].numel(), device=x.device)
        now[z.tokens[mine]] = z.values[mine]
        change = (target - now).reshape(x.shape[:-1])
        if positions is not None:
            change = change * positions
        return x + (change[..., None] * self.coder.W_dec[feature]).to(x.dtype)

    def check_feature(self, feature: int) -> None:
        """Refuse a feature number that does not exist.

        Raises:
            UserError: it is negative or not below the width.
        """
        if not 0 <= feature < self.width:
            raise UserError(
                f"there is no feature {feature}",
                f"this dictionary has features 0 to {self.width - 1}",
            )

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
        manifest = {
            "architecture": self.coder.architecture,
            "d_in": self.d_in,
            "width": self.width,
            "options": self.coder.options(),
            "normalisation": {"folded": True, "scale": self.scale},
            "provenance": self.provenance.to_dict(),
            "fingerprint": asdict(self.fingerprint.expected),
            "fingerprint_texts": self.fingerprint.texts,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        }
        files = {WEIGHTS: weights, FINGERPRINT: self.fingerprint.tensors()}
        return save_artefact(folder, KIND, manifest, files)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Dictionary:
        """Read a dictionary from a folder, a run's folder, or the Hugging Face hub.

        Raises:
            UserError: it is not there, damaged, or of a format this version does not read.
        """
        folder = _find_folder(source)
        manifest = load_manifest(folder, KIND)
        weights = load_tensors(folder, WEIGHTS, manifest)
        try:
            coder = make_coder(
                manifest["architecture"],
                manifest["d_in"],
                manifest["width"],
                **manifest["options"],
            )
            strength, mean = weights.pop("strength"), weights.pop("mean")
            coder.load_state_dict(weights)
            provenance = Provenance.from_dict(manifest["provenance"])
            fingerprint = Fingerprint(
                texts=manifest["fingerprint_texts"],
                expected=Figures(**manifest["fingerprint"]),
                **load_tensors(folder, FINGERPRINT, manifest),
            )
            scale = float(manifest["normalisation"]["scale"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"the dictionary in `{folder}` is not as its manifest says: {error}",
                "it was edited or made by a different version; copy or train it again",
            ) from error
        coder.eval().requires_grad_(False)
        return cls(coder, provenance, strength, mean, scale, fingerprint)

    def push_to_hub(self, repo: str, *, private: bool = False) -> str:
        """Upload the dictionary to the Hugging Face hub and return its address there."""
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as parent:
            folder = self.save_pretrained(Path(parent) / "dictionary")
            return str(api.upload_folder(repo_id=repo, folder_path=str(folder)))

    def __repr__(self) -> str:
        return (
            f"Dictionary({self.coder.architecture}, {self.width} features of "
            f"`{self.hookpoint}` in {self.provenance.model}, d_in {self.d_in})"
        )


_VERSIONS = ("monosemy", "torch", "transformers")


def _find_folder(source: str | Path) -> Path:
    """Return the folder of a dictionary given by its own path, its run's, or a hub id."""
    folder = Path(source)
    if (folder / "dictionary").is_dir():
        return folder / "dictionary"
    text = str(source)
    looks_like_hub = text.count("/") == 1 and not text.startswith((".", "/", "~"))
    if folder.exists() or not looks_like_hub:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"no dictionary `{text}`: there is no such folder here, and the hub does not give it",
            "check the path; for a private one set HF_TOKEN",
        ) from error
