"""Intuitor (Zhao et al. 2505.19590): self-certainty against GRPO with a rule, against a plurality vote, and its KL.

    python -m rl_likelihood.datasets.prepare --dataset=math --source=MATH.tar,test.jsonl --out=data
    python -m rl_likelihood.sweep experiments/intuitor.py --run --runner=ray

12 runs: Qwen2.5-1.5B and 3B on MATH x {self_certainty, grpo, plurality vote, self_certainty with KL 0, 1e-4, 1e-2}.

Hardware: one v5p-8 slice (4 chips) a run. Time: not measured. 896 sequences of up to 3,072 tokens a step and 58 steps
take about 3 hours for the 3B model by the arithmetic of paper_verifiable.py.

What to expect (their table 1, greedy on MATH-500; ours is the whole test split of MATH): 1.5B 9.0 % untouched, 56.0 %
GRPO, 53.0 % Intuitor; 3B 54.4 %, 63.6 %, 61.2 %, vote 63.6 %. KL 0, 1e-4, 5e-3, 1e-2: 59.8, 61.6, 61.2, 61.8 %. Users
report that long runs collapse: scores fall, outputs get shorter and repeat. The console warns of it.
"""

from __future__ import annotations

from rl_likelihood.sweeps.grid import Overrides, chain, named, product, sweep

RESOURCES = {"TPU": 4}
MODELS = {
    "qwen2.5-1.5b": {"model.path": "models/Qwen2.5-1.5B"},
    "qwen2.5-3b": {"model.path": "models/Qwen2.5-3B"},
}
# The paper: 128 prompts, G 7, 58 steps, completions of 3,072 tokens, T 0.9, lr 3e-6 (its text says 3e-5), cosine, a
# tenth of warm-up, AdamW 0.9 / 0.999. Its prompts have 512 tokens; the config's may be longer.
TRAINING: Overrides = {
    "config": "configs/math.py",
    "prompt.max_answer": 128,
    "sampler.group_size": 7,
    "sampler.temperature": 0.9,
    "sampler.max_chain": 2944,
    "sampler.width_multiple": 256,
    "optim.lr": 3e-6,
    "optim.schedule": "cosine",
    "optim.warmup_steps": 6,
    "train.steps": 58,
    "train.prompts_per_step": 128,
    "train.micro_batch_prompts": 4,
    "train.eval_every": 10,
    "train.checkpoint_every": 10,
    "eval.grader": "math",
}
# beta is 0.005 (their table of settings says 0.0005). The KL sweep is theirs. The vote has the same settings.
METHODS = {
    "self_certainty": {"preset": "intuitor"},
    "grpo": {"preset": "intuitor", "reward.name": "math"},
    "plurality": {"preset": "intuitor", "reward.name": "majority_vote"},
}
KL = {f"self_certainty, kl {beta:g}": {"preset": "intuitor", "loss.kl_coef": beta} for beta in (0.0, 1e-4, 1e-2)}


def get_sweep() -> list[Overrides]:
    methods = chain(named("reward", METHODS), named("reward", KL))
    return product([TRAINING], named("model", MODELS), methods, sweep("seed", (0,)))
