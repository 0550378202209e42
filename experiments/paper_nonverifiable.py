"""Table 2 of Kwiatkowski et al. 2602.03979: two 3B models on the long answers of Alpaca and NuminaProof, G = 4.

    python -m rl_likelihood.datasets.prepare --dataset=alpaca \\
      --source=alpaca_data_cleaned.json --out=data --max_chars=3000
    python -m rl_likelihood.datasets.prepare --dataset=numina_proof --source=PATH --out=data --max_chars=3000
    python -m rl_likelihood.sweep experiments/paper_nonverifiable.py --run --runner=ray --only kl!=0.01   # table 2
    python -m rl_likelihood.sweep experiments/paper_nonverifiable.py --table --paper

44 runs: 2 models x 2 data sets x ({log_prob, avg_log_prob, prob, avg_prob, jepo} x {no KL, k3 x 0.01} and sft). The
paper's table has neither seeds nor KL.

Hardware: one v5p-8 slice (4 chips) a run. Time: not measured; with 32 sequences of up to 2,000 tokens a step, 1 to 2
hours a run by the arithmetic of paper_verifiable.py.

What to expect without KL (PAPER has the cells). The perplexity of log_prob equals sft's within 0.003 nats a token
(Llama on NuminaProof: 3.04 and 3.04). avg_prob is behind by 0.003 to 0.014 nats. prob is no better than the untouched
model on NuminaProof (3.62), and worse for Llama on Alpaca (4.84 against 3.85). Chains have 5 to 34 tokens, except for
prob on NuminaProof (470). With KL, chains stay longer and perplexity is worse (sec. 3.4, in figures only).
"""

from __future__ import annotations

from experiments.paper_verifiable import MODELS, SFT, TRAINING
from rl_likelihood.sweeps.grid import Overrides, chain, named, product, sweep

RESOURCES = {"TPU": 4}
# 1,000 are held out of each set. The configs read the paper's 1,024 completion tokens as 1,024 for chain and answer
# each.
LONG: Overrides = TRAINING | {"sampler.group_size": 4}
SETS = {name: {"config": f"configs/prepared.py:name={name}"} for name in ("alpaca", "numina_proof")}
# The main runs have no KL. Coefficients above 0.001 keep chains long; which ones is in figures only.
KL = {
    "none": {"loss.kl": "none", "loss.kl_coef": 0.0},
    "0.01": {"loss.kl": "k3", "loss.kl_coef": 0.01},
}
REWARDS = {name: {"preset": f"kw_{name}"} for name in ("log_prob", "avg_log_prob", "prob", "avg_prob", "jepo")}
SEEDS = (0,)  # table 2 gives no spread


def get_sweep() -> list[Overrides]:
    methods = chain(product(named("kl", KL), named("reward", REWARDS)), named("reward", SFT))
    return product([LONG], named("model", MODELS), named("data", SETS), methods, sweep("seed", SEEDS))


# Table 2: the untouched model, log_prob, avg_log_prob, prob, avg_prob, jepo, sft.
_NAMES = ("untouched", "log_prob", "avg_log_prob", "prob", "avg_prob", "jepo", "sft")
_METRICS = ("log_prob_mc1", "perplexity", "log_prob_mc32", "chain_length")
_CELLS = {
    ("llama", "numina_proof"): (
        (-1.2871, -1.1124, -1.1175, -1.2859, -1.1157, -1.1104, -1.1127),
        (3.62, 3.04, 3.06, 3.62, 3.05, 3.04, 3.04),
        (None, -1.1124, -1.1175, -1.2850, -1.1157, -1.1102, -1.1127),
        (474.0, 9.1, 9.0, 469.6, 9.1, 34.1, 5.0),
    ),
    ("qwen", "numina_proof"): (
        (-1.1838, -1.0174, -1.0235, -1.1862, -1.0217, -1.0218, -1.0172),
        (3.27, 2.77, 2.78, 3.27, 2.78, 2.78, 2.77),
        (None, -1.0174, -1.0235, -1.1852, -1.0217, -1.0218, -1.0172),
        (225.6, 5.3, 9.0, 225.2, 10.0, 14.1, 5.0),
    ),
    ("llama", "alpaca"): (
        (-1.3493, -0.9397, -0.9449, -1.5772, -0.9513, -0.9443, -0.9381),
        (3.85, 2.56, 2.57, 4.84, 2.59, 2.57, 2.56),
        (None, -0.9396, -0.9449, -1.5724, -0.9512, -0.9436, -0.9381),
        (134.2, 14.2, 14.1, 58.6, 9.1, 14.8, 5.0),
    ),
    ("qwen", "alpaca"): (
        (-1.3968, -0.8903, -0.8933, -1.2982, -0.8989, -0.8976, -0.8905),
        (4.04, 2.44, 2.44, 3.66, 2.46, 2.45, 2.44),
        (None, -0.8902, -0.8931, -1.2955, -0.8988, -0.8969, -0.8905),
        (83.7, 16.7, 14.3, 16.6, 15.2, 16.6, 5.0),
    ),
}
# sft answers after the empty chain. That is one chain, so MC32 and MC1 are the log-prob itself.
_METRICS_SFT = ("log_prob_no_chain", "perplexity_no_chain", "log_prob_no_chain", "chain_length_no_chain")
PAPER = [
    {"labels": {"model": model, "data": dataset, "reward": name, "kl": "none"}}
    | {
        key: value
        for key, value in zip(_METRICS_SFT if name == "sft" else _METRICS, column, strict=True)
        if value is not None
    }
    for (model, dataset), cells in _CELLS.items()
    for name, column in zip(_NAMES, zip(*cells, strict=True), strict=True)
]
