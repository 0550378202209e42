"""Scores each sampled answer of a group after each chain of that group (CER, 2603.10624). A chain is computed once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_likelihood.learner.rows import StepConfig, row_stats
from rl_likelihood.model.architecture import ModelConfig, Params
from rl_likelihood.shapes import PAD, REFERENCE, SAMPLED, Batch


def chains_as_prompts(batch: Batch) -> tuple[Int[Array, "N T"], Int[Array, "N"]]:
    """Each row's prompt, chain and tags as one right-padded sequence, and its length: the prefix of an answer."""
    p, g, t = batch.completion.shape
    s = batch.prompt.shape[1]
    in_prefix = (batch.segment != PAD) & (batch.segment != SAMPLED) & (batch.segment != REFERENCE)
    length = batch.prompt_length[:, None]
    position = jnp.broadcast_to(jnp.arange(s + t), (p, g, s + t))
    question = jnp.broadcast_to(jnp.pad(batch.prompt, ((0, 0), (0, t)))[:, None], position.shape)
    chain = jnp.take_along_axis(batch.completion, jnp.clip(position - length[..., None], 0, t - 1), -1)
    tokens = jnp.where(position < length[..., None], question, chain)
    return tokens.reshape(p * g, s + t), (length + in_prefix.sum(-1)).reshape(p * g)


def cross_log_probs(params: Params, model: ModelConfig, batch: Batch, cfg: StepConfig) -> Float[Array, "P G G"]:
    """Entry [p, j, s] is the log-prob (nats) of row j's sampled answer after row s's chain. It is 0 where row j has no
    answer. It has no gradient.

    A separate forward takes the chains as its prompts. So the G answers share each chain, as chains share a prompt.
    """
    p, g, t = batch.completion.shape
    width = min(cfg.sampled_answer or t, t)
    order = jnp.argsort(batch.segment != SAMPLED, -1, stable=True)[..., :width]
    ids, kinds = (jnp.take_along_axis(jnp.asarray(x), order, -1) for x in (batch.completion, batch.segment))
    kinds = jnp.where(kinds == SAMPLED, SAMPLED, PAD)
    every_answer = lambda x: jnp.broadcast_to(x[:, None], (p, g, g, width)).reshape(p * g, g, width)
    tokens, length = chains_as_prompts(batch)
    chains_only = batch.rows_alone.replace(packing=None)  # their prompts begin with the same common ids
    answers = chains_only.replace(
        prompt=tokens, prompt_length=length, completion=every_answer(ids), segment=every_answer(kinds)
    )
    stats = row_stats(jax.lax.stop_gradient(params), model, answers, dataclasses.replace(cfg, two_branches=False)).stats
    total = jnp.where(every_answer(kinds) == SAMPLED, jax.lax.stop_gradient(stats.log_prob), 0.0).sum(-1)
    return jnp.swapaxes(total.reshape(p, g, g), 1, 2)
