"""Kinds of flaws, each a small edit of correct Python source that takes away what made it so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from monosemy.corpus.edits import Change, Edits, Site

_ORDER = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_INVERSE = {"==": "!=", "!=": "==", "in": "not in", "not in": "in", "is": "is not", "is not": "is"}
_ARITHMETIC = {"//": "/", "+": "-", "-": "+", "*": "//"}
_CONNECTIVE = {"and": "or", "or": "and"}
_LOCK = re.compile(r"lock|mutex|cond|semaphore", re.IGNORECASE)
_SECRET = re.compile(r"passw|pwd|secret|token$|auth|user$|credential", re.IGNORECASE)
_SECRETS = ('"hunter2"', '"letmein"', '"admin123"', '"s3cr3t"', '"changeme"')
_PROCESS = re.compile(r"(subprocess\.)?(Popen|run|call|check_call|check_output|spawn)")
_SAFE_PATH = re.compile(r"\bpath\.(basename|normpath|abspath|realpath)$")
_PARSERS = ("int", "float", "ast.literal_eval", "json.loads")
_LEAVES = (ast.Raise, ast.Return, ast.Continue, ast.Break)
_PLAIN = (ast.Name, ast.Attribute, ast.Constant)
_DEF = (ast.FunctionDef, ast.AsyncFunctionDef)


def _off_by_one(site: Site) -> Iterator[Edits]:
    node = site.node
    if isinstance(node, ast.Compare):
        yield from site.operators("<=|>=|<|>", _ORDER)
    elif site.name(node.func) == "range" and node.args:
        stop = node.args[min(1, len(node.args) - 1)]
        if isinstance(stop, ast.Name | ast.Call | ast.Attribute):
            yield site.replaced(stop, f"{site.source.of(stop)} + 1")


def _guard(site: Site) -> ast.expr | None:
    """Return the condition of an `if` that does nothing but leave."""
    node = site.node
    short = isinstance(node, ast.If) and not node.orelse and len(node.body) <= 2
    if not short or not site.source.of(node).startswith("if"):
        return None
    return node.test if isinstance(node.body[-1], _LEAVES) else None


def _is_bound(test: ast.expr) -> bool:
    ordered = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    return any(isinstance(n, ordered) for n in ast.walk(test))


def _is_about_none(test: ast.expr) -> bool:
    if isinstance(test, ast.UnaryOp) and isinstance(test.operand, ast.Name):
        return True
    return any(isinstance(n, ast.Constant) and n.value is None for n in ast.walk(test))


def _bounds_unchecked(site: Site) -> Iterator[Edits]:
    test = _guard(site)
    if test is not None and _is_bound(test):
        yield from site.removed()


def _none_unchecked(site: Site) -> Iterator[Edits]:
    test = _guard(site)
    if test is not None and _is_about_none(test) and not _is_bound(test):
        yield from site.removed()


def _not_validated(site: Site) -> Iterator[Edits]:
    test, node = _guard(site), site.node
    refuses = test is not None and isinstance(node.body[-1], ast.Raise)
    if isinstance(node, ast.Assert) or (
        refuses and test is not None and not _is_bound(test) and not _is_about_none(test)
    ):
        yield from site.removed()


def _swallowed(site: Site) -> Iterator[Edits]:
    body = site.node.body
    if not isinstance(body[0], ast.Pass) and body[0].lineno > site.node.lineno:
        yield [(site.source.span(body[0])[0], site.source.span(body[-1])[1], "pass")]


def _too_broad(site: Site) -> Iterator[Edits]:
    node = site.node
    named = node.type is not None and node.name is None
    if named and site.source.of(node.type) not in ("Exception", "BaseException"):
        yield [(site.source.span(node)[0], site.source.span(node.type)[1], "except")]


def _not_closed(site: Site) -> Iterator[Edits]:
    node = site.node
    if isinstance(node, ast.With):
        name, opened = node.items[0].optional_vars, site.source.of(node.items[0].context_expr)
        if name is not None and len(node.items) == 1 and re.search(r"open\w*\(", opened):
            yield from site.body_instead(f"{site.source.of(name)} = {opened}")
    elif isinstance(node.value, ast.Call) and site.name(node.value.func).endswith(".close"):
        yield from site.removed()


def _not_locked(site: Site) -> Iterator[Edits]:
    item = site.node.items[0]
    alone = len(site.node.items) == 1 and item.optional_vars is None
    if alone and _LOCK.search(site.source.of(item.context_expr)):
        yield from site.body_instead("")


def _through_shell(site: Site) -> Iterator[Edits]:
    node = site.node
    asked = any(k.arg in ("shell", None) for k in node.keywords)
    if node.args and not asked and _PROCESS.fullmatch(site.name(node.func)):
        end = max(site.source.span(n)[1] for n in [*node.args, *node.keywords])
        yield [(end, end, ", shell=True")]


def _evaluated(site: Site) -> Iterator[Edits]:
    node = site.node
    if len(node.args) == 1 and not node.keywords and site.name(node.func) in _PARSERS:
        yield site.replaced(node.func, "eval")


def _path_unchecked(site: Site) -> Iterator[Edits]:
    node = site.node
    if len(node.args) == 1 and _SAFE_PATH.search(site.name(node.func)):
        yield site.replaced(node, site.source.of(node.args[0]))


def _credential(site: Site) -> Iterator[Edits]:
    node = site.node
    name = node.arg if isinstance(node, ast.keyword) else site.name(node.targets[0])
    if _SECRET.search(name or "") and not isinstance(node.value, ast.Constant | ast.Lambda):
        for secret in _SECRETS:
            yield site.replaced(node.value, secret)


def _shared_default(site: Site) -> Iterator[Edits]:
    for default in [*site.node.args.defaults, *site.node.args.kw_defaults]:
        if isinstance(default, ast.Constant) and default.value is None:
            yield site.replaced(default, "[]")
            yield site.replaced(default, "{}")


def _no_return(site: Site) -> Iterator[Edits]:
    node = site.node
    if not isinstance(node.value, ast.Constant | None):
        yield site.without("return")


def _miscalculated(site: Site) -> Iterator[Edits]:
    node = site.node
    by_number = isinstance(node.right, ast.Constant) and isinstance(node.right.value, int)
    if isinstance(node.op, ast.FloorDiv) or (
        by_number and not isinstance(node.left, ast.Constant | ast.JoinedStr)
    ):
        yield from site.operators(r"//|\+|-|\*", _ARITHMETIC)


def _endless(site: Site) -> Iterator[Edits]:
    loops = [n for n in site.inside if isinstance(n, ast.While | ast.For)]
    if loops and isinstance(loops[-1], ast.While):
        yield from site.removed()


def _inverted(site: Site) -> Iterator[Edits]:
    node = site.node
    if isinstance(node, ast.Compare):
        yield from site.operators("==|!=|not in|in|is not|is", _INVERSE)
    elif isinstance(node.op, ast.Not):
        yield site.without("not")


def _wrong_connective(site: Site) -> Iterator[Edits]:
    yield from site.operators("and|or", _CONNECTIVE)


def _none_by_value(site: Site) -> Iterator[Edits]:
    right = site.node.comparators[0]
    if isinstance(right, ast.Constant) and right.value is None:
        yield from site.operators("is not|is", {"is": "==", "is not": "!="})


def _wrong_order(site: Site) -> Iterator[Edits]:
    for first, second in zip(site.node.args, site.node.args[1:], strict=False):
        if isinstance(first, _PLAIN) and isinstance(second, _PLAIN):
            yield site.swapped(first, second)


def _wrong_variable(site: Site) -> Iterator[Edits]:
    parameters = {a.arg for a in site.function.args.args} - {"self", "cls"}
    for argument in site.node.args:
        if isinstance(argument, ast.Name):
            for other in sorted(parameters - {argument.id}):
                yield site.replaced(argument, other)


FLAWS = {
    "CWE-20 validation removed": Change((ast.If, ast.Assert), _not_validated),
    "CWE-22 path not made safe": Change(
        (ast.Call,), _path_unchecked, r"path\.(base|norm|abs|real)"
    ),
    "CWE-78 through a shell": Change((ast.Call,), _through_shell, r"subprocess\.|Popen\(|spawn\("),
    "CWE-95 eval of input": Change((ast.Call,), _evaluated, r"\b(int|float)\("),
    "CWE-129 bounds check removed": Change((ast.If,), _bounds_unchecked),
    "CWE-193 off by one": Change((ast.Compare, ast.Call), _off_by_one),
    "CWE-390 exception swallowed": Change((ast.ExceptHandler,), _swallowed),
    "CWE-394 value not returned": Change((ast.Return,), _no_return),
    "CWE-396 too broad an except": Change((ast.ExceptHandler,), _too_broad),
    "CWE-476 None check removed": Change((ast.If,), _none_unchecked),
    "CWE-480 and for or": Change((ast.BoolOp,), _wrong_connective),
    "CWE-665 mutable default": Change(_DEF, _shared_default),
    "CWE-667 lock not taken": Change((ast.With,), _not_locked, r"with .*(lock|cond)"),
    "CWE-682 wrong arithmetic": Change((ast.BinOp,), _miscalculated),
    "CWE-683 arguments swapped": Change((ast.Call,), _wrong_order),
    "CWE-688 wrong variable": Change((ast.Call,), _wrong_variable),
    "CWE-697 comparison inverted": Change((ast.Compare, ast.UnaryOp), _inverted),
    "CWE-772 resource not closed": Change((ast.With, ast.Expr), _not_closed),
    "CWE-798 hard-coded credential": Change(
        (ast.Assign, ast.keyword), _credential, r"(passw|pwd|secret|auth|token|user)\w* ?= ?[a-z]"
    ),
    "CWE-835 loop without end": Change((ast.AugAssign, ast.Break), _endless, r"while (1|True):"),
    "CWE-1025 None by equality": Change((ast.Compare,), _none_by_value),
}
"""Each called by its number in the Common Weakness Enumeration and what is done."""
