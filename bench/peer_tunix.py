"""Tunix's GRPOLearner on the workload of bench/peers.py, which starts this file in Tunix's own environment.

python peer_tunix.py MODEL PROMPTS GROUP PROMPT COMPLETION MICRO_BATCH_PROMPTS
"""

import sys

import jax
import numpy as np
import optax
from flax import nnx
from peer_protocol import SHAPES, Iteration
from tunix.models.llama3 import model as llama
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

P, G, S, T, MICRO = map(int, sys.argv[2:7])
M, STEPS = SHAPES[sys.argv[1]], 100


class Words:
    """A tokenizer of words: "w17" is 17."""

    def encode(self, text, **_):
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(f"w{i}" for i in np.asarray(ids).tolist())

    def bos_id(self):
        return None

    def eos_id(self):
        return 1

    def pad_id(self):
        return 0

    def dedup_bos_ids(self, ids):
        return ids


shape = llama.ModelConfig(
    num_layers=M["layers"],
    vocab_size=M["vocab"],
    embed_dim=M["width"],
    hidden_dim=M["mlp"],
    num_heads=M["heads"],
    head_dim=M["head_dim"],
    num_kv_heads=M["kv_heads"],
    rope_theta=10_000,
    norm_eps=1e-5,
    weight_tying=True,
)
mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
with mesh:
    actor, reference = llama.Llama3(shape, rngs=nnx.Rngs(0)), llama.Llama3(shape, rngs=nnx.Rngs(0))
role = rl_cluster.Role
cluster = rl_cluster.RLCluster(
    actor=actor,
    reference=reference,
    tokenizer=Words(),
    cluster_config=rl_cluster.ClusterConfig(
        role_to_mesh={r: mesh for r in (role.ACTOR, role.REFERENCE, role.ROLLOUT)},
        rollout_engine="vanilla",
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6)),
            eval_every_n_steps=10**6,
            max_steps=STEPS,
            mini_batch_size=P,
            train_micro_batch_size=MICRO,
            rollout_micro_batch_size=P,
            compute_logps_micro_batch_size=MICRO,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=T,
            max_prompt_length=S,
            kv_cache_size=S + T,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            eos_tokens=[M["vocab"] + 7],
        ),
    ),
)
iteration, began = Iteration(), []
generate = cluster.generate


def timed_generate(*args, **kwargs):
    """Each iteration begins with its generation, which is also where the one before it ended."""
    if began:
        iteration.end()
    began.append(True)
    iteration.start()
    out = generate(*args, **kwargs)
    assert all(len(ids) == T for ids in out.tokens), "a completion ended early"
    return out


cluster.generate = timed_generate
learner = grpo_learner.GRPOLearner(
    rl_cluster=cluster,
    reward_fns=lambda prompts, completions, **_: [float(len(set(c.split()))) for c in completions],
    algo_config=grpo_learner.GRPOConfig(num_generations=G, num_iterations=1, beta=0.04, epsilon=0.2),
)
rng = np.random.default_rng(0)
texts = [[" ".join(f"w{i}" for i in rng.integers(3, M["vocab"], S)) for _ in range(P)] for _ in range(STEPS)]
with mesh:
    learner.train([{"prompts": np.array(batch)} for batch in texts])
