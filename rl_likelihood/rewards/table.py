"""The table of rewards, one row each. Graders are rewards too: `tables.reward_table` adds a row for each grader.

To add a reward, write a function and its row. CONTRIBUTING.md lists the kinds and has examples of a likelihood reward,
a text rule and a grader.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rl_likelihood.rewards import alternatives, intrinsic, likelihood, rules, shaping, weighted
from rl_likelihood.rewards.cross import cer
from rl_likelihood.rewards.likelihood import Objective
from rl_likelihood.rewards.max_rl import max_rl
from rl_likelihood.rewards.reward import HostInputs, Observation, Reward, RewardConfig
from rl_likelihood.shapes import ALTERNATIVES, REJECTED

Rows = Float[Array, "P G"]


def _intrinsic(name: str):
    def of_sampled(observation: Observation, cfg: RewardConfig) -> Rows:
        return intrinsic.INTRINSIC[name](intrinsic.in_base(observation.policy, cfg.entropy_base))

    return of_sampled


def rlpr(observation: Observation, cfg: RewardConfig) -> Rows:
    """avg_prob; with a baseline, its excess over the baseline, clipped to [0, 1]."""
    score = likelihood.avg_prob(observation.floored_logp, observation.scored)
    return score if observation.baseline is None else shaping.improvement(score, observation.baseline)


def _rlpr_above(observation: Observation, cfg: RewardConfig) -> Rows:
    """rlpr less its best row's, from the differences of token log-probs."""
    seen = (observation.floored_logp, observation.scored)
    above = likelihood.relative(likelihood.avg_prob, *seen, observation.keep)
    if observation.baseline is None:
        return above
    gains = likelihood.avg_prob(*seen) - observation.baseline[:, None]
    return likelihood.clipped_above(gains, above, observation.keep)


def _without_chain(observation: Observation) -> tuple[Array, Array]:
    """(log-probs of the answer's tokens without a chain, the mask of the tokens); zeros if no term needs them."""
    n = jnp.where(observation.keep, observation.scored.sum(-1), 0).max(-1, keepdims=True)
    width = observation.floored_logp.shape[-1]
    if observation.no_chain_logp is None:
        return jnp.zeros((n.shape[0], width)), jnp.arange(width) < n
    base = observation.no_chain_logp[:, :width]  # rows may be narrower than prompt.max_answer
    return base, jnp.arange(base.shape[-1]) < n


def _token_weights(observation: Observation, kind: str) -> Array:
    """Weights of sum 1: [P, 1, A] from the answer without a chain, [P, G, A] from the other rows of the group."""
    base, answer_mask = _without_chain(observation)
    if kind != "spread":
        return weighted.base_weights(kind, base, answer_mask)[:, None]
    logp = jax.lax.stop_gradient(observation.floored_logp)
    tokens, first = weighted.answers_first(logp, observation.scored, base.shape[-1])
    return weighted.shares(weighted.spread_of_others(tokens, first, observation.keep), first)


def _sum_to_length(weights: Array, observation: Observation) -> Array:
    """Weights of mean 1."""
    return weights * likelihood.answer_tokens(observation.scored)[..., None]


def weighted_log_prob(observation: Observation, cfg: RewardConfig) -> Objective:
    """sum_t w_t log p_t, with the weights of reward.token_weights, scaled to mean 1."""
    weights = _sum_to_length(_token_weights(observation, cfg.token_weights), observation)
    if cfg.token_weights == "spread":
        return weighted.over_others(jnp.subtract, weights, observation.keep)
    return weighted.weighted(jnp.subtract, weights, jnp.zeros_like(weights[:, 0]))


def weighted_avg_prob(observation: Observation, cfg: RewardConfig) -> Objective:
    """sum_t w_t p_t, with the weights of reward.token_weights, scaled to sum 1."""
    weights = _token_weights(observation, cfg.token_weights)
    if cfg.token_weights == "spread":
        return weighted.over_others(likelihood.probability_difference, weights, observation.keep)
    return weighted.weighted(
        likelihood.probability_difference, weights, jnp.full_like(weights[:, 0], likelihood.LOWEST)
    )


def nrt(observation: Observation, cfg: RewardConfig) -> Objective:
    """max(0, sum_t w_t (p_t - its value without a chain)). Weights have sum 1 and come from these values."""
    base, answer_mask = _without_chain(observation)
    weights = weighted.base_weights(cfg.token_weights, base, answer_mask)
    return weighted.gain(weights, jnp.where(answer_mask, base, 0.0), cfg.clip_gain)


def r3(observation: Observation, cfg: RewardConfig) -> Objective:
    """sum_t w_t (log p_t - its value without a chain), with weights of mean 1 from the spread over the other rows."""
    base, answer_mask = _without_chain(observation)
    weights = _sum_to_length(_token_weights(observation, "spread"), observation)
    if observation.no_chain_logp is None:
        return weighted.over_others(jnp.subtract, weights, observation.keep)
    return weighted.weighted(jnp.subtract, weights, jnp.where(answer_mask, base, 0.0))


