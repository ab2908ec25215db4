"""Every signature of the package checked at run time, shapes included, at half of jaxtyping's cost.

`jaxtyping.jaxtyped` looks at arguments twice, before the call and again with the result, and binds
them to the signature besides: in small steps that takes longer than the work. Here a function is
checked by beartype once, in a scope in which jaxtyping remembers sizes; one without arrays in its
signature needs no scope.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
_theirs = jaxtyping.jaxtyped
_SCOPE, _NO_SCOPE = _theirs("context"), contextlib.nullcontext()
_SUSPENDED = (
    inspect.isgeneratorfunction,
    inspect.iscoroutinefunction,
    inspect.isasyncgenfunction,
)


def install(package: str) -> None:
    """Check what is imported of a package from here on."""
    jaxtyping.jaxtyped = _jaxtyped  # the decorator that the hook puts everywhere
    jaxtyping.install_import_hook(package, None)


def _jaxtyped(*, typechecker: object) -> Callable[[Any], Any]:
    return checked


def checked(made: Any) -> Any:
    """Return a function, or a dataclass, that checks what it is called with and gives back."""
    if inspect.isclass(made):
        own = vars(made).get("__init__")
        if dataclasses.is_dataclass(made) and not hasattr(own, "__wrapped__") and own is not None:
            made.__init__ = checked(own)
        return made
    if any(suspends(made) for suspends in _SUSPENDED):  # sizes would be remembered elsewhere
        return _theirs(made, typechecker=_check)
    hints = {name: _resolved(hint, made) for name, hint in made.__annotations__.items()}
    made.__annotations__ = hints
    look, scope = _check(made), _SCOPE if any(map(_has_shape, hints.values())) else _NO_SCOPE

    @functools.wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return made(*args, **kwargs)
        with scope:
            return look(*args, **kwargs)

    return call


def _resolved(hint: Any, of: Callable[..., Any]) -> Any:
    """Return what an annotation stands for; anything, if it is there for mypy alone."""
    try:
        found = SimpleNamespace(__annotations__={"hint": hint})
        return typing.get_type_hints(found, of.__globals__, include_extras=True)["hint"]
    except Exception:
        return Any


def _has_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, typing.get_args(hint)))
