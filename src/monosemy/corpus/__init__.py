"""Documents to token batches, with the way back to the text; token policy; held-out split."""

from monosemy.corpus.choices import Choice, read_choices, split_choices
from monosemy.corpus.corpus import Corpus, Part, open_corpus
from monosemy.corpus.document import HELD_OUT_SHARE, Document
from monosemy.corpus.facts import Fact, Question, read_facts, read_questions
from monosemy.corpus.labelled import LabelledCorpus, open_labels
from monosemy.corpus.labels import Spans, label_document, label_tokens
from monosemy.corpus.pairs import Pair, read_pairs
from monosemy.corpus.place import Place
from monosemy.corpus.policy import TokenPolicy
from monosemy.corpus.shard import ShardSource
from monosemy.corpus.syntax import CONCEPTS, syntax_spans
from monosemy.corpus.tokens import TokenBatch, TokenStream
from monosemy.corpus.unfinished import parsable_part

__all__ = [
    "CONCEPTS",
    "HELD_OUT_SHARE",
    "Choice",
    "Corpus",
    "Document",
    "Fact",
    "LabelledCorpus",
    "Pair",
    "Part",
    "Place",
    "Question",
    "ShardSource",
    "Spans",
    "TokenBatch",
    "TokenPolicy",
    "TokenStream",
    "label_document",
    "label_tokens",
    "open_corpus",
    "open_labels",
    "parsable_part",
    "read_choices",
    "read_facts",
    "read_pairs",
    "read_questions",
    "split_choices",
    "syntax_spans",
]
