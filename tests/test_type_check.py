"""What checks signatures in all other tests sees what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from type_check import checked


@checked
def add(a: Float[Tensor, "n m"], b: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    return a + b


@checked
def turn(a: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
    return a  # as if it were square


@checked
def twice(a: float) -> float:
    return 2 * a


@checked
def rows(a: Float[Tensor, "n m"], m: int) -> Iterator[Tensor]:
    yield from a


@checked
@dataclass(frozen=True, slots=True)
class Pair:
    a: Float[Tensor, " n"]
    b: Float[Tensor, " n"]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def test_what_fits_passes_whatever_the_sizes_before() -> None:
    for n in (1, 2, 3):
        assert add(zeros(n, 4), zeros(n, 4)).shape == (n, 4)
        assert turn(zeros(n, n)).shape == (n, n)
        assert len(list(rows(zeros(n, 4), 4))) == n
        assert Pair(zeros(n), zeros(n)).a.shape == (n,)
    assert twice(2) == 4  # an int will do


@pytest.mark.parametrize(
    "call",
    [
        lambda: add(zeros(2, 3), zeros(2, 4)),
        lambda: add(zeros(2, 3), zeros(2, 3).int()),
        lambda: add(zeros(2), zeros(2)),
        lambda: turn(zeros(2, 3)),
        lambda: twice("2"),
        lambda: rows(zeros(2), 2),
        lambda: rows(zeros(2, 2), 2.5),
        lambda: Pair(zeros(2), zeros(3)),
        lambda: Pair(zeros(2), [0.0, 0.0]),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(Exception, match=r"type|Type"):
        call()


def test_sizes_inside_a_call_are_its_own() -> None:
    @checked
    def outer(a: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        add(zeros(5, 6), zeros(5, 6))
        return a

    assert outer(zeros(2, 3)).shape == (2, 3)
