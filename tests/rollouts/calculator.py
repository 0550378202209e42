"""The calculator's conversations with a very small model."""

from configs.calculator import get_config
from rl_likelihood.config import build


def config(**changes):
    c = get_config()
    c.model.path, c.model.preset, c.warm_start.steps = "", "nano", 0
    c.prompt.max_prompt, c.prompt.max_answer = 352, 64  # of bytes
    c.data.train_size, c.data.heldout_size, c.eval.prompts = 8, 4, 4
    c.sampler.group_size, c.sampler.max_chain, c.sampler.max_turns, c.sampler.max_env_tokens = 3, 8, 3, 40
    for name, value in changes.items():
        section, _, field = name.partition("__")
        c[section][field] = value
    return build(c)
