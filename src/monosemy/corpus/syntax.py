"""What is true of each character of Python source: labels that need neither person nor model."""

from __future__ import annotations

import ast
import itertools
import re
import tokenize
import warnings

from monosemy.corpus.syntax_tokens import Marks, mark_tokens, read_tokens
from monosemy.corpus.syntax_tree import TreeMarks

CONCEPTS: dict[str, str] = {
    # kinds of token
    "name": "a name: an identifier that is no keyword",
    "keyword": "a reserved word, `True`, `False` and `None` among them",
    "operator": "a sign that computes, compares, assigns or unpacks, such as `+`, `==`, `=`, `->`",
    "number": "a number",
    "string": "a string of any kind, with its prefix and quotes",
    "comment": "a comment",
    "newline": "the line break that ends a statement",
    "indentation": "the white space before the first word or sign of a line",
    "blank_line": "a line of white space alone",
    "comma": "a comma",
    "dot": "the `.` before an attribute",
    # keywords
    "def": "the keyword `def`",
    "class": "the keyword `class`",
    "return": "the keyword `return`",
    "if": "the `if` of an if statement",
    "elif": "the keyword `elif`",
    "else": "the `else` of a statement",
    "conditional": "the `if` or `else` of a conditional expression",
    "loop_for": "the `for` of a loop",
    "loop_in": "the `in` of a loop or a comprehension",
    "while": "the keyword `while`",
    "break_continue": "`break` or `continue`",
    "comprehension_for": "the `for` of a comprehension",
    "comprehension_if": "the `if` of a comprehension",
    "in_operator": "the `in` that asks for membership, `not in` included",
    "is": "the operator `is`",
    "not": "the keyword `not`, `not in` and `is not` included",
    "and_or": "`and` or `or`",
    "import": "the keyword `import`",
    "from": "the `from` of an import",
    "as": "the keyword `as`",
    "try": "the keyword `try`",
    "except": "the keyword `except`",
    "finally": "the keyword `finally`",
    "raise": "the keyword `raise`",
    "assert": "the keyword `assert`",
    "with": "the keyword `with`",
    "pass": "the keyword `pass`",
    "lambda": "the keyword `lambda`",
    "yield": "the keyword `yield`",
    "async": "`async` or `await`",
    "true_false": "`True` or `False`",
    "none": "`None`",
    # names by their part
    "self": "the name `self`",
    "function_name": "the name that a `def` gives",
    "class_name": "the name that a `class` gives",
    "base_class": "a base class of a class that is defined",
    "parameter": "the name of a parameter where it is declared, in a `def` or a lambda",
    "parameter_use": "a use of a parameter of a function around it, `self` and `cls` left out",
    "called_name": "the name just before the brackets of a call",
    "method_call": "the attribute that is called",
    "builtin_call": "the name of a built-in function or type that is called",
    "attribute": "a name after a `.`",
    "self_attribute": "a name after `self.`",
    "keyword_argument": "the name of a keyword argument",
    "decorator_name": "what a decorator names, its arguments left out",
    "module_name": "the name of a module in an import",
    "imported_name": "a name that an import takes from a module or gives after `as`",
    "imported_name_use": "a use of a name that an import gives",
    "assignment_target": "what is assigned to",
    "loop_variable": "what a loop or a comprehension assigns to",
    # names by their spelling
    "dunder": "a name such as `__init__`",
    "private_name": "a name that begins with an underscore, but no dunder",
    "constant": "a name in capitals, of two characters or more",
    "camel_case": "a name such as `OrderedDict`",
    "snake_case": "a name such as `read_file`, with an underscore inside",
    "single_letter": "a name of one character",
    "exception_name": "the name of a built-in exception, or one that ends in `Error`, `Exception` "
    "or `Warning`",
    # signs
    "assign": "the `=` of an assignment",
    "argument_equals": "the `=` of a keyword argument or a default value",
    "augmented_assign": "a sign such as `+=`",
    "comparison": "one of `==`, `!=`, `<`, `>`, `<=`, `>=`",
    "arithmetic": "one of `+`, `-`, `*`, `/`, `//`, `%`, `**`, `@` between two values",
    "percent_format": "the `%` after a string",
    "star": "a `*` or `**` that collects or unpacks",
    "open_paren": "`(`",
    "close_paren": "`)`",
    "open_bracket": "`[`",
    "close_bracket": "`]`",
    "open_brace": "`{`",
    "close_brace": "`}`",
    "block_colon": "the colon before a block",
    "slice_colon": "the colon of a slice",
    "annotation_colon": "the colon before a type annotation",
    "dict_colon": "the colon between key and value of a dict",
    # numbers and strings
    "int": "an integer in decimal digits",
    "float": "a number with a decimal point, an exponent or a `j`",
    "hex": "a number that begins with `0x`, `0o` or `0b`",
    "single_quoted": "a string in `'`",
    "double_quoted": 'a string in `"`',
    "triple_quoted": "a string in three quotes",
    "quote_open": "the prefix and quotes that open a string",
    "quote_close": "the quotes that close a string",
    "bytes": "a string with the prefix `b`",
    "raw_string": "a string with the prefix `r`",
    "fstring": "a string with the prefix `f`",
    "fstring_field": "a replacement field of an f-string, from `{` to `}`",
    "escape": "a backslash and what it escapes, in a string",
    "placeholder": "a place to be filled in a string, such as `%s`, `%(name)d`, `{}`, `{name}`",
    "url": "an address that begins with http, https or ftp, in a string or comment",
    "error_message": "a string in a raise statement",
    # docstrings and comments
    "docstring": "inside a docstring",
    "module_docstring": "inside the docstring of a module",
    "class_docstring": "inside the docstring of a class",
    "function_docstring": "inside the docstring of a function",
    "docstring_first_line": "the first line with text in a docstring",
    "docstring_number": "a number in a docstring",
    "docstring_parameter": "a parameter's name in the docstring of its function",
    "docstring_section": "a heading such as `Returns:` or a field such as `:param x:` in a "
    "docstring, on a line's beginning",
    "doctest": "a line of a docstring that begins with `>>>` or `...`",
    "trailing_comment": "a comment after code on its line",
    "todo": "a comment with `TODO`, `FIXME`, `XXX` or `HACK`",
    # expressions
    "call_arguments": "the brackets of a call and what is in them",
    "comprehension": "inside a comprehension or generator expression",
    "lambda_expression": "inside a lambda",
    "conditional_expression": "inside `... if ... else ...`",
    "condition": "what an `if`, `elif`, `while` or conditional expression tests",
    "comparison_expression": "inside a comparison, `in` and `is` included",
    "subscript": "what stands in the brackets of a subscript",
    "slice": "inside a slice, such as `1:n`",
    "list_display": "inside a list that is written out",
    "tuple_display": "inside a tuple that is written out",
    "dict_display": "inside a dict that is written out",
    "dict_key": "a key in a dict that is written out",
    "default_value": "the default value of a parameter",
    "annotation": "a type annotation",
    # statements
    "import_statement": "inside an import",
    "return_statement": "inside a return statement",
    "raise_statement": "inside a raise statement",
    "assert_statement": "inside an assert statement",
    "decorator": "a decorator, from `@`",
    "signature": "the brackets of a `def` and what is in them",
    # blocks; each goes to the end of its last line
    "top_level": "a statement of the module that is no function or class",
    "class_body": "inside the body of a class",
    "function_body": "inside the body of a function",
    "method_body": "inside the body of a function that is directly in a class",
    "init_body": "inside the body of an `__init__`",
    "nested_function": "inside the body of a function that is defined in another",
    "generator_function": "inside the body of a function that yields",
    "async_function": "inside the body of an `async def`",
    "if_body": "what is done if the test of an `if` or `elif` holds",
    "else_body": "what the `else` of an if statement does",
    "for_body": "inside the body of a for loop",
    "while_body": "inside the body of a while loop",
    "with_body": "inside the body of a `with`",
    "try_body": "what is tried: between `try` and `except`",
    "except_body": "inside an exception handler",
    "finally_body": "inside a `finally`",
    "main_guard": 'an `if __name__ == "__main__"`, to its end',
    "block_start": "the first statement of an indented block, to the end of its line",
    "block_end": "the last line of code of an indented block",
    # depth and lines
    "depth_1": "indented one level",
    "depth_2": "indented two levels",
    "depth_3": "indented three levels",
    "depth_4": "indented four levels or more",
    "brackets_1": "in one pair of brackets, themselves included",
    "brackets_2": "in two pairs of brackets, the inner ones included",
    "brackets_3": "in three pairs of brackets or more",
    "line_start": "the first word or sign of a line; of a string the quotes, of a comment the `#`",
    "line_end": "the last word or sign of code on a line; of a string the quotes",
    "continuation_line": "what of a statement comes after its first line",
}
"""What can be said of the characters of Python source, by name."""


