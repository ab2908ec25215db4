"""Edits of features: what they do to a code, where they act, and that nothing is left behind."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from monosemy.coders import Add, Change, Clamp, ProjectOut, Scale, SuppressAll, Swap, ablate
from monosemy.corpus import Corpus
from monosemy.corpus.minimal_pairs import MinimalPair
from monosemy.errors import UserError
from monosemy.evaluation import evaluate
from monosemy.intervene import FeatureEdit, Firing, Patching, Positions
from monosemy.lm import LM
from monosemy.training import Run

PROMPT = "def read_file(path):"


@pytest.fixture(scope="module")
def live(run: Run) -> list[int]:
    return run.dictionary.strength.topk(4).indices.tolist()


def edited(run: Run, *changes: Change, error: str = "keep") -> tuple[Tensor, Tensor, Tensor]:
    """Activations of a prompt's text, their code, and the activations after changes."""
    lm, d = run.lm, run.dictionary
    tokens = lm.encode(PROMPT)
    x = lm.capture(tokens, [d.hookpoint])[d.hookpoint]
    with lm.edit(FeatureEdit(d, changes, error=error)):  # type: ignore[arg-type]
        y = lm.capture(tokens, [d.hookpoint])[d.hookpoint]
    text = torch.tensor([int(t) not in lm.special_ids for t in tokens[0]])
    assert torch.equal(x[0, ~text], y[0, ~text])
    return x[0, text], d.encode(x[0, text]), y[0, text]


def by_hand(run: Run, x: Tensor, z: Tensor, after: Tensor, error: str = "keep") -> Tensor:
    d = run.dictionary
    return d.decode(after) + (x - d.decode(z) if error == "keep" else 0)


@pytest.mark.parametrize("error", ["keep", "drop"])
def test_each_change_is_what_it_says(run: Run, live: list[int], error: str) -> None:
    a, b, c, _ = live
    s = run.dictionary.strength
    x, z, _ = edited(run)
    expected: list[tuple[tuple[Change, ...], Tensor]] = []

    def change(*changes: Change) -> Tensor:
        expected.append((changes, z.clone()))
        return expected[-1][1]

    change(Add({a: 0.5, b: -1.0}))[:, [a, b]] += torch.stack([0.5 * s[a], -s[b]])
    change(Clamp({a: 0.5}))[:, a] = 0.5 * s[a]
    change(Scale({a: 3.0, c: 0.0}))[:, [a, c]] *= torch.tensor([3.0, 0.0])
    change(ablate([a, b]))[:, [a, b]] = 0
    change(Swap(a, b))[:, [a, b]] = z[:, [b, a]]
    halved = change(SuppressAll(0.5), Clamp({a: 1.0}))
    halved *= 0.5
    halved[:, a] = s[a]
    twice = change(Clamp({a: 1.0}), SuppressAll(0.5), Add({a: 1.0}))
    twice *= 0.5
    twice[:, a] = 1.5 * s[a]
    for changes, after in expected:
        found = edited(run, *changes, error=error)[2]
        wanted = by_hand(run, x, z, after, error)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4, msg=str(changes))


def test_nothing_is_left_along_what_was_projected_out(run: Run, live: list[int]) -> None:
    a, b, _, _ = live
    rows = run.dictionary.coder.W_dec[[a, b]]
    x, _, y = edited(run, ProjectOut((a, b)), Clamp({a: 1.0}))
    assert (y @ rows.T).abs().max() < 1e-4
    rest = torch.linalg.qr(rows.T, mode="complete").Q[:, 2:]
    torch.testing.assert_close(y @ rest, (x + (y - x)) @ rest)


def test_no_change_is_exactly_none(run: Run, live: list[int]) -> None:
    a, b, _, _ = live
    for changes in ([], [Add({a: 0.0})], [Scale({a: 1.0, b: 1.0})], [SuppressAll(1.0)]):
        x, _, y = edited(run, *changes)
        assert torch.equal(x, y), changes
    tokens = run.lm.encode(PROMPT)
    plain = run.lm.logits(tokens)
    with run.lm.edit(FeatureEdit(run.dictionary, [Scale({a: 1.0})])):
        assert torch.equal(plain, run.lm.logits(tokens))


