"""Parses a reward, a weighted sum of terms, and builds the one f(group) of the surrogate from it.

    "log_prob"    "0.9*rlpr + 0.1*format + repetition"    "self_certainty/std + exact_match/std"    "max_rl(math)"

A term is either a differentiable objective of the reference answer's log-probs, or a constant number for each row,
whose f is the mean over rows. `/std` divides a term by its standard deviation within the group. (No mean is subtracted,
because the surrogate takes differences.) The differences and gradients of a sum are the sums of those of its terms.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from decimal import Decimal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_likelihood.errors import UserError
from rl_likelihood.fields import did_you_mean
from rl_likelihood.rewards import likelihood, shaping
from rl_likelihood.rewards.likelihood import Objective
from rl_likelihood.rewards.reward import Observation, Reward, RewardConfig, Term

_STD_EPS = 1e-6
MAX_WEIGHT = 1e6  # of a term: the squares of its gradients are finite in float32

_TERM = re.compile(
    r"\s*(?:(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*)?"
    r"(?P<name>[A-Za-z_]\w*)\s*(?:\(\s*(?P<of>[A-Za-z_]\w*)\s*\))?\s*(?P<std>/\s*std)?\s*(?P<more>\+|$)"
)


def parse(text: str, table: Mapping[str, Reward]) -> tuple[Term, ...]:
    """The terms of a text such as "0.9*rlpr + 0.1*format": names of `table`, with optional `WEIGHT*` before and `/std`
    after each.

    Raises UserError for text that cannot be parsed, an unknown or repeated name, a term without the other term that it
    needs, and wrong or missing brackets.
    """
    terms, position, joined = [], 0, "+"
    while joined:
        m = _TERM.match(text, position)
        if m is None:
            unreadable = f", which cannot be read from {text[position:].strip()!r} on" if text.strip() else ""
            raise UserError(
                f"reward.name is {text!r}{unreadable}; write a name, or WEIGHT*NAME and NAME/std with + between them"
            )
        terms.append(_term(m, table))
        position, joined = m.end(), m["more"]
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
    """One term of the sum: NAME, or NAME(OTHER) for a reward that is computed from another reward's 0/1 values."""
    name, inner_name = m["name"], m["of"]
    for used in filter(None, (name, inner_name)):
        if used not in table:
            hint = did_you_mean(used, table)
            raise UserError(f"reward.name has {used!r}; {hint}it must be of {', '.join(table)}, or sft")
    reward, weight, per_std = table[name], float(m["weight"] or 1), bool(m["std"])
    if Decimal(m["weight"] or 1) and not 1e-38 < abs(weight) <= MAX_WEIGHT:
        raise UserError(
            f"reward.name has {m[0].strip()!r}; the weight of {name} must be 0, or a number of 32 bits that is at most "
            f"{MAX_WEIGHT:.10g}"
        )
    if reward.kind != "outcome":
        if inner_name:
            raise UserError(
                f"reward.name has {name}({inner_name}), but {name} takes no other reward in brackets; write {name}"
            )
        return Term(name, reward, weight, per_std)
    if not inner_name:
        raise UserError(f"reward.name has {name!r} alone, but it needs a grader in brackets; write {name}(exact_match)")
    inner = table[inner_name]
    if not inner.binary or not inner.on_host:
        raise UserError(
            f"reward.name has {name}({inner_name}), but the values of {inner_name} are not 0 or 1; put a grader in the "
            f"brackets, such as {name}(exact_match)"
        )
    outer = dataclasses.replace(reward, reads=inner.reads, span=inner.span)
    return Term(f"{name}({inner_name})", outer, weight, per_std, (inner_name, inner))


def built(term: Term, observation: Observation, cfg: RewardConfig) -> Objective | None:
    """The term's f(group); None for a term of constant row numbers, whose f is their mean."""
    reward = term.reward
    if reward.kind == "group":
        return reward.function
    if reward.kind == "score":
        return likelihood.mean_of(reward.function)
    if reward.kind == "built":
        return reward.function(observation, cfg)
    return reward.function(observation.host_rewards[term.of[0]]) if term.of else None


def token_weights(observation: Observation, cfg: RewardConfig) -> Float[Array, "P G A"] | None:
    """The weights of the answer's scored tokens, in order, from the first term with token weights; None without one."""
    for term in cfg.terms:
        if term.reward.kind == "built":
            weights = term.reward.function(observation, cfg).weights
            if weights is not None:
                return jnp.broadcast_to(weights, (*observation.keep.shape, weights.shape[-1]))
    return None


def row_values(term: Term, observation: Observation, cfg: RewardConfig) -> Float[Array, "P G"]:
    """One term's number for each row, without its weight. For a group objective such as jepo: the log-prob l_i."""
    reward = term.reward
    if reward.kind == "step":
        return reward.function(observation, cfg)
    if term.on_host:
        return jnp.asarray(observation.host_rewards[term.on_host[0]])
    if reward.kind == "built":
        score = reward.function(observation, cfg).score or likelihood.log_prob
    else:
        score = reward.function if reward.kind == "score" else likelihood.log_prob
    return score(observation.floored_logp, observation.scored)


def rows_above(term: Term, observation: Observation, cfg: RewardConfig) -> Float[Array, "P G"]:
    """`row_values`, less a number that the rows of a group share. It keeps the small differences between large numbers
    that rounding removes from the numbers themselves."""
    group = (observation.floored_logp, observation.scored, observation.keep)
    f = built(term, observation, cfg)
    if isinstance(f, Objective) and f.above:
        return f.above(*group)
    if term.reward.kind == "group":
        return likelihood.relative(likelihood.log_prob, *group)
    return term.reward.above(observation, cfg) if term.reward.above else row_values(term, observation, cfg)


def objective(
    observation: Observation, cfg: RewardConfig, extra: Float[Array, "P G"] | float = 0.0
) -> tuple[Objective, Float[Array, "P G"], dict[str, Float[Array, "P G"]]]:
    """(f, the trained reward of each row, each term's unweighted numbers). `extra`: a constant to add to each row.

    f(logp, mask, keep) is differentiable in logp through the likelihood terms. Everything else is constant, including
    the standard deviations of `/std`.
    """
    stop, keep = jax.lax.stop_gradient, observation.keep
    rows = {t.name: stop(row_values(t, observation, cfg)) for t in cfg.terms}
    constant = constant_above = jnp.zeros(keep.shape, jnp.float32) + extra
    objectives, total = [], extra
    for t in cfg.terms:
        scale = jnp.full(keep.shape[:1], t.weight, jnp.float32)
        above = stop(rows_above(t, observation, cfg))
        if t.per_std:
            std = shaping.group_std(above, keep)
            scale = jnp.where(std > _STD_EPS, scale / jnp.maximum(std, _STD_EPS), 0.0)
        total = total + scale[:, None] * rows[t.name]
        objective_of_term = built(t, observation, cfg)
        if objective_of_term is not None:
            objectives.append((objective_of_term, scale))
        else:
            constant = constant + scale[:, None] * rows[t.name]
            constant_above = constant_above + scale[:, None] * above

    return likelihood.weighted_sum(stop(constant), stop(constant_above), objectives), stop(total), rows
