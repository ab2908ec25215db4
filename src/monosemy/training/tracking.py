"""Where the figures of a run go as it trains: JSON lines always, other trackers if asked for.

TensorBoard, Weights & Biases and trackio are imported only where they are used. Their charts run
over tokens. They are for looking on; what counts is `train.jsonl` in the run's folder.
"""

from __future__ import annotations

import contextvars
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from monosemy.artefact import write_text
from monosemy.errors import UserError, nearest

JSON_LINES, SAMPLES, IDENTITY = "train.jsonl", "samples", "tracking-id"
PROJECT = "monosemy"
"""What runs are filed under in trackio, and in Weights & Biases unless WANDB_PROJECT is set."""
LEAST = {"tensorboard": (2, 20), "wandb": (0, 30), "trackio": (0, 40)}
"""The trackers there are, and the oldest version of each that has what is used here."""


@runtime_checkable
class Tracker(Protocol):
    """Something that takes note of how training goes."""

    def log(self, figures: Mapping[str, float], tokens: int) -> None:
        """Take note of a step's figures, after so many tokens."""

    def html(self, name: str, page: str, tokens: int) -> None:
        """Take note of a page of HTML."""

    def rewind(self, tokens: int) -> None:
        """Forget what came after so many tokens; training goes on from there."""

    def close(self) -> None:
        """Write what is still to be written."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are known and installed, before any work.

    Raises:
        UserError: an unknown name, or a package that is missing or too old.
    """
    for name in names:
        if name not in LEAST:
            raise UserError(
                f"no tracker `{name}`",
                f"{nearest(name, LEAST)} allowed: {', '.join(LEAST)}; "
                "JSON lines are always written".strip(),
            )
        least = ".".join(str(part) for part in LEAST[name])
        install = f"pip install 'monosemy[{name}]'"
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise UserError(f"`{name}` is not installed", install) from error
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < LEAST[name]:
            raise UserError(f"`{name}` is of version {found}, {least} is needed", install)


def open_trackers(
    names: Sequence[str], folder: Path, config: dict[str, Any], run_name: str
) -> list[Tracker]:
    """Open JSON lines in a run's folder, and the trackers named.

    Args:
        names: of `tensorboard`, `wandb`, `trackio`; none are needed.
        folder: the run's, made if it is not there.
        config: what the run was told to do, as JSON values.
        run_name: what the trackers call it.

    Raises:
        UserError: an unknown name, a package that is missing, a tracker or a disk that refuses.
    """
    check_trackers(names)
    with ExitStack() as opened:
        trackers: list[Tracker] = [JsonLines(folder / JSON_LINES)]
        for name in dict.fromkeys(names):
            trackers.append(_open(name, folder, config, run_name))
            opened.callback(trackers[-1].close)
        opened.pop_all()  # all are open, and stay so
    return trackers


def _open(name: str, folder: Path, config: dict[str, Any], run_name: str) -> Tracker:
    if name == "tensorboard":
        return TensorBoard(folder, config)
    if name == "wandb":
        return WandB(folder, config, run_name)
    return Trackio(folder, config, run_name)


class JsonLines:
    """One JSON object a line: tokens so far, then figures; null for what is not finite.

    A run that was killed may leave half a line at the end, which is dropped when the file is
    opened again.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file, which need not be there.

        Raises:
            UserError: the disk refuses, here and below.
        """
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                os.truncate(self.path, len(_whole_lines(self.path)))
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def log(self, figures: Mapping[str, float], tokens: int) -> None:
        """Add a line."""
        numbers = {"tokens": tokens, **figures}
        line = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def html(self, name: str, page: str, tokens: int) -> None:
        """Write a page to `samples/<tokens>.html`, beside the lines."""
        write_text(self.path.parent / SAMPLES / f"{tokens}.html", page)

    def rewind(self, tokens: int) -> None:
        """Drop the lines after so many tokens, all at once or not at all."""
        lines = read_lines(self.path)
        kept = [line for line in lines if line["tokens"] <= tokens]
        if len(kept) < len(lines):
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def close(self) -> None:
        """Do nothing: every line is on its way to the disk already."""


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a run's JSON lines; none if there is no file, and not the last one if it is torn.

    Raises:
        UserError: another line is not an object with tokens.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(_whole_lines(path).splitlines(), start=1):
        try:
            line = json.loads(text)
            int(line["tokens"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of `{path}` cannot be read: {text[:80]!r}",
                "it was altered after it was written; remove that line",
            ) from error
        lines.append(line)
    return lines


class TensorBoard:
    """Event files in the run's folder, under `tensorboard`; pages as their text."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Start an event file."""
        self.folder = folder / "tensorboard"
        self._writer = self._open()
        self._writer.add_text("config", _as_code(json.dumps(config, indent=2)), 0)

    def log(self, figures: Mapping[str, float], tokens: int) -> None:
        """Add a point to each curve, and write it at once."""
        for name, value in _curves(figures).items():
            self._writer.add_scalar(name, value, tokens)
        self._writer.flush()

    def html(self, name: str, page: str, tokens: int) -> None:
        """Add a page's text: TensorBoard shows no HTML with styles."""
        self._writer.add_text(name, _as_code(text_of(page)), tokens)

    def rewind(self, tokens: int) -> None:
        """Have points after so many tokens not shown."""
        if tokens:
            self._writer.close()
            self._writer = self._open(purge_step=tokens + 1)

    def close(self) -> None:
        """Write the rest."""
        self._writer.close()

    def _open(self, purge_step: int | None = None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder), purge_step=purge_step)


