"""Patching, exact and estimated: against donors, by hand, by autograd of a dense code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handmade import exact, make_transcoder
from torch import Tensor

from monosemy.cli.main import main
from monosemy.coders import Dictionary, ablate
from monosemy.corpus import Corpus
from monosemy.corpus.minimal_pairs import MinimalPair
from monosemy.errors import UserError
from monosemy.intervene import ERROR, FeatureEdit, Node, NodeEffects, Patching, agreement
from monosemy.intervene.patching import Metric, Receiver
from monosemy.lm import LM
from monosemy.training import Run

PAIRS = [
    MinimalPair("x(1", "x[1", ")", "]"),
    MinimalPair("def f(x", "def f[x", ")", "]"),
    MinimalPair("value[2, 3", "value(2, 3", "]", ")"),
    MinimalPair("print('a", 'print("a', "'", '"'),
]
ONE_SIDED = [MinimalPair(pair.clean, None, pair.answer, pair.wrong) for pair in PAIRS]


def bare(dictionary: Dictionary) -> Dictionary:
    """Without its fingerprint, which would be replayed each time it is used."""
    return replace(dictionary, fingerprint=None)


@pytest.fixture(scope="module")
def mine(run: Run) -> Dictionary:
    return bare(run.dictionary)


@pytest.fixture(scope="module")
def early(lm: LM, corpus: Corpus) -> Dictionary:
    return bare(exact(lm, corpus, "layers.0"))


@pytest.fixture(scope="module")
def transcoder(lm: LM, corpus: Corpus) -> Dictionary:
    return bare(make_transcoder(lm, corpus, skip=True))


@pytest.fixture(scope="module")
def three(early: Dictionary, run: Run, transcoder: Dictionary) -> list[Dictionary]:
    return [early, transcoder, bare(run.dictionary)]


SITES = ["layers.0", "layers.1.post_attention_layernorm -> layers.1.mlp", "layers.1"]


def everything(patching: Patching, *sites: str) -> list[Node]:
    return [
        Node(name, feature)
        for name in sites or patching.sites
        for feature in range(-1, patching.sites[name].width)
    ]


@pytest.mark.parametrize("receiver", ["clean", "corrupted"])
@pytest.mark.parametrize("sites", [(0,), (2,), (0, 1, 2)])
def test_patching_every_node_gives_the_donor(
    lm: LM, three: list[Dictionary], receiver: Receiver, sites: tuple[int, ...]
) -> None:
    patching = Patching(lm, [three[i] for i in sites], PAIRS, receiver=receiver)
    assert (patching.values - patching.donor_values).abs().min() > 0.01
    for nodes, others in ((everything(patching), False), ([], True)):
        found = patching.patched(nodes, others=others)
        torch.testing.assert_close(found, patching.donor_values, atol=1e-4, rtol=1e-4)


def test_patching_nothing_changes_nothing_at_all(lm: LM, three: list[Dictionary]) -> None:
    patching = Patching(lm, three, PAIRS)
    assert torch.equal(patching.patched([]), patching.values)
    assert torch.equal(patching.patched(everything(patching), others=True), patching.values)
    turned = Patching(lm, three, [p.turned() for p in PAIRS], receiver="corrupted")
    torch.testing.assert_close(turned.values, -patching.values)


def test_where_the_metric_is_linear_every_method_is_exact(lm: LM, corpus: Corpus) -> None:
    patching = Patching(lm, [bare(exact(lm, corpus, "final_norm"))], PAIRS[1:3])
    first = patching.attribute("first-order")
    assert set(first.position.tolist()) == {-1}
    for positions in (False, True):
        estimate = first.nodes(positions=positions)
        measured = patching.exact(estimate.nodes)
        assert len(estimate) > 20
        torch.testing.assert_close(measured.mean, estimate.mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(measured.size, estimate.size, atol=1e-5, rtol=1e-4)
        along = patching.attribute("integrated gradients", 2).nodes(positions=positions)
        torch.testing.assert_close(along.mean, estimate.mean, atol=1e-5, rtol=1e-4)
        found = agreement(measured, estimate)
        assert found.correlation == pytest.approx(1) and found.slope == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("metric", ["logit difference", "log-probability", "kl"])
def test_integrated_gradients_add_up_to_patching_the_whole_site(
    lm: LM, three: list[Dictionary], metric: Metric
) -> None:
    patching = Patching(lm, three, PAIRS, metric=metric)
    coarse, fine = (patching.attribute(steps=steps) for steps in (2, 32))
    for site in SITES:
        whole = patching.patched(everything(patching, site)) - patching.values
        off = [(e.per_pair(site) - whole).abs().max() for e in (coarse, fine)]
        assert off[1] < 0.02 * whole.abs().max() + 1e-3, site
        assert off[1] < off[0] + 1e-4


def splice(
    lm: LM, dictionary: Dictionary, pair: MinimalPair
) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """A pair's codes on both sides, and its metric with a code and error put in the clean run."""
    point = dictionary.hookpoint
    sides = [lm.encode(text or "") for text in (pair.clean, pair.corrupted)]
    x = [lm.capture(tokens, [point])[point][0, 1:] for tokens in sides]
    z = [dictionary.encode(a) for a in x]
    answers = [int(lm.encode(a or "")[0, -1]) for a in (pair.answer, pair.wrong)]

    def metric(z_now: Tensor, error: Tensor) -> Tensor:
        def put(y: Tensor, tokens: Tensor | None) -> Tensor:
            return torch.cat([y[:, :1], (dictionary.coder.decode(z_now) + error)[None]], 1)

        with lm.edit({point: put}):
            logits = lm.logits(sides[0], gradients=True)[0, -1]
        return logits[answers[0]] - logits[answers[1]]

    return (
        torch.stack(z),
        torch.stack([a - dictionary.decode(b) for a, b in zip(x, z, strict=True)]),
        metric,
    )


