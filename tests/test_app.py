"""The app: what its pages show, whom it answers, and that nothing of a corpus runs in them."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
import uvicorn
from browser import BROWSER, Browser

from monosemy.app import make_app
from monosemy.app.contexts import context_html
from monosemy.app.server import _listen
from monosemy.app.site import write_site
from monosemy.coders import Dictionary, Provenance, make_coder
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.index import Exemplar, Index, Name, add_name, read_names
from monosemy.index.join import join_parts
from monosemy.index.part import Entries, Misses, Part
from monosemy.interpret import build_features
from monosemy.lm import LM
from monosemy.training import Run

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")

EVIL = "<script>evil()</script>"
HOSTILE = [
    EVIL,
    '"><img src=x onerror=evil()>',
    "</pre>",
    "{{ 7 * 7 }}",
    "&lt;",
    "\n",
    "\u202e",
    "a",
]
PLAIN = ["def", " read", "(", "path", "):", "\n", "    ", "return"]
CONTEXT = 16


def make_run(folder: Path, words: list[str], *, width: int = 6, seed: int = 0) -> Path:
    """Write a run of a random dictionary, and an index in which feature f fires on token f."""
    coder = make_coder("topk", 4, width, k=2, seed=seed)
    evil = EVIL if EVIL in words else "plain"
    provenance = Provenance(
        model=evil, hookpoint="layers.0", context=CONTEXT, corpus={"source": evil}, training={}
    )
    dictionary = Dictionary(coder, provenance, torch.zeros(width), torch.zeros(4), 1.0, None)
    dictionary.save_pretrained(folder / "dictionary")
    make_index(folder, words, width)
    return folder


def make_index(folder: Path, words: list[str], width: int) -> Index:
    dictionary = Dictionary.from_pretrained(folder)
    ids = np.arange(5 * CONTEXT, dtype=np.int32) % len(words)
    lengths = np.array([len(words[i]) for i in ids])
    document = np.repeat([0, 1], [2 * CONTEXT, 3 * CONTEXT]).astype(np.int32)
    end = np.concatenate([np.cumsum(lengths[document == d]) for d in (0, 1)]).astype(np.int32)
    columns = {
        "ids": ids,
        "document": document,
        "start": (end - lengths).astype(np.int32),
        "end": end,
        "counted": np.ones(len(ids), bool),
    }
    texts = ["".join(words[i] for i in ids[document == d]) for d in (0, 1)]
    kinds = min(width - 1, len(words))  # the last features are dead
    places = [np.flatnonzero(ids == f).astype(np.int32) for f in range(kinds)]
    offsets = np.cumsum([0, *map(len, places), *[0] * (width - kinds)])
    values = np.linspace(1, 9, offsets[-1]).astype(np.float32)
    part = Part(
        Entries(offsets, np.concatenate(places), values),
        Misses(np.zeros((width, 12), np.int32), np.ones((width, 12), np.float32)),
        columns,
        [f"{words[0]}.py", "b.py"],
        texts,
    )
    part.save(folder / "part", {"n_tokens": len(ids), "place": {}, "complete": True})
    manifest = {"dictionary": dictionary.identity(), "context": CONTEXT}
    join_parts([folder / "part"], folder / "index", manifest, words)
    return Index.open(folder)


def make_meaning(index: Index, text: str) -> None:
    """Fill every table that pages show with some text."""
    width = index.width
    add_name(index.folder, Name(0, text, text, "2026"))
    index.write_table("explanations", [{"feature": 1, "explanation": text, "model": text}])
    figures = {"f1": 0.5, "precision": None}
    index.write_table("concepts", [{"feature": 2, "name": text, "label": text, **figures}])
    patterns = [text, {"tokens": [0, -2, -1], "activation": 1.0, "count": 2}]
    index.write_table("patterns", [{"feature": 1, "patterns": patterns}])
    ends = {"raised": [[0, 1.5]], "lowered": [[1, -2.5]]}
    changed = {"run": text, "hookpoint": text, "dictionary": text, "features": [[3, -4.0]]}
    effects = {"windows": 8, "kl_ablated": 0.25, "kl_doubled": 0.5, "steady": 0.7, "lens": 0.8}
    effects |= {"ablated": ends, "doubled": ends, "alike": [[1, 0.6, 0.3]], "later": changed}
    index.write_table("effects", [{"feature": 0, **effects}])
    ids = np.arange(2 * width, dtype=np.int32).reshape(width, 2) % len(index.text.vocabulary)
    weights = {"values": np.ones((width, 2), np.float32), "tokens": ids}
    weights |= {name: np.ones(width, np.float32) for name in ("skewness", "kurtosis")}
    tables = ("logits", "reads")
    index.write_arrays("lens", {f"{t}.{name}": a for t in tables for name, a in weights.items()})
    xy, cluster = np.random.rand(width, 2).astype(np.float32), np.zeros(width, np.int32)
    index.write_arrays("map", {"xy": xy, "cluster": cluster})
    near = {"decoder_ids": ids % width, "decoder_scores": np.ones((width, 2), np.float32)}
    index.write_arrays("similar", near)


class Answer:
    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.headers = answer.status, answer.headers
        self.text = answer.read().decode()


class Client:
    """Asks a server, sending addresses as they are."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.base = f"http://127.0.0.1:{port}"

    def __call__(self, address: str, *, body: str | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", address, body, sent)
        try:
            return Answer(connection.getresponse())
        finally:
            connection.close()


@contextmanager
def serving(*folders: Path, lm: LM | None = None) -> Iterator[Client]:
    app = make_app(folders)
    for run in app.state.runs.values():
        if lm is not None:
            run.__dict__["lm"] = lm
    listening = _listen(18440)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "<b>run&", HOSTILE)
    make_meaning(Index.open(folder), EVIL)
    return folder