@pytest.mark.parametrize(
    "positions", ["all", "prompt", "generated", range(2, 9), "firing"], ids=str
)
def test_with_and_without_a_cache_token_for_token(
    run: Run, live: list[int], positions: Positions
) -> None:
    if positions == "firing":
        positions = Firing(live[1])
    edit = FeatureEdit(run.dictionary, [Clamp({live[0]: 4.0})], positions)
    with run.lm.edit(edit):
        texts = [
            run.lm.write(PROMPT, max_new_tokens=16, use_cache=cache).tokens
            for cache in (True, False)
        ]
    assert torch.equal(*texts)


def touched(lm: LM, edit: FeatureEdit, tokens: Tensor, prompt: int, **given: Tensor) -> Tensor:
    point = edit.dictionary.hookpoint
    before = lm.capture(tokens, [point], **given)[point]
    with lm.prompted(prompt), lm.edit(edit):
        after = lm.capture(tokens, [point], **given)[point]
    return (before != after).any(-1)


def test_only_the_positions_asked_for_change(run: Run, live: list[int]) -> None:
    lm, d = run.lm, run.dictionary
    tokens = lm.encode(PROMPT)
    n, text = tokens.shape[1], ~torch.isin(tokens, torch.tensor(sorted(lm.special_ids)))
    place = torch.arange(n)[None]
    fires = d.encode(lm.capture(tokens, [d.hookpoint])[d.hookpoint])[..., live[1]] > 0
    for positions, wanted in {
        "all": text,
        "prompt": text & (place < 3),
        "generated": text & (place >= 3),
        range(2, 4): text & (place >= 2) & (place < 4),
        Firing(live[1]): text & fires,
        Firing(live[1], above=1e9): torch.zeros_like(text),
    }.items():
        edit = FeatureEdit(d, [Add({live[0]: 1.0})], positions)
        assert torch.equal(touched(lm, edit, tokens, 3), wanted), positions


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_and_each_of_it_alone_agree(run: Run, live: list[int], side: str) -> None:
    lm, d = run.lm, run.dictionary
    rows = [lm.encode(text)[0] for text in (PROMPT, "return value + 1", "x")]
    longest = max(map(len, rows))
    pad = min(lm.special_ids)

    def padded(row: Tensor, value: int) -> Tensor:
        rest = torch.full((longest - len(row),), value)
        return torch.cat([rest, row] if side == "left" else [row, rest])

    tokens = torch.stack([padded(row, pad) for row in rows])
    mask = torch.stack([padded(torch.ones_like(row), 0) for row in rows])
    for positions in ("all", range(1, 3)):
        with lm.edit(FeatureEdit(d, [Clamp({live[0]: 2.0})], positions)):
            together = lm.logits(tokens, attention_mask=mask)
            for row, logits, seen in zip(rows, together, mask, strict=True):
                alone = lm.logits(row[None])[0]
                torch.testing.assert_close(logits[seen.bool()], alone, atol=1e-4, rtol=1e-4)


def test_edits_of_several_dictionaries_come_one_after_another(run: Run, live: list[int]) -> None:
    lm, d = run.lm, run.dictionary
    tokens = lm.encode(PROMPT)
    first, second = FeatureEdit(d, [Scale({live[0]: 2.0})]), FeatureEdit(d, [Add({live[1]: 1.0})])
    with lm.edit(first, second):
        at_once = lm.logits(tokens)
    with lm.edit(first), lm.edit(second):
        nested = lm.logits(tokens)
    assert torch.equal(at_once, nested)
    assert not torch.equal(at_once, lm.logits(tokens))


def test_gradients_flow_through_an_edit(run: Run, live: list[int]) -> None:
    lm, d = run.lm, run.dictionary
    tokens = lm.encode(PROMPT)
    x = lm.capture(tokens, [d.hookpoint])[d.hookpoint].requires_grad_()
    put = {d.hookpoint: lambda _x, _tokens: x}
    with lm.edit(put, FeatureEdit(d, [Scale({live[0]: 2.0})])):
        loss = lm.logits(tokens, gradients=True).logsumexp(-1).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    direction = torch.randn_like(x)
    losses = []
    for step in (1e-2, -1e-2):
        moved = (x + step * direction).detach()
        put = {d.hookpoint: lambda _x, _t, moved=moved: moved}
        with lm.edit(put, FeatureEdit(d, [Scale({live[0]: 2.0})])):
            losses.append(lm.logits(tokens).double().logsumexp(-1).sum())
    measured = (losses[0] - losses[1]) / 2e-2
    assert float((gradient * direction).sum()) == pytest.approx(float(measured), rel=0.05)