def test_first_order_is_the_gradient_of_a_dense_code_times_its_change(
    lm: LM, three: list[Dictionary]
) -> None:
    """Other sites, before and after, are no hindrance to the gradient."""
    for number, site in ((0, "layers.0"), (2, "layers.1")):
        for pair in PAIRS[:2]:
            z, error, metric = splice(lm, three[number], pair)
            leaf, rest = z[0].clone().requires_grad_(), error[0].clone().requires_grad_()
            g_z, g_error = torch.autograd.grad(metric(leaf, rest), (leaf, rest))
            expected = torch.zeros(len(leaf), leaf.shape[1] + 1)
            expected[:, 1:] = g_z * (z[1] - z[0])
            expected[:, 0] = (g_error * (error[1] - error[0])).sum(1)
            found = Patching(lm, three, [pair]).attribute("first-order")
            mine = found.site == SITES.index(site)
            dense = torch.zeros_like(expected)
            dense[found.position[mine], found.feature[mine] + 1] = found.value[mine]
            torch.testing.assert_close(dense, expected, atol=1e-4, rtol=1e-3)


def test_one_node_patched_exactly_is_what_it_is_by_hand(lm: LM, mine: Dictionary) -> None:
    z, error, metric = splice(lm, mine, PAIRS[1])
    patching = Patching(lm, [mine], PAIRS[1:2])
    delta = (z[1] - z[0]).abs()
    feature = int(delta.sum(0).argmax())
    place = int(delta[:, feature].argmax())
    one, all_of_it, left = z[0].clone(), z[0].clone(), error[0].clone()
    one[place, feature] = z[1][place, feature]
    all_of_it[:, feature] = z[1][:, feature]
    left[place] = error[1][place]
    position = place - len(z[0])
    nodes = [
        Node("layers.1", feature, position),
        Node("layers.1", feature),
        Node("layers.1", ERROR, position),
        Node("layers.1", int(delta.sum(0).argmin())),
    ]
    before = metric(z[0], error[0])
    changes = [metric(one, error[0]), metric(all_of_it, error[0]), metric(z[0], left), before]
    expected = torch.stack([float(c) - before for c in changes]).detach()
    found = patching.exact(nodes)
    torch.testing.assert_close(found.mean, expected, atol=1e-4, rtol=1e-3)
    assert found.mean[3] == 0
    for node in nodes:
        alone = patching.patched([node]) - patching.values
        assert found[node] == pytest.approx(float(alone), abs=1e-4)


