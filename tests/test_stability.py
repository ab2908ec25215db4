"""Features matched one to one, seeds compared, and the rotation that they must beat."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handmade import make_transcoder
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from monosemy.cli.main import main
from monosemy.coders import Dictionary
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation import evaluate
from monosemy.evaluation.suites.stability import FILE, compare_seeds
from monosemy.lm import LM
from monosemy.metrics import mean_max_cosine, stability
from monosemy.metrics.stability import match, match_cosines, partner_cosines, rotation
from monosemy.training import Run, seeds_beside, sweep

# --- matching ---------------------------------------------------------------------------------


def directions(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[0, 10**6], ids=["nearest", "all pairs"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of matching."""
    monkeypatch.setattr(stability, "EXACT", request.param)


def test_one_to_one_is_less_than_nearest() -> None:
    """Both rows are nearest to the first column; only one can have it, and not the greedy one."""
    cosines = torch.tensor([[0.9, 0.8], [0.85, 0.1]])
    partners = match_cosines(cosines)
    assert partners.tolist() == [1, 0]
    assert cosines.gather(1, partners[:, None]).mean().item() == pytest.approx(0.825)
    assert cosines.amax(1).mean().item() == pytest.approx(0.875)


def test_the_same_example_as_directions(either: None) -> None:
    cosines = torch.tensor([[0.9, 0.8], [0.85, 0.1]])
    b = torch.eye(2, 4)  # its cosines with a row of length 1 are that row's first two numbers
    rest = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]])
    a = torch.cat([0.9 * cosines, torch.zeros(2, 2)], 1)
    a = a + rest * (1 - a.square().sum(1, keepdim=True)).clamp_min(0).sqrt()
    partners = match(a, b)
    assert partners.tolist() == [1, 0]
    expected = (a @ b.T).gather(1, partners[:, None])[:, 0] / a.norm(dim=1)
    torch.testing.assert_close(partner_cosines(a, b, partners), expected)


@given(n=st.integers(2, 60), d=st.integers(8, 20), seed=st.integers(0, 9))
def test_a_permuted_and_scaled_copy_is_found_whole(n: int, d: int, seed: int) -> None:
    a, order = directions(n, d, seed), torch.randperm(n)
    b = a[order] * (1 + torch.rand(n, 1))
    for exact in (0, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stability, "EXACT", exact)
            partners = match(a, b)
        assert torch.equal(order[partners], torch.arange(n))
        torch.testing.assert_close(partner_cosines(a, b, partners), torch.ones(n))


@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 9))
def test_no_two_have_one_partner(n: int, m: int, seed: int) -> None:
    a, b = directions(n, 8, seed), directions(m, 8, seed + 100)
    for exact in (0, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stability, "EXACT", exact)
            partners = match(a, b)
        kept = partners[partners >= 0]
        assert len(kept.unique()) == len(kept) <= min(n, m)
        assert len(kept) == min(n, m) or exact == 0
        cosines = partner_cosines(a, b, partners)
        assert (cosines[partners < 0] == 0).all()
        assert cosines.sum() <= mean_max_cosine(b, a) * n + 1e-4 or m < n


def test_the_nearest_suffice_where_partners_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    a = directions(300, 32)
    b = a[torch.randperm(300)] + 0.4 * directions(300, 32, seed=1)
    best = partner_cosines(a, b, match(a, b)).sum()
    monkeypatch.setattr(stability, "EXACT", 0)
    torch.testing.assert_close(partner_cosines(a, b, match(a, b)).sum(), best)
    monkeypatch.setattr(stability, "CANDIDATES", 1)
    assert partner_cosines(a, b, match(a, b)).sum() <= best


def test_upside_down_is_not_found(either: None) -> None:
    a = normalize(directions(40, 64), dim=1)
    assert partner_cosines(a, -a, match(a, -a)).mean() < 0.3


