from __future__ import annotations

import itertools
import logging
from collections import Counter

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from monosemy.corpus import TokenBatch, TokenPolicy, TokenStream, open_corpus
from monosemy.errors import UserError

END = "<|end|>"
TEXTS = [
    "def read(path):\n    return open(path).read()\n",
    "naïve café 日本語 Ünïcödé — “quotes” 🙂 Привет, мир\n",
    "the cat sat on the mat and the dog on the log",
    "x = 1",
]


@pytest.fixture
def wrong_types_allowed(monkeypatch):
    """Let a wrong type reach the code under test when shapes and types are checked at run time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def byte_tokenizer(*special: str, **names) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose special tokens have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def bos_tokenizer(**names) -> PreTrainedTokenizerFast:
    """BOS and EOS are one token with id 0, as in `builtin:stdlib`."""
    return byte_tokenizer(END, bos_token=END, eos_token=END, **names)


def stream(texts, tokenizer=None, **options) -> TokenStream:
    options = {"part": "all", "seed": None, "context": 8, "rows": 4} | options
    return TokenStream(open_corpus(texts), tokenizer or bos_tokenizer(), **options)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def places(batch: TokenBatch):
    """(row, column, document) of every token that comes from a document."""
    for row, column in (batch.document >= 0).nonzero().tolist():
        yield row, column, batch.documents[batch.document[row, column]]


def unpacked(batches) -> dict[str, list[int]]:
    """The token ids of every document, put together again."""
    ids: dict[str, list[int]] = {}
    for batch in batches:
        for row, column, document in places(batch):
            ids.setdefault(document.id, []).append(int(batch.tokens[row, column]))
    return ids


# --- the way back to the text -----------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_a_token_is_the_text_at_its_characters_also_outside_ascii(packed):
    tokenizer = bos_tokenizer()
    checked = 0
    for batch in stream(TEXTS, tokenizer, packed=packed, context=16):
        for row, column, document in places(batch):
            start, end = int(batch.start[row, column]), int(batch.end[row, column])
            token = tokenizer.decode([int(batch.tokens[row, column])])
            if "\ufffd" not in token:  # part of a character; its span is the whole character
                assert document.text[start:end] == token
                checked += 1
            assert end > start
    assert checked > 30


def test_a_token_leads_to_the_text_as_it_was_before_the_tokenizer_normalised_it():
    tokenizer = Tokenizer(models.WordPiece(unk_token="?"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=100, special_tokens=["?"], show_progress=False)
    tokenizer.train_from_iterator(["naive cafe in the city 日 本"] * 3, trainer)
    text = "Naïve  CAFÉ in the 日本 City"
    (batch,) = stream([text], PreTrainedTokenizerFast(tokenizer_object=tokenizer), context=32)
    spans = zip(batch.start[0].tolist(), batch.end[0].tolist(), strict=True)
    words = [text[start:end] for start, end in spans if end > 0]
    assert words == ["Naïve", "CAFÉ", "in", "the", "日", "本", "City"]


def test_characters_of_a_document_follow_one_another_without_gaps():
    reached: Counter[str] = Counter()
    for batch in stream(TEXTS, context=5, rows=2):
        for row, column, document in places(batch):
            assert batch.start[row, column] <= reached[document.id]
            reached[document.id] = max(reached[document.id], int(batch.end[row, column]))
    lengths = {str(i): len(text) for i, text in enumerate(TEXTS)}
    assert all(lengths[name] - end < 20 for name, end in reached.items())
    assert reached["0"] == lengths["0"]


def test_inserted_tokens_and_padding_come_from_no_document():
    for packed in (True, False):
        for batch in stream(TEXTS, packed=packed):
            nowhere = batch.document < 0
            assert (batch.start[nowhere] == -1).all() and (batch.end[nowhere] == -1).all()
            assert (batch.document[nowhere] == -1).all()
            assert nowhere[:, 0].all()  # BOS


def test_a_batch_lists_the_documents_it_touches_and_no_others():
    for batch in stream([f"line {i} of many" for i in range(30)], rows=2):
        touched = sorted(set(batch.document[batch.document >= 0].tolist()))
        assert touched == list(range(len(batch.documents)))


# --- packing ----------------------------------------------------------------------------------


WITH_AND_WITHOUT_BOS = {True: bos_tokenizer(), False: byte_tokenizer()}


@settings(max_examples=60)
@given(
    texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=12),
    context=st.integers(2, 12),
    rows=st.integers(1, 5),
    bos=st.booleans(),
)
def test_unpacking_gives_every_token_back_in_order(texts, context, rows, bos):
    texts = [text + "." for text in texts]
    tokenizer = WITH_AND_WITHOUT_BOS[bos]
    batches = list(stream(texts, tokenizer, context=context, rows=rows))
    found = [i for ids in unpacked(batches).values() for i in ids]
    expected = [i for text in texts for i in ids_of(tokenizer, text)]
    body = context - bos
    assert found == expected[: len(found)]
    total = len(expected) + bos * (len(texts) - 1)
    row_count = sum(len(batch.tokens) for batch in batches)
    assert row_count == max(total // body, 1)  # only an incomplete last row is left out
    assert all(len(batch.tokens) == rows for batch in batches[:-1])
    assert all(batch.tokens.shape[1] == context for batch in batches)


def test_packed_rows_are_bos_and_text_with_eos_between_documents():
    tokenizer = byte_tokenizer("<bos>", "<eos>", bos_token="<bos>", eos_token="<eos>")
    first, second = (ids_of(tokenizer, text) for text in TEXTS[2:4])
    (batch,) = stream(TEXTS[2:4], tokenizer, context=6, rows=100)
    assert (batch.tokens[:, 0] == 0).all() and batch.attention_mask.all()
    body = batch.tokens[:, 1:].flatten().tolist()
    assert body == [*first, 1, *second][: len(body)]


def test_bos_separates_documents_where_there_is_no_eos():
    tokenizer = byte_tokenizer(END, bos_token=END)
    one, two = ids_of(tokenizer, "one"), ids_of(tokenizer, "two")
    (batch,) = stream(["one", "two"], tokenizer, context=20)
    assert batch.tokens[batch.attention_mask].tolist() == [0, *one, 0, *two]


def test_a_tokenizer_without_bos_gives_rows_of_text_alone():
    tokenizer = byte_tokenizer(END, eos_token=END)
    first = ids_of(tokenizer, TEXTS[0])
    batch = next(iter(stream(TEXTS, tokenizer, context=4, rows=3)))
    assert batch.tokens.flatten().tolist() == first[:12]
    assert batch.counted.all()


def test_without_special_tokens_documents_touch():
    tokenizer = byte_tokenizer()
    expected = [i for text in TEXTS for i in ids_of(tokenizer, text)]
    tokens = torch.cat([batch.tokens.flatten() for batch in stream(TEXTS, tokenizer)]).tolist()
    assert tokens == expected[: len(tokens)]


def test_bos_with_id_0_is_inserted_and_is_special():
    tokenizer = bos_tokenizer()
    assert tokenizer.bos_token_id == 0
    for packed in (True, False):
        for batch in stream(TEXTS, tokenizer, packed=packed):
            assert (batch.tokens[:, 0] == 0).all() and batch.attention_mask[:, 0].all()
            assert not batch.counted[:, 0].any()
        for batch in stream(TEXTS, tokenizer, packed=packed, policy=TokenPolicy(special=True)):
            assert batch.counted[:, 0].all()


def test_an_incomplete_last_row_is_left_out():
    tokenizer = byte_tokenizer()
    batches = list(stream(["a b c d e f g h i j k"], tokenizer, context=3, rows=2))
    count = len(ids_of(tokenizer, "a b c d e f g h i j k"))
    assert count % 3 and sum(batch.tokens.numel() for batch in batches) == count // 3 * 3
    assert all(batch.attention_mask.all() for batch in batches)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_incomplete_row_that_is_all_there_is_is_padded(side):
    tokenizer = bos_tokenizer(padding_side=side)
    ids = ids_of(tokenizer, "x = 1")
    (batch,) = stream(["x = 1"], tokenizer, context=16)
    assert batch.tokens[batch.attention_mask].tolist() == [0, *ids]
    assert batch.attention_mask.sum() < 16
    assert batch.attention_mask[0, 0] == (side == "right")


# --- one document a row -----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_document_a_row_is_cut_or_padded_on_the_tokenizers_side(side):
    tokenizer = bos_tokenizer(padding_side=side)
    (batch,) = stream(TEXTS, tokenizer, packed=False, context=10)
    assert len(batch.tokens) == len(batch.documents) == len(TEXTS)
    for row, text in enumerate(TEXTS):
        expected = [0, *ids_of(tokenizer, text)][:10]
        attended = batch.attention_mask[row]
        assert batch.tokens[row][attended].tolist() == expected
        padding = slice(0, 10 - len(expected)) if side == "left" else slice(len(expected), 10)
        assert not attended[padding].any() and not batch.counted[row][padding].any()
    assert (~batch.attention_mask).any()


def test_left_padding_does_not_shift_positions():
    policy = TokenPolicy(special=True, first=1)
    (batch,) = stream(
        TEXTS, bos_tokenizer(padding_side="left"), packed=False, context=10, policy=policy
    )
    assert batch.tokens[batch.counted].tolist() == [0] * len(TEXTS)
    (last,) = stream(
        TEXTS,
        bos_tokenizer(padding_side="right"),
        packed=False,
        context=64,
        policy=TokenPolicy(choose="last"),
    )
    assert last.end[last.counted].tolist() == [len(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("special", "names", "pad"),
    [
        (["<pad>", END], {"pad_token": "<pad>", "eos_token": END}, 0),
        (["<a>", END], {"bos_token": "<a>", "eos_token": END}, 1),
        (["<a>"], {"unk_token": "<a>"}, 0),
    ],
)
def test_padding_is_the_pad_token_else_eos_else_0(special, names, pad):
    (batch,) = stream(["x"], byte_tokenizer(*special, **names), packed=False)
    assert batch.tokens[~batch.attention_mask].unique().tolist() == [pad]


def test_a_real_end_token_is_not_taken_for_padding_that_shares_its_id():
    tokenizer = bos_tokenizer(pad_token=END)
    (batch,) = stream([f"x{END}"], tokenizer, packed=False, policy=TokenPolicy(special=True))
    x = len(ids_of(tokenizer, "x"))
    assert batch.counted[0].tolist() == [True] * (x + 2) + [False] * (6 - x)
    (batch,) = stream([f"x{END}"], tokenizer, packed=False)
    assert batch.counted[0].nonzero().flatten().tolist() == list(range(1, x + 1))


def letter_tokenizer(letters: str) -> PreTrainedTokenizerFast:
    """Knows these letters and drops all others."""
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [])))


def test_documents_without_a_token_are_passed_over():
    (batch,) = stream(["xyz", "abba", "zyx"], letter_tokenizer("ab"), packed=False)
    assert [document.text for document in batch.documents] == ["abba"]


# --- order ------------------------------------------------------------------------------------


def same(first: TokenBatch, second: TokenBatch) -> bool:
    return first.documents == second.documents and all(
        getattr(first, name).equal(getattr(second, name))
        for name in ("tokens", "attention_mask", "counted", "document", "start", "end")
    )


def order(batches) -> list[str]:
    return list(unpacked(batches))


LINES = [f"line number {i}" for i in range(40)]


def test_a_stream_can_be_iterated_over_again_and_gives_the_same():
    for options in ({}, {"seed": 3}, {"seed": 3, "epochs": 2}, {"packed": False}):
        tokens = stream(LINES, **options)
        first, second = list(tokens), list(tokens)
        assert len(first) == len(second) > 2
        assert all(map(same, first, second))


def test_two_iterations_at_once_do_not_disturb_each_other():
    tokens = stream(LINES, seed=0)
    assert all(same(first, second) for first, second in zip(tokens, tokens, strict=True))


def test_the_seed_decides_the_order_of_documents():
    natural = order(stream(LINES, packed=False))
    assert natural == [str(i) for i in range(40)]
    zero, one = (order(stream(LINES, packed=False, seed=seed)) for seed in (0, 1))
    assert len({tuple(natural), tuple(zero), tuple(one)}) == 3
    assert sorted(zero) == sorted(one) == sorted(natural)


def test_epochs_have_every_document_once_each_in_other_orders():
    tokens = stream(LINES, packed=False, seed=0, epochs=2, rows=40)
    batches = [[d.id for d in batch.documents] for batch in tokens]
    seen = [row for batch in tokens for row in batch.document.amax(1).tolist()]
    assert len(seen) == 80
    every = sorted(batch.documents[n].id for batch in tokens for n in batch.document.amax(1))
    assert every == sorted(d.id for d in open_corpus(LINES).documents("all") for _ in range(2))
    assert batches[0] != batches[1]


def test_a_batch_mixes_documents_though_each_fills_many_rows():
    long = [f"document {i} " * 400 for i in range(8)]
    for batch in stream(long, part="all", context=16, rows=32, seed=0):
        assert len(batch.documents) >= 6


def test_without_end_a_corpus_smaller_than_a_row_still_fills_rows():
    endless = iter(stream(["x = 1"], epochs=None, seed=0, context=32, rows=3))
    batches = list(itertools.islice(endless, 5))
    assert all(batch.tokens.shape == (3, 32) for batch in batches)
    assert all(batch.attention_mask.all() for batch in batches)


def test_only_the_part_asked_for_is_read():
    corpus = open_corpus(LINES, held_out=0.3)
    parts = [
        set(order(TokenStream(corpus, bos_tokenizer(), part=part, packed=False)))
        for part in ("train", "held_out")
    ]
    assert all(parts) and not parts[0] & parts[1] and len(parts[0] | parts[1]) == 40


def test_no_more_is_read_than_the_first_batches_need():
    class Endless:
        read = 0

        def __iter__(self):
            for i in itertools.count():
                self.read += 1
                yield f"document {i} " * 1000

    texts = Endless()
    next(iter(stream(texts)))
    assert texts.read < 30


# --- tokenizers -------------------------------------------------------------------------------


def test_a_document_longer_than_the_model_takes_gives_no_warning():
    tokenizer = bos_tokenizer(model_max_length=8)
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        list(stream(["word " * 100], tokenizer))
    finally:
        logger.removeHandler(handler)
    assert not records


def test_truncation_and_padding_left_on_by_an_earlier_call_do_no_harm():
    tokenizer = bos_tokenizer(pad_token=END)
    expected = ids_of(tokenizer, TEXTS[0])
    tokenizer(TEXTS, truncation=True, max_length=4, padding="max_length")
    batches = list(stream(TEXTS[:1], tokenizer, context=2, rows=1))
    assert unpacked(batches)["0"] == expected


def test_tokens_move_to_a_device_together():
    (batch,) = stream(TEXTS, rows=100)
    moved = batch.to("meta")
    assert moved.documents == batch.documents and moved.place == batch.place
    for name in ("tokens", "attention_mask", "counted", "document", "start", "end"):
        assert getattr(moved, name).device.type == "meta"
    assert same(batch, batch.to("cpu"))


def test_types_are_int64_and_bool():
    (batch,) = stream(TEXTS, rows=100)
    for name in ("tokens", "document", "start", "end"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.attention_mask.dtype == batch.counted.dtype == torch.bool


# --- mistakes ---------------------------------------------------------------------------------


def test_a_tokenizer_that_is_not_fast_is_refused():
    with pytest.raises(UserError, match=r"ByT5Tokenizer.*\n.*fast tokenizer"):
        stream(TEXTS, ByT5Tokenizer())


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(UserError, match="no tokenizer"):
        TokenStream(open_corpus(TEXTS), None)


@pytest.mark.parametrize(
    "wrong", [{"context": 1}, {"context": 0}, {"rows": 0}, {"epochs": 0}, {"epochs": -1}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        stream(TEXTS, **wrong)


def test_the_smallest_context_depends_on_bos():
    with pytest.raises(UserError, match="allowed: 2 and above"):
        stream(TEXTS, context=1)
    next(iter(stream(TEXTS, byte_tokenizer(), context=1)))


def test_a_corpus_without_a_single_token_is_an_error_and_not_an_endless_search():
    with pytest.raises(UserError, match="no token"):
        next(iter(stream(["???"], letter_tokenizer("ab"), epochs=None)))


def test_an_empty_corpus_is_an_error():
    with pytest.raises(UserError, match="empty corpus"):
        next(iter(stream(["", "  \n"])))