def test_alone_and_together_agree_at_every_site(lm: LM, three: list[Dictionary]) -> None:
    patching = Patching(lm, three, PAIRS)
    nodes = patching.attribute("first-order").nodes(positions=True).strongest(5).nodes
    nodes += [Node(site, ERROR) for site in SITES]
    found = patching.exact(nodes)
    for node in nodes:
        alone = patching.patched([node]) - patching.values
        assert found[node] == pytest.approx(float(alone.mean()), abs=1e-4), node


def test_without_a_corrupted_side_nodes_are_set_to_zero(lm: LM, mine: Dictionary) -> None:
    d = mine
    patching = Patching(lm, [d], ONE_SIDED, metric="log-probability")
    with pytest.raises(UserError, match="no corrupted side"):
        _ = patching.donor_values
    feature = int(d.strength.argmax())
    found = patching.exact([Node("layers.1", feature)])
    special = torch.tensor(sorted(lm.special_ids))

    def only_bias(y: Tensor, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        return torch.where(torch.isin(tokens, special)[..., None], y, d.coder.b_dec)

    def value(pair: MinimalPair) -> Tensor:
        answer = int(lm.encode(pair.answer)[0, -1])
        return lm.logits(lm.encode(pair.clean))[0, -1].log_softmax(-1)[answer]

    before = torch.stack([value(pair) for pair in ONE_SIDED])
    with lm.edit(FeatureEdit(d, [ablate([feature])])):
        without = torch.stack([value(pair) for pair in ONE_SIDED])
    with lm.edit({"layers.1": only_bias}):
        nothing = torch.stack([value(pair) for pair in ONE_SIDED])
    torch.testing.assert_close(patching.values, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mean[0], (without - before).mean(), atol=1e-4, rtol=1e-3)
    everything_off = patching.patched([], others=True)
    torch.testing.assert_close(everything_off, nothing, atol=1e-4, rtol=1e-4)


def test_mean_ablation_puts_the_mean_of_the_other_side_in_place(lm: LM, mine: Dictionary) -> None:
    patching = Patching(lm, [mine], PAIRS, donor="mean")
    others = [
        lm.capture(lm.encode(p.corrupted or ""), ["layers.1"])["layers.1"][0, 1:] for p in PAIRS
    ]
    longest = max(map(len, others))
    means = {
        place: torch.stack([x[place] for x in others if len(x) >= -place]).mean(0)
        for place in range(-longest, 0)
    }
    expected = []
    for pair in PAIRS:
        tokens = lm.encode(pair.clean)
        n = tokens.shape[1] - 1

        def put(y: Tensor, tokens: Tensor | None, n: int = n) -> Tensor:
            return torch.cat([y[:, :1], torch.stack([means[i] for i in range(-n, 0)])[None]], 1)

        with lm.edit({"layers.1": put}):
            logits = lm.logits(tokens)[0, -1]
        answers = [int(lm.encode(a or "")[0, -1]) for a in (pair.answer, pair.wrong)]
        expected.append(logits[answers[0]] - logits[answers[1]])
    found = patching.patched([], others=True)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-3)
    whole = patching.attribute(steps=16).per_pair("layers.1")
    torch.testing.assert_close(whole, found - patching.values, atol=0.02, rtol=0.05)


