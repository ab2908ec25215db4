"""Steering: the model writes under edits of features, beside itself, as it goes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from threading import Event, Thread
from typing import Any, cast, get_args

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from monosemy.app.asked import Form, number, text, whole
from monosemy.app.columns import labels
from monosemy.app.pages import ThisRun, page
from monosemy.app.runs import OpenRun
from monosemy.coders import Amounts, Change, ErrorTerm, SuppressAll, Swap
from monosemy.errors import UserError
from monosemy.intervene import (
    FeatureEdit,
    Measured,
    parse_change,
    parse_positions,
    split_edits,
    steer_measured,
)
from monosemy.report.numbers import figure, percent

router = APIRouter()

MOST_STEPS, MOST_TOKENS, LARGEST, HOTTEST = 16, 512, 100.0, 5.0
"""Edits of a feature, new tokens, amount and temperature that are allowed."""
_FOUND = 8


class _Stopped(Exception):
    """Nobody listens any more."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the form: what is done to a feature, or to all.

    Attributes:
        verb: as `parse_change` has it.
        feature: its number; None for all.
        amount: where the verb takes one.
        other: the feature it is swapped with.
    """

    verb: str
    feature: int | None = None
    amount: float | None = None
    other: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What an address of the page asks for.

    Attributes:
        steps: the edit's changes, for the form.
        edit: what is done while the model writes.
        positions: where, as `parse_positions` takes it.
        through: whether to write through the dictionary as well.
        prompt: to continue.
        temperature: 0 takes the likeliest token each time.
        seed: of the draw.
        tokens: to write.
    """

    steps: list[Step]
    edit: FeatureEdit
    positions: str
    through: bool
    prompt: str
    temperature: float
    seed: int
    tokens: int

    @classmethod
    def read(cls, asked: Mapping[str, str], run: OpenRun) -> Asked:
        """Read an address or a form.

        Raises:
            UserError: a field is not allowed, a feature is not there or never fired.
        """
        written = _written(asked)
        changes = [parse_change(text) for text in written]
        steps = [step for pair in zip(written, changes, strict=True) for step in _steps(*pair)]
        _check(steps)
        positions = asked.get("positions") or "all"
        error = asked.get("error") or "keep"
        if error not in get_args(ErrorTerm):
            raise UserError(f"`error` is {error[:40]!r}", "allowed: keep, drop")
        return cls(
            steps,
            FeatureEdit(
                run.dictionary, changes, parse_positions(positions), cast(ErrorTerm, error)
            ),
            positions,
            bool(asked.get("through")),
            text(asked, "prompt"),
            number(asked, "temperature", 0.0, 0.0, HOTTEST),
            whole(asked, "seed", 0, 0, 2**31 - 1),
            whole(asked, "tokens", 60, 1, MOST_TOKENS),
        )


def _written(asked: Mapping[str, str]) -> list[str]:
    """Return the edits asked for, in words; `features=28:0.7,30:-0.5` clamps."""
    clamped = asked.get("features", "").strip().strip(",").replace(":", "=")
    first = [f"clamp {clamped}"] if clamped else []
    return first + split_edits(asked.get("edits", ""))


def _steps(written: str, change: Change) -> list[Step]:
    verb = written.partition(" ")[0]
    if isinstance(change, SuppressAll):
        return [Step(verb, amount=change.factor)]
    if isinstance(change, Swap):
        return [Step(verb, change.a, other=change.b)]
    if isinstance(change, Amounts):
        return [Step(verb, feature, amount) for feature, amount in change.by.items()]
    return [Step(verb, feature) for feature in change.features]


def _check(steps: Sequence[Step]) -> None:
    if len(steps) > MOST_STEPS:
        raise UserError(f"{len(steps)} edits are asked for", f"allowed: up to {MOST_STEPS}")
    for step in steps:
        if step.amount is not None and abs(step.amount) > LARGEST:
            raise UserError(
                f"`{step.verb}` by {step.amount:g}", f"allowed: {-LARGEST:g} to {LARGEST:g}"
            )


@router.get("/steer")
def steer(request: Request, run: ThisRun) -> Response:
    """Show the form, filled in as the address says; a script asks for the text."""
    asked = Asked.read(request.query_params, run)
    return page(
        "steer.html",
        request,
        run,
        title="Steering",
        asked=asked,
        prompt=asked.prompt or _example(run),
        called={
            f: _called(run, f) for f in (step.feature for step in asked.steps) if f is not None
        },
        most_tokens=MOST_TOKENS,
        largest=LARGEST,
        hottest=HOTTEST,
    )


