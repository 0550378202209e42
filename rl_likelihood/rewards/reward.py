"""The types of rewards: a row of the table, a term of the trained sum, and the inputs of a reward's function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from rl_likelihood.fields import field
from rl_likelihood.rewards.intrinsic import PolicyStats
from rl_likelihood.shapes import Alternatives, Outcomes


@dataclasses.dataclass(frozen=True)
class Reward:
    """A row of the table. `kind` says how `function` is called and what it returns:

    score   (logp [P, G, A], mask [P, G, A]) -> [P, G]: from the reference answer's log-probs, differentiable;
            the group's value is the mean over its rows
    group   (logp, mask, keep [P, G]) -> [P]: as score, but the group's value is not a mean of rows
    built   (observation, cfg) -> Objective: as group, with constants of the step, such as token weights
    outcome (right [P, G]) -> Objective: from the 0/1 numbers of another reward, written NAME(OTHER)
    step    (observation, cfg) -> [P, G]: inside the jitted step, constant for the gradient
    text    (text, tags) -> float: from one whole response, on the host
    host    (HostInputs) -> [P, G]: from all responses, on the host
    grader  1 if a grader calls the sampled answer right, else 0; has no function
    judge   a second model's number for the sampled answer; has no function (config group `judge`)

    `reads`: a subset of chain, answer (the sampled one), reference, group. If a reward reads the sampled answer, the
    sampler writes one, and by default the policy term covers it together with the chain. `span` overrides that.
    """

    function: Callable[..., Any] | None
    kind: Literal["score", "group", "built", "outcome", "step", "text", "host", "grader", "judge"]
    about: str
    reads: tuple[str, ...] = ("chain", "reference")
    span: Literal["auto", "chain", "response"] = "auto"
    # Kind `step`: (observation, cfg) -> [P, G], its numbers less one that the rows of a group share, where subtracting
    # them would lose digits.
    above: Callable[..., Any] | None = None
    with_terms: tuple[str, ...] = ()  # other terms that the sum must contain
    # proxy: NOVER's proxy model; initial: the initial model's score of the answer; cross: the log-prob of every sampled
    # answer after every chain of its group; conversation: an environment.
    needs: tuple[Literal["proxy", "initial", "cross", "conversation"], ...] = ()
    binary: bool = False  # its numbers are 0 or 1
    underflows: bool = False  # it is made of the exp of a whole answer's log-prob
    alternatives: str = ""  # the field of a row with the other answers that it reads
    # Does it read the answer's token log-probs without a chain? may: if reward.baseline provides them. weights: if
    # reward.token_weights is made from them. must: always.
    no_chain: Literal["no", "may", "weights", "must"] = "no"

    @property
    def differentiable(self) -> bool:
        """Whether the reward has a gradient of its own through the answer's tokens."""
        return self.kind in ("score", "group", "built")

    @property
    def floored(self) -> bool:
        """Whether reward.floor acts on it: whether it reads the reference answer's log-probs."""
        return self.differentiable or (self.kind == "step" and "reference" in self.reads and "proxy" not in self.needs)

    @property
    def judges_alone(self) -> bool:
        """Whether a second model scores each answer by itself."""
        return self.kind == "judge" and "group" not in self.reads

    @property
    def on_host(self) -> bool:
        """Whether its values are computed before the step and come with the batch."""
        return self.kind in ("text", "host", "grader", "judge")

    @property
    def reads_answer(self) -> bool:
        """Whether it needs an answer that the policy sampled."""
        return "answer" in self.reads and ("cross" in self.needs or self.kind in ("host", "grader", "judge", "outcome"))

    @property
    def credits(self) -> str:
        """Which tokens the policy term covers by default: chain | response."""
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
        """(name, row) of the reward that the host computes for this term; None if it computes none."""
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
    floor: float = field(
        -10.0, 'log-prob of each answer token after such a chain, with truncated="floor"', below=0, least=-1e6
    )
    base_rl: tuple[float, ...] = field(
        (1.0, 0.1, 0.0), "base_rl: right; wrong but in the format; not in the format", least=-1e6, most=1e6
    )
    baseline: Literal["none", "frozen", "live"] = field(
        "none",
        "model that scores the answer without a chain: the initial (frozen) or the current one (live); for rlpr, nrt, "
        "r3, likelihood_gain, vr_cli and reward.token_weights",
    )
    token_weights: Literal["none", "inverse", "neg_log", "spread"] = field(
        "none",
        "of the answer's tokens, in weighted_log_prob, weighted_avg_prob and nrt: 1/p or -log p without a chain, or "
        "the standard deviation of log p over the group",
    )
    clip_gain: bool = field(True, "nrt: a chain that is worse than no chain gets 0 instead of a negative reward")
    length_min: float = field(100.0, "tokens below which `length` = min(tokens - this, 0) is negative", least=0)
    overlong_max: float = field(
        0.0, "sampled tokens from which `overlong` is -1; 0: the most that a response may have", least=0
    )
    overlong_cache: float = field(
        0.0, "tokens before overlong_max over which it falls from 0 to -1; 0: a fifth of overlong_max, as DAPO", least=0
    )
    entropy_base: Literal["e", "2"] = field("e", "unit of entropy and trajectory rewards: nats or bits")
    vote_train: int = field(
        0, "chains of each group that are trained on; majority_vote still counts all; 0: all", least=0
    )
    sft_chain: Literal["none", "answer", "both"] = field(
        "none", "sft: train the answer alone, the answer after the data's chain, or chain and answer"
    )
    terms: tuple[Term, ...] = ()

    @property
    def supervised(self) -> bool:
        """Whether this is supervised training on the reference answers (sft): nothing is sampled."""
        return self.name == "sft"

    @property
    def by_spread(self) -> bool:
        """Whether token weights come from the spread over the group."""
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
        """Whether rlpr subtracts the answer's score without a chain under the initial model."""
        return self.baseline == "frozen" and self.has("rlpr")

    @property
    def frozen_tokens(self) -> bool:
        """Whether a term reads the answer's token log-probs without a chain under the initial model."""
        return self.baseline == "frozen" and self.reads_no_chain

    @property
    def host_terms(self) -> dict[str, Reward]:
        """The rewards that the host computes for the terms, by name."""
        return dict(t.on_host for t in self.terms if t.on_host)

    @property
    def judged(self) -> str:
        """The name of the term that a second model computes; "" without one."""
        return next((t.name for t in self.terms if t.reward.kind == "judge"), "")

    def has(self, *names: str) -> bool:
        """Whether the sum contains a term with one of these names."""
        return any(t.name in names for t in self.terms)


