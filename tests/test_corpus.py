from __future__ import annotations

import csv
import io
import itertools
import json
import os
import sys
from pathlib import Path

import datasets
import jaxtyping
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from monosemy.corpus import Corpus, Document, open_corpus
from monosemy.corpus.corpus import _SHUFFLE_BUFFER
from monosemy.corpus.files import cut_text
from monosemy.errors import UserError

LINES = [f"line number {i}" for i in range(60)]
HELD_OUT_LINES = [5, 29, 32, 54]

readable_texts = st.lists(
    st.text(min_size=1, max_size=20).filter(lambda text: not text.isspace()),
    min_size=1,
    max_size=30,
)


@pytest.fixture
def wrong_types_allowed(monkeypatch):
    """Let a wrong type reach the code under test when shapes and types are checked at run time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def texts_of(corpus: Corpus, part="all", seed=None) -> list[str]:
    return [document.text for document in corpus.documents(part, seed=seed)]


def ids_of(corpus: Corpus, part="all", seed=None) -> list[str]:
    return [document.id for document in corpus.documents(part, seed=seed)]


def part_or_empty(corpus: Corpus, part) -> list[str]:
    try:
        return texts_of(corpus, part)
    except UserError:
        return []


# --- the held-out split -----------------------------------------------------------------------


@given(texts=readable_texts, share=st.floats(0, 0.99))
def test_every_document_is_in_exactly_one_part(texts, share):
    corpus = open_corpus(texts, held_out=share)
    train, held_out = part_or_empty(corpus, "train"), part_or_empty(corpus, "held_out")
    assert not set(train) & set(held_out)  # so copies are on one side
    assert sorted(train + held_out) == sorted(texts) == sorted(texts_of(corpus))


@given(texts=readable_texts, order=st.randoms(use_true_random=False), extra=readable_texts)
def test_the_split_depends_on_neither_order_nor_other_documents(texts, order, extra):
    shuffled = texts + extra
    order.shuffle(shuffled)
    held_out = set(part_or_empty(open_corpus(texts, held_out=0.5), "held_out"))
    held_out_of_more = set(part_or_empty(open_corpus(shuffled, held_out=0.5), "held_out"))
    assert held_out == held_out_of_more & set(texts)


@given(texts=readable_texts, shares=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)))
def test_a_larger_share_holds_out_more_and_all_that_a_smaller_one_did(texts, shares):
    small, large = (
        set(part_or_empty(open_corpus(texts, held_out=share), "held_out"))
        for share in sorted(shares)
    )
    assert small <= large


def test_the_share_is_reached_on_many_documents():
    corpus = open_corpus([f"document {i}" for i in range(5000)], held_out=0.2)
    assert 900 < len(texts_of(corpus, "held_out")) < 1100


def test_the_split_of_a_text_never_changes():
    """These texts' sides are a promise to everyone who saved a dictionary."""
    held_out = texts_of(open_corpus(LINES), "held_out")
    assert held_out == [f"line number {i}" for i in HELD_OUT_LINES]


def test_a_split_key_overrides_the_text():
    a, b = Document("a", "one text", split_key="same"), Document("b", "another", split_key="same")
    assert a.is_held_out(0.5) == b.is_held_out(0.5)
    keys = {Document("a", "text", split_key=str(i)).is_held_out(0.5) for i in range(20)}
    assert keys == {True, False}


# --- order ------------------------------------------------------------------------------------


def test_a_seed_gives_one_order_and_none_the_sources_own():
    corpus = open_corpus(LINES)
    assert texts_of(corpus) == LINES
    assert texts_of(corpus, seed=1) == texts_of(corpus, seed=1) != texts_of(corpus, seed=2)
    assert sorted(texts_of(corpus, seed=1)) == sorted(LINES)


