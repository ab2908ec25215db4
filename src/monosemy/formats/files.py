"""Reading other people's files: nothing in them is run, and nothing in them is dropped unseen.

Tensors are asked for by name and shape; what is missing, misshapen or left over is said.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monosemy.errors import UserError, first_of, reason


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        UserError: no such file, not JSON, or not an object.
    """
    content = _text(path)
    try:
        return _object(path, json.loads(content))
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid JSON: {error}", "copy it again") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the fields of a YAML file of plain values.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    content = _text(path)
    try:
        return _object(path, yaml.load(content, Loader=_PlainLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid YAML: {reason(error)}", "copy it again") from error


class _PlainLoader(yaml.SafeLoader):
    """Safe, and leaves dates as text: what is read may have to be written as JSON."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes in a safetensors file, without reading them; {} if it is none."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def pt_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that `torch.save` wrote by name; {} if none.

    They are mapped, not read, but for those of files older than 2020.
    """
    try:
        values = _load_pt(path, mmap=_is_zip(path))
    except Exception:  # see `read_pt`, which says what is wrong
        return {}
    if not isinstance(values, dict):
        return {}
    return {str(n): tuple(v.shape) for n, v in values.items() if isinstance(v, Tensor)}


def read_safetensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: no such file, or a damaged one.
    """
    _check_there(path)
    try:
        with safe_open(path, "pt") as file:
            return Tensors({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def read_pt(path: Path, *, mapped: bool = False) -> Any:
    """Return what `torch.save` wrote, as long as it is tensors and plain values.

    `mapped` leaves tensors on the disk until they are used, where files are younger than 2020.

    Raises:
        UserError: no such file, a damaged one, or one that would run code when read in full.
    """
    _check_there(path)
    try:
        return _load_pt(path, mmap=mapped and _is_zip(path))
    except Exception as error:  # what is read of damaged bytes may raise anything
        if _REFUSED.search(str(error)):
            raise _would_run(path, _REFUSED_NAME.search(str(error))) from error
        what = str(error).rpartition("WeightsUnpickler error: ")[2]  # PyTorch's advice before it
        raise _damaged(path, ValueError(what) if what else error) from error


def read_npz(path: Path) -> Tensors:
    """Return the arrays of an `.npz` file as tensors.

    Raises:
        UserError: no such file, a damaged one, or one with pickled objects in it.
    """
    _check_there(path)
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return Tensors({name: torch.from_numpy(file[name]) for name in file.files}, path)
    except Exception as error:  # as in `read_pt`
        if "allow_pickle" in str(error):
            raise _would_run(path) from error
        raise _damaged(path, error) from error


def check_readable(path: Path) -> None:
    """Find out what is wrong with a file of tensors, of whatever kind its name says.

    Tensors are not read where the file can be checked without: it may be of any size.

    Raises:
        UserError: it is damaged, or would run code when read in full.
    """
    if not path.is_file():
        return
    if path.suffix in (".pt", ".pth"):
        read_pt(path, mapped=True)
    elif path.suffix == ".npz":
        read_npz(path)
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError) as error:
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
        return _finite(_in_fp32(value, name, self.path), name, self.path)

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
    """Return a mapping of names to tensors that was found in a file; numbers are tensors too.

    Text and what is nested, such as a configuration that was saved beside weights, is left out.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(values, Mapping):
        raise UserError(
            f"`{path}` holds a {type(values).__name__}, not tensors by name",
            "a dictionary's weights were expected",
        )
    numbers = {n: _as_tensor(v) for n, v in values.items() if isinstance(v, int | float)}
    found = {n: v for n, v in values.items() if isinstance(v, Tensor)}
    return Tensors({str(n): v for n, v in {**numbers, **found}.items()}, path)


def _as_tensor(number: float) -> Tensor:
    """Return a number as fp32; one that fp32 cannot hold is refused when it is taken."""
    fits = abs(number) <= torch.finfo(torch.float32).max
    return torch.tensor(float(number) if fits else torch.inf)


def needed(settings: Mapping[str, Any], name: str, path: Path) -> Any:
    """Return a field of a configuration.

    Raises:
        UserError: it is missing.
    """
    if settings.get(name) is None:
        raise UserError(f"`{path}` does not say `{name}`", f"it says {_list(settings)}")
    return settings[name]


def text(settings: Mapping[str, Any], name: str, path: Path) -> str | None:
    """Return a field of a configuration that is text; None where it is missing or empty.

    Raises:
        UserError: it is something else.
    """
    value = settings.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"`{name}` of `{path}` is {value!r}", "text was expected")
    return value or None


def flag(settings: Mapping[str, Any], name: str, path: Path, default: bool = False) -> bool:
    """Return a field of a configuration that is true or false.

    Raises:
        UserError: it is something else.
    """
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"`{name}` of `{path}` is {value!r}", "true or false was expected")
    return default if value is None else value


def needed_number(settings: Mapping[str, Any], name: str, path: Path) -> float:
    """Return a field of a configuration that is a number that fp32 can hold.

    Raises:
        UserError: it is missing, or none.
    """
    value = needed(settings, name, path)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= torch.finfo(torch.float32).max:
        raise UserError(f"`{name}` of `{path}` is {value!r}", "it must be a number")
    return float(value)


def needed_count(settings: Mapping[str, Any], name: str, path: Path) -> int:
    """Return a field of a configuration that counts something.

    Raises:
        UserError: it is missing, or no whole number above 0.
    """
    value = needed(settings, name, path)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value % 1:
        raise UserError(f"`{name}` of `{path}` is {value!r}", "it must be a whole number above 0")
    return int(value)


def _in_fp32(value: Tensor, name: str, path: Path) -> Tensor:
    kind = str(value.dtype if value.layout == torch.strided else value.layout)
    kind = "no values" if value.is_meta else kind.removeprefix("torch.")
    try:
        if value.layout == torch.strided and not value.is_complex() and not value.is_meta:
            return value.to(torch.float32)
    except (RuntimeError, NotImplementedError):  # a type that only some devices compute in
        pass
    raise UserError(
        f"`{name}` of `{path}` holds {kind}, which cannot be made fp32 here",
        "ask whoever made it for fp32, bf16 or fp16",
    )


def _finite(value: Tensor, name: str, path: Path) -> Tensor:
    if not torch.isfinite(value).all():
        raise UserError(
            f"`{name}` of `{path}` holds values that are not finite", "the file is damaged"
        )
    return value


def _list(names: Iterable[str]) -> str:
    return first_of([n if "`" in n else f"`{n}`" for n in names])


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
    return {str(name): field for name, field in value.items()}


def _load_pt(path: Path, *, mmap: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old pickles
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


_REFUSED = re.compile("GLOBAL|unrecognized function|Can only ")
"""What PyTorch says where a file asks for more than tensors and plain values."""
_REFUSED_NAME = re.compile(r"GLOBAL ([\w.]+)")


def _would_run(path: Path, what: re.Match[str] | None = None) -> UserError:
    held = f" (`{what[1]}`)" if what else ""
    return UserError(
        f"`{path}` holds more than tensors and plain values{held}: read in full it may run code",
        "it is not read; ask whoever made it for safetensors",
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"`{path}` cannot be read: {reason(error)}", "it is damaged or not whole; copy it again"
    )