def test_rotations_keep_lengths_and_angles() -> None:
    turned = rotation(12, seed=3)
    torch.testing.assert_close(turned @ turned.T, torch.eye(12), atol=1e-5, rtol=0)
    assert torch.equal(turned, rotation(12, seed=3))
    assert not torch.allclose(turned, rotation(12, seed=4))
    assert abs(torch.stack([rotation(3, s)[0] for s in range(300)]).mean()) < 0.1


# --- dictionaries -----------------------------------------------------------------------------


def with_features(dictionary: Dictionary, features: Tensor) -> Dictionary:
    """The same dictionary of some of its features, in another order."""
    coder = copy.deepcopy(dictionary.coder)
    coder.width = len(features)
    for name in ("W_enc", "W_dec", "b_enc"):
        getattr(coder, name).data = getattr(coder, name).data[features].clone()
    return replace(dictionary, coder=coder, strength=dictionary.strength[features])


def alive(dictionary: Dictionary, dead: int = 0) -> Dictionary:
    """All features have fired but the first ones."""
    strength = torch.ones(dictionary.width)
    strength[:dead] = 0
    return replace(dictionary, strength=strength)


def test_a_permuted_dictionary_shares_every_feature(run: Run) -> None:
    mine = alive(run.dictionary)
    found = compare_seeds(mine, with_features(mine, torch.randperm(mine.width)))
    torch.testing.assert_close(found.matched, torch.ones(mine.width))
    torch.testing.assert_close(found.nearest, torch.ones(mine.width))
    assert found.shared.all() and found.pairs == mine.width
    torch.testing.assert_close(found.columns().mean(0), torch.ones(3))


def test_features_are_shared_only_if_their_encoders_are(run: Run) -> None:
    mine = alive(run.dictionary)
    other = with_features(mine, torch.arange(mine.width))
    other.coder.W_enc.data = directions(mine.width, mine.d_in, seed=7)
    found = compare_seeds(mine, other)
    assert found.matched.min() > 0.99
    assert found.shared.float().mean() < 0.1
    other.coder.W_enc = None  # type: ignore[assignment]
    assert compare_seeds(mine, other).shared.all()


def test_dead_features_are_left_out(run: Run) -> None:
    mine = alive(run.dictionary, dead=5)
    found = compare_seeds(mine, alive(run.dictionary, dead=20))
    assert found.features.tolist() == list(range(5, mine.width))
    assert found.pairs == mine.width - 20
    # The fifteen that are dead there take no partner from those that are not.
    assert (found.matched[15:] > 0.99).all() and (found.matched[:15] < 0.99).all()


def test_a_rotated_dictionary_shares_nothing(run: Run) -> None:
    mine = alive(run.dictionary)
    found = compare_seeds(mine, mine, rotated=0)
    assert found.matched.mean() < 0.7 and found.shared.float().mean() < 0.1


def test_transcoders_are_compared_where_they_write(lm: LM, corpus: Corpus) -> None:
    transcoder = alive(make_transcoder(lm, corpus, target="layers.1.mlp.up_proj"))
    other = with_features(transcoder, torch.randperm(transcoder.width))
    assert compare_seeds(transcoder, other).shared.all()
    assert not compare_seeds(transcoder, other, rotated=1).shared.all()


# --- the suite --------------------------------------------------------------------------------


def random_other(run: Run) -> Dictionary:
    mine = alive(run.dictionary)
    other = with_features(mine, torch.arange(mine.width))
    for name in ("W_enc", "W_dec"):
        getattr(other.coder, name).data = directions(mine.width, mine.d_in, seed=7)
    return other


