"""A judge behind an HTTP address that speaks OpenAI's chat protocol: vLLM, llama.cpp, a vendor's.

A row that gets no readable reply in time is a counted failure, without a number. Verdicts are kept in a file by the
hash of what was asked, so a resumed run asks nothing again. The key comes from the environment and stands in no
message.
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
import re
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rl_likelihood.data.judged_text import Form, filled
from rl_likelihood.rollouts.local_judge import Answers, Verdicts
from rl_likelihood.shapes import UserError

RETRIED = {408, 409, 429}  # and every 5xx
FATAL = {401: "refuses the key", 403: "refuses the key", 404: "knows no such address or model"}
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second attempt, which double; and at most
MOST_BYTES = 1 << 20  # of a reply
BYTES_PER_TOKEN = 3  # to estimate a call's tokens before it is made


@dataclasses.dataclass(frozen=True)
class HttpSettings:
    """Where the judge is and how it is asked. `key_variable` names the environment variable that holds the key;
    `max_calls` and `max_tokens` (0: no limit) hold for the cache file's lifetime."""

    url: str
    model: str
    key_variable: str = "JUDGE_API_KEY"
    concurrency: int = 16
    timeout: float = 60.0
    attempts: int = 6
    max_calls: int = 0
    max_tokens: int = 0
    cache: str = ":memory:"
    first_wait: float = FIRST_WAIT


class NoVerdict(Exception):
    """One row's failure; the message is its kind."""


