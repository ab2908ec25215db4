"""Load a dictionary from wherever it is, in whatever format; write one in another's format."""

from __future__ import annotations

from pathlib import Path

from monosemy.artefact import MANIFEST, new_folder
from monosemy.coders import Dictionary
from monosemy.errors import LISTED, UserError, first_of, nearest, reason
from monosemy.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    hook_z,
    llama_scope,
    llamascopium,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from monosemy.formats.files import check_readable
from monosemy.formats.format import Format, Given, as_dictionary
from monosemy.formats.hub import find_on_hub

_MODULES = (
    saelens,
    dictionary_learning,
    sparsify,
    openai,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llamascopium,
    qwen_scope,
    goodfire,
    hook_z,
    circuit_tracer,
)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _MODULES}
"""By name."""
_DEEPEST = 4
"""Folders below the one given in which dictionaries are looked for, to name them."""


def load(
    source: str | Path, *, format: str | None = None, given: Given | None = None
) -> Dictionary:
    """Load a dictionary of any format, known by its files.

    Args:
        source: a run, the folder or file of a dictionary, `release/id` of a release that
            `releases()` lists, or on the hub `owner/name` or `owner/name/folder`; on the hub's with
            `@revision` for another than the newest.
        format: name in `FORMATS`, where files fit several.
        given: what the files may leave out; it goes before what they say.

    Raises:
        UserError: nothing is there, it is of no known format or of several, or what is there is
            damaged or contradicts itself.
    """
    given = given or Given()
    path = Path(source)
    try:
        if not path.exists():
            return _load_fetched(str(source), format, given)
        return _load_local(path, format, given, str(source))
    except OSError as error:
        hint = "check its name, and that you may read it"
        raise UserError(f"`{path}` cannot be read: {reason(error)}", hint) from error


def _load_local(path: Path, format: str | None, given: Given, source: str) -> Dictionary:
    if format is None and _is_ours(path):
        if given != Given():
            raise UserError(
                f"`{path}` is monosemy's own and says all about itself",
                "drop what is given beside it, or import the other tool's files again",
            )
        return Dictionary.from_pretrained(path)
    found = _named(format) if format is not None else recognise(path)
    if isinstance(found, Path):
        return load(found, given=given)
    if found.read is None:
        raise UserError(f"{found.title} is written, not read", f"allowed: {_readable()}")
    content = found.read(path, given)
    return as_dictionary(content, given, source, found.name)


def _load_fetched(source: str, format: str | None, given: Given) -> Dictionary:
    """Load a dictionary from the hub, and note where it came from."""
    fetched, given = find_on_hub(source, given)
    dictionary = load(fetched.path, format=format, given=given)
    imported = dictionary.provenance.training.get("imported")
    if imported is not None and not _is_ours(fetched.path):
        imported |= {"source": source, "repo": fetched.place.repo, "commit": fetched.commit}
    return dictionary


def recognise(path: Path) -> Format | Path:
    """Return the format of a file or folder, told by its files, or the one dictionary below it.

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
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise UserError(
            f"`{path}` holds {len(inside)} dictionaries",
            f"give one: {first_of([str(p) for p in inside])}",
        )
    items = sorted(path.iterdir()) if path.is_dir() else [path]
    for item in items:
        check_readable(item)  # what is wrong with a damaged file is not its format
    there = [item.name for item in items[:LISTED]] if path.is_dir() else []
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


def _inside(path: Path, depth: int = _DEEPEST, around: frozenset[Path] = frozenset()) -> list[Path]:
    """Return the dictionaries below a folder; links back to a folder `around` are not followed."""
    if depth == 0 or not path.is_dir() or path.resolve() in around:
        return []
    found = []
    for item in sorted(path.iterdir()):
        if item.name.startswith("."):
            continue
        if _is_ours(item) or _recognising(item):
            found.append(item)
        else:
            found += _inside(item, depth - 1, around | {path.resolve()})
    return found


def _readable() -> str:
    return ", ".join(f.name for f in FORMATS.values() if f.read is not None)


def _writable() -> str:
    return ", ".join(f.name for f in FORMATS.values() if f.write is not None)
