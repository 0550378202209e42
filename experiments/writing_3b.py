"""The next paragraph of a novel with a 3B model, at the lengths and batch of VR-CLI and DRO. Not run.

    python -m rl_likelihood.sweep experiments/writing_3b.py --run --runner=ray
    python -m rl_likelihood.sweep experiments/writing_3b.py --table

5 rewards x 3 seeds. The texts are those of experiments/writing.py, with more novels.

Hardware: one v5p-8 slice (4 chips) a run. Time: not measured.

Published, with other models and judges: aggregate likelihood shrank chains below 100 tokens, R3 grew them from 1,000 to
2,500, and its rewrites won 51.8 % and 58.8 % against GPT-4o's (aggregate 47.9 % and 51.0 %, untouched 43.8 % and
48.6 %; 2506.13351). VR-CLI (2503.22828) was preferred to its baselines by people.
"""

from __future__ import annotations

from experiments.writing import DATA, REWARDS
from rl_likelihood.sweeps.grid import Overrides, named, product, sweep

RESOURCES = {"TPU": 4}


def get_sweep() -> list[Overrides]:
    config = {"config": f"configs/writing.py:data={DATA}/novels,form=next_passage,size=3b,steps=500"}
    return product([config], named("reward", REWARDS), sweep("seed", (0, 1, 2)))
