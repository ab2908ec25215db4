"""Comparing the dictionaries of a sweep, and the page and table that show it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html import escape

import numpy as np
import pytest
import torch
from handmade import exact, make_transcoder
from rich.console import Console
from sklearn.decomposition import PCA
from test_report import HOSTILE, MEASURE, Page, browse, needs_browser

from monosemy.activations import LiveActivations, Statistics
from monosemy.coders import Dictionary, Fingerprint, Provenance, make_coder
from monosemy.corpus import Corpus, open_corpus
from monosemy.errors import UserError
from monosemy.evaluation import baselines, evaluate
from monosemy.evaluation.scaling import ScalingFit, fit_sweep
from monosemy.evaluation.sweep import (
    SweepRow,
    _Moments,
    compare_on_held_out,
    over_seeds,
    pareto_front,
)
from monosemy.lm import LM
from monosemy.metrics.table import MetricValue
from monosemy.report import svg
from monosemy.report.sweep import (
    report_sweep,
    seeds_table,
    sweep_html,
    sweep_report,
    sweep_table,
    verdict,
)
from monosemy.training import sweep as sweep_training

SHORT = {"tokens": 1200, "loss_tokens": 600, "draws": 50}


def make(
    lm: LM, corpus: Corpus, hookpoint: str = "layers.1", *, k: int = 8, seed: int = 0, **given
) -> Dictionary:
    """A dictionary of random directions, with everything that a trained one has."""
    training = {"tokens": 5000, "seed": seed, "lr": None, "held_out": {"l0": float(k)}}
    provenance = Provenance(
        model=lm.name,
        hookpoint=hookpoint,
        corpus=corpus.describe(),
        training=training,
        **{"context": 32, **given},
    )
    values = LiveActivations(lm, provenance.stream(lm, corpus, "train"), [hookpoint])
    statistics = Statistics.of(v[hookpoint] for v in values)
    coder = make_coder("topk", len(statistics.mean), 96, k=k, seed=seed).requires_grad_(False)
    coder.fold(statistics.mean, statistics.scale)
    fingerprint = Fingerprint.record(lm, coder, provenance, corpus)
    strength = torch.ones(96)
    return Dictionary(coder, provenance, strength, statistics.mean, statistics.scale, fingerprint)


@pytest.fixture(scope="module")
def sweep(lm: LM, corpus: Corpus) -> dict[str, Dictionary]:
    return {
        "four": make(lm, corpus, k=4),
        "sixteen": make(lm, corpus, k=16),
        "other place": make(lm, corpus, "layers.0.mlp", k=8),
        "other seed": make(lm, corpus, k=4, seed=1),
    }


@pytest.fixture(scope="module")
def rows(sweep: dict[str, Dictionary], lm: LM, corpus: Corpus) -> list[SweepRow]:
    return compare_on_held_out(sweep, lm, corpus, **SHORT)


# --- comparing ---------------------------------------------------------------------------------


def test_every_dictionary_has_a_row_and_every_place_a_baseline(rows, sweep):
    assert [r.name for r in rows[: len(sweep)]] == list(sweep)
    assert all(r.is_baseline and r.architecture == "pca" for r in rows[len(sweep) :])
    assert {r.place for r in rows if r.is_baseline} == {"layers.1", "layers.0.mlp"}
    for r in rows:
        assert {"fvu", "l0", "ce_increase", "recovered"} <= set(r.figures)
        assert ("dead_share" in r.figures) != r.is_baseline
        assert all(v.low <= v.value <= v.high for v in r.figures.values())
        assert r.measured["tokens"] >= 1200 and r.measured["documents"] > 1
    four, sixteen = rows[0], rows[1]
    assert (four.width, four.k_or_target, four.tokens, four.seed) == (96, 4.0, 5000, 0)
    assert four.value("l0") <= 4 < sixteen.value("l0") <= 16


def test_a_larger_baseline_explains_more(rows):
    for place in ("layers.1", "layers.0.mlp"):
        errors = [r.value("fvu") for r in rows if r.is_baseline and r.place == place]
        assert errors == sorted(errors, reverse=True) and 0 <= errors[-1] < errors[0] < 1
    # 32 components are all there are.
    whole = next(r for r in rows if r.is_baseline and r.width == 32)
    assert whole.value("fvu") == pytest.approx(0, abs=1e-6)
    assert whole.value("recovered") == pytest.approx(1, abs=1e-3)
    assert whole.value("ce_increase") == pytest.approx(0, abs=1e-3)


def test_company_changes_no_figure(rows, sweep, lm, corpus):
    alone = compare_on_held_out({"four": sweep["four"]}, lm, corpus, **SHORT)[0]
    assert alone == rows[0]


def test_figures_are_those_of_an_evaluation(rows, sweep, lm, corpus):
    alone = evaluate(sweep["sixteen"], lm, corpus, **SHORT, suites=["reconstruction"])[
        "reconstruction"
    ]
    row = rows[1]
    for title, name in (("FVU", "fvu"), ("L0", "l0"), ("CE increase", "ce_increase")):
        assert row.value(name) == pytest.approx(alone.value(title), rel=1e-5)
    assert row.value("recovered") == pytest.approx(alone.value("loss recovered (mean)"), rel=1e-2)
    assert row.value("dead_share") == alone.value("dead share")


def test_one_pass_serves_all_and_each_encodes_a_batch_once(sweep, lm, corpus, monkeypatch):
    passes, encoded = [], []
    capture, reconstruct = LM.capture, type(sweep["four"].coder).reconstruct

    def count_pass(self, inputs, hookpoints, **rest):
        passes.append(list(hookpoints))
        return capture(self, inputs, hookpoints, **rest)

    def count_encoding(self, x):
        encoded.append(len(x))
        return reconstruct(self, x)

    def measure(names):
        passes.clear(), encoded.clear()
        compare_on_held_out({n: sweep[n] for n in names}, lm, corpus, **SHORT)
        return len(passes), len(encoded)

    monkeypatch.setattr(LM, "capture", count_pass)
    monkeypatch.setattr(type(sweep["four"].coder), "reconstruct", count_encoding)
    of_one, of_all = measure(["four"]), measure(list(sweep))
    assert of_all[0] == of_one[0]
    assert set(passes[-1]) == {"layers.1", "layers.0.mlp"}
    assert of_all[1] == len(sweep) * of_one[1]


def test_exact_and_empty_dictionaries_mark_the_ends_of_the_scale(sweep, lm, corpus):
    empty = make(lm, corpus)
    empty.coder.b_enc.fill_(-1e9)
    found = compare_on_held_out(
        {"exact": exact(lm, corpus, "layers.1"), "empty": empty}, lm, corpus, **SHORT
    )
    assert found[0].value("fvu") == pytest.approx(0, abs=1e-8)
    assert found[0].value("recovered") == pytest.approx(1, abs=1e-4)
    assert found[1].value("fvu") == pytest.approx(1, abs=0.02)
    assert found[1].value("recovered") == pytest.approx(0, abs=0.05)
    assert found[1].value("l0") == 0 and found[1].value("dead_share") == 1


def test_transcoders_are_measured_by_what_they_explain(lm, corpus):
    transcoder = make_transcoder(lm, corpus)
    found = compare_on_held_out({"t": transcoder, "sae": make(lm, corpus)}, lm, corpus, **SHORT)
    t = found[0]
    assert t.place == f"{transcoder.explains} from {transcoder.hookpoint}"
    alone = evaluate(transcoder, lm, corpus, **SHORT, suites=["reconstruction"])["reconstruction"]
    assert t.value("fvu") == pytest.approx(alone.value("FVU"), rel=1e-4)
    assert t.value("ce_increase") == pytest.approx(alone.value("CE increase"), rel=1e-3)
    linear = [r for r in found if r.architecture == "linear"]
    assert linear and all(r.place == t.place for r in linear)
    assert linear[-1].value("fvu") < linear[0].value("fvu") < 1


def test_baselines_are_pca_and_reduced_rank_regression():
    torch.manual_seed(0)
    x = torch.randn(800, 12) @ torch.randn(12, 12) + 3
    y = torch.tanh(x) @ torch.randn(12, 7) - 2
    itself, other = _Moments("a", "a"), _Moments("a", "b")
    for part, told in zip(x.split(300), y.split(300), strict=True):
        itself.add(part, part)
        other.add(part, told)
    itself.finish(x.device)
    other.finish(x.device)
    theirs = PCA(4, svd_solver="full").fit(x.double().numpy())
    expected = theirs.inverse_transform(theirs.transform(x.double().numpy()))
    ours, used = itself.baseline(4).explain(x)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-3)
    assert (used == 4).all()
    for rank in (3, 7):
        best = baselines.linear_maps(x, y, rank)[1](x)[0]
        np.testing.assert_allclose(other.baseline(rank).explain(x)[0], best, atol=1e-2)


def test_no_dictionaries_or_different_text_is_refused(sweep, lm, corpus):
    with pytest.raises(UserError, match="no dictionaries"):
        compare_on_held_out({}, lm, corpus)
    longer = make(lm, corpus, context=48)
    with pytest.raises(UserError, match="`four` and `longer` differ in their context: 32 and 48"):
        compare_on_held_out({"four": sweep["four"], "longer": longer}, lm, corpus)
    whole = open_corpus(["some text, " * 20] * 3, held_out=0.0)
    with pytest.raises(UserError, match="held"):
        compare_on_held_out({"four": sweep["four"]}, lm, whole)


def test_a_trained_sweep_is_compared_and_reported(lm, corpus, tmp_path):
    runs = sweep_training(
        lm,
        corpus,
        ["layers.1"],
        grid={"architecture": ["topk", "jumprelu"], "width": [32, 64]},
        **{"tokens": 3000, "batch": 256, "pool": 1024, "context": 32},
        **{"k": 8, "lr": 3e-3},
    )
    report = sweep_report(tmp_path, runs, lm, corpus)
    assert report.path == tmp_path / "sweep.html" and "4 dictionaries of" not in report.refusal
    assert "2 dictionaries of 2 widths are too few" in report.refusal
    assert "too few" in report.path.read_text("utf-8")
    trained = [r for r in report.rows if not r.is_baseline]
    assert [r.width for r in trained] == [32, 64, 32, 64]
    assert [r.k_or_target for r in trained] == [8, 8, 32, 32]


# --- rows --------------------------------------------------------------------------------------


def row(name: str = "a", l0: float = 32, fvu: float = 0.3, **given) -> SweepRow:
    recovered = 1 - fvu / 3
    figures = {
        "fvu": MetricValue(fvu, fvu - 0.01, fvu + 0.01),
        "l0": MetricValue(l0, l0 - 0.5, l0 + 0.5),
        "recovered": MetricValue(recovered, recovered - 0.01, recovered + 0.01),
        "ce_increase": MetricValue(fvu / 2, fvu / 2, fvu / 2),
        "dead_share": MetricValue(0.02, 0.02, 0.02),
    }
    fields = {
        "architecture": "topk",
        "hookpoint": "layers.1",
        "width": 4096,
        "k_or_target": l0,
        "tokens": 2_000_000,
        "seed": 0,
        "lr": 1e-3,
        "figures": figures,
        "measured": {"tokens": 32_768, "loss_tokens": 8192, "documents": 57},
    }
    return SweepRow(name=name, **(fields | given))


def grid(text: str = "", ks: tuple[int, ...] = (16, 32, 64)) -> list[SweepRow]:
    """Rows of two architectures, three widths, some k, two seeds, and a baseline."""
    rng = np.random.default_rng(0)
    found = [
        row(
            f"{kind}-{width}-{k}-{seed}{text}",
            k * rng.uniform(0.97, 1.03),
            math.exp(0.6 - 0.1 * math.log(k) - 0.16 * math.log(width)) * rng.uniform(0.99, 1.01),
            architecture=kind,
            width=width,
            k_or_target=float(k),
            seed=seed,
        )
        for kind in ("topk", "jumprelu")
        for width in (1024, 4096, 16384)
        for k in ks
        for seed in (0, 1)
    ]
    pca = [row(f"PCA-{r}{text}", r, 1 / r, architecture="pca", width=r) for r in (8, 24, 72, 128)]
    return [*found, *pca]


@pytest.fixture(scope="module")
def fits() -> list[ScalingFit]:
    return fit_sweep(grid())


def test_a_row_survives_json():
    endless = row(figures={"recovered": MetricValue(0.5, -math.inf, math.inf)}, target="layers.2")
    for one in (row(), endless, row(seed=None, lr=None, k_or_target=None)):
        assert SweepRow.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one
    with pytest.raises(UserError, match="fields"):
        SweepRow.from_dict({"name": "a", "colour": "red"})


def test_the_front_holds_what_no_other_beats():
    rows = [row("a", 10, 0.5), row("b", 20, 0.4), row("c", 20, 0.45), row("d", 30, 0.4)]
    assert pareto_front(rows) == ["a", "b"]
    assert pareto_front([*rows, row("twin", 20, 0.4)]) == ["a", "b", "twin"]
    elsewhere = row("elsewhere", 40, 0.9, hookpoint="layers.2")
    assert pareto_front([*rows, elsewhere]) == ["a", "b", "elsewhere"]
    assert pareto_front([*rows, row("PCA-1", 1, 0.1, architecture="pca")]) == ["a", "b"]


def test_seeds_are_averaged_where_nothing_else_differs():
    rows = [row("a", fvu=0.3), row("b", fvu=0.5, seed=1), row("c", width=8, seed=1)]
    (group,) = over_seeds([*rows, row("PCA-1", architecture="pca", seed=2)])
    assert [r.name for r in group.rows] == ["a", "b"]
    assert group.mean["fvu"] == pytest.approx(0.4)
    assert group.spread["fvu"] == pytest.approx(math.sqrt(0.02))
    assert over_seeds([row("a"), row("b")]) == []


# --- page and table ----------------------------------------------------------------------------


def test_the_verdict_names_the_front_and_the_baseline():
    pca = [row(f"PCA-{r}", r, f, architecture="pca") for r, f in ((8, 0.8), (64, 0.4))]
    said = verdict([row("good", 16, 0.3), row("bad", 16, 0.7), *pca])
    assert said == (
        "good is not beaten by another on both L0 and FVU. "
        "1 of 2 explain more than PCA with as many numbers a token."
    )
    assert verdict([row("good", 16, 0.3), *pca]).startswith("good explains more than PCA")
    assert "12 of" not in verdict([row("a"), row("b", 64, 0.2)])


def test_a_report_leaves_a_page_and_rows(fits, tmp_path):
    rows = grid()
    path = report_sweep(tmp_path / "new", rows, fits)
    assert sorted(p.name for p in path.parent.iterdir()) == ["sweep.html", "sweep.json"]
    values = json.loads((path.parent / "sweep.json").read_text("utf-8"))
    assert [SweepRow.from_dict(r) for r in values["rows"]] == rows
    assert values["front"] == pareto_front(rows) and len(values["seeds"]) == 18
    assert len(values["scaling"]) == len(fits) == 2
    html = path.read_text("utf-8")
    assert all(escape(r.name) in html for r in rows)
    assert fits[0].sentence() in html and "PCA" in html
    assert html.count('class="scatter"') == 4
    assert report_sweep(tmp_path / "new", rows, fits[0]) == path


def test_measured_rows_can_be_reported(rows, tmp_path):
    html = report_sweep(tmp_path, rows).read_text("utf-8")
    assert html.count('class="scatter"') == 4 and "nan" not in html.lower().replace("nanum", "")


def test_the_page_refers_to_nothing_outside_itself(fits):
    html = sweep_html(grid(), fits)
    assert not re.search(r"""https?://|//\w|@import|url\(""", html)
    for _, attributes in Page(html).elements:
        assert "src" not in attributes and "srcset" not in attributes
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    assert "default-src 'none'" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_harmless_wherever_they_stand(text):
    def shape(word: str) -> list[tuple[str, list[str]]]:
        rows = [
            replace(r, hookpoint=word, architecture=r.architecture if r.is_baseline else word)
            for r in grid(word, (32,))
        ]
        page = Page(sweep_html(rows, fit_sweep(rows)) + sweep_html(rows, refusal=word))
        return [(tag, sorted(attributes)) for tag, attributes in page.elements]

    assert shape(text) == shape("plain")


