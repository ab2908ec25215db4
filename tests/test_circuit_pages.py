"""Circuits drawn: the strongest, in the model's order, with cards that tell what is so."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import BROWSER, Browser
from hypothesis import given, settings
from hypothesis import strategies as st
from test_app import GROUNDS, PLAIN, colours, luminance, make_run
from test_app_pages import HOSTILE, Site, Tags

from monosemy import report
from monosemy.app.circuits import circuit_paths
from monosemy.app.runs import open_runs
from monosemy.coders import Dictionary
from monosemy.corpus.minimal_pairs import MinimalPair
from monosemy.errors import UserError
from monosemy.intervene.circuits import Carried, Carrying, Predicted
from monosemy.intervene.record import CircuitRecord, EdgeRecord, NodeRecord, SiteRecord
from monosemy.report.circuit import circuit_html, node_card, write_circuit
from monosemy.report.graph import METRIC, draw_circuit, order_rows

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
SITES = ["embed", "layers.0", "layers.1"]
WIDTH = 24


def made(n_nodes: int = 24, n_edges: int = 60, **changes: object) -> CircuitRecord:
    """A circuit in which each node of a site leads to some of the next, and some to the metric."""
    nodes = [
        NodeRecord(
            SITES[i % 3],
            None if i % 7 == 6 else i,
            None,
            (-1) ** (i % 4 == 0) * 5 / (i + 1),
            HOSTILE if i == 2 else f"name {i}" if i % 2 else "",
        )
        for i in range(n_nodes)
    ]
    ends = [
        (a, None if a % 3 == 2 else b)
        for a in range(n_nodes)
        for b in range(n_nodes)
        if (b % 3 > a % 3 and (a + b) % 5 < 2) or (a % 3 == 2 and b == 0)
    ]
    edges = [EdgeRecord(a, b, (-1) ** i * 3 / (i + 1)) for i, (a, b) in enumerate(ends[:n_edges])]
    circuits = [Carried(n, 1, n / 50, 1 - n / 60) for n in (4, 23, 40)]
    values = {
        "name": "bracket",
        "model": "tiny",
        "source": "pairs of brackets",
        "found_on": 20,
        "tried_on": 10,
        "examples": [MinimalPair("f(x", "f[x", ")", "]")],
        "metric": "logit difference",
        "value": 4.0,
        "donor": -3.0,
        "sites": [SiteRecord(site, f"runs/{site}", 96, 90) for site in SITES],
        "nodes": nodes,
        "edges": edges,
        "found": 500,
        "predicted": [Predicted("embed", 4, -1.5, -1.25)],
        "carried": Carrying(4.0, -1.0, circuits),
        "neurons": Carrying(4.0, -1.0, circuits),
        **changes,
    }
    return CircuitRecord(**values)


def drawn(record: CircuitRecord, nodes: int = 40, edges: int = 80) -> ET.Element:
    return ET.fromstring(str(draw_circuit(record, nodes=nodes, edges=edges).svg))


def nodes_of(svg: ET.Element) -> dict[str, ET.Element]:
    """Key -> element of each node that is drawn."""
    links = [link for link in svg.iter("a") if "node" in link.get("class", "").split()]
    return {link.get("href", "").removeprefix("#node-"): link for link in links}


def middle(node: ET.Element) -> tuple[float, float]:
    """Where the room that a node takes has its middle, and where it begins."""
    room = node.find("rect")
    assert room is not None
    return float(room.get("x", 0)) + float(room.get("width", 0)) / 2, float(room.get("y", 0))


def edges_of(svg: ET.Element) -> set[tuple[str, str]]:
    classes = [path.get("class", "") for path in svg.iter("path")]
    found = (re.search(r"e-(\w+) e-(\w+)", each) for each in classes if each.startswith("edge"))
    return {(one[1], one[2]) for one in found if one}


# --- the drawing ------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "edges"), [(1, 0), (6, 3), (40, 80)])
def test_the_strongest_nodes_and_the_strongest_edges_among_them_are_drawn(
    nodes: int, edges: int
) -> None:
    record = made()
    shown = range(min(nodes, 24))
    among = [e for e in record.edges if e.source in shown and e.target in (None, *shown)]
    svg = drawn(record, nodes, edges)
    assert set(nodes_of(svg)) == {"metric", *map(str, shown)}
    expected = {(str(e.source), "metric" if e.target is None else str(e.target)) for e in among}
    assert edges_of(svg) <= expected
    assert len(edges_of(svg)) == min(edges, len(among))
    strongest = among[: len(edges_of(svg))]
    widths = [float(p.get("stroke-width", 0)) for p in svg.iter("path") if p.get("stroke-width")]
    assert widths == sorted(widths)  # the strongest lies on top
    assert len(widths) == len(strongest)


@pytest.mark.parametrize("n_nodes", [3, 24, 120])
def test_rows_go_up_from_the_first_site_to_the_metric_and_nothing_overlaps(n_nodes: int) -> None:
    record = made(n_nodes)
    svg = drawn(record, n_nodes)
    places = {key: middle(node) for key, node in nodes_of(svg).items()}
    rows = [[places[str(i)] for i in range(site, n_nodes, 3)] for site in range(3)]
    rows.append([places["metric"]])
    for below, above in itertools.pairwise(rows):
        assert max(y for _, y in above) + 100 < min(y for _, y in below)
    for row in rows:
        assert all(15 <= x <= 760 - 15 for x, _ in row)
        for (x, y), (other_x, other_y) in itertools.combinations(row, 2):
            assert abs(x - other_x) > 2 * 15 or abs(y - other_y) > 2 * 15 + 26  # with two lines


def test_size_colour_and_shape_tell_effect_sign_and_error_terms() -> None:
    record = made()
    found = nodes_of(drawn(record))
    for i, node in enumerate(record.nodes):
        element = found[str(i)]
        assert ("up" in element.get("class", "").split()) == (node.effect > 0)
        circle = element.find("circle")
        assert (circle is None) == (node.feature is None)
        if circle is not None:
            share = abs(node.effect) / abs(record.nodes[0].effect)
            assert float(circle.get("r", 0)) == pytest.approx(max(4, 15 * share**0.5), abs=0.01)
        said = element.get("aria-label", "")
        assert said == element.findtext("title")
        assert node.site in said and node.name in said
        assert ("error term" if node.feature is None else f"feature {node.feature}") in said


def test_a_few_crossings_are_undone() -> None:
    rows = [[0, 1, 2], [3, 4, 5], [6]]
    links = [(0, 5, 1.0), (1, 4, 1.0), (2, 3, 1.0), (3, 6, 0.5)]
    low, high, top = order_rows(rows, links)
    assert [{0: 5, 1: 4, 2: 3}[node] for node in low] == high
    assert top == [6]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_ordering_keeps_every_node_in_its_row(sizes: list[int], random) -> None:
    rows, n = [], 0
    for size in sizes:
        rows.append(list(range(n, n + size)))
        n += size
    level = {node: number for number, row in enumerate(rows) for node in row}
    pairs = [(random.randrange(n), random.randrange(n)) for _ in range(20)]
    links = [(a, b, random.random() + 0.1) for a, b in pairs if level[a] < level[b]]
    assert list(map(sorted, order_rows(rows, links))) == rows


def test_positions_stand_as_text_is_read() -> None:
    nodes = [NodeRecord("embed", i, -1 - i % 4, 5.0 - i, "") for i in range(8)]
    found = nodes_of(drawn(made(nodes=nodes, edges=[])))
    left_to_right = sorted(range(8), key=lambda i: middle(found[str(i)])[0])
    positions = [nodes[i].position for i in left_to_right]
    assert positions == [-4, -4, -3, -3, -2, -2, -1, -1]
    assert "0 @-1" in "".join(found["0"].itertext())


# --- the page ---------------------------------------------------------------------------------


def test_the_page_holds_everything_and_runs_and_loads_nothing(tmp_path: Path) -> None:
    page = write_circuit(made(), tmp_path / "bracket.html").read_text()
    tags = Tags(page)
    assert "script" not in tags.names and not tags.inline and "img" not in tags.names
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert "alert" in page and ">1337<" not in page
    assert "the strongest 24 of 24 nodes" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in re.findall(r'href="(#[^"]+)"', page)} <= set(ids)
    assert len([name for name in ids if name.startswith("node-")]) == 25
    assert "f<mark>(</mark>x" in page and "f<mark>[</mark>x" in page
    assert "carry 46% of the logit difference; ablated, they leave 62% of it" in page
    assert page.count("neurons: ") == 6  # three sizes, faithfulness and completeness


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": [], "edges": []},
        {"edges": []},
        {"neurons": None, "donor": None, "predicted": [], "examples": []},
        {"carried": Carrying(1.0, 0.0, [])},
        {"examples": [MinimalPair("f(x", None, ")", None), MinimalPair("a", "a", "b", None)]},
        {"nodes": [NodeRecord("embed", 1, None, 0.0, "")], "edges": [EdgeRecord(0, None, 0.0)]},
    ],
)
def test_any_circuit_has_a_page(changes: dict) -> None:
    assert "The graph" in circuit_html(made(**changes))


def test_a_card_lists_the_edges_of_its_node() -> None:
    record = made()
    for number in range(len(record.nodes)):
        ways = {title: (count, listed) for title, count, listed in node_card(record, number).ways}
        into = [(str(e.source), e.weight) for e in record.edges if e.target == number]
        out = [
            ("metric" if e.target is None else str(e.target), e.weight)
            for e in record.edges
            if e.source == number
        ]
        for title, expected in (("Edges in", into), ("Edges out", out)):
            count, listed = ways[title]
            assert count == len(expected)
            assert [(key, weight) for key, _, weight in listed] == expected[:8]
    ((_, into_metric, _),) = node_card(record, METRIC).ways
    assert into_metric == sum(e.target is None for e in record.edges)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("nodes", 0, "effect"), "much"),
        (("nodes", 0, "effect"), float("nan")),
        (("nodes", 0, "name"), None),
        (("nodes", 0, "site"), ["embed"]),
        (("edges", 0, "source"), True),
        (("carried", "circuits"), 3),
        (("carried", "circuits", 0, "faithfulness"), "1"),
        (("sites", 0), {}),
        (("sites", 0, "width"), 1.5),
        (("predicted",), None),
        (("metric",), 1),
    ],
)
def test_a_file_that_holds_something_else_is_refused(
    tmp_path: Path, path: tuple, value: object
) -> None:
    made().save(tmp_path / "c.json")
    assert CircuitRecord.load(tmp_path / "c.json") == made()
    told = json.loads((tmp_path / "c.json").read_text())
    part = told
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    (tmp_path / "c.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="is no whole circuit"):
        CircuitRecord.load(tmp_path / "c.json")


# --- the app ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and one without an index; circuits of them, one that cannot be read, a hostile one."""
    sweep = tmp_path_factory.mktemp("sweep")
    make_run(sweep / "first", PLAIN, width=WIDTH)  # of layers.0
    Dictionary.from_pretrained(sweep / "first").save_pretrained(sweep / "bare" / "dictionary")
    sites = [
        SiteRecord("embed", "elsewhere/embed", WIDTH, 90),
        SiteRecord("layers.0", "elsewhere/first", WIDTH, 90),
        SiteRecord("layers.1", str(sweep / "first"), WIDTH, 90),  # of another hook point
    ]
    (sweep / "circuits").mkdir()
    record = made(sites=sites)
    record.save(sweep / "circuits" / "bracket.json")
    bare = [sites[0], SiteRecord("layers.0", str(sweep / "bare"), WIDTH, 90), sites[2]]
    replace(record, sites=bare).save(sweep / "circuits" / "bare.json")
    (sweep / "circuits" / "bracket.graph.json").write_text("{}")  # for other viewers
    (sweep / "circuits" / "broken.json").write_text('{"format": 1}')
    hostile = replace(record, metric=HOSTILE, model=HOSTILE, source=HOSTILE)
    hostile.save(sweep / "circuits" / "<b>%2F&.json")
    (sweep / "first" / "circuits").mkdir()
    record.save(sweep / "first" / "circuits" / "bracket.json")
    (sweep / "secret.json").write_text((sweep / "circuits" / "bracket.json").read_text())
    return sweep


