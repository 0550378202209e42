"""The dimension table, and the values that packages exchange.

    P  prompts per step            S  prompt tokens
    G  chains per prompt           T  completion tokens (chain + tag + answers)
    A  reference-answer tokens     V  vocabulary
    D  model width                 H  query heads       K  key/value heads
    Dh head width                  F  MLP width         L  layers

Rollouts are numpy arrays on the host; a `Batch` is the input of one optimizer step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

AnyArray = Array | np.ndarray  # of a parameter: what jax.numpy takes

# Keys of a row, and of `Example.check`: what an environment is told of the row (docs/tools.md), and other answers that
# are as good as its own (docs/rewards.md, log_prob_any).
ENVIRONMENT, ALTERNATIVES = "environment", "alternatives"

# Segment of a completion token (docs/architecture.md, "Shapes").
PAD, CHAIN, TAG, REFERENCE, SAMPLED, ENV = 0, 1, 2, 3, 4, 5


class UserError(ValueError):
    """Bad input, in the user's words. The mains print it on one line and exit with 2."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One question with its reference answer.

    `chain` is a reference chain of thought (for fine-tuning only). `task` names the worked examples that fit.
    `messages` is the whole conversation as (role, content) pairs when it has more than one message; `prompt` is then
    the user's last one. `check` is JSON: what a grader needs besides the answer (a program's tests, an item of
    reasoning_gym: `grading.reference_of`), what an environment is told, and `alternatives`, other answers as good.
    """

    id: str
    prompt: str
    answer: str
    chain: str = ""
    task: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    check: str = ""


class Prompts(struct.PyTreeNode):
    """P prompts with their reference answers, right-padded with the tokenizer's pad id.

    `answer` holds the ids that follow the opening answer tag: closing bracket of the tag, the
    reference answer, the closing tag. `answer_scored` marks those whose log-probs count.
    `uid` is the row's position in the run's data stream; the row's random keys are made from it.
    """

    tokens: Int[np.ndarray, "P S"]
    length: Int[np.ndarray, "P"]
    answer: Int[np.ndarray, "P A"]
    answer_length: Int[np.ndarray, "P"]
    answer_scored: Bool[np.ndarray, "P A"]
    uid: Int[np.ndarray, "P"]


class Outcomes(struct.PyTreeNode):
    """How the conversations with an environment went, one value per row."""

    reward: Float[np.ndarray, "P G"]  # the environment's own
    calls_f1: Float[np.ndarray, "P G"]  # agreement with the reference calls; 0 where the environment has none
    turns: Int[np.ndarray, "P G"]
    calls: Int[np.ndarray, "P G"]
    bad_calls: Int[np.ndarray, "P G"]
    failed: Bool[np.ndarray, "P G"]  # the environment raised or did not reply in time


class Rollout(struct.PyTreeNode):
    """A sampler's result: prompts, G completions of each, and how they were sampled.

    `completion` is chain ids, tag ids, sampled-answer ids, reference-answer ids, right-padded;
    `segment` says which is which; `sampler_logp` is the log-prob (nats, at the sampling
    temperature) of each sampled id under policy `version`, 0 for ids that were not sampled.
    `truncated` marks chains that did not open the answer tag by themselves. In a conversation `completion` is the
    model's messages (CHAIN), the environment's replies (ENV), and before each message what it should have been
    (REFERENCE, a branch); `truncated` marks conversations that did not end by themselves.
    """

    prompts: Prompts
    completion: Int[np.ndarray, "P G T"]
    segment: Int[np.ndarray, "P G T"]
    sampler_logp: Float[np.ndarray, "P G T"]
    truncated: Bool[np.ndarray, "P G"]
    version: int = struct.field(pytree_node=False, default=0)
    number: int = struct.field(pytree_node=False, default=0)  # of the step whose prompts these are
    seconds: float = struct.field(pytree_node=False, default=0.0)  # spent sampling
    outcomes: Outcomes | None = None  # of conversations with an environment


# Fields of a Rollout that have one entry per row, [P, G, ...], or are trees of such.
ROW_FIELDS = ("completion", "segment", "sampler_logp", "truncated", "outcomes")


class NoChainRows(struct.PyTreeNode):
    """Each prompt's reference answer after an empty chain, of width W: scored beside the chains, never trained on."""

    completion: Int[Array, "P 1 W"]
    segment: Int[Array, "P 1 W"]
    scored: Bool[Array, "P 1 W"]


class ShownPrompts(struct.PyTreeNode):
    """Each prompt once more, with its reference answer in it (learner/posterior.py), right-padded."""

    tokens: Int[Array, "P R"]
    length: Int[Array, "P"]


class Alternatives(struct.PyTreeNode):
    """Each prompt's other answers, one after the other with a gap before each; they follow every row of its group.

    `answer` says which one a token belongs to: 1 to K, 0 in gaps and padding. `scored` marks those that count, `there`
    the answers that the prompt has.
    """

    tokens: Int[Array, "P B"]
    answer: Int[Array, "P B"]
    scored: Bool[Array, "P B"]
    present: Bool[Array, "P K"]


