"""MATH with any reward, as in tables 1 and 3 of Kwiatkowski et al. 2602.03979.

    python -m rl_likelihood.datasets.prepare --dataset=math --source=MATH.tar,test.jsonl --out=data
    python -m rl_likelihood.train --config=configs/math.py:model=PATH,reward=log_prob,group=32 --workdir=runs/math

Like configs/prepared.py:name=math; the first and last evaluation also sample 32 chains for 500 test problems
(log_prob_mc32, pass@k). Evaluations during training use 200 questions of the validation set, a tenth of the 7,500
training problems. The official 5,000 test problems are for the first and last evaluation. Answers are compared as
strings, as in the paper; --config.eval.grader=math accepts equal forms too. Hardware, time (an estimate, not measured)
and arguments are those of configs/prepared.py. What to expect: rl_likelihood/datasets/competition_math.py.
"""

from ml_collections import ConfigDict

from configs.prepared import ARGUMENTS, settings
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    c = settings("math", parse_arg(arg, **ARGUMENTS))
    c.eval.batch_prompts = 100
    c.eval.mc_samples, c.eval.mc_prompts = 32, 500
    return c
