"""What `syntax_spans` finds, in sources whose true stretches are marked by hand."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monosemy.corpus import CONCEPTS, syntax_spans
from monosemy.corpus.stdlib import stdlib_documents

ROOT = Path(__file__).parent.parent

# A concept, and a source in which «...» is every stretch where it is true.
CASES = [
    # kinds of token
    ("name", "«x» = «f»(None, 3)  # y\n"),
    ("name", "«größe» = «match»\n"),
    ("keyword", "x = «None» «if» «not» y «else» «True»\n"),
    ("operator", "x «=» a.b[1] «+» (c, «-»d, ...)\n"),
    ("operator", "def f(«*»a: int) «->» int:\n    x «+=» a; (y «:=» z)\n"),
    ("number", "x = «12» + «0x1F» + «1e-3» + y2\n"),
    ("string", "x = a + «rb'b'»\n"),
    ("string", 'x = «f"a{b}c"»\n'),
    ("comment", "x = 1  «# one»\n«#»\n"),
    ("newline", "x = (1,\n  2)«\n»\n# no\ny = 3«\n»"),
    ("newline", "x = 1"),
    ("indentation", "if x:\n«    »y = (1,\n«  »2)\n«    »# c\n"),
    ("indentation", "if x:\n«\t»'''a\n  b'''\n«\t»y\n"),
    ("blank_line", "x = 1\n«\n  \n»y = '''\n«\n»'''\n"),
    ("comma", "f(a«,» b)\n"),
    ("dot", "from a.b import c\nx«.»y«.»z = 1.5\n"),
    # keywords
    ("def", "«def» f(): pass\n"),
    ("class", "«class» A: pass\n"),
    ("return", "def f():\n    «return» 1\n"),
    ("if", "«if» a: pass\nelif b: x = 1 if c else 2\ny = [d for d in e if d]\n"),
    ("elif", "if a: pass\n«elif» b: pass\n"),
    ("else", "for a in b: pass\n«else»: x = 1 if c else 2\n"),
    ("conditional", "if a: x = 1 «if» c «else» 2\nelse: y = [d for d in e if d]\n"),
    (
        "conditional",
        "x = [f(1 «if» a «else» 2) for a in b if a]\nfor i in j «if» k «else» l: pass\n",
    ),
    ("loop_for", "«for» a in [b for b in c]: pass\n"),
    ("loop_for", "async def f():\n    async «for» a in b: pass\n"),
    ("loop_in", "for a[b in c] «in» d in e: x = [y for y «in» z if y in z]\n"),
    ("while", "«while» a: pass\n"),
    ("break_continue", "while a:\n    «break»\n    «continue»\n"),
    ("comprehension_for", "for a in [b «for» b in c «for» d in b]: pass\n"),
    ("comprehension_if", "x = [a for a in b «if» a «if» (1 if c else d)]\nif e: pass\n"),
    ("in_operator", "for a in b: c = a «in» b or a not «in» [d for d in e]\n"),
    ("is", "a «is» b «is» not c\n"),
    ("not", "«not» a is «not» b «not» in c\n"),
    ("and_or", "a «and» b «or» c\n"),
    ("import", "«import» a\nfrom b «import» c\n"),
    ("from", "«from» b import c\ndef f():\n    yield from a\n    raise b from c\n"),
    ("as", "import a «as» b\nwith c «as» d: pass\n"),
    ("try", "«try»: pass\nexcept: pass\n"),
    ("except", "try: pass\n«except» A: pass\n"),
    ("finally", "try: pass\n«finally»: pass\n"),
    ("raise", "«raise» A\n"),
    ("assert", "«assert» a\n"),
    ("with", "«with» a: pass\n"),
    ("pass", "if a: «pass»\n"),
    ("lambda", "f = «lambda»: 1\n"),
    ("yield", "def f():\n    «yield» 1\n    «yield» from a\n"),
    ("async", "«async» def f():\n    «await» a\n"),
    ("true_false", "a = «True», «False», None\n"),
    ("none", "a = True, False, «None»\n"),
    # names by their part
    ("self", "def f(«self»):\n    «self».myself = 'self'\n"),
    ("function_name", "def «f»(a): pass\nasync def «g»(): f()\n"),
    ("class_name", "class «A»(B): pass\nA()\n"),
    ("base_class", "class A(«B», «c.D[E]», metaclass=F): pass\n"),
    ("parameter", "def f(«a», /, «b»: int = c, *«d», «e»=1, **«g»): return a\nh = lambda «i»: i\n"),
    (
        "parameter_use",
        "def f(self, a, b=a):\n    x = «a».a + c, self\n    g = lambda d: «d» + «a»\n",
    ),
    ("parameter_use", "def f(a):\n    a = 1\n    def g(b): return «a»[«b»]\na\n"),
    ("called_name", "«f» (x.«g»(y)(z)[h]())\n"),
    ("called_name", "@«f»(a)\nclass A(b): pass\nmatch (x):\n    case c: pass\n"),
    ("method_call", "a.b.«c»(d.«é»())(e())\n"),
    ("builtin_call", "«print»(«len»(a), b.len(c), int)\n"),
    ("attribute", "from a.b import c\nd.«e».«f» = ...\n"),
    ("self_attribute", "self.«a».b = c.self\n"),
    ("keyword_argument", "f(a, «b»=c, **d)\ndef g(h=1): pass\nclass I(«j»=k): pass\n"),
    ("decorator_name", "@«a.b»(c)\n@«d»\ndef f(): pass\n"),
    ("module_name", "import «a».«b» as c, «d»\nfrom .«e».«f» import g\n"),
    ("imported_name", "import a.b as «c», d\nfrom e import («f», «g» as «h»,\n  «i»)\n"),
    (
        "imported_name_use",
        "import a.b, c as d\nfrom e import f\n«a».b, c, «d»[«f»], e\ndef g():\n  «d»\n",
    ),
    ("assignment_target", "«a» = «b.c» = d\n«e[f]»: int = 1\n«g» += 2\n«h, i» = j\n"),
    ("loop_variable", "for «a, b» in c: pass\nd = {e for «e» in f for «g» in e}\n"),
    # names by their spelling
    ("dunder", "«__init__»(_a, __b, c__)\n"),
    ("private_name", "a.«_b» = «__c», __d__, _, e_\n"),
    ("constant", "«AB» + «A_1» + A + Ab + «_X»\n"),
    ("camel_case", "«OrderedDict»(«HTTPServer», «_Foo», URL, ordered, A)\n"),
    ("snake_case", "«read_file»(_private, READ_FILE, readFile, «_a_b», __a_b__)\n"),
    ("single_letter", "«a» + ab + «_»\n"),
    ("exception_name", "raise «ValueError» from errors.«OSError»\n"),
    ("exception_name", "try: pass\nexcept («KeyboardInterrupt», re.«PatternError»): pass\n"),
    # signs
    ("assign", "a «=» b «=» f(c=d)\ne: int «=» lambda x=1: x == 2\n"),
    ("argument_equals", "def f(a«=»1, *, b: int «=» 2): c = g(d«=»3)\nh = lambda x«=»1: x\n"),
    ("augmented_assign", "a «+=» b\nc «//=» d\ne = f != g\n"),
    ("comparison", "a «<» b «!=» c << d\n"),
    ("arithmetic", "a = -b «-» c «**» 2 «@» [1] «%» f(*d)\n"),
    ("arithmetic", "@a\ndef f(b, /, *, c=d «*» 2): return not -e\n*g, h = (i) «/» 'j'\n"),
    ("percent_format", "'%s' «%» a % b\n"),
    ("star", "def f(«*», a, «**»b): c(«*»d, «**»e)\nfrom g import «*»\nh * i\n«*»j, k = l\n"),
    ("open_paren", "f«(»a, «(»b), [c])\n"),
    ("close_paren", "f(a, (b«)», [c]«)»\n"),
    ("open_bracket", "«[»a«[»0]]\n"),
    ("close_bracket", "[a[0«]]»\n"),
    ("open_brace", "«{»1: «{»2}}\n"),
    ("close_brace", "{1: {2«}}»\n"),
    ("block_colon", "if a[b:c]«:» d: int = {e: f}\nelse«:» g = lambda: h\n"),
    ("block_colon", "match a«:»\n    case {'b': c}«:» pass\n"),
    ("slice_colon", "a[b«:»c«:»d, lambda: e] = {f: g}\n"),
    ("annotation_colon", "def f(a«:» int, b=lambda: c): d«:» int\nmatch«:» int = e[1:2]\n"),
    ("dict_colon", "a[1:2] = {b«:» c, d«:» lambda: e, **f}\n"),
    # numbers and strings
    ("int", "«1» + 0x1 + «1_000» + 1.5 + 2j\n"),
    ("float", "1 + «1.5» + «1e3» + «2j» + 0xE\n"),
    ("hex", "«0xE» + «0b1» + «0O7» + 0\n"),
    ("single_quoted", "«'a'» + \"b\" + '''c'''\n"),
    ("double_quoted", "'a' + «u\"b\"» + '''c'''\n"),
    ("triple_quoted", "'a' + \"b\" + «'''c\nd'''» + «\"\"\"e\"\"\"»\n"),
    ("quote_open", '«\'»a\' + «rb"""»b"""\n'),
    ("quote_close", '\'a«\'» + rb"""b«"""»\n'),
    ("bytes", "«b'a'» + 'b' + «Rb'c'»\n"),
    ("raw_string", "b'a' + «r'b'» + «Rb'c'»\n"),
    ("fstring", "f('f', «f'{a}'», «F'''{\nb}'''», «rf'{c}'»)\n"),
    ("fstring_field", "f'a«{b!r:{c}}»{{d}}{{«{e[\"}\"]}»}}' + '{f}'\n"),
    ("fstring_field", "f'\\N{EN DASH}it«{x}»s'\n"),
    ("escape", "'a«\\n»b«\\x41\\'»' + r'\\n' + b'«\\0»' + '«\\N{EN DASH}»'\n"),
    ("escape", "x = 'a«\\\n»b' \\\n + c\n"),
    ("placeholder", "'«%s» «%(a)d» 100% «{}» «{b.c!r:>3}» {{' % f'{d}' + '«%-5.2f»%%'\n"),
    ("url", "a = 'see «https://b.org/c?d=e», ok'  # «http://f.org»\n"),
    ("error_message", "raise A(«'b'», «f'{c}'», d)\ne('f')\n"),
    # docstrings and comments
    ("docstring", "«'''a\nb'''»\ndef f():\n    «r'c'»\n    'd'\nclass A: «'e'»\n'g'\n"),
    ("docstring", "def f(): return 'a'\n"),
    ("module_docstring", "# a\n«'b'»\nclass A: 'c'\n"),
    ("class_docstring", "'b'\nclass A:\n    «'c'»\n    def f(): 'd'\n"),
    ("function_docstring", "'b'\nclass A:\n    'c'\n    def f(): «'d'»\n"),
    (
        "docstring_first_line",
        "'''\n  «Do it.» \n\n  More.\n'''\ndef f():\n    r\"\"\"«Say»\"\"\"\n",
    ),
    ("docstring_number", "'''a «12», b2, «3.11».'''\nx = '4'\n"),
    ("docstring_parameter", "def f(a, *bc):\n    '''The «a» and «bc», not abc.'''\n    'a'\n"),
    ("docstring_section", "'''A.\n\n    «Args:»\n    a: Returns: b\n«:param c:» d\n'''\n"),
    ("doctest", "'''A.\n\n    «>>> f(1)»\n    «...     g»\n    2 >>> 1\n'''\n"),
    ("trailing_comment", "# a\nx = 1  «# b»\nif y:\n    # c\n    z\n"),
    ("todo", "«# TODO: a»\n# b todos\nx = 'TODO'  «# XXX»\n"),
    # expressions
    ("call_arguments", "f«(a, g(b))» + (c)\n"),
    ("comprehension", "«[a for a in b]», «{a: b for a, b in c}», f«(a for a in b)», [c]\n"),
    ("lambda_expression", "f(«lambda a: a + 1», b)\n"),
    ("conditional_expression", "a = «b if c else d», e\n"),
    ("condition", "if «a»: b\nelif «c»: d = e if «g» else h\nwhile «i < j»: k\n"),
    ("comparison_expression", "if «a < b» and «c in d» and not e: f\n"),
    ("subscript", "a[«b»][«1:2, c»] = [d]\n"),
    ("slice", "a[«1:b», c] = d[e]\n"),
    ("list_display", "[a, b] = «[c, [d]]»[0]\n"),
    ("tuple_display", "a, b = «c, (d, e)»\nfor f, g in «(1,)»: (h)\n"),
    ("dict_display", "a = «{b: {c: d}, **e}», {f}\n"),
    ("dict_key", "a = {«'b'»: c, «d + 1»: e, **f}\n"),
    ("default_value", "def f(a, b=«1», *, c=«d()», e): g(h=i)\nlambda j=«2»: k\n"),
    ("annotation", "def f(a: «int», *b: «c[d]») -> «None»: e: «'g'» = h\n"),
    # statements
    ("import_statement", "«import a, b»\n«from c import (d,\n  e)»\nf\n"),
    ("return_statement", "def f():\n    «return a, b»  # c\n"),
    ("raise_statement", "«raise A('b') from c»\nd\n"),
    ("assert_statement", "«assert a, 'b'»; c\n"),
    ("decorator", "«@a.b(c)»\n«@ d»\ndef f(): pass\n"),
    ("signature", "def f«(a, b=(1))» -> c: d(e)\nclass A(B): pass\n"),
    # blocks
    ("top_level", "«'a'»\n«import b»\ndef f():\n    c\n«if d:\n    e  # f»\nclass G: pass\n"),
    ("class_body", "@a\nclass B(C):\n    «d = 1\n\n    @e\n    def f(self): pass  # g»\nh\n"),
    ("class_body", "class B:\n    «@a\n    def c(): pass»\n"),
    ("function_body", "def f(a): «b; c»\ndef g():\n    «'d'\n    def h(): i»\nj\n"),
    (
        "method_body",
        "class A:\n    def f(self): «a»\n    if b:\n        def g(self): c\ndef h(): i\n",
    ),
    ("init_body", "class A:\n    def __init__(self): «a»\n    def f(self): b\n"),
    ("nested_function", "def f():\n    a\n    def g(): «b»\n    return lambda: c\n"),
    (
        "generator_function",
        "def f():\n    «def g(): return 1\n    yield g»\ndef h():\n    def i(): «yield 1»\n",
    ),
    ("async_function", "async def f(): «a»\ndef g(): b\n"),
    ("if_body", "if a: «b»\nelif c: «d»\nelse: e\n"),
    ("else_body", "if a: b\nelif c: d\nelse: «e»\nfor f in g: h\nelse: i\n"),
    ("else_body", "if a: b\nelse:\n    «if c: d  # e»\n"),
    ("for_body", "for a in b:\n    «c\n    d»\nelse: e\nwhile f: g\n"),
    ("while_body", "while a: «b»\nelse: c\nfor d in e: f\n"),
    ("with_body", "with a as b, c:\n    «d»\ne\n"),
    ("try_body", "try: «a»\nexcept B: c\nelse: d\nfinally: e\n"),
    ("except_body", "try: a\nexcept B as b: «c»\nexcept D:\n    «e»\nelse: f\n"),
    ("finally_body", "try: a\nexcept B: c\nelse: d\nfinally: «e»\n"),
    ("main_guard", "if a: b\n«if __name__ == '__main__':\n    c()  # d»\n"),
    (
        "block_start",
        "if a:\n    «b = (1,\n      2)»\n    c\nelse:\n    # d\n    «if e:»\n        «g»\n",
    ),
    ("block_end", "if a:\n    b\n    «c = 1  # d»\n    # e\nif f:\n    if g:\n        «h»\ni\n"),
    # depth and lines
    ("depth_1", "a\nif b:\n    «c\n\n    if d:»\n        e\n    «f»\n# g\nh\n"),
    ("depth_2", "if a:\n    if b:\n        «c\n        d»\n    e\n"),
    ("depth_3", "if a:\n if b:\n  if c:\n   «d»\n"),
    ("depth_4", "if a:\n if b:\n  if c:\n   if d:\n    «e\n    if f:\n     g»\nh\n"),
    ("brackets_1", "a«(b, »[c, {d}]«, e)» + «[f]»\n"),
    ("brackets_2", "a(b, «[c, »{d}«]», e)\n"),
    ("brackets_3", "a(b, [c, «{d, (e)}»])\n"),
    ("line_start", "«a» = (b,\n  «c»)\n\n  \n«#» d e\n«r'''»f\n  g'''.h\n"),
    ("line_end", "a = «(»  # i\n  b«)»\n# e\nc = «d»  # e\nf + r'''g\n h«'''»"),
    ("continuation_line", "a = (b,\n  «c,  # d\n  e)»\nf = '''g\n  h''' \\\n  «+ i»\nj\n"),
]


def unmarked(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a source without its marks, and the stretches that they were around."""
    pieces = re.split("[«»]", marked)
    edges = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces) - 1)]
    return "".join(pieces), list(zip(edges[::2], edges[1::2], strict=True))