def likelihood_gain(observation: Observation, cfg: RewardConfig) -> Objective:
    """Mean over the tokens of (log p_t - its value without a chain)."""
    base, answer_mask = _without_chain(observation)
    equal = weighted.shares(jnp.ones_like(base), answer_mask)[:, None]
    gain = weighted.weighted(jnp.subtract, equal, jnp.where(answer_mask, base, 0.0))
    return dataclasses.replace(gain, weights=None)  # samples show weights only where they differ


def log_prob_any(observation: Observation, cfg: RewardConfig) -> Objective:
    """Log-probability of any right answer: the reference or one of its `alternatives`."""
    if observation.alternatives_logp is None:
        return likelihood.mean_of(likelihood.log_prob)
    return alternatives.log_prob_any(observation.alternatives_logp, observation.alternatives)


def option_prob(observation: Observation, cfg: RewardConfig) -> Objective:
    """Log-probability of the reference among the options: the reference and the row's `rejected` answers."""
    if observation.alternatives_logp is None:  # the only option
        return likelihood.mean_of(lambda logp, mask: 0 * likelihood.log_prob(logp, mask))
    return alternatives.option_prob(observation.alternatives_logp, observation.alternatives)


def _nover(observation: Observation) -> tuple[Rows, Array]:
    perplexity = shaping.perplexity(observation.proxy_nll, observation.chain_tokens)
    return perplexity, (observation.host_rewards["format"] > 0) & observation.keep


def nover_rank(observation: Observation, cfg: RewardConfig) -> Rows:
    """(m - k) / m, where k of the m rows in the format have a lower perplexity."""
    return shaping.perplexity_rank(*_nover(observation))


def nover_efficiency(observation: Observation, cfg: RewardConfig) -> Rows:
    """The share of the other rows in the format that are longer and have a higher perplexity."""
    perplexity, valid = _nover(observation)
    return shaping.efficiency(perplexity, observation.chain_tokens, valid)


def vr_cli(observation: Observation, cfg: RewardConfig) -> Rows:
    """0.5, 0.9 or 1 from a 0.05, 1 or 2 % lower perplexity than without a chain, else 0; by the initial model."""
    base, answer_mask = _without_chain(observation)
    nll = -jnp.where(answer_mask, base, 0.0).sum(-1) / jnp.maximum(answer_mask.sum(-1), 1)
    return shaping.vr_cli(observation.initial_nll, nll)


def cer_reward(observation: Observation, cfg: RewardConfig) -> Rows:
    """The reference's probability, averaged over chains with weights by how likely each makes the sampled answer."""
    prob = likelihood.prob(observation.floored_logp, observation.scored)
    return cer(observation.cross_logp, prob, observation.answered, observation.keep)


def length(observation: Observation, cfg: RewardConfig) -> Rows:
    """min(tokens - length_min, 0)."""
    return shaping.length(observation.chain_tokens, cfg.length_min)


def overlong(observation: Observation, cfg: RewardConfig) -> Rows:
    """0, falling linearly to -1 at overlong_max sampled tokens; -1 for a chain that never opens its answer."""
    tokens = observation.policy.mask.sum(-1).astype(jnp.float32)
    return shaping.overlong(tokens, observation.truncated, cfg.overlong_max, cfg.overlong_cache)


def majority_vote(inputs: HostInputs) -> np.ndarray:
    """1 if the answer is the most frequent one of its group."""
    return rules.majority_vote(inputs.answers, inputs.same, inputs.candidate)


def vote_share(inputs: HostInputs) -> np.ndarray:
    """The share of the group with the same answer."""
    return rules.vote_share(inputs.answers, inputs.candidate)


def prefix_token(inputs: HostInputs) -> np.ndarray:
    """1 if the answer is a prefix of the reference that ends at one of its token boundaries."""
    groups = zip(inputs.references, inputs.token_ends(), inputs.answers, strict=True)
    return np.asarray([[rules.token_prefix(text, ends, a) for a in group] for text, ends, group in groups], np.float32)


def random(inputs: HostInputs) -> np.ndarray:
    """0 or 1 at random, the same in a resumed run."""
    return rules.random_reward(inputs.uid, inputs.group_size, inputs.seed)


def _scaled(outcomes: list[list[bool | None]], scale: tuple[float, ...]) -> np.ndarray:
    return np.asarray([[rules.scaled(right, scale) for right in group] for group in outcomes], np.float32)


def base_rl(inputs: HostInputs) -> np.ndarray:
    """The numbers of reward.base_rl for an answer that is right, wrong, or not in the format."""
    return _scaled(inputs.outcome("exact_match"), inputs.cfg.base_rl)


def countdown_tinyzero(inputs: HostInputs) -> np.ndarray:
    """1 for a right expression, 0.1 for a wrong one, 0 for none (TinyZero)."""
    return _scaled(inputs.outcome("countdown"), rules.TINYZERO)


def environment(inputs: HostInputs) -> np.ndarray:
    """The reward that the environment env.name gives the conversation."""
    return inputs.outcomes.reward


