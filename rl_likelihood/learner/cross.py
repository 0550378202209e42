"""Every sampled answer of a group after every chain of it, each chain computed once (CER, 2603.10624)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_likelihood.learner.rows import StepConfig, row_stats
from rl_likelihood.model.decoder import ModelConfig, Params
from rl_likelihood.shapes import PAD, REFERENCE, SAMPLED, Batch


def chains_as_prompts(batch: Batch) -> tuple[Int[Array, "N T"], Int[Array, "N"]]:
    """Each row's prompt with its chain and tags, right-padded, and their lengths: what an answer continues."""
    p, g, t = batch.completion.shape
    s = batch.prompt.shape[1]
    before = (batch.segment != PAD) & (batch.segment != SAMPLED) & (batch.segment != REFERENCE)
    length = batch.prompt_length[:, None]
    at = jnp.broadcast_to(jnp.arange(s + t), (p, g, s + t))
    asked = jnp.broadcast_to(jnp.pad(batch.prompt, ((0, 0), (0, t)))[:, None], at.shape)
    chain = jnp.take_along_axis(batch.completion, jnp.clip(at - length[..., None], 0, t - 1), -1)
    tokens = jnp.where(at < length[..., None], asked, chain)
    return tokens.reshape(p * g, s + t), (length + before.sum(-1)).reshape(p * g)


def cross_log_probs(params: Params, model: ModelConfig, batch: Batch, cfg: StepConfig) -> Float[Array, "P G G"]:
    """[p, j, s]: log-prob of row j's sampled answer after row s's chain, without a gradient; 0 of no answer.

    The chains are prompts of a forward of its own, so each is shared by the G answers as a prompt is by its chains.
    """
    p, g, t = batch.completion.shape
    width = min(cfg.sampled_answer or t, t)
    order = jnp.argsort(batch.segment != SAMPLED, -1, stable=True)[..., :width]
    ids, kinds = (jnp.take_along_axis(jnp.asarray(x), order, -1) for x in (batch.completion, batch.segment))
    kinds = jnp.where(kinds == SAMPLED, SAMPLED, PAD)
    each = lambda x: jnp.broadcast_to(x[:, None], (p, g, g, width)).reshape(p * g, g, width)
    tokens, length = chains_as_prompts(batch)
    alone = batch.rows_alone.replace(packing=None)
    answers = alone.replace(prompt=tokens, prompt_length=length, completion=each(ids), segment=each(kinds))
    stats = row_stats(jax.lax.stop_gradient(params), model, answers, dataclasses.replace(cfg, two_branches=False)).stats
    total = jnp.where(each(kinds) == SAMPLED, jax.lax.stop_gradient(stats.log_prob), 0.0).sum(-1)
    return jnp.swapaxes(total.reshape(p, g, g), 1, 2)