def found(concept: str, source: str) -> list[tuple[int, int]]:
    spans = syntax_spans(source)
    assert spans is not None
    return spans[concept]


@pytest.mark.parametrize(("concept", "marked"), CASES, ids=lambda value: value.split("\n")[0])
def test_a_concept_is_found_where_it_is_true_and_nowhere_else(concept: str, marked: str) -> None:
    source, expected = unmarked(marked)
    spans = found(concept, source)
    assert spans == expected, [source[a:b] for a, b in spans]


def test_every_concept_has_a_case() -> None:
    assert {concept for concept, _ in CASES} == set(CONCEPTS)


# --- text as it comes -------------------------------------------------------------------------

SOURCES = [unmarked(marked)[0] for _, marked in CASES]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_make_no_difference(end: str) -> None:
    for source in SOURCES:
        text = "\ufeff" + source.replace("\n", end)
        expected, spans = syntax_spans(source), syntax_spans(text)
        assert expected is not None and spans is not None
        for concept in CONCEPTS:
            words = [text[a:b].replace(end, "\n") for a, b in spans[concept]]
            assert words == [source[a:b] for a, b in expected[concept]], (concept, source)


def test_columns_are_characters_although_the_tree_counts_bytes() -> None:
    source, expected = unmarked("größe = 'ü𝒳'; f(«ñ»=é.ç(1), «ß»=[λ])\n")
    assert found("keyword_argument", source) == expected
    assert [source[a:b] for a, b in found("method_call", source)] == ["ç"]
    assert [source[a:b] for a, b in found("list_display", source)] == ["[λ]"]