def calls_f1(inputs: HostInputs) -> np.ndarray:
    """F1 score of the conversation's tool calls against the environment's reference calls."""
    return inputs.outcomes.calls_f1


_ANSWER, _VOTE = ("chain", "answer", "reference"), ("chain", "answer", "group")
_SAMPLED = ("chain", "answer")  # statistics of whatever was sampled

REWARDS: dict[str, Reward] = {
    # Likelihood of the reference answer.
    **{
        name: Reward(score, "score", score.__doc__, underflows=score is likelihood.prob)
        for name, score in likelihood.SCORES.items()
    },
    "jepo": Reward(likelihood.jepo, "group", likelihood.log_mean_exp.__doc__, ("chain", "reference", "group")),
    "weighted_log_prob": Reward(weighted_log_prob, "built", weighted_log_prob.__doc__, no_chain="weights"),
    "weighted_avg_prob": Reward(weighted_avg_prob, "built", weighted_avg_prob.__doc__, no_chain="weights"),
    "nrt": Reward(nrt, "built", nrt.__doc__, no_chain="must"),
    "r3": Reward(r3, "built", r3.__doc__, ("chain", "reference", "group"), no_chain="may"),
    "likelihood_gain": Reward(likelihood_gain, "built", likelihood_gain.__doc__, no_chain="must"),
    "log_prob_any": Reward(log_prob_any, "built", log_prob_any.__doc__, alternatives=ALTERNATIVES),
    "option_prob": Reward(option_prob, "built", option_prob.__doc__, alternatives=REJECTED),
    "rlpr": Reward(rlpr, "step", rlpr.__doc__, span="response", above=_rlpr_above),
    "nover_rank": Reward(
        nover_rank, "step", nover_rank.__doc__, span="response", with_terms=("format",), needs=("proxy",)
    ),
    "nover_efficiency": Reward(
        nover_efficiency, "step", nover_efficiency.__doc__, span="response", with_terms=("format",), needs=("proxy",)
    ),
    "cer": Reward(
        cer_reward,
        "step",
        cer_reward.__doc__,
        ("chain", "answer", "reference", "group"),
        needs=("cross",),
        underflows=True,
    ),
    "vr_cli": Reward(vr_cli, "step", vr_cli.__doc__, no_chain="must", needs=("initial",)),
    # Without a reference answer: from statistics of the sampled tokens, or from the other answers of the group.
    **{name: Reward(_intrinsic(name), "step", f.__doc__, _SAMPLED) for name, f in intrinsic.INTRINSIC.items()},
    "majority_vote": Reward(majority_vote, "host", majority_vote.__doc__, _VOTE, binary=True),
    "vote_share": Reward(vote_share, "host", vote_share.__doc__, _VOTE),
    "random": Reward(random, "host", random.__doc__, (), "response", binary=True),
    # Rules.
    "max_rl": Reward(max_rl, "outcome", max_rl.__doc__, _ANSWER),
    "base_rl": Reward(base_rl, "host", base_rl.__doc__, _ANSWER),
    "prefix_token": Reward(prefix_token, "host", prefix_token.__doc__, _ANSWER, binary=True),
    "countdown_tinyzero": Reward(countdown_tinyzero, "host", countdown_tinyzero.__doc__, _ANSWER),
    "environment": Reward(environment, "host", environment.__doc__, ("chain",), needs=("conversation",)),
    "calls_f1": Reward(calls_f1, "host", calls_f1.__doc__, ("chain", "reference"), needs=("conversation",)),
    "format": Reward(rules.format, "text", rules.format.__doc__, ("chain",), binary=True),
    "format_open_r1": Reward(rules.format_open_r1, "text", "1 if each tag is on its own line", ("chain",), binary=True),
    "tag_count": Reward(rules.tag_count, "text", rules.tag_count.__doc__, ("chain",)),
    # A second model that reads question and sampled answer.
    "judge": Reward(None, "judge", "P(yes) of judge.model, asked whether the answer is correct.", _SAMPLED),
    "reward_model": Reward(None, "judge", "Score of the reward model judge.model.", _SAMPLED),
    "pairwise": Reward(None, "judge", "How often judge.model prefers the answer to a random one of its group.", _VOTE),
    "rubric": Reward(None, "judge", "The judge's verdicts on the question's criteria, combined.", _SAMPLED),
    "similar_share": Reward(None, "judge", "The share of the group whose answers are similar to this one.", _VOTE),
    "adversarial": Reward(None, "judge", "Score of a critic that tells the data's answers from these.", _SAMPLED),
    # Shaping: give these a weight.
    "length": Reward(length, "step", length.__doc__, ("chain",)),
    "overlong": Reward(overlong, "step", overlong.__doc__, ("chain",)),
    "repetition": Reward(rules.repetition, "text", "-1 if ten words occur ten times", ("chain",)),
}


def grader_reward(about: str) -> Reward:
    """The row of a grader: 1 if the sampled answer is right."""
    return Reward(None, "grader", about, _ANSWER, binary=True)
