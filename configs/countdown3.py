"""SmolLM2-135M-Instruct makes a target from three numbers up to 9, on two CPU cores.

    python -m rl_likelihood.sweep experiments/long_answers.py --prepare
    python -m rl_likelihood.train --config=configs/countdown3.py --config.preset=max_rl --workdir=runs/one

The question has several right answers, and the grader takes any. Two worked examples are part of each conversation.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg

DATA = "runs/countdown3_data"


def get_config(arg: str = "") -> ConfigDict:
    parse_arg(arg)
    c = base()
    c.model.path = "smollm2-135m-instruct"
    c.data.source = "files"
    c.data.train_path = f"{DATA}/train.jsonl"
    c.data.heldout_path = f"{DATA}/heldout.jsonl"
    c.data.train_size = c.data.heldout_size = 0  # all
    c.prompt.max_prompt = 288
    c.prompt.max_answer = 16
    c.sampler.group_size = 8
    c.sampler.max_chain = 48
    c.sampler.width_multiple = 16
    c.reward.name = "countdown"
    c.optim.lr = 2e-5
    c.optim.warmup_steps = 4
    c.optim.schedule = "cosine"
    c.optim.clip_norm = 1.0
    c.train.steps = 12
    c.train.prompts_per_step = 6
    c.train.micro_batch_prompts = 2
    c.train.checkpoint_every = 6
    c.train.keep_checkpoints = 1
    c.eval.prompts = 96
    c.eval.grader = "countdown"
    c.eval.batch_prompts = 48
    c.report.console_samples = 6
    return c
