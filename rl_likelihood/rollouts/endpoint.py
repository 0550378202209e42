"""A client of an HTTP server that speaks OpenAI's protocol (vLLM, llama.cpp, a vendor). Calls run concurrently, each
with a deadline and retries.

A call without a readable reply counts as a failure and has no value. Values of replies are cached in a file by the hash
of the address and the request, so a resumed run repeats no request. The API key comes from the environment and never
appears in a message.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import email.utils
import functools
import hashlib
import json
import math
import os
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from rl_likelihood.data.judged_text import JudgeSettings
from rl_likelihood.errors import UserError
from rl_likelihood.progress import counted
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say

RETRIED = {408, 409, 429}  # statuses that are retried, in addition to every 5xx
KEY_REFUSED = (401, 403)
FATAL = dict.fromkeys(KEY_REFUSED, "refuses the key") | {404: "knows no such address or model"}
SAVE_EVERY = 1.0  # seconds between two writes of the cache
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second attempt, then doubled; and the maximum
MOST_BYTES = 8 << 20  # maximum size of a reply
BYTES_PER_TOKEN = 3  # to estimate a call's tokens before it is made
CHAT, EMBEDDINGS, MODELS = "/chat/completions", "/embeddings", "/models"
CACHE = "judge.sqlite"  # in a workdir: values of replies; judges of several processes have a file each

Read = Callable[[Any], Any]  # a reply's JSON -> the value in it (itself JSON), or None if there is none
Post = Callable[[dict[str, Any]], Awaitable[tuple[int, Any, bytes]]]  # a body -> (status, headers, content)


class NoReply(Exception):
    """A failed call: the kind of failure, and what the server said."""


class Endpoint:
    """Sends requests to the server at `settings.model` and reads the replies. `failures` counts failed calls by kind.

    `cache`: the file that stores the values of replies. For messages, `field` and `name`: the settings that give the
    address and the model's name there; `limits`: the prefix of the settings max_calls, max_tokens and cache. max_calls
    and max_tokens limit this process, over the lifetime of the cache file.
    """

    def __init__(
        self,
        settings: JudgeSettings,
        cache: str = ":memory:",
        field: str = "judge.model",
        name: str = "judge.name",
        limits: str = "judge.",
    ) -> None:
        self.settings, self.field, self.limits = settings, field, limits
        address, key_variable = settings.model, settings.key_variable
        try:
            import httpx
        except ImportError:
            raise UserError(
                f"{field} is an address, which needs httpx; run pip install -c constraints.txt -e '.[judge]'"
            ) from None
        try:
            parts = httpx.URL(address)
            parts.raw_host.decode().encode("idna")  # what the system's resolver does
        except (httpx.InvalidURL, ValueError):
            parts = httpx.URL()
        if parts.scheme not in ("http", "https") or not parts.host:
            raise UserError(f"{field} is {address!r}, no http address; write http://HOST:PORT/v1")
        if parts.userinfo or set("?#") & set(address):
            raise UserError(
                f"{field} has a key, ? or # in its address; write http://HOST:PORT/v1, and give the key in the "
                f"variable {key_variable}"
            )
        if not settings.name:
            raise UserError(f"{field} is an address, but {name} is empty; set it to the model's name there")
        self.httpx = httpx
        self.failures: collections.Counter[str] = collections.Counter()
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{key_variable} holds characters that no key has; set it to the key alone")
        headers = httpx.Headers({"Authorization": f"Bearer {self._key}"} if self._key else {})
        most = httpx.Limits(max_connections=settings.concurrency)
        self._client = functools.partial(httpx.AsyncClient, headers=headers, timeout=None, limits=most)
        try:
            self._client()  # reads the environment's proxies and certificates
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            raise UserError(
                f"{field} cannot be called with this environment ({type(error).__name__}: {error}); correct or unset "
                "ALL_PROXY, HTTP_PROXY, HTTPS_PROXY and SSL_CERT_FILE"
            ) from None
        self._cache = _Cache(cache, f"{limits}cache")
        self._refusal: UserError | None = None
        self._cancelled = False

    def ask(self, bodies: Sequence[dict[str, Any]], read: Read, path: str = CHAT) -> list[Any]:
        """The value of each reply, None for a failed call. Equal bodies are sent once. `read` gets a reply's value."""
        requests = [{"model": self.settings.name, **body} for body in bodies]
        address = self.settings.model.rstrip("/") + path
        keys = [hashlib.sha256(json.dumps([address, body], sort_keys=True).encode()).hexdigest() for body in requests]
        by_key = dict(zip(keys, requests, strict=True))
        cached = self._cache.get(list(by_key))
        new = {key: body for key, body in by_key.items() if key not in cached}
        if new:
            _run(self._ask, new, cached, read, path)
        return [cached.get(key) for key in keys]

    def refuse_unreachable(self) -> None:
        """UserError if nobody answers at the address, if it redirects, or if the key is refused. Any other reply is
        accepted, and its content is not read."""
        try:
            _run(self._reach, self.settings.model.rstrip("/") + MODELS)
        except (TimeoutError, self.httpx.TransportError) as error:
            raise UserError(
                f"{self.field} is {self.settings.model}, where nobody answers ({type(error).__name__}); start "
                "the server or give another address"
            ) from None

    @property
    def spent(self) -> tuple[int, int]:
        """(calls, tokens) of this process, and of all that were written to this cache file before it began."""
        return self._cache.calls, self._cache.tokens

    def failed(self) -> str:
        """The failed calls of this process in words, or ""."""
        kinds = ", ".join(f"{kind}: {n}" for kind, n in self.failures.most_common())
        return f"{counted(self.failures.total(), 'call')} to {self.settings.model} failed ({kinds})" if kinds else ""

    def cancel(self) -> None:
        """From any thread: running calls end within `SAVE_EVERY` seconds and later ones at once, without a value."""
        self._cancelled = True

    def close(self) -> None:
        """Closes the cache."""
        self._cache.close()

    async def _reach(self, address: str) -> None:
        """UserError if the key is refused, or if the address redirects."""
        async with (
            asyncio.timeout(self.settings.timeout),
            self._client() as client,
            client.stream("GET", address) as reply,
        ):
            if reply.status_code in KEY_REFUSED or 300 <= reply.status_code < 400:
                text = b""
                with contextlib.suppress(self.httpx.DecodingError):  # its Content-Encoding is wrong
                    text = await anext(reply.aiter_bytes(), b"")
                self._refuse(reply.status_code, self._shown(text))

    async def _ask(self, bodies: dict[str, dict[str, Any]], cached: dict[str, Any], read: Read, path: str) -> None:
        """Sends these requests and adds their values to `cached` and the cache. UserError if all calls would fail."""
        self._refusal, limit = None, asyncio.Semaphore(self.settings.concurrency)
        async with self._client() as client:
            post = functools.partial(self._post, client, self.settings.model.rstrip("/") + path)
            jobs = {asyncio.create_task(self._one(limit, post, body, read)): key for key, body in bodies.items()}
            pending = set(jobs)
            try:
                while pending and not self._cancelled:
                    done, pending = await asyncio.wait(pending, timeout=SAVE_EVERY)
                    self._keep({jobs[job]: job for job in done}, cached)
            finally:
                self._cache.save({})
                for job in pending:
                    job.cancel()
                if pending:
                    await asyncio.wait(pending)

    def _keep(self, done: dict[str, asyncio.Task], cached: dict[str, Any]) -> None:
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
            say(f"{self.field}: a call to {self.settings.model} failed: {kind}{text and f' ({text})'}")
        self.failures[kind] += 1

    async def _one(self, limit: asyncio.Semaphore, post: Post, body: dict[str, Any], read: Read) -> Any:
        """The value of one call, with retries. It waits for `limit` first."""
        async with limit:
            return await self._tried(post, body, read)

    async def _tried(self, post: Post, body: dict[str, Any], read: Read) -> Any:
        failure, text, attempts = "no attempt", "", self.settings.attempts
        for attempt in range(attempts):
            if self._refusal:  # of another call; this one would get the same
                raise self._refusal
            self._reserve(body)
            wait = FIRST_WAIT * 2**attempt * random.uniform(0.5, 1)
            try:
                status, headers, content = await post(body)
            except TimeoutError:
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
            if attempt + 1 < attempts:
                await asyncio.sleep(min(wait, LONGEST_WAIT))
        raise NoReply(failure, text)

    async def _post(self, client: Any, address: str, body: dict[str, Any]) -> tuple[int, Any, bytes]:
        """(status, headers, content). The deadline covers the whole call: a server may send byte by byte."""
        async with asyncio.timeout(self.settings.timeout), client.stream("POST", address, json=body) as reply:
            content = bytearray()
            async for part in reply.aiter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    break
            return reply.status_code, reply.headers, bytes(content)

    def _value(self, content: bytes, body: dict[str, Any], read: Read) -> Any:
        try:
            reply = json.loads(content)
            value = read(reply)
        except (ValueError, RecursionError, OverflowError):
            raise NoReply("reply is no JSON, or has a number that is too large", self._shown(content)) from None
        self._correct(body, reply)
        if value is None:
            text = message_of(reply).get("content")  # the envelope around it may be long
            content = text.encode(errors="replace") if isinstance(text, str) else content
            raise NoReply("reply without the requested value", self._shown(content))
        return value

    def _refuse(self, status: int, text: str) -> None:
        """UserError for a status that every other call would get too. `text`: what the server said."""
        address = self.settings.model
        if 300 <= status < 400:
            self._refusal = UserError(
                f"{self.field}: {address} redirects to another address (status {status}); give that address"
            )
        elif status in FATAL:
            self._refusal = UserError(
                f"{self.field}: {address} {FATAL[status]} (status {status}: {text}); check the address, the model's "
                f"name and the environment variable {self.settings.key_variable}"
            )
        if self._refusal:
            raise self._refusal

    def _shown(self, content: bytes) -> str:
        """The beginning of what the server said, without the key."""
        text = content.decode(errors="replace")
        return " ".join((text.replace(self._key, "[key]") if self._key else text).split())[:200]

    def _reserve(self, body: dict[str, Any]) -> None:
        """Counts a call before it is made. UserError if it would exceed a limit."""
        max_calls, max_tokens = self.settings.max_calls, self.settings.max_tokens
        calls, tokens = self._cache.calls + 1, self._cache.tokens + estimate(body)
        if max_calls and calls > max_calls:
            raise UserError(f"{self.limits}max_calls is {max_calls}, and that many were made; raise it to continue")
        if max_tokens and tokens > max_tokens:
            raise UserError(
                f"{self.limits}max_tokens is {max_tokens}, and {self._cache.tokens} were used; raise it to continue"
            )
        self._cache.calls, self._cache.tokens = calls, tokens

    def _correct(self, body: dict[str, Any], reply: Any) -> None:
        """Replaces the estimated number of tokens by the server's count, if it gives a valid one."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(total, int) and not isinstance(total, bool) and 0 < total < 1 << 24:
            self._cache.tokens += total - estimate(body)


def _run(work: Callable[..., Awaitable[None]], *given: Any) -> None:
    """Runs a coroutine function to its end, in a thread of its own: a notebook's thread already runs a loop. Ctrl-C
    cancels it."""
    from anyio.from_thread import start_blocking_portal  # comes with httpx

    with start_blocking_portal() as portal:
        portal.call(work, *given)


class _Cache:
    """Values of replies by the hash of the request, and the calls and tokens spent. Several processes may share the
    file: each adds what it spent itself, and one that starts later counts the calls of all before it."""

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


def cache_of(j: JudgeSettings, workdir: Path) -> str:
    """The file that stores the values of replies: judge.cache, or one in the workdir."""
    return j.cache or str(workdir / (CACHE if jax.process_count() == 1 else f"{jax.process_index()}-{CACHE}"))


def of_first(j: JudgeSettings, model: str, name: str, workdir: Path, *fields: str) -> Endpoint:
    """The endpoint of the model `name` at the address `model`, with a judge's other settings. Of several processes only
    the first may ask, so it alone has a cache file, the same as without the others. UserError if nobody answers.
    `fields`: as of `Endpoint`."""
    cache = (j.cache or str(workdir / CACHE)) if distributed.first() else ":memory:"
    endpoint = Endpoint(dataclasses.replace(j, model=model, name=name), cache, *fields)
    distributed.by_first(endpoint.refuse_unreachable)
    return endpoint


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
