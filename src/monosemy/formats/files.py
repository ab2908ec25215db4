"""Reading other people's files: nothing in them is run, and nothing in them is dropped unseen.

Tensors are asked for by name and shape; what is missing, misshapen or left over is said.
"""

from __future__ import annotations

import contextlib
import json
import pickle  # noqa: TID251 (to name its error: nothing here unpickles)
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monosemy.artefact import disk_error
from monosemy.errors import UserError, reason

_SHOWN = 12
"""Names listed in an error before the rest are counted."""


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        UserError: no such file, not JSON, or not an object.
    """
    try:
        return _object(path, json.loads(_text(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"`{path}` is not valid JSON: {error}", "copy it again") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the fields of a YAML file of plain values.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        return _object(path, yaml.safe_load(_text(path)))
    except yaml.YAMLError as error:
        raise UserError(f"`{path}` is not valid YAML: {reason(error)}", "copy it again") from error


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes in a safetensors file, without reading them; {} if it is none."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def read_safetensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: no such file, or a damaged one.
    """
    _check_there(path)
    try:
        with safe_open(path, "pt") as file:
            return Tensors({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error


def read_pt(path: Path, *, mapped: bool = False) -> Any:
    """Return what `torch.save` wrote, as long as it is tensors and plain values.

    `mapped` leaves tensors on the disk until they are used.

    Raises:
        UserError: no such file, a damaged one, or one that would run code when read in full.
    """
    _check_there(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower() and "weights only" not in str(error).lower():
            raise _damaged(path, error) from error
        raise UserError(
            f"`{path}` holds more than tensors and plain values, which may run code when read",
            "it is not read; ask whoever made it for safetensors",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a draft folder to write into, and move it to its place when the block ends.

    Raises:
        UserError: its place is taken, or the disk refuses; nothing is written then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"`{folder}` exists and is not empty", "choose another with --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield draft
        draft.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        draft.replace(folder)
    except OSError as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_npz(path: Path) -> Tensors:
    """Return the arrays of an `.npz` file as tensors.

    Raises:
        UserError: no such file, a damaged one, or one with pickled objects in it.
    """
    _check_there(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return Tensors({name: torch.from_numpy(file[name]) for name in file.files}, path)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


class Tensors:
    """The tensors of a file, taken one by one in fp32; what nobody took is asked after in the end.

    Args:
        values: name -> tensor.
        path: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Tensor], path: Path) -> None:
        self.values, self.path = dict(values), path
        self._left = dict.fromkeys(self.values)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def take(self, names: str | tuple[str, ...], shape: tuple[int | None, ...]) -> Tensor:
        """Return a tensor in fp32, under the first of these names that is there.

        Args:
            names: what it may be called.
            shape: what it must be; None for any size.

        Raises:
            UserError: it is missing, of another shape, or holds values that are not finite.
        """
        names = (names,) if isinstance(names, str) else names
        name = next((name for name in names if name in self.values), None)
        if name is None:
            raise UserError(
                f"`{self.path}` has no tensor `{'` or `'.join(names)}`", f"it has {self.listed()}"
            )
        value = self.values[name]
        fits = value.ndim == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True)
        )
        if not fits:
            asked = ", ".join("any" if size is None else str(size) for size in shape)
            raise UserError(
                f"`{name}` of `{self.path}` is {list(value.shape)}, but should be [{asked}]",
                "its configuration says another size, or it belongs to another dictionary",
            )
        self._left.pop(name, None)
        return _finite(value.to(torch.float32), name, self.path)

    def size(self, name: str, axis: int) -> int:
        """Return a tensor's length along an axis, before it is taken.

        Raises:
            UserError: it is missing, or has no such axis.
        """
        if name not in self.values or self.values[name].ndim <= axis:
            raise UserError(f"`{self.path}` has no `{name}` to tell sizes by", self.listed())
        return self.values[name].shape[axis]

    def ignore(self, *names: str) -> None:
        """Say that tensors of these names, if any, are of no use after training."""
        for name in names:
            self._left.pop(name, None)

    def done(self) -> None:
        """Refuse what is left over: it may change what the dictionary does.

        Raises:
            UserError: a tensor was neither taken nor ignored.
        """
        if self._left:
            raise UserError(
                f"`{self.path}` also holds {_list(self._left)}, which is not part of its format",
                "it may be of a newer version or another format: see `monosemy import --help`",
            )

    def listed(self) -> str:
        """Return names and shapes, for messages."""
        return _list(f"`{n}` {list(v.shape)}" for n, v in self.values.items()) or "no tensors"


def tensors_of(values: Any, path: Path) -> Tensors:
    """Return a mapping of names to tensors that was found in a file.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(values, Mapping):
        raise UserError(
            f"`{path}` holds a {type(values).__name__}, not tensors by name",
            "a dictionary's weights were expected",
        )
    return Tensors({n: v for n, v in values.items() if isinstance(v, Tensor)}, path)


def needed(settings: Mapping[str, Any], name: str, path: Path) -> Any:
    """Return a field of a configuration.

    Raises:
        UserError: it is missing.
    """
    if settings.get(name) is None:
        raise UserError(f"`{path}` does not say `{name}`", f"it says {_list(settings)}")
    return settings[name]


def _finite(value: Tensor, name: str, path: Path) -> Tensor:
    if not torch.isfinite(value).all():
        raise UserError(
            f"`{name}` of `{path}` holds values that are not finite", "the file is damaged"
        )
    return value


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(n if "`" in n else f"`{n}`" for n in names[:_SHOWN]) + more


def _check_there(path: Path) -> None:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise UserError(f"`{path}` is missing", f"beside it: {_list(there) or 'nothing'}")


def _text(path: Path) -> str:
    _check_there(path)
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _object(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"`{path}` holds a {type(value).__name__}", "fields by name were expected")
    return value


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"`{path}` cannot be read: {reason(error)}", "it is damaged or not whole; copy it again"
    )
