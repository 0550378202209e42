"""Ten minutes on two CPU cores: SmolLM2-135M-Instruct learns arithmetic from the likelihood of reference answers.

    make quickstart

Sums, differences and products of two numbers up to 10, with two worked examples before each question. The
untouched model is right on two thirds of them when it answers greedily and on four in ten when it samples.
README.md has the numbers of three seeds.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base


def get_config(arg: str = "") -> ConfigDict:
    c = base(arg)
    c.model.path = "smollm2-135m-instruct"
    # Not the three-term questions of basic_arithmetic: this model's chains on those are wrong 94 times in 100, and
    # after a wrong chain every likelihood reward teaches to distrust chains (README.md, "The answer term").
    c.data.tasks = ("one_operation",)
    c.data.train_size = 230
    c.data.heldout_size = 128
    c.prompt.examples = 2
    c.prompt.max_prompt = 160
    c.prompt.max_answer = 8
    c.sampler.group_size = 8
    c.sampler.max_chain = 32
    c.sampler.width_multiple = 16
    # A chain that does not open the answer tag is worth less than any that does.
    c.reward.truncated = "floor"
    c.reward.floor = -5.0
    c.loss.answer_term = 0.0  # the policy term alone; README.md says what the other does to so small a model
    c.optim.lr = 2e-5
    c.optim.warmup_steps = 4
    c.train.steps = 24
    c.train.prompts_per_step = 8
    c.train.micro_batch_prompts = 2
    c.train.checkpoint_every = 8
    c.train.keep_checkpoints = 1
    c.eval.prompts = 128
    c.eval.batch_prompts = 64
    c.report.console_samples = 4
    return c
