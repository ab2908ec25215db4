"""Killed at any moment and started again, a run ends with the dictionary it would have had."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from children import Child
from conftest import SMALL
from resume_child import KINDS
from safetensors.torch import load_file

from monosemy.coders import Dictionary
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training import describe_extension, resume, sweep, train
from monosemy.training.checkpoint import LATEST, PLATEAU, has_checkpoint, load_checkpoint


def start(folder: Path, kind: str) -> Child:
    return Child(folder.with_name("log"), "resume_child", folder, kind)


def weights(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every dictionary in a run or sweep."""
    files = sorted(folder.glob("**/dictionary/coder.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def curve(folder: Path) -> list[str]:
    return [p.read_text() for p in sorted(folder.glob("**/train.jsonl"))]


@pytest.mark.parametrize("kind", [*KINDS, "sweep"])
def test_killed_at_random_moments_and_resumed_is_bit_identical(kind: str, tmp_path: Path) -> None:
    began = time.monotonic()
    start(tmp_path / "whole", kind).finish()
    took = time.monotonic() - began
    rng, folder, kills = random.Random(kind), tmp_path / "killed", 0
    while not weights(folder):
        if folder.exists() and not has_checkpoint(folder):
            shutil.rmtree(folder)  # killed before its first checkpoint: nothing to go on from
        child = start(folder, kind)
        if kills == 6:
            child.finish()
            break
        child.wait_for_lines(1)  # the model is there, training begins
        time.sleep(rng.uniform(0.05, 0.6 * took))
        child.kill()
        kills += 1
    assert weights(folder) == weights(tmp_path / "whole")
    assert curve(folder) == curve(tmp_path / "whole")


def test_sigterm_saves_and_leaves(tmp_path: Path) -> None:
    start(tmp_path / "whole", "batch_topk").finish()
    folder = tmp_path / "stopped"
    child = start(folder, "batch_topk")
    while not has_checkpoint(folder):  # the first of twelve
        time.sleep(0.005)
    child.signal(signal.SIGTERM)
    child.wait()
    if child.exitcode == 0:
        pytest.skip("it had finished before the signal came")
    assert "stopped by SIGTERM after" in child.written
    assert "monosemy resume" in child.written
    state = load_checkpoint(folder)
    assert state is not None
    assert f"{state['tokens']:,} tokens" in child.written
    start(folder, "batch_topk").finish()
    assert weights(folder) == weights(tmp_path / "whole")


def test_a_checkpoint_holds_every_bit(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    """Going on from each checkpoint in turn, in one process, ends the same."""
    settings = {**SMALL, "tokens": 6144}
    whole = train(lm, corpus, "layers.1", out=tmp_path / "whole", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monosemy.training.session.drop_checkpoint", lambda *_: None)
        train(lm, corpus, "layers.1", out=tmp_path / "kept", checkpoint_tokens=2048, **settings)
    (again,) = resume(tmp_path / "kept", lm, corpus)
    for name, weight in whole.dictionary.coder.state_dict().items():
        assert torch.equal(weight, again.dictionary.coder.state_dict()[name]), name
    assert again.history == whole.history


def test_extending_goes_back_to_the_plateau(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    settings = {**SMALL, "tokens": 10_240}
    folder = tmp_path / "run"
    before = train(lm, corpus, "layers.1", out=folder, **settings)
    assert has_checkpoint(folder, PLATEAU)
    assert not has_checkpoint(folder, LATEST)
    assert "goes back to token 8,192" in describe_extension(folder, 20_480)
    (after,) = resume(folder, lm, corpus, extend=20_480)
    assert after.history[-1]["tokens"] == 20_480
    assert after.config.tokens == 20_480
    assert json.loads((folder / "config.json").read_text())["training"]["tokens"] == 20_480
    assert after.history[-1]["fvu"] < before.history[-1]["fvu"]
    loaded = Dictionary.from_pretrained(folder)
    assert torch.equal(loaded.coder.W_enc, after.dictionary.coder.W_enc)
    with pytest.raises(UserError, match="has 20,480 already"):
        resume(folder, lm, corpus, extend=20_480)


def test_a_finished_run_says_how_to_add_tokens(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    train(lm, corpus, "layers.1", out=tmp_path / "run", **{**SMALL, "tokens": 4096})
    with pytest.raises(UserError, match="no checkpoint to go on from") as caught:
        resume(tmp_path / "run", lm, corpus)
    assert "--extend" in caught.value.hint


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        resume(tmp_path)


def test_a_damaged_checkpoint_is_refused(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monosemy.training.session.drop_checkpoint", lambda *_: None)
        settings = {**SMALL, "tokens": 4096}
        train(lm, corpus, "layers.1", out=folder, checkpoint_tokens=1024, **settings)
    state = folder / "checkpoint" / LATEST / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        resume(folder, lm, corpus)


def test_nan_activations_stop_the_run_and_the_last_checkpoint_stays(
    lm: LM, corpus: Corpus, tmp_path: Path
) -> None:
    folder, calls = tmp_path / "run", []

    def poison(x: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
        calls.append(1)
        return x if len(calls) < 4 else x.index_fill(1, torch.tensor([5]), float("inf"))

    with (
        lm.edit({"layers.0": poison}),
        pytest.raises(UserError, match=r"activations at `layers.1` are NaN or infinite"),
    ):
        train(lm, corpus, "layers.1", out=folder, checkpoint_tokens=512, **SMALL)
    state = load_checkpoint(folder)
    assert state is not None
    assert all(w.isfinite().all() for w in state["members"][0]["coder"].values())
    (run,) = resume(folder, lm, corpus)
    assert run.dictionary.fingerprint.expected.fvu < 1


def test_a_full_disk_keeps_the_last_checkpoint(
    lm: LM, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monosemy.artefact

    real, saves = monosemy.artefact.save_file, []

    def save(tensors: dict, path: Path) -> None:
        saves.append(1)
        if len(saves) == 3:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr("monosemy.artefact.save_file", save)
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="No space left on device"):
        train(lm, corpus, "layers.1", out=folder, checkpoint_tokens=1024, **SMALL)
    state = load_checkpoint(folder)
    assert state is not None
    assert state["tokens"] == 2048
    assert not list((folder / "checkpoint").glob(".latest-*"))


def test_sweep_equals_single_runs_and_takes_one_model_pass(
    lm: LM, corpus: Corpus, tmp_path: Path
) -> None:
    settings = {**SMALL, "tokens": 8192}
    passes: list[int] = []
    handle = lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    single = train(lm, corpus, "layers.1", **settings)
    alone = len(passes)
    passes.clear()
    grid = {"k": [4, 8], "architecture": ["batch_topk", "relu"], "target_l0": [6]}
    runs = sweep(lm, corpus, ["layers.1"], grid=grid, out=tmp_path / "s", **settings)
    handle.remove()
    assert len(passes) <= alone + 2  # a fingerprint for each dictionary
    assert [run.folder.name for run in runs if run.folder] == [
        "batch_topk-l0-4",
        "batch_topk-l0-8",
        "relu-l0-6",
    ]
    same = runs[1].dictionary.coder.state_dict()
    for name, weight in single.dictionary.coder.state_dict().items():
        assert torch.equal(weight, same[name]), name
    saved = load_file(tmp_path / "s" / "batch_topk-l0-8" / "dictionary" / "coder.safetensors")
    assert torch.equal(saved["W_enc"], same["W_enc"])
