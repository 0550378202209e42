"""A reward is a weighted sum of named terms; here they become the one f(group) of the surrogate.

    "log_prob"    "0.9*rlpr + 0.1*format + repetition"    "self_certainty/std + exact_match/std"

A term is an objective of the reference answer's log-probs (`likelihood.OBJECTIVES`, differentiable) or a
number for each row, constant for the gradient: `intrinsic.INTRINSIC`, those below, and whatever the host
computed from text (`HOST_REWARDS`). `/std` divides a term by its standard deviation within the group; what is
subtracted there is immaterial, because the surrogate takes differences. For row numbers f is their mean, so
a sum of terms has the sum of their differences and of their gradients.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_likelihood.rewards import intrinsic, likelihood, shaping
from rl_likelihood.rewards.intrinsic import SampledStats
from rl_likelihood.rewards.likelihood import Objective
from rl_likelihood.shapes import UserError

# Computed on the host from text: `run/host_rewards.py` says how. Those that read a sampled answer need one.
FROM_ANSWER = (
    "exact_match",
    "numeric",
    "math",
    "countdown",
    "multiple_choice",
    "telemath",
    "base_rl",
    "countdown_tinyzero",
    "majority_vote",
    "tool_call",
    "code_output",
    "code_tests",
    "reasoning_gym",
)
FROM_TEXT = ("format", "format_open_r1", "tag_count", "repetition", "random")
HOST_REWARDS = FROM_ANSWER + FROM_TEXT
# From scores, lengths and a proxy model, inside the step.
INSIDE = ("rlpr", "nover_rank", "nover_efficiency", "length", "overlong")
TERMS = (*likelihood.OBJECTIVES, *intrinsic.INTRINSIC, *INSIDE, *HOST_REWARDS)

_STD_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Term:
    """weight * name, or weight * name / (its standard deviation in the group)."""

    name: str
    weight: float = 1.0
    per_std: bool = False


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The terms and their constants."""

    terms: tuple[Term, ...] = (Term("log_prob"),)
    length_min: float = 100.0  # l0 of `length`, tokens
    overlong_max: float = 1024.0  # `overlong`: -1 beyond so many tokens,
    overlong_cache: float = 256.0  # from 0 at so many fewer
    entropy_base: str = "e"  # e | 2, of the entropy and trajectory rewards

    def uses(self, *names: str) -> bool:
        """Whether any of these is a term."""
        return any(t.name in names for t in self.terms)


class Observation(NamedTuple):
    """What terms may look at, for P groups of G rows."""

    logp: Float[Array, "P G T"]  # of every completion token, floored where the policy for open chains says so
    scored: Bool[Array, "P G T"]  # the reference answer's tokens that count
    keep: Bool[Array, "P G"]
    truncated: Bool[Array, "P G"]  # chains that never opened their answer
    sampled: SampledStats  # statistics of the tokens that the policy sampled
    chain_tokens: Float[Array, "P G"]
    host_rewards: dict[str, Float[Array, "P G"]]
    baseline: Float[Array, "P"] | None = None  # avg_prob of the reference answer without a chain, for rlpr
    proxy_nll: Float[Array, "P G"] | None = None  # mean over tokens, by the proxy model, for NOVER


_TERM = re.compile(
    r"\s*(?:(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*)?"
    r"(?P<name>[A-Za-z_]\w*)\s*(?P<std>/\s*std)?\s*(?P<more>\+|$)"
)


def parse(text: str) -> tuple[Term, ...]:
    """The terms of "0.9*rlpr + 0.1*format": names, each with `weight*` before it or `/std` after it.

    Raises UserError for what cannot be read, a name that is not in TERMS, a name twice.
    """
    terms, at, more = [], 0, "+"
    while more:
        m = _TERM.match(text, at)
        if m is None:
            raise UserError(
                f"reward.name is {text!r}, which cannot be read from {text[at:].strip()!r} on; write a name, or "
                "WEIGHT*NAME and NAME/std with + between them"
            )
        terms.append(Term(m["name"], float(m["weight"] or 1), bool(m["std"])))
        at, more = m.end(), m["more"]
    names = [t.name for t in terms]
    for name in names:
        if name not in TERMS:
            near = difflib.get_close_matches(name, TERMS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"reward.name has {name!r}; {hint}it must be of {', '.join(TERMS)}, or sft")
    if len(set(names)) < len(names):
        raise UserError(f"reward.name is {text!r}, which names a term twice; give it one weight")
    return tuple(terms)


def row_values(name: str, e: Observation, cfg: RewardConfig) -> Float[Array, "P G"]:
    """One term's number for each row, unweighted. jepo belongs to the group: its rows show their l_i."""
    if name in likelihood.OBJECTIVES:
        return likelihood.SCORES.get(name, likelihood.log_prob)(e.logp, e.scored)
    if name in intrinsic.INTRINSIC:
        return intrinsic.INTRINSIC[name](intrinsic.in_base(e.sampled, cfg.entropy_base))
    if name == "rlpr":
        score = likelihood.avg_prob(e.logp, e.scored)
        return score if e.baseline is None else shaping.improvement(score, e.baseline)
    if name in ("nover_rank", "nover_efficiency"):
        perplexity = shaping.perplexity(e.proxy_nll, e.chain_tokens)
        valid = (e.host_rewards["format"] > 0) & e.keep
        if name == "nover_rank":
            return shaping.perplexity_rank(perplexity, valid)
        return shaping.efficiency(perplexity, e.chain_tokens, valid)
    if name == "length":
        return shaping.length(e.chain_tokens, cfg.length_min)
    if name == "overlong":
        tokens = e.sampled.mask.sum(-1).astype(jnp.float32)
        return shaping.overlong(tokens, e.truncated, cfg.overlong_max, cfg.overlong_cache)
    return jnp.asarray(e.host_rewards[name])


def objective(
    e: Observation, cfg: RewardConfig, extra: Float[Array, "P G"] | float = 0.0
) -> tuple[Objective, Float[Array, "P G"], dict[str, Float[Array, "P G"]]]:
    """(f, the trained reward of each row, each term's own numbers). `extra` is added to the rows, as a constant.

    f(logp, mask, keep) is differentiable in logp through the likelihood terms; everything else, the
    standard deviations of `/std` too, is constant.
    """
    stop = jax.lax.stop_gradient
    rows = {t.name: stop(row_values(t.name, e, cfg)) for t in cfg.terms}
    constant, differentiable, total = jnp.zeros(e.keep.shape, jnp.float32) + extra, [], extra
    for t in cfg.terms:
        scale = jnp.full(e.keep.shape[:1], t.weight, jnp.float32)
        if t.per_std:
            values = rows[t.name]
            if t.name in likelihood.OBJECTIVES:  # of the accurate differences: the rows' own values are rounded
                score = likelihood.SCORES.get(t.name, likelihood.log_prob)
                values = stop(likelihood.relative(score, e.logp, e.scored, e.keep))
            std = shaping.group_std(values, e.keep)
            scale = jnp.where(std > _STD_EPS, scale / jnp.maximum(std, _STD_EPS), 0.0)
        total = total + scale[:, None] * rows[t.name]
        if t.name in likelihood.OBJECTIVES:
            differentiable.append((likelihood.OBJECTIVES[t.name], scale))
        else:
            constant = constant + scale[:, None] * rows[t.name]

    return likelihood.weighted_sum(stop(constant), differentiable), stop(total), rows