def test_the_same_features_win_and_random_ones_tie(run: Run) -> None:
    mine = alive(run.dictionary, dead=3)
    same = with_features(mine, torch.randperm(mine.width))
    found = evaluate(mine, run.lm, run.corpus, others=[same], suites=["stability"], draws=200)
    result = found["stability"]
    for row in ("mean max cosine", "PW-MCC", "shared above 0.7"):
        assert result.value(row) == pytest.approx(1, abs=1e-5)
        assert result.value(row, "random rotation") < 0.7
    assert [j.outcome for j in result.judgements] == ["wins against"]
    assert result.series["stability"] == [None] * 3 + [1.0] * (mine.width - 3)
    assert json.loads(json.dumps(found.to_dict()))["wins"]
    lines = result.plots[0].lines
    assert lines["dictionary"][0][1] > 0.99 > lines["random rotation"][-1][1]

    chance = evaluate(
        mine, run.lm, run.corpus, others=[random_other(run)], suites=["stability"], draws=200
    )["stability"]
    assert [j.outcome for j in chance.judgements] == ["ties with"]
    null = chance.value("PW-MCC", "random rotation")
    assert chance.value("PW-MCC") == pytest.approx(null, rel=0.1)


def test_several_others_are_averaged_and_shown_apart(run: Run) -> None:
    mine = alive(run.dictionary)
    others = [mine, random_other(run)]
    result = evaluate(mine, run.lm, run.corpus, others=others, suites=["stability"], draws=50)
    found = result["stability"]
    assert found.context["others"] == ["other 1", "other 2"]  # their seeds are the same
    apart = [found.value("PW-MCC", name) for name in found.context["others"]]
    assert apart[0] == pytest.approx(1) and apart[1] < 0.7
    assert found.value("PW-MCC") == pytest.approx(sum(apart) / 2)
    scores = found.series["stability"]
    assert sum(scores) / len(scores) == pytest.approx(found.value("PW-MCC"), abs=1e-3)


def test_a_foreign_object_is_compared_by_its_directions(run: Run) -> None:
    class Peer:
        def encode(self, x: Tensor) -> Tensor:
            return run.dictionary.encode(x)

        def decode(self, z: Tensor) -> Tensor:
            return run.dictionary.decode(z)

    found = evaluate(run, others=[Peer()], suites=["stability"], draws=50)["stability"]
    assert found.value("PW-MCC") == pytest.approx(1, abs=1e-4)


def test_alone_there_is_nothing_to_compare(run: Run) -> None:
    assert "--seeds" in evaluate(run, suites=["stability"])["stability"].skipped
    dead = replace(run.dictionary, strength=torch.eye(run.dictionary.width)[0])
    found = evaluate(run, others=[dead], suites=["stability"])["stability"]
    assert "fewer than 2 features" in found.skipped


def test_dictionaries_of_other_activations_are_refused(run: Run) -> None:
    elsewhere = replace(
        run.dictionary, provenance=replace(run.dictionary.provenance, hookpoint="layers.2")
    )
    with pytest.raises(UserError, match=r"their hookpoint: `layers\.1` and `layers\.2`"):
        evaluate(run, others=[elsewhere], suites=["stability"])


def test_a_sweeps_runs_find_their_other_seeds(
    checkpoint: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text", tmp_path / "runs"
    text.mkdir()
    for i, document in enumerate(texts):
        (text / f"{i}.txt").write_text(document)
    grid = {"k": [4, 8], "seed": [0, 1, 2]}
    sizes = {"width": 32, "tokens": 2000, "batch": 256, "pool": 1024, "context": 32}
    sweep(str(checkpoint), str(text), ["layers.1"], grid=grid, out=out, **sizes)
    mine = out / "batch_topk-l0-4-s1"
    names = [folder.name for folder in seeds_beside(mine)]
    assert names == ["batch_topk-l0-4-s0", "batch_topk-l0-4-s2"]
    assert seeds_beside(tmp_path) == []

    capsys.readouterr()
    main(["evaluate", str(mine), "--suite", "stability"])
    said = capsys.readouterr().out
    assert "seed 0" in said and "seed 2" in said and "random rotation" in said
    scores = json.loads((mine / FILE).read_text())
    assert scores["others"] == ["seed 0", "seed 2"] and len(scores["stability"]) == 32
    main(["evaluate", str(mine), "--suite", "stability", "--seeds", str(out / names[1])])
    assert json.loads((mine / FILE).read_text())["others"] == ["seed 2"]
