"""SmolLM2-135M-Instruct learns to play countdown with a calculator, on two CPU cores: a warm start, then RL.

    python -m rl_likelihood.train --config=configs/calculator.py --workdir=runs/calculator

Countdown as a conversation: the model makes a target of two numbers up to 50. It tries an expression with the tool
`calculate`, reads its value, and gives one with `submit`, which ends the game. A supervised warm start teaches the
calls, from games of a teacher that tries sum, difference and product in this order. After half of the wrong tries it
gives up, with a wrong submission. Then RL on the environment's reward teaches the model not to give up: it wins 19 of
20 games. 48 minutes beside other work; docs/results.md.

Arguments: model, reward (environment, avg_log_prob, ...), credit (outcome, turn), group, steps, seed.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, model="smollm2-135m-instruct", reward="environment", credit="outcome", group=4, steps=20, seed=0)
    c = base()
    c.seed = a.seed
    c.model.path = a.model
    c.model.layers = "scan"  # compiles in a third of the time
    c.lora.rank = 16  # as configs/quickstart.py
    c.data.tasks = ("calculator",)
    c.data.train_size = 1000
    c.data.heldout_size = 128
    c.env.name = "calculator"
    c.env.style = "json"
    c.env.credit = a.credit
    c.prompt.max_prompt = 160
    c.prompt.max_answer = 32
    c.sampler.group_size = a.group
    c.sampler.max_chain = 32
    c.sampler.max_turns = 4
    c.sampler.max_env_tokens = 48
    c.sampler.width_multiple = 64
    c.reward.name = a.reward
    c.optim.lr = 2e-4  # with 5e-4 the policy collapses to one expression
    c.optim.schedule = "constant"
    c.optim.warmup_steps = 2
    c.train.steps = a.steps
    c.train.prompts_per_step = 8
    c.train.checkpoint_every = 5
    c.train.keep_checkpoints = 1
    c.warm_start.steps = 150
    c.warm_start.chains = "given"
    c.warm_start.prompts_per_step = 8
    c.warm_start.lr = 5e-4
    c.eval.prompts = 64
    c.eval.batch_prompts = 64
    c.eval.grader = "none"
    c.report.console_samples = 5
    return c
