"""Which tasks of the `lm-eval` harness are to be scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks of `lm-eval`, by name."""

    names: tuple[str, ...]
    folder: Path | None = None
    """Of own tasks (`*.yaml`), which need no network; None: those that `lm-eval` knows."""
    samples: int | None = 100
    """Of each task at most; None: all."""
    shots: int | None = None
    """Examples in the prompt; None: as the task says."""
