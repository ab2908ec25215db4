"""The Hugging Face hub: only the files of one dictionary are fetched, and errors say what to do.

The cache, `HF_HUB_OFFLINE` and tokens are those of `huggingface_hub`.
"""

from __future__ import annotations

import errno
import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosemy.errors import LISTED, UserError, first_of, nearest, reason

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
_SETTINGS = (".json", ".yaml", ".yml")
_BESIDE = re.compile(
    r"(.*sparsity|fingerprint)\.safetensors|"
    r"(state|optimizer.*|lr_scheduler.*|rank_\d+_state|train.*_state|scheduler|rng_.*)\.(pt|pth)"
)
"""Files of tensors that are no dictionary, but belong to one or to its training."""
_PARTS = re.compile(r"W_(enc|dec)_\d+\.safetensors")
"""Files that are one dictionary together."""
_OF_A_RUN = re.compile(r"(.*cfg|.*config|hyperparams|conf|manifest)\.(json|yaml|yml)")
"""Settings that may stand in folders above a dictionary's, and say what it was trained on."""


LIBRARY = "monosemy"
"""As which library requests say to be made."""


def hub_api() -> HfApi:
    """Return the hub's interface, whose requests say which library makes them."""
    from huggingface_hub import HfApi

    return HfApi(library_name=LIBRARY, library_version=importlib.metadata.version(LIBRARY))


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the hub a dictionary is."""

    repo: str
    inside: str = ""
    """Folder or file; "" for all of the repository."""
    revision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}/{self.inside}".rstrip("/") + at


@dataclass(frozen=True, slots=True)
class Fetched:
    """A dictionary's files in the cache."""

    path: Path
    place: Place
    commit: str


def hub_place(source: str) -> Place | None:
    """Return what `owner/name`, `owner/name/folder` or either with `@revision` means, else None."""
    text, _, revision = source.partition("@")
    found = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+?))?/?", text)
    return Place(found[1], found[2] or "", revision or None) if found else None


def fetch(place: Place) -> Fetched:
    """Fetch one dictionary's files, as far as the cache has not got them.

    Raises:
        UserError: no such repository, revision or file, no right to read it, no network, or several
            dictionaries, which are listed.
    """
    files, offline = _files(place)
    chosen = choose(files, place, offline)
    wanted = files_of(files, chosen)
    try:
        folder = hub_api().snapshot_download(
            place.repo,
            revision=place.revision,
            allow_patterns=[name.replace("[", "[[]") for name in wanted],
            local_files_only=offline,
        )
    except _errors() as error:
        raise hub_error(place, error) from error
    missing = [name for name in wanted if not (Path(folder) / name).is_file()]
    if missing:
        raise UserError(
            f"`{missing[0]}` of `{place.repo}` was not fetched",
            "check the network and give the same command again",
        )
    return Fetched(Path(folder) / chosen, place, Path(folder).name)


def choose(files: Iterable[str], place: Place, offline: bool = False) -> str:
    """Return the file or folder in a repository that is the dictionary asked for.

    Raises:
        UserError: there is none at that place, or several.
    """
    files = list(files)
    found = dictionaries_in(files)
    if place.inside in found or place.inside in files:
        return place.inside
    below = [path for path in found if not place.inside or path.startswith(f"{place.inside}/")]
    if len(below) == 1:
        return below[0]
    where = f"`{place}`" + (" in the cache, with no network," if offline else "")
    if below:
        shown = first_of([f"{place.repo}/{path}" for path in below])
        raise UserError(f"{where} holds {len(below)} dictionaries", f"give one: {shown}")
    if place.inside:
        near = nearest(place.inside, found) or f"it has: {', '.join(found[:LISTED]) or 'none'}"
        raise UserError(f"{where} is no dictionary of that repository", near)
    there = ", ".join(sorted({name.partition("/")[0] for name in files})[:LISTED])
    raise UserError(f"{where} holds no dictionary", f"it has: {there or 'nothing'}")


def dictionaries_in(files: Iterable[str]) -> list[str]:
    """Return the folders and files that are dictionaries, by the names of a repository's files.

    A folder with one file of weights is one; where there are several, each file is. Whether they
    are of a known format is seen when they are read.
    """
    files = set(files)
    by_folder: dict[str, list[str]] = {}
    for name in sorted(files):
        folder, _, last = name.rpartition("/")
        if last.endswith(_WEIGHTS) and not _BESIDE.fullmatch(last):
            by_folder.setdefault(folder, []).append(name)
    found = []
    for folder, weights in by_folder.items():
        parent, _, last = folder.rpartition("/")
        names = [Path(name).name for name in weights]
        if last == "checkpoints" and _in(parent, "hyperparams.json") in files:
            found.append(parent)
        elif _is_one(names):
            found.append(folder)
        else:
            found += weights
    return list(dict.fromkeys(found))


