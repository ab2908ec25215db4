"""JSON lines in full; other trackers for real where they are installed, else in a stand-in."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monosemy.errors import UserError
from monosemy.training import tracking
from monosemy.training.tracking import (
    JsonLines,
    check_trackers,
    open_trackers,
    read_lines,
    text_of,
)

CONFIG = {"width": 96, "k": None, "clamp": {"3": 1.5}}
PAGE = (
    "<!doctype html><html><head><title>t</title><style>p {color: red}</style></head>"
    "<body><h1>Feature 3</h1><p>fires on <b>&lt;tab&gt;</b> and\n more</p><script>x()</script>"
    "<table><tr><td>a</td><td>b</td></tr></table></body></html>"
)


def figures(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "fvu": 0.1 + 0.2, "l0": 32.0, "dead_share": 0.0}


def written(path: Path) -> list[dict[str, Any]]:
    """Lines as any reader of JSON sees them."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# JSON lines.


def test_a_line_holds_tokens_and_figures_and_is_there_at_once(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "train.jsonl")
    lines.log(figures(1), 512)
    assert written(lines.path) == [{"tokens": 512, **figures(1)}]
    lines.log(figures(2), 1024)
    assert read_lines(lines.path) == [
        {"tokens": 512, **figures(1)},
        {"tokens": 1024, **figures(2)},
    ]
    assert lines.path.read_bytes().endswith(b"\n")
    lines.close()


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "train.jsonl")
    lines.log({"loss": math.nan, "fvu": math.inf, "l0": 1.0}, 1)
    assert written(lines.path) == [{"tokens": 1, "loss": None, "fvu": None, "l0": 1.0}]


def test_opened_again_lines_go_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "train.jsonl"
    JsonLines(path).log(figures(1), 1)
    JsonLines(path).log(figures(2), 2)
    assert [line["tokens"] for line in written(path)] == [1, 2]


@given(cut=st.integers(0, 10_000))
def test_a_torn_last_line_is_dropped(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("torn") / "train.jsonl"
    lines = JsonLines(path)
    for step in (1, 2, 3):
        lines.log({"loss": 1.0, "größe": step}, step)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % (len(whole) + 1)])
    kept = path.read_bytes().count(b"\n")
    assert [line["tokens"] for line in read_lines(path)] == [1, 2, 3][:kept]
    JsonLines(path).log({"loss": 2.0}, 9)
    assert [line["tokens"] for line in written(path)] == [*[1, 2, 3][:kept], 9]


def test_rewind_drops_what_came_after(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "train.jsonl")
    for step in range(1, 6):
        lines.log(figures(step), step * 100)
    before = lines.path.read_bytes().splitlines(keepends=True)
    lines.rewind(320)
    assert lines.path.read_bytes() == b"".join(before[:3])
    lines.log(figures(4), 400)
    assert lines.path.read_bytes() == b"".join(before[:4])
    lines.rewind(400)
    assert lines.path.read_bytes() == b"".join(before[:4])
    lines.rewind(0)
    assert lines.path.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_rewind_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = JsonLines(tmp_path / "train.jsonl")
    for step in range(1, 4):
        lines.log(figures(step), step)
    before = lines.path.read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        lines.rewind(1)
    assert lines.path.read_bytes() == before


def test_nothing_to_rewind_or_read(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "train.jsonl")
    lines.rewind(0)
    assert read_lines(lines.path) == []
    assert not lines.path.exists()


@pytest.mark.parametrize("line", ["{'loss': 1}", '{"loss": 1}', "[3]", '{"tokens": null}', ""])
def test_a_line_that_was_altered_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"tokens": 1}}\n{line}\n{{"tokens": 3}}\n')
    with pytest.raises(UserError, match=r"line 2 of .*train\.jsonl"):
        read_lines(path)


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*train\.jsonl.*: Is a directory"):
        JsonLines(tmp_path / "train.jsonl")


def test_pages_lie_beside_the_lines(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "train.jsonl")
    lines.html("features", PAGE, 2048)
    assert (tmp_path / "samples" / "2048.html").read_text() == PAGE


# Which trackers there are.


def test_json_lines_are_always_among_the_trackers(tmp_path: Path) -> None:
    (lines,) = open_trackers([], tmp_path / "run", CONFIG, "run")
    assert isinstance(lines, JsonLines)
    assert lines.path == tmp_path / "run" / "train.jsonl"


