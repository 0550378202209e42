"""A reward is a weighted sum of terms; here they become the one f(group) of the surrogate.

    "log_prob"    "0.9*rlpr + 0.1*format + repetition"    "self_certainty/std + exact_match/std"    "max_rl(math)"

A term is an objective of the reference answer's log-probs, differentiable, or a number for each row, constant for
the gradient. `/std` divides a term by its standard deviation within the group; what is subtracted there is
immaterial, because the surrogate takes differences. For row numbers f is their mean, so a sum of terms has the sum
of their differences and of their gradients.
"""

from __future__ import annotations

import dataclasses
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
    r"(?P<name>[A-Za-z_]\w*)\s*(?:\(\s*(?P<of>[A-Za-z_]\w*)\s*\))?\s*(?P<std>/\s*std)?\s*(?P<more>\+|$)"
)


def parse(text: str, table: Mapping[str, Reward]) -> tuple[Term, ...]:
    """The terms of "0.9*rlpr + 0.1*format": names of `table`, each with `weight*` before it or `/std` after it.

    Raises UserError for what cannot be read, a name that is not in the table, a name twice, a term that needs another,
    brackets where there should be none, and none where there should be some.
    """
    terms, at, more = [], 0, "+"
    while more:
        m = _TERM.match(text, at)
        if m is None:
            where = f", which cannot be read from {text[at:].strip()!r} on" if text.strip() else ""
            raise UserError(
                f"reward.name is {text!r}{where}; write a name, or WEIGHT*NAME and NAME/std with + between them"
            )
        terms.append(_term(m, table))
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


def _term(m: re.Match[str], table: Mapping[str, Reward]) -> Term:
    """One term of the sum: NAME, or NAME(OTHER) for a reward that is made of another's 0/1 numbers."""
    name, of = m["name"], m["of"]
    for known in filter(None, (name, of)):
        if known not in table:
            hint = did_you_mean(known, table)
            raise UserError(f"reward.name has {known!r}; {hint}it must be of {', '.join(table)}, or sft")
    reward, weight, per_std = table[name], float(m["weight"] or 1), bool(m["std"])
    if abs(weight) > 1e38:
        raise UserError(f"reward.name has {m[0].strip()!r}; the weight of {name} is too large for a number of 32 bits")
    if reward.kind != "outcome":
        if of:
            raise UserError(f"reward.name has {name}({of}), but {name} is made of no other reward; write {name}")
        return Term(name, reward, weight, per_std)
    if not of:
        raise UserError(f"reward.name has {name!r} alone, which is made of right and wrong; write {name}(exact_match)")
    inner = table[of]
    if not inner.binary or not inner.on_host:
        raise UserError(
            f"reward.name has {name}({of}), but {of} is not a number that is 0 or 1; put a grader in the brackets, "
            f"such as {name}(exact_match)"
        )
    outer = dataclasses.replace(reward, reads=inner.reads, span=inner.span)
    return Term(f"{name}({of})", outer, weight, per_std, (of, inner))


def built(term: Term, observation: Observation, cfg: RewardConfig) -> Objective | None:
    """The term's f(group); None where that is the mean of a constant for each row."""
    reward = term.reward
    if reward.kind == "group":
        return reward.function
    if reward.kind == "score":
        return likelihood.mean_of(reward.function)
    if reward.kind == "built":
        return reward.function(observation, cfg)
    return reward.function(observation.host_rewards[term.of[0]]) if term.of else None


def token_weights(observation: Observation, cfg: RewardConfig) -> Float[Array, "P G A"] | None:
    """The weights of the answer's scored tokens, in order, of the first term that has some; None where none has."""
    for term in cfg.terms:
        if term.reward.kind == "built":
            weights = term.reward.function(observation, cfg).weights
            if weights is not None:
                return jnp.broadcast_to(weights, (*observation.keep.shape, weights.shape[-1]))
    return None


def row_values(term: Term, observation: Observation, cfg: RewardConfig) -> Float[Array, "P G"]:
    """One term's number for each row, unweighted. A group objective's rows show their log-probs l_i."""
    reward = term.reward
    if reward.kind == "step":
        return reward.function(observation, cfg)
    if term.on_host:
        return jnp.asarray(observation.host_rewards[term.on_host[0]])
    if reward.kind == "built":
        score = reward.function(observation, cfg).score or likelihood.log_prob
    else:
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
    constant, objectives, total = jnp.zeros(keep.shape, jnp.float32) + extra, [], extra
    for t in cfg.terms:
        scale = jnp.full(keep.shape[:1], t.weight, jnp.float32)
        if t.per_std:
            values = rows[t.name]
            if t.reward.kind in ("score", "group"):
                # Of rows relative to the best, which keep the digits that their own values have lost.
                score = t.reward.function if t.reward.kind == "score" else likelihood.log_prob
                values = stop(likelihood.relative(score, observation.logp, observation.scored, keep))
            std = shaping.group_std(values, keep)
            scale = jnp.where(std > _STD_EPS, scale / jnp.maximum(std, _STD_EPS), 0.0)
        total = total + scale[:, None] * rows[t.name]
        of_group = built(t, observation, cfg)
        if of_group is not None:
            objectives.append((of_group, scale))
        else:
            constant = constant + scale[:, None] * rows[t.name]

    return likelihood.weighted_sum(stop(constant), objectives), stop(total), rows
