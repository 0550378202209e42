"""TeleQnA, questions on telecommunications, with any reward: multiple choice, or free-form without the options.

    python -m rl_likelihood.datasets.prepare --dataset=teleqna --out=data   # fetches the authors' archive
    python -m rl_likelihood.datasets.prepare --dataset=teleqna_free --out=data
    python -m rl_likelihood.train --config=configs/teleqna.py:model=PATH,reward=prob --workdir=runs/teleqna
    python -m rl_likelihood.train --config=configs/teleqna.py:model=PATH,free=true --workdir=runs/teleqna_free

8,958 training and 1,039 held-out questions as choices, 8,095 and 950 free-form (counted on the real file). Of a choice
a letter is scored, and the token that ends it: with --config.prompt.score_delims=none the letter alone, and then prob
and avg_prob are one reward. Free-form answers are the text of the right option, which no string comparison does
justice: none is made, and their perplexity is what counts.

All but lengths and grader is as in configs/math.py. Hardware: one v5p-8 slice (4 chips) for 3 B parameters. Time
(estimate, not measured): 2 hours for 1,000 steps at G = 32.

What to expect. Nothing published with likelihood rewards. GPT-4 answers about 74 % of the choices (README of
gsma-labs/evals).

Arguments: model, reward, group, data (empty: data/teleqna or data/teleqna_free), free, steps, seed, as in
configs/math.py.
"""

from ml_collections import ConfigDict

from configs.math import DEFAULTS, GRADERS, settings
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, data="", free=False, **DEFAULTS)
    a.data = a.data or ("data/teleqna_free" if a.free else "data/teleqna")
    c = settings(a)
    c.data.heldout_split = "test"
    c.prompt.max_prompt = 512
    c.prompt.max_answer = 96 if a.free else 16
    c.sampler.max_chain = 416 if a.free else 496
    c.eval.prompts = 1039
    c.eval.grader = GRADERS["teleqna_free" if a.free else "teleqna"]
    return c
