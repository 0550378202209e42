"""A reward is a weighted sum of terms; here they become the one f(group) of the surrogate.

    "log_prob"    "0.9*rlpr + 0.1*format + repetition"    "self_certainty/std + exact_match/std"

A term is an objective of the reference answer's log-probs, differentiable, or a number for each row, constant for
the gradient. `/std` divides a term by its standard deviation within the group; what is subtracted there is
immaterial, because the surrogate takes differences. For row numbers f is their mean, so a sum of terms has the sum
of their differences and of their gradients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_likelihood.fields import did_you_mean
from rl_likelihood.rewards import likelihood, shaping
from rl_likelihood.rewards.likelihood import Objective
from rl_likelihood.rewards.reward import Observation, Reward, RewardConfig, Term
from rl_likelihood.shapes import UserError

_STD_EPS = 1e-6

_TERM = re.compile(
    r"\s*(?:(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*)?"
    r"(?P<name>[A-Za-z_]\w*)\s*(?P<std>/\s*std)?\s*(?P<more>\+|$)"
)


def parse(text: str, table: Mapping[str, Reward]) -> tuple[Term, ...]:
    """The terms of "0.9*rlpr + 0.1*format": names of `table`, each with `weight*` before it or `/std` after it.

    Raises UserError for what cannot be read, a name that is not in the table, a name twice, a term that needs another.
    """
    terms, at, more = [], 0, "+"
    while more:
        m = _TERM.match(text, at)
        if m is None:
            raise UserError(
                f"reward.name is {text!r}, which cannot be read from {text[at:].strip()!r} on; write a name, or "
                "WEIGHT*NAME and NAME/std with + between them"
            )
        name = m["name"]
        if name not in table:
            hint = did_you_mean(name, table)
            raise UserError(f"reward.name has {name!r}; {hint}it must be of {', '.join(table)}, or sft")
        weight = float(m["weight"] or 1)
        if abs(weight) > 1e38:
            raise UserError(f"reward.name is {text!r}; the weight of {name} is too large for a number of 32 bits")
        terms.append(Term(name, table[name], weight, bool(m["std"])))
        at, more = m.end(), m["more"]
    names = [t.name for t in terms]
    if len(set(names)) < len(names):
        raise UserError(f"reward.name is {text!r}, which names a term twice; give it one weight")
    for term in terms:
        for needed in term.reward.with_terms:
            if needed not in names:
                raise UserError(
                    f"reward.name is {text!r}; {term.name} counts rows of the term {needed}: write '{needed} + {text}'"
                )
    return tuple(terms)


def row_values(term: Term, observation: Observation, cfg: RewardConfig) -> Float[Array, "P G"]:
    """One term's number for each row, unweighted. A group objective's rows show their log-probs l_i."""
    reward = term.reward
    if reward.kind == "step":
        return reward.function(observation, cfg)
    if reward.on_host:
        return jnp.asarray(observation.host_rewards[term.name])
    score = reward.function if reward.kind == "score" else likelihood.log_prob
    return score(observation.logp, observation.scored)


def objective(
    observation: Observation, cfg: RewardConfig, extra: Float[Array, "P G"] | float = 0.0
) -> tuple[Objective, Float[Array, "P G"], dict[str, Float[Array, "P G"]]]:
    """(f, the trained reward of each row, each term's own numbers). `extra` is added to the rows, as a constant.

    f(logp, mask, keep) is differentiable in logp through the likelihood terms; everything else, the
    standard deviations of `/std` too, is constant.
    """
    stop, keep = jax.lax.stop_gradient, observation.keep
    rows = {t.name: stop(row_values(t, observation, cfg)) for t in cfg.terms}
    constant, differentiable, total = jnp.zeros(keep.shape, jnp.float32) + extra, [], extra
    for t in cfg.terms:
        scale = jnp.full(keep.shape[:1], t.weight, jnp.float32)
        if t.per_std:
            # Of rows relative to the best, which keep the digits that their own values have lost.
            score = t.reward.function if t.reward.kind == "score" else likelihood.log_prob
            accurate = likelihood.relative(score, observation.logp, observation.scored, keep)
            std = shaping.group_std(stop(accurate) if t.reward.differentiable else rows[t.name], keep)
            scale = jnp.where(std > _STD_EPS, scale / jnp.maximum(std, _STD_EPS), 0.0)
        total = total + scale[:, None] * rows[t.name]
        if t.reward.differentiable:
            of_group = t.reward.function
            differentiable.append((of_group if t.reward.kind == "group" else likelihood.mean_of(of_group), scale))
        else:
            constant = constant + scale[:, None] * rows[t.name]

    return likelihood.weighted_sum(stop(constant), differentiable), stop(total), rows
