"""Documents to token batches, with the way back to the text; token policy; held-out split."""

from monosemy.corpus.corpus import Corpus, Part, open_corpus
from monosemy.corpus.document import HELD_OUT_SHARE, Document
from monosemy.corpus.pairs import Pair, read_pairs
from monosemy.corpus.place import Place
from monosemy.corpus.policy import TokenPolicy
from monosemy.corpus.tokens import TokenBatch, TokenStream

__all__ = [
    "HELD_OUT_SHARE",
    "Corpus",
    "Document",
    "Pair",
    "Part",
    "Place",
    "TokenBatch",
    "TokenPolicy",
    "TokenStream",
    "open_corpus",
    "read_pairs",
]