@pytest.fixture(scope="module")
def site(sweep: Path) -> Iterator[Site]:
    site = Site([sweep])
    yield site
    site.stop()


def test_circuits_are_listed_and_one_that_cannot_be_read_says_why(site: Site) -> None:
    status, page, _ = site.ask("/circuits")
    assert status == 200
    listed = re.findall(r'<a href="/circuits/([^"]+)"', page)
    assert listed == ["%3Cb%3E%252F%26", "bare", "bracket", "bracket-2"]
    assert page.count("is no whole circuit") == 1
    assert Tags(page).names.count("img") == 0 and not Tags(page).inline
    for name in listed:
        status, page, _ = site.ask(f"/circuits/{name}")
        assert status == 200
        assert "img" not in Tags(page).names and not Tags(page).inline and ">1337<" not in page
    status, page, _ = site.ask("/circuits/broken")
    assert status == 400 and "is no whole circuit" in page and "Traceback" not in page


@pytest.mark.parametrize(
    "name",
    ["nothing", "..%2Fsecret", "%2e%2e%2fsecret", "../secret", "secret", "bracket.json", "%00"],
)
def test_names_lead_to_nothing_but_circuits(site: Site, name: str) -> None:
    status, page, _ = site.ask(f"/circuits/{name}")
    assert status in (400, 404) and "logit difference" not in page


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("bracket?nodes=0", "1 to 24"),
        ("bracket?nodes=25", "1 to 24"),
        ("bracket?edges=-1", "whole numbers"),
        ("bracket?edges=x", "whole numbers"),
        ("bracket/graph?nodes=%3Cb%3E", "&lt;b&gt;"),
        ("bracket/24", "node 24 of 24 is no feature"),
        ("bracket/-1", "is no feature"),
        ("bracket/6", "node 6 of 24 is no feature"),
        ("bracket/0", "the run of `embed` is not open here"),
        ("bracket/2", "the run of `layers.1` is not open here"),
        ("bare/1", "has no index"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(site: Site, address: str, told: str) -> None:
    status, page, _ = site.ask(f"/circuits/{address}")
    assert status == 400 and told in page


def test_the_address_says_how_much_is_drawn(site: Site) -> None:
    _, page, _ = site.ask("/circuits/bracket?nodes=7&edges=4")
    record = made()
    alone = draw_circuit(record, nodes=7, edges=4)
    assert "the strongest 7 of 24 nodes" in page and "the strongest 4 of " in page
    assert page.count('<a class="node ') == 8
    assert page.count('<path class="edge ') == len(alone.edges) + 2  # those of the legend
    _, graph, _ = site.ask("/circuits/bracket/graph?nodes=7&edges=4")
    assert graph.strip() in page
    assert page.count('<article class="node-card"') == 25


def test_a_card_tells_what_its_feature_fires_on_where_the_run_is_open(site: Site) -> None:
    _, page, _ = site.ask("/circuits/bracket")
    assert set(re.findall(r'data-card="/circuits/bracket/(\d+)"', page)) == {
        str(i) for i in range(1, 24, 3) if i % 7 != 6
    }
    assert "no run that the app shows has the dictionary of embed" in page
    status, card, _ = site.ask("/circuits/bracket/1")
    assert status == 200 and "ms-contexts" in card and "<html" not in card
    feature = re.search(r'href="/first/features/(\d+)"', page)
    assert feature and site.ask(f"/first/features/{feature[1]}")[0] == 200


def test_pages_lead_to_circuits_where_there_are_any(site: Site, sweep: Path) -> None:
    assert 'href="/circuits"' in site.ask("/")[1]
    assert 'href="/circuits/bracket"' in site.ask("/first/")[1]
    bare = site.ask("/bare/")[1]
    assert 'href="/circuits/bare"' in bare and 'href="/circuits/bracket"' not in bare


def test_names_in_addresses_are_one_circuits_each(sweep: Path, tmp_path: Path) -> None:
    paths = circuit_paths([sweep, sweep / "first", sweep])
    assert paths["bracket-2"] == sweep / "first" / "circuits" / "bracket.json"
    assert len(paths) == 5 and not circuit_paths([tmp_path])


def test_a_run_named_circuits_has_another_address(tmp_path: Path) -> None:
    make_run(tmp_path / "circuits", PLAIN)
    assert list(open_runs([tmp_path / "circuits"])) == ["circuits-2"]


def test_every_input_has_a_label_and_every_link_a_name(site: Site) -> None:
    _, page, _ = site.ask("/circuits/bracket")
    labelled = set(re.findall(r'<label for="([^"]+)"', page))
    inputs = re.findall(r"<input [^>]*>", page)
    assert len(inputs) == 2
    assert all(re.search(r' id="([^"]+)"', one)[1] in labelled for one in inputs)
    assert all(link.get("aria-label") for link in nodes_of(drawn(made())).values())
    headings = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", GROUNDS)
def test_figures_of_what_lowers_the_metric_stand_out(which: int, ground: str) -> None:
    """Those of what raises it have a colour of all pages."""
    css = Path(report.__file__).with_name("templates") / "circuit.css"
    down = re.search(r"--down: light-dark\(#(\w{6}), #(\w{6})\)", css.read_text())
    assert down
    colour = np.array([int(down[which + 1][i : i + 2], 16) / 255 for i in (0, 2, 4)])
    dark, light = sorted([luminance(colour), luminance(colours(which)[ground])])
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    with Browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.send("Emulation.setDeviceMetricsOverride", **phone)
        yield tab


def opacity(tab: Browser, selector: str) -> list[float]:
    """Of all elements of the picture that are selected."""
    found = f"[...document.querySelectorAll('.picture {selector}')]"
    return tab.run(f"{found}.map(e => Number(getComputedStyle(e).opacity))")


@needs_browser
def test_a_node_shows_its_edges_and_its_card_by_keys_and_without_scripts(
    tab: Browser, tmp_path: Path
) -> None:
    write_circuit(made(), tmp_path / "c.html")
    tab.open(f"file://{tmp_path}/c.html")
    assert tab.run("document.documentElement.scrollWidth") == 390
    tab.press("Tab")
    tab.run("document.querySelector('.n-5').focus()")
    assert set(opacity(tab, ".e-5")) == {1}
    assert max(opacity(tab, ".edge:not(.e-5)")) < 0.3
    assert set(opacity(tab, ".node:is(.n-5, .b-5)")) == {1}
    assert max(opacity(tab, ".node:not(.n-5, .b-5)")) < 0.3
    shown = (
        "[...document.querySelectorAll('.node-card')].filter(c => c.offsetHeight).map(c => c.id)"
    )
    assert tab.run(shown) == []
    tab.press("Enter")
    tab.wait("location.hash === '#node-5'")
    assert tab.run(shown) == ["node-5"]
    assert not tab.messages


@needs_browser
def test_sliders_draw_anew_and_cards_are_filled(site: Site, tab: Browser) -> None:
    tab.open(f"http://127.0.0.1:{site.port}/circuits/bracket")
    assert tab.run("document.documentElement.scrollWidth") == 390
    centred = "{behavior: 'instant', block: 'center', inline: 'center'}"
    tab.run(f"document.querySelector('.n-1').scrollIntoView({centred})")
    at = "document.querySelector('.n-1 circle').getBoundingClientRect()"
    x, y = (
        tab.run(f"{at}.{side} + {at}.{size} / 2")
        for side, size in (("x", "width"), ("y", "height"))
    )
    tab.point(x, y)
    assert set(opacity(tab, ".e-1")) == {1} and max(opacity(tab, ".edge:not(.e-1)")) < 0.3
    tab.point(x, y, click=True)
    tab.wait("location.hash === '#node-1'")
    tab.wait("document.querySelector('#node-1 .ms-contexts')")
    tab.run(
        "(nodes => { nodes.value = 6; nodes.dispatchEvent(new Event('input', {bubbles: true})) })"
        "(document.getElementById('nodes'))"
    )
    tab.wait("document.querySelectorAll('.picture .node').length === 7")
    assert tab.run("location.search + location.hash") == "?nodes=6&edges=60#node-1"
    assert tab.run("document.querySelector('#node-1').offsetHeight") > 0
    assert set(opacity(tab, ".n-1")) == {1}  # its card is still open
    tab.open(f"http://127.0.0.1:{site.port}/circuits/bare#node-1")
    tab.wait("document.querySelector('#node-1 .fires').textContent.includes('has no index')")
    assert [m for m in tab.messages if "400" not in m] == []
