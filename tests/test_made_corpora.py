"""Mixed, chat, generated and paired corpora: shares, and which tokens count."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tiny_models import tiny_tokenizer

from monosemy.cli.main import main
from monosemy.corpus import Document, TokenPolicy, TokenStream, open_corpus, read_pairs
from monosemy.corpus.memory import MemorySource
from monosemy.corpus.mix import MixSource
from monosemy.errors import UserError
from monosemy.lm import LM, chat_document, generate_documents

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ raise_exception('no tools') }}{% endif %}<{{ m.role }}>\n{{ m.content | trim }}\n"
    "{% endfor %}"
)
TALK = {
    "messages": [
        {"role": "user", "content": "def add(value): what does it return?"},
        {"role": "assistant", "content": "It should return value + 1. "},
        {"role": "user", "content": "return value + 1?"},
        {"role": "assistant", "content": "return value + 1"},
    ]
}


def counted_text(document: Document, policy: TokenPolicy | None = None) -> str:
    """Return the characters of the tokens that count, as a stream counts them."""
    corpus = open_corpus([document], held_out=0.0)
    stream = TokenStream(corpus, tiny_tokenizer(), part="all", context=256, policy=policy)
    (batch,) = list(stream)
    pairs = zip(batch.start[batch.counted].tolist(), batch.end[batch.counted].tolist(), strict=True)
    return "".join(document.text[a:b] for a, b in pairs)


def test_only_spans_count() -> None:
    text = "def function_1(value):\n    return value + 1\n"
    place = text.index("return")
    assert counted_text(Document("a", text)) == text
    inside = counted_text(Document("a", text, spans=((place, place + 12),)))
    assert inside.strip() == "return value" and len(inside) < len(text)
    assert counted_text(Document("a", text, spans=())) == ""


def test_the_last_token_is_the_last_that_counts() -> None:
    text = "def function_1(value):\n    return value + 1\n"
    document = Document("a", text, spans=((0, 3),))
    assert counted_text(document, TokenPolicy(choose="last")).endswith("f")


@settings(max_examples=20)
@given(
    weight=st.floats(0.1, 10),
    lengths=st.tuples(st.integers(5, 60), st.integers(5, 60)),
)
def test_a_mix_has_the_shares_of_its_weights(weight: float, lengths: tuple[int, int]) -> None:
    a, b = lengths
    left = MemorySource([f"{'a' * a}{i}" for i in range(2000)])
    right = MemorySource([f"{'b' * b}{i}" for i in range(2000)])
    mix = MixSource([(left, weight), (right, 1.0)])
    some = list(islice(mix.read(None), 150))
    size = {letter: sum(len(d.text) for d in some if d.text[0] == letter) for letter in "ab"}
    assert abs(size["a"] - weight * size["b"]) <= (max(a, b) + 4) * (1 + weight)


def test_a_mix_ends_with_what_runs_out_first_and_opens_again(tmp_path: Path) -> None:
    for name, n in (("few", 3), ("many", 50)):
        (tmp_path / name).mkdir()
        for i in range(n):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} number {i:03}")
    name = f"mix:{tmp_path / 'few'}=1,{tmp_path / 'many'}=2"
    corpus = open_corpus(name, held_out=0.0)
    texts = [d.text for d in corpus.documents("all")]
    assert sum(text.startswith("few") for text in texts) == 3
    assert 4 <= sum(text.startswith("many") for text in texts) <= 9
    assert open_corpus(**corpus.describe()).name == name
    skipping = open_corpus(name, skip_bad=True).describe()
    assert skipping["skip_bad"] and open_corpus(**skipping).describe() == skipping
    ids = [d.id for d in corpus.documents("all", seed=1)]
    assert len(set(ids)) == len(ids) and str(tmp_path / "few") in ids[0] + ids[1]


@pytest.mark.parametrize("name", ["mix:", "mix:a.txt", "mix:a.txt=x", "mix:=1"])
def test_a_mix_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a source and its weight"):
        open_corpus(name)


def test_a_weight_must_be_positive(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="the weight of"):
        open_corpus(f"mix:{tmp_path / 'a.txt'}=0,{tmp_path / 'a.txt'}=1")


def test_a_conversation_counts_by_role() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    document = chat_document(TALK, tokenizer)
    assert document.text.startswith("<user>\ndef add")
    said = [document.text[a:b] for a, b in document.spans or ()]
    assert said == ["It should return value + 1.", "return value + 1"]
    user = chat_document(TALK, tokenizer, roles=("user",))
    assert [user.text[a:b] for a, b in user.spans or ()][1] == "return value + 1?"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "x"}, "holds no conversation; columns: text"),
        ({"messages": []}, "holds no conversation"),
        ({"messages": [{"role": "user"}]}, "a message without role or content"),
        ({"messages": [{"role": "user", "content": 3}]}, "a message's content is a int"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "does not fit the model's chat"),
    ],
)
def test_what_is_no_conversation_is_refused(row: dict, what: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(UserError, match=what):
        chat_document(row, tokenizer)


def test_without_a_template_there_is_no_chat() -> None:
    with pytest.raises(UserError, match="no chat template"):
        chat_document(TALK, tiny_tokenizer())


def test_of_generated_text_what_the_model_wrote_counts(lm: LM) -> None:
    prompts = ["def function", "return value"]
    made = list(generate_documents(lm, prompts, tokens=8))
    assert [d.text.startswith(p) for d, p in zip(made, prompts, strict=True)] == [True, True]
    assert [d.spans for d in made] == [
        ((len(p), len(d.text)),) for d, p in zip(made, prompts, strict=True)
    ]
    (again,) = generate_documents(lm, prompts, tokens=8, skip=1)
    assert again == made[1]


def test_the_commands_write_files_to_train_on(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat-model")
    (tmp_path / "talk.jsonl").write_text((json.dumps(TALK) + "\n") * 3)
    out = tmp_path / "chat.jsonl"
    model = str(tmp_path / "chat-model")
    main(["corpus", "chat", str(tmp_path / "talk.jsonl"), "--out", str(out), "--model", model])
    (first, *_) = open_corpus(out, held_out=0.0).documents("all")
    assert "<user>" in first.text and "<user>" not in counted_text(first)
    assert counted_text(first).count("return value + 1") == 2

    prompts, made = tmp_path / "prompts.txt", tmp_path / "made.jsonl"
    prompts.write_text("def function\nreturn value\n")
    arguments = ["corpus", "generate", str(prompts), "--model", str(checkpoint), "--tokens", "6"]
    main([*arguments, "--each", "2", "--out", str(tmp_path / "whole.jsonl")])
    whole = (tmp_path / "whole.jsonl").read_text()
    assert len(whole.splitlines()) == 4
    # Killed in the middle of the third, it goes on with that.
    (tmp_path / ".made.jsonl.draft").write_text(whole[: whole.rindex("\n", 0, -1) - 5])
    main([*arguments, "--each", "2", "--out", str(made)])
    assert made.read_text() == whole
    assert not (tmp_path / ".made.jsonl.draft").exists()
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(made)])
    assert "exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["corpus", "generate", str(tmp_path / "no.txt"), "--out", str(tmp_path / "x.jsonl")])
    assert "cannot read" in capsys.readouterr().err


def test_spans_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="`spans` must be a list of"):
        list(open_corpus([{"text": "abc", "spans": [1, 2]}], held_out=0.0).documents("all"))


# Paired texts.

ROWS = [{"before": f"x = {i}", "after": f"x = {i} + 1", "cwe": i % 3} for i in range(60)]


def write_table(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"changes.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_pairs_stay_on_one_side_and_find_each_other(kind: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, kind, ROWS)
    corpus = open_corpus(f"pairs:{path}", held_out=0.4)
    sides = {part: [d.id for d in corpus.documents(part, seed=1)] for part in ("train", "held_out")}
    for ids in sides.values():
        rows = [i.rsplit("/", 1)[0] for i in ids]
        assert len(ids) > 10 and all(rows.count(row) == 2 for row in rows)
    assert len(sides["train"]) + len(sides["held_out"]) == 2 * len(ROWS)
    pair = next(read_pairs(path))
    assert (pair.before.text, pair.after.text) == ("x = 0", "x = 0 + 1")
    assert {pair.before.id, pair.after.id} <= {*sides["train"], *sides["held_out"]}
    assert str(pair.rest) in ("{'cwe': 0}", "{'cwe': '0'}")
    assert open_corpus(**corpus.describe()).describe() == corpus.describe()


def test_pairs_of_other_columns(tmp_path: Path) -> None:
    rows = [{"func_before": row["before"], "func": row["after"]} for row in ROWS]
    name = f"pairs:{write_table(tmp_path, 'jsonl', rows)}"
    corpus = open_corpus(name, column="func_before, func")
    first, second = islice(corpus.documents("all"), 2)
    assert (first.text, second.text) == ("x = 0", "x = 0 + 1")
    assert open_corpus(**corpus.describe()).describe() == corpus.describe()
    with pytest.raises(UserError, match="has no column `before`"):
        list(open_corpus(name).documents("all"))
    with pytest.raises(UserError, match="pairs have two"):
        open_corpus(name, column="func")


def test_pairs_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        open_corpus(f"pairs:{tmp_path / 'none.jsonl'}")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="not a table"):
        open_corpus(f"pairs:{tmp_path / 'a.txt'}")
