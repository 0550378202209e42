"""The model as a run computes it: what the config and the platform decide of its `ModelConfig`."""

import dataclasses
import sys

from jax.sharding import Mesh

from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.errors import UserError
from rl_likelihood.model import architecture, splash
from rl_likelihood.model.architecture import ModelConfig, Params, param_specs
from rl_likelihood.runtime import distributed
from rl_likelihood.settings import SIZES, Config


def _check_experts(c: Config) -> None:
    """Refuses what is not computed for the matrices of experts."""
    targets = [name for name in c.lora.targets if name in ("gate", "up", "down")]
    for field, value, refused, advice in (
        ("lora.targets", " ".join(targets), c.lora.rank and targets, "name only q, k, v and o"),
        ("lora.base_dtype", "int8", c.lora.rank and c.lora.base_dtype == "int8", "set it to bfloat16"),
        ("sampler.weights", "int8", c.sampler.weights == "int8", "set it to compute"),
    ):
        if refused:
            raise UserError(f"{field}: {value} does not work for a mixture of experts; {advice}")


def run_on(model: ModelConfig, c: Config, platform: str) -> ModelConfig:
    """The model with its run-time settings: the fields of ModelConfig that the config and the platform decide."""
    if model.experts:
        _check_experts(c)
    dtype, attention = c.model.compute_dtype, c.model.attention
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    reason = splash.refused(model.head_dim, model.local.window if model.local else 0)
    if attention == "splash" and (reason or platform != "tpu"):
        reason = reason or f"it is for TPUs, and this is {platform}"
        raise UserError(f"model.attention is 'splash', but {reason}; set it to auto or dense")
    if attention == "auto":
        attention = "splash" if platform == "tpu" and not reason else "dense"
        if platform == "tpu" and reason and distributed.first():
            print(f"attention dense, without the splash kernel: {reason}", file=sys.stderr, flush=True)
    return dataclasses.replace(
        model,
        compute_dtype=dtype,
        scan_layers=c.model.layers == "scan" or (c.model.layers == "auto" and platform != "cpu"),
        remat=c.model.remat,
        attention=attention,
        scratch_kib=c.model.scratch_kib,
    )


def rollout_model(c: Config, model: ModelConfig) -> ModelConfig:
    """The model whose decoding layout training samples from."""
    return dataclasses.replace(model, int8_decoding=c.sampler.weights == "int8")


def param_shardings(mesh: Mesh, model: ModelConfig) -> Params:
    return architecture.shardings(param_specs(model), mesh)


def random_model(preset: str) -> ModelConfig:
    """The architecture of a random model of a size in `settings.SIZES`, with the byte tokenizer."""
    width, layers, heads, kv_heads, mlp = SIZES[preset]
    vocab = len(byte_tokenizer())
    return ModelConfig("llama", vocab, width, layers, heads, kv_heads, width // heads, mlp, max_position=2048)
