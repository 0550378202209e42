"""Internal feedback without a reference (Zhang et al. 2506.17219): token entropy, trajectory and self-certainty.

    python -m rl_likelihood.datasets.prepare --dataset=math --source=MATH.tar,test.jsonl --out=data
    python -m rl_likelihood.sweep experiments/rlif.py --run --runner=ray

12 runs: {Qwen2.5-3B, Qwen2.5-3B-Instruct, Qwen3-1.7B-Base, Qwen3-4B-Base} on MATH x three rewards, 80 steps. Transition
words are "but", "wait", "let me check" and the like, per hundred words of a chain. --report shows them as a curve;
metrics.jsonl has chain/transition_words and eval.jsonl has transition_words.

Hardware: one v5p-8 slice (4 chips) a run. Time: not measured. 1,024 sequences of up to 3,072 tokens a step and 80 steps
take about 5 hours for the 4B model by the arithmetic of paper_verifiable.py.

What to expect (the paper's numbers, second-hand; MATH-500 at steps 0, 20, 80): Qwen2.5-3B .524, .583, .454; Qwen3-1.7B
.587, .621, .532; Qwen3-4B .591, .571, .522. So there is a gain for about 20 steps, then a fall below the start.
Transition words get rarer (steps 0 to 80, per hundred words: Qwen3-1.7B 5.4 to 3.4, Qwen3-4B 5.3 to 4.4, Qwen2.5-3B 0.7
to 0.3). Instruct models, whose entropy is low at the start, gain nothing.
"""

from __future__ import annotations

from experiments.intuitor import TRAINING
from rl_likelihood.sweeps.grid import Overrides, named, product, sweep

RESOURCES = {"TPU": 4}
# Base models, and one instruct model whose entropy is low.
MODELS = {
    name.lower(): {"model.path": f"models/{name}"}
    for name in ("Qwen2.5-3B", "Qwen2.5-3B-Instruct", "Qwen3-1.7B-Base", "Qwen3-4B-Base")
}
# 128 prompts, G 8, completions of 3,072 tokens and more. Learning rate and KL are inferred.
SETTINGS: Overrides = TRAINING | {
    "preset": "grpo",
    "sampler.group_size": 8,
    "sampler.temperature": 1.0,
    "optim.lr": 1e-6,
    "optim.warmup_steps": 0,
    "optim.schedule": "constant",
    "train.steps": 80,
    "train.eval_every": 20,
    "train.checkpoint_every": 20,
    "reward.entropy_base": "2",  # cancels when divided by the group's standard deviation
}
# Means over tokens of -H, of log pi, and self-certainty.
REWARDS = {name: {"reward.name": name} for name in ("token_entropy", "trajectory", "self_certainty")}


def get_sweep() -> list[Overrides]:
    return product([SETTINGS], named("model", MODELS), named("reward", REWARDS), sweep("seed", (0,)))
