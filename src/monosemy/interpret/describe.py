"""All that can be found out about features by look-ups in their index, kept beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from monosemy.artefact import write_text
from monosemy.coders import Dictionary
from monosemy.corpus import LabelledCorpus
from monosemy.errors import UserError
from monosemy.index import Index
from monosemy.interpret.concepts import ConceptTable, label_index, score_features
from monosemy.interpret.firings import Firings, TokenRows
from monosemy.interpret.graph import as_read
from monosemy.interpret.inputs import InputCluster, cluster_inputs
from monosemy.interpret.logit_lens import vocabulary_lens
from monosemy.interpret.map import CLUSTERS, cluster_features, map_features
from monosemy.interpret.n2g import activate_in, explain_features
from monosemy.interpret.similar import Neighbours, nearest_by_activation, nearest_by_direction
from monosemy.lm import LM

LENS, SIMILAR, MAP, CONCEPTS, PATTERNS = "lens", "similar", "map", "concepts", "patterns"
"""Names of what is kept: arrays the first three, tables the others."""
COVERAGE = "concepts.json"
"""Each concept's best features, and how many concepts and features go together."""
KINDS_OF_TEXT = "kinds.json"
"""Kinds of text, by the features they activate."""

_NEIGHBOURS = 15
_FEATURES_A_CLUSTER = 32
_KINDS, _ROWS_A_KIND = 20, 10


def describe(
    index: Index, lm: LM, dictionary: Dictionary, labels: LabelledCorpus | None = None
) -> ConceptTable | None:
    """Find out what features write, which are alike, and which stand for known concepts.

    Returns:
        Features against concepts: those of the labels, else of Python source; None where the text
        is neither.

    Raises:
        UserError: labels are given, and fewer than two documents have any.
    """
    write_lens(index, lm, dictionary)
    write_similar(index, dictionary)
    if labels is not None:
        return write_concepts(index, labels)
    try:
        return write_concepts(index)
    except UserError:
        return None


def firings_of(index: Index) -> Firings:
    """Return an index's entries; nothing is copied."""
    return Firings(index.offsets, index.places, index.values)


def write_lens(index: Index, lm: LM, dictionary: Dictionary) -> None:
    """Keep what features are to the vocabulary: `vocabulary_lens`, as arrays `lens`."""
    if lm.tokenizer is not None:
        index.write_arrays(LENS, vocabulary_lens(lm, dictionary))


def write_similar(index: Index, dictionary: Dictionary) -> None:
    """Keep who is like whom, as arrays `similar`: `decoder` by direction, `coactive` by firing.

    Each has `NAME_ids` [width, 15], nearest first, -1 where there are fewer, and `NAME_scores`:
    cosine, and Jaccard index of the tokens on which they fire. `correlated`, by the correlation of
    activations, is what a map is drawn from.
    """
    counted = np.flatnonzero(index.text.counted)
    decoder = nearest_by_direction(dictionary.coder.W_dec, _NEIGHBOURS)
    together = nearest_by_activation(firings_of(index), counted, _NEIGHBOURS)
    arrays = {}
    kinds = {"decoder": decoder, "coactive": together.jaccard, "correlated": together.correlation}
    for name, found in kinds.items():
        arrays[f"{name}_ids"], arrays[f"{name}_scores"] = found.features, found.scores
    index.write_arrays(SIMILAR, arrays)


def write_map(index: Index, *, seed: int = 0) -> None:
    """Keep where each feature lies on a map and in which cluster, as arrays `map`.

    By the correlation of what fires together: `xy` [width, 2], NaN for features that never fire,
    and `cluster` [width], -1 for none. After `write_similar`.

    Raises:
        UserError: a package is missing (`monosemy[map]`), or too few features fire.
    """
    together, fires = _correlated(index), index.counts > 0
    cluster = _clusters(index, seed)
    index.write_arrays(MAP, {"xy": map_features(together, fires, seed=seed), "cluster": cluster})


