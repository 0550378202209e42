"""Tables 1 and 3 of Kwiatkowski et al. 2602.03979: two 3B models on MATH and DeepScaleR.

    python -m rl_likelihood.datasets.prepare --dataset=math --source=MATH.tar,test.jsonl --out=data
    python -m rl_likelihood.datasets.prepare --dataset=deepscaler --source=deepscaler.json --out=data --max_chars=6000
    python -m rl_likelihood.sweep experiments/paper_verifiable.py --list
    python -m rl_likelihood.sweep experiments/paper_verifiable.py --run --runner=ray        # or =print
    python -m rl_likelihood.sweep experiments/paper_verifiable.py --table --paper

96 runs: {Llama-3.2-3B-Instruct, Qwen2.5-3B-Instruct} x {MATH, DeepScaleR} x 2 seeds x {base_rl, log_prob, avg_log_prob,
prob, avg_prob at G = 32; the same and jepo at G = 4; sft}. models/NAME are Hugging Face folders.

Hardware: one v5p-8 slice (4 chips) a run. 3B parameters with AdamW in float32 need 16 bytes each, and the sampler needs
its copy. Time: not measured. With 6 operations a parameter and token, 100,000 tokens a step at G = 32 and 40 % use of
the chips, a step would learn in about 3 s and sample in about 10 s: 4 hours a run at G = 32, half of that at G = 4.

What to expect (PAPER has the cells, and --paper shows them beside ours). Greedy success of all RL rewards is within two
points, and at or above base_rl in three of four blocks of G = 32. At temperature 1 base_rl and prob are 7 to 13 points
ahead of log_prob. Perplexity: log_prob <= avg_log_prob < avg_prob, jepo << prob, base_rl. At G = 32 both log-prob
rewards are below sft's perplexity. The paper does not state how many steps it trained; the lengths here are inferred.
"""

from __future__ import annotations

from rl_likelihood.sweeps.grid import Overrides, chain, named, product, sweep

RESOURCES = {"TPU": 4}
MODELS = {
    "llama": {"model.path": "models/Llama-3.2-3B-Instruct"},
    "qwen": {"model.path": "models/Qwen2.5-3B-Instruct"},
}
# MATH is evaluated on the official test split, DeepScaleR on a tenth of it. The configs have lengths and splits.
SETS = {"math": {"config": "configs/math.py"}, "deepscaler": {"config": "configs/prepared.py:name=deepscaler"}}
# Section 3.1 and appendix B, unless a comment says otherwise.
TRAINING: Overrides = {
    "model.compute_dtype": "bfloat16",  # not stated; log-probs, losses and updates are in float32
    "prompt.score_delims": "close",  # not stated
    "optim.lr": 1e-5,
    "optim.schedule": "cosine",
    "optim.warmup_steps": 20,
    "optim.clip_norm": 1.0,
    "train.prompts_per_step": 8,
    "train.steps": 1000,  # not stated; MATH has 841 steps an epoch
    "eval.samples": 1,  # MC1
    "eval.mc_samples": 32,  # MC32, of 500 questions
    "eval.mc_prompts": 500,
}
# The presets define the methods: RLOO, the exact answer term, k3 x 0.001, base_rl of 100, 10, 0.
AT_32 = {name: {"preset": f"kw_{name}"} for name in ("base_rl", "log_prob", "avg_log_prob", "prob", "avg_prob")}
AT_4 = AT_32 | {"jepo": {"preset": "kw_jepo"}}  # jepo has G = 4 only
SFT = {"sft": {"reward.name": "sft", "loss.kl": "none", "loss.kl_coef": 0.0}}  # the answer alone, no chain
SEEDS = (0, 1)


def get_sweep() -> list[Overrides]:
    methods = chain(
        product(named("group", {"32": {"sampler.group_size": 32}}), named("reward", AT_32)),
        product(named("group", {"4": {"sampler.group_size": 4}}), named("reward", AT_4)),
        named("reward", SFT),
    )
    models, sets = named("model", MODELS), named("data", SETS)
    return product([TRAINING], models, sets, methods, sweep("seed", SEEDS))


