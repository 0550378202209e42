"""The numbers of an evaluation from its records: published oracles, definitions written again, intervals, refusals."""

import itertools
import json
import math

import numpy as np
import pytest

from rl_likelihood.errors import UserError
from rl_likelihood.evaluation import statistics
from rl_likelihood.evaluation.statistics import summary
from rl_likelihood.report.metric_table import METRICS, unknown
from rl_likelihood.runtime import run_files


def record(
    log_probs, tokens=1, right=None, votes=None, lengths=None, no_chain=-1.0, swapped=-1.0, greedy=False, direct=False
):
    """A question whose sampled chains gave these log-probs of the whole answer, and these marks and votes."""
    m = len(log_probs)
    right = [False] * m if right is None else right
    votes = [None] * m if votes is None else votes
    lengths = [10] * m if lengths is None else lengths
    chain = {"chain_tokens": 10, "own_tokens": 6, "truncated": False, "log_prob": -1.0}
    return {
        "answer_tokens": tokens,
        "greedy": {**chain, "right": greedy},
        "samples": [
            {**chain, "log_prob": x, "right": r, "vote": v, "chain_tokens": n}
            for x, r, v, n in zip(log_probs, right, votes, lengths, strict=True)
        ],
        "no_chain": {"log_prob": no_chain, "right": direct},
        "swapped": swapped,
        "transition_words": 2.0,
    }


def random_records(seed, n=12, m=4, answered=0.8):
    rng = np.random.default_rng(seed)
    return [
        record(
            rng.normal(-5, 2, m).tolist(),
            int(rng.integers(1, 6)),
            (rng.random(m) < 0.4).tolist(),
            [int(rng.integers(0, i + 1)) if rng.random() < answered else None for i in range(m)],
            rng.integers(5, 40, m).tolist(),
            float(rng.normal(-5)),
            float(rng.normal(-6)),
            bool(rng.random() < 0.5),
        )
        for _ in range(n)
    ]


# ------------------------------------------------------------------------------------------- likelihoods


def test_the_two_items_of_the_paper_note():
    """T_a = (2, 4), answer probabilities per chain (.5, .1) and (.2, .2)."""
    out = summary([record(np.log([0.5, 0.1]).tolist(), 2), record(np.log([0.2, 0.2]).tolist(), 4)])
    assert out["log_prob_mc1"] == pytest.approx(-0.575646, abs=1e-6)
    assert out["log_prob_mc2"] == pytest.approx(-0.502173, abs=1e-6)
    assert out["log_prob_mc2_per_token"] == pytest.approx(-0.468902, abs=1e-6)
    assert out["perplexity"] == pytest.approx(1.778279, abs=1e-6)
    assert out["log_prob_mc1_per_token"] == pytest.approx(np.log([0.5, 0.1, 0.2, 0.2]).mean() * 2 / 6, abs=1e-6)


@pytest.mark.parametrize("mc1, perplexity, digits", [(-4.21, 67.3, 0), (-1.2871, 3.62, 2), (-0.97, 2.64, 2)])
def test_perplexity_of_published_table_cells(mc1, perplexity, digits):
    """Means over questions of per-token log-probs, not over tokens: the questions differ in length."""
    out = summary([record([(mc1 - 0.3) * 2], 2), record([(mc1 + 0.3) * 7], 7)])
    assert out["perplexity"] == pytest.approx(perplexity, abs=0.51 * 10**-digits)
    assert out["log_prob_mc1"] == pytest.approx(mc1, abs=1e-6)
    assert out["log_prob_mc1_per_token"] != pytest.approx(mc1, abs=0.01)


def test_more_chains_see_more_likelihood_unless_they_are_one_chain():
    several = summary(random_records(0, m=32))
    assert several["log_prob_mc32"] > several["log_prob_mc1"] + 0.1
    assert unknown(several) == [], "report/metrics.csv describes every number"
    same = summary([record([-3.0] * 32, 2), record([-700.0] * 32, 7)])
    assert same["log_prob_mc32"] == pytest.approx(same["log_prob_mc1"], abs=1e-6)
    assert same["log_prob_mc32_per_token"] == pytest.approx(-703 / 9, abs=1e-6)


def test_mc32_of_more_samples_is_the_mean_over_blocks_of_32():
    records = random_records(1, n=3, m=70)
    blocks = [
        np.mean([np.log(np.exp(x[at : at + 32]).mean()) for at in (0, 32)]) / r["answer_tokens"]
        for r in records
        for x in [np.asarray([s["log_prob"] for s in r["samples"]])]
    ]
    out = summary(records)
    assert out["log_prob_mc32"] == pytest.approx(np.mean(blocks), abs=1e-6)
    assert "log_prob_mc70" in out


