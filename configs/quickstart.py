"""Ten minutes on two CPU cores: SmolLM2-135M-Instruct learns arithmetic from the likelihood of reference answers.

make quickstart
"""

from ml_collections import ConfigDict

from configs.base import get_config as base


def get_config(arg: str = "") -> ConfigDict:
    c = base(arg)
    c.model.path = "smollm2-135m-instruct"
    c.data.tasks = ("basic_arithmetic",)
    c.data.heldout_size = 128
    c.prompt.max_prompt = 96
    c.prompt.max_answer = 8
    c.sampler.max_chain = 48
    c.sampler.width_multiple = 16
    c.train.prompts_per_step = 4
    c.train.micro_batch_prompts = 2
    c.train.steps = 40
    c.optim.lr = 2e-5
    c.optim.warmup_steps = 4
    c.warm_start.steps = 8
    c.warm_start.lr = 2e-5
    c.eval.prompts = 128
    c.eval.batch_prompts = 64
    return c
