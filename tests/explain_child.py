"""Explains features until it is killed; run by test_explain_client."""

import sys
from pathlib import Path

import planted

from monosemy.interpret.explain import Client, ask_explanations

url, cache = sys.argv[1:]
client = Client(url, "scripted", cache=Path(cache), concurrency=4)
ask_explanations(client, range(3), planted.cutter(explain=10, test=10).cut)
