"""Does a longer chain make the reference answer more likely? (Kwiatkowski et al. 2602.03979, app. D.)

    python -m rl_likelihood.sweep experiments/correlations.py --run --only model=smollm2
    python -m rl_likelihood.sweep experiments/correlations.py --run --only model=llama --runner=ray
    python -m experiments.correlations                    # the correlations of the runs so far

The untouched model samples chains (the learning rate is 0), and the answer is scored after each. The result is the
Pearson correlation of a chain's length with its log-prob or probability: over all chains (global), and within each
question, then averaged (local). Group-relative advantages depend on the local one. For log_prob, rl_likelihood.evaluate
gives both with --config.eval.samples=1000: length_correlation and length_correlation_in_prompt.

llama: 100 problems x 1,000 chains of MATH and NuminaProof on a v5p-8 slice, about 2 hours each (estimate, not
measured). smollm2: 20 problems x 64 chains of the CPU grid's two tasks on two cores, 10 to 20 minutes each (estimate).

What to expect (the paper shows values in figures only): log_prob on NuminaProof slightly positive globally, clearly
negative locally; log_prob on MATH negative in both; prob on MATH slightly negative globally, slightly positive locally.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import cpu_grid, paper_nonverifiable, paper_verifiable
from rl_likelihood.report import chain_figures
from rl_likelihood.sweeps.grid import Overrides, chain, named, point, product

ROWS = "data"
ROOT = Path("runs/correlations")
# The initial model at temperature 1: it learns nothing, and every chain is written down.
STUDY: Overrides = {
    "optim.lr": 0.0,
    "reward.name": "log_prob",
    "sampler.temperature": 1.0,
    "reward.truncated": "force_close",
    "eval.prompts": 0,
    "train.eval_every": 0,
    "report.samples_every": 1,
    "report.console_samples": 0,
    "seed": 0,
}


def get_sweep() -> list[Overrides]:
    # The paper: 100 problems, 1,000 chains each. Here: ten passes of 100 chains.
    passes = {
        "data.train_size": 100,
        "train.prompts_per_step": 4,
        "report.sample_prompts": 4,
        "sampler.group_size": 100,
        "train.steps": 250,
    }
    sets = {
        "math": paper_verifiable.SETS["math"] | STUDY | passes,
        "numina_proof": paper_nonverifiable.SETS["numina_proof"] | STUDY | passes,
    }
    small = {
        "train.prompts_per_step": 2,
        "train.micro_batch_prompts": 1,
        "report.sample_prompts": 2,
        "sampler.group_size": 16,
        "train.steps": 40,
    }
    ours = {
        name: {"config": f"configs/cpu_grid.py:task={name}", "data.train_size": 20, **STUDY, **small}
        for name in ("short", "long")
    }
    return chain(
        product(named("model", {"llama": paper_verifiable.MODELS["llama"]}), named("data", sets)),
        product(named("model", {"smollm2": {}}), named("data", ours)),
    )


def prepare() -> None:
    cpu_grid.prepare()  # for data=long


def main() -> None:
    print(f"{'run':<34} {'chains':>7} {'reward':>9} {'global':>7} {'local':>7}")
    for overrides in get_sweep():
        p = point(overrides)
        samples = chain_figures.samples_of(ROOT / p.name)
        if not samples:
            continue
        numbers = {name: i for i, name in enumerate(dict.fromkeys(s["id"] for s in samples))}
        question = np.asarray([numbers[s["id"]] for s in samples])
        for reward in ("log_prob", "prob"):
            columns = np.asarray([[chain_figures.chain_length(s), chain_figures.reward(s, reward)] for s in samples])
            overall, local = (chain_figures.correlation(columns, group)[0, 1] for group in (None, question))
            name = ", ".join(f"{k} {v}" for k, v in p.labels.items())
            print(f"{name:<34} {len(samples):>7} {reward:>9} {overall:>7.3f} {local:>7.3f}")


if __name__ == "__main__":
    main()
