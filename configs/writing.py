"""Prose and verse, where no program can check an answer: the next paragraph of a story, the last lines of a poem.

    python -m rl_likelihood.train --config=configs/writing.py:data=texts/,form=next_passage --workdir=runs/prose \
        --config.preset=nrt
    python -m rl_likelihood.train --config=configs/writing.py:data=sonnets.txt,form=verse --workdir=runs/verse \
        --config.preset=dro
    python -m rl_likelihood.reer  --config=configs/writing.py:data=sonnets.txt,form=verse --workdir=runs/reer \
        --config.reer.other=HuggingFaceTB/SmolLM2-360M-Instruct

`data` is a folder of text files, one work in each, or a file of poems with blank lines between them. A work is on one
side of a split. next_passage: the prompt is the last 300 words, the answer the next paragraph, of 20 to 120 words.
verse: a poem of 8 + 6 lines, a sonnet; --config.data.documents.shown and asked say other forms. The system prompts are
the files configs/prompts/next_passage.txt and verse.txt.

Rewards (docs/writing.md): --config.preset=vr_cli, dro (r3) or nrt, or the argument reward, as avg_log_prob. Two
rewards need the argument judge: a model, or an address (then also set --config.judge.name). reward=pairwise compares
the texts of a group. reward=rubric reads criteria from the file `rubrics`, which python -m rl_likelihood.rubrics --make
writes. For example:

    python -m rl_likelihood.train --config=configs/writing.py:data=texts/,reward=pairwise,judge=http://HOST:PORT/v1 \
        --config.judge.name=MODEL --workdir=runs/pairwise

Hardware and time (not measured): two CPU cores take SmolLM2-135M-Instruct with small groups (experiments/writing.py).
`size=3b` has the papers' lengths and batch for a model of 3 B parameters on a v5p-8 (not run).

What to expect: a small model's chains do not make the reference likelier. Compare perplexity with perplexity_no_chain
and perplexity_swapped: a chain that helps no more than another prompt's chain carries style, not content.

Arguments: data, form (next_passage, verse), heldout, model, reward, judge, rubrics, size (135m, 3b), steps, seed.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg
from rl_likelihood.fields import one_of

PROMPTS = Path(__file__).with_name("prompts")
TASKS = {
    "next_passage": "The question shows the last pages of a story. An answer is the next paragraph of this story.",
    "verse": "The question shows the first lines of a poem. An answer is the last lines of this poem.",
}


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(
        arg,
        data="texts",
        form="next_passage",
        heldout="",
        model="",
        reward="avg_log_prob",
        judge="",
        rubrics="",
        size="135m",
        steps=200,
        seed=0,
    )
    one_of("config argument form", a.form, ("next_passage", "verse"))
    one_of("config argument size", a.size, ("135m", "3b"))
    c = base()
    c.seed = a.seed
    c.model.path = a.model or {"135m": "smollm2-135m-instruct", "3b": "models/Llama-3.2-3B-Instruct"}[a.size]
    c.data.source = "documents"
    c.data.train_path = a.data
    c.data.heldout_path = a.heldout
    c.data.documents.form = a.form
    c.data.documents.context = 300
    c.data.documents.continuation = 120
    c.data.documents.least = 20
    c.data.documents.cuts = 1000
    c.data.skip_bad_rows = True  # poems of other lengths, and what is too long, are counted and named
    c.prompt.instruction = (PROMPTS / f"{a.form}.txt").read_text(encoding="utf-8").strip()
    c.prompt.max_prompt = 640
    c.prompt.max_answer = 240
    c.sampler.max_chain = 128
    c.sampler.group_size = 8
    c.reward.name = a.reward
    c.optim.lr = 1e-5
    c.optim.warmup_steps = 5
    c.train.steps = a.steps
    c.train.prompts_per_step = 4
    c.train.eval_every = 50
    c.eval.prompts = 50
    c.eval.grader = "none"
    c.eval.samples = 4  # self_bleu compares them
    c.eval.texts = {"next_passage": "prose", "verse": "verse"}[a.form]
    c.eval.batch_prompts = 10
    c.reer.ask = "resample"
    c.reer.min_chain, c.reer.max_segment = 60, 64
    if a.form == "verse":
        c.prompt.max_prompt, c.prompt.max_answer = 320, 128
    if a.size == "3b":
        long_chains(c)
    c.rubric.path = a.rubrics
    if a.judge:
        c.judge.model = a.judge
        c.judge.task = "" if a.reward in ("reward_model", "similar_share") else TASKS[a.form]  # these read no task
        c.judge.max_prompt, c.judge.max_row = c.prompt.max_prompt + 256, 2 * c.prompt.max_answer + 64  # two answers
    return c


def long_chains(c: ConfigDict) -> None:
    """Lengths and batch of VR-CLI (2503.22828) and DRO (2506.13351), where they agree."""
    c.model.compute_dtype = "bfloat16"
    c.model.remat = "full"
    c.data.documents.context = 2000
    c.data.documents.continuation = 600
    c.prompt.max_prompt, c.prompt.max_answer = 3072, 1024
    c.prompt.width_multiple = 1024
    c.sampler.max_chain = 2048
    c.sampler.width_multiple = 1024
    c.sampler.group_size = 16
    c.optim.lr = 1e-6
    c.train.prompts_per_step = 64
    c.train.micro_batch_prompts = 4
    c.eval.prompts = 200
    c.reer.ask = "edit"
    c.reer.min_chain, c.reer.max_segment = 100, 512
    c.report.samples_every = 10
