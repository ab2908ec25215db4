"""Files of the Hugging Face hub on the disk: several downloaded at once, never more than fit."""

from __future__ import annotations

import atexit
import io
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from fsspec.callbacks import TqdmCallback
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.errors import HTTPError

from monosemy.artefact import disk_error
from monosemy.errors import UserError, reason

_AT_ONCE = 8
"""Downloads at a time: one connection does not fill a line."""

_ATTEMPTS = 4
"""How often a file is asked for before giving up."""
_WAIT = 1.0
"""Seconds before it is asked for again; twice as many each time."""

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


class Downloads:
    """Files of the hub, whole and in order, downloaded ahead by several threads.

    Iterate once, within `with`: a file is there until the next one is asked for. The files that
    are there, are on their way or are being read never take more than `budget` bytes together.
    They lie in a folder of their own below HF_HOME, which is removed in the end.

    Args:
        urls: `hf://` addresses.
        sizes: their bytes, none more than `budget`.
        budget: bytes.
    """

    def __init__(self, urls: Sequence[str], sizes: Sequence[int], budget: int) -> None:
        self._urls, self._sizes, self._room = urls, sizes, budget
        self._hub = HfFileSystem()
        self._folder: Path | None = None
        self._next = 0  # the file to begin with next
        self._outcomes: dict[int, Path | Exception] = {}
        self._closed = False
        self._changed = threading.Condition()  # guards all of the above that changes

    def __enter__(self) -> Downloads:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to download, unless that is done; iterating begins as well.

        Raises:
            UserError: the folder cannot be made.
        """
        if self._folder is not None or not self._urls:
            return
        self._folder = _new_folder()
        atexit.register(self.close)
        for _ in self._urls[:_AT_ONCE]:
            threading.Thread(target=self._work, name="monosemy-download", daemon=True).start()

    def close(self) -> None:
        """Remove what is there; each thread ends with the next bytes it gets."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            atexit.unregister(self.close)

    def __iter__(self) -> Iterator[Path]:
        """Yield the files.

        Raises:
            UserError: one could not be downloaded, or the disk is full.
        """
        self.start()
        for index, size in enumerate(self._sizes):
            path = self._outcome(index)
            yield path
            path.unlink(missing_ok=True)
            with self._changed:
                self._room += size
                self._changed.notify_all()

    def _outcome(self, index: int) -> Path:
        with self._changed:
            self._changed.wait_for(lambda: index in self._outcomes)
            outcome = self._outcomes.pop(index)
        if isinstance(outcome, Path):
            return outcome
        if is_machine_error(outcome):
            hint = (
                "make room, or let HF_HOME name a folder on a larger disk; then give the same "
                "command again, or `monosemy resume` if a run had begun"
            )
            raise disk_error(self._folder or Path(), outcome, hint) from outcome
        raise remote_error(self._urls[index], outcome) from outcome

    def _work(self) -> None:
        while (index := self._reserve()) is not None:
            try:
                outcome: Path | Exception = self._fetch(index)
            except Exception as error:
                outcome = error
            with self._changed:
                self._outcomes[index] = outcome
                self._changed.notify_all()

    def _reserve(self) -> int | None:
        """Return the next file once there is room for it; None: there is no more to do.

        In order, so that there is always room for the file that is read next.
        """
        with self._changed:
            self._changed.wait_for(self._can_go_on)
            if self._closed or self._next == len(self._sizes):
                return None
            self._next += 1
            self._room -= self._sizes[self._next - 1]
            return self._next - 1

    def _can_go_on(self) -> bool:
        done = self._closed or self._next == len(self._sizes)
        return done or self._sizes[self._next] <= self._room

    def _fetch(self, index: int) -> Path:
        url = self._urls[index]
        assert self._folder is not None
        path = self._folder / f"{index:06}-{url.rpartition('/')[2]}"
        for attempt in count():
            try:
                with self._open(path) as file, TqdmCallback({"disable": True}) as silent:
                    self._hub.get_file(url, outfile=file, callback=silent)
                return path
            except (HTTPError, OSError) as error:
                if _is_lasting(error) or attempt + 1 == _ATTEMPTS:
                    path.unlink(missing_ok=True)
                    raise
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=_WAIT * 2**attempt)
        raise AssertionError

    def _open(self, path: Path) -> _Draft:
        with self._changed:  # once closed, nothing is made in the folder that is being removed
            if self._closed:
                raise _Unwanted
            return _Draft(path, lambda: not self._closed)


class _Unwanted(Exception):
    """Nobody waits for this download any more."""


class _Draft(io.BufferedWriter):
    """A file that takes no more bytes once it is not wanted, which ends its download."""

    def __init__(self, path: Path, wanted: Callable[[], bool]) -> None:
        super().__init__(io.FileIO(path, "w"))
        self._wanted = wanted

    def write(self, data: Any) -> int:
        if not self._wanted():
            raise _Unwanted
        return super().write(data)


def sizes_of(urls: Sequence[str]) -> list[int]:
    """Return the bytes of files of the hub.

    Raises:
        OSError, HTTPError: the hub does not answer.
    """
    hub = HfFileSystem()
    return [hub.info(url)["size"] for url in urls]


def name_and_path(url: str) -> tuple[str, str]:
    """Return the data set's name and the file's path in it of `hf://datasets/NAME@COMMIT/PATH`."""
    name, _, rest = url.removeprefix("hf://datasets/").partition("@")
    return name, rest.partition("/")[2]


def is_machine_error(error: BaseException) -> bool:
    """Say whether this machine failed: the disk is full, a file may not be written."""
    return isinstance(error, OSError) and error.errno is not None and not is_network_error(error)


def is_network_error(error: BaseException) -> bool:
    """Say whether the hub could not be reached, or refused."""
    return isinstance(error, ConnectionError | TimeoutError | HTTPError)


def remote_error(url: str, error: BaseException) -> UserError:
    """Return what to tell a user to whom the hub does not give a file."""
    name, path = name_and_path(url)
    if _status(error) in (401, 403):
        hint = "it is gated or private: ask for access on its page, and set HF_TOKEN"
    else:
        hint = "check the network and give the same command again, or `monosemy resume` a run"
    return UserError(f"the hub does not give `{path}` of data set `{name}`: {reason(error)}", hint)


def bytes_in(size: str | int) -> int:
    """Return the bytes that `20GB`, `500 MB` or a number mean; k, M, G, T are powers of 1,000.

    Raises:
        UserError: it is no size.
    """
    match = re.fullmatch(r"(\d+\.?\d*)\s*([kmgt]?)b?", str(size).strip().lower())
    if match is None or not (found := int(float(match[1]) * _UNITS[match[2]])):
        raise UserError(f"`{size}` is no size", "allowed: a number of bytes, or such as 20GB")
    return found


def _is_lasting(error: Exception) -> bool:
    """Say whether asking again is in vain."""
    status = _status(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    return refused or is_machine_error(error)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _new_folder() -> Path:
    """Make a folder that names this machine and process; remove those of processes that are gone.

    A process that is killed cannot clean up; the next one does.
    """
    parent = Path(constants.HF_ASSETS_CACHE, "monosemy")
    here = socket.gethostname()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for folder in parent.iterdir():
            match folder.name.rsplit("-", 2):
                case [host, process, _] if host == here and not psutil.pid_exists(int(process)):
                    shutil.rmtree(folder, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{here}-{os.getpid()}-", dir=parent))
    except OSError as error:
        raise disk_error(parent, error, "let HF_HOME name a folder that can be written") from error
