"""25 thousand random weights learn to think before they answer: no download, about a minute on two cores (not timed).

    python -m rl_likelihood.train --config=configs/tiny.py --workdir=runs/tiny

The question is "Ann had 7 pens, lost one". First a supervised warm start on the chains of a forgetful teacher: 40 % of
them read "7-1=6", the others "7-1=7", and each is followed by its own answer. Then RL on the likelihood of the right
answer, which teaches the model to write the chains that lead to it.

On 128 held-out questions, after the warm start and after RL, in percent:

    seed                  0          1         2          3         4
    greedy success   11 -> 100  24 -> 100  18 -> 88  36 -> 100  31 -> 98
    sampled success   34 -> 84   37 -> 81  31 -> 73   37 -> 87  41 -> 73

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
    c.loss.answer_term = 0.3  # small: after wrong chains it teaches the model not to read chains
    c.optim.lr = 2e-3
    c.optim.warmup_steps = 5
    c.train.steps = a.steps
    c.train.prompts_per_step = 16
    c.train.eval_every = 20
    c.warm_start.steps = 350
    c.warm_start.chains = "given"
    c.warm_start.prompts_per_step = 32
    c.warm_start.lr = 1e-2
    c.eval.prompts = 128
    c.eval.batch_prompts = 128
    return c
