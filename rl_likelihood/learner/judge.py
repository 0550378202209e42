"""A second model that reads rows and says one number a row: a reward model, or a judge that is asked for a word.

It reads ids of its own tokenizer. A prompt is computed once for its rows. The numbers are constants for the gradient:
they join `batch.host_rewards`, before the batch reaches the learner (`make_judge`) or at the start of the jitted step
(`judge_batch`), with equal values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rl_likelihood.learner.micro_batches import split, unstacked, whole
from rl_likelihood.mesh import by_prompt, replicated
from rl_likelihood.model.decoder import Completions, ModelConfig, Params, forward, head_matrix
from rl_likelihood.shapes import CHAIN, PAD, AnyArray, Batch, Judged


class ValueHead(NamedTuple):
    """score = weight . state + bias."""

    weight: Float[AnyArray, "D"]
    bias: Float[AnyArray, ""]


class JudgeParams(NamedTuple):
    """The decoder's parameters, and the value head of a reward model; None for a judge that is asked for a word."""

    model: Params
    head: ValueHead | None = None


@dataclasses.dataclass(frozen=True)
class Judge:
    """How the numbers are made. Frozen and hashable: it is static under jit.

    `name`: the reward they are. `words`: ids of each word that the judge may reply, best first, where it is asked.
    `spread`: a reward model's scores are divided by it.
    """

    name: str
    model: ModelConfig
    words: tuple[tuple[int, ...], ...] = ()
    spread: float = 1.0


def last_state(params: Params, model: ModelConfig, judged: Judged) -> Float[Array, "P Q D"]:
    """The state at the last token of each row; of an empty row at the last token of its prompt."""
    judged = jax.tree.map(jnp.asarray, judged)
    there = jnp.arange(judged.rows.shape[-1]) < judged.row_length[..., None]
    rows = Completions(judged.rows, jnp.where(there, CHAIN, PAD), two_branches=False)
    hidden = forward(params, model, judged.prompt, judged.prompt_length, rows)
    at = jnp.maximum(judged.row_length - 1, 0)[..., None, None]
    of_row = jnp.take_along_axis(hidden.completion, at, 2)[:, :, 0]
    of_prompt = jnp.take_along_axis(hidden.prompt, (judged.prompt_length - 1)[:, None, None], 1)
    return jnp.where((judged.row_length > 0)[..., None], of_row, of_prompt)


def mean_state(
    params: Params, model: ModelConfig, tokens: Int[AnyArray, "P S"], length: Int[AnyArray, "P"]
) -> Float[Array, "P D"]:
    """The mean of the states of a text's tokens, by which texts are compared."""
    hidden = forward(params, model, tokens, length).prompt.astype(jnp.float32)
    there = jnp.arange(tokens.shape[1]) < length[:, None]
    return jnp.where(there[..., None], hidden, 0.0).sum(1) / jnp.maximum(length, 1)[:, None]


def value(params: Params, model: ModelConfig, head: ValueHead, judged: Judged) -> Float[Array, "P Q"]:
    """A reward model's score of each row, in float32."""
    state = last_state(params, model, judged).astype(jnp.float32)
    return jnp.einsum("pqd,d->pq", state, head.weight, precision="highest") + head.bias


def word_logits(
    params: Params, model: ModelConfig, words: tuple[tuple[int, ...], ...], judged: Judged
) -> Float[Array, "P Q K"]:
    """The logit of each word as the next token, over all its ids; their softmax is the words' probabilities."""
    state = last_state(params, model, judged).astype(jnp.float32)
    logits, matrix = [], head_matrix(params)
    for ids in words:
        table = matrix[jnp.asarray(ids)].astype(jnp.float32)
        each = jnp.einsum("pqd,vd->pqv", state, table, precision="highest")
        logits.append(jax.scipy.special.logsumexp(each, axis=-1))
    return jnp.stack(logits, -1)


def scores(params: JudgeParams, judge: Judge, judged: Judged) -> Float[Array, "P Q"]:
    """The judge's number for each row: a reward model's score, or the mean over the words, from 1 for the first to 0
    for the last: of two, the probability of the first."""
    if params.head is None:
        worth = jnp.linspace(1.0, 0.0, len(judge.words))
        return jax.nn.softmax(word_logits(params.model, judge.model, judge.words, judged)) @ worth
    return value(params.model, judge.model, params.head, judged) / judge.spread


def in_parts(run: Callable[[Params, Any], Any], model: ModelConfig, params: Params, rows: Any, size: int) -> Any:
    """`run(params, rows)`, of `size` prompts at a time."""
    if size >= rows.prompt.shape[0]:
        return run(params, rows)
    alone = unstacked(model, params)[0]
    return whole(jax.lax.map(lambda part: run(alone, part), split(rows, size)))


def scores_in_parts(params: JudgeParams, judge: Judge, judged: Judged, size: int) -> Float[Array, "P Q"]:
    """`scores`, of `size` prompts at a time."""
    run = lambda model, part: scores(params._replace(model=model), judge, part)
    return in_parts(run, judge.model, params.model, judged, size)


def judge_batch(params: JudgeParams, judge: Judge, batch: Batch, size: int) -> Batch:
    """The batch with the judge's numbers in place of the rows that it read."""
    numbers = jax.lax.stop_gradient(scores_in_parts(params, judge, batch.judged, size))
    return batch.replace(host_rewards={**batch.host_rewards, judge.name: numbers}, judged=None)


def make_judge(judge: Judge, size: int = 0, mesh: Mesh | None = None):
    """The jitted judge(params, judged) -> [P, Q], `size` prompts at a time (0: all), for where no step is.

    With a mesh prompts are split over it, and every process gets all numbers.
    """

    def run(params: JudgeParams, judged: Judged) -> Float[Array, "P Q"]:
        if mesh is not None:
            judged = jax.lax.with_sharding_constraint(judged, by_prompt(mesh, judged))
        return scores_in_parts(params, judge, judged, size or judged.prompt.shape[0])

    return jax.jit(run, out_shardings=None if mesh is None else replicated(mesh))
