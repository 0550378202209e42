"""A reward model from TeleQnA's options, on two CPU cores or more.

    python -m rl_likelihood.datasets.prepare --dataset=teleqna_pairs --out=data
    python -m rl_likelihood.reward_model --config=configs/reward_model.py --workdir=runs/rm

Chance is 50 % of the pairs; an answer's length alone gets 57 %, and 60 % where no option refers to others. A model of
135 M parameters is not a good judge: look at `accuracy_when_shorter` and at the baselines beside every accuracy.

Then RL on it, with what is known to be right logged beside it:

    python -m rl_likelihood.train --config=configs/prepared.py:name=teleqna_pairs,model=PATH,reward=reward_model \
        --config.reward.name="reward_model + 0*nearest_option" --config.judge.model=runs/rm --workdir=runs/rl

--best_of=N uses the lengths of the data set, and the grader nearest_option: right is an answer that is nearer to the
right option than to the wrong ones.

Arguments: data, model, steps, seed.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg
from rl_likelihood.datasets import DATASETS


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, data="data/teleqna_pairs", model="smollm2-135m-instruct", steps=200, seed=0)
    c = base()
    c.seed = a.seed
    c.model.path = a.model
    c.data.source = "prepared"
    c.data.train_path = a.data
    c.data.train_size = 0
    c.data.heldout_size = 200
    c.judge.max_prompt = 96  # all questions; three of a thousand have a longer option than fits, which is cut
    c.judge.max_row = 48
    one = DATASETS["teleqna_pairs"]  # for --best_of, whose policy answers
    c.prompt.max_prompt, c.prompt.max_answer, c.sampler.max_chain = one.max_prompt, one.max_answer, one.max_chain
    c.eval.grader = "nearest_option"
    c.optim.lr = 1e-5
    c.optim.warmup_steps = 6
    c.train.steps = a.steps
    c.train.prompts_per_step = 8
    c.eval.prompts = 200
    c.eval.batch_prompts = 8
    return c
