"""The client against a real server that fails in every way a server can."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import planted
import pytest
from children import Child
from mock_llm import Messages, MockLLM, perfect, tokens_of
from tiny_models import tiny_llama, tiny_tokenizer

from monosemy.errors import UserError
from monosemy.interpret.explain import Client, Explanation, Prices, Reply, ask_explanations
from monosemy.interpret.explain.client import BudgetSpent, Unanswered


def echo(messages: Messages) -> str:
    return f"you said {messages[-1]['content']}"


def ask(client: Client, *texts: str) -> list[Reply | BaseException]:
    """Ask several things at once."""

    async def all_of_them() -> list[Reply | BaseException]:
        async with client:
            asked = (client.ask([{"role": "user", "content": text}]) for text in texts)
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of_them())


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


# --- what passes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "429",
        "429 after 0.05",
        "500",
        "503",
        "408",
        "cut",
        "close",
        "body not JSON {",
        'body {"choices": []}',
        'body {"choices": [{"message": null}]}',
        'body {"choices": [{"message": {"content": 7}}]}',
        "body []",
        "body null",
        "body ",
    ],
)
def test_what_fails_for_the_moment_is_asked_again(fault: str) -> None:
    with MockLLM(echo, faults=[fault, fault]).serve() as server:
        client = Client(server.url, "scripted", wait=0.01)
        (reply,) = ask(client, "hello")
    assert reply == Reply("you said hello", whole=True)
    assert len(server.asked) == 3
    assert (client.usage.requests, client.usage.retries) == (1, 2)


def test_a_server_that_stalls_is_asked_again() -> None:
    with MockLLM(echo, faults=["stall 30"]).serve() as server:
        client = Client(server.url, "scripted", timeout=1.0, wait=0.01)
        began = time.monotonic()
        (reply,) = ask(client, "hello")
    assert isinstance(reply, Reply) and client.usage.retries >= 1
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("fault", "least"), [("429 after 0.6", 0.6), ("429 date 2", 0.9)])
def test_the_server_says_how_long_to_wait(fault: str, least: float) -> None:
    with MockLLM(echo, faults=[fault]).serve() as server:
        ask(Client(server.url, "scripted", wait=0.001), "hello")
    assert least <= server.times[1] - server.times[0] < least + 2


def test_nobody_asks_while_the_server_wants_a_rest() -> None:
    with MockLLM(echo, faults=["429 after 0.6"]).serve() as server:
        ask(Client(server.url, "scripted", wait=0.01, concurrency=1), *"abcd")
        first, *rest = server.times
    assert min(rest) - first >= 0.6
    with MockLLM(echo, faults=["429 after 1.5"], pause=0.05).serve() as server:
        ask(Client(server.url, "scripted", wait=0.01, concurrency=2), *map(str, range(40)))
    first = server.times[0]
    assert not [t for t in server.times if first + 0.7 < t < first + 1.5]


def test_waits_grow() -> None:
    with MockLLM(echo, faults=["500"] * 4).serve() as server:
        ask(Client(server.url, "scripted", wait=0.05), "hello")
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert all(gap >= 0.05 * 2**i for i, gap in enumerate(gaps))


def test_one_request_given_up_is_not_the_end_of_the_others() -> None:
    with MockLLM(echo, faults=["500"] * 6).serve() as server:
        client = Client(server.url, "scripted", wait=0.001, concurrency=1)
        first, second = ask(client, "a", "b")
    assert isinstance(first, Unanswered) and "fault 500" in str(first)
    assert second == Reply("you said b", whole=True)


def test_a_request_the_server_will_not_take_is_not_repeated() -> None:
    with MockLLM(echo, faults=["400", "", ""]).serve() as server:
        client = Client(server.url, "scripted", concurrency=1)
        first, second = ask(client, "much too long", "b")
    assert isinstance(first, Unanswered) and isinstance(second, Reply)
    assert len(server.asked) == 2


def test_a_server_that_answers_nothing_any_more_ends_it() -> None:
    with MockLLM(echo, faults=["", *["500"] * 999]).serve() as server:
        client = Client(server.url, "scripted", wait=0.001, concurrency=1)
        found = ask(client, *map(str, range(30)))
    said = next(e for e in found if isinstance(e, UserError))
    assert "answers nothing any more" in said.message and "fault 500" in said.message
    assert isinstance(found[0], Reply)


def test_options_a_model_does_not_take_are_left_out() -> None:
    faults = ["400 param max_tokens", "400 param temperature"]
    with MockLLM(echo, faults=faults).serve() as server:
        client = Client(server.url, "scripted", concurrency=1, max_tokens=77)
        assert all(isinstance(r, Reply) for r in ask(client, "a", "b"))
    assert server.asked[0]["max_tokens"] == 77 and server.asked[0]["temperature"] == 0
    assert len(server.asked) == 4
    for body in server.asked[2:]:
        assert body["max_completion_tokens"] == 77
        assert "max_tokens" not in body and "temperature" not in body


def test_options_are_left_out_of_requests_under_way_too() -> None:
    with MockLLM(echo, faults=["400 param max_tokens"] * 4, pause=0.1).serve() as server:
        client = Client(server.url, "scripted", concurrency=4)
        assert all(isinstance(r, Reply) for r in ask(client, "a", "b", "c", "d"))


def test_a_reply_that_was_cut_says_so() -> None:
    with MockLLM(echo, faults=["length"]).serve() as server:
        client = Client(server.url, "scripted")
        (reply,) = ask(client, "a")
    assert reply == Reply("you said a", whole=False)
    assert client.usage.cut == 1


@pytest.mark.parametrize("usage", ["7", "[]", '"much"', '{"prompt_tokens": "many"}'])
def test_a_count_that_is_none_is_estimated(usage: str) -> None:
    body = f'body {{"choices": [{{"message": {{"content": "ok"}}}}], "usage": {usage}}}'
    with MockLLM(echo, faults=[body]).serve() as server:
        client = Client(server.url, "scripted")
        assert ask(client, "a" * 35) == [Reply("ok", whole=True)]
    assert client.usage.estimated and client.usage.prompt_tokens == 10


def test_as_many_at_once_as_asked_for() -> None:
    with MockLLM(echo, pause=0.05).serve() as server:
        ask(Client(server.url, "scripted", concurrency=3), *map(str, range(12)))
    assert server.most_at_once == 3


# --- what does not pass ---------------------------------------------------------------------


def refusal(client: Client) -> UserError:
    found = ask(client, "a", "b")
    assert any(isinstance(e, UserError) for e in found)
    return next(e for e in found if isinstance(e, UserError))


def test_no_key_and_a_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with MockLLM(echo, key="right-key").serve() as server:
        without = refusal(Client(server.url, "scripted"))
        assert "no access" in without.message and "is not set" in without.hint
        assert len(server.asked) <= 2
        monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
        wrong = refusal(Client(server.url, "scripted"))
        assert "holds a key it does not take" in wrong.hint
        assert "wrong-key" not in wrong.message + wrong.hint
        monkeypatch.setenv("OPENAI_API_KEY", " right-key\n")
        client = Client(server.url, "scripted")
        assert all(isinstance(r, Reply) for r in ask(client, "a", "b"))
    assert "right-key" not in repr(client)
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    assert "no key has" in refusal_on_opening(Client(server.url, "scripted")).message


def refusal_on_opening(client: Client) -> UserError:
    with pytest.raises(UserError) as caught:
        ask(client, "a")
    return caught.value


def test_a_model_that_is_not_there() -> None:
    with MockLLM(echo, names=("llama-3", "qwen")).serve() as server:
        said = refusal(Client(server.url, "llama-33"))
    assert "no model `llama-33`" in said.message
    assert "did you mean `llama-3`?" in said.hint and "qwen" in said.hint


def test_nothing_listens() -> None:
    began = time.monotonic()
    said = refusal(Client("http://127.0.0.1:9/v1", "m"))
    assert "cannot reach http://127.0.0.1:9/v1" in said.message and "start the server" in said.hint
    assert time.monotonic() - began < 20


def test_no_credit_and_a_wait_of_hours() -> None:
    with MockLLM(echo, faults=["429 code insufficient_quota"] * 9).serve() as server:
        assert "account" in refusal(Client(server.url, "scripted")).hint
        assert len(server.asked) <= 2
    with MockLLM(echo, faults=["429 after 7200"] * 9).serve() as server:
        assert "asks to wait for 7,200 s" in refusal(Client(server.url, "scripted")).message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "ftp://host/v1",
        "http://",
        "http://host:port/v1",
        "http://[::1/v1",
        "https://host/v1/chat/completions",
        "http://host:99999/v1",
    ],
)
def test_malformed_addresses(url: str) -> None:
    with pytest.raises(UserError) as caught:
        Client(url, "m")
    assert "http" in caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        {"concurrency": 0},
        {"timeout": -1.0},
        {"max_tokens": 0},
        {"budget_tokens": 0},
        {"budget_money": 0.0},
        {"budget_money": 1.0},
    ],
)
def test_settings_that_cannot_be_meant(setting: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Client("http://host/v1", "m", **setting)  # type: ignore[arg-type]


# --- what it takes --------------------------------------------------------------------------


def test_tokens_and_cost_are_what_the_server_says() -> None:
    with MockLLM(echo).serve() as server:
        client = Client(server.url, "scripted", prices=Prices(2.0, 10.0))
        ask(client, "one two three", "four")
    read, written = 4, tokens_of("you said one two three") + tokens_of("you said four")
    assert client.usage.prompt_tokens == read and client.usage.completion_tokens == written
    assert client.cost == pytest.approx((2 * read + 10 * written) / 1e6)
    assert not client.usage.estimated
    assert Client(server.url, "scripted").cost is None


def test_a_server_that_does_not_count_is_estimated() -> None:
    with MockLLM(echo, faults=["uncounted"]).serve() as server:
        client = Client(server.url, "scripted")
        ask(client, "words " * 70)
    assert client.usage.estimated and 100 < client.usage.prompt_tokens < 140


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_budget_is_used_but_not_exceeded(concurrency: int) -> None:
    with MockLLM(echo, pause=0.005).serve() as server:
        client = Client(
            server.url, "scripted", concurrency=concurrency, max_tokens=40, budget_tokens=600
        )
        found = ask(client, *(f"number {n}" for n in range(200)))
    replies = [r for r in found if isinstance(r, Reply)]
    assert all(isinstance(r, Reply | BudgetSpent) for r in found)
    assert client.spent
    assert 600 - 60 < client.usage.tokens <= 600
    assert len(replies) == len(server.asked) == client.usage.requests


def test_a_budget_in_money() -> None:
    with MockLLM(echo).serve() as server:
        client = Client(
            server.url,
            "scripted",
            max_tokens=40,
            prices=Prices(1.0, 2.0),
            budget_money=0.0005,
        )
        ask(client, *(f"number {n}" for n in range(200)))
    assert client.spent and client.cost is not None
    assert 0.0003 < client.cost <= 0.0005


# --- what is kept ---------------------------------------------------------------------------


def test_replies_are_kept_and_not_asked_for_again(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "replies.jsonl"
    with MockLLM(echo).serve() as server:
        first = ask(Client(server.url, "scripted", cache=cache), "a", "é\n")
        again = Client(server.url, "scripted", cache=cache)
        assert ask(again, "é\n", "a") == first[::-1]
        assert (again.usage.requests, again.usage.cached) == (0, 2)
        ask(Client(server.url, "scripted", cache=cache, max_tokens=5), "a")
        assert len(server.asked) == 3  # another limit is another request


def test_failures_are_not_kept(tmp_path: Path) -> None:
    with MockLLM(echo, faults=["400"]).serve() as server:
        client = Client(server.url, "scripted", cache=tmp_path / "c")
        assert isinstance(ask(client, "a")[0], Unanswered)
        assert isinstance(ask(client, "a")[0], Reply)


def test_a_damaged_cache_loses_only_what_is_damaged(tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    with MockLLM(echo).serve() as server:
        ask(Client(server.url, "scripted", cache=cache, concurrency=1), "a", "b", "c")
        lines = cache.read_bytes().splitlines(keepends=True)
        torn = lines[2][: len(lines[2]) // 2]
        cache.write_bytes(lines[0] + b'7\n{"request": 1}\n\xff\xfe\n' + lines[1] + torn)
        client = Client(server.url, "scripted", cache=cache, concurrency=1)
        ask(client, "a", "b", "c")
        assert (client.usage.cached, client.usage.requests) == (2, 1)
        later = Client(server.url, "scripted", cache=cache)
        ask(later, "a", "b", "c")
    assert later.usage.cached == 3


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refusal_on_opening(Client("http://127.0.0.1:9/v1", "m", cache=tmp_path / "file" / "c"))
    assert "cannot write" in said.message


def test_killed_and_begun_again_nothing_is_asked_twice(tmp_path: Path) -> None:
    cache, cutter = tmp_path / "replies.jsonl", planted.cutter(explain=10, test=10)
    with MockLLM(perfect, pause=0.02).serve() as server:
        child = Child(tmp_path / "log", "explain_child", server.url, cache)
        while len(server.answered) < 20 and child.exitcode is None:
            time.sleep(0.01)
        child.kill()
        kept = len(cache.read_bytes().splitlines())
        server.pause = 0.0
        client = Client(server.url, "scripted", cache=cache)
        found = ask_explanations(client, range(3), cutter.cut)
    assert 15 <= kept <= client.usage.cached + 1  # of a torn line
    assert all(e.is_whole(("detection", "fuzzing")) for e in found)
    assert server.asked_twice <= 4  # those under way when it was killed
    with MockLLM(perfect).serve() as fresh:
        straight = ask_explanations(Client(fresh.url, "scripted"), range(3), cutter.cut)
    assert rows(found) == rows(straight)
    assert len(server.answered) - server.asked_twice == len(fresh.answered)


def test_a_budget_ends_cleanly_and_more_goes_on_from_there(tmp_path: Path) -> None:
    kept: list[Explanation] = []
    cutter = planted.cutter(explain=10, test=10)
    with MockLLM(perfect).serve() as server:
        first = Client(
            server.url, "scripted", cache=tmp_path / "c", budget_tokens=15_000, max_tokens=200
        )
        found = ask_explanations(first, range(40), cutter.cut, keep=kept.extend)
        assert first.spent and first.usage.tokens <= 15_000
        assert kept == found and 0 < len(found) < 40
        asked = len(server.asked)
        more = Client(server.url, "scripted", cache=tmp_path / "c", max_tokens=200)
        whole = ask_explanations(more, range(40), cutter.cut, scorers=[])
    assert server.asked_twice == 0 and more.usage.cached > 0
    assert len(server.asked) == asked + more.usage.requests
    assert [e.text for e in whole[: len(found)]] == [e.text for e in found]
    assert all(e.text for e in whole)


def test_what_was_kept_before_an_error_stays() -> None:
    """The server goes away in the second part; the first has been handed over."""
    kept: list[Explanation] = []
    cutter = planted.cutter(explain=8, test=8)
    with MockLLM(perfect).serve() as server:
        client = Client(server.url, "scripted", wait=0.001)

        def keep(found: list[Explanation]) -> None:
            kept.extend(found)
            server.faults += ["500"] * 9999

        with pytest.raises(UserError, match="answers nothing any more"):
            ask_explanations(client, range(40), cutter.cut, scorers=[], keep=keep)
    assert len(kept) == 20 and all(e.text for e in kept)


def test_another_implementation_of_the_protocol(tmp_path: Path) -> None:
    """`transformers serve`, with a model that knows nothing: it answers, and nothing is made up."""
    tiny_llama().save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tmp_path)]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while server.poll() is None and not is_open(port):
            time.sleep(0.1)
        client = Client(f"http://127.0.0.1:{port}/v1", str(tmp_path), max_tokens=8)
        (one,) = ask_explanations(client, [0], planted.cutter(explain=6, test=6).cut)
    finally:
        server.kill()
        server.wait()
    assert "no explanation" in one.failed
    assert client.usage.requests == 2 and client.usage.prompt_tokens > 500
    assert 0 < client.usage.completion_tokens <= 16 and not client.usage.estimated


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def rows(found: list[Explanation]) -> list[str]:
    return [json.dumps(e.row("scripted")) for e in found]
