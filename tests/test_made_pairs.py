"""Pairs made from the standard library: each a flaw where it says so, and nothing else."""

from __future__ import annotations

import ast
import difflib
import re
from collections import Counter

import pytest

from monosemy.corpus import open_corpus, read_pairs
from monosemy.corpus.edits import Source, edited, sites, tree_of
from monosemy.corpus.flaws import FLAWS
from monosemy.corpus.made_pairs import CHANGES, MadePair, made_pairs
from monosemy.corpus.refactorings import REFACTORINGS
from monosemy.corpus.stdlib import stdlib_documents


def changed(kind: str, text: str) -> list[str]:
    """Every way to make a kind of change in a function."""
    source = Source(text)
    (function, _), *_ = source.functions()
    change = CHANGES[kind]
    here = [s for s in sites(source, function) if isinstance(s.node, change.nodes)]
    return [edited(text, edits) for site in here for edits in change.find(site)]


def body(*lines: str) -> str:
    return "def f(a, b=None):\n" + "".join(f"    {line}\n" for line in lines)


GUARD = ("if {}:", "    raise ValueError('é')", "return a")
EXAMPLES = {
    "CWE-20 validation removed": (body("assert a", "return b"), body("return b")),
    "CWE-22 path not made safe": (
        body("return os.path.basename(a)  # é"),
        body("return a  # é"),
    ),
    "CWE-78 through a shell": (
        body("subprocess.run(['ls', a], check=True)"),
        body("subprocess.run(['ls', a], check=True, shell=True)"),
    ),
    "CWE-95 eval of input": (body("x = 'é'; return int(a)"), body("x = 'é'; return eval(a)")),
    "CWE-129 bounds check removed": (
        body(*GUARD).replace("{}", "a >= len(b)"),
        body("return a"),
    ),
    "CWE-193 off by one": (body("return a < b"), body("return a <= b")),
    "CWE-390 exception swallowed": (
        body("try:", "    a()", "except OSError:", "    b()", "    raise"),
        body("try:", "    a()", "except OSError:", "    pass"),
    ),
    "CWE-394 value not returned": (body("return (a +", "    b)"), body("(a +", "    b)")),
    "CWE-396 too broad an except": (
        body("try:", "    a()", "except (A, B):", "    pass"),
        body("try:", "    a()", "except:", "    pass"),
    ),
    "CWE-476 None check removed": (
        body("if a is None:", "    return  # none", "return a.b"),
        body("return a.b"),
    ),
    "CWE-480 and for or": (body("return (a) and b"), body("return (a) or b")),
    "CWE-665 mutable default": (
        body("return b"),
        body("return b").replace("b=None", "b=[]"),
    ),
    "CWE-667 lock not taken": (
        body("with self._lock:", "    a()", "", "    # then", "    return b"),
        body("a()", "", "# then", "return b").replace("    \n", "\n"),
    ),
    "CWE-682 wrong arithmetic": (body("return a // b"), body("return a / b")),
    "CWE-683 arguments swapped": (body("return g(a, b.c)"), body("return g(b.c, a)")),
    "CWE-688 wrong variable": (body("return g(a, 1)"), body("return g(b, 1)")),
    "CWE-697 comparison inverted": (body("return a not in b"), body("return a in b")),
    "CWE-772 resource not closed": (
        body("with open(a) as f:", "    return f.read()"),
        body("f = open(a)", "return f.read()"),
    ),
    "CWE-798 hard-coded credential": (
        body("self.password = a"),
        body('self.password = "hunter2"'),
    ),
    "CWE-835 loop without end": (
        body("while a:", "    a -= 1", "    b()"),
        body("while a:", "    b()"),
    ),
    "CWE-1025 None by equality": (body("return a is not None"), body("return a != None")),
    "comment changed": (body("# one two", "return a"), body("# two one", "return a")),
    "comparison flipped": (body("return a < b.c"), body("return b.c > a")),
    "message reworded": (body("raise E('not that one')"), body("raise E('that not one')")),
    "statements reordered": (body("x = a", "y = b", "g()"), body("y = b", "x = a", "g()")),
    "variable renamed": (body("x = a", "return x.x"), body("item = a", "return item.x")),
}


