"""tau2-bench telecom as conversations: an agent that finds what is wrong with a phone line and repairs it by calls.

    python -m rl_likelihood.datasets.prepare --dataset=tau2_telecom --source=FOLDER --out=data    # FOLDER: tau2's files
    python -m rl_likelihood.train --config=configs/telecom.py:tau2=FOLDER,model=PATH --workdir=runs/telecom

74 tasks to train on, 40 held out (tau2's base split). The reward is the environment's verdict, 0 or 1. A model that was
not trained on tool calls earns almost nothing at first. Start it from the expert's conversations
(--config.warm_start.steps=100 --config.warm_start.chains=given), or train on reward=avg_log_prob, the likelihood of the
remaining reference calls. With credit=turn, each message is also rewarded for the increase in this likelihood.

12 messages of at most 128 tokens are enough for the reference calls of most tasks (1 to 12 calls). The expert looks and
tests too, with up to 42 messages: 65 of its 74 training conversations have more than 12. A warm start learns the first
12 of these, without the end. Hardware: one v5p-8 slice for a model of 3 B parameters. Not run to its end yet.

Arguments: tau2 (the folder), data (the prepared set), model, style (hermes, llama3, json), reward, credit, group,
turns, steps, seed.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(
        arg,
        tau2="tau2/data/tau2/domains/telecom",
        data="data/tau2_telecom",
        model="models/Qwen2.5-3B-Instruct",
        style="hermes",
        reward="environment",
        credit="outcome",
        group=8,
        turns=12,
        steps=200,
        seed=0,
    )
    c = base()
    c.seed = a.seed
    c.model.path = a.model
    c.model.remat = "full"
    c.data.source = "prepared"
    c.data.train_path = a.data
    c.data.train_size = c.data.heldout_size = 0  # all
    c.env.name = "telecom"
    c.env.path = a.tau2
    c.env.style = a.style
    c.env.credit = a.credit
    c.prompt.max_prompt = 1152
    c.prompt.max_answer = 512  # the longest reference of a base task has 461 tokens of SmolLM2
    c.sampler.group_size = a.group
    c.sampler.max_chain = 128 if a.turns > 1 else c.prompt.max_answer  # with one turn, one message makes all calls
    c.sampler.max_turns = a.turns
    c.sampler.max_env_tokens = 320
    c.sampler.width_multiple = 512
    c.reward.name = a.reward
    c.loss.aggregation = "const"  # long conversations count no more than short ones
    c.optim.lr = 1e-6
    c.optim.warmup_steps = 10
    c.train.steps = a.steps
    c.train.prompts_per_step = 8
    c.train.micro_batch_prompts = 1
    c.train.eval_every = 20
    c.eval.prompts = 40
    c.eval.samples = 4
    c.eval.grader = "none"
    c.eval.batch_prompts = 8
    c.report.samples_every = 5
    return c
