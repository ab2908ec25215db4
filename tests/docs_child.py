"""Runs a block of Python of the docs, in a folder."""

from __future__ import annotations

import os
from pathlib import Path


def main(folder: Path, body: str) -> None:
    os.chdir(folder)
    exec(compile(body, "<docs>", "exec"), {"__name__": "__main__"})