def test_what_the_chain_adds_and_what_another_chain_takes_away():
    out = summary(
        [record([-2.0, -4.0], 2, no_chain=-3.5, swapped=-6.0), record([-1.0, -1.0], 1, no_chain=-0.5, swapped=None)]
    )
    assert out["chain_gain"] == pytest.approx((0.5 - 0.5) / 2)
    assert out["chain_helps"] == pytest.approx(0.25)
    alike = summary([record([-2.0, -2.0], 1, no_chain=-2.0, swapped=None)])
    assert alike["chain_helps"] == 0, "an equal log-prob is no help"
    assert out["chain_swap_drop"] == pytest.approx(3.0), "the first question of a set has no chain to borrow"
    assert out["questions_of"] == {"log_prob_swapped": 1, "chain_swap_drop": 1}
    assert out["perplexity_no_chain"] == pytest.approx(math.exp((1.75 + 0.5) / 2), abs=1e-6)
    assert out["perplexity_swapped"] == pytest.approx(math.exp(3.0), abs=1e-6)
    assert out["answer_log_prob"] == -2.0 and out["answer_log_prob_no_chain"] == -2.0 and out["answer_tokens"] == 1.5


# ------------------------------------------------------------------------------------------- answers


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    records = random_records(2, m=6)
    out = summary(records)
    for k in (2, 4):
        subsets = [
            np.mean([any(chosen) for chosen in itertools.combinations([s["right"] for s in r["samples"]], k)])
            for r in records
        ]
        assert out[f"pass@{k}"] == pytest.approx(np.mean(subsets), abs=1e-6)
    assert "pass@8" not in out


@pytest.mark.parametrize(
    "votes, right, success",
    [
        ([0, 1, 1, 3], [False, True, True, False], 1.0),
        ([0, 1, 0, 1], [False, True, False, True], 0.0),  # of a tie the first
        ([None, None, None, 3], [False, False, False, True], 1.0),  # no answer is no vote
        ([None] * 4, [False] * 4, 0.0),
        ([0, 1, 1, None], [True, None, None, False], None),  # the grader failed on the winner
    ],
)
def test_majority_at_k(votes, right, success):
    out = summary([record([-1.0] * 4, right=right, votes=votes)])
    assert out.get("majority@4") == success


def test_majority_of_fewer_is_the_mean_over_blocks():
    out = summary([record([-1.0] * 5, right=[True, False, True, True, False], votes=[0, 1, 0, 0, 1])])
    assert out["majority@2"] == 1.0, "of a tie the first wins, and the fifth sample is in no block"
    out = summary([record([-1.0] * 4, right=[False, True, True, True], votes=[0, 1, 1, 1])])
    assert out["majority@2"] == 0.5


def test_a_grader_that_failed_is_counted_and_is_no_wrong_answer():
    out = summary(
        [
            record([-1.0] * 4, right=[True, None, False, True], greedy=None, direct=True),
            record([-1.0] * 4, right=[None] * 4, greedy=True, direct=None),
        ]
    )
    assert out["grader_failures"] == 1 + 1 + 4 + 1
    assert out["greedy_success"] == 1.0 and out["sampled_success"] == pytest.approx(2 / 3, abs=1e-6)
    assert out["pass@2"] == pytest.approx(1.0) and "pass@4" not in out
    assert out["greedy_success_no_chain"] == 1.0
    assert out["questions_of"]["greedy_success"] == 1 and out["questions"] == 2


def test_what_was_not_measured_is_left_out():
    records = random_records(3)
    for r in records:
        for part in (r["greedy"], r["no_chain"], *r["samples"]):
            del part["right"]
        r["samples"] = [{k: v for k, v in s.items() if k != "vote"} for s in r["samples"]]
    ungraded = summary(records)
    assert not [k for k in ungraded if "success" in k or "@" in k]
    assert ungraded["perplexity"] > 1 and ungraded["grader_failures"] == 0
    greedy = [{k: r[k] for k in ("answer_tokens", "greedy")} | {"samples": []} for r in random_records(3)]
    out = summary(greedy)
    assert {k for k in out if not k.startswith("greedy_")} == {"grader_failures", "ci95", "questions", "questions_of"}
    assert out["greedy_chain_length"] == 10 and out["greedy_truncated"] == 0


# ------------------------------------------------------------------------------------------- correlations


