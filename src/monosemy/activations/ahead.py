"""Work done in a thread of its own, a few items ahead of whoever asks for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL = 0.1
"""Seconds after which a thread that waits looks whether it is still wanted."""


class Ahead(Iterator[T], Generic[T]):
    """The items of an iterable, made in a background thread; in the same order, errors included.

    Close it when no more are wanted: the thread keeps it alive.

    Args:
        source: iterated over in the thread, and nowhere else.
        depth: items that may wait.
    """

    def __init__(self, source: Iterable[T], depth: int = 4) -> None:
        self._items: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        kind, item = self._items.get()
        if kind == "item":
            return item  # type: ignore[return-value]
        self._items.put((kind, item))  # asked again, it ends again
        if isinstance(item, BaseException):
            raise item
        raise StopIteration

    def close(self) -> None:
        """Let the thread end."""
        self._unwanted.set()

    def _work(self, source: Iterable[T]) -> None:
        items = iter(source)
        while not self._unwanted.is_set():
            try:
                item = next(items)
            except StopIteration:
                self._put(("end", None))
                return
            except BaseException as error:
                self._put(("error", error))
                return
            self._put(("item", item))

    def _put(self, entry: tuple[str, T | BaseException | None]) -> None:
        while not self._unwanted.is_set():
            try:
                self._items.put(entry, timeout=_POLL)
                return
            except queue.Full:
                continue
