"""Load a dictionary from wherever it is, in whatever format; write one in another's format."""

from __future__ import annotations

from pathlib import Path

from monosemy.artefact import MANIFEST
from monosemy.coders import Dictionary
from monosemy.errors import UserError, nearest
from monosemy.formats import sparsify
from monosemy.formats.files import new_folder
from monosemy.formats.format import Format, Given, as_dictionary

_MODULES = (sparsify,)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _MODULES}
"""By name."""
_DEEPEST = 4
"""Folders below the one given in which dictionaries are looked for, to name them."""
_LISTED = 12


def load(
    source: str | Path, *, format: str | None = None, given: Given | None = None
) -> Dictionary:
    """Load a dictionary of any format, known by its files.

    Args:
        source: a run, or the folder or file of a dictionary.
        format: name in `FORMATS`, where files fit several.
        given: what the files may leave out; it goes before what they say.

    Raises:
        UserError: nothing is there, it is of no known format or of several, or what is there is
            damaged or contradicts itself.
    """
    given = given or Given()
    path = Path(source)
    if format is None and _is_ours(path):
        return Dictionary.from_pretrained(path)
    if not path.exists():
        raise UserError(f"nothing is at `{source}`", "give a file or folder")
    inside = _inside(path)
    if format is None and len(inside) == 1 and not _recognising(path):
        return load(inside[0], given=given)
    found = _named(format) if format is not None else recognise(path)
    if found.read is None:
        raise UserError(f"{found.title} is written, not read", f"allowed: {_readable()}")
    content = found.read(path, given)
    return as_dictionary(content, given, str(source), found.name)


def recognise(path: Path) -> Format:
    """Return the format of a file or folder, told by its files.

    Raises:
        UserError: no known format, several of them, or a folder that holds several dictionaries.
    """
    found = _recognising(path)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"`{path}` is several formats at once: {', '.join(f.title for f in found)}",
            f"say which with --format: {', '.join(f.name for f in found)}",
        )
    inside = _inside(path)
    if inside:
        more = f" and {len(inside) - _LISTED} more" if len(inside) > _LISTED else ""
        raise UserError(
            f"`{path}` holds {len(inside)} dictionaries",
            f"give one: {', '.join(str(p) for p in inside[:_LISTED])}{more}",
        )
    there = sorted(p.name for p in path.iterdir())[:_LISTED] if path.is_dir() else []
    raise UserError(
        f"`{path}` is no dictionary of a known format",
        f"there: {', '.join(there) or 'nothing'}; known: {_readable()}",
    )


def export(dictionary: Dictionary, to: str, folder: str | Path) -> list[str]:
    """Write a dictionary in another tool's format; return what that format cannot hold.

    Args:
        dictionary: what to write.
        to: name in `FORMATS`.
        folder: where to; new or empty.

    Raises:
        UserError: the format is unknown or cannot hold this dictionary, the folder is not empty, or
            the disk refuses; nothing is written then.
    """
    found, folder = _named(to), Path(folder)
    if found.write is None:
        raise UserError(f"{found.title} is read, not written", f"allowed: {_writable()}")
    with new_folder(folder) as draft:
        return found.write(dictionary, draft)


def _is_ours(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path / "dictionary" / MANIFEST).is_file()


def _recognising(path: Path) -> list[Format]:
    return [f for f in FORMATS.values() if f.read is not None and f.recognises(path)]


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise UserError(
            f"no format `{name}`", f"{nearest(name, FORMATS)} allowed: {', '.join(FORMATS)}".strip()
        )
    return FORMATS[name]


def _inside(path: Path, depth: int = _DEEPEST) -> list[Path]:
    """Return the dictionaries below a folder."""
    if depth == 0 or not path.is_dir():
        return []
    found = []
    for item in sorted(path.iterdir()):
        if item.name.startswith("."):
            continue
        if _is_ours(item) or _recognising(item):
            found.append(item)
        else:
            found += _inside(item, depth - 1)
    return found


def _readable() -> str:
    return ", ".join(f.name for f in FORMATS.values() if f.read is not None)


def _writable() -> str:
    return ", ".join(f.name for f in FORMATS.values() if f.write is not None)
