"""The next paragraph of a novel with a 3B model, each reward with the loss and the settings of its paper. Not run.

    python -m rl_likelihood.sweep experiments/writing_3b.py --run --runner=ray
    python -m rl_likelihood.sweep experiments/writing_3b.py --table

5 rewards x 3 seeds. The texts are those of experiments/writing.py, with more novels. Losses, learning rates and batches
differ with the rewards, so this compares methods; experiments/writing.py compares rewards.

Hardware: one v5p-8 slice (4 chips) a run. Time: not measured.

| reward | paper | chains, prompts, learning rate |
|---|---|---|
| avg_log_prob, sft | Kwiatkowski et al. 2602.03979, where nothing is verified | 4, 8, 1e-5 |
| vr_cli | 2503.22828 | 8, 64, 5e-7 |
| r3 | 2506.13351 | 16, not known: 64, 1e-6 |
| nrt | 2602.11549 | not known: 16, 64, 1e-6 |

"Not known": our notes on the paper do not state it, and configs/writing.py:size=3b is used. VR-CLI's prompts have up to
12,000 tokens and its chains 2,000; here all have 3,072 and 2,048.

Published, with other models, data and judges:

* 2506.13351: ParaRev rewrites won against GPT-4o's in 51.8 % and 58.8 % (two judges); trained on the aggregate
  likelihood 47.9 % and 51.0 %, untouched 43.8 % and 48.6 %. Chains under the aggregate likelihood shrank below 100
  tokens; under R3 they grew from 1,000 to 2,500.
* 2602.11549: mean of nine benchmarks, Llama-3.1-8B: sft 46.0, log-prob 52.9, nrt with these weights 56.2. Llama-3.2-3B
  36.4 before, 39.9 after.
* 2602.03979, table 2, in experiments/paper_nonverifiable.py: Llama-3.2-3B on Alpaca, perplexity 3.85 before, 2.57 with
  avg_log_prob (chains of 134 tokens shrink to 14), 2.56 with sft.
* 2503.22828: people preferred its chapters to those of the untrained model and of sft (its abstract). We have not read
  the tables with its numbers.
"""

from __future__ import annotations

from experiments.cpu_grid import NO_KL
from experiments.writing import DATA
from rl_likelihood.sweeps.grid import Overrides, named, product, sweep

RESOURCES = {"TPU": 4}
KW: Overrides = {"train.prompts_per_step": 8, "optim.lr": 1e-5, "optim.warmup_steps": 20}
REWARDS: dict[str, Overrides] = {
    "avg_log_prob": {"preset": "kw_avg_log_prob", "sampler.group_size": 4, **NO_KL, **KW},
    "vr_cli": {"preset": "vr_cli", "train.prompts_per_step": 64, "optim.lr": 5e-7},
    "r3": {"preset": "dro", "optim.lr": 1e-6},
    "nrt": {"preset": "nrt"},
    "sft": {"reward.name": "sft", **KW},
}


def get_sweep() -> list[Overrides]:
    config = {"config": f"configs/writing.py:data={DATA}/novels,form=next_passage,size=3b,steps=500"}
    return product([config], named("reward", REWARDS), sweep("seed", (0, 1, 2)))
