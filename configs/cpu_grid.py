"""SmolLM2-135M-Instruct on a task with short answers, or on one with long answers and no verifier, on two CPU cores.

    python -m rl_likelihood.train --config=configs/cpu_grid.py:task=short --config.preset=kw_log_prob \
      --config.sampler.group_size=8 --workdir=runs/one

The runs of experiments/cpu_grid.py share these settings; each sets its own reward and loss. task=long reads two files
that `python -m rl_likelihood.sweep experiments/cpu_grid.py --prepare` writes.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg
from rl_likelihood.errors import UserError

DATA = "runs/cpu_grid_data"


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, task="short")
    if a.task not in ("short", "long"):
        raise UserError(f"config argument task is {a.task!r}; it must be short or long")
    c = base()
    c.model.path = "smollm2-135m-instruct"
    c.optim.lr = 2e-5  # the paper: 1e-5 for 3B models and hundreds of steps
    c.optim.warmup_steps = 4  # the paper: 20, of more steps
    c.optim.schedule = "cosine"  # the paper's
    c.optim.clip_norm = 1.0  # the paper's
    c.train.steps = 20
    c.train.checkpoint_every = 5
    c.train.keep_checkpoints = 1
    c.sampler.width_multiple = 16
    c.report.console_samples = 6
    if a.task == "short":
        # One operation on two numbers up to 10, as in the quickstart: what this model can do in a short chain.
        c.data.tasks = ("one_operation",)
        c.data.train_size = 230
        c.data.heldout_size = 96
        c.prompt.examples = 2
        c.prompt.max_prompt = 160
        c.prompt.max_answer = 8
        c.sampler.max_chain = 32
        c.train.prompts_per_step = 6  # the paper: 8
        c.train.micro_batch_prompts = 2
        c.train.eval_every = 10
        c.eval.fast_prompts = 48
        c.eval.prompts = 96
        c.eval.batch_prompts = 48
    else:
        c.data.source = "jsonl"
        c.data.train_path = f"{DATA}/train.jsonl"
        c.data.heldout_path = f"{DATA}/heldout.jsonl"
        c.data.train_size = c.data.heldout_size = 0  # all
        c.prompt.max_prompt = 528  # three worked examples are part of each conversation
        c.prompt.max_answer = 104
        c.sampler.max_chain = 64
        c.train.prompts_per_step = 3
        c.train.micro_batch_prompts = 1
        c.eval.prompts = 32
        c.eval.grader = "none"  # answers are not sampled, references are scored
        c.eval.batch_prompts = 16
    return c
