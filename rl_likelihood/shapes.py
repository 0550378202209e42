"""The table of dimensions, and the data types that packages exchange.

    P  prompts per step            S  prompt tokens
    G  chains per prompt           T  completion tokens (chain + tag + answers)
    A  reference-answer tokens     V  vocabulary
    D  model width                 H  query heads       K  key/value heads
    Dh head width                  F  MLP width         L  layers

Rollouts are numpy arrays on the host; a `Batch` is the input of one optimizer step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

AnyArray = Array | np.ndarray  # of a parameter: what jax.numpy takes

# Keys of a row and of `Example.check`: an environment's input (docs/tools.md); other right answers (docs/rewards.md,
# log_prob_any); wrong answers (option_prob).
ENVIRONMENT, ALTERNATIVES, REJECTED = "environment", "alternatives", "rejected"

# Segment of a completion token (docs/architecture.md, "Shapes").
PAD, CHAIN, TAG, REFERENCE, SAMPLED, ENV = 0, 1, 2, 3, 4, 5

# Sizes of arrays that are cut to what a batch needs are rounded up, so that few programs are compiled: EVEN divides
# those above it, and a row's width has WIDTHS sizes between a number and its double.
EVEN, WIDTHS = 8, 2


def rounded(size: int, per_octave: int, limit: int) -> int:
    """`size` rounded up to a 2^(i / per_octave), and to a multiple of EVEN if that is above EVEN; at most `limit`."""
    size = max(1, size)
    step = math.ceil(per_octave * math.log2(size) - 1e-9)
    target = max(size, math.ceil(2 ** (step / per_octave) - 1e-9))
    return min(limit, target if target <= EVEN else -(-target // EVEN) * EVEN)


@dataclasses.dataclass(frozen=True)
class Example:
    """One question with its reference answer.

    `chain` is a reference chain of thought, used only for fine-tuning. `task` names the matching worked examples.
    `messages` is the whole conversation as (role, content) pairs, if it has more than one message; `prompt` is then the
    user's last message. `check` is JSON: the input of a grader besides the answer (a program's tests, an item of
    reasoning_gym: `graders.reference_of`), the input of an environment, and `alternatives`, the alternative answers.
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

    `answer` holds the ids after the opening answer tag: the tag's closing bracket, the reference answer, the closing
    tag. `answer_scored` marks the ids whose log-probs count. `uid` is the row's position in the run's data stream; the
    row's random keys are folded from it. All prompts begin with the same `common` ids (instruction and worked
    examples), which the model computes once.
    """

    tokens: Int[np.ndarray, "P S"]
    length: Int[np.ndarray, "P"]
    answer: Int[np.ndarray, "P A"]
    answer_length: Int[np.ndarray, "P"]
    answer_scored: Bool[np.ndarray, "P A"]
    uid: Int[np.ndarray, "P"]
    common: int = struct.field(pytree_node=False, default=0)


class Outcomes(struct.PyTreeNode):
    """The outcomes of conversations with an environment, one value per row."""

    reward: Float[np.ndarray, "P G"]  # from the environment
    calls_f1: Float[np.ndarray, "P G"]  # agreement with the reference calls; nan where the environment has none
    end: Int[np.ndarray, "P G"]  # how it ended: the index in envs.protocol.ENDS
    turns: Int[np.ndarray, "P G"]
    calls: Int[np.ndarray, "P G"]
    bad_calls: Int[np.ndarray, "P G"]
    failed: Bool[np.ndarray, "P G"]  # the environment raised, returned something wrong, or was too slow


class Rollout(struct.PyTreeNode):
    """A sampler's result: prompts with G completions each.

    `completion`: chain ids, tag ids, sampled-answer ids, reference-answer ids, right-padded. `segment`: the kind of
    each id. `sampler_logp`: the log-prob (nats, at the sampling temperature) of each sampled id under policy `version`,
    0 for ids that were not sampled. `truncated` marks chains that did not open the answer tag.

    In a conversation, `completion` has the model's messages (CHAIN), the environment's replies (ENV), and before each
    message its reference (REFERENCE, a branch). `truncated` marks conversations that ran out of turns.
    """

    prompts: Prompts
    completion: Int[np.ndarray, "P G T"]
    segment: Int[np.ndarray, "P G T"]
    sampler_logp: Float[np.ndarray, "P G T"]
    truncated: Bool[np.ndarray, "P G"]
    version: int = struct.field(pytree_node=False, default=0)
    number: int = struct.field(pytree_node=False, default=0)  # its index in the stream of batches
    seconds: float = struct.field(pytree_node=False, default=0.0)  # of sampling, until its ids were on the host
    outcomes: Outcomes | None = None  # of conversations with an environment


# Fields of a Rollout with one entry per row, [P, G, ...]; outcomes is a tree of such arrays.
ROW_FIELDS = ("completion", "segment", "sampler_logp", "truncated", "outcomes")


class NoChainRows(struct.PyTreeNode):
    """Each prompt's reference answer after an empty chain, W tokens wide. It is scored, but never trained on."""

    completion: Int[Array, "P 1 W"]
    segment: Int[Array, "P 1 W"]
    scored: Bool[Array, "P 1 W"]


class ShownPrompts(struct.PyTreeNode):
    """The posterior prompts, which show the reference answer (learner/posterior.py), right-padded to R tokens."""

    tokens: Int[Array, "P R"]
    length: Int[Array, "P"]


