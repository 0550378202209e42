"""What a reward is: a row of the table, a term of the trained sum, and what its function is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.fields import field
from rl_likelihood.rewards.intrinsic import SampledStats
from rl_likelihood.shapes import Alternatives, Outcomes


@dataclasses.dataclass(frozen=True)
class Reward:
    """A row of the table. `kind` says how `function` is called, and what it gives:

    score   (logp [P, G, A], mask [P, G, A]) -> [P, G]: from the reference answer's log-probs, differentiable;
            the group's value is the mean over its rows
    group   (logp, mask, keep [P, G]) -> [P]: the same, but the group's value is no mean of rows
    built   (observation, cfg) -> Objective: the same, with constants of the step, such as weights of tokens
    outcome (right [P, G]) -> Objective: of another reward's 0/1 numbers, written NAME(OTHER)
    step    (observation, cfg) -> [P, G]: inside the jitted step, constant for the gradient
    text    (text, tags) -> float: of one whole response, on the host
    host    (HostInputs) -> [P, G]: of all responses, on the host
    grader  1 where a grader says that the sampled answer is right; no function here
    judge   what a second model says of the sampled answer; no function here (config group `judge`)

    `reads`: chain, answer (the sampled one), reference, group. A reward that reads the sampled answer makes the
    sampler write one, and by default credits it together with the chain; `span` overrides what is credited.
    """

    function: Callable[..., Any] | None
    kind: Literal["score", "group", "built", "outcome", "step", "text", "host", "grader", "judge"]
    about: str
    reads: tuple[str, ...] = ("chain", "reference")
    span: Literal["auto", "chain", "response"] = "auto"
    with_terms: tuple[str, ...] = ()  # other terms that must stand in the same sum
    proxy: bool = False  # needs NOVER's proxy model
    conversation: bool = False  # needs an environment
    binary: bool = False  # its numbers are 0 or 1
    cross: bool = False  # needs every sampled answer's log-prob after every chain of its group
    initial: bool = False  # needs the initial model, as a scorer that never moves
    alternatives: bool = False  # reads other answers that are as good
    # The answer's token log-probs without a chain: read where reward.baseline gives them, where reward.token_weights
    # is made of them, or always.
    no_chain: Literal["no", "may", "weights", "must"] = "no"

    @property
    def differentiable(self) -> bool:
        """Whether the reward has a gradient of its own through the answer's tokens."""
        return self.kind in ("score", "group", "built")

    @property
    def on_host(self) -> bool:
        """Whether its values come with the batch."""
        return self.kind in ("text", "host", "grader", "judge")

    @property
    def reads_answer(self) -> bool:
        """Whether it needs an answer that the policy sampled."""
        return "answer" in self.reads and (self.cross or self.kind in ("host", "grader", "judge", "outcome"))

    @property
    def credits(self) -> str:
        """What the policy term covers by default: chain | response."""
        return ("response" if "answer" in self.reads else "chain") if self.span == "auto" else self.span


