"""Your own questions, a file of JSON lines or parquet or a data set of the hub, with any model and reward.

    {"prompt": "What is 17 + 25?", "answer": "42"}

    python -m rl_likelihood.train --config=configs/jsonl.py:data=train.jsonl,heldout=test.jsonl,reward=log_prob \
        --workdir=runs/own
    python -m rl_likelihood.evaluate --config=configs/jsonl.py:data=train.jsonl,heldout=test.jsonl,reward=log_prob \
        --workdir=runs/own

The file is read as it is; no prepare command is needed. Optional fields: id, task, chain, alternatives, rejected, and
messages instead of prompt. For other names of fields: --config.data.prompt_column=question
--config.data.answer_column=solution. `data` may also be a .parquet or .json file, a folder of files, or hf:owner/name.
Without `heldout`, a tenth of its questions and at most 100 are held out, chosen by a hash of each. Bad lines are
refused by file and line; --config.data.skip_bad_rows=True counts them and goes on. A prompt or answer that is too long
is refused with the length it needs (--config.prompt.max_prompt, --config.prompt.max_answer), or with skip_bad_rows left
out of training. A base model without a chat template takes --config.prompt.template=plain. grader says how evaluation
compares answers: exact_match, numeric, math, multiple_choice, countdown, ...; none for texts, whose perplexity is what
counts.

Hardware and time: whatever holds the model; --dry_run compiles the step and says what memory it takes. On two CPU
cores (estimate, not measured) a step of the default, 4 prompts x 8 chains of at most 128 tokens, takes about a minute.

What to expect depends on your data. Where perplexity is above perplexity_no_chain the model's chains do not help it
(docs/rewards.md, "When to switch the answer term off"); chain_swap_drop near 0 says that it does not use them.

Arguments: model (as model.path: a Hugging Face folder or org/name, a GGUF file, a run's workdir,
smollm2-135m-instruct), reward, group, data, heldout, grader, steps, seed.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(
        arg,
        model="smollm2-135m-instruct",
        reward="log_prob",
        group=8,
        data="train.jsonl",
        heldout="",
        grader="exact_match",
        steps=200,
        seed=0,
    )
    c = base()
    c.seed = a.seed
    c.model.path = a.model
    c.data.source = "files"
    c.data.train_path = a.data
    c.data.heldout_path = a.heldout
    c.prompt.max_prompt = 256
    c.prompt.max_answer = 32
    c.sampler.group_size = a.group
    c.sampler.max_chain = 128
    c.sampler.width_multiple = 32
    c.prompt.width_multiple = 64
    c.reward.name = a.reward
    c.train.steps = a.steps
    c.train.prompts_per_step = 4
    c.train.eval_every = 50
    c.eval.prompts = 100
    c.eval.grader = a.grader
    c.eval.batch_prompts = 25
    return c
