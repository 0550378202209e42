"""AdamW with warm-up, a schedule and a global-norm clip."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from rl_likelihood.fields import field


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: float = field(1e-5, "learning rate at its highest", least=0)
    schedule: Literal["cosine", "constant"] = field("cosine", "after the warm-up")
    warmup_steps: int = field(20, "steps of linear warm-up", least=0)
    final_lr_fraction: float = field(0.0, "where cosine ends, over lr", least=0, most=1)
    b1: float = field(0.9, "decay of the first moment", least=0, below=1)
    b2: float = field(0.999, "decay of the second moment", least=0, below=1)
    weight_decay: float = field(0.0, "decoupled weight decay")
    clip_norm: float = field(1.0, "of the global gradient norm; 0: no clip", least=0)
    momentum_dtype: Literal["float32", "bfloat16"] = field("float32", "bfloat16 saves two bytes a parameter")
    total_steps: int = 1000  # train.steps
    eps: float = 1e-8


def schedule(cfg: OptimizerConfig) -> optax.Schedule:
    """Learning rate against step: linear warm-up to `lr`, then cosine to `final_lr_fraction * lr`, or constant."""
    warmup = min(cfg.warmup_steps, cfg.total_steps)
    if cfg.schedule == "constant":
        after = optax.constant_schedule(cfg.lr)
    else:
        after = optax.cosine_decay_schedule(cfg.lr, max(1, cfg.total_steps - warmup), cfg.final_lr_fraction)
    # The first step has lr / (warmup + 1), not 0, so that it changes something.
    ramp = optax.linear_schedule(cfg.lr / (warmup + 1), cfg.lr, max(1, warmup))
    return optax.join_schedules([ramp, after], [warmup])


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, bit for bit, in the gradient's own memory.

    Optax's chooses between the gradient and the clipped one where the moments are made, so both trees exist until then.
    """

    def update(grads, state, params=None):
        norm = optax.tree.norm(grads)
        within = norm < most
        by, to = jnp.where(within, 1.0, norm), jnp.where(within, 1.0, most)
        return jax.tree.map(lambda g: (g / by.astype(g.dtype)) * to.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(cfg: OptimizerConfig) -> optax.GradientTransformation:
    """clip by global norm, then AdamW. Norms and biases (arrays of one layer axis and one other) do not decay."""

    def decays(params):
        layers = {k: v.ndim > 2 and not k.endswith("bias") for k, v in params["layers"].items()}
        return {k: v.ndim > 1 for k, v in params.items() if k != "layers"} | {"layers": layers}

    return optax.chain(
        clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        optax.adamw(
            schedule(cfg),
            cfg.b1,
            cfg.b2,
            cfg.eps,
            mu_dtype=cfg.momentum_dtype,
            weight_decay=cfg.weight_decay,
            mask=decays,
        ),
    )