def read_clusters(
    index: Index, dictionary: Dictionary, *, seed: int = 0
) -> Int[np.ndarray, " width"]:
    """Return the cluster of each feature, -1 for none: the map's, or such as a map would have.

    Raises:
        UserError: there is no map, and a package is missing (`monosemy[map]`) or too few features
            fire.
    """
    arrays = index.arrays(MAP)
    if arrays:
        return arrays["cluster"]
    if not index.arrays(SIMILAR):
        write_similar(index, dictionary)
    return _clusters(index, seed)


def _clusters(index: Index, seed: int) -> Int[np.ndarray, " width"]:
    clusters = min(CLUSTERS, max(int((index.counts > 0).sum()) // _FEATURES_A_CLUSTER, 2))
    return cluster_features(_correlated(index), clusters, seed=seed).astype(np.int32)


def _correlated(index: Index) -> Neighbours:
    similar = index.arrays(SIMILAR)
    return Neighbours(similar["correlated_ids"], similar["correlated_scores"])


def write_kinds(index: Index, *, seed: int = 0) -> None:
    """Keep the kinds of text there are: rows of the index clustered by the features they activate.

    `KINDS_OF_TEXT` lists them, largest first: `size` in rows, `features` that set it apart and
    their lift, and `rows` nearest to its centre. Of very little text there are none.

    Raises:
        UserError: a package is missing (`monosemy[map]`).
    """
    context = index.text.context
    rows = np.where(index.text.counted, np.arange(len(index.text)) // context, -1)
    kinds = min(_KINDS, len(index.text) // context // _ROWS_A_KIND)
    found: list[InputCluster] = []
    if kinds > 1 and len(index.values):
        found = cluster_inputs(firings_of(index), rows, kinds, seed=seed)[1]
    told = [{"size": k.size, "features": k.features, "rows": k.nearest} for k in found]
    write_text(index.folder / KINDS_OF_TEXT, json.dumps(told, indent=1) + "\n")


def write_concepts(index: Index, labels: LabelledCorpus | None = None) -> ConceptTable:
    """Name features by what is known to be true of the text: table `concepts`, and its inverse.

    Args:
        index: of Python source, or of the labelled text.
        labels: what is true of that; None: the syntax of Python source.

    Raises:
        UserError: fewer than two documents have labels.
    """
    if labels is None:
        places = label_index(index)
    else:
        places = label_index(index, labels.spans, labels.classes)
    table = score_features(firings_of(index), places)
    index.write_table(CONCEPTS, table.rows())
    found = {"coverage": table.coverage, "concepts": list(table.concepts())}
    write_text(index.folder / COVERAGE, json.dumps(found, indent=1) + "\n")
    return table


def read_coverage(index: Index) -> dict[str, float] | None:
    """Return the `coverage` of the table of concepts that is kept; None where there is none."""
    try:
        found: dict[str, float] = json.loads((index.folder / COVERAGE).read_bytes())["coverage"]
    except (OSError, ValueError, KeyError):
        return None
    return found


def write_patterns(
    index: Index, lm: LM, dictionary: Dictionary, features: Sequence[int], *, seed: int = 0
) -> None:
    """Keep the patterns of tokens (N2G) that some features fire on, beside those known before.

    Raises:
        UserError: the model does not predict the next token: patterns look back from a token.
    """
    if not lm.is_causal or lm.tokenizer is None:
        raise UserError(
            f"{lm.name} does not predict the next token, and patterns look back from one",
            "leave the patterns out",
        )
    bos = lm.tokenizer.bos_token_id
    shape = (-1, index.text.context)
    ids, document, counted = (
        np.asarray(a).reshape(shape)
        for a in (index.text.ids, index.text.document, index.text.counted)
    )
    read = as_read(ids, bos, (document >= 0) | (ids == bos))
    rows = TokenRows(read.astype(np.int32), counted, document)
    activate = activate_in(lm, dictionary.hookpoint, dictionary.coder, bos=bos)
    graphs = explain_features(rows, firings_of(index), features, activate, bos=bos, seed=seed)
    known = dict(index.table(PATTERNS))
    for feature, graph in zip(features, graphs, strict=True):
        known[feature] = {"feature": feature, **graph.to_dict()}
    index.write_table(PATTERNS, [known[feature] for feature in sorted(known)])
