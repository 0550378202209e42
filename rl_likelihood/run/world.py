"""What every main needs once its config is read: model, tokenizer, chain format, questions as ids, mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rl_likelihood import config as configs
from rl_likelihood import mesh as meshes
from rl_likelihood.config import SIZES, Settings
from rl_likelihood.data import grading, prompts, sources
from rl_likelihood.data import tokenizer as tokenizers
from rl_likelihood.data.byte_tokenizer import BYTES, byte_tokenizer
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.model import assets, decoder, weights
from rl_likelihood.model.decoder import ModelConfig, Params
from rl_likelihood.pod import checkpoint
from rl_likelihood.sampler.decode import SamplerConfig
from rl_likelihood.shapes import CHAIN, SAMPLED, ChainFormat, Prompts, Rollout, UserError

if TYPE_CHECKING:  # data.tokenizer imports it quietly, and this would come before
    from transformers import PreTrainedTokenizerBase

# Purposes of random keys: key = fold_in(fold_in(key(seed), purpose), step).
INIT, SAMPLE, EVALUATE, WARM_START = range(4)


@dataclasses.dataclass(frozen=True)
class World:
    """Fixed for a run. `train`, `heldout`: questions in ids; `model_path`: where weights and tokenizer came from."""

    settings: Settings
    model: ModelConfig
    model_path: str
    tokenizer: PreTrainedTokenizerBase
    fmt: ChainFormat
    train: list[EncodedExample]
    heldout: list[EncodedExample]
    data_line: str

    @property
    def config(self) -> ConfigDict:
        return self.settings.config

    @property
    def answer_room(self) -> int:
        """Tokens that evaluation lets a sampled answer have."""
        return self.config.eval.max_sampled_answer or self.config.prompt.max_answer

    def key(self, purpose: int, step: int = 0) -> jax.Array:
        """The random key of one purpose at one step."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), purpose), step)

    def collate(self, rows: list[EncodedExample], uid: np.ndarray, max_prompt: int = 0) -> Prompts:
        """Rows as fixed-width arrays; `uid` names their random keys."""
        c = self.config.prompt
        return prompts.collate(rows, uid, max_prompt or c.max_prompt, c.max_answer, self.fmt.pad_id)

    def sampler(self, **changes: Any) -> SamplerConfig:
        """The config's sampler for this model and format."""
        c = self.config.sampler
        return SamplerConfig(**{
            "model": self.model, "chain_format": self.fmt, "group_size": c.group_size, "max_chain": c.max_chain,
            "max_sampled_answer": configs.sampled_answer(self.config), "temperature": c.temperature,
            "width_multiple": c.width_multiple, "slots": c.slots, **changes,
        })  # fmt: skip

    def sampled_text(self, rollout: Rollout) -> list[list[str]]:
        """Text of what was sampled, [P][G]: chain, tags the policy wrote itself, sampled answer."""
        kept = (rollout.segment == CHAIN) | (rollout.segment == SAMPLED)
        return [
            [self.tokenizer.decode(ids[k], skip_special_tokens=True) for ids, k in zip(*group, strict=True)]
            for group in zip(rollout.completion, kept, strict=True)
        ]

    def sampled_answers(self, rollout: Rollout) -> list[list[str | None]]:
        """The sampled answers, [P][G]; None where the row is not in the format."""
        return [[grading.extract_answer(t, self.fmt) for t in group] for group in self.sampled_text(rollout)]


def model_settings(c: ConfigDict) -> dict[str, Any]:
    """How to run the model: the part of ModelConfig that the config decides."""
    return {name: c.model[name] for name in ("compute_dtype", "scan_layers", "remat")}


def load_model(c: ConfigDict) -> tuple[ModelConfig, Params, str]:
    """(ModelConfig, parameters on the host, where the tokenizer is), from weights, a workdir, or at random."""
    if c.model.preset:
        width, layers, heads, kv_heads, mlp = SIZES[c.model.preset]
        vocab = len(byte_tokenizer())
        cfg = ModelConfig("llama", vocab, width, layers, heads, kv_heads, width // heads, mlp, max_position=2048)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(c.seed), INIT), 0)
        params = jax.tree.map(np.asarray, decoder.init(key, cfg))
        path = BYTES
    elif (Path(c.model.path) / checkpoint.FOLDER).is_dir():
        cfg, params, _, path = checkpoint.restore_params(c.model.path)
    else:
        path = str(Path(assets.resolve(c.model.path)).resolve())
        cfg, params = weights.load(path)
    return dataclasses.replace(cfg, **model_settings(c)), params, path


def load_tokenizer(path: str) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """The tokenizer that belongs to `load_model`'s path, and the ids that end a text."""
    if path == BYTES:
        tokenizer = byte_tokenizer()
        return tokenizer, (tokenizer.eos_token_id,)
    tokenizer = tokenizers.load_tokenizer(path, require_template=True)
    return tokenizer, tokenizers.eos_ids(tokenizer, path)


def load(settings: Settings, training: bool = True) -> tuple[World, Params]:
    """The world of a config, and the parameters it starts from. Every refusal about files is made here.

    An evaluation (`training` False) loads no training questions.
    """
    c = settings.config
    # Questions first: they are quick to refuse, weights are not.
    train, heldout, report = sources.load(settings.data, training)
    if not heldout and c.eval.prompts:
        raise UserError("data.heldout_size is 0 but eval.prompts is not; hold some questions out or set eval.prompts=0")
    model, params, path = load_model(c)
    tokenizer, eos_ids = load_tokenizer(path)
    vocab_bytes = tokenizers.vocab_bytes(tokenizer, model.vocab_size)
    fmt = prompts.chain_format(tokenizer, vocab_bytes, eos_ids, settings.prompt)
    sampled_answer = max(configs.sampled_answer(c), c.eval.max_sampled_answer, c.prompt.max_answer)
    room = c.prompt.max_prompt + c.sampler.max_chain + len(fmt.close_think_ids) + sampled_answer
    if room > model.max_position:
        raise UserError(
            f"prompt.max_prompt + sampler.max_chain + tags + answer = {room}, "
            f"more than the {model.max_position} positions of the model; lower one of them"
        )
    world = World(
        settings, model, path, tokenizer, fmt,
        prompts.encode_all(train, tokenizer, settings.prompt, fmt),
        prompts.encode_all(heldout, tokenizer, settings.prompt, fmt),
        sources.describe(settings.data, train, heldout, report),
    )  # fmt: skip
    return world, params


def in_batches(rows: list, size: int) -> Iterator[tuple[int, list]]:
    """(where it starts, rows) of batches of exactly `size`: one shape, one program. The last row fills up the last."""
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        yield at, part + part[-1:] * (size - len(part))


def make_mesh(c: ConfigDict) -> jax.sharding.Mesh:
    """The config's mesh over all devices."""
    n = jax.device_count()
    fsdp = c.mesh.fsdp or max(1, n // (c.mesh.data * c.mesh.tensor))
    mesh = meshes.make_mesh((c.mesh.data, fsdp, c.mesh.tensor))
    name = "train.micro_batch_prompts" if c.train.micro_batch_prompts else "train.prompts_per_step"
    prompts, parts = configs.get(c, name), c.mesh.data * fsdp
    if prompts % parts:
        raise UserError(
            f"{name} is {prompts}, which mesh.data x mesh.fsdp = {parts} does not divide; "
            f"the nearest that it does is {max(1, round(prompts / parts)) * parts}"
        )
    return mesh
