"""Batches come back in order, whatever their graders do: a hang, a crash or an error is None, and is counted."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.grading import code, run_code
from rl_likelihood.grading.graders import GRADERS, Grader, countdown
from rl_likelihood.grading.pool import ITEMS_PER_WORKER, Pool
from tests.grading import test_worker
from tests.programs import isolated


def isolated_by(grade):
    return Grader(grade, "for a test", quick=test_worker.undecided)


TABLE = {"bad": isolated_by(test_worker.misbehave)}


def test_cheap_graders_start_no_process():
    cheap = [name for name, row in GRADERS.items() if row.quick is None]
    plain = {"exact_match", "numeric", "multiple_choice", "nearest_option", "prefix"}
    assert plain | {"countdown", "telemath", "tool_call", "bfcl", "math"} == set(cheap)
    with Pool() as pool:
        for name in cheap:
            assert pool.grade(name, ["5", "5", "5"], ["5", "6", None]) == [True, False, False]
        # What needs no parsing and no running is decided here too.
        assert pool.grade("code_output", ["[1]", "[1]"], ["[1]", None]) == [True, False]
        assert pool.grade("code_output", [], []) == []
        assert pool.counts == {"graded": 3 * len(cheap) + 2}
        assert pool.failures == 0 and pool.last_failure == ""


def test_order_and_verdicts():
    references = [str(i % 7) for i in range(60)]
    answers = [str(i % 5) for i in range(60)]
    with Pool(table=TABLE) as pool:
        for _ in range(2):
            assert pool.grade("bad", references, answers) == [i % 7 == i % 5 for i in range(60)]
        assert pool.counts == {"graded": 120, "workers": 2}


@pytest.mark.parametrize(
    "how, kind, why",
    [
        ("hang", "hangs", "no verdict after 1.5 s"),
        ("spin", "hangs", "no verdict after 1.5 s"),
        ("exit", "crashes", "exit code 3"),
        ("abort", "crashes", "exit code -6"),
        ("leave", "crashes", "exit code 0"),
        ("raise", "errors", "KeyError: 'no such thing'"),
        ("memory", "errors", "MemoryError"),
        ("deep", "errors", "RecursionError"),
        ("nothing", "errors", "could not judge"),
    ],
)
def test_a_failure_is_none_and_counted_and_the_other_answers_are_graded(how, kind, why):
    with Pool(workers=1, deadline=1.5, table=TABLE) as pool:
        assert pool.grade("bad", ["5"] * 5, ["5", how, "6", how, "5 "]) == [True, None, False, None, False]
        assert pool.counts[kind] == 2  # equal answers are asked about once and count twice
        assert pool.failures == 2
        assert why in pool.last_failure and f"answer '{how}'" in pool.last_failure
        assert pool.counts["workers"] == (1 if kind == "errors" else 2)
        assert pool.grade("bad", ["5"], ["5"]) == [True]


def test_a_worker_is_replaced_after_its_share(tmp_path):
    table = {"number": isolated_by(test_worker.process_number)}
    with Pool(workers=1, table=table) as pool:
        seen, n = str(tmp_path / "seen"), 2 * ITEMS_PER_WORKER + 2
        new = pool.grade("number", [seen] * n, [str(i) for i in range(n)])
        assert [i for i, is_new in enumerate(new) if is_new] == [0, ITEMS_PER_WORKER, 2 * ITEMS_PER_WORKER]
        assert pool.counts["workers"] == 3 and pool.failures == 0


def test_workers_are_used_again_and_ended():
    pool = Pool(table=TABLE)
    with pool:
        pool.grade("bad", ["5"] * 4, ["1", "2", "3", "4"])
        pool.grade("bad", ["5"] * 4, ["1", "2", "3", "4"])
        processes = [w.process for w in pool._running]
        assert len(processes) == 2
    assert all(p.returncode is not None for p in processes)
    with pool:  # and can be used again
        assert pool.grade("bad", ["5"], ["5"]) == [True]


def test_a_worker_that_was_killed_while_idle_costs_no_verdict():
    with Pool(workers=1, table=TABLE) as pool:
        pool.grade("bad", ["5"], ["5"])
        (worker,) = pool._running
        worker.process.kill()
        worker.process.wait()
        assert pool.grade("bad", ["5", "5"], ["5", "6"]) == [True, False]
        assert pool.failures == 0 and pool.counts["workers"] == 2


def test_workers_know_nothing_of_jax():
    assert "jax" in sys.modules, "it is in this process"
    with Pool(table={"clean": isolated_by(test_worker.without_jax)}) as pool:
        assert pool.grade("clean", [""], [""]) == [True]


def test_what_a_grader_prints_is_not_on_our_output(capfd):
    with Pool(table=TABLE) as pool:
        assert pool.grade("bad", ["5"], ["print"]) == [False]
    assert capfd.readouterr().out == ""


def test_threads_may_share_a_pool():
    with Pool(table=TABLE) as pool:
        results = {}

        def grade(i):
            results[i] = pool.grade("bad", ["5"] * 6, [str(i)] * 3 + [str(j) for j in range(3)])

        threads = [threading.Thread(target=grade, args=(i,)) for i in (4, 5, 6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert results == {i: [i == 5] * 3 + [False] * 3 for i in (4, 5, 6)}


def test_a_worker_that_cannot_start_is_said(monkeypatch, tmp_path, capfd):
    (tmp_path / "json.py").write_text("raise ImportError('broken installation')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Pool(table=TABLE) as pool, pytest.raises(UserError, match="could not get ready .*must import"):
        pool.grade("bad", ["5"], ["5"])
    assert "broken installation" in capfd.readouterr().err


def test_refusals():
    with Pool() as pool:
        with pytest.raises(UserError, match="grader 'maths' .*code_output, code_tests, "):
            pool.grade("maths", ["5"], ["5"])
        with pytest.raises(ValueError):
            pool.grade("math", ["5"], [])


def test_no_number_of_workers_is_one_a_core():
    assert Pool(workers=0).workers >= 1 and Pool(workers=3).workers == 3


def test_a_machine_that_can_start_no_process_is_said(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Pool(table=TABLE) as pool, pytest.raises(UserError, match="a grading process could not start: .*no/such"):
        pool.grade("bad", ["5"], ["5"])


def test_a_grader_of_the_users_own_that_raises_is_a_counted_failure():
    with Pool(table={"own": Grader(test_worker.misbehave, "own")}) as pool:
        assert pool.grade("own", ["5"] * 4, ["5", "raise", "nothing", "6"]) == [True, None, None, False]
        assert pool.counts == {"graded": 4, "errors": 2}
        assert "could not judge" in pool.last_failure and "'nothing'" in pool.last_failure


@isolated
def test_code_in_the_pool():
    task = json.dumps({"prompt": "def f(x):\n", "test": "def check(f):\n    assert f(2) == 4", "entry_point": "f"})
    with Pool() as pool:
        assert pool.grade("code_tests", [task] * 3 + ["{}"], ["    return x * x", "    return x", None, "x"]) == [
            True,
            False,
            False,
            None,
        ]
        assert pool.grade("code_output", ["[1, 2]"] * 3, ["[1,2]", "(1,2)", "[" * 5_000]) == [True, False, False]
        assert pool.counts["errors"] == 1


def test_other_tables_may_be_given():
    with Pool(table={"mine": Grader(countdown, "mine")}) as pool:
        assert pool.grade("mine", ["1+2"], ["2+1"]) == [True]
        with pytest.raises(UserError):
            pool.grade("math", ["1"], ["1"])


def test_code_is_refused_where_it_cannot_be_isolated_unless_that_is_allowed(monkeypatch, tmp_path, capfd):
    """As in an ordinary container: the kernel refuses namespaces."""
    refused = tmp_path / "sandbox.py"
    refused.write_text(Path(run_code._SANDBOX).read_text().replace("libc.unshare(", "int.bit_count("))
    monkeypatch.setattr(run_code, "_SANDBOX", str(refused))
    task = json.dumps({"prompt": "def f(x):\n", "test": "def check(f):\n    assert f(2) == 4", "entry_point": "f"})
    with Pool() as pool, pytest.raises(UserError, match="keeps nothing from them.* set eval.unsafe_code=True") as error:
        pool.grade("code_tests", [task], ["    return x * x"])
    assert "\n" not in str(error.value) and pool.counts["workers"] == 0
    assert code.code_tests(task, "    return x * x") is None  # not run, and nobody's wrong answer
    with Pool(unsafe_code=True) as pool:
        assert pool.grade("code_tests", [task] * 2, ["    return x * x", "    return x"]) == [True, False]
    assert "a sandbox that keeps from them: nothing" in capfd.readouterr().err
