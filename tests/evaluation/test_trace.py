"""TRACE: the answer after parts of its chain, and the curve's numbers."""

import numpy as np
import pytest

from rl_likelihood.evaluation import statistics, trace
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate, tokens_before_tags
from rl_likelihood.report.metric_table import unknown
from tests.evaluation.bigrams import numbers, records_of, sharp, task_of
from tests.evaluation.test_statistics import record
from tests.small import log_softmax, reference_logits


def test_a_chain_is_cut_among_its_own_tokens():
    assert trace.cuts([1, 2, 3, 4, 9, 9], own=4) == [[1], [1, 2], [1, 2, 3]]
    assert trace.cuts([9], own=0) == [[], [], []]


def test_the_curve_and_its_area_by_hand():
    one, other = record([-2.0], 2), record([-1.0], 1)
    one |= {"trace": [-4.0, -4.0, -2.0, -2.0, -2.0]}
    other |= {"trace": [-1.0] * 5}
    out = statistics.summary([one, other])
    curve = np.array([-2.0, -2.0, -1.0, -1.0, -1.0])
    assert [out[f"trace@{k}"] for k in trace.PERCENT] == pytest.approx((curve - 1) / 2)
    # The first question: 0, 0, 1, 1, 1 above its start, so 0 + 1/8 + 1/4 + 1/4; the second does nothing.
    assert out["trace_area"] == pytest.approx(0.625 / 2) and "trace_area" in out["ci95"]
    assert not unknown({"trace_area": 0.0, "trace@25": 0.0})
    assert "trace_area" not in statistics.summary([record([-2.0], 2)])


def test_the_curve_is_the_answer_after_each_part(tmp_path):
    task, params = task_of(eval__trace=True, eval__prompts=3, eval__samples=2)
    params = sharp(params)
    out = evaluate(Evaluation(task, params, task.heldout, folder=tmp_path))
    tag = list(task.fmt.close_think_ids)
    for row, r in zip(task.heldout, records_of(tmp_path, out), strict=False):
        assert r["trace"][0] == r["no_chain"]["log_prob"] and r["trace"][-1] == r["samples"][0]["log_prob"]
        chain = r["first_sampled"]["chain"]
        for part, got in zip(
            trace.cuts(chain, tokens_before_tags(np.array(chain), task.fmt)), r["trace"][1:-1], strict=True
        ):
            before = [*row.prompt_ids, *part, *tag]
            logp = log_softmax(reference_logits(params, task.model, np.array([*before, *row.answer_ids])))
            at = len(before) - 1 + np.flatnonzero(row.answer_scored)
            assert got == pytest.approx(logp[at, row.answer_ids[row.answer_scored]].sum(), abs=2e-3)
    assert out["trace_area"] != 0


def test_a_run_without_it_has_neither_curve_nor_other_numbers(tmp_path):
    parts = []
    for on in (False, True):
        task, params = task_of(eval__trace=on, eval__prompts=3, eval__samples=2)
        parts.append(numbers(evaluate(Evaluation(task, sharp(params), task.heldout, folder=tmp_path))))
    without, with_trace = parts
    assert not any(name.startswith("trace") for name in without)
    for name in without.keys() - {"ci95", "examples", "questions_of"}:
        assert with_trace[name] == pytest.approx(without[name], abs=1e-3), name