def _is_one(weights: list[str]) -> bool:
    """Say whether a folder's files of weights are one dictionary, and not one for each layer."""
    if len(weights) == 1:
        return re.search(r"layer_?\d", weights[0]) is None
    return all(_PARTS.fullmatch(name) for name in weights)


def files_of(files: Iterable[str], chosen: str) -> list[str]:
    """Return the files that a dictionary needs: its own, and settings in the folders above it."""
    files = list(files)
    own = () if chosen in files else (chosen, _in(chosen, "checkpoints"))
    return [name for name in files if name == chosen or _is_needed(name, own, _above(chosen))]


def _is_needed(name: str, own: tuple[str, ...], above: list[str]) -> bool:
    folder, _, last = name.rpartition("/")
    if folder in own:
        is_state = last.endswith((".pt", ".pth")) and _BESIDE.fullmatch(last)
        return last.endswith(_WEIGHTS + _SETTINGS) and not is_state
    return folder in above and bool(_OF_A_RUN.fullmatch(last))


def hub_error(place: Place, error: Exception) -> UserError:
    """Return what to tell a user to whom the hub does not give something."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = place.repo
    page = f"https://huggingface.co/{repo}"
    if isinstance(error, GatedRepoError):
        return UserError(
            f"repository `{repo}` is gated, and you may not read it",
            f"ask for access at {page}, then set HF_TOKEN or log in with `hf auth login`",
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"repository `{repo}` has no revision `{place.revision}`",
            f"give a branch, tag or commit that {page} lists",
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"there is no folder `{place}` here, and no repository `{repo}` on the hub",
            "check the spelling; for a private one set HF_TOKEN or log in with `hf auth login`; "
            "known releases are listed by: monosemy releases",
        )
    if isinstance(error, HFValidationError):
        return UserError(f"`{repo}` is no name of a repository: {reason(error)}", "owner/name")
    if isinstance(error, HfHubHTTPError) and _status(error) in (401, 403):
        return UserError(
            f"the hub refuses `{repo}`: {reason(error)}",
            "is HF_TOKEN right, and may it do this? `hf auth whoami` says whose it is",
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
        return UserError(
            f"`{place}` cannot be kept: {reason(error)}",
            f"make room in {constants.HF_HUB_CACHE}, or set HF_HOME to another disk",
        )
    if constants.HF_HUB_OFFLINE:
        return UserError(
            f"there is no folder `{place}` here, it is not in the cache, and HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE to fetch it, or set HF_HOME to the cache that has it",
        )
    if not isinstance(error, HfHubHTTPError):
        return UserError(
            f"there is no folder `{place}` here, and the hub cannot be reached: {reason(error)}",
            "check the path, or the network; what is in the cache is found without it",
        )
    return UserError(f"the hub does not give `{place}`: {reason(error)}", "try again later")


def upload(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a folder as a repository, made where there is none; return its address.

    Raises:
        UserError: no right to write, no network, or a name that cannot be.
    """
    api = hub_api()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder)
    except _errors() as error:
        if _status(error) in (401, 403, 404):
            raise UserError(
                f"the hub refuses to write `{repo}`: {reason(error)}",
                "a token that may write is needed: set HF_TOKEN or log in with `hf auth login`; "
                "the first part of the name must be yours or your organisation's",
            ) from error
        raise UserError(
            f"`{repo}` was not uploaded: {reason(error)}",
            "check the name and the network (HF_HUB_OFFLINE must be unset), and try again",
        ) from error
    return str(made)


def _files(place: Place) -> tuple[list[str], bool]:
    """Return the names of a repository's files, and whether only the cache could be asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        info = hub_api().model_info(place.repo, revision=place.revision)
        return [sibling.rfilename for sibling in info.siblings or []], False
    except _errors() as error:
        refused = isinstance(error, HfHubHTTPError) and _status(error) < 500
        if refused or isinstance(error, HFValidationError):
            raise hub_error(place, error) from error
        try:
            # No pattern fits: this only looks up which commit the cache has.
            folder = snapshot_download(
                place.repo, revision=place.revision, allow_patterns=[], local_files_only=True
            )
        except LocalEntryNotFoundError:
            raise hub_error(place, error) from error
        paths = (path for path in Path(folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in paths), True


def _status(error: Exception) -> int:
    """Return the status with which the hub refused; 0 where it was not reached."""
    response: Any = getattr(error, "response", None)
    return response.status_code if response is not None else 0


def _errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HFValidationError, HTTPError

    return (OSError, HTTPError, HFValidationError)


def _above(path: str) -> list[str]:
    """Return the folders above a path, the repository's own ("") last."""
    found = []
    while path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
