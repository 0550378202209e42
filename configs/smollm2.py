"""SmolLM2-135M-Instruct on an arithmetic task with any reward.

    python -m rl_likelihood.train --config=configs/smollm2.py:task=chain_sum,reward=prob --workdir=runs/chain_sum_prob

Arguments: task (basic_arithmetic, chain_sum), reward, group, prompts, steps, seed.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, task="basic_arithmetic", reward="log_prob", group=8, prompts=4, steps=200, seed=0)
    c = base()
    c.seed = a.seed
    c.model.path = "smollm2-135m-instruct"
    c.data.tasks = (a.task,)
    c.data.train_size = 2000
    c.data.heldout_size = 128
    c.prompt.examples = 2
    c.prompt.max_prompt = {"basic_arithmetic": 160}.get(a.task, 200)
    c.prompt.max_answer = 9
    c.sampler.group_size = a.group
    c.sampler.max_chain = 48
    c.sampler.width_multiple = 16
    c.reward.name = a.reward
    # With force_close a chain that never closes costs nothing, and this model soon stops closing them.
    c.reward.truncated = "floor"
    c.reward.floor = -7.0
    c.optim.lr = 3e-5
    c.optim.warmup_steps = 5
    c.train.steps = a.steps
    c.train.prompts_per_step = a.prompts
    c.train.eval_every = 50
    c.eval.prompts = 128
    c.eval.batch_prompts = 64
    return c
