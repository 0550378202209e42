"""Some minutes on a CPU, no download: 1.5 M random weights learn sums of three digits.

    python -m rl_likelihood.train --config=configs/tiny.py --workdir=runs/tiny

A supervised warm start on chains whose steps are wrong a quarter of the time, then RL on the likelihood of
the right answer. Seen once (seed 0, stopped after step 51, 7 minutes beside another run): 18 % greedy success
after the warm start; training reward -2.66 at step 10 and -1.90 at step 50, perplexity 2.9 and 2.3.

Arguments: reward, group, steps, seed, as configs/tiny.py:reward=jepo,steps=50.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, reward="log_prob", group=8, steps=60, seed=0)
    c = base()
    c.seed = a.seed
    c.model.preset = "tiny"
    c.data.tasks = ("faulty_sums",)
    c.data.train_size = 1500
    c.data.heldout_size = 128
    c.prompt.instruction = "Add."
    c.prompt.use_system = False
    c.prompt.max_prompt = 32
    c.prompt.max_answer = 10
    c.sampler.group_size = a.group
    c.sampler.max_chain = 32
    c.reward.name = a.reward
    c.optim.lr = 3e-4
    c.optim.warmup_steps = 5
    c.train.steps = a.steps
    c.train.prompts_per_step = 16
    c.train.eval_every = 30
    c.warm_start.steps = 300
    c.warm_start.chains = "given"
    c.warm_start.prompts = 1500
    c.warm_start.prompts_per_step = 64
    c.warm_start.lr = 2e-3
    c.eval.prompts = 128
    c.eval.batch_prompts = 128
    return c
