"""Explains features in a process that a test kills."""

from __future__ import annotations

from pathlib import Path

import planted

from monosemy.interpret.explain import Client, ask_explanations


def main(url: str, cache: Path) -> None:
    client = Client(url, "scripted", cache=cache, concurrency=4)
    ask_explanations(client, range(3), planted.cutter(explain=10, test=10).cut)
