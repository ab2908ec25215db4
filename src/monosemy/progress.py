"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_LINES = 10
"""How many lines a task leaves where there is no terminal to draw a bar on."""


class Task:
    """One stretch of long work, counted in `unit`s; use as a context manager.

    Everything goes to standard error, so that a command's output can be piped.
    """

    def __init__(self, title: str, total: int, unit: str = "tokens") -> None:
        self.title, self.total, self.unit = title, total, unit
        self._done = 0
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> Task:
        self._began = time.monotonic()
        if self._console.is_terminal or self._console.is_jupyter:
            self._bar = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}", style="dim"),
                TimeRemainingColumn(compact=True),
                console=self._console,
            )
            self._bar.start()
            self._row = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def advance(self, count: int, note: str = "") -> None:
        """Say that `count` more units are done; `note` shows beside the rate."""
        before, self._done = self._done, min(self._done + count, self.total)
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = f"{self._done / seconds:,.0f} {self.unit}/s"
        text = f"{rate}  {note}" if note else rate
        if self._bar is not None:
            self._bar.update(self._row, completed=self._done, note=text)
        elif before * _LINES // self.total != self._done * _LINES // self.total:
            left = seconds * (self.total - self._done) / max(self._done, 1)
            share = f"{self._done / self.total:4.0%}"
            sys.stderr.write(f"{self.title:<12} {share}  {text}  {left:.0f} s left\n")
            sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a line of text, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, style="yellow")
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Stages:
    """Seconds that each stage of work takes; of a stage within another only the inner counts.

    Args:
        settle: called at the end of each stage, to wait for a device that works on by itself.
    """

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._settle = settle
        self._inside: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what the block takes to a stage."""
        began = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
            if self._settle is not None:
                self._settle()
        finally:
            took = time.perf_counter() - began
            own = took - self._inside.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            if self._inside:
                self._inside[-1] += took

    def told(self) -> str:
        """Say which share of the time each stage took, and which one the others wait for."""
        total = max(sum(self.seconds.values()), 1e-9)
        order = sorted(self.seconds, key=lambda name: -self.seconds[name])
        shares = ", ".join(f"{name} {self.seconds[name] / total:.0%}" for name in order)
        return f"{total:.1f} s: {shares}; most of the time the others wait for: {order[0]}"
