"""Two minutes on two CPU cores, no download: 1.6 M random weights on sums of three digits.

    python -m rl_likelihood.train --config=configs/tiny.py --workdir=runs/tiny

First a supervised warm start on chains, a quarter of whose steps are wrong. Then RL on the likelihood of the right
answer. Measured with seed 0: perplexity of the held-out answers after a chain 5.54 -> 3.95, reward -4.8 -> -3.1,
greedy success 6 % -> 0 %. So small a model learns which answers are likely, but not to add, and with
`reward.truncated=force_close` its chains dissolve. Use it to watch the program at work, and for tests.

Arguments: reward, group, steps, seed, as configs/tiny.py:reward=jepo,steps=50.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, reward="log_prob", group=8, steps=40, seed=0)
    c = base()
    c.seed = a.seed
    c.model.preset = "nano"
    c.data.tasks = ("faulty_losses",)
    c.data.train_size = 1000
    c.data.heldout_size = 128
    c.prompt.instruction = "Count."
    c.prompt.use_system = False
    c.prompt.max_prompt = 40
    c.prompt.max_answer = 10
    c.sampler.group_size = a.group
    c.sampler.max_chain = 16
    c.reward.name = a.reward
    # A chain that does not open the answer tag is worth less than most that do.
    c.reward.truncated = "floor"
    c.reward.floor = -5.0
    c.loss.answer_term = 0.3  # enough to keep answers true to chains; at 1 they would soon do without
    c.optim.lr = 2e-3
    c.optim.warmup_steps = 5
    c.train.steps = a.steps
    c.train.prompts_per_step = 16
    c.train.eval_every = 20
    c.warm_start.steps = 400
    c.warm_start.chains = "given"
    c.warm_start.prompts_per_step = 32
    c.warm_start.lr = 1e-2
    c.eval.prompts = 128
    c.eval.batch_prompts = 128
    return c
