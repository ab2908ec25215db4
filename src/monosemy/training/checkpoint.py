"""The state of a run on disk: all that makes a resumed run end as one never interrupted.

A checkpoint is an artefact like any other, tensors in safetensors and the rest in the manifest. A
run keeps two: the latest, and the one from which more tokens can be added.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from monosemy.artefact import load_manifest, load_tensors, save_artefact
from monosemy.errors import UserError

KIND = "checkpoint"
LATEST, PLATEAU = "latest", "plateau"
_STATE = "state.safetensors"


def save_checkpoint(run: Path, name: str, state: Mapping[str, Any]) -> None:
    """Write a state, whole or not at all; an older one of that name stays until this one is there.

    Raises:
        UserError: the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    rest = _take_tensors(dict(state), "", tensors)
    save_artefact(_folder(run, name), KIND, {"state": rest}, {_STATE: tensors})


def load_checkpoint(run: Path, name: str = LATEST) -> dict[str, Any] | None:
    """Read a state; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    folder = _folder(run, name)
    # Killed between moving the old state away and the new one in, a run has only the old.
    spare = folder.with_name(f".{name}-old")
    if not folder.is_dir() and spare.is_dir():
        folder = spare
    if not folder.is_dir():
        return None
    manifest = load_manifest(folder, KIND)
    return _put_tensors(manifest["state"], load_tensors(folder, _STATE, manifest))


def drop_checkpoint(run: Path, name: str) -> None:
    """Remove a state that is no longer needed."""
    shutil.rmtree(_folder(run, name), ignore_errors=True)


def has_checkpoint(run: Path, name: str = LATEST) -> bool:
    """Say whether there is a state to go on from."""
    folder = _folder(run, name)
    return folder.is_dir() or folder.with_name(f".{name}-old").is_dir()


def require_checkpoint(run: Path, name: str = LATEST) -> dict[str, Any]:
    """Read a state.

    Raises:
        UserError: there is none, or it is damaged.
    """
    state = load_checkpoint(run, name)
    if state is None:
        raise UserError(
            f"`{run}` has no checkpoint `{name}`", "it was never saved, or has been removed"
        )
    return state


def _folder(run: Path, name: str) -> Path:
    return run / "checkpoint" / name


_TENSOR = "tensor:"


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return nested values with tensors replaced by their names."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return _TENSOR + path
    if isinstance(value, Mapping):
        return {str(k): _take_tensors(v, f"{path}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_take_tensors(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_take_tensors`."""
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, dict):
        return {k: _put_tensors(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_put_tensors(v, tensors) for v in value]
    return value