def test_an_unknown_tracker_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tracker `tensorbord`") as caught:
        open_trackers(["tensorbord"], tmp_path, CONFIG, "run")
    assert "did you mean `tensorboard`" in caught.value.hint
    assert "wandb" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What seems to be installed."""
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(tracking.metadata, "version", version)
    return installed


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_says_how_to_install_it(name: str, versions: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"`{name}` is not installed") as caught:
        check_trackers([name])
    assert caught.value.hint == f"pip install 'monosemy[{name}]'"
    versions[name] = "0.9.3"
    with pytest.raises(UserError, match=f"`{name}` is of version 0.9.3, .* is needed"):
        check_trackers([name])
    versions[name] = "99.0rc1"
    check_trackers([name])


def test_a_tracker_that_refuses_closes_those_before_it(
    tmp_path: Path, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.update(tensorboard="9.0", trackio="9.0")
    closed = []

    def refuse(*args: object) -> None:
        raise UserError("no")

    class Open(JsonLines):
        def close(self) -> None:
            closed.append(self.path)

    monkeypatch.setattr(tracking, "TensorBoard", lambda folder, config: Open(folder / "tb"))
    monkeypatch.setattr(tracking, "Trackio", refuse)
    with pytest.raises(UserError, match="no"):
        open_trackers(["tensorboard", "trackio"], tmp_path, CONFIG, "run")
    assert closed == [tmp_path / "tb"]


def test_text_of_a_page() -> None:
    assert text_of(PAGE) == "Feature 3\nfires on <tab> and\nmore\na b"


# TensorBoard.


def test_tensorboard_for_real(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, tracker = open_trackers(["tensorboard", "tensorboard"], tmp_path, CONFIG, "run")
    for step in (1, 2, 3):
        tracker.log({"tokens": step * 10, **figures(step)}, step * 10)
    tracker.html("features", PAGE, 20)
    tracker.rewind(20)
    tracker.log(figures(4), 40)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "tensors": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "fvu", "l0", "dead_share"}
    points = [(point.step, point.value) for point in events.Scalars("loss")]
    assert points == [(10, 1.0), (20, 0.5), (40, 0.25)]
    (page,) = events.Tensors("features/text_summary")
    assert page.step == 20
    assert b"    Feature 3\n    fires on <tab> and" in page.tensor_proto.string_val[0]
    (config,) = events.Tensors("config/text_summary")
    assert b'"width": 96' in config.tensor_proto.string_val[0]


# Stand-ins that take note of how they are called.


class Recorder(SimpleNamespace):
    """Keeps calls as (name, args, kwargs)."""

    def __init__(self, name: str, calls: list, **given: Any) -> None:
        super().__init__(name=name, calls=calls, **given)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((self.name, args, kwargs))
        return getattr(self, "gives", None)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def fake_wandb(monkeypatch: pytest.MonkeyPatch, logged_in: bool = False) -> list:
    calls: list = []
    names = ("define_metric", "log", "finish")
    run = SimpleNamespace(**{name: Recorder(f"run.{name}", calls) for name in names})
    stand_in(
        monkeypatch,
        "wandb",
        run=None,
        Error=RuntimeError,
        login=Recorder("login", calls, gives=logged_in),
        init=Recorder("init", calls, gives=run),
        Settings=lambda **given: ("settings", given),
        Html=lambda page, **given: ("html", page, given),
    )
    return calls


@pytest.fixture
def no_wandb_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_wandb_settings")
def test_wandb_is_called_as_it_wants_to_be(
    tmp_path: Path,
    versions: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    versions["wandb"] = "0.31.0"
    calls = fake_wandb(monkeypatch)
    _, tracker = open_trackers(["wandb"], tmp_path, CONFIG, "run")
    tracker.rewind(0)
    tracker.log({"tokens": 10, **figures(1)}, 10)
    tracker.html("features", PAGE, 10)
    tracker.close()
    names = [name for name, _, _ in calls]
    assert names == ["login", "init", "run.define_metric", "run.log", "run.log", "run.finish"]
    assert calls[0][2] == {"prompt": False, "verify": False}
    init = calls[1][2]
    identity = (tmp_path / "tracking-id").read_text()
    assert init == {
        "project": "monosemy",
        "name": "run",
        "id": identity,
        "resume": "allow",
        "dir": tmp_path,
        "config": CONFIG,
        "mode": "offline",
        "reinit": "create_new",
        "settings": ("settings", {"console": "off"}),
    }
    assert calls[2][1:] == (("*",), {"step_metric": "tokens"})
    assert calls[3][1] == (
        {"tokens": 10, "loss": 1.0, "fvu": 0.1 + 0.2, "l0": 32, "dead_share": 0},
    )
    assert calls[4][1] == ({"tokens": 10, "features": ("html", PAGE, {"inject": False})},)
    assert "wandb has no API key, so this run stays offline" in capsys.readouterr().err
    again = fake_wandb(monkeypatch)
    open_trackers(["wandb"], tmp_path, CONFIG, "run")
    assert again[1][2]["id"] == identity


@pytest.mark.usefixtures("no_wandb_settings")
def test_wandb_mode_and_project(
    tmp_path: Path, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions["wandb"] = "0.31.0"
    calls = fake_wandb(monkeypatch, logged_in=True)
    open_trackers(["wandb"], tmp_path, CONFIG, "run")
    assert calls[1][2]["mode"] == "online"

    for offline, mode in ((True, "offline"), (False, "online")):
        calls = fake_wandb(monkeypatch)
        monkeypatch.setattr(sys.modules["wandb"], "run", SimpleNamespace(offline=offline))
        open_trackers(["wandb"], tmp_path, CONFIG, "run")
        assert (calls[0][0], calls[0][2]["mode"]) == ("init", mode)

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    calls = fake_wandb(monkeypatch, logged_in=True)
    open_trackers(["wandb"], tmp_path, CONFIG, "run")
    assert calls[0][0] == "init"  # nobody is asked to log in
    assert (calls[0][2]["mode"], calls[0][2]["project"]) == ("disabled", "mine")


@pytest.mark.usefixtures("no_wandb_settings")
def test_wandb_that_refuses_says_how_to_do_without(
    tmp_path: Path, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions["wandb"] = "0.31.0"
    fake_wandb(monkeypatch)

    def refuse(**given: Any) -> None:
        raise RuntimeError("the server does not answer")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match="wandb cannot start: the server") as caught:
        open_trackers(["wandb"], tmp_path, CONFIG, "run")
    assert "WANDB_MODE=offline" in caught.value.hint


def test_trackio_is_called_as_it_wants_to_be(
    tmp_path: Path,
    versions: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    versions["trackio"] = "0.43.0"
    calls: list = []
    run = SimpleNamespace(
        log=Recorder("run.log", calls), finish=lambda: sys.stdout.write("finished")
    )

    def init(**given: Any) -> SimpleNamespace:
        sys.stdout.write("initialised")
        calls.append(("init", (), given))
        return run

    stand_in(monkeypatch, "trackio", init=init, Html=lambda page: ("html", page))
    _, tracker = open_trackers(["trackio"], tmp_path, CONFIG, "run")
    tracker.rewind(0)
    tracker.log({"tokens": 10, **figures(1)}, 10)
    tracker.html("features", PAGE, 10)
    tracker.close()
    identity = (tmp_path / "tracking-id").read_text()
    assert calls == [
        (
            "init",
            (),
            {
                "project": "monosemy",
                "name": f"run-{identity}",
                "config": CONFIG,
                "resume": "allow",
                "embed": False,
            },
        ),
        (
            "run.log",
            ({"loss": 1.0, "fvu": 0.1 + 0.2, "l0": 32.0, "dead_share": 0.0},),
            {"step": 10},
        ),
        ("run.log", ({"features": ("html", PAGE)},), {"step": 10}),
    ]
    printed = capsys.readouterr()
    assert printed.out == ""  # what a command prints can be piped
    assert "initialised" in printed.err and "finished" in printed.err


# For real, where they are installed; neither needs a network.


@pytest.mark.usefixtures("no_wandb_settings")
def test_wandb_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    folders = [tmp_path / "a", tmp_path / "b"]
    for attempt in (1, 2):  # the second time, runs are gone on with
        trackers = [open_trackers(["wandb"], folder, CONFIG, folder.name)[1] for folder in folders]
        for tracker in trackers:
            tracker.rewind(10)
            tracker.log(figures(1), 10)
            tracker.html("features", PAGE, 10)
            tracker.close()
        for folder in folders:
            identity = (folder / "tracking-id").read_text()
            runs = list((folder / "wandb").glob(f"offline-run-*-{identity}*/*.wandb"))
            assert len(runs) == attempt
            assert list((folder / "wandb").glob("offline-run-*/files/media/html/*.html"))


def test_trackio_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    folders = [tmp_path / "a", tmp_path / "b"]
    for tokens in (10, 20):  # the second time, runs are gone on with
        trackers = [
            open_trackers(["trackio"], folder, CONFIG, folder.name)[1] for folder in folders
        ]
        for tracker in trackers:
            tracker.log(figures(1), tokens)
            tracker.html("features", PAGE, tokens)
        for tracker in trackers:
            tracker.close()
    with sqlite3.connect(tmp_path / "trackio" / "monosemy.db") as base:
        rows = base.execute("select run_id, run_name, step, metrics from metrics").fetchall()
    base.close()
    assert len({row[0] for row in rows}) == 2
    for folder in folders:
        name = f"{folder.name}-{(folder / 'tracking-id').read_text()}"
        mine = [(step, json.loads(metrics)) for _, run, step, metrics in rows if run == name]
        assert sorted({step for step, _ in mine}) == [10, 20]
        assert mine[0][1] == {"loss": 1.0, "fvu": 0.1 + 0.2, "l0": 32.0, "dead_share": 0.0}
        assert mine[1][1]["features"]["_type"] == "trackio.html"
