"""A second model that reads rows and gives each row one number: a reward model, or a judge that replies with a word.

It reads ids of its own tokenizer. Each prompt is computed once for all of its rows. The numbers are constants for the
gradient and become entries of `batch.host_rewards`. `make_judge` computes them before the batch reaches the learner,
`judge_batch` at the start of the jitted step. Both give equal values.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_likelihood.learner.micro_batches import in_parts
from rl_likelihood.model.architecture import ModelConfig, Params, head_matrix
from rl_likelihood.model.decoder import Completions, forward
from rl_likelihood.shapes import CHAIN, PAD, AnyArray, Batch, Judged


class ValueHead(NamedTuple):
    """score = weight . state + bias."""

    weight: Float[AnyArray, "D"]
    bias: Float[AnyArray, ""]


class JudgeParams(NamedTuple):
    """The decoder's parameters, and the value head of a reward model (None for a judge that replies with a word)."""

    model: Params
    head: ValueHead | None = None


@dataclasses.dataclass(frozen=True)
class Judge:
    """A judge's settings. Frozen and hashable, because it is static under jit.

    `name`: the name of its reward. `words`: the words that the judge may reply, best first, each as the ids that count
    as it; empty for a reward model. `spread`: a reward model's scores are divided by it.
    """

    name: str
    model: ModelConfig
    words: tuple[tuple[int, ...], ...] = ()
    spread: float = 1.0


def last_state(params: Params, model: ModelConfig, judged: Judged) -> Float[Array, "P Q D"]:
    """The hidden state at the last token of each row. For an empty row: at the last token of its prompt."""
    judged = jax.tree.map(jnp.asarray, judged)
    real = jnp.arange(judged.rows.shape[-1]) < judged.row_length[..., None]
    rows = Completions(judged.rows, jnp.where(real, CHAIN, PAD), references=0)
    hidden = forward(params, model, judged.prompt, judged.prompt_length, rows)
    last = jnp.maximum(judged.row_length - 1, 0)[..., None, None]
    of_row = jnp.take_along_axis(hidden.completion, last, 2)[:, :, 0]
    of_prompt = jnp.take_along_axis(hidden.prompt, (judged.prompt_length - 1)[:, None, None], 1)
    return jnp.where((judged.row_length > 0)[..., None], of_row, of_prompt)


def mean_state(
    params: Params, model: ModelConfig, tokens: Int[AnyArray, "P S"], length: Int[AnyArray, "P"]
) -> Float[Array, "P D"]:
    """An embedding of each text: the mean of its tokens' hidden states."""
    hidden = forward(params, model, tokens, length).prompt.astype(jnp.float32)
    real = jnp.arange(tokens.shape[1]) < length[:, None]
    return jnp.where(real[..., None], hidden, 0.0).sum(1) / jnp.maximum(length, 1)[:, None]


def value(params: Params, model: ModelConfig, head: ValueHead, judged: Judged) -> Float[Array, "P Q"]:
    """A reward model's score of each row, in float32."""
    state = last_state(params, model, judged).astype(jnp.float32)
    return jnp.einsum("pqd,d->pq", state, head.weight, precision="highest") + head.bias


def word_logits(
    params: Params, model: ModelConfig, words: tuple[tuple[int, ...], ...], judged: Judged
) -> Float[Array, "P Q K"]:
    """The logit of each of K words as the next token: logsumexp over the word's ids. Their softmax gives the words'
    probabilities."""
    state = last_state(params, model, judged).astype(jnp.float32)
    logits, matrix = [], head_matrix(params)
    for ids in words:
        table = matrix[jnp.asarray(ids)].astype(jnp.float32)
        id_logits = jnp.einsum("pqd,vd->pqv", state, table, precision="highest")
        logits.append(jax.scipy.special.logsumexp(id_logits, axis=-1))
    return jnp.stack(logits, -1)


def scores(params: JudgeParams, judge: Judge, judged: Judged) -> Float[Array, "P Q"]:
    """The judge's number for each row. A reward model gives its score. For K words it is the expected value, where the
    first word is worth 1, the last 0, and the others lie evenly between. With two words that is the probability of the
    first."""
    if params.head is None:
        worth = jnp.linspace(1.0, 0.0, len(judge.words))
        return (jax.nn.softmax(word_logits(params.model, judge.model, judge.words, judged)) * worth).sum(-1)
    return value(params.model, judge.model, params.head, judged) / judge.spread


def scores_in_parts(params: JudgeParams, judge: Judge, judged: Judged, size: int) -> Float[Array, "P Q"]:
    """`scores`, computed for `size` prompts at a time."""
    run = lambda model, part: scores(params._replace(model=model), judge, part)
    return in_parts(run, judge.model, params.model, judged, size)


def judge_batch(params: JudgeParams, judge: Judge, batch: Batch, size: int) -> tuple[Batch, Int[Array, ""]]:
    """(the batch with the judge's numbers as a host reward, without the judge's inputs; how many rows have none). A row
    whose number is not finite is dropped."""
    numbers = jax.lax.stop_gradient(scores_in_parts(params, judge, batch.judged, size))
    ok = jnp.isfinite(numbers)
    rewards = {**batch.host_rewards, judge.name: jnp.where(ok, numbers, 0.0)}
    return batch.replace(host_rewards=rewards, keep=batch.keep & ok, judged=None), (~ok).sum()


def make_judge(judge: Judge):
    """The jitted judge(params, judged) -> [P, Q], for use outside the training step."""
    return jax.jit(lambda params, judged: scores_in_parts(params, judge, judged, judged.prompt.shape[0]))
