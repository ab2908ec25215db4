"""Prompt, map, steering and comparison: what they show is so, nothing escapes, nothing stays."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from html import unescape
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import torch
import uvicorn
from browser import BROWSER, Browser
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st

from monosemy.app import make_app
from monosemy.app.columns import labels
from monosemy.app.compare import find_alone, find_families, match_runs
from monosemy.app.feature_map import clusters, kinds_of_text, points, read_map
from monosemy.app.prompt import read_prompt
from monosemy.app.runs import OpenRun
from monosemy.app.steer import Asked, Step
from monosemy.coders import Clamp, Dictionary, make_coder
from monosemy.corpus import open_corpus
from monosemy.errors import UserError
from monosemy.index import build_index
from monosemy.interpret import write_kinds
from monosemy.intervene import (
    FeatureEdit,
    Positions,
    parse_change,
    parse_positions,
    split_edits,
    steer,
    steer_measured,
)
from monosemy.lm import LM
from monosemy.metrics.diversity import distinct_n
from monosemy.training import train

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 191 }}"
PROMPT = "def read_file(path):\n    "
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")


class Site:
    """The app on a port, and its runs."""

    def __init__(self, folders: list[Path]) -> None:
        app = make_app(folders)
        self.runs: dict[str, OpenRun] = app.state.runs
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        threading.Thread(target=self._server.run, daemon=True).start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self, address: str, form: dict | None = None, accept: str = "text/html"
    ) -> tuple[int, str, str]:
        """Status, text and place to go on."""
        connection = self.connect()
        headers = {"Accept": accept, "Content-Type": "application/x-www-form-urlencoded"}
        body = None if form is None else urlencode(form, errors="replace")
        connection.request("GET" if form is None else "POST", address, body, headers)
        with closing(connection):
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers.get("Location", "")

    def stream(self, run: str, **form: object) -> list[dict]:
        status, text, _ = self.ask(f"/{run}/steer/text", form)
        assert status == 200, text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def order() -> torch.Tensor:
    """Of the first run's features in the second."""
    return torch.randperm(SMALL["width"], generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folders(
    checkpoint: Path, order: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """A run, and one whose features are the same in another order; with indexes of hostile text."""
    parent = tmp_path_factory.mktemp("runs")
    lm = LM(checkpoint)
    texts = [f"def read_{i}(path):\n    '''{HOSTILE}'''\n    return {i}\n" for i in range(40)]
    corpus = open_corpus(texts, held_out=0.5)
    small = {**SMALL, "tokens": 5_000, "batch": 256, "pool": 1024}
    first = train(lm, corpus, "layers.1", **small).dictionary
    for name, dictionary in (("run-0", first), ("run-1", reordered(first, order))):
        dictionary.save_pretrained(parent / name / "dictionary")
        index = build_index(dictionary, lm, corpus, parent / name / "index", tokens=600)
    xy = np.random.default_rng(0).normal(size=(index.width, 2)).astype(np.float32)
    xy[index.counts == 0] = np.nan
    cluster = (np.arange(index.width) % 5 - 1).astype(np.int32)
    index.write_arrays("map", {"xy": xy, "cluster": cluster})
    return [parent / "run-0", parent / "run-1"]


def reordered(dictionary: Dictionary, order: torch.Tensor) -> Dictionary:
    """The same dictionary, feature `order[i]` being the i-th; some may be there twice."""
    before, width = dictionary.coder, dictionary.width
    coder = make_coder(before.architecture, before.d_in, len(order), **before.options())
    rows = {n: t[order] if t.shape[:1] == (width,) else t for n, t in before.state_dict().items()}
    coder.load_state_dict(rows)
    known = dictionary.fingerprint
    strongest = torch.argsort(order)[known.strongest]
    return replace(
        dictionary,
        coder=coder,
        strength=dictionary.strength[order],
        fingerprint=replace(known, strongest=strongest),
    )


@pytest.fixture(scope="module")
def site(folders: list[Path]) -> Iterator[Site]:
    site = Site(folders)
    yield site
    site.stop()


def strong(run: OpenRun, count: int = 2) -> list[int]:
    return run.dictionary.strength.topk(count).indices.tolist()


def hooks(lm: LM) -> int:
    modules = lm.model.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


# --- prompt -----------------------------------------------------------------------------------


def test_features_of_a_text_are_those_of_the_index(site: Site) -> None:
    run = site.runs["run-0"]
    fired = run.features.index.top(PROMPT, run.dictionary, run.lm)
    _, page, _ = site.ask(f"/run-0/prompt?text={quote(PROMPT)}")
    listed = [int(f) for f in re.findall(r'<tr data-feature="(\d+)"', page)]
    assert listed == [f.feature for f in fired.overall[:30]]
    shown = json.loads(unescape(re.search(r'id="firing">(.*?)</script>', page)[1]))
    for feature in listed:
        told = [shown["activations"][str(feature)].get(str(t), 0) for t in range(len(fired.tokens))]
        assert told == pytest.approx(fired.activations(feature), rel=1e-3)
    each = re.findall(r'<li id="t(\d+)">(.*?)</ol>', page, re.DOTALL)
    for token, block in each:
        ids = [int(f) for f in re.findall(r'features/(\d+)"', block)]
        assert ids == [feature for feature, _ in fired.by_token[int(token)][:5]]


def test_what_fires_on_the_other_text_is_left_out(site: Site) -> None:
    run = site.runs["run-0"]
    everything = {f.feature for f in read_prompt(run, PROMPT).fired.overall}
    others = {f.feature for f in read_prompt(run, "import os").fired.overall}
    left = {f.feature for f in read_prompt(run, PROMPT, without="import os").fired.overall}
    assert left == everything - others
    assert everything & others  # something was there to leave out
    assert not read_prompt(run, PROMPT, without=PROMPT).overall
    status, page, _ = site.ask(f"/run-0/prompt?{urlencode({'text': PROMPT, 'without': PROMPT})}")
    assert status == 200 and "No feature to show" in page


def test_uncounted_tokens_are_shown_as_such(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run = site.runs["run-1"]
    provenance = run.dictionary.provenance
    changed = replace(provenance, policy=replace(provenance.policy, start=4))
    monkeypatch.setattr(run.dictionary, "provenance", changed)
    reading = read_prompt(run, PROMPT)
    _, page, _ = site.ask(f"/run-1/prompt?text={quote(PROMPT)}")
    uncounted = reading.fired.counted.count(False)
    assert 0 < uncounted < len(reading.fired.counted)
    assert page.count("not counted by the token policy") >= 2 * uncounted
    assert page.count('class="ms-t uncounted"') == uncounted


def test_a_short_text_gets_an_address_and_a_long_one_an_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = "a\r\nb & <c>"
    status, _, place = site.ask("/run-0/prompt", {"text": typed})
    assert status == 303 and place == "/run-0/prompt?" + urlencode({"text": "a\nb & <c>"})
    monkeypatch.setattr("monosemy.app.prompt._ADDRESS", 20)
    status, page, _ = site.ask("/run-0/prompt", {"text": typed})
    assert status == 200 and 'id="tokens"' in page


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("prompt?text=%20", "the text is empty"),
        (f"prompt?text={'x' * 20_001}", "20,001 characters"),
        ("prompt?text=x&feature=96", "allowed: whole numbers, -1 to 95"),
        ("prompt?text=x&feature=<script>", "&lt;script&gt;"),
        ("steer?features=96:1", "features 0 to 95"),
        ("steer?features=1:x", "`clamp 1=x` is no edit"),
        ("steer?features=1:nan", "`clamp 1=nan` is no edit"),
        ("steer?features=1:1,1:2", "`clamp 1=1,1=2` is no edit"),
        ("steer?features=1:101", "-100 to 100"),
        ("steer?features=" + ",".join(f"{i}:1" for i in range(17)), "allowed: up to 16"),
        ("steer?edits=<script>", "`&lt;script&gt;` is no edit"),
        ("steer?edits=ablate+1;swap+1,96", "features 0 to 95"),
        ("steer?edits=" + ";".join(["ablate+1"] * 17), "17 edits"),
        ("steer?positions=some", "allowed: all, prompt, generated, 3:10"),
        ("steer?positions=fires+96", "features 0 to 95"),
        ("steer?error=lose", "allowed: keep, drop"),
        ("steer?tokens=513", "1 to 512"),
        ("steer?temperature=-1", "numbers from 0 to 5"),
        ("steer?seed=1.5", "whole numbers"),
        ("map?colour=red", "density, name, cluster"),
        ("compare?b=nobody", "there is no run"),
        ("compare?b=run-1&feature=x", "whole numbers"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(site: Site, address: str, told: str) -> None:
    status, page, _ = site.ask(f"/run-0/{address.replace('<', '%3C').replace('>', '%3E')}")
    assert status == 400
    assert told in page and "Traceback" not in page and "<script>" not in page


def test_too_large_a_form_is_refused(site: Site) -> None:
    status, page, _ = site.ask("/run-0/prompt", {"text": "x" * 2**20})
    assert status == 400 and "more than 1 MB" in page


@pytest.mark.parametrize(
    "address",
    [
        f"prompt?{urlencode({'text': HOSTILE, 'without': HOSTILE[:9]})}",
        "prompt",
        f"steer?{urlencode({'prompt': HOSTILE})}",
        f"map?{urlencode({'q': HOSTILE})}",
        f"compare?{urlencode({'b': 'run-1', 'text': HOSTILE, 'feature': 3})}",
    ],
)
def test_hostile_text_stays_text(site: Site, address: str) -> None:
    """Of the person, and of the corpus, whose every document is full of it."""
    status, page, _ = site.ask(f"/run-1/{address.replace('run-1', 'run-0')}")
    assert status == 200
    assert "alert" in page and ">1337<" not in page
    tags = Tags(page)
    assert "img" not in tags.names and not tags.inline


class Tags(HTMLParser):
    """The elements of a page, and scripts that it brings itself."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.inline: list[dict] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.names.append(tag)
        found = dict(attributes)
        is_data = found.get("type") == "application/json"
        runs = tag == "script" and "src" not in found and not is_data
        if runs or any(name.startswith("on") for name in found):
            self.inline.append({tag: found})


# --- steering ---------------------------------------------------------------------------------


def test_what_is_streamed_is_what_the_model_writes(site: Site) -> None:
    run = site.runs["run-0"]
    first, second = strong(run)
    how = {"max_new_tokens": 12, "temperature": 0.9, "seed": 5}
    lines = site.stream(
        "run-0",
        prompt=PROMPT,
        features=f"{first}:2,{second}:-1.5",
        tokens=12,
        temperature=0.9,
        seed=5,
    )
    texts = {
        side: [line["text"] for line in lines if line.get("side") == side]
        for side in ("original", "steered")
    }
    assert texts["original"][-1] == run.lm.generate(PROMPT, **how)
    with run.lm.edit(FeatureEdit(run.dictionary, [Clamp({first: 2.0, second: -1.5})])):
        assert texts["steered"][-1] == run.lm.generate(PROMPT, **how)
    for written in texts.values():
        assert 1 < len(written) <= 12
        assert all(
            later.startswith(before.rstrip("\N{REPLACEMENT CHARACTER}"))
            for before, later in itertools.pairwise(written)
        )
    assert "nats a token" in lines[-1]["said"] or "changed nothing" in lines[-1]["said"]


@pytest.mark.parametrize(
    ("edits", "positions", "error"),
    [
        ("suppress 0.5; clamp {a}=2", "generated", "keep"),
        ("add {a}=3; scale {b}=0.5", "2:6", "keep"),
        ("swap {a},{b}; ablate {b}", "prompt", "drop"),
        ("project-out {a}", "fires {b}", "keep"),
    ],
)
def test_every_edit_is_what_the_page_says(
    site: Site, edits: str, positions: str, error: str
) -> None:
    """The same as on the command line: text, tokens touched, and through the dictionary."""
    run = site.runs["run-0"]
    a, b = strong(run)
    edits, positions = edits.format(a=a, b=b), positions.format(b=b)
    lines = site.stream(
        "run-0",
        prompt=PROMPT,
        edits=edits,
        positions=positions,
        error=error,
        through="1",
        tokens=6,
    )
    changes = [parse_change(text) for text in edits.split("; ")]
    edit = FeatureEdit(run.dictionary, changes, parse_positions(positions), error)
    expected = steer(run.lm, [edit], PROMPT, max_new_tokens=6)
    for side, found in zip(("original", "through", "steered"), expected, strict=True):
        assert [line["text"] for line in lines if line.get("side") == side][-1] == found.text
    assert lines[-1]["edited"] == asdict(expected[-1])
    assert all(len(row) == 4 for row in lines[-1]["figures"])


def test_strengths_in_an_old_address_are_clamps(site: Site) -> None:
    run = site.runs["run-0"]
    a, b = strong(run)
    old = Asked.read({"features": f"{a}:0.7,{b}:-0.5"}, run)
    new = Asked.read({"edits": f"clamp {a}=0.7;clamp {b}=-0.5"}, run)
    assert old.edit == FeatureEdit(run.dictionary, [Clamp({a: 0.7, b: -0.5})])
    assert old.steps == new.steps == [Step("clamp", a, 0.7), Step("clamp", b, -0.5)]


def test_with_no_edit_the_text_is_the_plain_one(site: Site) -> None:
    run = site.runs["run-0"]
    nothing = FeatureEdit(run.dictionary, [])
    found = steer_measured(run.lm, nothing, PROMPT, temperature=1.0)
    original, steered = found["original"], found["steered"]
    assert steered.written.text == original.written.text
    assert original.by_original == original.by_steered == steered.by_original
    last = site.stream("run-0", prompt=PROMPT)[-1]
    assert "changed nothing" in last["said"] and not any(last["edited"]["touched"])
    nowhere = {"features": f"{strong(run)[0]}:2", "positions": "60:61", "tokens": 3}
    assert "acts on no token" in site.stream("run-0", prompt=PROMPT, **nowhere)[-1]["said"]


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_likelihoods_by_hand(site: Site, positions: Positions) -> None:
    """The logits at a position are about the token after it."""
    run = site.runs["run-0"]
    lm = run.lm
    edit = FeatureEdit(run.dictionary, [Clamp({strong(run)[0]: 3.0})], positions)
    found = [*steer_measured(lm, edit, PROMPT, max_new_tokens=8).values()]
    start = lm.encode(PROMPT).shape[1]

    def by_hand(ids: list[int]) -> float:
        with lm.prompted(start):
            logits = lm.logits(torch.tensor([ids]))[0].double()
        each = [float(logits[t - 1].log_softmax(0)[ids[t]]) for t in range(start, len(ids))]
        return sum(each) / len(each)

    plain = lm.write(PROMPT, max_new_tokens=8).tokens.tolist()
    with lm.edit(edit):
        steered = lm.write(PROMPT, max_new_tokens=8).tokens.tolist()
        seen = [by_hand(ids) for ids in (plain, steered)]
    assert [one.by_steered for one in found] == pytest.approx(seen, rel=1e-5)
    seen = [by_hand(ids) for ids in (plain, steered)]
    assert [one.by_original for one in found] == pytest.approx(seen, rel=1e-5)
    assert [len(one.written.tokens) for one in found] == [len(plain), len(steered)]
    assert [one.written.prompt for one in found] == [start, start]


def test_several_features_are_clamped_at_once_in_any_order(site: Site) -> None:
    run = site.runs["run-0"]
    d, (first, second) = run.dictionary, strong(run)
    x = torch.randn(1, 6, d.d_in)
    z = d.encode(x)
    edited = z.clone()
    edited[..., first], edited[..., second] = 2 * d.strength[first], -d.strength[second]
    expected = x + d.decode(edited) - d.decode(z)
    one_way = d.clamp(x, {first: 2.0, second: -1.0})
    torch.testing.assert_close(one_way, expected, atol=1e-4, rtol=1e-4)
    other_way = d.clamp(x, {second: -1.0, first: 2.0})
    torch.testing.assert_close(one_way, other_way, atol=1e-5, rtol=1e-5)
    assert torch.equal(d.clamp(x, {}), x)
    assert torch.equal(d.clamp(x, {first: 2.0}), d.steer(x, feature=first, scale=2.0))


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 3))
@settings(max_examples=50)
def test_distinct_n(tokens: list[int], n: int) -> None:
    grams = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
    share = distinct_n(tokens, n)
    if not grams:
        assert np.isnan(share)
        return
    assert 0 < share <= 1
    assert (share == 1) == all(a != b for i, a in enumerate(grams) for b in grams[:i])
    assert distinct_n([7] * 10, n) == 1 / (11 - n)


@given(st.text(max_size=30) | st.text("clampdswx 0123456789=,;:-.", max_size=30))
@settings(max_examples=100)
def test_any_other_text_is_no_edit(text: str) -> None:
    try:
        changes = [parse_change(part) for part in split_edits(text)]
    except UserError:
        return
    assert all(np.isfinite([*change.amounts().values()]).all() for change in changes)


def test_nothing_stays_when_nobody_listens_any_more(site: Site) -> None:
    """The model stops, the lock is free, and no hook is left, though much was still to write."""
    run = site.runs["run-0"]
    plain = run.lm.generate(PROMPT, max_new_tokens=6)
    before = hooks(run.lm)
    slow = threading.Event()

    def delay(*_: object) -> None:
        slow.set()
        time.sleep(0.05)

    handle = run.lm.model.register_forward_hook(delay)
    form = urlencode({"prompt": "def", "features": f"{strong(run)[0]}:2", "tokens": 50})
    connection = site.connect()
    connection.request("POST", "/run-0/steer/text", form)
    answer = connection.getresponse()
    answer.readline()
    assert slow.wait(10)
    begun = time.monotonic()
    answer.close()
    connection.close()
    with run.model:
        took = time.monotonic() - begun
        handle.remove()
        assert hooks(run.lm) == before
    assert took < 1.5  # of the 5 seconds that both texts take
    assert run.lm.generate(PROMPT, max_new_tokens=6) == plain


def test_a_second_request_waits_and_is_answered(site: Site) -> None:
    run = site.runs["run-0"]
    with run.model:
        connection = site.connect()
        connection.request("POST", "/run-0/steer/text", urlencode({"prompt": PROMPT, "tokens": 3}))
        answer = connection.getresponse()
        assert json.loads(answer.readline()) == {"waiting": True}
    with closing(connection):
        lines = [json.loads(line) for line in answer.read().splitlines()]
    assert lines[0] == {"waiting": False} and "said" in lines[-1]


def test_errors_of_the_model_end_the_stream_with_a_sentence(site: Site) -> None:
    lines = site.stream("run-0", prompt="def " * 300)
    assert "fewer than 64" in lines[-1]["hint"]
    status, text, _ = site.ask("/run-0/steer/text", {"features": "96:1", "prompt": "x"}, "*/*")
    assert status == 400 and json.loads(text)["error"] == "there is no feature 96"


def test_a_transcoder_steers_where_it_writes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run = site.runs["run-0"]
    dictionary, feature = run.dictionary, strong(run)[0]
    changed = replace(dictionary.provenance, target="layers.2.mlp")
    monkeypatch.setattr(dictionary, "provenance", changed)
    assert site.ask(f"/run-0/steer?features={feature}:4")[0] == 200
    lines = site.stream("run-0", prompt=PROMPT, features=f"{feature}:4", tokens=6)
    edit = FeatureEdit(dictionary, [Clamp({feature: 4.0})])
    assert [*edit.hooks(run.lm)] == ["layers.1", "layers.2.mlp"]
    with run.lm.edit(edit):
        expected = run.lm.generate(PROMPT, max_new_tokens=6)
    assert [line["text"] for line in lines if line.get("side") == "steered"][-1] == expected


def test_features_to_steer_by_are_found_by_number_and_by_words(site: Site) -> None:
    run = site.runs["run-0"]
    feature = strong(run)[0]
    found = json.loads(site.ask(f"/run-0/steer/features?q={feature}")[1])
    assert found == [{"feature": feature, "called": labels(run.features.index, [feature])[0]}]
    words = json.loads(site.ask("/run-0/steer/features?q=read")[1])
    assert all(run.dictionary.strength[one["feature"]] > 0 for one in words)
    assert site.ask("/run-0/steer/features?q=96")[0] == 400


# --- map --------------------------------------------------------------------------------------


def unpack(told: dict, name: str, kind: str) -> np.ndarray:
    return np.frombuffer(b64decode(told[name]), kind)


def test_points_are_the_features_that_have_a_place(site: Site) -> None:
    index = site.runs["run-1"].features.index
    arrays = read_map(index)
    _, script, _ = site.ask("/run-1/map/points.js")
    told = json.loads(script.removeprefix("const MAP = ").removesuffix(";"))
    drawn = np.flatnonzero(index.counts > 0)
    assert len(drawn) > 0 and unpack(told, "feature", "<i4").tolist() == drawn.tolist()
    np.testing.assert_array_equal(unpack(told, "xy", "<f4").reshape(-1, 2), arrays["xy"][drawn])
    np.testing.assert_allclose(
        unpack(told, "density", "<f4"), index.counts[drawn] / index.n_tokens, rtol=1e-6
    )
    assert told["called"] == labels(index, drawn.tolist())
    assert told == points(index, arrays)


def test_clusters_hold_every_feature_that_is_in_one(site: Site) -> None:
    index = site.runs["run-1"].features.index
    arrays = read_map(index)
    inside = (arrays["cluster"] >= 0) & (index.counts > 0)
    found = clusters(index, arrays)
    assert sum(c.size for c in found) == inside.sum()
    assert [c.size for c in found] == sorted((c.size for c in found), reverse=True)
    for c in found:
        assert {arrays["cluster"][f] for f, _ in c.features} == {c.number}


def test_kinds_of_text_are_shown_with_their_features_and_text(site: Site) -> None:
    run = site.runs["run-1"]
    write_kinds(run.features.index)
    kinds = kinds_of_text(run)
    rows = len(run.features.index.text) // run.features.index.text.context
    assert kinds and sum(kind.size for kind in kinds) <= rows
    _, page, _ = site.ask("/run-1/map")
    assert "Kinds of text" in page
    for kind in kinds:
        assert all(lift > 1 for _, _, lift in kind.features)
        for document, text in kind.texts:
            number = run.features.index.text.names.index(document)
            assert text and text in run.features.index.text.text(number)
    assert HOSTILE not in page


def test_without_a_map_the_command_that_makes_it_is_told(site: Site) -> None:
    status, page, _ = site.ask("/run-0/map")
    assert status == 200
    assert f"monosemy index {site.runs['run-0'].folder} --map" in page


def test_a_map_of_another_index_is_refused(site: Site) -> None:
    index = site.runs["run-0"].features.index
    index.write_arrays(
        "map", {"xy": np.zeros((5, 2), np.float32), "cluster": np.zeros(5, np.int32)}
    )
    try:
        assert "the map has 5 features" in site.ask("/run-0/map")[1]
    finally:
        (index.folder / "map.safetensors").unlink()


# --- comparison -------------------------------------------------------------------------------


def test_the_same_features_in_another_order_are_partners(site: Site, order: torch.Tensor) -> None:
    a, b = site.runs["run-0"], site.runs["run-1"]
    partners = match_runs(a, b)
    live = a.dictionary.strength.numpy() > 0
    assert live.sum() > 0
    assert partners.of_a[live].tolist() == torch.argsort(order)[live].tolist()
    assert (partners.of_a[~live] == -1).all() and (partners.cosines[~live] == 0).all()
    np.testing.assert_allclose(partners.cosines[live], 1, atol=1e-5)
    assert partners.of_b[partners.of_a[live]].tolist() == np.flatnonzero(live).tolist()
    feature = int(np.flatnonzero(live)[0])
    status, page, _ = site.ask(f"/run-0/compare?b=run-1&feature={feature}")
    assert status == 200
    assert f"run-1, feature {partners.of_a[feature]}<" in page
    assert "0 of run-0 without a partner" in page


def test_features_split_in_a_wider_run_are_families(site: Site, order: torch.Tensor) -> None:
    """The wider dictionary has every feature of the narrow one twice, turned a little."""
    narrow = site.runs["run-0"]
    twice = torch.cat([order, order])
    wide = OpenRun("wide", narrow.folder)
    wide.dictionary = reordered(narrow.dictionary, twice)  # type: ignore[misc]
    wide.dictionary.coder.W_dec.data += 0.01 * torch.randn_like(wide.dictionary.coder.W_dec)
    families = find_families(wide, narrow)
    live = narrow.dictionary.strength.numpy() > 0
    assert families and (families.narrow, families.wide) == (narrow, wide)
    parent = families.parents.parent
    assert parent[live[twice]].tolist() == twice[live[twice]].tolist()
    assert (parent[~live[twice]] == -1).all()
    assert len(families.parents.families) == live.sum()
    family = families.listed[0]
    cosines = families.parents.score[[child for child, _ in family.children]]
    assert [twice[child] for child, _ in family.children] == [family.parent[0]] * 2
    assert (np.diff(cosines) <= 0).all()
    assert find_families(narrow, narrow) is None


def test_features_without_a_partner_are_listed_most_frequent_first(site: Site) -> None:
    run = site.runs["run-0"]
    live = np.flatnonzero(run.dictionary.strength.numpy() > 0)
    cosines = np.ones(run.dictionary.width)
    cosines[live[:10]] = 0.7  # not above 0.7
    cosines[np.flatnonzero(run.dictionary.strength.numpy() == 0)] = 0
    alone = find_alone(run, cosines)
    assert alone.total == 10
    counts = [int(run.features.counts[f]) for f, _, _ in alone.listed]
    assert {f for f, _, _ in alone.listed} == set(live[:10].tolist())
    assert counts == sorted(counts, reverse=True)


def test_other_hook_points_have_no_partners(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = site.runs["run-1"].dictionary
    changed = replace(dictionary.provenance, hookpoint="layers.0")
    monkeypatch.setattr(dictionary, "provenance", changed)
    status, page, _ = site.ask("/run-0/compare?b=run-1")
    assert status == 200 and "read different hook points, layers.1 and layers.0" in page


def test_figures_stand_beside_each_other(site: Site) -> None:
    def figures(value: float) -> str:
        row = {"name": "FVU", "unit": "", "better": "lower", "explanation": "unexplained"}
        values = [None, {"value": value, "low": value - 0.01, "high": value + 0.01}]
        table = {
            "title": "t",
            "columns": ["PCA", "dictionary"],
            "rows": [{**row, "values": values}],
        }
        return json.dumps({"suites": [{"title": "Reconstruction", "tables": [table]}]})

    paths = [site.runs[name].folder / "metrics.json" for name in ("run-0", "run-1")]
    for path, value in zip(paths, (0.125, 0.875), strict=True):
        path.write_text(figures(value))
    _, page, _ = site.ask("/run-0/compare?b=run-1")
    first, second = page.index("0.125"), page.index("0.875")
    assert page.index("FVU") < first < second
    paths[1].write_text('{"suites": [{}]}')
    status, page, _ = site.ask("/run-0/compare?b=run-1")
    assert status == 400 and "is not as it was written" in page
    for path in paths:
        path.unlink()


def test_one_run_alone_says_how_to_open_two(folders: list[Path]) -> None:
    site = Site(folders[:1])
    assert "There is no other run" in site.ask("/run-0/compare")[1]
    site.stop()


# --- for everybody ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["prompt?text=def", "steer?positions=2:4", "map", "compare?b=run-0&feature=2&text=def"],
)
def test_every_input_has_a_label_and_every_button_a_name(site: Site, address: str) -> None:
    _, page, _ = site.ask(f"/run-1/{address}")
    labelled = set(re.findall(r'<label for="([^"]+)"', page))
    inputs = re.findall(r"<(?:input|textarea|select)\b[^>]*>", page)
    for tag in inputs:
        if 'type="hidden"' in tag:
            continue
        assert re.search(r'id="([^"]+)"', tag)[1] in labelled, tag
    for attributes, inside in re.findall(r"<button\b([^>]*)>(.*?)</button>", page, re.DOTALL):
        assert re.sub(r"<[^>]+>", "", inside).strip() or "aria-label" in attributes
    assert not Tags(page).inline  # the policy forbids it


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def address(site: Site, path: str) -> str:
    return f"http://127.0.0.1:{site.port}/{path}"


@needs_browser
def test_steering_streams_into_the_page(site: Site, tab: Browser) -> None:
    run = site.runs["run-0"]
    asked = {"features": f"{strong(run)[0]}:2", "prompt": PROMPT, "tokens": 8}
    before = tab.run("history.length")
    tab.open(address(site, f"run-0/steer?{urlencode(asked)}"))
    tab.wait("document.querySelector('#outcome table')")
    assert tab.run("new URLSearchParams(location.search).get('edits')").startswith("clamp ")
    assert tab.run("history.length") == before + 1
    expected = PROMPT + run.lm.generate(PROMPT, max_new_tokens=8)
    assert tab.run("document.getElementById('original').textContent") == expected
    assert tab.run("document.querySelectorAll('#rows .amount').length") == 1
    edited = site.stream("run-0", **asked)[-1]["edited"]
    marked = "[...document.querySelectorAll('#steered span')].map(s => s.matches('.touched'))"
    assert tab.run(marked) == edited["touched"] and any(edited["touched"])
    assert tab.run("document.getElementById('steered').textContent") == "".join(edited["tokens"])
    said = f"acts on {sum(edited['touched'])} of {len(edited['tokens'])} tokens"
    assert said in tab.run("document.getElementById('acted').textContent")
    assert tab.run("document.getElementById('by-dictionary').offsetParent === null")
    assert not tab.messages


@needs_browser
def test_an_address_with_every_edit_is_the_forms(site: Site, tab: Browser) -> None:
    """What is read from an address is what the form asks for again; the keyboard changes it."""
    run = site.runs["run-0"]
    a, b, c, d = strong(run, 4)
    edits = f"suppress 0.5; clamp {a}=2; add {b}=-1; ablate {c}; swap {d},{a}; project-out {b}"
    asked = {"edits": edits, "positions": f"fires {a}", "error": "drop", "through": "1"}
    tab.open(address(site, f"run-0/steer?{urlencode(asked)}"))
    form = "Object.fromEntries(new FormData(document.getElementById('asked')))"
    sent = tab.run(form)
    assert {name: sent[name] for name in asked} == asked
    assert tab.run("document.getElementById('more').open")
    fields = "#asked :is(input, select, button):not([type=hidden])"
    unnamed = f"""[...document.querySelectorAll('{fields}')]
      .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length"""
    assert tab.run(unnamed) == 0
    tab.run("document.querySelectorAll('#rows select')[0].focus()")
    tab.press("s")  # "scale by"
    tab.run("document.getElementById('where').focus()")
    tab.press("e")  # "every token"
    sent = tab.run(form)
    assert sent["edits"] == edits.replace(f"clamp {a}=2", f"scale {a}=2")
    assert sent["positions"] == "all"
    tab.run("document.querySelector('#rows li:last-child button').click()")
    tab.run("document.getElementById('all').click()")
    assert tab.run("document.activeElement.className") == "amount"
    assert tab.run(form)["edits"].startswith("suppress 0.5; suppress 0.5; ")
    assert "project-out" not in tab.run(form)["edits"]
    assert not tab.messages


@needs_browser
def test_through_the_dictionary_is_shown_when_asked_for(site: Site, tab: Browser) -> None:
    run = site.runs["run-0"]
    asked = {"edits": f"add {strong(run)[0]}=1", "prompt": PROMPT, "tokens": 6, "through": 1}
    tab.open(address(site, f"run-0/steer?{urlencode(asked)}"))
    tab.wait("document.querySelector('#outcome table')")
    with run.lm.edit(FeatureEdit(run.dictionary, [], error="drop")):
        expected = PROMPT + run.lm.generate(PROMPT, max_new_tokens=6)
    assert tab.run("document.getElementById('by-dictionary').textContent") == expected
    assert tab.run("document.getElementById('by-dictionary').offsetParent !== null")
    assert tab.run("document.querySelectorAll('#outcome thead th').length") == 4
    assert not tab.messages


@needs_browser
def test_the_stop_button_stops_the_model(site: Site, tab: Browser) -> None:
    run = site.runs["run-0"]
    handle = run.lm.model.register_forward_hook(lambda *_: time.sleep(0.05))
    tab.open(address(site, f"run-0/steer?{urlencode({'prompt': 'def', 'tokens': 50})}"))
    tab.wait("document.getElementById('original').textContent.length > 6")
    tab.run("document.getElementById('stop').click()")
    tab.wait("document.getElementById('status').textContent === 'Stopped.'")
    begun = time.monotonic()
    with run.model:
        assert time.monotonic() - begun < 1.5
    handle.remove()


@needs_browser
def test_tokens_are_reached_by_keys(site: Site, tab: Browser) -> None:
    tab.open(address(site, f"run-0/prompt?{urlencode({'text': PROMPT + HOSTILE})}"))
    tab.run("document.querySelector('#tokens a').focus()")
    tab.press("ArrowRight")
    assert tab.run("document.activeElement.hash") == "#t1"
    features = tab.run("[...document.querySelectorAll('#panel a')].map(a => a.textContent)")
    fired = read_prompt(site.runs["run-0"], PROMPT + HOSTILE).fired
    assert features == [str(f) for f, _ in fired.by_token[1][:5]]
    assert tab.run("document.querySelectorAll('#tokens img, #tokens script').length") == 0
    assert not tab.messages


@needs_browser
def test_no_page_is_wider_than_a_phone(site: Site, tab: Browser) -> None:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    tab.send("Emulation.setDeviceMetricsOverride", **phone)
    for path in (
        "prompt?text=def",
        "steer?edits=swap+1,2;suppress+1&through=1",
        "map",
        "compare?b=run-0&text=def",
    ):
        tab.open(address(site, f"run-1/{path}"))
        assert tab.run("document.documentElement.scrollWidth") == 390, path
        assert not tab.messages
    tab.send("Emulation.clearDeviceMetricsOverride")


@needs_browser
def test_a_click_on_the_map_goes_to_the_feature(site: Site, tab: Browser) -> None:
    tab.open(address(site, "run-1/map"))
    tab.wait("document.getElementById('map').dataset.drawn")
    chosen = tab.run("feature[7]")
    tab.run("document.getElementById('map').scrollIntoView({behavior: 'instant'})")
    box = tab.run("(({x, y}) => [x, y])(canvas.getBoundingClientRect())")
    tab.run("(view.x = xy[14], view.y = xy[15], zoom(30))")
    tab.point(*middle(tab, box))
    tab.wait("!tip.hidden")
    assert tab.run("tip.textContent").startswith(f"Feature {chosen}")
    tab.point(*middle(tab, box), click=True)
    tab.wait(f"location.pathname === '/run-1/features/{chosen}'")


def middle(tab: Browser, box: list[float]) -> tuple[float, float]:
    width, height = tab.run("[width, height]")
    return box[0] + width / 2, box[1] + height / 2


@needs_browser
def test_the_map_draws_65536_features_at_once(site: Site, tab: Browser, tmp_path: Path) -> None:
    """The script of the page, with the points of a wide dictionary in their place."""
    count = 65_536
    rng = np.random.default_rng(0)

    def pack(values: np.ndarray) -> str:
        return b64encode(values.tobytes()).decode()

    told = {
        "feature": pack(np.arange(count, dtype="<i4")),
        "xy": pack(rng.normal(size=(count, 2)).astype("<f4")),
        "density": pack((10 ** rng.uniform(-5, -1, count)).astype("<f4")),
        "cluster": pack(rng.integers(-1, 40, count).astype("<i4")),
        "label": pack(np.full(count, -1, "<i4")),
        "labels": [],
        "called": [f"feature {i}" for i in range(count)],
    }
    _, page, _ = site.ask("/run-1/map")
    script = site.ask("/static/map.js")[1]
    page = re.sub(r"<script[^>]*></script>", "", page)
    page = re.sub(r'<link rel="stylesheet"[^>]*>', "", page)
    style = "<style>canvas { width: 900px; height: 600px }</style>"
    scripts = f"<script>const MAP = {json.dumps(told)};</script><script>{script}</script>"
    path = tmp_path / "map.html"
    path.write_text(page.replace("</body>", f"{style}{scripts}</body>"))
    tab.open(path.as_uri())
    tab.wait("document.getElementById('map').dataset.drawn === '65536'")
    drawn = (
        "[...context.getImageData(0, 0, 900, 600).data].filter((v, i) => i % 4 === 3 && v).length"
    )
    assert tab.run(drawn) > 20_000
    # What is found near a point by the grid is what looking at every point finds.
    slow = """(left, top) => { let best = -1, least = 100;
      for (let i = 0; i < count; i += 1) { const [x, y] = toScreen(i);
        const d = (x - left) ** 2 + (y - top) ** 2; if (d < least) [best, least] = [i, d]; }
      return best; }"""
    for left, top in rng.uniform((0, 0), (900, 600), size=(40, 2)).tolist():
        assert tab.run(f"nearest({left}, {top}) === ({slow})({left}, {top})")
    hover = tab.run(
        "(() => { const t = performance.now(); for (let i = 0; i < 1000; i += 1) "
        "nearest(900 * Math.random(), 600 * Math.random()); return performance.now() - t })()"
    )
    assert hover < 1000  # a millisecond each
    assert not tab.messages
