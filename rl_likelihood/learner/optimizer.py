"""Optimizers from optax, with warm-up, a schedule and clipping by global norm."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from optax.contrib import MuonDimensionNumbers, muon

from rl_likelihood.fields import field
from rl_likelihood.mesh import replicated
from rl_likelihood.model.architecture import Params, abstract, shardings


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    name: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = field(
        "adamw",
        "adamw: two moments per parameter; adafactor: sums of rows and columns, least memory; lion: the sign of one "
        "moment; muon: one moment, orthogonalised, for matrices, else adamw; sgd: momentum",
    )
    lr: float = field(1e-5, "peak learning rate", least=0, most=100)
    schedule: Literal["cosine", "linear", "wsd", "constant"] = field(
        "cosine", "after the warm-up; wsd: constant, then linear to the end"
    )
    warmup_steps: int = field(20, "steps of linear warm-up", least=0)
    decay_fraction: float = field(0.2, "wsd: share of the steps in which the rate falls, at the end", above=0, most=1)
    final_lr_fraction: float = field(0.0, "final learning rate, as a share of lr", least=0, most=1)
    b1: float = field(0.9, "decay of the first moment; momentum of sgd", least=0, below=1)
    b2: float = field(0.999, "decay of the second moment; of lion's only moment", least=0, below=1)
    weight_decay: float = field(0.0, "decoupled weight decay of matrices", least=0, most=1e3)
    clip_norm: float = field(1.0, "maximum global gradient norm; 0: no clipping", least=0)
    momentum_dtype: Literal["float32", "bfloat16"] = field("float32", "bfloat16 saves two bytes a parameter")
    total_steps: int = 1000  # train.steps
    eps: float = 1e-8


def schedule(cfg: OptimizerConfig) -> optax.Schedule:
    """The learning rate of each step: linear warm-up to `lr`, then constant or falling to `final_lr_fraction * lr`."""
    warmup = min(cfg.warmup_steps, cfg.total_steps)
    steps_after_warmup, end = max(1, cfg.total_steps - warmup), cfg.final_lr_fraction
    # The first step has lr / (warmup + 1), not 0, so that it changes something.
    parts, bounds = [optax.linear_schedule(cfg.lr / (warmup + 1), cfg.lr, max(1, warmup))], [warmup]
    if cfg.schedule in ("constant", "wsd"):
        parts.append(optax.constant_schedule(cfg.lr))
    if cfg.schedule == "cosine":
        parts.append(optax.cosine_decay_schedule(cfg.lr, steps_after_warmup, end))
    if cfg.schedule in ("linear", "wsd"):
        falling = round(cfg.decay_fraction * cfg.total_steps) if cfg.schedule == "wsd" else steps_after_warmup
        steps = max(1, min(falling, steps_after_warmup))
        parts.append(optax.linear_schedule(cfg.lr, end * cfg.lr, steps))
        bounds += [max(warmup, cfg.total_steps - steps)] * (cfg.schedule == "wsd")
    return optax.join_schedules(parts, bounds)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with the same bits and less memory.

    Optax selects between the gradient and the clipped gradient, so both trees exist until the moments are computed.
    This version scales the gradient in place.
    """

    def update(grads, state, params=None):
        norm = optax.tree.norm(grads)
        small = norm < limit
        divisor, multiplier = jnp.where(small, 1.0, norm), jnp.where(small, 1.0, limit)
        return jax.tree.map(lambda g: (g / divisor.astype(g.dtype)) * multiplier.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decays(params: Params) -> Params:
    """True for parameters with weight decay: matrices, but not norms and biases (a layer axis and one more axis)."""
    layers = {k: v.ndim > 2 and not k.endswith("bias") for k, v in params["layers"].items()}
    return {k: v.ndim > 1 for k, v in params.items() if k != "layers"} | {"layers": layers}


def _adamw(cfg: OptimizerConfig, lr: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        lr, cfg.b1, cfg.b2, cfg.eps, mu_dtype=cfg.momentum_dtype, weight_decay=cfg.weight_decay, mask=decays
    )


def _adafactor(cfg: OptimizerConfig, lr: optax.Schedule) -> optax.GradientTransformation:
    """The learning rate has AdamW's meaning: it scales the weight decay too, and no parameter's norm scales updates."""
    if not cfg.weight_decay:
        return optax.adafactor(lr, multiply_by_parameter_scale=False)
    minus_update = optax.adafactor(None, multiply_by_parameter_scale=False)
    decay = optax.add_decayed_weights(-cfg.weight_decay, decays)
    return optax.chain(minus_update, decay, optax.scale_by_learning_rate(lr, flip_sign=False))


def _lion(cfg: OptimizerConfig, lr: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(lr, cfg.b1, cfg.b2, mu_dtype=cfg.momentum_dtype, weight_decay=cfg.weight_decay, mask=decays)


def _sgd(cfg: OptimizerConfig, lr: optax.Schedule) -> optax.GradientTransformation:
    momentum = optax.trace(cfg.b1, accumulator_dtype=cfg.momentum_dtype) if cfg.b1 else optax.identity()
    decay = optax.add_decayed_weights(cfg.weight_decay, decays) if cfg.weight_decay else optax.identity()
    return optax.chain(momentum, decay, optax.scale_by_learning_rate(lr))


# For each stacked matrix (axis 0 is the layer): its input (reduction) axes and its output axes, as Muon wants them.
_MATRICES = {
    **dict.fromkeys(("q", "k", "v"), ((1,), (2, 3))),
    **dict.fromkeys(("gate", "up", "down"), ((1,), (2,))),
    "o": ((1, 2), (3,)),
}
_OF_EXPERTS = dict.fromkeys(("gate", "up", "down"), ((2,), (3,)))  # after an axis of experts


def _muon(cfg: OptimizerConfig, lr: optax.Schedule) -> optax.GradientTransformation:
    """Muon for the matrices of each layer, with the step size of AdamW; AdamW for all other parameters."""

    def axes(params):
        known = _MATRICES | (_OF_EXPERTS if "router" in params["layers"] else {})
        layers = {k: MuonDimensionNumbers(*known[k]) if k in known else None for k in params["layers"]}
        return {k: None for k in params if k != "layers"} | {"layers": layers}

    return muon(
        lr,
        beta=cfg.b1,
        adam_b1=cfg.b1,
        adam_b2=cfg.b2,
        mu_dtype=cfg.momentum_dtype,
        weight_decay=cfg.weight_decay,
        muon_weight_dimension_numbers=axes,
        consistent_rms=0.2,
    )


# Fields of OptimizerConfig that an optimizer does not read.
UNREAD = {"adafactor": ("b1", "b2", "momentum_dtype"), "sgd": ("b2",)}
OPTIMIZERS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon, "sgd": _sgd}


def make_optimizer(cfg: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer of the config, after clipping by global norm."""
    clip = clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, OPTIMIZERS[cfg.name](cfg, schedule(cfg)))


def moment_shardings(mesh: Mesh, optimizer: optax.GradientTransformation, specs: dict[str, Any]):
    """Shardings of the optimizer's state for parameters with these specs: each moment as its parameter, everything else
    replicated."""
    everywhere, shapes, placed = replicated(mesh), abstract(specs), jax.tree.leaves(shardings(specs, mesh))
    by_path = {path: (x.shape, at) for (path, x), at in zip(jax.tree.leaves_with_path(shapes), placed, strict=True)}

    def moment(path, x):
        """The sharding of the parameter whose path is the end of `path`, if the shapes agree; else replicated."""
        for start in range(len(path)):
            shape, at = by_path.get(path[start:], (None, everywhere))
            if shape == x.shape:
                return at
        return everywhere

    return jax.tree.map_with_path(moment, jax.eval_shape(optimizer.init, shapes))
