"""Alpaca (cleaned) with any reward: long answers that nobody can check, as Kwiatkowski et al. 2602.03979 train on them.

    python -m rl_likelihood.datasets.prepare --dataset=alpaca \\
      --source=alpaca_data_cleaned.json --out=data --max_chars=3000
    python -m rl_likelihood.train --config=configs/alpaca.py:model=PATH,reward=log_prob --workdir=runs/alpaca
    python -m rl_likelihood.train --config=configs/alpaca.py:model=PATH,reward=sft --workdir=runs/alpaca_sft

About 50,000 instructions, 1,000 held out. As configs/math.py, but G = 4, no KL, and no request to give the answer
alone. Nothing is graded: evaluation reports the perplexity of the reference answer, what the chain adds to it, and
lengths. The paper's 1,024 tokens are read as that many for the chain and as many for the answer.

Hardware: one v5p-8 slice (4 chips) for 3 B parameters. Time (estimate, not measured): 1 to 2 hours for 1,000 steps.

What to expect (their table 2, Llama-3.2-3B-Instruct; not run here): perplexity 3.85 untouched, 2.56 log_prob and sft,
2.59 avg_prob, 4.84 prob; chains shrink from 134 tokens to 14, 59 with prob. Not run on the real file.

Arguments: model, reward, group (0: 4), data, steps, seed, as in configs/math.py.
"""

from ml_collections import ConfigDict

from configs.math import DEFAULTS, GRADERS
from configs.math import settings as checkable
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    return settings(parse_arg(arg, data="data/alpaca", **DEFAULTS))


def settings(a: ConfigDict) -> ConfigDict:
    """The paper's settings for answers that cannot be checked."""
    c = checkable(a)
    c.data.heldout_split = "validation"
    c.prompt.instruction = (
        "Think step by step before you answer. Write your reasoning inside <think></think>, then your answer inside "
        "<answer></answer>."
    )
    c.prompt.max_prompt = 1024
    c.prompt.max_answer = 1024
    c.sampler.max_chain = 1024
    c.sampler.group_size = a.group or 4
    c.loss.kl, c.loss.kl_coef = "none", 0.0
    c.eval.prompts = 1000
    c.eval.grader = GRADERS["alpaca"]  # of numina_proof too
    c.eval.batch_prompts = 25
    return c