@router.get("/steer/features")
def features(run: ThisRun, q: str = "") -> Response:
    """Return features by number or by words, for the form: those that can be steered by."""
    if q.strip().isdecimal():
        run.dictionary.check_scales({int(q): 1.0})
        found = [int(q)]
    else:
        found = [hit.feature for hit in run.features.index.search(q, 4 * _FOUND)]
        found = [f for f in found if run.dictionary.strength[f] > 0][:_FOUND]
    return JSONResponse([{"feature": f, "called": _called(run, f)} for f in found])


@router.post("/steer/text")
def write(run: ThisRun, form: Form) -> Response:
    """Stream the texts as lines of JSON.

    `{"waiting": true}` while another request has the model, `{"side": ..., "text": ...}` after each
    token with all that is written so far, and at the end `{"said": ..., "figures": [...],
    "edited": ...}`, the last being the edited text's tokens, and on which the edit acted, or
    `{"error": ..., "hint": ...}`. Whoever hangs up stops the model.
    """
    asked = Asked.read(form, run)
    lines = _lines(run, asked)
    return StreamingResponse(lines, media_type="application/x-ndjson")


async def _lines(run: OpenRun, asked: Asked) -> AsyncIterator[str]:
    loop, stopped = asyncio.get_running_loop(), Event()
    lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def say(line: dict[str, Any] | None) -> None:
        if stopped.is_set():
            raise _Stopped
        loop.call_soon_threadsafe(lines.put_nowait, line)

    # A thread of its own: those of the server must not all wait for the model.
    Thread(target=_write, args=(run, asked, say), daemon=True).start()
    try:
        while (line := await lines.get()) is not None:
            yield json.dumps(line) + "\n"
    finally:
        stopped.set()


def _write(run: OpenRun, asked: Asked, say: Callable[[dict[str, Any] | None], None]) -> None:
    """Write the texts, in a thread; hangs up when what it says is not listened to."""
    try:
        if run.model.locked():
            say({"waiting": True})
        with run.model:
            say({"waiting": False})
            found = steer_measured(
                run.lm,
                asked.edit,
                asked.prompt,
                through=asked.through,
                max_new_tokens=asked.tokens,
                temperature=asked.temperature,
                seed=asked.seed,
                heard=lambda side, so_far: say({"side": side, "text": so_far}),
            )
        edited = asdict(found["steered"].written)
        say({"said": said(found), "figures": figures(found), "edited": edited})
        say(None)
    except _Stopped:
        pass
    except UserError as error:
        say({"error": error.message, "hint": error.hint})
        say(None)


def said(found: Mapping[str, Measured]) -> str:
    """Say what an edit did to the likelihood of the text, in a sentence."""
    original, steered = found["original"], found["steered"]
    if not any(steered.written.touched):
        return "The edit acts on no token, so it changed nothing."
    if original.written.text == steered.written.text:
        return "The edit changed nothing that is written: both texts are the same."
    lost = original.by_original - steered.by_original
    verb = "less" if lost >= 0 else "more"
    return (
        f"The model as it is finds the edited text {figure(abs(lost))} nats a token {verb} likely "
        "than its own."
    )


def figures(found: Mapping[str, Measured]) -> list[list[str]]:
    """Return rows: what is measured, and its value for each text."""

    def row(name: str, value: Callable[[Measured], str]) -> list[str]:
        return [name, *map(value, found.values())]

    def signed(value: float) -> str:
        return figure(value).replace("-", "\N{MINUS SIGN}")

    known = [n for n in (1, 2, 3) if not any(math.isnan(m.distinct[n]) for m in found.values())]
    return [
        row("log-probability, model as it is", lambda m: signed(m.by_original)),
        row("log-probability, edited model", lambda m: signed(m.by_steered)),
        row("tokens written", lambda m: str(len(m.written.tokens) - m.written.prompt)),
        *[[f"distinct-{n}", *(percent(m.distinct[n]) for m in found.values())] for n in known],
    ]


def _called(run: OpenRun, feature: int) -> str:
    try:
        return labels(run.features.index, [feature])[0]
    except UserError:  # steering needs no index
        return ""


def _example(run: OpenRun) -> str:
    """Return the first lines of some text of the index, to try."""
    try:
        begin = run.features.index.text.text(0)[:160]
    except (UserError, IndexError):
        return ""
    return begin[: begin.rfind("\n") + 1] or begin
