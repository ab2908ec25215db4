"""Well-known public releases of dictionaries: where they are, and what their files do not say.

`releases.json` has a release under each name:

    repo, format, model   on the Hub; a name in `FORMATS`; Hub id
    widths, k, centred, normalise
                          where known
    dictionaries          groups of ids that are told alike, each
        ids               a pattern: `{0..11}` counts, `{a,b}` chooses, one inside another
        path, hookpoint, target, scale
                          how they follow from the id: `{id}` is the id, `{0}` the first number
                          in it, `{a}` and `{b}` what the pattern has after `|`, not of the id

Names of releases and ids are those of SAELens's registry where that has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from monosemy.errors import LISTED, UserError, nearest
from monosemy.formats.format import Given
from monosemy.formats.names import our_hookpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A dictionary of a release."""

    id: str
    path: str
    """Folder or file in the repository; "" is all of it."""
    hookpoint: str
    target: str | None
    scale: float | None

    @property
    def explains(self) -> str:
        """Where its hook point is, of a transcoder both."""
        return self.hookpoint if self.target is None else f"{self.hookpoint} -> {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Dictionaries that were published together."""

    name: str
    repo: str
    format: str
    model: str
    widths: tuple[int, ...]
    """Features of its dictionaries, as far as known."""
    k: int | None
    centred: bool | None
    normalise: str | None
    groups: tuple[dict[str, str], ...]

    def ids(self) -> list[str]:
        """Return the ids of its dictionaries."""
        return [text.partition("|")[0] for _, text in self._texts()]

    def entries(self) -> list[Entry]:
        """Return its dictionaries."""
        return [self._entry(group, text) for group, text in self._texts()]

    def entry(self, id: str) -> Entry:
        """Return one of its dictionaries.

        Raises:
            UserError: it has none of that id.
        """
        found = {text.partition("|")[0]: (group, text) for group, text in self._texts()}
        if id not in found:
            hint = nearest(id, found) or f"such as: {', '.join(list(found)[:LISTED])}"
            raise UserError(
                f"release `{self.name}` has no dictionary `{id}`"
                if id
                else f"which of the {len(found)} dictionaries of release `{self.name}` is not said",
                f"{hint}; all are listed by: monosemy releases {self.name}",
            )
        return self._entry(*found[id])

    def given(self, entry: Entry) -> Given:
        """Return what is known of a dictionary beside its files."""
        return Given(
            model=self.model,
            hookpoint=entry.hookpoint,
            target=entry.target,
            k=self.k,
            scale=entry.scale,
            centred=self.centred,
            normalise=self.normalise,
        )

    def _texts(self) -> Iterator[tuple[dict[str, str], str]]:
        """Yield each group with what its pattern stands for."""
        for group in self.groups:
            for text in expand(group["ids"]):
                yield group, text

    def _entry(self, group: dict[str, str], text: str) -> Entry:
        id, *extra = text.split("|")
        known = {"id": id, **dict(zip("ab", extra, strict=False))}
        numbers = re.findall(r"\d+", id)

        def told(field: str, default: str = "") -> str:
            return group.get(field, default).format(*numbers, **known)

        target, scale = told("target"), told("scale")
        return Entry(
            id=id,
            path=told("path", "{id}"),
            hookpoint=our_hookpoint(told("hookpoint", "{id}"), self.model),
            target=our_hookpoint(target, self.model) if target else None,
            scale=float(scale) if scale else None,
        )


@cache
def releases() -> dict[str, Release]:
    """Return all known releases by name."""
    text = files("monosemy.formats").joinpath("releases.json").read_text("utf-8")
    return {name: _release(name, values) for name, values in json.loads(text).items()}


def release_named(name: str) -> Release:
    """Return a release.

    Raises:
        UserError: none of that name is known.
    """
    known = releases()
    if name not in known:
        raise UserError(
            f"no release `{name}` is known",
            f"{nearest(name, known)} all are listed by: monosemy releases".strip(),
        )
    return known[name]


def _release(name: str, values: dict[str, Any]) -> Release:
    return Release(
        name=name,
        repo=values["repo"],
        format=values["format"],
        model=values["model"],
        widths=tuple(values.get("widths", ())),
        k=values.get("k"),
        centred=values.get("centred"),
        normalise=values.get("normalise"),
        groups=tuple(values["dictionaries"]),
    )


def expand(pattern: str) -> Iterator[str]:
    """Yield the texts that a pattern stands for, in order.

    `a{0..2}` is a0, a1, a2; `{x,y{1,2}}` is x, y1, y2.
    """
    begin = pattern.find("{")
    if begin < 0:
        yield pattern
        return
    end = _closing(pattern, begin)
    rests = list(expand(pattern[end + 1 :]))
    for choice in _choices(pattern[begin + 1 : end]):
        for middle in expand(choice):
            for rest in rests:
                yield pattern[:begin] + middle + rest


def _closing(pattern: str, begin: int) -> int:
    depth = 0
    for place in range(begin, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"`{pattern}` has no closing brace")


def _choices(inside: str) -> Iterator[str]:
    """Yield what stands between commas that are in no further braces; counts count."""
    depth, begin = 0, 0
    for place, sign in enumerate(inside + ","):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            choice, begin = inside[begin:place], place + 1
            counts = re.fullmatch(r"(\d+)\.\.(\d+)", choice)
            if counts:
                yield from map(str, range(int(counts[1]), int(counts[2]) + 1))
            else:
                yield choice