def syntax_spans(text: str) -> dict[str, list[tuple[int, int]]] | None:
    """Find where in Python source each concept of `CONCEPTS` is true.

    Python's own tokenizer and parser say so. What stands in the replacement fields of an f-string
    is not looked into, so that every version of Python finds the same.

    Args:
        text: source; its lines may end in any way that Python knows.

    Returns:
        For each concept, in the order of `CONCEPTS`, stretches of characters [from, to): sorted,
        none touching another. None for text that does not parse.
    """
    source = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    starts = list(itertools.accumulate((len(line) + 1 for line in source.split("\n")), initial=0))
    marks: Marks = {concept: [] for concept in CONCEPTS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes and the like in somebody's source
            tree = ast.parse(source)
        tokens = read_tokens(source, starts)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    mark_tokens(source, tokens, marks)
    TreeMarks(source, starts, tokens, marks).read(tree)
    merged = {concept: _merged(spans) for concept, spans in marks.items()}
    if len(source) == len(text):
        return merged
    place = _places(text)
    return {concept: [(place[a], place[b]) for a, b in spans] for concept, spans in merged.items()}


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort stretches, join those that overlap or touch, and leave out empty ones."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if start == end:
            continue
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _places(text: str) -> list[int]:
    """Return where in `text` each character stood before line ends were made one, and the end."""
    start = 1 if text.startswith("\ufeff") else 0
    lost = {found.end() - 1 for found in re.finditer("\r\n", text)}
    return [place for place in range(start, len(text) + 1) if place not in lost]
