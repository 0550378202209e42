"""Countdown with any reward: an expression that makes a target from 3 or 4 numbers, each used once.

    python -m rl_likelihood.datasets.prepare --dataset=countdown --source=PATH --out=data
    python -m rl_likelihood.train --config=configs/countdown.py:model=PATH,reward=avg_prob --workdir=runs/countdown
    python -m rl_likelihood.train --config=configs/countdown.py:model=PATH,reward=countdown_tinyzero --workdir=runs/rule

PATH holds rows with nums and target, as TinyZero's parquet file has them. Any right expression is right for
evaluation and for the rule rewards (countdown, and countdown_tinyzero: 1, 0.1 for a wrong equation, 0). Likelihood
rewards see one solution of several, the row's own or the first found: the answer they score is not the only good one.
exact_match and base_rl compare with that one too. All but lengths and graders is as in configs/math.py.

Hardware: one v5p-8 slice (4 chips) for 3 B parameters. Time (estimate, not measured): 2 hours for 1,000 steps at
G = 32.

What to expect. Nothing published for likelihood rewards. With rules mini-r1 reports about 50 % for
Qwen2.5-3B-Instruct after 450 steps (read in a summary, not in the source).

Arguments: model, reward, group, data, steps, seed, as in configs/math.py.
"""

from ml_collections import ConfigDict

from configs.math import DEFAULTS, GRADERS, settings
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, data="data/countdown", **DEFAULTS)
    c = settings(a)
    c.data.heldout_split = "test"
    c.prompt.max_prompt = 160
    c.prompt.max_answer = 32
    c.sampler.max_chain = 480
    c.eval.prompts = 1024
    c.eval.grader = GRADERS["countdown"]
    return c
