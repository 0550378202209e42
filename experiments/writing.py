"""Prose and verse with SmolLM2-135M-Instruct: sonnets and novels, six ways to train, three seeds: 36 runs of 20 steps.

    python -m rl_likelihood.reer --config=configs/writing.py:data=runs/writing_data/sonnets.txt,form=verse \\
        --workdir=runs/writing_data/verse_reer --config.data.train_size=32
    python -m rl_likelihood.reer --config=configs/writing.py:data=runs/writing_data/novels \\
        --workdir=runs/writing_data/prose_reer --config.data.train_size=32
    python -m rl_likelihood.sweep experiments/writing.py --run
    python -m rl_likelihood.sweep experiments/writing.py --table

Put the texts there first: runs/writing_data/sonnets.txt, poems of 8 + 6 lines with blank lines between them, and
runs/writing_data/novels, a .txt file for each novel, two at least. All runs of a task have the same held-out works; the
searches write them as rows, for the runs that learn their chains.

Hardware: two x86-64 CPU cores, 10 GB of memory, 70 GB of disk. Time: not measured. Not run.

All likelihood rewards have one loss, that of Kwiatkowski et al. without KL: leave-one-out, sums over tokens, the exact
answer term, groups of 4. So the reward alone differs. nrt is not clipped: a chain that is worse than none would train
nothing, and most chains of this model are. Of the rest, vr_cli is a constant and has no answer term; sft and
reer_sft sample nothing.

The result is three numbers: the length of the chain, what the chain adds (perplexity against perplexity_no_chain), and
the control (perplexity_swapped, after another prompt's chain). A model of 135 M hardly ever closes its chain by itself
and cannot plan a text, so no gain over no chain is expected. What it can show is whether a reward shortens chains, and
whether what they add is of the prompt or of the style alone. `copied` of reer_sft cannot be compared with the others':
it counts 32 training texts at most.
"""

from __future__ import annotations

from experiments.cpu_grid import NO_KL
from rl_likelihood.sweeps.grid import Overrides, chain, named, product, sweep

DATA = "runs/writing_data"
RESOURCES = {"CPU": 2}
TASKS = {"verse": f"data={DATA}/sonnets.txt,form=verse", "prose": f"data={DATA}/novels,form=next_passage"}
SMALL: Overrides = {
    "sampler.group_size": 4,
    "sampler.max_chain": 96,
    "sampler.width_multiple": 32,
    "optim.lr": 2e-5,
    "train.steps": 20,
    "train.eval_every": 0,
    "train.checkpoint_every": 5,
    "train.keep_checkpoints": 1,
    "train.keep_optimizer": False,
    "eval.prompts": 15,
    "eval.samples": 2,
    "eval.max_sampled_answer": 240,
}
FROZEN = {"reward.baseline": "frozen"}
UNCLIPPED = {**FROZEN, "reward.clip_gain": False}
REWARDS: dict[str, Overrides] = {
    "avg_log_prob": {"preset": "kw_avg_log_prob", **NO_KL},
    "vr_cli": {"preset": "kw_avg_log_prob", "reward.name": "vr_cli", **FROZEN, **NO_KL},
    "r3": {"preset": "kw_avg_log_prob", "reward.name": "r3", **NO_KL},
    "nrt": {"preset": "kw_avg_prob", "reward.name": "nrt", "reward.token_weights": "neg_log", **UNCLIPPED, **NO_KL},
    "sft": {"reward.name": "sft"},
}


def of_task(task: str) -> list[Overrides]:
    """The runs of one task, but for their seeds."""
    learned = {
        "reward.name": "sft",
        "reward.sft_chain": "both",
        "data.source": "files",
        "data.train_path": f"{DATA}/{task}_reer/reer.jsonl",
        "data.heldout_path": f"{DATA}/{task}_reer/heldout.jsonl",
    }
    points = chain(named("reward", REWARDS), named("reward", {"reer_sft": learned}))
    return product(named("task", {task: {"config": f"configs/writing.py:{TASKS[task]}"}}), [SMALL], points)


def get_sweep() -> list[Overrides]:
    return product(sweep("seed", (0, 1, 2)), chain(*map(of_task, TASKS)))
