"""Processes that a test starts and kills, forked from one in which everything is imported."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["children", "resume_child", "store_child", "index_child", "monosemy.report"]
)


class Child:
    """Runs `main` of a module in a process of one thread; what it writes goes to a file."""

    def __init__(self, log: Path, module: str, *args: Any) -> None:
        self.log = log
        log.write_bytes(b"")
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for the process that forks
        try:
            self._process = _FORKS.Process(target=_run, args=(log, module, args))
            self._process.start()
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before

    @property
    def written(self) -> str:
        return self.log.read_text()

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    def wait_for_lines(self, count: int, seconds: float = 60) -> None:
        """Wait until so many lines were written, or the process has ended."""
        until = time.monotonic() + seconds
        while self.written.count("\n") < count and self._process.is_alive():
            assert time.monotonic() < until, self.written
            time.sleep(0.002)

    def signal(self, number: int) -> None:
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def wait(self, seconds: float = 600) -> None:
        self._process.join(seconds)
        assert self.exitcode is not None, f"still running after {seconds} s: {self.written}"

    def finish(self) -> None:
        """Wait until it has done its work."""
        self.wait()
        assert self.exitcode == 0, self.written


def tell(line: str) -> None:
    """Tell the test how far it is, in a child."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run(log: Path, module: str, args: tuple[Any, ...]) -> None:
    import torch

    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    importlib.import_module(module).main(*args)