@pytest.fixture(scope="module")
def ask(hostile: Path) -> Iterator[Client]:
    with serving(hostile) as client:
        yield client


RUN = "/%3Cb%3Erun%26/"
PAGES = ["", "features", *(f"features/{f}" for f in range(6))]


# --- whom it answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "127.0.0.1@evil"])
def test_a_request_for_another_host_is_refused(ask, host):
    answer = ask(RUN, Host=host)
    assert answer.status in (400, 403) and "evil" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_this_machine_is_answered_by_each_of_its_names(ask, host):
    assert ask(RUN, Host=f"{host}:{ask.port}").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_form_of_another_page_is_refused(ask, hostile, origin):
    before = (hostile / "index/human.jsonl").read_text()
    answer = ask(f"{RUN}features/0/name", body="name=x&by=y", Origin=origin)
    assert answer.status == 403
    assert (hostile / "index/human.jsonl").read_text() == before


@pytest.mark.parametrize(
    "address",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        f"{RUN}../../etc/passwd",
        f"{RUN}%2e%2e/%2e%2e/etc/passwd",
        f"{RUN}dictionary/manifest.json",
        f"{RUN}index/manifest.json",
        "/../../../../etc/passwd",
        "//etc/passwd",
    ],
)
def test_nothing_but_pages_is_served(ask, address):
    answer = ask(address)
    assert answer.status >= 400
    assert "root:" not in answer.text and "import" not in answer.text