def test_evaluation_and_patching_are_of_the_edited_model(
    run: Run, live: list[int], corpus: Corpus
) -> None:
    def measured() -> tuple[float, float]:
        result = evaluate(run, run.lm, corpus, suites=["reconstruction"], tokens=2000, draws=10)
        ce = result["reconstruction"].context["ce"]["original"]
        patching = Patching(run.lm, [run.dictionary], [MinimalPair("x(1", "x[1", ")", "]")])
        return ce, float(patching.values)

    plain = measured()
    with run.lm.edit(FeatureEdit(run.dictionary, [Scale({live[0]: 1.0})])):
        assert measured() == plain
    with run.lm.edit(FeatureEdit(run.dictionary, [Clamp(dict.fromkeys(live, 2.0))])):
        ce, margin = measured()
    assert abs(ce - plain[0]) > 0.01 and margin != plain[1]
    assert measured() == plain


def test_a_model_is_trained_under_an_edit(run: Run, live: list[int]) -> None:
    """Weights before and behind the dictionary learn, and they learn from edited activations."""
    lm = run.lm.reinitialised(seed=0)
    lm.model.load_state_dict(run.lm.model.state_dict())
    edit = FeatureEdit(run.dictionary, [Clamp({live[0]: 1.0}), Scale({live[1]: 0.0})])
    tokens = lm.encode("def read_file(path):\n    return open(path).read()")
    before = lm.model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    optimiser = torch.optim.SGD(lm.model.parameters(), lr=0.05)
    losses = []
    with lm.edit(edit):
        for _ in range(8):
            optimiser.zero_grad()
            loss = lm.model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        with torch.no_grad():
            edited = float(lm.model(input_ids=tokens, labels=tokens).loss)
    with torch.no_grad():
        plain = float(lm.model(input_ids=tokens, labels=tokens).loss)
    assert edited < losses[-1] < losses[0]
    assert edited != plain
    moved = [name for name, value in lm.model.state_dict().items() if (value != before[name]).any()]
    assert any("layers.0." in name for name in moved)
    assert any("layers.2." in name for name in moved)


def test_nothing_stays_when_something_goes_wrong(run: Run, live: list[int]) -> None:
    lm = run.lm
    edit = FeatureEdit(run.dictionary, [Clamp({live[0]: 2.0})], "generated")
    with pytest.raises(UserError, match="not known outside generation"), lm.edit(edit):
        lm.logits(lm.encode(PROMPT))
    modules = lm.model.modules()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules) == 0
    assert lm.call.tokens is None


def test_a_model_that_the_dictionary_was_not_made_for_is_refused(run: Run, live: list[int]) -> None:
    other = run.lm.reinitialised(seed=3)
    edit = FeatureEdit(run.dictionary, [Clamp({live[0]: 1.0})])
    with pytest.raises(UserError, match="does not fit"), other.edit(edit):
        pass
    moved = replace(run.dictionary.provenance, hookpoint="layers.0")
    wrong = replace(run.dictionary, provenance=moved, coder=deepcopy(run.dictionary.coder))
    with pytest.raises(UserError, match=r"does not fit `layers\.0`"):
        FeatureEdit(wrong, []).hooks(run.lm)
    free = replace(run.dictionary, fingerprint=None)  # as of arrays: nothing can be replayed
    with other.edit(FeatureEdit(free, [Clamp({live[0]: 1.0})])):
        other.logits(other.encode(PROMPT))


def test_whether_it_fits_is_asked_of_the_unedited_model(run: Run, live: list[int]) -> None:
    def ruin(x: Tensor, tokens: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    fresh = replace(run.dictionary, coder=deepcopy(run.dictionary.coder))
    tokens = run.lm.encode(PROMPT)
    with run.lm.edit({"layers.0": ruin}):
        ruined = run.lm.logits(tokens)
        with run.lm.edit(FeatureEdit(fresh, [])):
            assert torch.equal(run.lm.logits(tokens), ruined)
        with run.lm.unedited():
            assert not torch.equal(run.lm.logits(tokens), ruined)


@pytest.mark.parametrize(
    ("changes", "positions", "told"),
    [
        ([Clamp({96: 1.0})], "all", "96"),
        ([Swap(0, -1)], "all", "-1"),
        ([], Firing(1000), "1000"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_model_runs(
    run: Run, changes: list[Change], positions: Positions, told: str
) -> None:
    with pytest.raises(UserError) as raised:
        FeatureEdit(run.dictionary, changes, positions)
    assert told in str(raised.value)