class WandB:
    """A run of Weights & Biases, whose files lie in the run's folder, under `wandb`.

    WANDB_MODE decides whether it is `online`, `offline` or `disabled`. Without it a run is online
    where there is an API key, else offline; `wandb sync` uploads an offline run later.
    """

    def __init__(self, folder: Path, config: dict[str, Any], run_name: str) -> None:
        """Start a run, or go on with the one of this folder.

        Raises:
            UserError: Weights & Biases refuses.
        """
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=run_name,
                id=_identity(folder),
                resume="allow",
                dir=folder,
                config=config,
                mode=_wandb_mode(wandb, folder),
                reinit="create_new",  # a sweep has many at once
                settings=wandb.Settings(console="off"),  # what is printed stays here
            )
        except (wandb.Error, ValueError) as error:
            raise UserError(
                f"wandb cannot start: {error}", "WANDB_MODE=offline needs no network and no key"
            ) from error
        # Its own steps can only grow, but a run that is gone on with repeats some.
        self._run.define_metric("*", step_metric="tokens")

    def log(self, figures: Mapping[str, float], tokens: int) -> None:
        """Add a point to each chart."""
        self._run.log({"tokens": tokens, **_curves(figures)})

    def html(self, name: str, page: str, tokens: int) -> None:
        """Add a page."""
        import wandb

        self._run.log({"tokens": tokens, name: wandb.Html(page, inject=False)})

    def rewind(self, tokens: int) -> None:
        """Do nothing: points at the same tokens are drawn over one another."""

    def close(self) -> None:
        """Send or write the rest."""
        self._run.finish()


class Trackio:
    """A run of trackio, in its local database (TRACKIO_DIR, or its cache), or where it is told."""

    def __init__(self, folder: Path, config: dict[str, Any], run_name: str) -> None:
        """Start a run, or go on with the one of this folder."""
        import trackio

        def start() -> Any:
            return trackio.init(
                project=PROJECT,
                name=f"{run_name}-{_identity(folder)}",  # trackio goes on with runs by name
                config=config,
                resume="allow",
                embed=False,
            )

        # In a context of its own, for starting a run ends the one before; a sweep has many.
        with redirect_stdout(sys.stderr):
            self._run = contextvars.Context().run(start)

    def log(self, figures: Mapping[str, float], tokens: int) -> None:
        """Add a point to each chart."""
        self._run.log(_curves(figures), step=tokens)

    def html(self, name: str, page: str, tokens: int) -> None:
        """Add a page."""
        import trackio

        self._run.log({name: trackio.Html(page)}, step=tokens)

    def rewind(self, tokens: int) -> None:
        """Do nothing: points at the same tokens are drawn over one another."""

    def close(self) -> None:
        """Write the rest."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


def text_of(page: str) -> str:
    """Return what a page of HTML says, without its looks: a line for each block."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    return "\n".join(line for line in lines if line)


class _Reader(HTMLParser):
    """Collects the text of a page."""

    HIDDEN = {"style", "script", "svg", "template", "title"}
    INLINE = {"a", "abbr", "b", "code", "em", "i", "mark", "small", "span", "strong", "sub", "sup"}

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self.HIDDEN
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self.HIDDEN
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)

    def _break(self, tag: str) -> None:
        if tag not in self.INLINE:
            self.parts.append(" " if tag in ("td", "th") else "\n")


def _curves(figures: Mapping[str, float]) -> dict[str, float]:
    """Return what is drawn over tokens: all but the two ways of counting how far a run is."""
    return {name: value for name, value in figures.items() if name not in ("tokens", "step")}


def _as_code(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _identity(folder: Path) -> str:
    """Return what a run is known by in databases that hold many: made once, kept in its folder."""
    path = folder / IDENTITY
    if not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text("utf-8").strip()


def _wandb_mode(wandb: Any, folder: Path) -> str:
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if wandb.run is not None:  # the user's own; nobody can log in while it lasts
        return "offline" if wandb.run.offline else "online"
    if wandb.login(prompt=False, verify=False):
        return "online"
    sys.stderr.write(
        f"wandb has no API key, so this run stays offline in {folder / 'wandb'}; "
        "`wandb login`, then `wandb sync` its folder there, uploads it\n"
    )
    return "offline"


def _whole_lines(path: Path) -> bytes:
    """Return a file's bytes up to its last line break."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write `{path}`: {error.strerror or error}",
        "make room, or choose another folder with --out",
    )
