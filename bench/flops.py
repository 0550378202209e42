"""Useful floating-point operations of the workloads: those that must be computed, whatever an implementation adds.

A multiplication and an addition are two operations. Matrix products and attention count; norms, rotations, softmax and
the optimizer do not. Attention is causal: token n reads n keys and n values. The vocabulary counts where a logit is
used: at every completion token, and at the last prompt token. A prompt counts once for its group, in every pass.
"""

from __future__ import annotations

import dataclasses

from rl_likelihood.model.architecture import ModelConfig


@dataclasses.dataclass(frozen=True)
class Shape:
    """P prompts of S tokens, G completions of T tokens each."""

    prompts: int
    group: int
    prompt: int
    completion: int

    @property
    def rows(self) -> int:
        return self.prompts * self.group


def body_parameters(m: ModelConfig) -> int:
    """Entries of the matrices that each token is multiplied with, without those of the vocabulary."""
    width = m.heads * m.head_dim
    mlp = 3 * m.width * m.mlp * max(1, m.experts_per_token) + m.width * m.experts
    return m.layers * (2 * m.width * width + 2 * m.width * m.kv_heads * m.head_dim + mlp)


def head_parameters(m: ModelConfig) -> int:
    return m.width * m.vocab_size


def attention(m: ModelConfig, first: int, last: int) -> int:
    """Tokens first + 1 to last of one sequence, each with itself and all tokens before it: scores and weighted sums."""
    keys = (last * (last + 1) - first * (first + 1)) // 2
    return m.layers * 2 * 2 * m.heads * m.head_dim * keys


def forward(m: ModelConfig, w: Shape) -> int:
    """All prompts and completions, with the log-probs of the completions."""
    prompt = w.prompt * 2 * body_parameters(m) + attention(m, 0, w.prompt)
    row = w.completion * 2 * (body_parameters(m) + head_parameters(m))
    row += attention(m, w.prompt, w.prompt + w.completion)
    return w.prompts * prompt + w.rows * row


def prefill(m: ModelConfig, w: Shape) -> int:
    """Prompts, up to the distribution of the first token."""
    return w.prompts * (w.prompt * 2 * body_parameters(m) + attention(m, 0, w.prompt) + 2 * head_parameters(m))


def decode(m: ModelConfig, w: Shape) -> int:
    """Completion tokens, except the first, which comes from the prefill. The last one is not fed back."""
    fed = w.completion - 1
    row = fed * 2 * (body_parameters(m) + head_parameters(m)) + attention(m, w.prompt, w.prompt + fed)
    return w.rows * row


def sampling(m: ModelConfig, w: Shape) -> int:
    return prefill(m, w) + decode(m, w)


def learner(m: ModelConfig, w: Shape, reference: bool) -> int:
    """Forward, twice as much backward, and the forward of a reference model if there is one."""
    return (3 + reference) * forward(m, w)


def decode_bytes(m: ModelConfig, w: Shape, width: int = 4) -> int:
    """The least traffic of `decode`. A step reads every weight once, the keys and values of each prompt once for its
    group, and those of each row once. `width`: bytes of a number."""
    fed, per_token = w.completion - 1, m.layers * 2 * m.kv_heads * m.head_dim
    own = w.rows * fed * (fed + 1) // 2
    weights = fed * (body_parameters(m) + head_parameters(m))
    return width * (weights + per_token * (fed * w.prompts * w.prompt + own))
