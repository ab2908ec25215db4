"""What the tokens of Python source say about its characters, the same on every Python."""

from __future__ import annotations

import io
import itertools
import keyword
import re
import token as kinds
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Marks = dict[str, list[tuple[int, int]]]
"""Stretches of characters, [from, to), found for each concept so far; they may overlap."""


class Token(NamedTuple):
    """A token of Python and its characters, [start, end)."""

    kind: int
    text: str
    start: int
    end: int

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.end


def read_tokens(text: str, starts: list[int]) -> list[Token]:
    """Return the tokens; an f-string is one STRING, as on Python 3.11, on later ones too.

    Args:
        text: source that parses, its lines ending in a line feed.
        starts: the character at which each line starts.

    Raises:
        tokenize.TokenError, SyntaxError: it has no tokens.
    """
    found = []
    depth = outer = 0
    for kind, word, begin, end, _ in tokenize.generate_tokens(io.StringIO(text).readline):
        if kind == kinds.ENDMARKER:
            break
        start = starts[begin[0] - 1] + begin[1]
        if kind in _OPENS_FSTRING:
            outer = outer if depth else start
            depth += 1
        elif kind in _CLOSES_FSTRING:
            depth -= 1
            if not depth:
                stop = starts[end[0] - 1] + end[1]
                found.append(Token(kinds.STRING, text[outer:stop], outer, stop))
        elif not depth:
            found.append(Token(kind, word, start, start + len(word)))
    return found


def mark_tokens(text: str, tokens: list[Token], marks: Marks) -> None:
    """Mark all that can be told without the syntax tree."""
    _mark_kinds(text, tokens, marks)
    _mark_lines(text, [token for token in tokens if token.kind not in _WHITE], marks)
    _mark_blocks(list(_logical_lines(text, tokens, marks)), marks)
    _Roles(marks).read(tokens)


def mark_docstring(
    text: str, start: int, end: int, parameters: frozenset[str], marks: Marks
) -> None:
    """Mark what is in a docstring.

    Args:
        text: the source.
        start: the docstring's first character, which is a prefix or quote.
        end: the character after its last.
        parameters: of the function that it documents.
        marks: where to add to.
    """
    marks["docstring"].append((start, end))
    opening, quote = _opening(text, start)
    if line := _FIRST_LINE.search(text, opening, end - len(quote)):
        marks["docstring_first_line"].append((line.start(), line.start() + len(line[0].rstrip())))
    for concept, pattern in _IN_DOCSTRINGS.items():
        marks[concept] += (found.span(1) for found in pattern.finditer(text, start, end))
    words = _WORD.finditer(text, start, end)
    marks["docstring_parameter"] += (word.span() for word in words if word[0] in parameters)


def _kinds_called(*names: str) -> frozenset[int]:
    """Return kinds of tokens that not every Python has."""
    return frozenset(getattr(kinds, name) for name in names if hasattr(kinds, name))


_OPENS_FSTRING = _kinds_called("FSTRING_START", "TSTRING_START")
_CLOSES_FSTRING = _kinds_called("FSTRING_END", "TSTRING_END")
_WHITE = frozenset({kinds.INDENT, kinds.DEDENT, kinds.NL, kinds.NEWLINE})


# --- one token at a time ----------------------------------------------------------------------