def test_tabs_form_feeds_and_joined_lines() -> None:
    source = "if a:\n\tb\n\x0c\n\x0cdef f(): \\\n\treturn [c]\n"
    assert [source[a:b] for a, b in found("list_display", source)] == ["[c]"]
    assert [source[a:b] for a, b in found("blank_line", source)] == ["\x0c\n"]
    assert [source[a:b] for a, b in found("indentation", source)] == ["\t", "\x0c", "\t"]
    assert [source[a:b] for a, b in found("depth_1", source)] == ["b"]
    assert [source[a:b] for a, b in found("line_start", source)] == ["if", "b", "def", "return"]


def test_an_f_string_is_one_string_on_every_python() -> None:
    source = "x = f'{a(b=[c])!r:>{d}}' f\"{e}\"\n'''{f}'''\n"
    spans = syntax_spans(source)
    assert spans is not None
    assert [source[a:b] for a, b in spans["name"]] == ["x"]
    assert [source[a:b] for a, b in spans["fstring"]] == ["f'{a(b=[c])!r:>{d}}'", 'f"{e}"']
    assert not any(spans[concept] for concept in ("call_arguments", "list_display", "brackets_1"))


def test_text_without_code_has_no_concepts() -> None:
    for text in ("", "\ufeff", " "):
        spans = syntax_spans(text)
        assert spans is not None and not any(spans.values())


