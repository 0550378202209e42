"""GSM8K with any reward, at the settings that Kwiatkowski et al. 2602.03979 use for checkable answers.

    python -m rl_likelihood.datasets.prepare --dataset=gsm8k --out=data                  # fetches the two public files
    python -m rl_likelihood.train --config=configs/gsm8k.py:model=PATH,reward=log_prob,group=8 --workdir=runs/gsm8k

Trains on the 7,473 training problems, evaluates on the 1,319 test problems; numbers are compared as numbers. All but
the lengths is as in configs/math.py.

Hardware: one v5p-8 slice (4 chips) for 3 B parameters. Time (estimate, not measured): 2 hours for 1,000 steps at
G = 32. SmolLM2-135M-Instruct on two CPU cores: most of an hour a step (estimate); group=4 makes it minutes.

What to expect. That paper has no GSM8K. Intuitor (2505.19590) reports 67.3 % for Qwen2.5-3B and 68.8 % for
Llama-3.2-3B-Instruct untouched, 82.6 % and 71.4 % with GRPO. SmolLM2-135M-Instruct was right on 0 of 24 test problems,
with two worked examples (measured here): a 0/1 reward has nothing to go by there.

Arguments: model, reward, group, data, steps, seed, as in configs/math.py.
"""

from ml_collections import ConfigDict

from configs.math import DEFAULTS, GRADERS, settings
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, data="data/gsm8k", **DEFAULTS)
    c = settings(a)
    c.data.heldout_split = "test"
    c.prompt.max_prompt = 320
    c.prompt.max_answer = 24
    c.sampler.max_chain = 488
    c.eval.prompts = 1319
    c.eval.grader = GRADERS["gsm8k"]
    return c
