"""The command line: the main job on a user's own model and text, and one mistake a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monosemy.cli.main import COMMANDS, main

SMALL = [
    "--width",
    "64",
    "--k",
    "6",
    "--tokens",
    "8192",
    "--batch",
    "512",
    "--pool",
    "2048",
    "--context",
    "32",
]


@pytest.fixture(scope="module")
def folder_of_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, text in enumerate(texts):
        (folder / f"{number}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, folder_of_text: Path
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mine"
    where = ["--model", str(checkpoint), "--data", str(folder_of_text), "--hookpoint", "layers.1"]
    main(["train", *where, *SMALL, "--out", str(out)])
    return out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail cleanly; return what it said."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from monosemy.cli.main import main; main(['--help']);"
        "import monosemy; heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"monosemy {name}" in capsys.readouterr().out


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    said = mistake(capsys, "trian")
    assert "no command `trian`" in said
    assert "did you mean `train`" in said


def test_train_leaves_a_run(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} >= {"config.json", "train.jsonl", "dictionary"}
    config = json.loads((trained / "config.json").read_text())
    assert config["training"]["width"] == 64


def test_evaluate_prints_baselines_and_verdict(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(trained), "--tier", "quick", "--tokens", "1000", "--loss-tokens", "500"])
    out = capsys.readouterr().out
    for word in ("FVU", "PCA-", "untrained", "neurons", "held-out", "wins against", "Verdict"):
        assert word in out
    saved = json.loads((trained / "metrics.json").read_text())
    assert saved["suites"][0]["tables"][0]["columns"][0] == "dictionary"
    assert [suite["suite"] for suite in saved["suites"]] == ["reconstruction", "health"]
    main(["evaluate", str(trained), "--suite", "health", "--tokens", "500"])
    alone = json.loads((trained / "metrics-health.json").read_text())
    assert [suite["suite"] for suite in alone["suites"]] == ["health"]
    assert (trained / "evaluation-health.html").is_file()
    assert json.loads((trained / "metrics.json").read_text()) == saved, "a look took it away"


def test_features_table_then_one(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["features", str(trained), "--tokens", "2000"])
    assert "features fired" in capsys.readouterr().out
    main(["features", str(trained), "3"])
    assert "3" in capsys.readouterr().out


def test_steer_shows_both(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strength = json.loads((trained / "config.json").read_text())  # the run is there
    assert strength
    from monosemy.coders import Dictionary

    feature = int(Dictionary.from_pretrained(trained).strength.argmax())
    main(["steer", str(trained), "--feature", str(feature), "--prompt", "def f(", "--tokens", "5"])
    assert str(feature) in capsys.readouterr().out


def test_report_writes_one_page(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(trained)])
    page = (trained / "report.html").read_text()
    assert "<html" in page
    assert "FVU" in page


def test_doctor_finds_health_and_illness(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", str(trained)])
    assert "healthy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["doctor", str(trained), "--hookpoint", "layers.2"])
    assert caught.value.code == 1
    assert "it belongs to `layers.1`" in capsys.readouterr().out


def test_hookpoints_lists_names_widths_and_aliases(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["hookpoints", str(checkpoint)])
    out = capsys.readouterr().out
    for word in ("layers.2.mlp", "embed", "final_norm", "32", "blocks.0.hook_resid_post"):
        assert word in out


def test_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no-such-model-here" in mistake(capsys, "hookpoints", "./no-such-model-here")
    assert "did you mean `stdlib`" in mistake(capsys, "hookpoints", "builtin:stdlibb")


def test_unknown_hook_point(
    checkpoint: Path, folder_of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = mistake(
        capsys,
        *("train", "--model", checkpoint, "--data", folder_of_text),
        *("--hookpoint", "layer.1", "--out", tmp_path / "run"),
    )
    assert "`layer.1`" in said
    assert "`layers.1`" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("missing/folder", "missing/folder"),
        ("empty", "empty"),
        ("binary.txt", "binary.txt"),
    ],
)
def test_text_that_cannot_be_read(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    data: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.txt").write_bytes(bytes(range(128, 256)) * 20)
    said = mistake(capsys, "train", "--model", checkpoint, "--data", f"./{data}", "--out", "run")
    assert expected in said
    assert not (tmp_path / "run").exists()


def test_k_above_width(
    checkpoint: Path, folder_of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = mistake(
        capsys,
        *("train", "--model", checkpoint, "--data", folder_of_text, "--out", tmp_path / "run"),
        *("--width", "16", "--k", "17"),
    )
    assert "k is 17" in said
    assert "16 features" in said


def test_run_folder_that_exists(
    checkpoint: Path, folder_of_text: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in trained.iterdir())
    said = mistake(
        capsys,
        *("train", "--model", checkpoint, "--data", folder_of_text, "--hookpoint", "layers.1"),
        *("--out", trained),
    )
    assert "exists" in said
    assert sorted(p.name for p in trained.iterdir()) == before


@pytest.mark.parametrize("command", ["evaluate", "features", "doctor", "report"])
def test_no_such_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "runs/none" in mistake(capsys, command, "runs/none")


def test_feature_out_of_range(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 to 63" in mistake(capsys, "features", trained, "64")
    said = mistake(capsys, "steer", trained, "--feature", "64", "--prompt", "x")
    assert "no feature 64" in said


def test_empty_prompt(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # BOS alone is something to continue; whether the text is empty is the user's business.
    main(["steer", str(trained), "--feature", "0", "--prompt", " ", "--scale", "0"])
    assert capsys.readouterr().out


def test_nan_weights_are_named(
    checkpoint: Path, folder_of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    said = mistake(
        capsys,
        *("train", "--model", tmp_path / "model", "--data", folder_of_text),
        *("--hookpoint", "layers.1", "--out", tmp_path / "run", *SMALL),
    )
    assert "activations at `layers.1` are NaN" in said
    assert ".py" in said


def where(checkpoint: Path, folder_of_text: Path) -> list[str]:
    return ["--model", str(checkpoint), "--data", str(folder_of_text), "--hookpoint", "layers.1"]


def test_dry_run_says_every_default_and_does_nothing(
    checkpoint: Path, folder_of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["train", *where(checkpoint, folder_of_text), *SMALL, "--out", str(out), "--dry-run"])
    said = capsys.readouterr().out
    assert "8,192 in 16 steps of 512" in said
    assert "0.008 / sqrt(64 / 2048)" in said
    assert not out.exists()


def test_sweep_leaves_a_folder_each_and_a_page(
    checkpoint: Path, folder_of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--settings.tokens", "8192", "--settings.batch", "512", "--settings.pool", "2048"]
    shared += ["--settings.context", "32", "--settings.width", "64"]
    grid = ["--architecture", "topk", "relu", "--k", "4", "8", "--target-l0", "6"]
    command = ["sweep", *grid, *where(checkpoint, folder_of_text), *shared]
    main([*command, "--out", str(tmp_path / "s"), "--dry-run"])
    assert "topk-l0-8" in capsys.readouterr().out
    main([*command, "--out", str(tmp_path / "s")])
    said = capsys.readouterr().out
    assert "3 dictionaries" in said
    assert "<svg" in (tmp_path / "s" / "sweep.html").read_text()
    for name in ("topk-l0-4", "topk-l0-8", "relu-l0-6"):
        assert (tmp_path / "s" / name / "train.jsonl").exists()
    main(["doctor", str(tmp_path / "s" / "relu-l0-6")])


def test_resume_extends_a_run(
    checkpoint: Path, folder_of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--samples", "--track", "tensorboard", "--checkpoint-tokens", "2048"]
    main(["train", *where(checkpoint, folder_of_text), *SMALL, *options, "--out", str(out)])
    assert len(list((out / "samples").glob("*.html"))) == 4
    assert list((out / "tensorboard").iterdir())
    main(["resume", str(out), "--extend", "16384"])
    said = " ".join(capsys.readouterr().out.split())
    assert "goes back to token 6,656" in said
    assert json.loads((out / "train.jsonl").read_text().splitlines()[-1])["tokens"] == 16_384
    assert "has 16,384 already" in mistake(capsys, "resume", out, "--extend", "9000")
    assert "no checkpoint to go on from" in mistake(capsys, "resume", out)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "--k", "4", "--target-l0", "8"], "drop target_l0"),
        (["train", "--track", "wandbb"], "wandb"),
        (["sweep", "--k", "4", "4"], "twice"),
        (["resume", "nowhere"], "not a run's folder"),
        (["train", "--width", "99999999999"], "of memory"),
    ],
)
def test_new_mistakes_are_clean(
    command: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in mistake(capsys, *command)
    assert not list(tmp_path.iterdir())