_OPENING = re.compile(r"([A-Za-z]*)('''|\"\"\"|'|\")")
_ESCAPE = re.compile(
    r"\\(?:[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|.)", re.DOTALL
)
_PLACEHOLDER = re.compile(
    r"%(?:\(\w+\))?[-#0+]*(?:\d+|\*)?(?:\.(?:\d+|\*))?[a-zA-Z](?!\w)"
    r"|\{[\w.\[\]]*(?:![rsa])?(?::[^{}\n'\"]*)?\}"
)
_FIELD_EDGE = re.compile(r"\\N\{[^}]*\}|[{}]")
_IN_FIELD = re.compile(r"[{}]|'''.*?'''|\"\"\".*?\"\"\"|'[^'\n]*'|\"[^\"\n]*\"", re.DOTALL)
_URL = re.compile(r"\b(?:https?|ftp)://[^\s'\"<>`)\]}]*[^\s'\"<>`)\]}.,;:]")
_TODO = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
_WORD = re.compile(r"\w+")
_CAMEL_CASE = re.compile(r"_*[A-Z]+[a-z0-9]\w*")
_EXCEPTION = re.compile(
    r"\w+(?:Error|Exception|Warning)|Exception|Warning|KeyboardInterrupt|SystemExit|StopIteration"
    r"|StopAsyncIteration|GeneratorExit"
)
_FIRST_LINE = re.compile(r"\S[^\n]*")
_IN_DOCSTRINGS = {
    "docstring_number": re.compile(r"(?<![\w.])(\d+(?:\.\d+)*)(?!\w)"),
    "docstring_section": re.compile(
        r"^[ \t]*("
        r"(?:Args|(?:Optional |Keyword )?Arguments|Parameters|Returns?|Return value|Raises|Yields"
        r"|Attributes|Methods|Options|Examples?|Usage|Notes?|See also):?[ \t]*$"
        r"|:(?:param|type|arg|returns?|rtype|raises?)\b[^:\n]*:)",
        re.MULTILINE | re.IGNORECASE,
    ),
    "doctest": re.compile(r"^[ \t]*((?:>>>|\.\.\.)(?: [^\n]*)?)$", re.MULTILINE),
}
_DELIMITERS = frozenset({*"()[]{},.:;", "..."})
_KINDS = {kinds.COMMENT: "comment", kinds.NUMBER: "number", kinds.STRING: "string"}


def _mark_kinds(text: str, tokens: list[Token], marks: Marks) -> None:
    for token in tokens:
        if token.kind == kinds.NAME:
            _mark_name(token, marks)
        elif token.kind == kinds.OP:
            if token.text not in _DELIMITERS:
                marks["operator"].append(token.span)
        elif token.kind == kinds.NEWLINE:
            if text.startswith("\n", token.start):  # else the text ends without
                marks["newline"].append((token.start, token.start + 1))
        elif token.kind in _KINDS:
            marks[_KINDS[token.kind]].append(token.span)
            if token.kind == kinds.NUMBER:
                _mark_number(token, marks)
            else:
                mark = _mark_string if token.kind == kinds.STRING else _mark_comment
                mark(text, token, marks)
                urls = _URL.finditer(text, token.start, token.end)
                marks["url"] += (url.span() for url in urls)


def _mark_name(token: Token, marks: Marks) -> None:
    name = token.text
    if keyword.iskeyword(name):
        marks["keyword"].append(token.span)
        return
    marks["name"].append(token.span)
    if len(name) == 1:
        marks["single_letter"].append(token.span)
    elif name.startswith("__") and name.endswith("__"):
        marks["dunder"].append(token.span)
    else:
        if name == "self":
            marks["self"].append(token.span)
        if name.startswith("_"):
            marks["private_name"].append(token.span)
        if name.isupper():
            marks["constant"].append(token.span)
        elif _CAMEL_CASE.fullmatch(name):
            marks["camel_case"].append(token.span)
        elif "_" in name.strip("_"):
            marks["snake_case"].append(token.span)
        if _EXCEPTION.fullmatch(name):
            marks["exception_name"].append(token.span)


def _mark_number(token: Token, marks: Marks) -> None:
    digits = token.text.lower()
    if digits.startswith(("0x", "0o", "0b")):
        marks["hex"].append(token.span)
    elif not digits.replace("_", "").isdigit():
        marks["float"].append(token.span)
    else:
        marks["int"].append(token.span)