def test_every_answer_forbids_what_is_not_the_apps(ask):
    for address in (RUN, "/static/app.css", "/nowhere"):
        policy = ask(address).headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "script" not in policy


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/other/", "there is no run `other`"),
        ("/x/y/z", "there is no page `/x/y/z`"),
        (f"{RUN}features/abc", "there is no page"),
        (f"{RUN}features/6", "there is no feature 6"),
        (f"{RUN}features/0/context?place=80&window=8", "there is no text at place 80"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(ask, address, said):
    assert said in json.loads(ask(address).text)["error"]
    page = ask(address, Accept="text/html")
    assert page.status >= 400 and said in page.text and "<main" in page.text


# --- what its pages show ------------------------------------------------------------------------


class Tags(HTMLParser):
    """Elements of a page, with the names of their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("address", [*PAGES, "features/0/context?place=3&window=16"])
def test_text_from_outside_is_harmless_on_every_page(ask, address):
    html = ask(RUN + address).text
    assert EVIL not in html
    assert "evil" in html or address == "features"  # whose text comes as data
    for tag, attributes in Tags(html).found:
        assert tag not in ("img", "b") or not attributes.get("onerror")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "script":
            assert attributes["src"].startswith(("/static/", RUN))
        for name in ("src", "href", "action"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "javascript:"))


def test_assets_ask_for_nothing_outside(ask):
    static = Path(__file__).parents[1] / "src/monosemy/app/static"
    assets = [ask(f"/static/{path.name}").text for path in static.iterdir()]
    for text in [*assets, ask("/static/report.css").text]:
        assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(|eval\(", text)


def test_a_context_holds_its_text_and_its_activations():
    exemplar = Exemplar("a", ["<a>", "\n", "\n", "  ", "b"], [0.0, 1.0, 0.0, 0.0, 2.0], 4)
    html = str(context_html(exemplar, 2.0))
    assert re.sub(r"<[^>]*>", "", html) == "&lt;a&gt;\n\n  b"
    assert re.findall(r'data-a="([^"]*)"', html) == ["1.00", "2.00"]
    assert "--a:0.500" in html and "--a:1.000" in html


def test_the_page_of_a_feature_has_all_that_is_known(ask):
    named, explained, labelled, dead = (ask(f"{RUN}features/{f}").text for f in (0, 1, 2, 5))
    assert "evil()" in named and "Alike in direction" in named and "Near misses" in named
    assert "Explanation" in explained and "[any][start]" in explained
    assert "Concept" in labelled and "0.500" in labelled
    assert "Promotes" in named and "Token embeddings it reads" in named and "kurtosis" in named
    assert "Token embeddings it writes" not in named  # the index does not say
    assert "It fired on none of the 80 tokens" in dead
    assert "What it causes" not in explained
    caused = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", named.split("What it causes")[1]))
    for words in (
        "Ablated KL 0.25 nats",
        "Raises",
        "+1.50",
        "\N{MINUS SIGN}2.50",
        "Doubled KL 0.50 nats",
    ):
        assert words in caused
    assert "logit lens 0.80" in caused and "where ablated 3 -4.00" in caused
    assert "0.60 0.30" in caused


def test_later_features_are_linked_where_their_run_is_open(tmp_path):
    one, other = (make_run(tmp_path / name, PLAIN, seed=n) for n, name in enumerate("ab"))
    index, later = Index.open(one), Index.open(other)
    make_meaning(index, "text")
    row = index.table("effects")[0]
    row["later"] = row["later"] | {"run": "b", "dictionary": later.manifest["dictionary"]}
    index.write_table("effects", [row])
    with serving(one, other) as ask:
        assert '<a href="/b/features/3">' in ask("/a/features/0").text
    with serving(one) as ask:
        page = ask("/a/features/0").text
        assert "/b/features" not in page and "of b, text" in page


def test_the_columns_of_the_list_are_what_the_index_says(ask, hostile):
    script = ask(f"{RUN}data/features.js").text
    found = json.loads(script.removeprefix("var FEATURES = ").rstrip(";\n"))
    index = Index.open(hostile)
    assert found["count"] == index.counts.tolist() and found["n_tokens"] == 80
    for feature in range(5):  # each fires on one token alone
        assert found["peaks"][3 * feature + 1 : 3 * feature + 3] == [-1, -1]
    assert found["peaks"][15:] == [-1, -1, -1]
    kinds = {feature: kind for feature, _, kind in found["names"]}
    assert kinds == {0: "people", 1: "explanation", 2: "concept"}
    assert found["concept"][2] == 0.5


def test_a_name_is_kept_and_shown(tmp_path):
    folder = make_run(tmp_path / "run", PLAIN)
    with serving(folder) as ask:
        form = urlencode({"name": "opening <b>", "by": "me"})
        answer = ask("/run/features/2/name", body=form, Origin=ask.base)
        assert answer.status == 303 and answer.headers["location"] == "/run/features/2"
        assert [n.name for n in read_names(folder / "index")[2]] == ["opening <b>"]
        assert "opening &lt;b&gt;" in ask("/run/features/2").text
        assert "opening <b>" in ask("/run/data/features.js").text
        assert json.loads(ask("/run/features/search?q=opening").text) == [2]
        ask("/run/features/2/name", body="name=&by=me", Origin=ask.base)
        assert "opening" not in ask("/run/features/2").text
        long = ask("/run/features/2/name", body="name=" + "x" * 501, Origin=ask.base)
        assert long.status == 400 and "501 characters" in long.text


def test_a_run_without_anything_says_what_makes_it(tmp_path):
    folder = make_run(tmp_path / "run", PLAIN)
    for path in (folder / "index").iterdir():
        path.unlink()
    (folder / "index").rmdir()
    (folder / "metrics.json").write_text("{broken")
    with serving(folder) as ask:
        page = ask("/run/").text
        assert "has no index" in page and f"monosemy index {folder}" in page
        assert f"monosemy evaluate {folder} --suite reconstruction" in page
        assert "has no index" in ask("/run/features/0").text


def test_an_index_made_again_is_served_and_pages_asked_for_meanwhile_work(tmp_path):
    folder = make_run(tmp_path / "run", PLAIN)
    add_name(folder / "index", Name(1, "kept", "me", "2026"))
    failed: list[str] = []
    done = threading.Event()

    def look(ask: Client) -> None:
        while not done.is_set():
            answer = ask("/run/features/1")
            if answer.status != 200:
                failed.append(answer.text)

    with serving(folder) as ask:
        looking = threading.Thread(target=look, args=(ask,))
        looking.start()
        for number in range(5):
            make_index(folder, [f"{number}new", *PLAIN[1:]], 6)
        done.set()
        looking.join()
        assert not failed
        assert "4new" in ask("/run/features/0").text and "kept" in ask("/run/features/1").text


def test_an_index_of_another_dictionary_is_refused(tmp_path):
    folder = make_run(tmp_path / "run", PLAIN)
    other = make_run(tmp_path / "other", PLAIN, seed=1)
    (folder / "dictionary").rename(tmp_path / "away")
    (other / "dictionary").rename(folder / "dictionary")
    with serving(folder) as ask:
        for address in ("features", "features/0"):
            assert "is the index of another dictionary" in ask(f"/run/{address}").text
        assert ask("/run/").status == 200


def test_only_runs_are_shown(tmp_path):
    with pytest.raises(UserError, match="is no run"):
        make_app([tmp_path])


def test_the_box_says_where_typed_text_fires(tmp_path, run: Run, lm: LM, corpus: Corpus):
    folder = tmp_path / "run"
    run.dictionary.save_pretrained(folder / "dictionary")
    features = build_features(run.dictionary, lm, corpus, folder / "index", tokens=2000)
    feature, text = features.live[0], "def function_7(value):\n    return value"
    expected = features.index.top(text, run.dictionary, lm).activations(feature)
    with serving(folder, lm=lm) as ask:
        address, kind = f"/run/features/{feature}/fire", "application/json"
        found = json.loads(ask(address, body=json.dumps({"text": text}), Content_Type=kind).text)
        assert re.sub(r"<[^>]*>", "", found["html"]) == text
        on = sum(activation > 0 for activation in expected)
        assert on and f"fires on {on} of {len(expected)} tokens" in found["said"]
        empty = ask(address, body=json.dumps({"text": " "}), Content_Type=kind)
        assert empty.status == 400 and json.loads(empty.text)["error"] == "the text is empty"


# --- as files -----------------------------------------------------------------------------------


def test_a_site_is_whole_and_leads_only_to_itself(hostile, tmp_path):
    site = write_site(hostile, tmp_path / "site", most=3)
    assert (site.features, site.live) == (3, 5)
    pages = sorted(site.path.parent.rglob("*.html"))
    assert len(pages) == 6
    assert "What it causes" in (tmp_path / "site/features/0.html").read_text("utf-8")
    drawn = json.loads((tmp_path / "site/map/points.js").read_text()[len("const MAP = ") : -1])
    assert drawn["paged"] == [int(page.stem) for page in sorted(tmp_path.glob("site/features/*"))]
    for page in pages:
        html = page.read_text("utf-8")
        assert EVIL not in html
        for tag, attributes in Tags(html).found:
            assert tag != "textarea" and attributes.get("method") is None
            assert tag != "button" or attributes["type"] == "button"  # nothing is sent
            for name in ("src", "href"):
                target = re.split("[?#]", attributes.get(name) or "")[0]
                if target and target != "data:," and "FEATURE" not in target:
                    assert not target.startswith("/") and (page.parent / target).is_file(), target


def test_a_site_replaces_a_site_and_nothing_else(hostile, tmp_path):
    write_site(hostile, tmp_path / "site", most=3)
    assert write_site(hostile, tmp_path / "site", most=2).features == 2
    assert len(list((tmp_path / "site/features").iterdir())) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(UserError, match="something else"):
        write_site(hostile, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.tex").is_file()


# --- colours ------------------------------------------------------------------------------------

CSS = Path(__file__).parents[1] / "src/monosemy/report/templates/page.css"
TEXT = ("ink", "soft", "faint", "edge")
GROUNDS = ("paper", "card", "wash")


def colours(which: int) -> dict[str, np.ndarray]:
    """Return the opaque colours of one scheme, [3] from 0 to 1."""
    found = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)", CSS.read_text())
    return {
        name: np.array([int(pair[which][i : i + 2], 16) / 255 for i in (0, 2, 4)])
        for name, *pair in found
    }


def luminance(colour: np.ndarray) -> float:
    """WCAG 2.2, relative luminance."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("text", TEXT)
def test_text_stands_out_from_its_ground(which, ground, text):
    found = colours(which)
    dark, light = sorted([luminance(found[text]), luminance(found[ground])])
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


# --- in a browser -------------------------------------------------------------------------------


@needs_browser
def test_a_hostile_corpus_runs_nothing_in_a_browser(ask, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        for address in PAGES:
            browser.open(ask.base + RUN + address)
            assert browser.run("typeof evil + document.querySelectorAll('img').length") == (
                "undefined0"
            )
            outside = [a for a in browser.requests if not a.startswith((ask.base, "data:"))]
            assert not outside
        assert not browser.messages


@needs_browser
def test_the_list_goes_through_65000_rows_with_a_few_elements(tmp_path):
    folder = make_run(tmp_path / "run", PLAIN, width=65_536)
    with serving(folder) as ask, Browser(tmp_path / "profile") as browser:
        browser.open(ask.base + "/run/features?sort=feature&order=asc")
        browser.wait("document.querySelectorAll('.grid-row').length")
        assert browser.run("document.querySelector('.grid').ariaRowCount") == "65537"
        browser.run("document.querySelector('.grid').scrollTop = 1e9")
        browser.wait("document.querySelector('[data-feature=\"65535\"]:not([hidden])')")
        browser.wait(
            "document.querySelector('[data-feature=\"65535\"]').getBoundingClientRect().bottom"
            " <= document.querySelector('.grid').getBoundingClientRect().bottom"
        )
        assert browser.run("document.querySelectorAll('.grid-row').length") < 80
        browser.run("document.querySelector('.grid').focus()")
        browser.press("Home", "ArrowDown", "ArrowDown")
        assert browser.run("document.querySelector('[aria-selected=true]').dataset.feature") == "2"
        browser.press("End")
        browser.wait("document.querySelector('[aria-selected=true]').dataset.feature === '65535'")
        browser.press("Home", "ArrowDown", "Enter")
        browser.wait("location.pathname === '/run/features/1'")
        assert not browser.messages


@needs_browser
def test_search_by_key_and_as_one_types(tmp_path):
    folder = make_run(tmp_path / "run", PLAIN)
    add_name(folder / "index", Name(3, "opens files", "me", "2026"))
    with serving(folder) as ask, Browser(tmp_path / "profile") as browser:
        browser.open(ask.base + "/run/features?live=1")
        browser.wait("document.querySelector('.found').textContent.startsWith('5 of 6 features')")
        browser.press("/")
        browser.type("opens")
        shown = "[...document.querySelectorAll('.grid-row:not([hidden])')]"
        browser.wait(f"{shown}.map(row => row.dataset.feature).join() === '3'")
        browser.wait("location.search === '?q=opens&live=1'")
        browser.press("ArrowDown", "Enter")
        browser.wait("location.pathname === '/run/features/3' && document.querySelector('h1')")
        # A form of the page itself is let in by the check of where it comes from.
        browser.run("document.querySelector('[name=name]').value = 'closes files'")
        browser.run("document.querySelector('.rename form').requestSubmit()")
        browser.wait("document.querySelector('h1')?.textContent.includes('closes files')")
        browser.open(ask.base + "/run/features/3#random")
        browser.wait("document.querySelector('#strongest').hidden")
        browser.open(ask.base + "/run/features/3")
        words = "document.querySelector('.ms-text[data-place]').textContent.length"
        before = browser.run(words)
        browser.run("document.querySelector('.ms-text[data-place]').focus()")
        browser.press("Enter")
        browser.wait("document.querySelector('[aria-expanded=true]')")
        assert browser.run(words) >= before
        browser.press("n")
        browser.wait("location.pathname === '/run/features/4'")
        assert not browser.messages


@needs_browser
def test_a_site_works_from_disk(hostile, tmp_path):
    site = write_site(hostile, tmp_path / "site")
    with Browser(tmp_path / "profile", width=390) as browser:
        browser.open(site.path.as_uri())
        assert browser.run("getComputedStyle(document.querySelector('.bar')).display") == "flex"
        browser.run("document.querySelector('nav a[href=\"features.html\"]').click()")
        browser.wait("document.querySelectorAll('.grid-row').length")
        browser.press("/")
        browser.type("evil")
        browser.wait("document.querySelector('.found').textContent.includes('best matches')")
        browser.press("ArrowDown", "Enter")
        browser.wait("location.pathname.includes('/features/')")
        browser.wait("document.querySelector('.tabs [aria-current]')")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.run("document.querySelector('nav a[href$=\"map.html\"]').click()")
        browser.wait("document.getElementById('map')?.dataset.drawn")
        assert not browser.messages
