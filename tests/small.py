"""Small models and batches, and a decoder written again in numpy float64, for the tests of the mathematics.

The reference decoder takes one unpadded sequence and knows neither groups, caches nor branches: what
the package computes for a group must be what it computes for each branch as a sequence of its own.
"""

import dataclasses
import math

import jax
import numpy as np

from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.architecture import ModelConfig, Spec, param_specs
from rl_likelihood.model.rope import LinearScaling
from rl_likelihood.progress import Progress
from rl_likelihood.rewards.reward import RewardConfig
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, TAG, Batch
from rl_likelihood.tables import parse_reward

# The suite disables optimizations to save time. Tests that read compiled texts enable them, as for users.
OPTIMIZED = {"xla_llvm_disable_expensive_passes": False, "xla_backend_optimization_level": 2}
TINY = ModelConfig(
    family="llama", vocab_size=24, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=16, rope_theta=100.0
)


def tiny(**changes) -> ModelConfig:
    return dataclasses.replace(TINY, **changes)


def random_params(cfg, seed=0, scale=0.35):
    """Every parameter random, norms and biases too, large enough that distributions are far from uniform."""
    rng = np.random.default_rng(seed)

    def draw(spec):
        mean, spread = (1.0, 0.2) if spec.init == "ones" else (0.0, scale)
        return (mean + spread * rng.normal(size=spec.shape)).astype(np.float32)

    return jax.tree.map(draw, param_specs(cfg), is_leaf=lambda x: isinstance(x, Spec))


def one_device():
    return make_mesh((1, 1, 1), jax.devices()[:1])


def random_batch(seed, p=4, g=3, s=5, t=10, vocab=24, sampled=False):
    """Ragged prompts, chains of 1 to 4 ids, tags after truncated ones, 1 to 3 answer ids, garbage as padding.

    The first id of every other prompt's reference answer stands for a delimiter, which is not scored.
    """
    rng = np.random.default_rng(seed)
    completion = rng.integers(0, vocab, (p, g, t))
    segment = np.zeros((p, g, t), np.int32)
    scored = np.zeros((p, g, t), bool)
    truncated = rng.random((p, g)) < 0.3
    for i in range(p):
        answer = rng.integers(0, vocab, rng.integers(1, 4))
        for j in range(g):
            cut, other = truncated[i, j], sampled and not truncated[i, j]
            parts = [CHAIN] * rng.integers(1, 5) + [TAG] * (2 * cut) + [SAMPLED] * (other * rng.integers(0, 3))
            n = len(parts)
            segment[i, j, : n + len(answer)] = parts + [REFERENCE] * len(answer)
            completion[i, j, n : n + len(answer)] = answer
            scored[i, j, n + (i % 2 and len(answer) > 1) : n + len(answer)] = True
    return Batch(
        prompt=rng.integers(0, vocab, (p, s)).astype(np.int32),
        prompt_length=rng.integers(1, s + 1, p).astype(np.int32),
        completion=completion.astype(np.int32),
        segment=segment,
        scored=scored,
        sampler_logp=-rng.exponential(2.0, (p, g, t)).astype(np.float32),
        host_rewards={"math": rng.normal(size=(p, g)).astype(np.float32)},
        truncated=truncated,
        keep=np.ones((p, g), bool),
    )


def rewarded(name, **changes):
    """A StepConfig whose reward is `name`, as in a config. `changes`: fields of StepConfig or of RewardConfig."""
    own = {f.name: changes.pop(f.name) for f in dataclasses.fields(RewardConfig) if f.name in changes}
    return StepConfig(reward=RewardConfig(terms=parse_reward(name), **own), **changes)


def branches(batch, i, j):
    """Row (i, j) as plain sequences: [(ids, positions in the row of the ids after the prompt), ...]."""
    prompt, segment = batch.prompt[i, : batch.prompt_length[i]], batch.segment[i, j]
    without = [np.flatnonzero((segment != 0) & (segment != kind)) for kind in (SAMPLED, REFERENCE)]
    return [(np.concatenate([prompt, batch.completion[i, j, at]]), at) for at in without]


def reference_log_distributions(params, cfg, batch, temperature=1.0):
    """Log-probs [P, G, T, V] float64 that each completion token was drawn from, each branch a sequence of its own.

    Chain and sampled answer at `temperature`, the forced tokens at 1; 0 on padding.
    """
    out = np.zeros((*batch.segment.shape, cfg.vocab_size))
    for i, j in np.ndindex(out.shape[:2]):
        for ids, at in branches(batch, i, j):
            logits = reference_logits(params, cfg, ids)[batch.prompt_length[i] - 1 : -1]
            was_sampled = np.isin(batch.segment[i, j, at], (CHAIN, SAMPLED))
            out[i, j, at] = log_softmax(logits / np.where(was_sampled, temperature, 1.0)[:, None])
    return out


