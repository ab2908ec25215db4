"""Delphi (EleutherAI): its cache of where features fire, and its explanations.

`latents/MODULE/START_END.safetensors` hold the features from START to END: `locations` [n, 3] (row,
position, feature less START), `activations` [n] in fp16 and the `tokens` [rows, context] of all;
`config.json` beside them says what text it was. `explanations/MODULE_latentN.txt` hold a JSON
string each, `scores/SCORER/MODULE_latentN.txt` a JSON list.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from monosemy.errors import UserError, reason
from monosemy.formats.files import read_json
from monosemy.formats.sites import Showing, SiteOptions
from monosemy.index import Index

SPLITS = 5
_LATENT = re.compile(r"(.*?)_?latent_?(\d+)$")
_MOST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Where the features of a dictionary fire, as delphi kept it.

    An index has more: documents and their text, which tokens counted, examples and figures.
    """

    tokens: np.ndarray | None
    """[rows, context] ids; None where they were not kept."""
    context: int
    offsets: np.ndarray
    """[width + 1] entries of feature f are those from offsets[f] to offsets[f+1]."""
    places: np.ndarray
    """[entries] row * context + position, ascending within a feature."""
    values: np.ndarray
    """[entries] activation there, fp32."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> np.ndarray:
        """[width] tokens on which each feature fired."""
        return np.diff(self.offsets)

    def entries(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places at which a feature fires, ascending, and its activations."""
        part = slice(self.offsets[feature], self.offsets[feature + 1])
        return self.places[part], self.values[part]


