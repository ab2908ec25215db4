"""Their packages run in an environment of their own, as child processes that share a folder."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / "benchmarks" / ".peers" / "bin" / "python"

Peer = Callable[..., None]


@pytest.fixture(scope="session")
def peer() -> Peer:
    """Runs a script of this folder with their packages; fails with what it printed."""
    if not PYTHON.is_file():
        pytest.fail("no environment with their packages: `make parity` makes it")

    def run(script: str, *arguments: str | Path) -> None:
        command = [PYTHON, Path(__file__).parent / script, *arguments]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run
