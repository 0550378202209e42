"""DeepScaleR-Preview with any reward, at the settings of Kwiatkowski et al. 2602.03979 (sec. 3.1, app. B).

    python -m rl_likelihood.datasets.prepare --dataset=deepscaler --source=deepscaler.json --out=data --max_chars=4000
    python -m rl_likelihood.train --config=configs/deepscaler.py:model=PATH,reward=prob --workdir=runs/deepscaler

A tenth of the problems is held out and evaluated on. The paper leaves out long solutions without saying how long;
--max_chars limits problem, solution and answer together. All else is as in configs/math.py.

Hardware: one v5p-8 slice (4 chips) for 3 B parameters. Time (estimate, not measured): 4 hours for 1,000 steps at
G = 32, half of that at G = 4.

What to expect (their table 1, Qwen2.5-3B-Instruct, G = 32, two seeds; not run here): greedy success 14.0 % untouched,
37.9 log_prob, 38.7 prob, 39.2 avg_prob, 38.3 base_rl, 11.5 sft; at temperature 1 25.8 log_prob, 36.8 prob, 38.6
base_rl; perplexity 13.1 untouched, 1.80 log_prob, 15.3 prob, 34.9 base_rl, 2.14 sft; chains of 450 to 530 tokens.

Arguments: model, reward, group, data, steps, seed, as in configs/math.py.
"""

from ml_collections import ConfigDict

from configs.math import DEFAULTS, GRADERS, settings
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, data="data/deepscaler", **DEFAULTS)
    c = settings(a)
    c.data.heldout_split = "validation"
    c.prompt.max_prompt = 2560  # 4,000 characters of a figure's source are over 2,300 tokens
    c.prompt.max_answer = 128
    c.sampler.max_chain = 896
    c.eval.prompts = 5000  # all there are, about 4,000
    c.eval.grader = GRADERS["deepscaler"]
    c.eval.mc_samples, c.eval.mc_prompts = 32, 500
    return c
