"""A language model behind any endpoint that speaks OpenAI's protocol, asked with care.

Replies are kept on disk and never asked for twice; what fails for the moment is asked for again;
a budget is never exceeded; what cannot be mended by waiting is one clear error.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from monosemy.artefact import disk_error
from monosemy.errors import UserError, nearest, reason
from monosemy.interpret.explain.prompts import Message

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key; a local server may need none."""

_ATTEMPTS = 6
_WAIT, _LONGEST_WAIT = 1.0, 60.0
"""Seconds before a request is made again: twice as many each time, up to the longest."""
_PATIENCE = 600.0
"""Seconds that a server may ask us to wait."""
_IN_A_ROW = 8
"""Requests that fail for good, none answered between, before the run is given up."""
_CHARACTERS_A_TOKEN = 3.5
_BYTES_A_TOKEN = 2
"""Of text that is about to be asked: no tokenizer makes much less of it."""


class Unanswered(Exception):
    """One request was not answered, however often it was made; says why."""


class BudgetSpent(Exception):
    """The next request might cost more than is left."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said."""

    text: str
    whole: bool
    """False where it was cut at the largest number of tokens."""


@dataclass(slots=True)
class Usage:
    """What was asked for and what it took."""

    requests: int = 0
    """Answered by the server."""
    cached: int = 0
    """Answered from disk, for nothing."""
    retries: int = 0
    cut: int = 0
    """Replies that ended at the largest number of tokens, in the middle of something."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    """Whether a server did not count tokens, and they were estimated from the text's length."""

    @property
    def tokens(self) -> int:
        """Tokens in and out."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million tokens, in any currency."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what some tokens cost."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(slots=True)
class Client:
    """A model to ask; `async with` opens the connection. The key comes from `OPENAI_API_KEY`.

    Attributes:
        base_url: such as http://localhost:8000/v1.
        model: its name there.
        cache: file of replies, JSON lines; None keeps none.
        concurrency: requests under way at a time.
        timeout: seconds for one.
        max_tokens: of an answer, thinking included.
        budget_tokens: in and out, of this client's life; None is no limit.
        budget_money: in the currency of `prices`.
        prices: of a million tokens; None where nothing is known.
    """

    base_url: str
    model: str
    cache: Path | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_tokens: int = 1000
    budget_tokens: int | None = None
    budget_money: float | None = None
    prices: Prices | None = None
    usage: Usage = field(default_factory=Usage)
    wait: float = _WAIT
    """Seconds before the first repetition."""
    _replies: _Replies = field(init=False, repr=False)
    _api: AsyncOpenAI = field(init=False, repr=False)
    _slots: asyncio.Semaphore = field(init=False, repr=False)
    _changed: asyncio.Condition = field(init=False, repr=False)
    _held: list[tuple[float, float]] = field(init=False, repr=False, default_factory=list)
    spent: bool = field(init=False, repr=False, default=False)
    """Whether the budget ended something."""
    _refused: dict[str, str | None] = field(init=False, repr=False, default_factory=dict)
    _failed_in_a_row: int = field(init=False, repr=False, default=0)
    _not_before: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            UserError: a malformed address, a number that is not positive, money without prices.
        """
        _check_url(self.base_url)
        for name in ("concurrency", "timeout", "max_tokens", "budget_tokens", "budget_money"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name.replace('_', ' ')} is {value}", "give a number above 0")
        if self.budget_money is not None and self.prices is None:
            raise UserError(
                "a budget in money, and no prices to count it by",
                "give what a million tokens cost, in and out",
            )
        self._replies = _Replies(self.cache)

    @property
    def cost(self) -> float | None:
        """Money spent so far; None without prices."""
        used = self.usage
        return self.prices.of(used.prompt_tokens, used.completion_tokens) if self.prices else None

    async def __aenter__(self) -> Client:
        try:
            from openai import AsyncOpenAI
        except ModuleNotFoundError:
            raise UserError(
                "asking a language model needs the `openai` package",
                "install it: pip install 'monosemy[explain]'",
            ) from None
        # Repeating is done here, where it is known what is worth it and what was asked before.
        self._api = AsyncOpenAI(
            base_url=self.base_url,
            api_key=_key() or "none",
            timeout=self.timeout,
            max_retries=0,
        )
        _ = self._api.chat.completions  # imported now, not in the first request's time
        self._slots, self._changed = asyncio.Semaphore(self.concurrency), asyncio.Condition()
        self._held.clear()
        self._replies.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._replies.close()
        await self._api.close()

    async def ask(self, messages: Sequence[Message]) -> Reply:
        """Return the model's reply.

        Raises:
            Unanswered: this request cannot be answered; another may be.
            BudgetSpent: it might cost more than is left.
            UserError: no request can be answered, or the disk is full.
        """
        key = self._hash(messages)
        reply = self._replies.get(key)
        if reply is None:
            reply = await self._asked(messages)
            self._replies.add(key, reply)
        else:
            self.usage.cached += 1
        self.usage.cut += not reply.whole
        return reply

    async def _asked(self, messages: Sequence[Message]) -> Reply:
        size = (sum(len(m["content"].encode()) for m in messages) / _BYTES_A_TOKEN, self.max_tokens)
        async with self._slots:
            await self._hold(size)
            try:
                return await self._answered(messages)
            finally:
                await self._release(size)

    def _hash(self, messages: Sequence[Message]) -> str:
        """Return the hash of everything that decides about a reply."""
        asked = [self.base_url, self.model, self.max_tokens, list(messages)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    # --- the budget -----------------------------------------------------------------------

    async def _hold(self, size: tuple[float, float]) -> None:
        """Set aside what a request can cost at most; wait while others may leave enough."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(size) or not self._held)
            if not self._fits(size):
                self.spent = True
                self._changed.notify_all()
                raise BudgetSpent
            self._held.append(size)

    async def _release(self, size: tuple[float, float]) -> None:
        async with self._changed:
            self._held.remove(size)
            self._changed.notify_all()

    def _fits(self, size: tuple[float, float]) -> bool:
        used = self.usage
        prompt, completion = (sum(column) for column in zip(size, *self._held, strict=True))
        prompt, completion = prompt + used.prompt_tokens, completion + used.completion_tokens
        if self.budget_tokens is not None and prompt + completion > self.budget_tokens:
            return False
        if self.budget_money is None or self.prices is None:
            return not self.spent
        return not self.spent and self.prices.of(prompt, completion) <= self.budget_money

    # --- asking, and asking again -----------------------------------------------------------

    async def _answered(self, messages: Sequence[Message]) -> Reply:
        for attempt in range(_ATTEMPTS):
            await asyncio.sleep(max(self._not_before - time.monotonic(), 0))
            try:
                reply = await self._try(messages)
            except _Failure as failure:
                if failure.final:
                    raise await self._give_up(failure) from failure.__cause__
                if not failure.passing or attempt + 1 == _ATTEMPTS:
                    self._count_failure(failure)
                    raise Unanswered(str(failure)) from failure.__cause__
                self.usage.retries += 1
                await self._wait(attempt, failure)
            else:
                self._failed_in_a_row = 0
                return reply
        raise AssertionError

    async def _wait(self, attempt: int, failure: _Failure) -> None:
        """Wait as long as the server asks for, everyone; else longer each time, each by itself."""
        jitter = 1 + random.random() / 4
        if failure.after is None:
            await asyncio.sleep(min(self.wait * 2**attempt, _LONGEST_WAIT) * jitter)
        else:
            self._not_before = max(self._not_before, time.monotonic() + failure.after)
            await asyncio.sleep(failure.after + random.random() * self.wait / 4)

    async def _try(self, messages: Sequence[Message]) -> Reply:
        from openai import APIConnectionError, APIError, APIStatusError

        while True:
            options = self._options()
            try:
                async with asyncio.timeout(self.timeout):
                    found = await self._api.chat.completions.with_raw_response.create(
                        model=self.model,
                        messages=list(messages),  # type: ignore[arg-type]
                        **options,
                    )
                return self._read(messages, found.http_response.text)
            except TimeoutError as error:
                raise _Failure(f"no answer within {self.timeout:g} s", passing=True) from error
            except APIStatusError as error:
                if self._adapt(error, options):
                    continue
                raise self._refusal(error) from error
            except APIConnectionError as error:
                cause = error.__cause__ or error
                refused = type(cause).__name__ in ("ConnectError", "UnsupportedProtocol")
                final = refused and not self.usage.requests
                raise _Failure(_said(error), passing=not final, final=final) from error
            except APIError as error:
                raise _Failure(_said(error), passing=True) from error

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": 0.0}
        for name, instead in self._refused.items():
            value = options.pop(name)
            if instead is not None:
                options[instead] = value
        return options

    def _adapt(self, error: APIError, sent: dict[str, Any]) -> bool:
        """Leave out an option that the model does not take; say whether that was the trouble.

        Models that think take neither temperatures nor, by its old name, a limit.
        """
        instead = {"max_tokens": "max_completion_tokens", "temperature": None}
        if error.param not in instead or error.param not in sent:
            return False
        self._refused[error.param] = instead[error.param]
        return True

    def _read(self, messages: Sequence[Message], body: str) -> Reply:
        """Return the reply in a response's body, and count what it took."""
        try:
            found = json.loads(body)
            choice = found["choices"][0]
            text = choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError
            reply = Reply(text, choice.get("finish_reason") != "length")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            shown = " ".join(body[:80].split()) or "nothing"
            raise _Failure(
                f"the server's answer is no completion: {shown}", passing=True
            ) from error
        self._count(found.get("usage"), messages, reply)
        return reply

    def _count(self, counted: Any, messages: Sequence[Message], reply: Reply) -> None:
        """Count what a reply took, by what the server says, or else about."""
        used, counted = self.usage, counted if isinstance(counted, dict) else {}
        prompt, completion = counted.get("prompt_tokens"), counted.get("completion_tokens")
        if not isinstance(prompt, int) or not isinstance(completion, int):
            used.estimated = True
            prompt = about_tokens(m["content"] for m in messages)
            completion = about_tokens([reply.text])
        used.requests += 1
        used.prompt_tokens += prompt
        used.completion_tokens += completion

    def _refusal(self, error: Any) -> _Failure:
        """Return what a status other than 200 means."""
        status = error.status_code
        first = not self.usage.requests
        after = _retry_after(error.response.headers)
        quota = error.code == "insufficient_quota"
        too_long = after is not None and after > _PATIENCE
        if quota or too_long or (first and status in (401, 403, 404)):
            return _Failure(_said(error), final=True, status=status, after=after)
        passing = status in (408, 409, 429) or status >= 500
        return _Failure(_said(error), passing=passing, status=status, after=after)

    def _count_failure(self, failure: _Failure) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _IN_A_ROW:
            raise UserError(
                f"{self.model} at {self.base_url} answers nothing any more: {failure}",
                "what was answered is kept; give the same command again when the server is well",
            ) from failure

    async def _give_up(self, failure: _Failure) -> UserError:
        """Return what to tell the user about a failure that waiting does not mend."""
        where = f"{self.base_url}: {failure}"
        if failure.status in (401, 403):
            had = "holds a key it does not take" if _key() else "is not set"
            return UserError(f"no access to {where}", f"the environment variable {KEY} {had}")
        if failure.status == 404:
            return UserError(f"no model `{self.model}` at {where}", await self._what_there_is())
        if failure.after is not None:
            return UserError(
                f"{where}; it asks to wait for {failure.after:,.0f} s",
                "what was answered is kept; give the same command again then",
            )
        if failure.status is not None:
            return UserError(where, "what was answered is kept; it is a matter of your account")
        return UserError(
            f"cannot reach {where}",
            "start the server, or give the address it has, such as http://localhost:8000/v1",
        )

    async def _what_there_is(self) -> str:
        """Say which models a server has, if it tells."""
        from openai import OpenAIError

        try:
            names = [model.id for model in (await self._api.models.list()).data]
        except (OpenAIError, ValueError, TypeError, AttributeError):
            return "check --model, and that --base-url ends as the server wants it, mostly in /v1"
        return f"{nearest(self.model, names)} it has: {', '.join(names[:20])}".strip()


def about_tokens(texts: Iterable[str]) -> int:
    """Return about how many tokens some texts have."""
    return round(sum(map(len, texts)) / _CHARACTERS_A_TOKEN)


class _Failure(Exception):
    """One attempt failed.

    `passing`: it may be answered if asked again; `final`: nothing asked here will be.
    """

    def __init__(
        self,
        message: str,
        *,
        passing: bool = False,
        final: bool = False,
        status: int | None = None,
        after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.passing, self.final, self.status, self.after = passing, final, status, after


class _Replies:
    """Replies by the hash of their request: JSON lines, one written at a time and whole.

    A line that a killed process left unfinished is passed over.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept: dict[str, Reply] = {}

    def open(self) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab+", buffering=0)
            self._file.seek(0)
            raw = self._file.read()
            if raw and not raw.endswith(b"\n"):
                self._file.write(b"\n")
        except OSError as error:
            raise disk_error(self._path, error) from error
        for line in raw.splitlines():
            try:
                entry = json.loads(line)
                self._kept[entry["request"]] = Reply(entry["text"], entry["whole"])
            except (ValueError, LookupError, TypeError):
                continue

    def close(self) -> None:
        if self._path is not None:
            self._file.close()

    def get(self, key: str) -> Reply | None:
        return self._kept.get(key)

    def add(self, key: str, reply: Reply) -> None:
        self._kept[key] = reply
        if self._path is None:
            return
        entry = {"request": key, "text": reply.text, "whole": reply.whole}
        try:
            self._file.write((json.dumps(entry) + "\n").encode())
        except OSError as error:
            raise disk_error(self._path, error, "make room and go on: nothing is lost") from error


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good:
        raise UserError(
            f"`{url}` is no address of a server", "give one such as http://localhost:8000/v1"
        )
    if parts.path.rstrip("/").endswith("/completions"):
        raise UserError(
            f"`{url}` is the address of one call",
            f"leave that out: {url.partition('/chat/completions')[0]}",
        )


def _key() -> str:
    """Return the key, "" if there is none.

    Raises:
        UserError: it cannot be sent.
    """
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY} holds characters that no key has", "set it anew")
    return key


def _retry_after(headers: Any) -> float | None:
    """Return the seconds a server asks to wait: a number of them, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None


def _said(error: BaseException) -> str:
    """Return the first line of what a server or the network says, without the key."""
    said = reason(error)
    if error.__cause__ is not None:
        said = f"{said} {reason(error.__cause__)}"
    key = _key()
    return (said.replace(key, "***") if key else said)[:300]
