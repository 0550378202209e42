"""Four minutes on two CPU cores: SmolLM2-135M-Instruct learns arithmetic from the likelihood of reference answers.

    make quickstart

Sums, differences and products of two numbers up to 10. Two worked examples stand before each question, and the second
takes two steps. The untouched model copies that second step where one step is the answer. So it is right on about one
question in ten, greedily or when it samples. docs/results.md has three seeds, and the model with better examples.

Arguments: reward, group, steps, seed, as configs/quickstart.py:reward=jepo,seed=1.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, reward="log_prob", group=8, steps=8, seed=0)
    c = base()
    c.seed = a.seed
    c.reward.name = a.reward
    c.model.path = "smollm2-135m-instruct"
    c.model.layers = "scan"  # compiles in a third of the time, and a step takes as long
    c.lora.rank = 16  # no gradient of the model's own matrices: a third fewer operations
    # Not the three-term questions of basic_arithmetic. This model's chains on them are wrong 94 times in 100, and after
    # a wrong chain every likelihood reward teaches the model to distrust chains (docs/rewards.md, the answer term).
    c.data.tasks = ("one_operation",)
    c.data.train_size = 230
    c.data.heldout_size = 128
    c.prompt.examples = 2
    c.prompt.max_prompt = 160
    c.prompt.max_answer = 8
    c.sampler.group_size = a.group
    c.sampler.max_chain = 32
    # A chain that does not open the answer tag is worth less than most that do.
    c.reward.truncated = "floor"
    c.reward.floor = -5.0
    c.loss.answer_term = 0.0  # the policy term alone: docs/rewards.md says why
    c.optim.lr = 3e-4
    c.optim.warmup_steps = 2
    c.train.steps = a.steps
    c.train.prompts_per_step = 4
    c.train.checkpoint_every = 4
    c.train.keep_checkpoints = 1
    c.eval.prompts = 32
    c.eval.batch_prompts = 32
    c.report.console_samples = 4
    return c