def test_a_corpus_larger_than_the_shuffle_buffer_is_shuffled_as_it_streams():
    class Texts:
        read = 0

        def __iter__(self):
            for i in range(40):
                self.read += 1
                yield str(i).ljust(_SHUFFLE_BUFFER // 8)

    source = Texts()
    documents = open_corpus(source).documents("all", seed=0)
    first = next(documents)
    assert source.read < 15
    order = [int(document.id) for document in [first, *documents]]
    assert order != sorted(order) and sorted(order) == list(range(40))
    assert all(abs(position - i) < 40 for position, i in enumerate(order))


def test_files_are_shuffled_across_the_whole_folder(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text(f"file {i}")
    corpus = open_corpus(tmp_path)
    assert ids_of(corpus) == [f"{i:02}.txt" for i in range(30)]
    assert ids_of(corpus, seed=0) != ids_of(corpus)
    assert sorted(ids_of(corpus, seed=0)) == ids_of(corpus)


# --- files ------------------------------------------------------------------------------------

ROWS = [{"text": f'row {i}: naïve 日本語,\n"quoted"', "n": i} for i in range(5)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_row_of_a_table_is_a_document_that_names_its_file_and_row(tmp_path, kind):
    file = tmp_path / f"rows.{kind}"
    WRITERS[kind](file, ROWS)
    corpus = open_corpus(file)
    assert texts_of(corpus) == [row["text"] for row in ROWS]
    assert ids_of(corpus) == [f"rows.{kind}:{i}" for i in range(1, 6)]
    assert ids_of(open_corpus(tmp_path)) == ids_of(corpus)
    assert sorted(ids_of(corpus, seed=0)) == ids_of(corpus)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_column_is_named_or_found(tmp_path, kind):
    write = WRITERS[kind]
    for column in ("text", "content", "code"):
        write(tmp_path / f"usual.{kind}", [{"other": "no", column: "yes"}])
        assert texts_of(open_corpus(tmp_path / f"usual.{kind}")) == ["yes"]
    write(tmp_path / f"only.{kind}", [{"story": "yes"}])
    assert texts_of(open_corpus(tmp_path / f"only.{kind}")) == ["yes"]
    write(tmp_path / f"two.{kind}", [{"text": "no", "summary": "yes"}])
    assert texts_of(open_corpus(tmp_path / f"two.{kind}", column="summary")) == ["yes"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_or_ambiguous_column_is_an_error_that_lists_the_columns(tmp_path, kind):
    file = tmp_path / f"two.{kind}"
    WRITERS[kind](file, [{"title": "a", "story": "b"}])
    with pytest.raises(UserError, match=r"two.*several text columns\n.*`title`, `story`"):
        texts_of(open_corpus(file))
    with pytest.raises(UserError, match=r"no column `stori`\n.*`title`, `story`.*mean `story`"):
        texts_of(open_corpus(file, column="stori"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_that_is_not_text_is_an_error(tmp_path, kind):
    file = tmp_path / f"numbers.{kind}"
    WRITERS[kind](file, [{"n": 1, "m": 2}])
    with pytest.raises(UserError, match="has no text column"):
        texts_of(open_corpus(file))
    with pytest.raises(UserError, match=r"numbers.*:1: column `n` holds int, not text"):
        texts_of(open_corpus(file, column="n"))


def test_an_absent_value_is_passed_over(tmp_path):
    for kind in ("jsonl", "parquet"):
        file = tmp_path / f"nulls.{kind}"
        texts = (None, "b", "", "d")
        WRITERS[kind](file, [{"title": "no", "text": text} for text in texts])
        assert ids_of(open_corpus(file)) == [f"nulls.{kind}:2", f"nulls.{kind}:4"]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_every_kind_of_parquet_string_is_text(tmp_path, kind):
    types = {
        "string": pyarrow.string(),
        "large_string": pyarrow.large_string(),
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    }
    table = pyarrow.table({"n": [1, 2], "story": pyarrow.array(["a", "b"]).cast(types[kind])})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert texts_of(open_corpus(tmp_path)) == ["a", "b"]


def test_a_csv_cell_may_be_longer_than_pythons_default_limit(tmp_path):
    write_csv(tmp_path / "long.csv", [{"text": "x" * 200_000}])
    assert [len(text) for text in texts_of(open_corpus(tmp_path))] == [200_000]


def test_a_text_file_of_a_folder_is_a_document(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.md").write_text("# b")
    (tmp_path / "a.TXT").write_text("a\r\nb", encoding="utf-8-sig", newline="")
    (tmp_path / "deep" / "er" / "c.py").write_text("c = 'é'", encoding="utf-8")
    found = {document.id: document.text for document in open_corpus(tmp_path).documents("all")}
    assert found == {"a.TXT": "a\nb", "b.md": "# b", "deep/er/c.py": "c = 'é'"}


def test_hidden_and_unknown_files_are_passed_over(tmp_path):
    (tmp_path / ".venv").mkdir()
    for name in (".venv/a.py", ".hidden.txt", "image.png", "shown.txt"):
        (tmp_path / name).write_text(name)
    assert ids_of(open_corpus(str(tmp_path))) == ["shown.txt"]


def test_a_file_and_its_copy_are_on_one_side(tmp_path):
    for i in range(40):
        for name in (f"{i}.txt", f"copy of {i}.md"):
            (tmp_path / name).write_text(f"text {i}")
    corpus = open_corpus(tmp_path, held_out=0.5)
    assert not set(texts_of(corpus, "train")) & set(texts_of(corpus, "held_out"))


def test_a_lone_text_file_is_cut_into_documents_so_that_some_can_be_held_out(tmp_path):
    file = tmp_path / "book.txt"
    text = "".join(f"Paragraph {i}. " + "A sentence follows. " * 30 + "\n\n" for i in range(300))
    file.write_text(text)
    corpus = open_corpus(file)
    corpus.check("train", "held_out")
    documents = list(corpus.documents("all"))
    assert "".join(document.text for document in documents) == text
    assert documents[0].id == f"book.txt:chars 0-{len(documents[0].text)}"
    for document in documents:
        start, end = map(int, document.id.split()[-1].split("-"))
        assert text[start:end] == document.text
        assert document.text.startswith("Paragraph")


def test_a_large_text_file_of_a_folder_is_cut_too(tmp_path):
    (tmp_path / "large.txt").write_text("a line of it\n" * 100_000)
    (tmp_path / "small.txt").write_text("small")
    assert len(ids_of(open_corpus(tmp_path))) > 100


@settings(max_examples=50)
@given(
    paragraphs=st.lists(
        st.tuples(st.text(alphabet="ab é\n", max_size=30), st.integers(1, 400)), max_size=12
    )
)
def test_pieces_join_to_the_text_and_keep_to_their_sizes(paragraphs):
    text = "".join(part * times for part, times in paragraphs)
    pieces = list(cut_text(io.StringIO(text, newline="")))
    assert "".join(piece for _, piece in pieces) == text
    starts = itertools.accumulate((len(piece) for _, piece in pieces), initial=0)
    assert [start for start, _ in pieces] == list(starts)[:-1]
    assert all(2048 <= len(piece) <= 8192 for _, piece in pieces[:-1])
    assert all(0 < len(piece) <= 8192 for _, piece in pieces[-1:])


# --- bad files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./missing", "../missing", "missing.txt", "a/b/missing", "~/none.csv"],
)
def test_a_missing_path_is_an_error_and_not_looked_for_elsewhere(name, monkeypatch):
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *_, **__: pytest.fail("looked it up")
    )
    with pytest.raises(UserError, match="no such file or folder"):
        open_corpus(name)


@pytest.mark.parametrize("kind", ["txt", "md", "py", "jsonl", "csv"])
def test_a_file_that_is_not_text_is_named(tmp_path, kind):
    (tmp_path / f"bad.{kind}").write_bytes(b"text\n\xff\xfe\x00\x01")
    for path in (tmp_path, tmp_path / f"bad.{kind}"):
        with pytest.raises(UserError, match=rf"bad\.{kind} is not UTF-8 text \(byte 0xff\)"):
            texts_of(open_corpus(path))


def test_a_file_of_unknown_kind_is_refused(tmp_path):
    (tmp_path / "notes.docx").write_text("text")
    with pytest.raises(UserError, match=r"unknown kind of file\n.*\.txt .*\.parquet"):
        open_corpus(tmp_path / "notes.docx")
    with pytest.raises(UserError, match=r"nothing to read in folder .*\n.*\.txt .*\.parquet"):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [("{nonsense", "is not JSON"), ('"a string"', "a JSON str"), ("[1]", "a JSON list")],
)
def test_a_bad_json_line_is_named(tmp_path, line, problem):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:3 is.* {problem.split(' ', 1)[1]}"):
        texts_of(open_corpus(file))


def test_a_row_without_the_column_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "good"}, {"other": "bad"}])
    with pytest.raises(UserError, match=r"a\.jsonl:2 has no column `text`\ncolumns: `other`"):
        texts_of(open_corpus(tmp_path))


def test_a_short_or_long_csv_row_does_no_harm(tmp_path):
    (tmp_path / "a.csv").write_text("n,text\n1\n2,b\n3,c,more\n")
    assert texts_of(open_corpus(tmp_path)) == ["b", "c"]


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file"):
        texts_of(open_corpus(tmp_path))


@pytest.mark.parametrize("compression", ["NONE", "snappy"])
def test_a_parquet_file_with_a_damaged_page_is_named(tmp_path, compression):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"row {n} {n**9}" for n in range(200)]})
    parquet.write_table(table, path, compression=compression, use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + whole[400:200:-1] + whole[500:])
    with pytest.raises(UserError, match=r"a\.parquet.* [Cc]orrupt|a\.parquet is damaged"):
        texts_of(open_corpus(tmp_path))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow\n.*pip install \"monosemy\[data\]\""):
        texts_of(open_corpus(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt"):
        texts_of(open_corpus(tmp_path))


# --- empty ------------------------------------------------------------------------------------


def test_a_corpus_without_text_is_empty(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text(" \n\t\n")
    (tmp_path / "c.jsonl").write_text("")
    for source in (tmp_path, [], [""], ["  "]):
        with pytest.raises(UserError, match="empty corpus"):
            texts_of(open_corpus(source))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty corpus"):
        open_corpus(empty)


def test_an_empty_part_says_what_to_do():
    with pytest.raises(UserError, match=r"held-out part .* all 1 documents.*\nadd documents, or"):
        texts_of(open_corpus(["one"], held_out=1e-9), "held_out")
    with pytest.raises(UserError, match="the train part"):
        texts_of(open_corpus(["one"], held_out=0.999999), "train")
    with pytest.raises(UserError, match="held_out is 0"):
        texts_of(open_corpus(["one"], held_out=0.0), "held_out")


def test_check_fails_early_where_a_part_is_empty():
    corpus = open_corpus(["one"], held_out=0.0)
    corpus.check("train", "all")
    with pytest.raises(UserError, match="held_out is 0"):
        corpus.check("train", "held_out")


@pytest.mark.parametrize("share", [-0.1, 1.0, 7.0])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match="allowed: 0 to below 1"):
        open_corpus(LINES, held_out=share)


def test_an_unknown_part_is_refused(wrong_types_allowed):
    with pytest.raises(UserError, match=r"unknown part `test`\nallowed: `train`"):
        open_corpus(LINES).documents("test")


# --- Python objects ---------------------------------------------------------------------------


def test_documents_and_rows_are_taken_as_they_are():
    documents = [Document("a", "text a"), Document("b", "text b")]
    assert list(open_corpus(documents).documents("all")) == documents
    rows = [{"title": "x", "text": "text a"}, {"title": "y", "text": "text b"}]
    assert texts_of(open_corpus(rows)) == ["text a", "text b"]
    assert texts_of(open_corpus(rows, column="title")) == ["x", "y"]
    assert texts_of(open_corpus(datasets.Dataset.from_list(rows))) == ["text a", "text b"]


def test_a_generator_is_refused_as_it_can_be_read_only_once():
    with pytest.raises(UserError, match=r"generator can be read only once\npass `list"):
        open_corpus(text for text in LINES)


def test_items_that_are_no_text_are_refused(wrong_types_allowed):
    with pytest.raises(UserError, match="item 1 of the corpus is a int"):
        texts_of(open_corpus(["text", 3]))
    with pytest.raises(UserError, match="row 0 has no column `story`"):
        texts_of(open_corpus([{"text": "a"}], column="story"))


def test_something_that_is_no_corpus_is_refused(wrong_types_allowed):
    with pytest.raises(UserError, match="cannot open a int"):
        open_corpus(3)


def test_a_corpus_is_returned_as_it_is():
    corpus = open_corpus(LINES)
    assert open_corpus(corpus) is corpus


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d\\ude42 b \\ud83d c"}\n')
    assert texts_of(open_corpus(tmp_path)) == ["a 🙂 b ? c"]


# --- named corpora ----------------------------------------------------------------------------


def test_the_standard_library_is_a_corpus_split_by_path():
    corpus = open_corpus("builtin:stdlib")
    held_out = list(corpus.documents("held_out"))
    assert 20 < len(held_out) < 200
    assert all(document.split_key == document.id for document in held_out)
    assert [d.id for d in held_out] == sorted((d.id for d in held_out), key=lambda i: i.split("/"))
    assert not any({"test", "site-packages"} & set(d.id.split("/")) for d in held_out)
    shuffled = list(corpus.documents("held_out", seed=0))
    assert shuffled != held_out and {d.id for d in shuffled} == {d.id for d in held_out}


def test_an_unknown_builtin_is_refused():
    with pytest.raises(UserError, match=r"no corpus `builtin:stblib`\n.*`builtin:stdlib`"):
        open_corpus("builtin:stblib")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach the hub"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'nothing' doesn't exist"),
        ValueError("Unknown configuration 'x'.\nAnd more."),
    ],
)
def test_a_data_set_that_cannot_be_opened_says_why_at_once(monkeypatch, error):
    def load_dataset_builder(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    reason = str(error).splitlines()[0]
    with pytest.raises(UserError, match="`nothing` is no file or folder here") as raised:
        open_corpus("nothing")
    assert reason in raised.value.message and "And more" not in raised.value.message


def test_a_data_set_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"`datasets` is needed\n.*pip install \"monosemy\[data\]"):
        open_corpus("wikitext")