@pytest.mark.parametrize(
    "text",
    [
        "def",
        "if a:\nb\n",
        "if a:\n\tb\n        c\n",
        "'a",
        "(",
        "a $ b",
        "a\0",
        "'\ud800'",
        "(" * 900,
    ],
)
def test_text_that_does_not_parse_has_no_spans(text: str) -> None:
    assert syntax_spans(text) is None


def test_an_odd_escape_is_no_warning() -> None:
    assert syntax_spans("x = '\\d'\n1 is 2\n") is not None


# --- what holds for any source ----------------------------------------------------------------


def assert_sound(text: str, spans: dict[str, list[tuple[int, int]]]) -> None:
    assert list(spans) == list(CONCEPTS)
    for concept, stretches in spans.items():
        edges = [edge for stretch in stretches for edge in stretch]
        assert all(a < b for a, b in itertools.pairwise(edges)), concept
        assert not edges or (edges[0] >= 0 and edges[-1] <= len(text)), concept


def characters(spans: dict[str, list[tuple[int, int]]], *concepts: str) -> set[int]:
    return {at for name in concepts for a, b in spans[name] for at in range(a, b)}


@pytest.fixture(scope="module")
def library() -> list[tuple[str, dict[str, list[tuple[int, int]]]]]:
    """Sixty files of the standard library, and their spans."""
    texts = [document.text for document in stdlib_documents() if len(document.text) < 30_000]
    with pytest.MonkeyPatch.context() as patch:
        # Run-time checks of types take ten times as long as the work; the cases above have them.
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        pairs = [(text, syntax_spans(text)) for text in random.Random(0).sample(texts, 60)]
    assert all(spans is not None for _, spans in pairs)
    return [(text, spans) for text, spans in pairs if spans is not None]


