"""Steering: the model writes with features turned up or down, beside itself, as it goes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from monosemy.app.asked import Form, as_number, number, text, whole
from monosemy.app.columns import labels
from monosemy.app.pages import ThisRun, page
from monosemy.app.runs import OpenRun
from monosemy.errors import UserError
from monosemy.intervene import Written, write_both
from monosemy.report.numbers import figure, percent

router = APIRouter()

MOST_FEATURES, MOST_TOKENS, LARGEST, HOTTEST = 16, 512, 100.0, 5.0
"""Features, new tokens, strength and temperature that are allowed."""
_FOUND = 8


class _Stopped(Exception):
    """Nobody listens any more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an address of the page asks for.

    Attributes:
        scales: feature -> strength, in multiples of its largest activation.
        prompt: to continue.
        temperature: 0 takes the likeliest token each time.
        seed: of the draw.
        tokens: to write.
    """

    scales: dict[int, float]
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
        scales = parse_scales(asked.get("features", ""))
        run.dictionary.check_scales(scales)
        return cls(
            scales,
            text(asked, "prompt"),
            number(asked, "temperature", 0.0, 0.0, HOTTEST),
            whole(asked, "seed", 0, 0, 2**31 - 1),
            whole(asked, "tokens", 60, 1, MOST_TOKENS),
        )


def parse_scales(features: str) -> dict[int, float]:
    """Read `28:0.7,30:-0.5`: features and their strengths.

    Raises:
        UserError: it is not written so, or asks for too much.
    """
    scales: dict[int, float] = {}
    for item in filter(None, (item.strip() for item in features.split(","))):
        feature, _, scale = item.partition(":")
        strength = as_number(scale)
        if not feature.strip().isdecimal() or not abs(strength) <= LARGEST:
            raise UserError(
                f"`features` has {item[:40]!r}",
                f"write 28:0.7,30:-0.5: a feature, a colon and its strength, {-LARGEST:g} to "
                f"{LARGEST:g} times its largest activation",
            )
        if int(feature) in scales:
            raise UserError(f"`features` has feature {int(feature)} twice", "give it once")
        scales[int(feature)] = strength
    if len(scales) > MOST_FEATURES:
        raise UserError(f"`features` has {len(scales)} of them", f"allowed: up to {MOST_FEATURES}")
    return scales


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
        rows=[(feature, scale, _called(run, feature)) for feature, scale in asked.scales.items()],
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
    """Stream both texts as lines of JSON.

    `{"waiting": true}` while another request has the model, `{"side": ..., "text": ...}` after each
    token with all that is written so far, and at the end `{"said": ..., "figures": [...]}` or
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
    """Write both texts, in a thread; hangs up when what it says is not listened to."""
    try:
        if run.model.locked():
            say({"waiting": True})
        with run.model:
            say({"waiting": False})
            original, steered = write_both(
                run.lm,
                run.dictionary,
                asked.scales,
                asked.prompt,
                max_new_tokens=asked.tokens,
                temperature=asked.temperature,
                seed=asked.seed,
                heard=lambda side, so_far: say({"side": side, "text": so_far}),
            )
        say({"said": said(original, steered), "figures": figures(original, steered)})
        say(None)
    except _Stopped:
        pass
    except UserError as error:
        say({"error": error.message, "hint": error.hint})
        say(None)


def said(original: Written, steered: Written) -> str:
    """Say what steering did to the likelihood of the text, in a sentence."""
    if original.text == steered.text:
        return "Steering changed nothing: both texts are the same."
    lost = original.by_original - steered.by_original
    verb = "less" if lost >= 0 else "more"
    return (
        f"The model as it is finds the steered text {figure(abs(lost))} nats a token {verb} likely "
        "than its own."
    )


def figures(original: Written, steered: Written) -> list[tuple[str, str, str]]:
    """Return rows: what is measured, of the text as it is, of the steered text."""
    both = (original, steered)

    def row(name: str, values: list[str]) -> tuple[str, str, str]:
        return (name, values[0], values[1])

    def signed(value: float) -> str:
        return figure(value).replace("-", "\N{MINUS SIGN}")

    distinct = [
        row(f"distinct-{n}", [percent(one.distinct[n]) for one in both])
        for n in original.distinct
        if not any(math.isnan(one.distinct[n]) for one in both)
    ]
    return [
        row("log-probability, model as it is", [signed(one.by_original) for one in both]),
        row("log-probability, steered model", [signed(one.by_steered) for one in both]),
        row("tokens written", [str(one.tokens) for one in both]),
        *distinct,
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