def test_kl_is_zero_at_the_clean_run_and_above_elsewhere(lm: LM, mine: Dictionary) -> None:
    patching = Patching(lm, [mine], PAIRS, metric="kl")
    assert patching.values.abs().max() < 1e-6
    assert patching.donor_values.min() > 0
    nodes = patching.attribute(steps=4).nodes().strongest(10)
    assert patching.exact(nodes.nodes).mean.min() > -1e-6
    with pytest.raises(UserError, match="gradient of KL"):
        patching.attribute("first-order")
    other = Patching(lm, [mine], PAIRS, metric="kl", receiver="corrupted")
    assert len(other.attribute("first-order").value)


def test_batches_and_pairs_alone_agree(lm: LM, three: list[Dictionary]) -> None:
    together, alone = (Patching(lm, three[1:], PAIRS[1:], batch=batch) for batch in (4, 1))
    torch.testing.assert_close(together.values, alone.values, atol=1e-5, rtol=1e-4)
    for method in ("first-order", "integrated gradients"):
        a, b = (p.attribute(method, 3).nodes(positions=True) for p in (together, alone))  # type: ignore[arg-type]
        nodes = b.strongest(200).nodes
        torch.testing.assert_close(
            torch.tensor([a[n] for n in nodes]),
            torch.tensor([b[n] for n in nodes]),
            atol=1e-4,
            rtol=1e-3,
        )
    nodes = together.attribute("first-order").nodes().strongest(10).nodes
    torch.testing.assert_close(
        together.exact(nodes).mean, alone.exact(nodes).mean, atol=1e-4, rtol=1e-3
    )


def test_nodes_are_sums_over_positions_and_means_over_pairs(
    lm: LM, three: list[Dictionary]
) -> None:
    effects = Patching(lm, three, PAIRS).attribute("first-order")
    entries = zip(
        *(c.tolist() for c in (effects.site, effects.pair, effects.position, effects.feature)),
        effects.value.tolist(),
        strict=True,
    )
    sums: dict[Node, list[float]] = {}
    by_place: dict[Node, float] = {}
    for site, pair, position, feature, value in entries:
        node = Node(SITES[site], feature)
        sums.setdefault(node, [0.0] * len(PAIRS))[pair] += value
        placed = Node(SITES[site], feature, position)
        by_place[placed] = by_place.get(placed, 0.0) + value / len(PAIRS)
    found, placed_found = effects.nodes(), effects.nodes(positions=True)
    assert set(found.nodes) == set(sums) and set(placed_found.nodes) == set(by_place)
    for node, mean, size in zip(found.nodes, found.mean, found.size, strict=True):
        assert float(mean) == pytest.approx(sum(sums[node]) / len(PAIRS), abs=1e-5)
        assert float(size) == pytest.approx(sum(map(abs, sums[node])) / len(PAIRS), abs=1e-5)
    for node, value in by_place.items():
        assert placed_found[node] == pytest.approx(value, abs=1e-5)
    assert found[Node("layers.1", 10**6)] == 0
    order = found.strongest(5).mean.abs()
    assert torch.equal(order, found.mean.abs().topk(5).values)


def test_aligned_prompts_have_nodes_at_the_tokens_both_have(lm: LM, mine: Dictionary) -> None:
    longer = [MinimalPair("zq(q", "q[q", ")", "]")]
    with pytest.raises(UserError, match="tokens"):
        Patching(lm, [mine], longer)
    patching = Patching(lm, [mine], longer, unequal="align")
    effects = patching.attribute(steps=8)
    assert set(effects.position.tolist()) == {-3, -2, -1}
    whole = patching.patched([], others=True) - patching.values
    assert float(effects.per_pair("layers.1")) == pytest.approx(float(whole), rel=0.05, abs=1e-3)