class Alternatives(struct.PyTreeNode):
    """The alternative answers of each prompt, concatenated with a gap before each. They follow every row of its group.

    `answer`: the number of each token's answer, 1 to K; 0 in gaps and padding. `scored`: the tokens that count.
    `present`: which of the K answers the prompt has.
    """

    tokens: Int[Array, "P B"]
    answer: Int[Array, "P B"]
    scored: Bool[Array, "P B"]
    present: Bool[Array, "P K"]


class Judged(struct.PyTreeNode):
    """The inputs of a second model, in ids of its own tokenizer: P prompts with Q rows each, right-padded to U tokens.
    Padding may be any id."""

    prompt: Int[Array, "P S"]
    prompt_length: Int[Array, "P"]
    rows: Int[Array, "P Q U"]
    row_length: Int[Array, "P Q"]

    @property
    def narrow(self) -> Judged:
        """The same arrays, on the host, without most of the padding that all questions or all rows have."""
        s, u = (
            rounded(int(length.max()), WIDTHS, ids.shape[-1])
            for ids, length in ((self.prompt, self.prompt_length), (self.rows, self.row_length))
        )
        return self.replace(prompt=self.prompt[:, :s], rows=self.rows[..., :u])


class Compared(struct.PyTreeNode):
    """Comparisons for a reward model: P questions with up to Q answers, the right one first. `present`: which answers
    exist.

    For the label critic (learner/adversarial.py), a row is a pair of an expert's and a policy's answer. `margins` are
    then 1 if the expert's answer is the first, else -1; `labels` are the ids of the replies "the first", "the second",
    "a tie".
    """

    judged: Judged
    present: Bool[Array, "P Q"]
    margins: Float[Array, "P Q"] | None = None
    labels: Int[Array, "P 3"] | None = None

    @property
    def prompt(self) -> Array:
        """The prompts, which `mesh.by_prompt` reads."""
        return self.judged.prompt


class Packing(struct.PyTreeNode):
    """The layout of a batch whose completions are computed without padding (model/pool.py, learner/packing.py).

    `start`: the flat index at which each chain begins in its prompt's attention rows. `order`: the prompts in the order
    in which micro-batches take them; None: unchanged. `prompts`: per micro-batch. `tokens`: size of a micro-batch's
    pool on each device. `rows`, `width`: number and tokens of a prompt's attention rows.
    """

    start: Int[Array, "P G"]
    order: Int[Array, "P"] | None
    prompts: int = struct.field(pytree_node=False)
    tokens: int = struct.field(pytree_node=False)
    rows: int = struct.field(pytree_node=False)
    width: int = struct.field(pytree_node=False)


class Batch(struct.PyTreeNode):
    """The input of one optimizer step. The rows of a prompt are a group and stay together. Log-probs are in nats.

    `scored`: the reference-answer tokens whose log-probs count. `host_rewards`: rewards computed on the host (rules,
    votes) by name. `keep`: the one mask for baseline, scale and loss. `baseline`: each prompt's score without a chain
    under the initial model, for RLPR. `baseline_logp`: the log-probs of the scored answer tokens without a chain under
    the initial model, in order, then zeros. `counted`: the groups that a filter accepts; None without a filter.
    `weight`: how often each prompt counts in the loss, 1 on average; None: once. `critic`: the prompts of a critic that
    is the policy itself, which metrics leave out.

    Inputs that only some runs have: `no_chain`: the answers without a chain. `alternatives`: alternative answers.
    `shown`: posterior prompts. `judged`: the inputs of a judge in the step. `compared`, `replayed`: new and earlier
    answers for a critic. `packing`: the layout without padding.
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
    weight: Float[Array, "P"] | None = None
    critic: Bool[Array, "P"] | None = None
    no_chain: NoChainRows | None = None
    shown: ShownPrompts | None = None
    alternatives: Alternatives | None = None
    judged: Judged | None = None
    compared: Compared | None = None
    replayed: Compared | None = None
    packing: Packing | None = None
    common: int = struct.field(pytree_node=False, default=0)  # as in Prompts

    @property
    def rows_alone(self) -> Batch:
        """The batch without the extra answers (`no_chain`, `alternatives`), for a separate forward."""
        return self.replace(no_chain=None, alternatives=None)


class TrainState(struct.PyTreeNode):
    """Everything that a step changes. Random keys are folded from (root, purpose, step), never stored.

    `filter`: the state of the group filter (`rewards.group_filter.FilterState`). `proxy`: NOVER's slow copy of the
    policy. `reference`: the moving reference of the KL term. `critic`: the TrainState of an adversarial run's critic.
    The last three are None in runs without them.
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
    """The tags of a response: "<think>", "</think>", "<answer", "</answer". Answer tags leave out their ">"."""

    think_open: str
    think_close: str
    answer_open: str
    answer_close: str

    def chain_of(self, text: str) -> str:
        """The chain that a text begins with: what is before its first closing or answer tag."""
        return text.split(self.think_close)[0].split(self.answer_open)[0]


@dataclasses.dataclass(frozen=True)
class ChainFormat(Tags):
    """The chain-of-thought format in one tokenizer's ids (made by `data.prompts.chain_format`).

    A completion reads  chain  </think> <answer  > reference answer </answer>.  The policy samples up to and including
    `<answer`. `close_think_ids`: the forced tags after a chain that never closed its thinking. `open_answer_ids`: the
    forced tag after a chain that closed it but did not open the answer. `vocab_bytes[i]`: the bytes of id i (empty for
    special ids), by which stop strings are matched at any token boundaries.
    """

    close_think_ids: tuple[int, ...]
    open_answer_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    pad_id: int
    vocab_bytes: tuple[bytes, ...] = dataclasses.field(repr=False)
