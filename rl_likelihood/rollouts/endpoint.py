"""A client of an HTTP server that speaks OpenAI's protocol (vLLM, llama.cpp, a vendor). Calls run concurrently, each
with a deadline and retries.

A call without a readable reply counts as a failure and has no value. Values of replies are cached in a file by the hash
of the address and the request, so a resumed run repeats no request. The API key comes from the environment and never
appears in a message.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import email.utils
import hashlib
import json
import math
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl_likelihood.errors import UserError
from rl_likelihood.progress import counted
from rl_likelihood.runtime.console import say

RETRIED = {408, 409, 429}  # statuses that are retried, in addition to every 5xx
KEY_REFUSED = (401, 403)
FATAL = dict.fromkeys(KEY_REFUSED, "refuses the key") | {404: "knows no such address or model"}
SAVE_EVERY = 1.0  # seconds between two writes of the cache
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second attempt, then doubled; and the maximum
MOST_BYTES = 8 << 20  # maximum size of a reply
BYTES_PER_TOKEN = 3  # to estimate a call's tokens before it is made
CHAT, EMBEDDINGS, MODELS = "/chat/completions", "/embeddings", "/models"

Read = Callable[[Any], Any]  # a reply's JSON -> the value in it (itself JSON), or None if there is none


@dataclasses.dataclass(frozen=True)
class HttpSettings:
    """The server's address, the model's name on it, and how to call it.

    `field`: the setting that gives the address. `limits`: the prefix of the settings max_calls, max_tokens and cache.
    `key_variable`: the environment variable with the API key.
    `max_calls`, `max_tokens`: limits of this process, over the lifetime of the cache file (0: no limit).
    """

    url: str
    model: str
    field: str = "judge.model"
    limits: str = "judge."
    key_variable: str = "JUDGE_API_KEY"
    concurrency: int = 16
    timeout: float = 60.0
    attempts: int = 6
    max_calls: int = 0
    max_tokens: int = 0
    cache: str = ":memory:"
    first_wait: float = FIRST_WAIT


class NoReply(Exception):
    """A failed call: the kind of failure, and what the server said."""


class Endpoint:
    """Sends requests and reads the replies. `failures` counts failed calls by kind."""

    def __init__(self, settings: HttpSettings) -> None:
        s = settings
        try:
            import httpx

            from rl_likelihood.rollouts.deadline import Deadline
        except ImportError:
            raise UserError(
                f"{s.field} is an address, which needs httpx; run pip install -c constraints.txt -e '.[judge]'"
            ) from None
        try:
            parts = httpx.URL(s.url)
            parts.raw_host.decode().encode("idna")  # what the system's resolver does
        except (httpx.InvalidURL, ValueError):
            parts = httpx.URL()
        if parts.scheme not in ("http", "https") or not parts.host:
            raise UserError(f"{s.field} is {s.url!r}, no http address; write http://HOST:PORT/v1")
        if parts.userinfo:
            raise UserError(f"{s.field} has a key in its address; give it in the variable {s.key_variable}")
        if not s.model:
            raise UserError(f"{s.field} is an address, but the name of the model there is empty; set it")
        self.settings, self.httpx = s, httpx
        self.failures: collections.Counter[str] = collections.Counter()
        self._key = os.environ.get(s.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{s.key_variable} holds characters that no key has; set it to the key alone")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=s.concurrency)
        self._client, self._deadline = httpx.Client(headers=headers, timeout=s.timeout, limits=limits), Deadline()
        self._deadline.apply(self._client)
        self._cache, self._lock, self._stop = _Cache(s.cache, f"{s.limits}cache"), threading.Lock(), threading.Event()
        self._refusal: UserError | None = None

    def ask(self, bodies: Sequence[dict[str, Any]], read: Read, path: str = CHAT) -> list[Any]:
        """The value of each reply, None for a failed call. Equal bodies are sent once. `read` gets a reply's value."""
        requests = [{"model": self.settings.model, **body} for body in bodies]
        address = self.settings.url.rstrip("/") + path
        keys = [hashlib.sha256(json.dumps([address, body], sort_keys=True).encode()).hexdigest() for body in requests]
        by_key = dict(zip(keys, requests, strict=True))
        cached = self._cache.get(list(by_key))
        self._ask({key: body for key, body in by_key.items() if key not in cached}, cached, read, path)
        return [cached.get(key) for key in keys]

    def refuse_unreachable(self) -> None:
        """UserError if nobody answers at the address, or if the key is refused. Any other reply is accepted, and its
        content is not read."""
        self._deadline.begin(self.settings.timeout)
        try:
            with self._client.stream("GET", self.settings.url.rstrip("/") + MODELS) as reply:
                if reply.status_code in KEY_REFUSED:
                    text = b""
                    with contextlib.suppress(self.httpx.DecodingError):  # its Content-Encoding is wrong
                        text = next(reply.iter_bytes(), b"")
                    self._refuse(reply.status_code, self._shown(text))
        except self.httpx.TransportError as error:
            raise UserError(
                f"{self.settings.field} is {self.settings.url}, where nobody answers ({type(error).__name__}); start "
                "the server or give another address"
            ) from None

    @property
    def spent(self) -> tuple[int, int]:
        """(calls, tokens) of this process, and of all that were written to this cache file before it began."""
        return self._cache.calls, self._cache.tokens

    def failed(self) -> str:
        """The failed calls of this process in words, or ""."""
        kinds = ", ".join(f"{kind}: {n}" for kind, n in self.failures.most_common())
        return f"{counted(self.failures.total(), 'call')} to {self.settings.url} failed ({kinds})" if kinds else ""

    def close(self) -> None:
        """Closes the connections and the cache."""
        self._client.close()
        self._cache.close()

    def _ask(self, bodies: dict[str, dict[str, Any]], cached: dict[str, Any], read: Read, path: str) -> None:
        """Sends these requests and adds their values to `cached` and the cache. UserError if all calls would fail."""
        self._stop.clear()
        self._refusal = None
        try:
            with concurrent.futures.ThreadPoolExecutor(self.settings.concurrency) as pool:
                jobs = {pool.submit(self._one, body, read, path): key for key, body in bodies.items()}
                pending = set(jobs)
                try:
                    while pending:
                        done, pending = concurrent.futures.wait(pending, SAVE_EVERY)
                        self._keep({jobs[job]: job for job in done}, cached)
                except BaseException:
                    self._stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            self._cache.save({})

    def _keep(self, done: dict[str, concurrent.futures.Future], cached: dict[str, Any]) -> None:
        """Adds the values of completed calls to `cached` and the cache, and counts failures. UserError if a call
        raised one."""
        values, refusals = dict[str, Any](), []
        for key, job in done.items():
            error = job.exception()
            if error is None:
                values[key] = job.result()
            elif isinstance(error, NoReply):
                self._count(*error.args)
            else:
                refusals.append(error)
        cached.update(values)
        self._cache.save(values)
        if refusals:
            raise refusals[0]

    def _count(self, kind: str, text: str = "") -> None:
        """Counts a failed call. The first one of its kind is reported, with what the server said."""
        if kind not in self.failures:
            say(f"{self.settings.field}: a call to {self.settings.url} failed: {kind}{text and f' ({text})'}")
        self.failures[kind] += 1

    def _one(self, body: dict[str, Any], read: Read, path: str) -> Any:
        """The value of one call, with retries."""
        s, failure, text = self.settings, "no attempt", ""
        for attempt in range(s.attempts):
            if self._refusal:  # another thread's, which would come here too
                raise self._refusal
            self._reserve(body)
            wait = s.first_wait * 2**attempt * random.uniform(0.5, 1)
            try:
                status, headers, content = self._post(body, path)
            except self.httpx.TimeoutException:
                failure = "timeout"
            except (self.httpx.TransportError, self.httpx.DecodingError) as error:
                failure = f"connection ({type(error).__name__})"
            else:
                if status == 200:
                    return self._value(content, body, read)
                text = self._shown(content)
                self._refuse(status, text)
                failure = f"status {status}"
                if status not in RETRIED and status < 500:
                    break
                wait = max(wait, retry_after(headers.get("retry-after", "")))
            if attempt + 1 == s.attempts or self._stop.wait(min(wait, LONGEST_WAIT)):
                break
        raise NoReply(failure, text)

    def _post(self, body: dict[str, Any], path: str) -> tuple[int, Any, bytes]:
        """(status, headers, content). The deadline covers the whole call: a server may send byte by byte."""
        self._deadline.begin(self.settings.timeout)
        address = self.settings.url.rstrip("/") + path
        with self._client.stream("POST", address, json=body) as reply:
            content = bytearray()
            for part in reply.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    break
            return reply.status_code, reply.headers, bytes(content)

    def _value(self, content: bytes, body: dict[str, Any], read: Read) -> Any:
        try:
            reply = json.loads(content)
            value = read(reply)
        except (ValueError, RecursionError, OverflowError):
            raise NoReply("reply is no JSON, or has a number that is too large") from None
        self._correct(body, reply)
        if value is None:
            raise NoReply("reply without the requested value")
        return value

    def _refuse(self, status: int, text: str) -> None:
        """UserError for a status that every other call would get too. `text`: what the server said."""
        s, address = self.settings, self.settings.url
        if 300 <= status < 400:
            self._refusal = UserError(
                f"{s.field}: {address} redirects to another address (status {status}); give that address"
            )
        elif status in FATAL:
            self._refusal = UserError(
                f"{s.field}: {address} {FATAL[status]} (status {status}: {text}); check the address, the model's name "
                f"and the environment variable {s.key_variable}"
            )
        if self._refusal:
            raise self._refusal

    def _shown(self, content: bytes) -> str:
        """The beginning of what the server said, without the key."""
        text = content.decode(errors="replace")
        return " ".join((text.replace(self._key, "[key]") if self._key else text).split())[:200]

    def _reserve(self, body: dict[str, Any]) -> None:
        """Counts a call before it is made. UserError if it would exceed a limit."""
        s = self.settings
        with self._lock:
            calls, tokens = self._cache.calls + 1, self._cache.tokens + estimate(body)
            if s.max_calls and calls > s.max_calls:
                raise UserError(f"{s.limits}max_calls is {s.max_calls}, and that many were made; raise it to continue")
            if s.max_tokens and tokens > s.max_tokens:
                raise UserError(
                    f"{s.limits}max_tokens is {s.max_tokens}, and {self._cache.tokens} were used; raise it to continue"
                )
            self._cache.calls, self._cache.tokens = calls, tokens

    def _correct(self, body: dict[str, Any], reply: Any) -> None:
        """Replaces the estimated number of tokens by the server's count, if it gives a valid one."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(total, int) and not isinstance(total, bool) and 0 < total < 1 << 24:
            with self._lock:
                self._cache.tokens += total - estimate(body)


class _Cache:
    """Values of replies by the hash of the request, and the calls and tokens spent. Only the two counts are used from
    several threads. Several processes may share the file: each adds what it spent itself, and one that starts later
    counts the calls of all before it."""

    def __init__(self, path: str, setting: str) -> None:
        self._setting = setting
        try:
            if path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False)
            self._db.execute("create table if not exists replies (hash text primary key, value text not null)")
            self._db.execute("create table if not exists spent (id integer primary key, calls integer, tokens integer)")
            self._db.execute("insert or ignore into spent values (0, 0, 0)")
            self._db.commit()
            ((self.calls, self.tokens),) = self._db.execute("select calls, tokens from spent")
            self._stored = self.calls, self.tokens  # what of these the file has
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{setting} is {path}, which cannot be used ({error}); delete it or choose another"
            ) from None

    def get(self, keys: list[str]) -> dict[str, Any]:
        cached = {}
        for key in keys:
            row = self._db.execute("select value from replies where hash = ?", (key,)).fetchone()
            if row is not None:
                cached[key] = json.loads(row[0])
        return cached

    def save(self, values: dict[str, Any]) -> None:
        """Stores these values, and the numbers of calls and tokens."""
        rows, spent = [(key, json.dumps(value)) for key, value in values.items()], (self.calls, self.tokens)
        new = [now - stored for now, stored in zip(spent, self._stored, strict=True)]
        try:
            with self._db:  # one transaction
                self._db.executemany("insert or replace into replies values (?, ?)", rows)
                self._db.execute("update spent set calls = calls + ?, tokens = tokens + ?", new)
            self._stored = spent
        except sqlite3.Error as error:
            raise UserError(
                f"{self._setting}: cannot be written ({error}); free some space or choose another"
            ) from None

    def close(self) -> None:
        self._db.close()


def message_of(reply: Any) -> dict[str, Any]:
    """The message in a chat reply, or {}."""
    try:
        message = reply["choices"][0]["message"]
    except (TypeError, KeyError, IndexError):
        return {}
    return message if isinstance(message, dict) else {}


def estimate(body: dict[str, Any]) -> int:
    """An estimate of a call's tokens, on the high side."""
    texts = [m["content"] for m in body.get("messages", ())] + [body.get("input", "")]
    return len("".join(texts).encode()) // BYTES_PER_TOKEN + 10 + body.get("max_tokens", 0)


def retry_after(value: str) -> float:
    """The seconds of a Retry-After header, which is a number or a date; 0 for anything else."""
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return seconds if 0 <= seconds < math.inf else 0.0
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