def test_correlation_of_length_and_log_prob_over_all_and_within_questions():
    """Simpson's paradox: longer questions are likelier, longer chains of one question are not."""
    short = record([-9.0, -9.5, -10.0], lengths=[10, 12, 14])
    long = record([-3.0, -3.5, -4.0], lengths=[30, 32, 34])
    constant = record([-6.0, -6.5, -7.0], lengths=[22, 22, 22])
    out = summary([short, long, constant])
    x, y = [10, 12, 14, 30, 32, 34, 22, 22, 22], [-9, -9.5, -10, -3, -3.5, -4, -6, -6.5, -7]
    assert out["length_correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert out["length_correlation"] > 0
    assert out["length_correlation_in_prompt"] == pytest.approx(-1.0)
    assert out["questions_of"]["length_correlation_in_prompt"] == 2


def test_chains_of_one_length_have_no_correlation():
    out = summary([record([-1.0, -2.0, -3.0]), record([-0.1, -7.0, -3.3])])
    assert not [k for k in out if "correlation" in k]


# ------------------------------------------------------------------------------------------- intervals


def test_intervals_are_percentiles_of_the_numbers_of_resampled_questions():
    """Every metric, by handing whole records in as often as they were drawn."""
    records, resamples = random_records(4, n=9, m=4), 40
    out = summary(records, resamples)
    drawn = np.random.default_rng(0).multinomial(9, np.full(9, 1 / 9), size=resamples)
    again = [summary([r for r, n in zip(records, counts, strict=True) for _ in range(n)], 1) for counts in drawn]
    names = [k for k in out["ci95"] if not k.startswith("length_correlation") and out[k] not in (0, 1)]
    assert {"greedy_success", "pass@4", "majority@4", "perplexity", "log_prob_mc4_per_token"} <= set(names)
    for name in [*names, "length_correlation"]:
        low, high = np.percentile([row[name] for row in again], (2.5, 97.5))
        assert out["ci95"][name] == pytest.approx([low, high], abs=2e-6), name
        assert low <= out[name] <= high


def test_an_interval_of_a_mean_is_about_two_standard_errors_wide():
    records = random_records(5, n=400)
    out = summary(records)
    for name in ("greedy_success", "sampled_success", "log_prob_mc1"):
        low, high = out["ci95"][name]
        assert high - low == pytest.approx(2 * 1.96 * out[f"{name}_se"], rel=0.1)
    assert out["questions"] == 400
    values = np.asarray([r["greedy"]["right"] for r in records], float)
    assert out["greedy_success_se"] == pytest.approx(values.std(ddof=1) / 20, abs=1e-6)


def test_a_share_of_0_or_1_in_all_questions_has_an_exact_interval():
    """Clopper-Pearson: a rate at the end of it gives n such questions with a probability of 2.5 %."""
    n = 24
    out = summary([record([-1.0] * 2, right=[False] * 2, votes=[0, 0], greedy=True) for _ in range(n)])
    for name in ("sampled_success", "pass@2", "majority@2", "greedy_success_no_chain", "truncated"):
        low, high = out["ci95"][name]
        assert out[name] == low == 0 and (1 - high) ** n == pytest.approx(0.025, abs=1e-4)
    low, high = out["ci95"]["greedy_success"]
    assert high == 1 and low**n == pytest.approx(0.025, abs=1e-4)
    assert out["ci95"]["chain_length"] == [10, 10], "no share"
    for name in ("greedy_success", "sampled_success"):
        low, high = out["ci95"][name]
        assert out[f"{name}_se"] == pytest.approx((high - low) / 3.92, abs=2e-6), "the same everywhere, and not 0"
    graded = [record([-1.0], right=[None if i < 20 else False]) for i in range(n)]
    assert summary(graded)["ci95"]["sampled_success"] == [0, pytest.approx(1 - 0.025**0.25, abs=1e-5)]


def test_the_same_records_give_the_same_numbers_and_their_order_does_not_matter():
    records = random_records(6)
    out = summary(records)
    assert out == summary(json.loads(json.dumps(records)))
    numbers = {k: v for k, v in out.items() if not isinstance(v, dict)}
    turned = summary(records[::-1])
    assert {k: turned[k] for k in numbers} == pytest.approx(numbers, abs=2e-6)


def test_of_one_question_only_shares_of_0_and_1_have_an_interval():
    out = summary([record([-1.0, -2.0], 3, right=[True, False], greedy=True)])
    assert out["greedy_success"] == 1 and out["ci95"]["greedy_success"] == [0.025, 1]
    assert not {"perplexity", "sampled_success", "chain_length"} & out["ci95"].keys()


def test_many_questions_are_resampled_in_parts(monkeypatch):
    records = random_records(7, n=30)
    whole = summary(records, 64)
    monkeypatch.setattr(statistics, "_CHUNK", 30 * 10)
    assert summary(records, 64) == whole


# ------------------------------------------------------------------------------------------- file


def write(path, records):
    run_files.append(path, {"step": 7, "identity": {"weights": "x"}})
    for i, r in enumerate(records):
        run_files.append(path, {"step": 7, "index": i, **r})


def test_the_command_prints_the_numbers_of_a_file(tmp_path, capsys):
    records = random_records(8)
    write(tmp_path / "records.jsonl", records)
    assert statistics.main([str(tmp_path / "records.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out) == {"step": 7, **summary(records)}


def test_files_that_are_not_whole_records_are_refused(tmp_path, capsys):
    other, gap, empty = (tmp_path / f"{name}.jsonl" for name in ("other", "gap", "empty"))
    run_files.append(other, {"step": 1, "greedy_success": 0.5})
    write(gap, random_records(9, n=3))
    lines = gap.read_text().splitlines(keepends=True)
    gap.write_text(lines[0] + lines[2])
    write(empty, [])
    for path in (other, gap):
        with pytest.raises(UserError, match=f"{path.name}: not the records"):
            statistics.read_records(str(path))
    for path in (gap, empty, tmp_path / "absent.jsonl"):
        assert statistics.main([str(path)]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_conversations_pass_k_times_and_failed_ones_do_not_count():
    """Of four conversations three succeed: pass^k is .75 .5 .25 0, pass@k .75 1 1 1."""
    ran = {
        "reward": 1.0,
        "calls_f1": 0.5,
        "turns": 2,
        "calls": 2,
        "bad_calls": 0,
        "chain_tokens": 9,
        "truncated": False,
    }
    right, wrong, failed = ran | {"right": True}, ran | {"right": False, "reward": 0.0}, dict.fromkeys([*ran, "right"])
    question = {"conversation": True, "kind": "a", "greedy": right, "samples": [right, right, right, wrong]}
    out = summary([question, question | {"kind": ""}])
    assert [out["sampled_success"], out["pass^2"], out["pass^3"], out["pass^4"]] == [0.75, 0.5, 0.25, 0]
    assert [out["pass@2"], out["pass@3"], out["pass@4"]] == [1, 1, 1]
    assert out["env_reward"] == pytest.approx(0.8)
    ends = [right | {"end": "done"}, right | {"end": "transfer"}]
    ends += [wrong | {"end": "out_of_turns", "truncated": True, "calls": calls} for calls in (0, 2)]
    out = summary([question | {"greedy": ends[0], "samples": ends[1:]}])
    assert [out[name] for name in ("done", "transfer", "out_of_turns", "no_call")] == [0.25, 0.25, 0.5, 0.25]
    left_out = summary([question | {"greedy": failed, "samples": [right, failed, right, failed], "kind": ""}])
    assert left_out["env_reward"] == left_out["sampled_success"] == 1 and left_out["turns"] == 2
    assert "greedy_success" not in left_out and "pass^3" not in left_out and left_out["pass^2"] == 1


def test_each_kind_of_conversation_has_its_own_numbers():
    """Kind a: greedy right, one of two samples right. Kind b: all right, with more messages, calls and bad calls."""

    def conversation(right, turns=2, calls=1, bad_calls=0):
        counts = {"turns": turns, "calls": calls, "bad_calls": bad_calls, "chain_tokens": 9}
        return {"right": right, "reward": float(right), "calls_f1": None, "truncated": False, **counts}

    def question(kind, greedy, *samples):
        return {"conversation": True, "kind": kind, "greedy": greedy, "samples": samples}

    a = question("a", conversation(True), conversation(True, turns=5), conversation(False, calls=4, bad_calls=3))
    b = question("b", *[conversation(True, turns=6, calls=5, bad_calls=4)] * 3)
    out = summary([a, b, question("", *[conversation(False)] * 3)])
    names = ("greedy_success", "sampled_success", "pass^2", "turns", "calls", "bad_calls")
    assert [out[f"{name}/a"] for name in names] == [1, 0.5, 0, 3, 2, 1]
    assert [out[f"{name}/b"] for name in names] == [1, 1, 1, 6, 5, 4]
    assert out["questions_of"]["pass^2/b"] == 1 and unknown(out) == []
    assert [name for name in out if "/" in name] == [f"{name}/{kind}" for kind in "ab" for name in names]
    assert not any("/" in name for name in summary([a, a])), "one kind is all"
    assert [k for k in summary([r | {"samples": []} for r in (a, b)]) if k.endswith("/a")] == [
        f"{name}/a" for name in ("greedy_success", "turns", "calls", "bad_calls")
    ]


def test_every_share_of_the_table_has_an_exact_interval_where_it_is_zero():
    shares = [m.name for m in METRICS.values() if m.file == "eval.jsonl" and m.unit == "%" and m.name[-3:] != "_se"]
    zero = 0, pytest.approx(1 - 0.025 ** (1 / 24))
    for name in [*shares, "no_chain/copied"]:
        assert statistics._exact_interval(name, {name: np.zeros(24)}) == zero, name
