"""Ten minutes on two CPU cores: SmolLM2-135M-Instruct learns arithmetic from the likelihood of reference answers.

    make quickstart

Sums, differences and products of two or three numbers up to 10, two worked examples before each question.
The second example takes two steps, and the untouched model copies that shape even where one step is the
answer ("8 - 1 = 7. Then 7 - 1 = 6."). That is the fault that the reward removes; the arithmetic it needs is
mostly there. README.md has the numbers of three seeds.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base


def get_config(arg: str = "") -> ConfigDict:
    c = base(arg)
    c.model.path = "smollm2-135m-instruct"
    c.data.tasks = ("basic_arithmetic",)
    c.data.heldout_size = 128
    c.prompt.examples = 2
    c.prompt.max_prompt = 160
    c.prompt.max_answer = 8
    c.sampler.group_size = 8
    c.sampler.max_chain = 40
    c.sampler.width_multiple = 16
    # A chain that does not open the answer tag is worth less than any that does.
    c.reward.truncated = "floor"
    c.reward.floor = -7.0
    # The policy term alone. Most first chains are wrong, and after a wrong chain the reward's own gradient
    # teaches the model to distrust its chain: perplexity falls at once, success too (README.md, "The answer term").
    c.loss.answer_term = 0.0
    c.optim.lr = 1e-5
    c.optim.warmup_steps = 4
    c.train.steps = 24
    c.train.prompts_per_step = 4
    c.train.micro_batch_prompts = 1
    c.train.checkpoint_every = 6
    c.train.keep_checkpoints = 1
    c.eval.prompts = 128
    c.eval.batch_prompts = 64
    c.report.console_samples = 4
    return c