# Tables 1 (G = 32) and 3 (G = 4), mean+spread over two seeds, success in per cent: model, data, G, metric, then the
# cells of _COLUMNS. The spread is inferred to be a standard deviation.
_CELLS = """
llama math 32 greedy 17.13+0.00 42.74+0.66 43.30+0.10 43.66+0.25 - 44.19+0.57 43.95+0.44 14.43
llama math 32 T1 10.77+0.27 41.36+0.15 34.66+0.81 34.83+0.00 - 41.39+0.09 38.38+0.74 10.00
llama math 32 mc32 - - -0.68+0.00 -0.69+0.01 - -1.32+0.01 -0.77+0.00 -0.97
llama math 32 mc1 -4.21+0.00 -2.63+0.02 -0.79+0.03 -0.81+0.04 - -1.97+0.04 -1.08+0.03 -0.97
llama math 32 ppl 67.29+0.00 13.87+0.34 2.21+0.06 2.25+0.09 - 7.14+0.26 2.95+0.08 2.63
llama math 32 length 326.77+0.71 321.01+24.42 298.97+2.82 302.74+2.21 - 313.58+1.87 320.17+5.69 5.00
qwen math 32 greedy 21.19+0.00 55.85+0.46 56.84+0.21 56.11+0.20 - 56.46+0.05 57.41+0.16 18.32
qwen math 32 T1 16.63+0.30 55.36+0.17 44.18+0.42 42.45+0.51 - 53.32+0.22 47.34+0.87 12.00
qwen math 32 mc32 - - -0.39+0.00 -0.40+0.01 - -1.03+0.01 -0.42+0.00 -
qwen math 32 mc1 -2.19+0.00 -2.11+0.10 -0.44+0.02 -0.50+0.00 - -1.77+0.01 -0.68+0.05 -0.69
qwen math 32 ppl 8.92+0.00 8.25+0.80 1.55+0.03 1.64+0.00 - 5.85+0.03 1.97+0.09 1.99
qwen math 32 length 222.35+0.73 451.83+14.14 381.49+10.22 372.01+18.76 - 429.35+1.25 419.51+4.31 5.00
llama deepscaler 32 greedy 10.05+0.00 28.55+0.14 32.40+1.02 32.20+1.37 - 31.75+1.56 30.75+1.02 9.88
llama deepscaler 32 T1 5.20+0.14 28.54+0.35 17.97+0.98 18.32+0.04 - 28.47+0.03 21.71+0.50 5.14
llama deepscaler 32 mc32 - -2.01+0.29 -0.79+0.01 -0.80+0.00 - -1.63+0.03 -0.85+0.01 -1.01
llama deepscaler 32 mc1 -4.92+0.00 -2.77+0.48 -0.83+0.04 -0.84+0.02 - -2.32+0.15 -1.31+0.08 -1.01
llama deepscaler 32 ppl 137.25+0.00 16.89+7.75 2.30+0.09 2.32+0.05 - 10.28+1.49 3.71+0.30 2.74
llama deepscaler 32 length 354.91+1.28 294.52+22.73 437.11+0.41 371.88+11.88 - 340.01+6.16 335.89+19.74 5.00
qwen deepscaler 32 greedy 14.02+0.00 38.30+2.40 37.92+0.11 38.12+0.83 - 38.68+0.67 39.20+1.56 11.52
qwen deepscaler 32 T1 11.00+0.42 38.56+0.35 25.79+0.43 25.82+0.44 - 36.83+0.07 28.79+0.59 6.48
qwen deepscaler 32 mc32 - -2.38+0.00 -0.56+0.00 -0.57+0.01 - -1.68+0.05 -0.59+0.00 -0.76
qwen deepscaler 32 mc1 -2.57+0.00 -3.55+0.14 -0.59+0.01 -0.70+0.01 - -2.73+0.03 -0.85+0.02 -0.76
qwen deepscaler 32 ppl 13.12+0.00 34.85+4.93 1.80+0.02 2.02+0.01 - 15.28+0.42 2.33+0.05 2.14
qwen deepscaler 32 length 218.12+7.35 453.69+7.81 532.79+36.46 463.46+0.11 - 481.15+3.03 460.00+6.25 5.00
llama math 4 greedy 17.13+0.00 42.09+1.08 40.58+2.63 40.52+0.01 43.19+0.10 40.48+0.42 41.56+0.52 14.38
llama math 4 T1 10.77+0.07 40.34+1.30 31.81+1.40 31.06+1.82 35.85+0.80 38.03+0.99 35.03+0.73 9.96
llama math 4 mc32 - - -0.72+0.02 -0.73+0.02 -0.79+0.01 -1.52+0.04 -0.82+0.00 -0.96
llama math 4 mc1 -4.21+0.00 -2.98+0.06 -0.83+0.01 -1.02+0.01 -1.23+0.04 -2.56+0.06 -1.11+0.01 -0.96
llama math 4 ppl 67.29+0.00 19.65+1.17 2.30+0.03 2.77+0.04 3.41+0.14 12.97+0.81 3.03+0.04 2.62
llama math 4 length 331.66+2.02 373.52+23.15 283.84+27.47 305.76+40.62 326.15+21.00 345.83+10.13 333.47+45.09 5.00
qwen math 4 greedy 21.19+0.00 53.19+0.18 51.70+2.65 53.87+0.24 54.01+2.10 54.59+0.24 53.52+1.47 18.32
qwen math 4 T1 16.10+0.06 50.31+0.03 36.36+1.71 37.53+1.32 42.55+3.69 48.75+0.77 42.37+2.22 12.00
qwen math 4 mc32 - - -0.47+0.00 -0.46+0.01 -0.47+0.02 -1.00+0.03 -0.49+0.02 -
qwen math 4 mc1 -2.19+0.00 -1.89+0.01 -0.67+0.09 -0.68+0.01 -0.78+0.02 -1.77+0.02 -0.79+0.11 -0.69
qwen math 4 ppl 8.92+0.00 6.60+0.03 1.97+0.19 1.98+0.02 2.18+0.05 5.85+0.13 2.22+0.24 1.99
qwen math 4 length 222.43+0.80 429.31+0.17 326.69+49.32 387.34+7.17 362.67+70.73 447.37+34.30 380.90+10.57 5.00
llama deepscaler 4 greedy 10.05+0.00 26.18+0.74 28.93+1.55 29.67+2.14 28.23+0.11 27.01+0.55 28.54+0.89 9.88
llama deepscaler 4 T1 5.25+0.92 21.05+1.21 15.64+0.73 16.33+0.34 19.16+0.59 23.54+0.58 18.97+0.32 5.14
llama deepscaler 4 mc32 - -1.58+0.03 -0.84+0.00 -0.85+0.00 -0.85+0.01 -1.59+0.02 -0.89+0.01 -1.01
llama deepscaler 4 mc1 -4.92+0.00 -2.74+0.04 -1.02+0.04 -1.19+0.15 -1.73+0.28 -2.99+0.07 -1.97+0.51 -1.01
llama deepscaler 4 ppl 137.25+0.00 15.49+0.63 2.77+0.10 3.30+0.50 5.77+1.60 19.90+1.47 7.97+4.41 2.74
llama deepscaler 4 length 342.53+1.31 317.31+8.96 421.21+27.22 378.21+25.53 322.58+13.60 349.44+5.37 350.73+20.70 5.00
qwen deepscaler 4 greedy 14.02+0.00 37.88+2.16 36.21+1.09 36.54+0.72 37.04+0.12 37.60+0.00 35.67+1.14 11.52
qwen deepscaler 4 T1 10.05+0.64 31.57+2.99 22.34+0.96 21.74+0.95 27.12+0.03 31.30+0.32 25.69+0.61 6.48
qwen deepscaler 4 mc32 - -1.61+0.13 -0.59+0.01 -0.61+0.00 -0.61+0.00 -1.38+0.00 -0.63+0.00 -0.76
qwen deepscaler 4 mc1 -2.57+0.00 -2.63+0.05 -0.69+0.02 -0.88+0.09 -0.96+0.00 -2.49+0.07 -1.09+0.07 -0.76
qwen deepscaler 4 ppl 13.12+0.00 13.87+0.75 2.00+0.05 2.43+0.22 2.62+0.01 12.10+0.84 2.99+0.21 2.14
qwen deepscaler 4 length 216.25+0.23 422.15+65.98 429.51+12.13 398.42+30.20 436.50+9.25 423.48+5.80 396.55+7.76 5.00
"""
_COLUMNS = ("untouched", "base_rl", "log_prob", "avg_log_prob", "jepo", "prob", "avg_prob", "sft")
_METRICS = {
    "greedy": "greedy_success",
    "T1": "sampled_success",
    "mc32": "log_prob_mc32",
    "mc1": "log_prob_mc1",
    "ppl": "perplexity",
    "length": "chain_length",
}
# The paper asks sft models for an answer after the empty chain (their length is 5.00: the tags). That chain is one, so
# its MC32 and its MC1 are the log-prob itself.
_METRICS_SFT = {
    "greedy": "greedy_success_no_chain",
    "T1": "sampled_success_no_chain",
    "mc32": "log_prob_no_chain",
    "mc1": "log_prob_no_chain",
    "ppl": "perplexity_no_chain",
    "length": "chain_length_no_chain",
}


def published() -> list[dict]:
    """The cells as `Experiment.paper` has them."""
    rows: dict[tuple[str, ...], dict] = {}
    for line in _CELLS.split("\n")[1:-1]:
        model, dataset, group, metric, *cells = line.split()
        for reward, cell in zip(_COLUMNS, cells, strict=True):
            if cell == "-":
                continue
            # One run of sft serves both tables, which have it at either G.
            labels = {"model": model, "data": dataset, "reward": reward, "group": group}
            row = rows.setdefault(tuple(labels.values()), {"labels": labels})
            mean, _, spread = cell.rpartition("+")
            metrics = _METRICS_SFT if reward == "sft" else _METRICS
            row.setdefault(metrics[metric], (float(mean), float(spread)) if mean else float(spread))
    return list(rows.values())


PAPER = published()
