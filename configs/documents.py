"""Plain documents: the model thinks, then goes on with the text (RLP, 2510.01265; RPT, 2506.08007).

    {"text": "A whole document, as long as it is ..."}

    python -m rl_likelihood.train --config=configs/documents.py:data=texts.jsonl --workdir=runs/rlp \
        --config.preset=rlp
    python -m rl_likelihood.train --config=configs/documents.py:data=texts.jsonl --workdir=runs/rpt \
        --config.preset=rpt

Each document is cut at random (--config.data.documents.cuts=4 for four cuts). The prompt is the text before the cut,
without a chat template, and ends in <think>; the reference answer is the next words. Whole documents are held
out, or give `heldout`, a second file. Documents shorter than a cut are refused by file and line;
--config.data.skip_bad_rows=True leaves them out.

Hardware and time: whatever holds the model; --dry_run compiles the step and says what memory it takes. On two CPU
cores (estimate, not measured) a step of the default takes about a minute.

What to expect: RLP's published numbers are for a model of 1.7 B parameters and chains of 2,048 tokens. A small model
shows whether a thought helps at all: compare perplexity with perplexity_no_chain and perplexity_swapped.

Arguments: model, data, heldout, steps, seed.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, model="smollm2-135m-instruct", data="texts.jsonl", heldout="", steps=200, seed=0)
    c = base()
    c.seed = a.seed
    c.model.path = a.model
    c.data.source = "documents"
    c.data.train_path = a.data
    c.data.heldout_path = a.heldout
    c.prompt.template = "raw"
    c.prompt.max_prompt = 192
    c.prompt.max_answer = 48
    c.prompt.width_multiple = 64
    c.sampler.group_size = 8
    c.sampler.max_chain = 128
    c.sampler.width_multiple = 32
    c.warm_start.examples = 0
    c.train.steps = a.steps
    c.train.prompts_per_step = 4
    c.train.eval_every = 50
    c.eval.prompts = 100
    c.eval.grader = "prefix"
    c.eval.batch_prompts = 25
    return c
