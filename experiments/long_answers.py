"""Does weighting hard tokens keep chains alive on long answers? Nine rewards; and max_rl beside grpo and base_rl.

    python -m rl_likelihood.sweep experiments/long_answers.py --run
    python -m rl_likelihood.sweep experiments/long_answers.py --table --only task=long
    python -m experiments.claims --file=experiments/long_answers.py

Hardware: as experiments/cpu_grid.py. Time (estimate, not measured): 8 hours for all 45 runs; --run resumes.

long: the long task of experiments/cpu_grid.py, with chains of up to 160 tokens, so that fewer are cut, and TRACE in the
evaluations. To save time it trains LoRA adapters, with two prompts a step. All rewards have one loss, that of
Kwiatkowski et al. without KL: leave-one-out, sums over tokens, the exact answer term. So the reward alone differs. Of
the rest, vr_cli is a constant and has no answer term, sft samples nothing, and covrl is its preset. nrt is not clipped:
a chain that is worse than none would train nothing, and most chains of this model are. The claims: NRT (2602.11549)
says that weighting hard tokens keeps chains long where plain likelihoods let them collapse; DRO (2506.13351) says it of
r3. experiments/claims.py has them as data.

short, countdown3: max_rl beside grpo and base_rl, with a grader and groups of 8. countdown3 is configs/countdown3.py.
"""

from __future__ import annotations

import itertools
import random

from configs.countdown3 import DATA
from experiments import cpu_grid
from experiments.cpu_grid import NO_KL, NOT_FIRST
from rl_likelihood.datasets.countdown import WORDING, solve
from rl_likelihood.sweeps.grid import Overrides, chain, named, product, sweep

TRAIN, HELDOUT = 512, 96
RESOURCES = {"CPU": 2}
SMALL = {"train.keep_optimizer": False}

LONG: Overrides = {
    **cpu_grid.LONG,
    **NO_KL,
    **SMALL,
    "sampler.max_chain": 160,
    "lora.rank": 16,  # a third fewer operations
    "optim.lr": 3e-4,  # of adapters, as the quickstart
    "train.prompts_per_step": 2,
    "train.steps": 16,
    "train.checkpoint_every": 4,
    "eval.trace": True,
}


def _weighted(weights: str) -> Overrides:
    fields = {"reward.name": "nrt", "reward.baseline": "frozen", "reward.token_weights": weights}
    fields |= {"reward.clip_gain": False}
    return {"preset": "kw_avg_prob", **fields, **NOT_FIRST}


LONG_REWARDS: dict[str, Overrides] = {
    "avg_log_prob": {"preset": "kw_avg_log_prob"},  # all start from the same model: the first one evaluates it
    "nrt_neg_log": _weighted("neg_log"),
    "r3": {"preset": "kw_avg_log_prob", "reward.name": "r3", **NOT_FIRST},
    "avg_prob": {"preset": "kw_avg_prob", **NOT_FIRST},
    "nrt_inverse": _weighted("inverse"),
    "log_prob": {"preset": "kw_log_prob", **NOT_FIRST},
    "vr_cli": {"preset": "kw_avg_log_prob", "reward.name": "vr_cli", "reward.baseline": "frozen", **NOT_FIRST},
    "sft": {"reward.name": "sft", **NOT_FIRST},
    "covrl": {"preset": "covrl", **NOT_FIRST},
}


def _graded(grader: str) -> dict[str, Overrides]:
    """max_rl, grpo and base_rl by one grader. KL as in their presets."""
    base = {"exact_match": "base_rl", "countdown": "countdown_tinyzero"}[grader]
    return {
        "max_rl": {"preset": "max_rl", "reward.name": f"max_rl({grader})"},
        "grpo": {"preset": "grpo", "reward.name": grader, **NOT_FIRST},
        "base_rl": {"preset": "kw_base_rl", "reward.name": base, **NOT_FIRST},
    }


SHORT: Overrides = {**cpu_grid.SHORT, **SMALL, "train.steps": 12, "train.eval_every": 0}
COUNTDOWN: Overrides = {"config": "configs/countdown3.py", "sampler.group_size": 8, **SMALL}


def get_sweep() -> list[Overrides]:
    points = chain(
        product(named("task", {"long": LONG}), named("reward", LONG_REWARDS)),
        product(named("task", {"short": SHORT}), named("reward", _graded("exact_match"))),
        product(named("task", {"countdown3": COUNTDOWN}), named("reward", _graded("countdown"))),
    )
    return product(points, sweep("seed", (0, 1, 2)))  # a reward's seeds come one after the other


# ------------------------------------------------------------------------------------------- countdown3

SHOWN = (
    ((8, 3, 2), 22, "8 and 3 make 24 by a product. 24 - 2 = 22.", "8*3-2"),
    ((5, 9, 4), 18, "All of them added: 5 + 9 = 14 and 14 + 4 = 18.", "5+9+4"),
)


def prepare() -> None:
    """Write the long task's files and DATA's, if they do not exist. The rows are always the same."""
    cpu_grid.prepare()
    cpu_grid.write_rows(DATA, (TRAIN, HELDOUT), "targets of three numbers", targets)


def targets(n: int) -> list[dict]:
    """n distinct questions in the form of data/own_rows.py: three numbers up to 9, a target up to 99 that they make."""
    shown = []
    for numbers, target, thought, answer in SHOWN:
        question = WORDING.format(", ".join(map(str, numbers)), target)
        reply = f"<think>{thought}</think>\n<answer>{answer}</answer>"
        shown += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    asked = list(itertools.product(itertools.combinations(range(1, 10), 3), range(1, 100)))
    random.Random(20260203).shuffle(asked)
    rows = []
    for numbers, target in asked:
        answer = None if len(rows) == n else solve(list(numbers), target)
        if answer is not None and not any(sorted(numbers) == sorted(s[0]) and target == s[1] for s in SHOWN):
            question = WORDING.format(", ".join(map(str, numbers)), target)
            messages = [*shown, {"role": "user", "content": question}]
            rows.append({"id": f"countdown3-{len(rows)}", "messages": messages, "answer": answer})
    return rows
