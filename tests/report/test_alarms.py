"""Each alarm is raised once, at its threshold and not before it, and names remedies that exist."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.base import get_config
from rl_likelihood.config import all_fields, build
from rl_likelihood.fields import choices as choices_of
from rl_likelihood.report.alarms import ALARMS, FIRST_STEPS, Alarms
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.rewards.table import REWARDS
from rl_likelihood.tables import parse_reward
from rl_likelihood.train import first_alarms
from tests.runs import small_config

HEALTHY = {
    "policy/entropy": 0.8,
    "chain/length": 90.0,
    "chain/truncated": 0.1,
    "reward/zero_std_groups": 0.2,
    "reward/underflow": 0.0,
    "reward/mean": -3.0,
    "ratio/mean": 1.0,
    "ratio/max": 1.2,
    "ratio/ess": 0.99,
    "grader/failures": 0.0,
}


def terms_of(reward):
    """The terms, none where the run is supervised."""
    return () if reward == "sft" else parse_reward(reward)


def started(reward="log_prob", truncated="force_close"):
    """Alarms after a healthy start."""
    alarms = Alarms(terms_of(reward), truncated)
    for step in range(1, FIRST_STEPS + 1):
        assert alarms.check(step, HEALTHY) == []
    return alarms


BY_TURN = {"reward__name": "environment", "env__name": "calculator", "env__credit": "turn", "sampler__max_turns": 2}


@pytest.mark.parametrize(
    "changes, warned",
    [
        ({"reward__name": "log_prob"}, True),
        ({"reward__name": "0*log_prob", "posterior__distill": 1.0}, False),
        (BY_TURN, False),
    ],
    ids=["reward", "distill", "turn"],
)
def test_groups_with_equal_rewards_teach_where_parts_of_a_chain_earn_more(changes, warned, tmp_path):
    run = SimpleNamespace(config=build(small_config(**changes)), workdir=tmp_path)
    assert bool(first_alarms(run, 0).check(1, {"reward/zero_std_groups": 1.0})) == warned


# What is wrong, what the trained reward is, and what the sentence must hold.
WRONG = [
    ({"policy/entropy": 0.04}, "log_prob", ["policy/entropy is 0.04 nats", "0.8 in", "loss.kl=k3", "optim.lr"]),
    ({"chain/length": 29.9}, "log_prob", ["chain/length is 29.9 tokens", "90.0 in", "length term"]),
    ({"chain/truncated": 0.51}, "log_prob", ["chain/truncated is 51%", "sampler.max_chain"]),
    ({"reward/zero_std_groups": 0.625}, "base_rl", ["reward/zero_std_groups is 62%", "sampler.group_size"]),
    ({"ratio/max": 10.5}, "log_prob", ["ratio/max is 10.5:", "sampler.max_staleness"]),
    ({"ratio/ess": 0.49}, "log_prob", ["ratio/ess is 0.49:", "loss.ratio=token"]),
    ({"ratio/max": 1e9, "ratio/ess": 0.01}, "prob", ["ratio/max is 1e+09 and ratio/ess is 0.01:"]),
    ({"ratio/max": math.inf}, "prob", ["ratio/max is inf:"]),
    ({"reward/underflow": 0.11}, "prob", ["reward/underflow is 11%", "reward.name=avg_log_prob"]),
    ({"grader/failures": 3}, "base_rl", ["grader/failures is 3:", "report.sample_prompts"]),
    ({"judge/failures": 3}, "judge", ["judge/failures is 3:", "judge.timeout"]),
    ({"critic/unparsable": 0.6}, "adversarial", ["critic/unparsable is 60%", "sampler.max_chain"]),
    ({"env/out_of_turns": 0.6}, "log_prob", ["env/out_of_turns is 60%", "sampler.max_turns"]),
    ({"env/failures": 2}, "log_prob", ["env/failures is 2:"]),
]
OF_THEIR_OWN = {"over-optimisation", "critic"}  # they look back over many steps and have tests of their own


@pytest.mark.parametrize("wrong, reward, parts", WRONG, ids=lambda x: " ".join(x) if isinstance(x, dict) else "")
def test_an_alarm_is_raised_once(wrong, reward, parts):
    alarms = started(reward)
    (sentence,) = alarms.check(17, HEALTHY | wrong)
    assert sentence.startswith("step 17: ") and "\n" not in sentence
    for part in parts:
        assert part in sentence
    assert alarms.check(18, HEALTHY | wrong) == []
    assert alarms.check(19, HEALTHY) == []
    assert alarms.check(20, HEALTHY | wrong) == [], "it does not come back"
    assert len(alarms.raised) == 1 and alarms.raised < set(ALARMS)


@pytest.mark.parametrize(
    "edge",
    [
        {"policy/entropy": 0.051},  # far below the start, not near 0 in itself
        {"chain/length": 30.0},
        {"chain/truncated": 0.5},
        {"reward/zero_std_groups": 0.5},
        {"ratio/max": 10.0},
        {"ratio/ess": 0.5},
        {"reward/underflow": 0.1},
        {"grader/failures": 0},
        {"policy/entropy": math.nan, "chain/length": math.nan, "ratio/max": math.nan, "ratio/ess": math.nan},
    ],
)
def test_nothing_is_said_at_the_threshold(edge):
    assert started("prob").check(6, HEALTHY | edge) == []


@pytest.mark.parametrize("reward, success", [("math", "reward/math"), ("log_prob", "reward/prob")])
def test_groups_that_are_all_right_raise_no_alarm(reward, success):
    same = HEALTHY | {"reward/zero_std_groups": 0.9}
    assert started(reward).check(6, same | {success: 0.95}) == []
    (sentence,) = started(reward).check(6, same | {success: 0.05})
    assert "reward/zero_std_groups is 90%" in sentence


def test_a_policy_of_low_entropy_from_the_start_has_not_collapsed():
    alarms = Alarms(terms_of("log_prob"), "floor")
    for step in range(1, 50):
        assert alarms.check(step, {"policy/entropy": 0.02}) == []
    assert len(alarms.check(50, {"policy/entropy": 0.0019})) == 1


def test_the_start_is_the_first_five_values_and_is_never_judged():
    alarms = Alarms(terms_of("log_prob"), "floor")
    for step, entropy in enumerate([2.0, 0.001, 0.001, 0.001, 0.001], 1):
        assert alarms.check(step, {"policy/entropy": entropy}) == []
    assert alarms.start("policy/entropy") == pytest.approx(0.4008) and alarms.start("chain/length") is None
    assert len(alarms.check(6, {"policy/entropy": 0.04})) == 1
    assert alarms.start("policy/entropy") == pytest.approx(0.4008)


def test_missing_metrics_are_not_judged_and_do_not_count_as_seen():
    alarms = Alarms(terms_of("prob"), "floor")
    for step in range(20):
        assert alarms.check(step, {}) == []
        assert alarms.check(step, {"policy/entropy": None, "stage": "warm-up"}) == []
    for step in range(FIRST_STEPS):
        assert alarms.check(step, HEALTHY | {"policy/entropy": math.nan}) == []
    assert alarms.start("policy/entropy") is None and alarms.start("chain/length") == 90
    assert alarms.check(30, {"policy/entropy": 0.0}) == []


def test_numpy_numbers_are_numbers():
    assert len(started().check(6, {"chain/truncated": np.float32(0.9), "grader/failures": np.int64(1)})) == 2


def test_several_alarms_at_once_each_in_its_sentence():
    everything = {k: v for wrong, _, _ in WRONG for k, v in wrong.items() if not k.startswith("env/")}
    sentences = started("prob").check(9, HEALTHY | everything)
    of_conversations = {"cut conversations", "environment failures"}
    assert len(sentences) == len(set(sentences)) == len(ALARMS.keys() - OF_THEIR_OWN - of_conversations) == 9


@pytest.mark.parametrize(
    "reward, truncated, says, says_not",
    [
        ("log_prob", "force_close", "set reward.truncated=floor", "drop"),
        ("jepo", "force_close", "set reward.truncated=floor", "drop"),
        ("log_prob", "drop", "reward.truncated=drop they are left out", "floor"),
        ("log_prob", "floor", "prompt.examples", "reward.truncated"),
        ("0.9*rlpr + 0.1*format", "force_close", "set reward.truncated=floor", "drop"),
        ("base_rl", "force_close", "prompt.examples", "reward.truncated"),  # the floor is for log-probs
        ("format + nover_rank", "force_close", "prompt.examples", "reward.truncated"),
    ],
)
def test_the_remedy_for_open_chains_depends_on_the_policy_in_force(reward, truncated, says, says_not):
    (sentence,) = started(reward, truncated).check(6, HEALTHY | {"chain/truncated": 1.0})
    assert "chain/truncated is 100%" in sentence and "sampler.max_chain" in sentence
    assert says in sentence and says_not not in sentence


def test_underflow_concerns_only_the_reward_that_underflows():
    for reward in ("prob", "0.9*prob + 0.1*format", "format + prob/std", "cer"):
        assert len(started(reward).check(6, HEALTHY | {"reward/underflow": 1.0})) == 1, reward
    for reward in ("log_prob", "avg_log_prob", "avg_prob", "geo_mean_prob", "jepo", "base_rl", "0.5*avg_prob + format"):
        assert started(reward).check(6, HEALTHY | {"reward/underflow": 1.0}) == [], reward


def test_supervision_samples_no_chains():
    alarms = Alarms((), "force_close")
    everything = {k: v for wrong, _, _ in WRONG for k, v in wrong.items()}
    for step in range(10):
        assert alarms.check(step, HEALTHY | {"grader/failures": 0}) == []
    (sentence,) = alarms.check(11, HEALTHY | everything)
    assert "grader/failures" in sentence


def judged(steps, proxy, known, noise=0.02, success="reward/exact_match", reward="reward_model", **other):
    """The sentences of so many steps in which proxy and known success move by so much a step."""
    alarms, said, rng = Alarms(terms_of(reward), "force_close"), [], np.random.default_rng(0)
    for step in range(1, steps + 1):
        values = {f"reward/{reward}": proxy * step, success: 0.5 + known * step}
        said += alarms.check(step, other | {k: v + noise * rng.normal() for k, v in values.items()})
    return said


def test_a_judge_that_is_pleased_while_success_falls_is_over_optimised():
    (sentence,) = judged(45, 0.01, -0.005)
    assert "reward/reward_model" in sentence and "reward/exact_match" in sentence and "loss.kl" in sentence
    assert sentence.startswith("step 40: ")
    for steps, proxy, known in ((39, 0.01, -0.005), (60, 0.01, 0.005), (60, -0.01, -0.005), (60, 0, 0)):
        assert judged(steps, proxy, known) == [], (steps, proxy, known)
    assert judged(45, 0.01, -0.005, reward="adversarial") == [], "a critic is no judge to be pleased"


@pytest.mark.parametrize("success", ["reward/numeric", "reward/nearest_option", "env/success"])
def test_success_is_by_the_grader_that_the_reward_names(success):
    """exact_match is logged beside it, and is 0 where no answer is the reference word for word."""
    (sentence,) = judged(45, 0.01, -0.005, success=success, **{"reward/exact_match": 0.0})
    assert f"while {success} fell" in sentence


def test_a_critic_that_is_never_wrong_is_named():
    for accuracy, steps, says in ((0.97, 20, 1), (0.97, 19, 0), (0.94, 40, 0)):
        alarms = Alarms(terms_of("adversarial"), "force_close")
        said = [x for step in range(1, steps + 1) for x in alarms.check(step, {"critic/accuracy": accuracy})]
        assert len(said) == says and all("critic/accuracy" in x and "adversarial.lr" in x for x in said)


def test_a_critic_that_only_says_tie_is_named():
    alarms = Alarms(terms_of("adversarial"), "force_close")
    said = [x for step in range(1, 21) for x in alarms.check(step, {"critic/accuracy": 0.5, "critic/tie": 0.96})]
    assert len(said) == 1 and "critic/tie" in said[0] and "adversarial.tau_critic" in said[0]


def test_a_new_alarms_object_says_it_again():
    for _ in range(2):
        assert len(started().check(6, HEALTHY | {"chain/truncated": 0.9})) == 1


def test_every_remedy_is_a_field_and_a_value_that_exist():
    named = set()
    for wrong, reward, _ in WRONG:
        for truncated in ("force_close", "floor", "drop"):
            (sentence,) = started(reward, truncated).check(6, HEALTHY | wrong)
            fields = re.findall(r"\b([a-z_]+)\.([a-z_]+)(?:=([\w.]+))?", sentence.replace("samples.jsonl", ""))
            assert fields, sentence
            named.update(fields)
    c = get_config()
    for section, field, value in named:
        assert section in c and field in c[section], f"{section}.{field}"
        choices = choices_of(all_fields()[f"{section}.{field}"][0]) or (value,)
        assert not value or value in choices, f"{section}.{field}={value}"
    values = {f"{section}.{field}": value for section, field, value in named if value}
    assert {"reward.name", "reward.truncated", "loss.kl", "loss.ratio", "model.compute_dtype"} <= set(values)
    assert values["reward.name"] in OBJECTIVES


def test_which_rewards_alarms_are_for():
    named = lambda flag: {name for name, reward in REWARDS.items() if getattr(reward, flag)}
    of_tokens = {
        "weighted_log_prob",
        "weighted_avg_prob",
        "nrt",
        "r3",
        "log_prob_any",
        "option_prob",
        "likelihood_gain",
    }
    assert named("floored") == {*OBJECTIVES, *of_tokens, "rlpr", "cer", "vr_cli"}
    assert named("underflows") == {"prob", "cer"}
    assert named("judges_alone") == {"judge", "reward_model", "rubric", "adversarial"}


def test_a_reward_of_ones_own_raises_the_alarms_of_its_row(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from rl_likelihood.rewards.reward import Reward\n"
        "REWARDS = {'mine': Reward(lambda logp, mask: logp.sum(-1), 'score', 'mine', underflows=True)}\n"
    )
    alarms = Alarms(parse_reward("mine", str(tmp_path / "mine.py")), "force_close")
    floor, underflow = alarms.check(1, {"chain/truncated": 0.9, "reward/underflow": 0.9})
    assert "set reward.truncated=floor" in floor and "reward/underflow is 90%" in underflow


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(sorted(HEALTHY)), st.floats(), max_size=10), max_size=12),
    st.sampled_from(["prob", "base_rl", "sft", "log_prob + 0.1*format"]),
    st.sampled_from(["force_close", "floor", "drop"]),
)
def test_any_numbers_at_all_raise_each_alarm_at_most_once(steps, reward, truncated):
    alarms = Alarms(terms_of(reward), truncated)
    said = [s for step, metrics in enumerate(steps) for s in alarms.check(step, metrics)]
    assert len(said) == len(alarms.raised) <= len(ALARMS)