def test_there_is_an_example_of_every_kind() -> None:
    assert EXAMPLES.keys() == CHANGES.keys() and len(FLAWS) >= 12
    assert all(re.match(r"CWE-\d+ ", kind) for kind in FLAWS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_each_kind_is_what_it_says(kind: str) -> None:
    before, after = EXAMPLES[kind]
    assert after in changed(kind, before)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("statements reordered", body("x = a", "y = x")),
        ("statements reordered", body("x = a", "x = b")),
        ("statements reordered", body("x = a()", "y = b()")),
        ("variable renamed", body("global x", "x = a")),
        ("variable renamed", body("x = a", "return lambda: x")),
        ("variable renamed", body("a = 1", "return a")),
        ("comment changed", body('x = """', "# no comment", '"""')),
        ("CWE-667 lock not taken", body("with lock:", '    """', "text", '    """')),
        ("CWE-129 bounds check removed", body("if a < b: return a", "else: return b")),
        ("CWE-78 through a shell", body("subprocess.run(a, shell=False)")),
    ],
)
def test_what_would_be_more_or_less_than_that_is_left_alone(kind: str, text: str) -> None:
    assert changed(kind, text) == []


@pytest.fixture(scope="module")
def made() -> list[MadePair]:
    return list(made_pairs(most=20))


def test_at_least_twelve_kinds_of_flaw_have_pairs_enough(made: list[MadePair]) -> None:
    counts = Counter(pair.kind for pair in made)
    assert len([kind for kind in FLAWS if counts[kind] >= 16]) >= 12
    assert all(counts[kind] >= 16 for kind in REFACTORINGS) and max(counts.values()) == 20
    files = {kind: {p.file for p in made if p.kind == kind} for kind in counts}
    assert all(len(found) > 2 for found in files.values())


def test_pairs_parse_differ_and_keep_every_other_line(made: list[MadePair]) -> None:
    texts = {document.id: document.text for document in stdlib_documents()}
    for pair in made:
        before, after = tree_of(pair.before), tree_of(pair.after)
        assert before is not None and after is not None
        assert pair.before != pair.after and pair.after.strip() in texts[pair.file]
        same = ast.dump(before) == ast.dump(after)
        assert same == (pair.kind == "comment changed"), pair
        lines = difflib.SequenceMatcher(
            None, pair.before.splitlines(), pair.after.splitlines(), autojunk=False
        )
        # A renamed variable may be everywhere; a block's body moves; the rest is local.
        if pair.kind not in ("variable renamed", "CWE-667 lock not taken"):
            assert lines.ratio() > 0.3, pair
    assert len({(p.kind, p.file, p.name) for p in made}) == len(made)


def test_the_seed_decides(made: list[MadePair]) -> None:
    other = next(made_pairs(seed=1, most=20))
    assert (other.kind, other != made[0]) == (made[0].kind, True)


def test_the_builtin_pairs_are_pairs_like_others(made: list[MadePair]) -> None:
    found = list(read_pairs("builtin:stdlib"))
    assert (found[0].before.text, found[0].after.text) == (made[0].before, made[0].after)
    labels = {pair.label for pair in found}
    assert labels == {*FLAWS, "control"}
    assert len({pair.before.id for pair in found}) == len(found)
    assert all(pair.before.id.startswith(pair.group) for pair in found)
    # Those of seldom kinds alone come from files that are not held out.
    held_out = [pair.before.is_held_out() for pair in found]
    assert sum(held_out) > 0.6 * len(found)
    assert all(CHANGES[p.rest["kind"]].seldom or p.before.is_held_out() for p in found)


def test_they_can_be_opened_as_a_corpus() -> None:
    document = next(open_corpus("pairs:builtin:stdlib").documents("held_out"))
    assert document.id.endswith("/before")