def test_the_standard_library_has_sound_spans(library) -> None:
    for text, spans in library:
        assert_sound(text, spans)


DISJOINT = [
    ("docstring", "comment"),
    ("name", "keyword", "number", "string", "comment", "operator", "comma", "dot"),
    ("module_docstring", "class_docstring", "function_docstring"),
    ("int", "float", "hex"),
    ("single_quoted", "double_quoted", "triple_quoted"),
    ("depth_1", "depth_2", "depth_3", "depth_4"),
    ("brackets_1", "brackets_2", "brackets_3"),
    ("newline", "indentation"),
    ("attribute", "keyword_argument", "function_name", "class_name", "parameter", "module_name"),
]
WITHIN = [
    ("docstring", "string"),
    ("int", "number"),
    ("quote_open", "string"),
    ("method_call", "called_name"),
    ("called_name", "name"),
    ("self_attribute", "attribute"),
    ("imported_name", "import_statement"),
    ("method_body", "function_body"),
    ("nested_function", "function_body"),
    ("function_docstring", "function_body"),
    ("doctest", "docstring"),
    ("error_message", "raise_statement"),
    ("decorator_name", "decorator"),
    ("todo", "comment"),
    ("comprehension_for", "comprehension"),
    ("slice", "subscript"),
    ("dict_key", "dict_display"),
]


