"""Folders on disk: a manifest, tensors beside it, written atomically and checked when read.

An artefact is a folder with `manifest.json` and safetensors files. It is written beside its
final place and moved there when whole, so a reader never sees half of one. `docs/format.md`
specifies the fields.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from monosemy.errors import UserError

FORMAT_VERSION = 1
"""Version of the layout of every artefact; readers refuse a version they do not know."""

MANIFEST = "manifest.json"

_DTYPES = {"int64": "I64", "int32": "I32", "float32": "F32", "uint8": "U8", "bool": "BOOL"}
"""Types of mapped tensors, as numpy and as safetensors name them."""


def save_artefact(
    folder: str | Path,
    kind: str,
    manifest: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Tensor]],
) -> Path:
    """Write an artefact, replacing one of the same kind that is there.

    Args:
        folder: where to.
        kind: what it is, such as "dictionary".
        manifest: JSON fields; kind, format version and checksums are added.
        files: safetensors file name -> tensor name -> tensor.

    Raises:
        UserError: the folder holds something else, or the disk refuses (nothing is changed then).
    """
    fields = dict(manifest)
    with new_artefact(folder, kind, fields) as draft:
        for name, tensors in files.items():
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, draft / name)
    return Path(folder)


@contextlib.contextmanager
def new_artefact(
    folder: str | Path, kind: str, manifest: dict[str, Any], *, keep: Iterable[str] = ()
) -> Iterator[Path]:
    """Give a draft folder to write files into, and move it to its place when the block ends.

    Args:
        folder: its place; an artefact of the same kind that is there is replaced.
        kind: what it is, such as "dictionary".
        manifest: JSON fields, read when the block ends; kind, format version and checksums of all
            files are added.
        keep: files of the artefact that is replaced to carry over, where they are there; they are
            nobody's to check.

    Raises:
        UserError: the folder holds something else, or the disk refuses (nothing is changed then).
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        load_manifest(folder, kind)
    with draft_of(folder) as draft:
        yield draft
        checksums = {}
        for path in sorted(draft.iterdir()):
            path.chmod(0o644)
            checksums[path.name] = sha256(path)
        fields = {"kind": kind, "format_version": FORMAT_VERSION, **manifest, "files": checksums}
        write_text(draft / MANIFEST, json.dumps(fields, indent=2) + "\n")
        for name in keep:
            if (folder / name).is_file():
                shutil.copy2(folder / name, draft / name)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a draft folder to write into, and move it to its place when the block ends.

    Raises:
        UserError: its place is taken, or the disk refuses; nothing is written then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"`{folder}` exists and is not empty", "choose another with --out")
    with draft_of(folder) as draft:
        yield draft


@contextlib.contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """Give a draft beside a folder's place, which takes it when the block ends.

    Raises:
        UserError: the disk refuses; what was there stays.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield draft
        draft.chmod(0o755)
        _swap(draft, folder)
    except (OSError, SafetensorError) as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """Read and check the manifest of an artefact.

    Raises:
        UserError: no such folder, no or broken manifest, another kind, an unknown version.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"no folder `{folder}`", f"expected the folder of a saved {kind}")
    if not path.is_file():
        raise UserError(
            f"`{folder}` has no {MANIFEST}",
            f"a saved {kind} always has one; is this the right folder, or was it copied in part?",
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"`{path}` is not valid JSON: {error}", "copy it again") from error
    found, version = manifest.get("kind"), manifest.get("format_version")
    if found != kind:
        raise UserError(
            f"`{folder}` is of kind `{found}`, not `{kind}`", f"give the folder of a saved {kind}"
        )
    if version != FORMAT_VERSION:
        raise UserError(
            f"`{path}` has format version {version!r}",
            f"this monosemy reads version {FORMAT_VERSION}; a newer monosemy may read it",
        )
    return manifest


def load_tensors(folder: str | Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read one safetensors file of an artefact and hold it against its checksum.

    Raises:
        UserError: the file is missing, truncated or altered.
    """
    return load_file(check_file(folder, name, manifest))


def check_file(folder: str | Path, name: str, manifest: Mapping[str, Any]) -> Path:
    """Return the path of an artefact's file, held against its checksum.

    Raises:
        UserError: the file is missing, truncated or altered.
    """
    path = Path(folder) / name
    expected = manifest.get("files", {}).get(name)
    if expected is None or not path.is_file():
        raise UserError(f"`{path}` is missing", "the folder was copied in part; copy it again")
    if sha256(path) != expected:
        raise UserError(
            f"`{path}` is damaged: {path.stat().st_size} bytes, checksum differs from {MANIFEST}",
            "it was truncated or altered after it was saved; copy it again",
        )
    return path


def new_tensors(path: Path, shapes: Mapping[str, tuple[str, int]]) -> dict[str, np.ndarray]:
    """Make a safetensors file of vectors of given types and lengths, mapped to be filled.

    It may be larger than memory.
    """
    header: dict[str, Any] = {}
    size = 0
    ordered = sorted(shapes.items(), key=lambda item: (-np.dtype(item[1][0]).itemsize, item[0]))
    for name, (dtype, length) in ordered:
        end = size + np.dtype(dtype).itemsize * length
        header[name] = {"dtype": _DTYPES[dtype], "shape": [length], "data_offsets": [size, end]}
        size = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # Asked for now: a full disk found while a mapped page is written would kill the process.
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 8 + len(text), size)
        elif size:
            file.truncate(8 + len(text) + size)
    return _map(path, "r+")


def map_tensors(
    folder: str | Path, name: str, manifest: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Map a safetensors file of an artefact, which may be larger than memory; not checksummed.

    Raises:
        UserError: the file is missing or truncated.
    """
    path = Path(folder) / name
    if name not in manifest.get("files", {}) or not path.is_file():
        raise UserError(f"`{path}` is missing", "the folder was copied in part; copy it again")
    try:
        return _map(path, "r")
    except (ValueError, KeyError) as error:
        raise UserError(
            f"`{path}` is damaged: {path.stat().st_size} bytes, not what its header says",
            "it was truncated or altered after it was saved; copy it again",
        ) from error


def verify_artefact(folder: str | Path, kind: str) -> None:
    """Hold every file of an artefact against its checksum.

    Raises:
        UserError: a file is missing, truncated or altered.
    """
    manifest = load_manifest(folder, kind)
    for name in manifest["files"]:
        check_file(folder, name, manifest)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, "utf-8")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise disk_error(path, error) from error


def new_run_folder(folder: str | Path) -> Path:
    """Make the folder of a new run.

    Raises:
        UserError: it is there already, and not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"run folder `{folder}` exists",
            "choose another with --out, or remove it if you no longer need it",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    return folder


def _map(path: Path, mode: Literal["r", "r+"]) -> dict[str, np.ndarray]:
    """Map every tensor of a safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    begin, dtypes = 8 + length, {short: name for name, short in _DTYPES.items()}
    found: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, (first, last) = np.dtype(dtypes[entry["dtype"]]), entry["data_offsets"]
        if begin + last > size:
            raise ValueError(f"{name} ends at byte {begin + last} of {size}")
        shape = tuple(entry["shape"])
        if last == first:  # nothing cannot be mapped
            found[name] = np.empty(shape, dtype)
        else:
            found[name] = np.memmap(path, dtype, mode, offset=begin + first, shape=shape)
    return found


def _swap(draft: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    draft.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return a file's checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_error(
    path: Path,
    error: Exception,
    hint: str = "make room or choose another folder; nothing was changed",
) -> UserError:
    """Return what to tell a user whose disk refuses."""
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot write `{path}`: {reason}", hint)
