"""Stored replies of a server on this machine, and the limits on calls and tokens."""

import contextlib
import sqlite3
import threading
import time

import numpy as np
import pytest

from rl_likelihood.data.judged_text import CORRECT, filled
from rl_likelihood.errors import UserError
from rl_likelihood.rollouts.endpoint import estimate
from tests.servers import ask, good, judging, serving, verdict


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def body_of(answer):
    return {"messages": [{"content": filled(CORRECT, "What?", (answer,))}], "max_tokens": 1}


def test_what_was_asked_is_never_asked_again(tmp_path):
    path = str(tmp_path / "new" / "cache.sqlite")
    with serving(good) as (url, requests):
        with judging(url, cache=path) as judge:
            first = ask(judge, "right", "wrong")
        with judging(url, cache=path) as judge:
            np.testing.assert_array_equal(ask(judge, "wrong", "right").values[:, ::-1], first.values)
        assert len(requests) == 2
    with judging(url + "/", cache=path) as judge:  # nobody is there any more
        assert ask(judge, "right").keep.all()
    with serving(good) as (url, requests), judging(url, cache=path) as judge:
        assert ask(judge, "right").keep.all() and len(requests) == 1, "another server is asked"
    (tmp_path / "broken").write_bytes(b"not a database, but long enough to be read as one" * 30)
    with pytest.raises(UserError, match="judge.cache.*broken"), judging(url, cache=str(tmp_path / "broken")):
        pass


def test_limits_end_the_run_before_they_are_passed(tmp_path):
    path = str(tmp_path / "cache.sqlite")
    with serving(good) as (url, requests):
        with judging(url, max_calls=3, cache=path, concurrency=1) as judge:
            ask(judge, "1", "2")
            with pytest.raises(UserError, match="judge.max_calls is 3"):
                ask(judge, "3", "4")
        assert len(requests) == 3
        with judging(url, max_calls=3, cache=path) as judge:  # what was spent before counts too
            assert ask(judge, "1", "3").keep.all()
            with pytest.raises(UserError, match="judge.max_calls"):
                ask(judge, "5")
        assert len(requests) == 3
        with judging(url, max_tokens=200, concurrency=1) as judge:
            with pytest.raises(UserError, match="judge.max_tokens is 200"):
                ask(judge, *map(str, range(10)))
            calls, used = judge.endpoint.spent
            # Each took 50 by the server's count, and the next was estimated at more than what was left.
            assert used == 50 * calls <= 200 < used + estimate(body_of("0"))


def test_processes_with_one_cache_add_up_what_they_spend(tmp_path):
    path = str(tmp_path / "cache.sqlite")
    with serving(good) as (url, _), judging(url, cache=path) as one, judging(url, cache=path) as other:
        ask(one, "1", "2")
        ask(other, "3")
        ask(one, "4")
        assert one.endpoint.spent == (3, 150) and other.endpoint.spent == (1, 50)
        with judging(url, cache=path) as later:
            assert later.endpoint.spent == (4, 200)


def test_a_killed_run_has_stored_its_replies_and_what_they_cost(tmp_path):
    """Read from the file while the last call of the batch hangs."""
    path, release = tmp_path / "cache.sqlite", threading.Event()

    def behave(handler, number, body):
        if "slow" in body["messages"][0]["content"]:
            release.wait(60)
        handler.reply(200, verdict(body))

    def stored():
        with contextlib.closing(sqlite3.connect(path)) as db:
            return db.execute("select count(*), calls, tokens from spent left join replies").fetchone()

    with serving(behave) as (url, _), judging(url, cache=str(path), timeout=60) as judge:
        thread = threading.Thread(target=ask, args=(judge, "slow", "1", "2"))
        thread.start()
        due = time.monotonic() + 30
        while stored()[0] < 2 and time.monotonic() < due:
            time.sleep(0.1)
        assert stored() == (2, 3, 100 + estimate(body_of("slow")))
        release.set()
        thread.join()
        assert stored() == (3, 3, 150)


def test_replies_are_stored_together():
    statements = []
    with serving(good) as (url, _), judging(url) as judge:
        judge.endpoint._cache._db.set_trace_callback(statements.append)
        assert ask(judge, *map(str, range(50))).keep.all()
    commits, replies = (sum(text.startswith(word) for text in statements) for word in ("COMMIT", "insert"))
    assert replies == 50 and commits <= 10


def test_a_lying_count_of_tokens_changes_nothing():
    def behave(handler, number, body):
        usage = [{"total_tokens": -5}, {"total_tokens": "many"}, {"total_tokens": True}, {"total_tokens": 10**12}, None]
        handler.reply(200, {**verdict(body), "usage": usage[number - 1]})

    with serving(behave) as (url, _), judging(url, concurrency=1) as judge:
        ask(judge, *"abcde")
        assert judge.endpoint.spent == (5, 5 * estimate(body_of("a")))