def write(run: Path, folder: Path, options: SiteOptions) -> list[str]:
    """Write `latents/` and, where there are any, `explanations/`.

    Raises:
        UserError: the run has no index, or an activation is too large for fp16.
    """
    showing = Showing(run, options)
    index, module = showing.index, showing.dictionary.provenance.explains
    context, width = index.text.context, index.width
    largest = float(index.max.max())
    if largest > _MOST:
        raise UserError(f"an activation is {largest:.4g}", f"delphi's fp16 holds {_MOST:.0f}")
    tokens = index.text.ids.reshape(-1, context).astype(np.int64)
    place = folder / "latents" / module
    place.mkdir(parents=True)
    bounds = np.linspace(0, width, SPLITS + 1).astype(int)
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if start == end:
            continue
        part = slice(index.offsets[start], index.offsets[end])
        places = index.places[part]
        owner = np.repeat(np.arange(end - start), index.counts[start:end])
        locations = np.stack([places // context, places % context, owner], axis=1)
        small = not len(locations) or int(locations.max()) < 2**16
        arrays = {
            "locations": locations.astype(np.uint16 if small else np.uint32),
            "activations": index.values[part].astype(np.float16),
            "tokens": tokens,
        }
        save_file(arrays, place / f"{start}_{end - 1}.safetensors")
    settings = {
        "dataset_repo": showing.corpus,
        "dataset_split": str(index.manifest["text"].get("part", "")),
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 32,
        "cache_ctx_len": context,
        "ctx_len": context,
        "n_tokens": int(tokens.size),
        "n_splits": SPLITS,
        "model_name": showing.dictionary.provenance.model,
    }
    (place / "config.json").write_text(json.dumps(settings, indent=2), "utf-8")
    _write_explanations(index, module, folder / "explanations")
    return [
        "documents and their text, and which tokens counted: a feature has no entry elsewhere",
        "activations beyond fp16: they are rounded to 11 bits",
        "scores of explanations: delphi keeps every answer, an index their figures",
    ]


def read_cache(folder: Path) -> LatentCache:
    """Read the cache of one module.

    Args:
        folder: of the module, with its files START_END.safetensors.

    Raises:
        UserError: there are none, one is damaged, features between two files are missing, or a
            location lies outside the text.
    """
    files = sorted(folder.glob("*_*.safetensors"), key=lambda path: _ends(path)[0])
    if not files:
        raise UserError(f"`{folder}` holds no START_END.safetensors", "give a module's folder")
    settings = read_json(folder / "config.json")
    expected, tokens, counts = 0, None, []
    places, values = [], []
    context = int(settings.get("cache_ctx_len") or settings.get("ctx_len") or 0)
    for path in files:
        start, end = _ends(path)
        if start != expected:
            raise UserError(
                f"`{path}` begins at feature {start}, expected is {expected}",
                "files of some features are missing",
            )
        expected = end + 1
        arrays = _arrays(path)
        tokens = arrays.get("tokens") if tokens is None else tokens
        context = tokens.shape[1] if tokens is not None else context
        at = arrays["locations"].astype(np.int64)
        if len(at) and (at[:, 2].max() > end - start or at[:, 1].max() >= context):
            raise UserError(
                f"`{path}` has a location {at.max(0).tolist()} outside of {context} tokens a row "
                f"or {end - start + 1} features",
                "the file's name or its configuration is another's",
            )
        order = np.lexsort((at[:, 0] * context + at[:, 1], at[:, 2]))
        places.append((at[:, 0] * context + at[:, 1])[order])
        values.append(arrays["activations"].astype(np.float32)[order])
        counts.append(np.bincount(at[:, 2], minlength=end - start + 1))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return LatentCache(
        tokens, context, offsets, np.concatenate(places), np.concatenate(values), settings
    )


def read_explanations(folder: Path) -> dict[int, str]:
    """Return feature -> explanation, from delphi's folder of them.

    Raises:
        UserError: a file is no JSON string, or there are those of several modules.
    """
    found: dict[int, str] = {}
    modules: set[str] = set()
    for path in sorted(folder.glob("*.txt")):
        match = _LATENT.fullmatch(path.stem)
        module, number = (match[1], match[2]) if match else ("", path.stem)
        if not number.isdigit():
            raise UserError(f"`{path}` names no feature", "expected is MODULE_latentN.txt")
        modules.add(module)
        try:
            text = json.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"`{path}` cannot be read: {reason(error)}", "copy it again") from error
        if not isinstance(text, str):
            raise UserError(f"`{path}` holds a {type(text).__name__}", "a string was expected")
        found[int(number)] = text
    if len(modules) > 1:
        raise UserError(
            f"`{folder}` explains features of {', '.join(sorted(modules))}",
            "give a folder with those of one",
        )
    return found


def add_explanations(index: Index, folder: Path) -> int:
    """Put delphi's explanations into an index, where `monosemy explain` put none; count them.

    Raises:
        UserError: as `read_explanations`; a feature does not exist; the disk refuses.
    """
    found, table = read_explanations(folder), dict(index.table("explanations"))
    for feature in found:
        index.check_feature(feature)
    new = {feature: text for feature, text in found.items() if feature not in table}
    for feature, text in new.items():
        table[feature] = {
            "feature": feature,
            "explanation": text,
            "failed": "",
            "model": "delphi",
            "scores": {},
        }
    index.write_table("explanations", [table[feature] for feature in sorted(table)])
    return len(new)


def _write_explanations(index: Index, module: str, folder: Path) -> None:
    for feature, row in index.table("explanations").items():
        if row.get("explanation"):
            folder.mkdir(exist_ok=True)
            path = folder / f"{module}_latent{feature}.txt"
            path.write_text(json.dumps(row["explanation"], ensure_ascii=False), "utf-8")


def _ends(path: Path) -> tuple[int, int]:
    start, _, end = path.stem.partition("_")
    if not start.isdigit() or not end.isdigit():
        raise UserError(f"`{path}` names no features", "expected is START_END.safetensors")
    return int(start), int(end)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"`{path}` cannot be read: {reason(error)}", "it is damaged or not whole; copy it again"
        ) from error
    at, values = arrays.get("locations"), arrays.get("activations")
    if at is None or values is None or at.shape != (len(values), 3):
        raise UserError(f"`{path}` holds {', '.join(arrays)}", "locations [n, 3], activations [n]")
    return arrays