def _mark_comment(text: str, token: Token, marks: Marks) -> None:
    if text[text.rfind("\n", 0, token.start) + 1 : token.start].strip():
        marks["trailing_comment"].append(token.span)
    if _TODO.search(token.text):
        marks["todo"].append(token.span)


def _mark_string(text: str, token: Token, marks: Marks) -> None:
    start, quote = _opening(text, token.start)
    end = token.end - len(quote)
    prefix = text[token.start : start].lower()
    marks["quote_open"].append((token.start, start))
    marks["quote_close"].append((end, token.end))
    marks[_QUOTES[quote]].append(token.span)
    if "b" in prefix:
        marks["bytes"].append(token.span)
    if "r" in prefix:
        marks["raw_string"].append(token.span)
    else:
        marks["escape"] += (found.span() for found in _ESCAPE.finditer(text, start, end))
    if "f" in prefix:
        marks["fstring"].append(token.span)
        marks["fstring_field"] += _fields(text, start, end)
    else:
        marks["placeholder"] += (found.span() for found in _PLACEHOLDER.finditer(text, start, end))


_QUOTES = {"'": "single_quoted", '"': "double_quoted"}
_QUOTES |= {quote * 3: "triple_quoted" for quote in "'\""}


def _opening(text: str, start: int) -> tuple[int, str]:
    """Return the first character after a string's prefix and quote, and the quote."""
    found = _OPENING.match(text, start)
    assert found is not None
    return found.end(), found[2]


