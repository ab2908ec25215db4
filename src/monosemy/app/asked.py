"""What addresses and forms ask for, read and held against what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from monosemy.errors import UserError

_LONGEST = 2**20
"""Bytes of a form."""


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LONGEST:
            raise UserError("the form holds more than 1 MB", "send less text")
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


Form = Annotated[dict[str, str], Depends(_form)]
"""The fields of a form that was sent; of several of one name the last."""


def text(asked: Mapping[str, str], name: str) -> str:
    """Return a text, with its line breaks as they were before a form made them CR LF."""
    return asked.get(name, "").replace("\r\n", "\n")


def whole(asked: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Return a whole number.

    Raises:
        UserError: it is none, or out of bounds.
    """
    value = asked.get(name, "").strip() or str(default)
    if not value.lstrip("-").isdecimal() or not low <= int(value) <= high:
        raise UserError(f"`{name}` is {value[:40]!r}", f"allowed: whole numbers, {low} to {high}")
    return int(value)


def number(asked: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    """Return a number.

    Raises:
        UserError: it is none, or out of bounds.
    """
    value = asked.get(name, "").strip() or str(default)
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not low <= found <= high:
        raise UserError(f"`{name}` is {value[:40]!r}", f"allowed: numbers from {low:g} to {high:g}")
    return found