def test_concepts_exclude_and_include_each_other(library) -> None:
    for text, spans in library:
        for concepts in DISJOINT:
            sizes = [len(characters(spans, concept)) for concept in concepts]
            assert sum(sizes) == len(characters(spans, *concepts)), (concepts, text[:80])
        for inner, outer in WITHIN:
            assert characters(spans, inner) <= characters(spans, outer), (inner, text[:80])


def test_every_character_that_is_not_white_space_is_part_of_a_token(library) -> None:
    for text, spans in library:
        brackets = (f"{way}_{kind}" for way in ("open", "close") for kind in BRACKETS)
        kinds = ("name", "keyword", "number", "string", "comment", "operator", "comma", *brackets)
        rest = set(range(len(text))) - characters(spans, *kinds)
        assert {text[at] for at in rest} <= set(" \t\n\f\\.:;")


BRACKETS = ("paren", "bracket", "brace")


@settings(max_examples=150)
@given(st.data())
def test_whatever_parses_has_sound_spans(data: st.DataObject) -> None:
    lines = "".join(SOURCES).split("\n")
    picked = data.draw(st.lists(st.sampled_from(lines), max_size=6))
    odd = data.draw(st.text(alphabet="ab1.,:=*([{}]) \n\t\r\f'\"\\#f@éλ;", max_size=8))
    text = "\n".join(picked) + odd
    spans = syntax_spans(text)
    if spans is not None:
        assert_sound(text, spans)


def test_the_page_lists_the_concepts_as_they_are() -> None:
    page = (ROOT / "docs/concepts.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE)
    assert rows == list(CONCEPTS.items())
