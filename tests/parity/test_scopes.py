"""Golden parity with what SAELens reads of published suites' files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import scope_files as files
import torch
from conftest import Peer
from safetensors.torch import load_file, save_file
from scope_files import MAKERS, WIDTH, D
from torch.testing import assert_close

import monosemy


@dataclass
class Case:
    """How SAELens is asked for a file."""

    reader: str
    repo: str
    above: int = 0
    """Folders between the repository and what we load."""
    scale: float | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


SIZES = {"d_in": D, "d_sae": WIDTH}
CASES = {
    "gemma_scope": Case("gemma_2", "google/gemma-scope-2b-pt-res", 3, overrides=SIZES),
    "gemma_scope_2": Case("gemma_3", "google/gemma-scope-2-1b-pt", 2),
    "llama_scope": Case("llama_scope", "fnlp/Llama3_1-8B-Base-LXR-8x", 1, scale=D**0.5 / 4.0),
    "llama_scope-r1": Case(
        "llama_scope_r1_distill",
        "fnlp/Llama-Scope-R1-Distill",
        2,
        scale=D**0.5 / 2.5,
        overrides={"d_sae": WIDTH},
    ),
    "qwen_scope": Case(
        "qwen_scope", f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{files.K}", 1, overrides=SIZES
    ),
    "goodfire": Case("goodfire", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", 1, overrides=SIZES),
    "hook_z": Case("connor_rob_hook_z", "ckkissane/attn", 1),
    "circuit_tracer-old": Case("mwhanna_transcoder", "mwhanna/qwen3-0.6b", 1),
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, peer: Peer) -> tuple[Path, dict[str, Path]]:
    """A folder with what SAELens computes of each, and the files."""
    folder = tmp_path_factory.mktemp("scopes")
    torch.manual_seed(0)
    save_file({"x": 3 * torch.randn(200, D) + 1}, folder / "x.safetensors")
    asked, paths = [], {}
    for name, case in CASES.items():
        place = folder / f"files-{name}"
        place.mkdir()
        made = (
            files.circuit_tracer(place, jumps=False, old=True, skip=False)
            if name == "circuit_tracer-old"
            else MAKERS[name](place)
        )
        root = made.path.parents[case.above - 1]
        paths[name] = made.path
        asked.append(
            {
                "name": name,
                "root": str(root),
                "repo": case.repo,
                "folder": str(made.path.relative_to(root)),
                "reader": case.reader,
                "scale": case.scale,
                "overrides": case.overrides,
            }
        )
    (folder / "cases.json").write_text(json.dumps(asked))
    peer("peer_scopes.py", folder)
    return folder, paths


@pytest.mark.parametrize("name", CASES)
def test_features_and_reconstructions_are_those_of_saelens(
    name: str, read: tuple[Path, dict[str, Path]]
) -> None:
    folder, paths = read
    x, theirs = load_file(folder / "x.safetensors")["x"], load_file(folder / f"{name}.safetensors")
    found = monosemy.load(paths[name])
    assert 0 < (theirs["z"] > 0).float().mean() < 1
    assert_close(found.encode(x), theirs["z"], atol=1e-5, rtol=1e-5)
    assert_close(found.reconstruct(x), theirs["y"], atol=1e-5, rtol=1e-4)
