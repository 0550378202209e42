"""Two CPU cores, no download: 1.6 M random weights are taught to call a calculator, and go on by RL.

    python -m rl_likelihood.train --config=configs/calculator.py --workdir=runs/calculator

Countdown as a conversation: the model tries an expression with the tool `calculate`, reads its value, and gives one
with `submit`, which ends the game. A supervised warm start on conversations teaches the calls; then RL on the
environment's reward. Use it to watch multi-turn rollouts at work, and for tests. Half an hour or more (estimate); how
far it learns has not been measured.

Arguments: reward (environment, avg_log_prob, ...), credit (outcome, turn), group, steps, seed.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, reward="environment", credit="outcome", group=8, steps=100, seed=0)
    c = base()
    c.seed = a.seed
    c.model.preset = "tiny"
    c.data.tasks = ("calculator",)
    c.data.train_size = 2000
    c.data.heldout_size = 128
    c.env.name = "calculator"
    c.env.style = "json"
    c.env.credit = a.credit
    c.prompt.max_prompt = 352
    c.prompt.max_answer = 64
    c.sampler.group_size = a.group
    c.sampler.max_chain = 72
    c.sampler.max_turns = 3
    c.sampler.max_env_tokens = 96
    c.sampler.width_multiple = 128
    c.reward.name = a.reward
    c.optim.lr = 3e-4
    c.optim.warmup_steps = 5
    c.train.steps = a.steps
    c.train.prompts_per_step = 8
    c.train.eval_every = 20
    c.warm_start.steps = 300
    c.warm_start.chains = "given"
    c.warm_start.prompts = 2000
    c.warm_start.prompts_per_step = 32
    c.warm_start.lr = 3e-3
    c.eval.prompts = 128
    c.eval.batch_prompts = 128
    c.eval.grader = "none"
    return c
