"""RLPR (Yu et al. 2506.18254) and three ablations: no debiasing, no filter, product instead of mean of probabilities.

    python -m rl_likelihood.sweep experiments/rlpr.py --run --runner=ray

4 runs of Qwen2.5-7B. You provide data/webinstruct/train.jsonl and heldout.jsonl, lines {"prompt", "answer"}. The
paper's 77,000 prompts are WebInstruct without mathematics, filtered by GPT-4.1.

Hardware: one v5p-8 slice a run (4 chips on one host, which a ray task can have). 7.6 billion parameters at 16 bytes
take 113 of its 383 GiB; this was not compiled. Time: not measured. 1,536 sequences of up to 3,072 tokens a step and 300
steps take about four days by the arithmetic of paper_verifiable.py, or two on a v5p-16, whose two hosts run one point
together with tpu_setup/sweep.sh.

What to expect (their ablation, TheoremQA / Minerva, which are not our held-out set): RLPR 55.4 / 56.5, no debiasing
52.7 / 54.1, no filter 52.5 / 55.1, product of probabilities 33.5 / 34.2.

Different from the paper: it samples 768 prompts and makes four updates of 192. Here each update samples its own 192
prompts, so the clip never acts.
"""

from __future__ import annotations

from pathlib import Path

from rl_likelihood.errors import UserError
from rl_likelihood.sweeps.grid import Overrides, named, product, sweep

RESOURCES = {"TPU": 4}
# The paper: 8 chains, lr 1e-6, no KL, clip 0.2 / 0.27, token mean, T 1, prompt 2048, completion 3072. Steps: not
# stated.
TRAINING: Overrides = {
    "config": "configs/base.py",
    "preset": "rlpr",
    "data.source": "jsonl",
    "data.train_path": "data/webinstruct/train.jsonl",
    "data.heldout_path": "data/webinstruct/heldout.jsonl",
    "data.train_size": 0,
    "data.heldout_size": 0,
    "model.compute_dtype": "bfloat16",  # not stated
    "model.remat": "full",
    "prompt.max_prompt": 2048,
    "prompt.max_answer": 128,
    "sampler.max_chain": 2944,
    "sampler.width_multiple": 256,
    "optim.lr": 1e-6,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "train.steps": 300,
    "train.prompts_per_step": 192,
    "train.micro_batch_prompts": 8,
    "train.eval_every": 50,
    "train.checkpoint_every": 10,
    "eval.prompts": 500,
    "eval.batch_prompts": 100,
}
# The reward is 0.9 r + 0.1 format and the penalty for repetition. Only mean probabilities have the base score
# subtracted.
ABLATIONS = {
    "rlpr": {},
    "no debiasing": {"reward.baseline": "none"},
    "no filter": {"filter.mode": "none", "filter.resample": 0},
    "product": {"reward.name": "0.9*prob + 0.1*format + repetition", "reward.baseline": "none"},
}


def get_sweep() -> list[Overrides]:
    models = named("model", {"qwen2.5-7b": {"model.path": "models/Qwen2.5-7B"}})
    return product([TRAINING], models, named("reward", ABLATIONS), sweep("seed", (0,)))


def prepare() -> None:
    for name in ("train", "heldout"):
        path = Path(f"data/webinstruct/{name}.jsonl")
        if not path.exists():
            raise UserError(f'{path} is not there; write it with lines {{"prompt", "answer"}}')