def reference_log_probs(params, cfg, batch, temperature=1.0):
    """Log-probs [P, G, T] float64 of the completion tokens themselves; 0 on padding."""
    table = reference_log_distributions(params, cfg, batch, temperature)
    return np.take_along_axis(table, batch.completion[..., None], -1)[..., 0]


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def reference_logits(params, cfg, ids):
    """Logits [N, V] of a plain sequence: a decoder with loops over heads and rotations as complex products."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    n, half, ratio = len(ids), cfg.head_dim // 2, cfg.heads // cfg.kv_heads
    before, after = cfg.norms != "after", cfg.norms != "before"

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * (scale + cfg.norm_offset)

    def activated(z):
        if cfg.activation == "silu":
            return z / (1 + np.exp(-z))
        return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    def mlp(y, gate, up, down):
        return (activated(y @ gate) * (y @ up)) @ down

    def of_experts(y, w):
        """Of one token."""
        chance = np.exp(log_softmax(y @ w["router"]))
        best = np.argsort(-chance)[: cfg.experts_per_token]
        whole = chance[best].sum() if cfg.norm_topk_prob else 1
        return sum(chance[e] / whole * mlp(y, *(w[name][e] for name in ("gate", "up", "down"))) for e in best)

    x = params["embed"][ids] * (math.sqrt(cfg.width) if cfg.scaled_embedding else 1)
    for layer in range(cfg.layers):
        w = {name: value[layer] for name, value in params["layers"].items()}
        local = cfg.local if cfg.local and cfg.local.which[layer] else None
        rotation = np.exp(1j * np.arange(n)[:, None] * reference_frequencies(cfg, local and local.theta))
        window = local.window if local and local.window else n
        visible = [[j <= i < j + window for j in range(n)] for i in range(n)]

        def projected(y, name, head, w=w):
            heads = [y @ w[name][:, i] for i in range(w[name].shape[1])]
            if cfg.qkv_bias:
                heads = [z + w[f"{name}_bias"][i] for i, z in enumerate(heads)]
            if not cfg.qk_norm or name == "v":
                return heads[head]
            scale = w[f"{name}_norm"]
            if cfg.qk_norm_joint:
                return np.split(norm(np.concatenate(heads, -1), scale), len(heads), -1)[head]
            return norm(heads[head], scale)

        def rotated(x, rotation=rotation):
            z = (x[:, :half] + 1j * x[:, half:]) * rotation
            return np.concatenate([z.real, z.imag], -1)

        y, out = norm(x, w["attn_norm"]) if before else x, 0
        for head in range(cfg.heads):
            q, k = rotated(projected(y, "q", head)), rotated(projected(y, "k", head // ratio))
            score = np.where(visible, q @ k.T / math.sqrt(cfg.query_width or cfg.head_dim), -np.inf)
            out = out + np.exp(log_softmax(score)) @ projected(y, "v", head // ratio) @ w["o"][head]
        x = x + (norm(out, w["attn_out_norm"]) if after else out)
        y = norm(x, w["mlp_norm"]) if before else x
        out = np.stack([of_experts(z, w) for z in y]) if cfg.experts else mlp(y, w["gate"], w["up"], w["down"])
        x = x + (norm(out, w["mlp_out_norm"]) if after else out)
    return norm(x, params["final_norm"]) @ params["embed" if cfg.tied else "head"].T


def reference_frequencies(cfg, local_theta=None):
    """Rotary frequencies; Llama 3 divides those of long wavelengths by `factor` and blends in between."""
    if local_theta == 0:
        return np.zeros(cfg.head_dim // 2)
    freq = (local_theta or cfg.rope_theta) ** (-np.arange(0, cfg.head_dim, 2) / cfg.head_dim)
    s = cfg.rope_scaling
    if s is None or local_theta:
        return freq
    if isinstance(s, LinearScaling):
        return freq / s.factor
    out = []
    for f in freq:
        wavelength = 2 * math.pi / f
        if wavelength < s.original_max_position / s.high_freq_factor:
            out.append(f)
        elif wavelength > s.original_max_position / s.low_freq_factor:
            out.append(f / s.factor)
        else:
            keep = (s.original_max_position / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
            out.append(keep * f + (1 - keep) * f / s.factor)
    return np.array(out)


def kept_progress(monkeypatch, name):
    """[(what, done when it began, done in the end, of how many)] of each later Progress of the module; it grows."""
    kept = []

    class Kept(Progress):
        def __enter__(self):
            self.began = self.done
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            kept.append((self.what, self.began, self.done, self.total))

    monkeypatch.setattr(name, Kept)
    return kept