def test_parts_without_data_are_left_out():
    html = sweep_html([row()])
    assert 'id="scaling"' not in html and 'id="seeds"' not in html
    without_loss = row(figures={n: row().figures[n] for n in ("fvu", "l0")})
    assert sweep_html([without_loss]).count('class="scatter"') == 1
    assert "No law was fitted: too few." in sweep_html([row()], refusal="too few")
    with pytest.raises(UserError, match="no dictionaries"):
        sweep_html([row(architecture="pca")])


def test_what_was_not_measured_or_is_endless_is_shown_as_such():
    nan = MetricValue(math.nan, math.nan, math.nan)
    endless = MetricValue(0.5, -math.inf, math.inf)
    odd = row("odd", figures=row().figures | {"recovered": endless, "ce_increase": nan})
    html = sweep_html([odd, row("even", 64, 0.2)])
    assert "nan" not in html.split("<main")[1].lower()
    assert render(sweep_table([odd, row("even", 64, 0.2)]))


def render(renderable, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_tables_fit_the_terminal(width):
    for table in (sweep_table(grid()), seeds_table(grid())):
        assert table is not None
        assert max(map(len, render(table, width).splitlines())) <= width
    assert seeds_table([row()]) is None


def test_the_table_marks_the_front_and_shows_intervals():
    lines = render(sweep_table([row("a", 10, 0.5), row("b", 20, 0.6)]), 140).splitlines()
    assert lines[1].startswith("●  a") and not lines[2].startswith("●")
    assert "0.500 ±0.010" in lines[1] and "2.0%" in lines[1]


# --- the picture -------------------------------------------------------------------------------


def mark(x: float, y: float, low: float = math.nan, high: float = math.nan) -> svg.Mark:
    return svg.Mark(x, y, low, high, f"at {x}")


def test_a_scatter_plot_places_what_can_be_placed():
    marks = [mark(16, 0.5, 0.4, 0.6), mark(64, 0.3, -math.inf, 0.4), mark(32, math.nan)]
    plot = svg.draw_scatter("L0", "FVU", [svg.Series("topk", 1, marks, [[(16, 0.5), (64, 0.3)]])])
    assert plot is not None and plot.svg.count("<title>") == 2 and "nan" not in plot.svg
    assert "inf" not in plot.svg and plot.outside == []
    for tick in [*plot.x_ticks, *plot.y_ticks]:
        assert 0 <= tick.place <= 100
    assert svg.draw_scatter("L0", "FVU", [svg.Series("topk", 1, [mark(1, math.nan)])]) is None
    assert svg.draw_scatter("L0", "FVU", []) is None


def test_a_baseline_far_off_is_named_instead_of_squeezing_the_rest():
    own = svg.Series("topk", 1, [mark(16, 0.5), mark(32, 0.4)])
    off = svg.Series("PCA", 0, [mark(16, 0.45), mark(20, 9.0)], sets_axes=False)
    plot = svg.draw_scatter("L0", "FVU", [own, off])
    assert plot is not None and plot.outside == ["at 20"]
    assert plot.svg.count("<title>") == 3
    assert max(float(t.label) for t in plot.y_ticks) <= 0.6


@pytest.mark.parametrize("y", [[0.5], [0.0, 0.0], [-1.0, 2.0], [1e-9, 1e9], [0.3, 0.31]])
@pytest.mark.parametrize("log_y", [False, True])
def test_any_marks_can_be_drawn(y, log_y):
    marks = [mark(2.0**n, value, value, value) for n, value in enumerate(y)]
    plot = svg.draw_scatter("width", "FVU", [svg.Series("a", 1, marks)], log_y=log_y)
    assert plot is not None and plot.y_ticks and plot.svg.count("<title>") == len(y)


@needs_browser
@pytest.mark.parametrize("width", [390, 901, 1200])
def test_nothing_is_wider_than_the_screen(width, fits, tmp_path):
    html = sweep_html(grid("-" + "x" * 60), fits)
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    html = policy.sub("", html).replace("</body>", f"{MEASURE}</body>")
    # A window cannot be as narrow as a phone, a frame in it can.
    frame = f'<iframe style="width:{width}px;border:0" srcdoc="{escape(html)}"></iframe>'
    path = tmp_path / "frame.html"
    path.write_text(f'<!doctype html><meta charset="utf-8"><title>-</title>{frame}', "utf-8")
    dom, _ = browse(path, tmp_path / "profile")
    assert dom.partition("</title>")[0].partition("<title>")[2] == f"[{width},{width},[]]"


@needs_browser
def test_the_browser_finds_nothing_to_complain_about(fits, tmp_path):
    dom, said = browse(report_sweep(tmp_path, grid(), fits), tmp_path / "profile")
    assert "Every dictionary" in dom and "CONSOLE" not in said