def test_agreement_of_known_effects() -> None:
    nodes = [Node("s", i) for i in range(5)]

    def effects(*values: float) -> NodeEffects:
        mean = torch.tensor(values)
        return NodeEffects(nodes[: len(values)], mean, mean.abs())

    a = effects(4.0, -3.0, 2.0, 1.0, 0.1)
    assert agreement(a, effects(2.0, -1.5, 1.0, 0.5, 0.05)) == (
        5,
        pytest.approx(1),
        pytest.approx(1),
        pytest.approx(2),
        1.0,
    )
    top = agreement(a, effects(4.0, -3.0, 2.0, -1.0, -0.1), top=3)
    assert top.nodes == 3 and top.correlation == pytest.approx(1)
    assert agreement(a, effects(4.0, -3.0, 2.0, -1.0, 0.1)).same_sign == pytest.approx(0.8)
    with pytest.raises(UserError, match="2 nodes"):
        agreement(a, effects(1.0, 2.0))


def test_nothing_stays_hooked(lm: LM, three: list[Dictionary]) -> None:
    patching = Patching(lm, three, PAIRS)
    patching.exact(patching.attribute(steps=1).nodes().strongest(3).nodes)
    modules = lm.model.modules()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules) == 0
    assert not any("forward" in vars(m) for m in lm.model.modules())


def test_what_cannot_be_done_is_refused(lm: LM, run: Run, mine: Dictionary) -> None:
    d = mine
    elsewhere = replace(run.dictionary.provenance, hookpoint="layers.2")
    with pytest.raises(UserError, match="does not fit"):
        Patching(lm, [replace(run.dictionary, provenance=elsewhere)], PAIRS)
    with pytest.raises(UserError, match="no dictionary"):
        Patching(lm, [], PAIRS)
    with pytest.raises(UserError, match=r"two dictionaries at `layers\.1`"):
        Patching(lm, [d, d], PAIRS)
    with pytest.raises(UserError, match="takes a wrong answer"):
        Patching(lm, [d], [MinimalPair("q(", None, ")", None)])
    with pytest.raises(UserError, match="no corrupted run"):
        Patching(lm, [d], ONE_SIDED, receiver="corrupted")
    patching = Patching(lm, [d], PAIRS)
    with pytest.raises(UserError, match="0 steps"):
        patching.attribute(steps=0)
    for node, told in (
        (Node("layers.7", 0), "no site `layers.7`"),
        (Node("layers.1", 96), "96"),
        (Node("layers.1", -2), "-2"),
        (Node("layers.1", 0, 0), "position 0"),
    ):
        with pytest.raises(UserError, match=told):
            patching.exact([node])
        with pytest.raises(UserError, match=told):
            patching.patched([node])


def test_the_command_lists_nodes_with_names_and_agreement(
    checkpoint: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.dictionary.save_pretrained(tmp_path / "run" / "dictionary").parent
    rows = [
        {"clean": p.clean, "corrupted": p.corrupted, "answer": p.answer, "wrong": p.wrong}
        for p in PAIRS
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "nodes.json"
    asked = ["--pairs", str(pairs), "--model", str(checkpoint), "--json", str(out)]
    main(["attribute", str(folder), *asked, "--top", "5", "--exact", "8"])
    said = capsys.readouterr().out
    assert "layers.1" in said and "4 pairs" in said and "correlates with exact patching" in said
    nodes = json.loads(out.read_text())["nodes"]
    assert len(nodes) == 8 and all(node["exact"] is not None for node in nodes)
    assert {"site", "feature", "position", "effect", "exact", "name"} == set(nodes[0])
    main(
        [
            "attribute",
            str(folder),
            *asked,
            "--exact",
            "0",
            "--positions",
            "--no-mistaken",
            "--most",
            "1",
        ]
    )
    assert "position" in capsys.readouterr().out
    for wrong, told in (
        (
            ["attribute", str(folder), "--model", str(checkpoint), "--pairs", "brackets"],
            "did you mean `bracket`",
        ),
        (["attribute", "--pairs", "bracket"], "no run was named"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert told in capsys.readouterr().err
