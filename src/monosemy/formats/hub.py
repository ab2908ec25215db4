"""Dictionaries by the names they are known under: of a release, or of a repository of the hub."""

from __future__ import annotations

from dataclasses import fields

from monosemy.errors import UserError, nearest
from monosemy.formats.format import Given
from monosemy.formats.releases import releases
from monosemy.hub import Fetched, Place, fetch, hub_place


def find_on_hub(source: str, given: Given) -> tuple[Fetched, Given]:
    """Fetch what a name means; return it with what is known of it.

    Args:
        source: `release/id`, `owner/name` or `owner/name/folder`; any of them with `@revision`.
        given: what the user says, which goes before what is known of a release.

    Raises:
        UserError: no such name, or the hub does not give it.
    """
    release_name, _, id = source.partition("@")[0].strip("/").partition("/")
    if release_name in releases():
        release = releases()[release_name]
        entry = release.entry(id)
        place = Place(release.repo, entry.path, source.partition("@")[2] or None)
        return fetch(place), _first_of(given, release.given(entry))
    place_named = hub_place(source)
    if place_named is None:
        near = nearest(release_name, releases())
        raise UserError(
            f"nothing is at `{source}`",
            f"give a file or folder, a repository of the hub (`owner/name`), or a release that "
            f"`monosemy releases` lists. {near}".strip(),
        )
    return fetch(place_named), _first_of(given, _known(place_named))


def _known(place: Place) -> Given:
    """Return what is known of a place, where it is part of a release."""
    for release in releases().values():
        if release.repo == place.repo:
            for entry in release.entries():
                if entry.path == place.inside:
                    return release.given(entry)
    return Given()


def _first_of(said: Given, known: Given) -> Given:
    """Return what was said, and where nothing was, what is known."""
    values = {f.name: getattr(said, f.name) for f in fields(Given)}
    return Given(**{n: getattr(known, n) if v is None else v for n, v in values.items()})