class Observation(NamedTuple):
    """The inputs of rewards of kind `step` and `built`, for P groups of G rows. Log-probs are in nats."""

    floored_logp: Float[Array, "P G T"]  # of every completion token, with reward.floor applied
    scored: Bool[Array, "P G T"]  # the reference answer's tokens that count
    keep: Bool[Array, "P G"]
    truncated: Bool[Array, "P G"]  # chains that never opened their answer
    policy: PolicyStats  # statistics of the tokens of the policy term
    chain_tokens: Float[Array, "P G"]
    host_rewards: dict[str, Float[Array, "P G"]]
    baseline: Float[Array, "P"] | None = None  # avg_prob of the reference answer without a chain, for rlpr
    proxy_nll: Float[Array, "P G"] | None = None  # NOVER: mean NLL of the reference's tokens under the proxy
    cross_logp: Float[Array, "P G G"] | None = None  # CER: [p, j, s], row j's sampled answer after row s's chain
    answered: Bool[Array, "P G"] | None = None  # rows with a sampled answer
    initial_nll: Float[Array, "P G"] | None = None  # VR-CLI: mean NLL of the reference under the initial model
    no_chain_logp: Float[Array, "P A"] | None = None  # of the answer's scored tokens, in order, without a chain
    alternatives: Alternatives | None = None  # the alternative answers
    alternatives_logp: Float[Array, "P G B"] | None = None  # of the alternatives' tokens after each chain


class HostInputs(NamedTuple):
    """The inputs of rewards of kind `host`, for P groups of G rows.

    `answers` [P][G]: None for a row that is not in the format. `outcome(grader)` [P][G]: True, False, or None for an
    answer that the grader cannot read.
    """

    answers: Sequence[Sequence[str | None]]
    references: Sequence[str]
    uid: Int[Array, "P"]
    group_size: int
    seed: int
    cfg: RewardConfig
    outcome: Callable[[str], list[list[bool | None]]]
    same: Callable[[str, str | None], bool]  # whether two answers are equal
    candidate: Callable[[str], Hashable]  # answers with equal keys are one candidate in a vote
    outcomes: Outcomes | None = None  # of conversations with an environment
    token_ends: Callable[[], Sequence[frozenset[int]]] = tuple  # byte offsets where each reference's tokens end