# --- identity ---------------------------------------------------------------------------------


def test_a_description_opens_the_same_corpus_again(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    for corpus in (
        open_corpus("builtin:stdlib", held_out=0.2),
        open_corpus(tmp_path, column="text"),
    ):
        again = open_corpus(**json.loads(json.dumps(corpus.describe())))
        assert again.describe() == corpus.describe() and again.name == corpus.name
        assert ids_of(again, "train") == ids_of(corpus, "train")


def test_a_corpus_of_python_objects_is_described_but_cannot_be_opened_again():
    description = open_corpus(LINES).describe()
    assert description == {"source": "python:list", "column": None, "held_out": 0.1}
    with pytest.raises(UserError, match="pass the documents again"):
        open_corpus(**description)


def test_bad_files_are_skipped_only_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.jsonl").write_text('{"text": "second"}\nnot JSON\n')
    (tmp_path / "d.txt").write_text("third")
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8"):
        list(open_corpus(tmp_path, held_out=0.0).documents("all"))
    corpus = open_corpus(tmp_path, held_out=0.0, skip_bad=True)
    for _ in range(2):
        assert [d.text for d in corpus.documents("all")] == ["first", "second", "third"]
    said = capsys.readouterr().err
    assert said.count("skipped: ") == 2 and "b.txt" in said and "c.jsonl:2 is not JSON" in said
    assert open_corpus(**corpus.describe()).describe() == corpus.describe()