@dataclasses.dataclass(frozen=True)
class Term:
    """weight * reward, or weight * reward / (its standard deviation in the group). `of`: the reward in brackets."""

    name: str
    reward: Reward = dataclasses.field(repr=False)
    weight: float = 1.0
    per_std: bool = False
    of: tuple[str, Reward] | None = dataclasses.field(default=None, repr=False)

    @property
    def on_host(self) -> tuple[str, Reward] | None:
        """Name and row of what the host computes for this term, if it computes anything."""
        return self.of or ((self.name, self.reward) if self.reward.on_host else None)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The trained reward: a weighted sum of terms, and their constants. `terms` is `name`, parsed once."""

    name: str = field(
        "log_prob",
        'a reward of docs/rewards.md, a weighted sum as "0.9*rlpr + 0.1*format" or "self_certainty/std + math/std", '
        "or sft: supervised on the reference answer",
    )
    file: str = field("", "your own Python file with more REWARDS or GRADERS (CONTRIBUTING.md)")
    truncated: Literal["force_close", "floor", "drop"] = field(
        "force_close", "a chain that never opens the answer gets the missing tags, gets reward.floor, or is dropped"
    )
    floor: float = field(-10.0, 'log-prob of each answer token after such a chain, with truncated="floor"', below=0)
    base_rl: tuple[float, ...] = field((1.0, 0.1, 0.0), "base_rl: right; wrong but in the format; not in the format")
    baseline: Literal["none", "frozen", "live"] = field(
        "none",
        "model that scores the answer without a chain: the initial (frozen) or the current one (live); for rlpr, nrt, "
        "r3, vr_cli and reward.token_weights",
    )
    token_weights: Literal["none", "inverse", "neg_log", "spread"] = field(
        "none",
        "of the answer's tokens, in weighted_log_prob, weighted_avg_prob and nrt: 1/p or -log p without a chain, or "
        "the standard deviation of log p over the group",
    )
    clip_gain: bool = field(True, "nrt: a chain that is worse than no chain gets 0 instead of a negative reward")
    length_min: float = field(100.0, "tokens below which `length` = min(tokens - this, 0) is negative", least=0)
    overlong_max: float = field(
        0.0, "sampled tokens from which `overlong` is -1; 0: the most that a row may have", least=0
    )
    overlong_cache: float = field(
        0.0, "tokens before overlong_max over which it falls from 0 to -1; 0: a quarter of overlong_max", least=0
    )
    entropy_base: Literal["e", "2"] = field("e", "unit of entropy and trajectory rewards: nats or bits")
    vote_train: int = field(
        0, "rows of each group that are trained on; majority_vote still counts all; 0: all", least=0
    )
    sft_chain: Literal["none", "answer", "both"] = field(
        "none", "sft: train the answer alone, the answer after the data's chain, or chain and answer"
    )
    terms: tuple[Term, ...] = ()

    @property
    def supervised(self) -> bool:
        """Whether nothing is sampled: the reference answers are what is learned."""
        return self.name == "sft"

    @property
    def by_spread(self) -> bool:
        """Whether weights of tokens come from the group."""
        return self.token_weights == "spread" or self.has("r3")

    @property
    def reads_no_chain(self) -> bool:
        """Whether a term reads the answer's token log-probs without a chain."""
        return self.baseline != "none" and any(
            t.reward.no_chain in ("may", "must")
            or (t.reward.no_chain == "weights" and self.token_weights in ("inverse", "neg_log"))
            for t in self.terms
        )

    @property
    def frozen_score(self) -> bool:
        """Whether rlpr takes off the answer's score under the initial model."""
        return self.baseline == "frozen" and self.has("rlpr")

    @property
    def frozen_tokens(self) -> bool:
        """Whether a term reads the answer's token log-probs without a chain under the initial model."""
        return self.baseline == "frozen" and self.reads_no_chain

    @property
    def host_terms(self) -> dict[str, Reward]:
        """What the host computes for the terms, by name."""
        return dict(t.on_host for t in self.terms if t.on_host)

    @property
    def judged(self) -> str:
        """The term that a second model says; "" where none does."""
        return next((t.name for t in self.terms if t.reward.kind == "judge"), "")

    def has(self, *names: str) -> bool:
        """Whether any of these is a term."""
        return any(t.name in names for t in self.terms)


class Observation(NamedTuple):
    """What rewards of kind `step` may look at, for P groups of G rows."""

    logp: Float[Array, "P G T"]  # of every completion token, floored where reward.truncated says so
    scored: Bool[Array, "P G T"]  # the reference answer's tokens that count
    keep: Bool[Array, "P G"]
    truncated: Bool[Array, "P G"]  # chains that never opened their answer
    sampled: SampledStats  # statistics of the tokens that the policy sampled
    chain_tokens: Float[Array, "P G"]
    host_rewards: dict[str, Float[Array, "P G"]]
    baseline: Float[Array, "P"] | None = None  # avg_prob of the reference answer without a chain, for rlpr
    proxy_nll: Float[Array, "P G"] | None = None  # mean over tokens, by the proxy model, for NOVER
    cross_logp: Float[Array, "P G G"] | None = None  # of row j's sampled answer after row s's chain, for CER
    answered: Bool[Array, "P G"] | None = None  # rows with a sampled answer
    initial_nll: Float[Array, "P G"] | None = None  # mean over tokens, by the initial model, for VR-CLI
    no_chain_logp: Float[Array, "P A"] | None = None  # of the answer's scored tokens, in order, without a chain
    alternatives: Alternatives | None = None  # other answers that are as good
    alternatives_logp: Float[Array, "P G B"] | None = None  # of their tokens after each chain


class HostInputs(NamedTuple):
    """What rewards of kind `host` may look at, for P groups of G rows. An answer is None where the row is not in the
    format; `outcome(grader)` says True, False or None (cannot be read) of every answer [P][G]."""

    answers: Sequence[Sequence[str | None]]
    references: Sequence[str]
    uid: Int[Array, "P"]
    group_size: int
    seed: int
    cfg: RewardConfig
    outcome: Callable[[str], list[list[bool | None]]]
    same: Callable[[str, str | None], bool]  # whether two answers are equal
    candidate: Callable[[str], Hashable]  # what makes two answers one candidate of a vote
    outcomes: Outcomes | None = None  # of conversations with an environment
    token_ends: Callable[[], Sequence[frozenset[int]]] = tuple  # bytes of each reference after which a token of it ends
