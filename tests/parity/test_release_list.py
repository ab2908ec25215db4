"""The list of releases against SAELens's registry: every id that both have is the same thing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from conftest import Peer

from monosemy.formats.names import hub_model, our_hookpoint
from monosemy.formats.releases import Entry, Release, releases

OTHER_FORMATS = {"temporal", "mntss_clt_layer_transcoder"}
NORMALISED = {"constant_norm_rescale": "rms"}
FOLDED = {"llama_scope", "temporal"}
"""Their files say the scale."""


@pytest.fixture(scope="module")
def theirs(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("releases") / "theirs.json"
    peer("peer_releases.py", out)
    return json.loads(out.read_text())


def compare(release: Release, entry: Entry, facts: dict[str, Any], kind: str | None) -> list[str]:
    wanted: dict[str, tuple[object, object]] = {
        "repo": (release.repo, facts["repo"]),
        "path": (entry.path, facts["path"]),
        "model": (same_model(release.model, facts["model"]), True),
        "centred": (release.centred, facts["centred"]),
        "normalise": (release.normalise, NORMALISED.get(facts["normalise"])),
    }
    if kind not in FOLDED:
        wanted["scale"] = (entry.scale, facts["scale"])
    if facts.get("k"):
        wanted["k"] = (release.k, facts["k"])
    if facts.get("width"):
        wanted["width"] = (facts["width"] in release.widths, True)
    if facts.get("hook"):
        wanted["hook point"] = (entry.hookpoint, ours(facts["hook"], release.model))
    if facts.get("hook_out"):
        wanted["target"] = (entry.target, ours(facts["hook_out"], release.model))
    wrong = {name: pair for name, pair in wanted.items() if pair[0] != pair[1]}
    return [f"{release.name}/{entry.id}: {wrong}"] if wrong else []


def same_model(ours: str, theirs: str) -> bool:
    """Say whether it is one model, where theirs may lack its owner and capitals."""
    found = hub_model(theirs)
    return found == ours or ("/" not in found and found == ours.rpartition("/")[2].lower())


def ours(hook: str, model: str) -> str:
    """Their name of a hook point as ours: TransformerLens's, or a module's with `.output`."""
    hook = re.sub(r"(hook_\w+?)_\d+$", r"\1", hook)
    if hook.startswith("model."):
        return hook.removeprefix("model.").removesuffix(".output")
    return "embed" if hook == "hook_embed" else our_hookpoint(hook, model)


def test_every_id_is_the_same(theirs: dict[str, Any]) -> None:
    known, wrong, compared = releases(), [], 0
    for name, registered in theirs.items():
        if registered["kind"] in OTHER_FORMATS:
            assert name not in known
            continue
        entries = {entry.id: entry for entry in known[name].entries()}
        missing = [id for id in registered["ids"] if id not in entries]
        assert all("clt" in registered["ids"][id]["path"] for id in missing), (name, missing[:3])
        for id, facts in registered["ids"].items():
            if id in entries:
                wrong += compare(known[name], entries[id], facts, registered["kind"])
                compared += 1
    assert not wrong, wrong[:20]
    assert compared > 13_000


def test_what_is_ours_alone_is_little(theirs: dict[str, Any]) -> None:
    alone = set(releases()) - set(theirs)
    assert all(not name.startswith(("gemma", "gpt2")) for name in alone) and len(alone) < 20
