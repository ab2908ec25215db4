"""The part of broken-off source that parses."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monosemy.corpus import parsable_part

SOURCE = '''def load(path):
    """Return
    what is there."""
    for line in open(path):
        try:
            if line > 3:
                yield [line,
                       0]
        except (OSError, ValueError) as error:
            raise Wrong(error)


class Wrong(Exception):
    pass
'''


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x = 1\n", "x = 1\n"),
        ("x = 1\ny = (", "x = 1"),
        ("def f(x):", "def f(x):"),
        ("def f(x):\n    for y in x:\n        z = [", "def f(x):\n    for y in x:"),
        ('def f(x):\n    """Return', 'def f(x):\n    """Return'),
        ("def f(x):\n    '''Return\n    it", "def f(x):\n    '''Return\n    it"),
        ("try:\n    x = 1\n    try:\n        y", "try:\n    x = 1\n    try:\n        y"),
        ("try:\n    x = 1\nexcept E:\n    y = ", "try:\n    x = 1\nexcept E:"),
        ("x = 1\ny = )\nz = 2\n", "x = 1"),
        (") x", ""),
        ("", ""),
    ],
)
def test_the_longest_beginning_is_found(text: str, part: str) -> None:
    closed, length = parsable_part(text)
    assert text[:length] == part
    assert closed.startswith(part)
    ast.parse(closed)


@given(st.integers(0, len(SOURCE)))
def test_nothing_but_the_last_lines_of_a_broken_text_is_lost(end: int) -> None:
    closed, length = parsable_part(SOURCE[:end])
    ast.parse(closed)
    assert length <= end
    assert SOURCE[length:end].count("\n") <= 2  # brackets over two lines


@given(st.text(alphabet="def x:()\n \"'try#=", max_size=60))
def test_whatever_the_text_what_is_returned_parses(text: str) -> None:
    closed, length = parsable_part(text)
    ast.parse(closed)
    assert closed.startswith(text[:length])
