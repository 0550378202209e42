"""MATH with any reward, at the settings of Kwiatkowski et al. 2602.03979 (sec. 3.1, app. B).

    python -m rl_likelihood.datasets.prepare --dataset=math --source=MATH.tar,test.jsonl --out=data
    python -m rl_likelihood.train --config=configs/math.py:model=PATH,reward=log_prob,group=32 --workdir=runs/math

Trains on 6,726 problems, watches itself on the tenth of the 7,500 that is held out, and is evaluated first and last on
the official 5,000, with 32 chains of 500 of them (log_prob_mc32, pass@k). Answers are compared as strings, as in the
paper; --config.eval.grader=math takes equal forms too. RLOO, 8 prompts a step, 1,024 tokens for chain and answer, AdamW
1e-5 with a cosine and 20 steps of warm-up, clip 1.0, KL k3 x 0.001. The paper does not say how many steps it trained,
nor in which precision.

Hardware: one v5p-8 slice (4 chips) for a model of 3 B parameters; docs/pods.md has other slices, whose mesh is found
by itself. Time (estimate, not measured): 4 hours for 1,000 steps at G = 32, half of that at G = 4.

What to expect (their table 1, Llama-3.2-3B-Instruct, G = 32, two seeds; not run here): greedy success 17.1 % untouched,
43.3 log_prob, 44.2 prob, 42.7 base_rl, 14.4 sft; at temperature 1 34.7 log_prob, 41.4 prob and base_rl; perplexity 67.3
untouched, 2.21 log_prob, 7.14 prob, 13.9 base_rl, 2.63 sft; chains of about 300 tokens.

Arguments: model (a Hugging Face folder, or smollm2-135m-instruct), reward, group (0: the paper's, 4 for jepo and else
32), data (what prepare wrote), steps, seed. Whole methods of other papers: --config.preset=NAME.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg
from rl_likelihood.presets import PRESETS

# How answers to each prepared set compare: the default of every config, and --config.eval.grader is another. none:
# written text, which nobody can check.
GRADERS = {
    "alpaca": "none",
    "countdown": "countdown",
    "cruxeval_o": "code_output",
    "deepscaler": "exact_match",  # of both sets, as in the paper
    "gsm8k": "numeric",
    "humaneval": "code_tests",
    "math": "exact_match",
    "mawps": "numeric",
    "minif2f": "none",
    "mmlu_pro": "multiple_choice",
    "numina_proof": "none",
    "proofnet": "none",
    "svamp": "numeric",
    "tau2_telecom_expert": "tool_call",
    "tau2_telecom_turns": "tool_call",
    "tau2_telecom_turns_all": "tool_call",
    "tau2_telecom_whole": "tool_call",
    "telemath": "telemath",
    "teleqna": "multiple_choice",
    "teleqna_free": "none",
}
DEFAULTS = {"model": "models/Llama-3.2-3B-Instruct", "reward": "log_prob", "group": 0, "steps": 1000, "seed": 0}


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, data="data/math", **DEFAULTS)
    c = settings(a)
    c.data.heldout_split = "test"
    c.data.fast_split = "validation"
    c.prompt.max_prompt = 2304  # the longest problem, with its figure's source, has about 2,000 tokens
    # Three widths of prompts and three of rows: each pair that comes up compiles once, nine at most.
    c.prompt.width_multiple, c.sampler.width_multiple = 768, 384
    c.prompt.max_answer = 128
    c.sampler.max_chain = 896
    c.eval.prompts = 5000
    c.eval.grader = GRADERS["math"]
    c.eval.mc_samples, c.eval.mc_prompts = 32, 500
    return c


def settings(a: ConfigDict) -> ConfigDict:
    """The paper's settings for answers that can be checked; lengths and evaluation are the data set's."""
    c = base()
    c.seed = a.seed
    c.model.path = a.model
    c.model.compute_dtype = "bfloat16"
    c.model.remat = "full"
    c.data.source = "prepared"
    c.data.train_path = a.data
    c.data.train_size = 0  # all
    c.data.heldout_size = 0
    c.sampler.width_multiple = 128
    # What defines the method stands in the presets: RLOO, the exact answer term, KL, the scale of base_rl.
    other = {**PRESETS["kw_log_prob"], "reward.name": a.reward, "loss.span": "auto"}
    c.update_from_flattened_dict(PRESETS.get(f"kw_{a.reward}", other))
    if a.reward == "sft":
        c.loss.kl, c.loss.kl_coef = "none", 0.0
    if a.group:
        c.sampler.group_size = a.group
    c.optim.lr = 1e-5
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 20
    c.optim.clip_norm = 1.0
    c.train.steps = a.steps
    c.train.prompts_per_step = 8
    c.train.micro_batch_prompts = 4
    c.train.eval_every = 50
    c.eval.batch_prompts = 100
    c.eval.fast_prompts = 200
    c.report.samples_every = 10
    return c