def _fields(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the outermost replacement fields of an f-string, braces included."""
    at, depth, first = start, 0, start
    while edge := (_IN_FIELD if depth else _FIELD_EDGE).search(text, at, end):
        at = edge.end()
        if not depth and text[at : at + 1] == edge[0]:
            at += 1  # a doubled brace stands for one
        elif edge[0] == "{":
            first = first if depth else edge.start()
            depth += 1
        elif edge[0] == "}" and depth:
            depth -= 1
            if not depth:
                yield first, at


# --- lines ------------------------------------------------------------------------------------

_BLANK_LINE = re.compile(r"^[ \t\f]*\n", re.MULTILINE)


class _Line(NamedTuple):
    """A logical line, to the line break that ends it, and the number of its indents."""

    start: int
    end: int
    depth: int


def _mark_lines(text: str, words: list[Token], marks: Marks) -> None:
    """Mark by physical line; `words` are the tokens that are not white space."""
    marks["blank_line"] += (line.span() for line in _BLANK_LINE.finditer(text))
    for i, word in enumerate(words):
        if i == 0 or "\n" in text[words[i - 1].end : word.start]:
            marks["indentation"].append((text.rfind("\n", 0, word.start) + 1, word.start))
            marks["line_start"].append(_edges(text, word)[0])
    code = [word for word in words if word.kind != kinds.COMMENT]
    for i, word in enumerate(code):
        if i + 1 == len(code) or "\n" in text[word.end : code[i + 1].start]:
            marks["line_end"].append(_edges(text, word)[1])


def _edges(text: str, word: Token) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how a token begins and ends: a string with quotes, a comment with its sign."""
    if word.kind == kinds.STRING:
        start, quote = _opening(text, word.start)
        return (word.start, start), (word.end - len(quote), word.end)
    first = word.start + 1 if word.kind == kinds.COMMENT else word.end
    return (word.start, first), word.span


def _logical_lines(text: str, tokens: list[Token], marks: Marks) -> Iterator[_Line]:
    """Yield the lines; mark what follows the first physical line of each."""
    depth = 0
    line: list[Token] = []
    for token in tokens:
        if token.kind in (kinds.INDENT, kinds.DEDENT):
            depth += 1 if token.kind == kinds.INDENT else -1
        elif token.kind == kinds.NEWLINE:
            yield _Line(line[0].start, token.start, depth)
            for before, word in itertools.pairwise(line):
                if "\n" in text[before.end : word.start]:
                    marks["continuation_line"].append((word.start, token.start))
                    break
            line = []
        elif token.kind != kinds.NL and (line or token.kind != kinds.COMMENT):
            line.append(token)


def _mark_blocks(lines: list[_Line], marks: Marks) -> None:
    """Mark how deep lines are indented, and those with which a block begins or ends."""
    for depth, run in itertools.groupby(lines, lambda line: min(line.depth, 4)):
        if depth:
            members = list(run)
            marks[f"depth_{depth}"].append((members[0].start, members[-1].end))
    for before, line in itertools.pairwise(lines):
        if line.depth > before.depth:
            marks["block_start"].append((line.start, line.end))
        elif line.depth < before.depth:
            marks["block_end"].append((before.start, before.end))
    if lines and lines[-1].depth:
        marks["block_end"].append((lines[-1].start, lines[-1].end))


# --- what part a token plays ------------------------------------------------------------------

_KEYWORDS = {
    "and": "and_or",
    "or": "and_or",
    "async": "async",
    "await": "async",
    "break": "break_continue",
    "continue": "break_continue",
    "True": "true_false",
    "False": "true_false",
    "None": "none",
}
_BLOCK_LEADERS = frozenset(
    {"def", "class", "if", "elif", "else", "for", "while", "try", "except", "finally", "with"}
)
_SOFT_LEADERS = frozenset({"match", "case"})
_BRACKETS = {
    "(": "open_paren",
    ")": "close_paren",
    "[": "open_bracket",
    "]": "close_bracket",
    "{": "open_brace",
    "}": "close_brace",
}
_COMPARISONS = frozenset({"==", "!=", "<", ">", "<=", ">="})
_ARITHMETIC = frozenset({"+", "-", "*", "/", "//", "%", "**", "@"})
_COLONS = {"parameters": "annotation_colon", "bases": "annotation_colon"}
_COLONS |= {"[": "slice_colon", "{": "dict_colon"}
_NOTHING = Token(kinds.NEWLINE, "", 0, 0)


@dataclass(slots=True)
class _Level:
    """A bracket that is open, or, at the bottom, a statement."""

    role: str
    """The bracket, or `parameters` of a def, `bases` of a class, `statement`."""
    start: int = 0
    lambdas: int = 0
    """Lambdas whose colon is to come."""
    awaits_in: bool = False
    """A `for` whose `in` is to come."""
    comprehension: bool = False


class _Roles:
    """Goes over the tokens in order, knows statement and brackets, and marks by them."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.leader = _NOTHING  # the first word of the statement
        self.closed = ""  # the role of the bracket that was closed last
        self.since = 0  # where the stretch of this depth of brackets began
        self._begin_statement()

    def _begin_statement(self) -> None:
        self.levels = [_Level("statement")]
        self.last = self.before_last = _NOTHING
        self.fresh = True  # the next word begins a statement
        self.importing = ""  # else `module` or `names`, whichever comes now

    def _mark(self, concept: str, token: Token) -> None:
        self.marks[concept].append(token.span)

    def read(self, tokens: list[Token]) -> None:
        for token in tokens:
            if token.kind == kinds.NEWLINE:
                self._begin_statement()
            elif token.kind not in _WHITE and token.kind != kinds.COMMENT:
                self._word(token)
                self.before_last, self.last = self.last, token

    def _word(self, token: Token) -> None:
        if self.fresh:
            self.leader = token
        fresh, self.fresh = self.fresh, self.fresh and token.text == "async"
        if token.kind == kinds.OP:
            self._sign(token)
        elif token.kind == kinds.NAME and keyword.iskeyword(token.text):
            self._keyword(token, fresh)
        elif token.kind == kinds.NAME:
            self._name(token)

    def _keyword(self, token: Token, fresh: bool) -> None:
        level, concept = self.levels[-1], _KEYWORDS.get(token.text, token.text)
        match token.text:
            case "if" if not fresh:
                concept = "comprehension_if" if level.comprehension else "conditional"
            case "else" if not fresh:
                concept = "conditional"
            case "for":
                concept = "loop_for" if fresh else "comprehension_for"
                level.awaits_in, level.comprehension = True, not fresh
            case "in":
                concept = "loop_in" if level.awaits_in else "in_operator"
                level.awaits_in = False
            case "lambda":
                level.lambdas += 1
            case "import":
                self.importing = "module" if fresh else "names"
            case "from" if fresh:
                self.importing = "module"
            case "from":
                return
        if concept in self.marks:
            self._mark(concept, token)

    def _name(self, token: Token) -> None:
        before = self.last.text
        if before == "def":
            self._mark("function_name", token)
        elif before == "class":
            self._mark("class_name", token)
        elif self.importing == "names" or (self.importing and before == "as"):
            self._mark("imported_name", token)
        elif self.importing:
            self._mark("module_name", token)
        elif before == ".":
            self._mark("attribute", token)
            if self.before_last.text == "self":
                self._mark("self_attribute", token)

    def _sign(self, token: Token) -> None:
        sign = token.text
        if sign in _BRACKETS:
            self._mark(_BRACKETS[sign], token)
            if sign in "([{":
                self._open(token)
            else:
                self._close(token)
        elif sign == ":":
            self._colon(token)
        elif sign == ";":
            self._begin_statement()
        elif sign == ",":
            self._mark("comma", token)
        elif sign == ".":
            if not self.importing:
                self._mark("dot", token)
        elif sign == "=":
            level = self.levels[-1]
            plain = len(self.levels) == 1 and not level.lambdas
            self._mark("assign" if plain else "argument_equals", token)
        else:
            self._operator(token)

    def _open(self, token: Token) -> None:
        role = token.text
        if self.before_last.text == "def":
            role = "parameters"
        elif self.before_last.text == "class":
            role = "bases"
        elif self.last.text == "]" and self.closed in ("parameters", "bases"):
            role = self.closed  # after type parameters
        self._end_depth(token.start)
        self.levels.append(_Level(role, token.start))
        self.since = token.start

    def _close(self, token: Token) -> None:
        self._end_depth(token.end)
        level = self.levels.pop()
        if level.role == "parameters":
            self.marks["signature"].append((level.start, token.end))
        self.closed = level.role
        self.since = token.end

    def _end_depth(self, end: int) -> None:
        """Mark the stretch that was in as many brackets as are open now."""
        if depth := min(len(self.levels) - 1, 3):
            self.marks[f"brackets_{depth}"].append((self.since, end))

    def _colon(self, token: Token) -> None:
        level = self.levels[-1]
        if level.lambdas:
            level.lambdas -= 1
        elif level.role != "statement":
            self._mark(_COLONS[level.role], token)
        elif self.leader.text in _BLOCK_LEADERS or (
            self.leader.text in _SOFT_LEADERS and self.last is not self.leader
        ):
            self._mark("block_colon", token)
            self._begin_statement()
        else:
            self._mark("annotation_colon", token)

    def _operator(self, token: Token) -> None:
        sign, binary = token.text, _ends_operand(self.last)
        if sign in ("*", "**") and not binary:
            self._mark("star", token)
        elif sign in _ARITHMETIC and binary:
            self._mark("arithmetic", token)
            if sign == "%" and self.last.kind == kinds.STRING:
                self._mark("percent_format", token)
        elif sign in _COMPARISONS:
            self._mark("comparison", token)
        elif sign.endswith("=") and sign != ":=":
            self._mark("augmented_assign", token)


def _ends_operand(token: Token) -> bool:
    """Say whether an operator after this token stands between two values."""
    if token.kind == kinds.NAME:
        return not keyword.iskeyword(token.text) or token.text in ("True", "False", "None")
    return token.kind in (kinds.NUMBER, kinds.STRING) or token.text in (")", "]", "}", "...")
