"""The table of rewards: one row each. Graders are rewards too; `config.reward_table` adds a row for each.

Adding a reward is adding a function and its row (CONTRIBUTING.md has a worked example of every kind).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rl_likelihood.rewards import intrinsic, likelihood, rules, shaping
from rl_likelihood.rewards.reward import HostInputs, Observation, Reward, RewardConfig

Rows = Float[Array, "P G"]


def _intrinsic(name: str):
    def of_sampled(observation: Observation, cfg: RewardConfig) -> Rows:
        return intrinsic.INTRINSIC[name](intrinsic.in_base(observation.sampled, cfg.entropy_base))

    return of_sampled


def rlpr(observation: Observation, cfg: RewardConfig) -> Rows:
    """avg_prob, or what it exceeds the baseline by, clipped to [0, 1]."""
    score = likelihood.avg_prob(observation.logp, observation.scored)
    return score if observation.baseline is None else shaping.improvement(score, observation.baseline)


def _nover(observation: Observation) -> tuple[Rows, Array]:
    perplexity = shaping.perplexity(observation.proxy_nll, observation.chain_tokens)
    return perplexity, (observation.host_rewards["format"] > 0) & observation.keep


def nover_rank(observation: Observation, cfg: RewardConfig) -> Rows:
    """(m - rank of perplexity) / m among the m rows in the format."""
    return shaping.perplexity_rank(*_nover(observation))


def nover_efficiency(observation: Observation, cfg: RewardConfig) -> Rows:
    """Share of rows that are longer and have the worse perplexity."""
    perplexity, valid = _nover(observation)
    return shaping.efficiency(perplexity, observation.chain_tokens, valid)


def length(observation: Observation, cfg: RewardConfig) -> Rows:
    """min(tokens - length_min, 0)."""
    return shaping.length(observation.chain_tokens, cfg.length_min)


def overlong(observation: Observation, cfg: RewardConfig) -> Rows:
    """0, falling to -1 at overlong_max sampled tokens; -1 for a chain that never opens its answer."""
    tokens = observation.sampled.mask.sum(-1).astype(jnp.float32)
    return shaping.overlong(tokens, observation.truncated, cfg.overlong_max, cfg.overlong_cache)


def format_open_r1(text: str, tags: rules.Tags) -> float:
    """1 where open-r1's stricter rule matches, whose tags stand on lines of their own."""
    return rules.format_open_r1(text)


def repetition(text: str, tags: rules.Tags) -> float:
    """-1 where ten words in a row occur ten times."""
    return rules.repetition(text)


def majority_vote(inputs: HostInputs) -> np.ndarray:
    """1 where the answer is the plurality of its group."""
    return rules.majority_vote(inputs.answers, inputs.same, inputs.candidate)


def random(inputs: HostInputs) -> np.ndarray:
    """A coin, the same in a resumed run."""
    return rules.random_reward(inputs.uid, inputs.group_size, inputs.seed)


def _scaled(outcomes: list[list[bool | None]], scale: tuple[float, ...]) -> np.ndarray:
    return np.asarray([[rules.scaled(right, scale) for right in group] for group in outcomes], np.float32)


def base_rl(inputs: HostInputs) -> np.ndarray:
    """reward.base_rl: right, wrong, not in the format."""
    return _scaled(inputs.outcome("exact_match"), inputs.cfg.base_rl)


def countdown_tinyzero(inputs: HostInputs) -> np.ndarray:
    """1 right, 0.1 wrong, 0 not an expression (TinyZero)."""
    return _scaled(inputs.outcome("countdown"), rules.TINYZERO)


def environment(inputs: HostInputs) -> np.ndarray:
    """How the environment pays the conversation (env.name)."""
    return inputs.outcomes.reward


def calls_f1(inputs: HostInputs) -> np.ndarray:
    """F1 of the conversation's tool calls and the reference calls, where the environment has them."""
    return inputs.outcomes.calls_f1


_ANSWER, _VOTE = ("chain", "answer", "reference"), ("chain", "answer", "group")
_SAMPLED = ("chain", "answer")  # statistics of whatever was sampled

REWARDS: dict[str, Reward] = {
    # Likelihood of the reference answer: a row of likelihood.SCORES, or a group's value that is no mean.
    **{name: Reward(score, "score", score.__doc__) for name, score in likelihood.SCORES.items()},
    "jepo": Reward(likelihood.jepo, "group", likelihood.log_mean_exp.__doc__, ("chain", "reference", "group")),
    "rlpr": Reward(rlpr, "step", rlpr.__doc__, span="response"),
    "nover_rank": Reward(nover_rank, "step", nover_rank.__doc__, span="response", with_terms=("format",), proxy=True),
    "nover_efficiency": Reward(
        nover_efficiency, "step", nover_efficiency.__doc__, span="response", with_terms=("format",), proxy=True
    ),
    # No reference answer: statistics of the sampled tokens, or the other answers of the group.
    **{name: Reward(_intrinsic(name), "step", f.__doc__, _SAMPLED) for name, f in intrinsic.INTRINSIC.items()},
    "majority_vote": Reward(majority_vote, "host", majority_vote.__doc__, _VOTE),
    "random": Reward(random, "host", random.__doc__, (), "response"),
    # Rules.
    "base_rl": Reward(base_rl, "host", base_rl.__doc__, _ANSWER),
    "countdown_tinyzero": Reward(countdown_tinyzero, "host", countdown_tinyzero.__doc__, _ANSWER),
    "environment": Reward(environment, "host", environment.__doc__, ("chain",), conversation=True),
    "calls_f1": Reward(calls_f1, "host", calls_f1.__doc__, ("chain", "reference"), conversation=True),
    "format": Reward(rules.format, "text", rules.format.__doc__, ("chain",)),
    "format_open_r1": Reward(format_open_r1, "text", format_open_r1.__doc__, ("chain",)),
    "tag_count": Reward(rules.tag_count, "text", rules.tag_count.__doc__, ("chain",)),
    # Shaping: give these a weight.
    "length": Reward(length, "step", length.__doc__, ("chain",)),
    "overlong": Reward(overlong, "step", overlong.__doc__, ("chain",)),
    "repetition": Reward(repetition, "text", repetition.__doc__, ("chain",)),
}


def grader_reward(about: str) -> Reward:
    """The row of a grader: 1 where the sampled answer is right."""
    return Reward(None, "grader", about, _ANSWER)