class Judged(struct.PyTreeNode):
    """What a second model reads, in ids of its own tokenizer: P prompts and Q right-padded rows of each, U tokens wide.
    Padding may be any id."""

    prompt: Int[Array, "P S"]
    prompt_length: Int[Array, "P"]
    rows: Int[Array, "P Q U"]
    row_length: Int[Array, "P Q"]


class Compared(struct.PyTreeNode):
    """P questions with up to Q answers, the right one first; which there are, and the margins. Or Q pairs of an
    expert's and a policy's answer (learner/adversarial.py): then margins are 1 where the expert's is the first, else
    -1, and labels are the ids of the replies "the first", "the second", "a tie"."""

    judged: Judged
    present: Bool[Array, "P Q"]
    margins: Float[Array, "P Q"] | None = None
    labels: Int[Array, "P 3"] | None = None

    @property
    def prompt(self) -> Array:
        """What `mesh.by_prompt` looks at."""
        return self.judged.prompt


class Packing(struct.PyTreeNode):
    """How a batch's completions are computed without their padding (model/pool.py, learner/packing.py).

    `start`: where each chain begins in its prompt's R rows of W tokens, counted through them. `order`: the prompts in
    the order in which micro-batches take them; None: as they are. `prompts`: of a micro-batch; `tokens`: places for the
    tokens of a micro-batch on each device.
    """

    start: Int[Array, "P G"]
    order: Int[Array, "P"] | None
    prompts: int = struct.field(pytree_node=False)
    tokens: int = struct.field(pytree_node=False)
    rows: int = struct.field(pytree_node=False)
    width: int = struct.field(pytree_node=False)


class Batch(struct.PyTreeNode):
    """One optimizer step's input. Rows of one prompt are a group and stay together.

    `scored` marks the reference-answer tokens whose log-probs count. `host_rewards` holds rewards computed on the host
    (rules, votes) by name. `keep` is the one mask for baseline, scale and loss. `baseline` is each prompt's reward
    without a chain under the initial model, for RLPR; `baseline_logp` has the log-probs of its scored answer tokens
    there, in order, then zeros. `counted` are the groups that a filter accepts, None without a filter. `no_chain` is
    set where the answer's score without a chain is needed, `alternatives` where a reward reads other answers too,
    `shown` where there is a second prompt, `judged` where the step asks a judge, `packing` where padding is left out.
    """

    prompt: Int[Array, "P S"]
    prompt_length: Int[Array, "P"]
    completion: Int[Array, "P G T"]
    segment: Int[Array, "P G T"]
    scored: Bool[Array, "P G T"]
    sampler_logp: Float[Array, "P G T"]
    host_rewards: dict[str, Float[Array, "P G"]]
    truncated: Bool[Array, "P G"]
    keep: Bool[Array, "P G"]
    baseline: Float[Array, "P"] | None = None
    baseline_logp: Float[Array, "P A"] | None = None
    counted: Bool[Array, "P"] | None = None
    no_chain: NoChainRows | None = None
    shown: ShownPrompts | None = None
    alternatives: Alternatives | None = None
    judged: Judged | None = None
    compared: Compared | None = None
    replayed: Compared | None = None
    packing: Packing | None = None

    @property
    def rows_alone(self) -> Batch:
        """Without the answers that are scored beside its rows, for a forward of its own."""
        return self.replace(no_chain=None, alternatives=None)


class TrainState(struct.PyTreeNode):
    """All that a step changes. Random keys are folded from (root, purpose, step), never stored.

    `filter` is the state of the group filter (`rewards.shaping.FilterState`); `proxy` is NOVER's slow copy of the
    policy, `reference` the moving reference of the KL term, or None; `critic` is the TrainState of an adversarial run's
    critic, or None.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    filter: Any = None
    proxy: Any = None
    critic: Any = None
    reference: Any = None


@dataclasses.dataclass(frozen=True)
class Tags:
    """The tags of a response: "<think>", "</think>", "<answer", "</answer". Those of the answer leave out their `>`."""

    think_open: str
    think_close: str
    answer_open: str
    answer_close: str


@dataclasses.dataclass(frozen=True)
class ChainFormat(Tags):
    """The chain-of-thought format in one tokenizer's ids (made by `data.prompts.chain_format`).

    A completion reads  chain  </think> <answer  > reference answer </answer>.
    The policy samples up to and including `<answer`; `close_think_ids` is the forced tag for a
    chain that never closed its thinking, `open_answer_ids` for one that closed it but did not
    open the answer. `vocab_bytes[i]` is the text of id i as bytes (empty for special ids), from
    which stop strings are matched exactly, whatever token boundaries the model chooses.
    """

    close_think_ids: tuple[int, ...]
    open_answer_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    pad_id: int
    vocab_bytes: tuple[bytes, ...] = dataclasses.field(repr=False)
