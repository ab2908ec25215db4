"""A server that speaks OpenAI's protocol, with a scripted model behind it and faults on order."""

from __future__ import annotations

import email.utils
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from mock_hub import serving

Messages = list[dict[str, str]]
Model = Callable[[Messages], str]

Fault = str
"""What a request meets instead of an answer, or before it:

`STATUS`, with `STATUS after N` or `STATUS date N` for Retry-After and `STATUS code C` or `STATUS
param P` for what the error names; `cut` in the middle of the body; `close` before any answer;
`stall N` seconds; `body TEXT` in place of the completion; `length`: cut at the limit; `uncounted`:
no usage.
"""


@dataclass
class MockLLM:
    model: Model
    faults: list[Fault] = field(default_factory=list)
    """What the next requests meet, one each."""
    key: str = ""
    """Asked for, if set."""
    names: tuple[str, ...] = ("scripted",)
    pause: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests, in order."""
    answered: list[str] = field(default_factory=list)
    """Bodies of requests that were answered in full."""
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def serve(self) -> Iterator[MockLLM]:
        with serving(_handler(self)) as address:
            self.url = f"{address}/v1"
            yield self

    @property
    def asked_twice(self) -> int:
        """Requests that had been answered in full before."""
        return sum(n - 1 for n in Counter(self.answered).values())


def tokens_of(text: str) -> int:
    """A tokenizer: words, and signs one by one."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _handler(llm: MockLLM) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            models = [{"id": name, "object": "model"} for name in llm.names]
            self._send(200, {"object": "list", "data": models})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            with llm._lock:
                llm.asked.append(json.loads(raw))
                llm.headers.append(dict(self.headers))
                llm.times.append(time.monotonic())
                llm._now += 1
                llm.most_at_once = max(llm.most_at_once, llm._now)
                fault = llm.faults.pop(0) if llm.faults else ""
            try:
                time.sleep(llm.pause)
                self._answer(raw, fault)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with llm._lock:
                    llm._now -= 1

        def _answer(self, raw: bytes, fault: Fault) -> None:
            body = json.loads(raw)
            kind, _, rest = fault.partition(" ")
            if llm.key and self.headers.get("Authorization") != f"Bearer {llm.key}":
                self._error(401, {"message": f"bad key {self.headers.get('Authorization')}"})
            elif body["model"] not in llm.names:
                self._error(404, {"message": f"The model `{body['model']}` does not exist"})
            elif kind.isdigit():
                self._refuse(int(kind), rest)
            elif kind == "close":
                self.close_connection = True
            elif kind == "body":
                self._send_raw(200, rest.encode())
            else:
                if kind == "stall":
                    time.sleep(float(rest))
                self._complete(raw, body, kind)

        def _complete(self, raw: bytes, body: dict[str, Any], kind: str) -> None:
            said = llm.model(body["messages"])
            reply: dict[str, Any] = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": said},
                        "finish_reason": "length" if kind == "length" else "stop",
                    }
                ],
            }
            if kind != "uncounted":
                read = sum(tokens_of(m["content"]) for m in body["messages"])
                reply["usage"] = {
                    "prompt_tokens": read,
                    "completion_tokens": tokens_of(said),
                    "total_tokens": read + tokens_of(said),
                }
            content = json.dumps(reply).encode()
            if kind == "cut":
                self._head(200, len(content))
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
            with llm._lock:
                llm.answered.append(raw.decode())
            self._send_raw(200, content)

        def _refuse(self, status: int, rest: str) -> None:
            what, _, value = rest.partition(" ")
            headers = {}
            if what == "after":
                headers["Retry-After"] = value
            if what == "date":
                headers["Retry-After"] = email.utils.formatdate(
                    time.time() + int(value), usegmt=True
                )
            named = {what: value} if what in ("code", "param") else {}
            self._error(status, {"message": f"fault {status} {rest}", **named}, headers)

        def _error(self, status: int, error: dict[str, str], headers: Any = None) -> None:
            self._send(status, {"error": error}, headers)

        def _send(self, status: int, value: Any, headers: Any = None) -> None:
            self._send_raw(status, json.dumps(value).encode(), headers)

        def _send_raw(self, status: int, content: bytes, headers: Any = None) -> None:
            self._head(status, len(content), headers)
            self.wfile.write(content)

        def _head(self, status: int, length: int, headers: Any = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

    return Handler


# --- models ---------------------------------------------------------------------------------

_CONTEXT = re.compile(r'<context n="(\d+)">(.*?)</context>', re.DOTALL)
_MARK = re.compile(r"<active(?::[\d.]+)?>(.*?)</active>", re.DOTALL)


def perfect(messages: Messages) -> str:
    """Answers rightly about features that fire on one word, from what it is shown alone."""
    system, user = messages[0]["content"], messages[1]["content"]
    contexts = [text for _, text in _CONTEXT.findall(user)]
    marked = [{word.strip() for word in _MARK.findall(text)} for text in contexts]
    if "Say what the marked tokens" in system:
        words = Counter(word for found in marked for word in found)
        return f"These share a word.\n**Explanation:** the word {words.most_common(1)[0][0]}"
    if "Which is the intruder" in system:
        shared = Counter(word for found in marked for word in found).most_common(1)[0][0]
        odd = [n for n, found in enumerate(marked, 1) if shared not in found]
        return f"It stands out.\nIntruder: {odd[0] if odd else 1}"
    word = user.splitlines()[0].rpartition(" ")[2]
    if "Predict how strongly" in system:
        tokens = re.findall(r'^(\d+) "(.*)"$', user, re.MULTILINE)
        return "\n".join(f"{n}: 10" for n, token in tokens if token.strip() == word) or "none"
    if "Some tokens of each are marked" in system:
        right = [found == {word} for found in marked]
    else:
        right = [word in text.split() for text in contexts]
    return "\n".join(f"{n}: {'yes' if yes else 'no'}" for n, yes in enumerate(right, 1))


def careless(messages: Messages) -> str:
    """Answers in the right form without a look; the same to the same question."""
    import random

    system, user = messages[0]["content"], messages[1]["content"]
    coin = random.Random(user)
    if "Say what the marked tokens" in system:
        return f"Explanation: something like {coin.random():.3f}"
    if "Which is the intruder" in system:
        return str(coin.randint(1, len(_CONTEXT.findall(user))))
    if "Predict how strongly" in system:
        numbers = re.findall(r"^(\d+) ", user, re.MULTILINE)
        return "\n".join(f"{n}: {coin.randint(0, 10)}" for n in numbers)
    return "\n".join(f"{n}: {coin.choice(['yes', 'no'])}" for n, _ in _CONTEXT.findall(user))
