"""Any prepared data set by its name, with any reward, at the settings of Kwiatkowski et al. 2602.03979.

    python -m rl_likelihood.datasets.prepare --dataset=gsm8k --out=data        # fetches the two public files
    python -m rl_likelihood.train    --config=configs/prepared.py:name=gsm8k,model=PATH,reward=prob --workdir=runs/gsm8k
    python -m rl_likelihood.evaluate --config=configs/prepared.py:name=mmlu_pro,model=PATH --out=runs/mmlu_pro

Lengths, splits, grader and instruction are the data set's own: rl_likelihood/datasets/NAME.py, where its files and
published numbers stand too. All else is the paper's (sec. 3.1, app. B): RLOO, 8 prompts a step, AdamW 1e-5 with a
cosine and 20 steps of warm-up, clip 1.0. Sets that a grader checks have groups of 32 (4 for jepo) and KL k3 x 0.001;
sets without a grader (grader none) have groups of 4 and no KL. The paper says neither how many steps it trained nor
in which precision.

Hardware: one v5p-8 slice (4 chips) for a model of 3 B parameters; docs/pods.md has other slices, whose mesh is found
by itself. Time (estimate, not measured): 2 to 4 hours for 1,000 steps at G = 32, half of that at G = 4. Two CPU cores
take SmolLM2-135M-Instruct with small groups: docs/data.md.

What to expect: published numbers, where there are any, are in the data set's file. Without worked examples
SmolLM2-135M-Instruct almost never opens the answer tag. Then rules give 0, but likelihood rewards still differ between
chains.

Arguments: name, data (empty: data/NAME), split (empty: the set's held-out one), model (a Hugging Face folder, or
smollm2-135m-instruct), reward, group (0: the paper's), steps, seed. Whole methods of other papers:
--config.preset=NAME.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from rl_likelihood.config import parse_arg
from rl_likelihood.datasets import DATASETS
from rl_likelihood.fields import one_of
from rl_likelihood.presets import PRESETS

ARGUMENTS = {
    "data": "",
    "split": "",
    "model": "models/Llama-3.2-3B-Instruct",
    "reward": "log_prob",
    "group": 0,
    "steps": 1000,
    "seed": 0,
}


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, name="mawps", **ARGUMENTS)
    one_of("config argument name", a.name, DATASETS)
    return settings(a.name, a)


def settings(name: str, a: ConfigDict) -> ConfigDict:
    """The config of the data set `name`; `a` has the ARGUMENTS."""
    one = DATASETS[name]
    c = base()
    c.seed = a.seed
    c.model.path = a.model
    c.model.compute_dtype = "bfloat16"
    c.model.remat = "full"
    c.data.source = "prepared"
    c.data.train_path = a.data or f"data/{name}"
    c.data.train_split, c.data.fast_split = one.train_split, one.fast_split
    c.data.heldout_split = a.split or one.eval_split or one.heldout_split
    c.data.train_size = c.data.heldout_size = 0  # all
    c.prompt.instruction = one.instruction
    c.prompt.max_prompt, c.prompt.max_answer, c.sampler.max_chain = one.max_prompt, one.max_answer, one.max_chain
    # Three widths of prompts and three of rows: each pair that comes up compiles once, nine at most.
    c.prompt.width_multiple = _third(one.max_prompt)
    c.sampler.width_multiple = _third(one.max_chain + one.max_answer)
    # What defines the method stands in the presets: RLOO, the exact answer term, KL, the scale of base_rl.
    other = {**PRESETS["kw_log_prob"], "reward.name": a.reward, "loss.span": "auto"}
    c.update_from_flattened_dict(PRESETS.get(f"kw_{a.reward}", other))
    if one.grader == "none":
        c.sampler.group_size = 4
    if one.grader == "none" or a.reward == "sft":
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
    c.eval.prompts = 100_000  # all there are
    c.eval.grader = one.grader
    c.eval.batch_prompts = 25
    c.eval.fast_prompts = 200
    c.report.samples_every = 10
    return c


def _third(tokens: int) -> int:
    """A third, rounded up to the 128 that a TPU likes."""
    return -(-tokens // (3 * 128)) * 128
