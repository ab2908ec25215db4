"""Look at runs in a browser: their features, where these fire and what they do.

The server answers this machine alone, and nothing leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.errors import UserError


@dataclass(frozen=True)
class Command:
    """Options of `monosemy app`."""

    run_folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Runs or sweeps."""
    port: int = 8440
    """Where it listens; if that is taken, the next one that is free."""
    no_browser: bool = False
    """Only print the address."""

    def run(self) -> None:
        """Serve until interrupted."""
        try:
            from monosemy.app import serve
        except ModuleNotFoundError as error:
            raise UserError(
                f"the app needs a package that is not installed: {error.name}",
                "pip install 'monosemy[app]'",
            ) from error
        if not self.run_folders:
            raise UserError("no run given", "monosemy app runs/demo")
        serve(self.run_folders, port=self.port, browser=not self.no_browser)
