from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import exact

from monosemy.corpus import Corpus
from monosemy.evaluation import SuiteResult, evaluate
from monosemy.evaluation.breakdown import FIFTHS, Kinds
from monosemy.lm import LM
from monosemy.metrics import Breakdown
from monosemy.training import Run


@pytest.fixture(scope="module")
def found(run: Run) -> SuiteResult:
    sizes = {"tokens": 3000, "loss_tokens": 1500, "draws": 50}
    return evaluate(run, suites=["reconstruction"], **sizes)["reconstruction"]


def test_sums_by_kind_and_group_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    rows, kinds, groups = rng.random((500, 3)), rng.integers(4, size=500), rng.integers(7, size=500)
    sums = Breakdown(4, 3)
    for part in np.array_split(np.arange(500), 6):
        sums.add(rows[part], kinds[part], groups[part])
    weights = rng.random((5, 7))
    expected = [[(weights[d, groups] * (kinds == k)) @ rows for k in range(4)] for d in range(5)]
    np.testing.assert_allclose(sums.weighted(weights), expected)
    np.testing.assert_allclose(sums.total()[0], [rows[kinds == k].sum(0) for k in range(4)])


def test_fifths_hold_as_much_text_and_the_commonest_comes_first() -> None:
    tokens = torch.cat([torch.full((n,), token) for token, n in enumerate([50, 50, 100, 100, 200])])
    kinds = Kinds(128, tokens, vocabulary=7)
    assert kinds.fifth.tolist() == [4, 4, 2, 3, 0, 4, 4]  # one of 200 fills two fifths
    places, common = kinds.names.values()
    assert places == ["0 to 3", "4 to 15", "16 to 63", "64 on"] and common == FIFTHS


def test_kinds_add_up_to_the_whole(found: SuiteResult) -> None:
    """Weighted by what each kind holds, CE increases are that of all tokens."""
    whole = found.value("CE increase")
    for table in found.tables[1:]:
        rows = {row.name: [v.value if v else 0.0 for v in row.values] for row in table.rows}
        assert sum(rows["tokens"]) == pytest.approx(1)
        shares = np.array(rows["tokens"])
        assert (shares @ rows["CE increase"]) == pytest.approx(whole, rel=0.15)
        assert min(rows["FVU"]) <= found.value("FVU") <= max(rows["FVU"])
        assert {"FVU, untrained dictionary", "CE increase, untrained dictionary"} <= set(rows)


def test_an_exact_dictionary_has_no_error_of_any_kind(lm: LM, corpus: Corpus) -> None:
    sizes = {"tokens": 1000, "loss_tokens": 1000, "draws": 20}
    found = evaluate(exact(lm, corpus, "layers.1"), lm, corpus, suites=["reconstruction"], **sizes)
    for table in found["reconstruction"].tables[1:]:
        for row in table.rows:
            if row.name in ("FVU", "CE increase"):
                assert all(v is None or abs(v.value) < 1e-6 for v in row.values)