class HttpJudge:
    """Says P(first word), of the form's two words, for rows of text. Counts what failed in `failures`, by kind."""

    def __init__(self, settings: HttpSettings, form: Form) -> None:
        try:
            import httpx
        except ImportError:
            raise UserError("judge.model is an address, which needs httpx; install rl_likelihood[judge]") from None
        parts = urlsplit(settings.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"judge.model is {settings.url!r}, no http address; write http://HOST:PORT/v1")
        if parts.username or parts.password:
            raise UserError(f"judge.model has a key in its address; give it in the variable {settings.key_variable}")
        if not settings.model:
            raise UserError("judge.name is empty; set it to the model that the judge's address is asked for")
        self.settings, self.form, self.httpx = settings, form, httpx
        self.failures: collections.Counter[str] = collections.Counter()
        self._key = os.environ.get(settings.key_variable, "").strip()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=settings.concurrency)
        self._client = httpx.Client(headers=headers, timeout=settings.timeout, limits=limits)
        self._cache, self._lock, self._stop = _Cache(settings.cache), threading.Lock(), threading.Event()

    def __call__(self, questions: Sequence[str], answers: Answers) -> Verdicts:
        """The number of every row; rows with the same text are asked once."""
        texts = [[filled(self.form, q, row) for row in group] for q, group in zip(questions, answers, strict=True)]
        bodies = {self._hash(body): body for group in texts for body in map(self._body, group)}
        known = self._cache.get(list(bodies))
        self._ask({key: body for key, body in bodies.items() if key not in known}, known)
        values = np.array([[known.get(self._hash(self._body(t)), math.nan) for t in group] for group in texts])
        return Verdicts(values.astype(np.float32), np.isfinite(values), 0)

    @property
    def spent(self) -> tuple[int, int]:
        """Calls and tokens, over all runs with this cache."""
        return self._cache.calls, self._cache.tokens

    def close(self) -> None:
        """Ends connections."""
        self._client.close()
        self._cache.close()

    def _body(self, text: str) -> dict[str, Any]:
        message = {"role": "user", "content": text}
        asked = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        return {"model": self.settings.model, "messages": [message], **asked}

    def _hash(self, body: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps([body, self.form.words], sort_keys=True).encode()).hexdigest()

    def _ask(self, bodies: dict[str, dict[str, Any]], known: dict[str, float]) -> None:
        """Puts the verdicts of these into `known` and the cache. UserError where asking on makes no sense."""
        self._stop.clear()
        with concurrent.futures.ThreadPoolExecutor(self.settings.concurrency) as pool:
            jobs = {pool.submit(self._one, body): key for key, body in bodies.items()}
            try:
                for job in concurrent.futures.as_completed(jobs):
                    try:
                        value = job.result()
                    except NoVerdict as failure:
                        self.failures[str(failure)] += 1
                        continue
                    known[jobs[job]] = value
                    self._cache.put(jobs[job], value)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                self._cache.keep_counts()

    def _one(self, body: dict[str, Any]) -> float:
        """One row's verdict, with repeated attempts."""
        s, why = self.settings, "no attempt"
        for attempt in range(s.attempts):
            self._reserve(body)
            wait = s.first_wait * 2**attempt * random.uniform(0.5, 1)
            try:
                status, headers, content = self._post(body)
            except self.httpx.TimeoutException:
                why = "timeout"
            except (self.httpx.TransportError, self.httpx.DecodingError) as error:
                why = f"connection ({type(error).__name__})"
            else:
                if status == 200:
                    return self._verdict(content, body)
                self._refuse(status, headers, content)
                why = f"status {status}"
                if status not in RETRIED and status < 500:
                    break
                wait = max(wait, retry_after(headers.get("retry-after", "")))
            if attempt + 1 == s.attempts or self._stop.wait(min(wait, LONGEST_WAIT)):
                break
        raise NoVerdict(why)

    def _post(self, body: dict[str, Any]) -> tuple[int, Any, bytes]:
        """Status, headers and content. The deadline is that of the whole reply: a server may send a byte at a time."""
        due = time.monotonic() + self.settings.timeout
        address = self.settings.url.rstrip("/") + "/chat/completions"
        with self._client.stream("POST", address, json=body) as reply:
            content = bytearray()
            for part in reply.iter_bytes():
                content += part
                if time.monotonic() > due:
                    raise self.httpx.ReadTimeout("the reply takes too long")
                if len(content) > MOST_BYTES:
                    break
            return reply.status_code, reply.headers, bytes(content)

    def _verdict(self, content: bytes, body: dict[str, Any]) -> float:
        try:
            reply = json.loads(content)
            value = probability(reply, self.form.words)
        except (ValueError, RecursionError):
            raise NoVerdict("reply is no JSON") from None
        self._correct(body, reply)
        if value is None:
            raise NoVerdict("reply says neither word")
        return value

    def _refuse(self, status: int, headers: Any, content: bytes) -> None:
        """UserError for a status that every further call would get too."""
        address = self.settings.url
        if 300 <= status < 400:
            raise UserError(f"judge.model: {address} sends on to another address (status {status}); give that one")
        if status in FATAL:
            said = " ".join(self._without_key(content.decode(errors="replace")).split())[:200]
            raise UserError(
                f"judge.model: {address} {FATAL[status]} (status {status}: {said}); check judge.model, judge.name and "
                f"the environment variable {self.settings.key_variable}"
            )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _reserve(self, body: dict[str, Any]) -> None:
        """Counts a call before it is made; UserError where it would pass a limit."""
        s = self.settings
        with self._lock:
            calls, tokens = self._cache.calls + 1, self._cache.tokens + estimate(body)
            if s.max_calls and calls > s.max_calls:
                raise UserError(f"judge.max_calls is {s.max_calls}, and so many were made; raise it to go on")
            if s.max_tokens and tokens > s.max_tokens:
                raise UserError(
                    f"judge.max_tokens is {s.max_tokens}, and {self._cache.tokens} were used; raise it to go on"
                )
            self._cache.calls, self._cache.tokens = calls, tokens

    def _correct(self, body: dict[str, Any], reply: Any) -> None:
        """The server's count of tokens in place of the estimate, if it is one."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(total, int) and not isinstance(total, bool) and 0 < total < 1 << 24:
            with self._lock:
                self._cache.tokens += total - estimate(body)


class _Cache:
    """Verdicts by hash, and what was spent on them. Used from one thread, but for the two counts."""

    def __init__(self, path: str) -> None:
        try:
            if path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False)
            self._db.execute("create table if not exists verdicts (hash text primary key, value real not null)")
            self._db.execute("create table if not exists spent (id integer primary key, calls integer, tokens integer)")
            self._db.execute("insert or ignore into spent values (0, 0, 0)")
            self._db.commit()
            ((self.calls, self.tokens),) = self._db.execute("select calls, tokens from spent")
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"judge.cache is {path}, which cannot be used ({error}); delete it or choose another"
            ) from None

    def get(self, keys: list[str]) -> dict[str, float]:
        found = {}
        for key in keys:
            row = self._db.execute("select value from verdicts where hash = ?", (key,)).fetchone()
            if row is not None:
                found[key] = float(row[0])
        return found

    def put(self, key: str, value: float) -> None:
        self._write("insert or replace into verdicts values (?, ?)", (key, value))

    def keep_counts(self) -> None:
        """Writes down what was spent."""
        self._write("update spent set calls = ?, tokens = ?", (self.calls, self.tokens))

    def _write(self, statement: str, values: tuple) -> None:
        try:
            self._db.execute(statement, values)
            self._db.commit()
        except sqlite3.Error as error:
            raise UserError(f"judge.cache: cannot be written ({error}); free some space or choose another") from None

    def close(self) -> None:
        self._db.close()


def estimate(body: dict[str, Any]) -> int:
    """About how many tokens a call takes, more rather than fewer."""
    return len(body["messages"][0]["content"].encode()) // BYTES_PER_TOKEN + 10 + body["max_tokens"]


def retry_after(value: str) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 for what is neither."""
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return seconds if 0 <= seconds < math.inf else 0.0
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def probability(reply: Any, words: Sequence[str]) -> float | None:
    """P(first word) among both, from the log-probs of the reply's first token, or 1 or 0 by its text where there are
    none; None where it says neither."""
    try:
        choice = reply["choices"][0]
    except (TypeError, KeyError, IndexError):
        return None
    if not isinstance(choice, dict):
        return None
    mass = dict.fromkeys(words, 0.0)
    for token, logp in _top(choice):
        if token in mass:
            mass[token] += math.exp(logp)
    total = sum(mass.values())
    if total > 0:
        return mass[words[0]] / total
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    said = [w for w in words if isinstance(text, str) and re.search(rf"\b{re.escape(w)}\b", text.casefold())]
    return float(said[0] == words[0]) if len(said) == 1 else None


def _top(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """(token, log-prob) of the likeliest first tokens; [] where they are missing or no log-probs."""
    try:
        entries = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(e["token"]).strip().casefold(), float(e["logprob"])) for e in entries]
    except (TypeError, KeyError, IndexError, ValueError):
        return []
    legal = all(not math.isnan(logp) and logp <= 1e-3 for _, logp in pairs)
    return [(token, min(logp, 0.0)) for token, logp in pairs] if legal else []
