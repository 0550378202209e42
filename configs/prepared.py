"""Any prepared data set by its name, with any reward: lengths and splits are looked up here.

    python -m rl_likelihood.datasets.prepare --dataset=mawps --source=FOLDER --out=data
    python -m rl_likelihood.train    --config=configs/prepared.py:name=mawps,model=PATH,reward=prob --workdir=runs/mawps
    python -m rl_likelihood.evaluate --config=configs/prepared.py:name=mmlu_pro,model=PATH --out=runs/mmlu_pro

For the sets without a config of their own: mawps (easy word problems), proofnet and minif2f (proofs in words, whose
perplexity is what counts), telemath, and four for evaluation alone: svamp, cruxeval_o, humaneval, mmlu_pro. The
others (gsm8k, math, deepscaler, alpaca, numina_proof, countdown, teleqna) are taken too, but their own configs have
the papers' settings. Graders are those of the table in configs/math.py. proofnet and minif2f have no training split:
here their validation half is trained on.

All but lengths and grader is as in configs/math.py, chains of 384 tokens. Hardware: whatever holds the model; one
v5p-8 slice (4 chips) for 3 B parameters, or two CPU cores for SmolLM2-135M-Instruct with small groups. Time (estimate,
not measured): 1 to 2 hours for 1,000 steps on the slice. Measured on two cores beside other work: docs/data.md.

What to expect. Nothing published with likelihood rewards. SmolLM2-135M-Instruct without worked examples hardly ever
opens the answer tag, so that rules give it nothing and likelihood rewards are what moves.

Arguments: name, data (empty: data/NAME), split (empty: the set's held-out one), model, reward, group, steps, seed, as
in configs/math.py.
"""

import difflib
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.math import DEFAULTS, GRADERS, settings
from rl_likelihood.config import parse_arg
from rl_likelihood.shapes import UserError


class Set(NamedTuple):
    """Tokens of the longest prompt and answer that are taken, with SmolLM2's tokenizer, and the splits."""

    max_prompt: int
    max_answer: int
    heldout: str = "test"
    train: str = ""  # "": the split train
    fast: str = ""  # for evaluations during training; "": the held-out one


SETS = {
    "alpaca": Set(1024, 1024, "validation"),
    "countdown": Set(160, 32),
    "cruxeval_o": Set(256, 64),
    "deepscaler": Set(2560, 128, "validation"),
    "gsm8k": Set(320, 24),
    "humaneval": Set(512, 288),
    "math": Set(2304, 128, fast="validation"),
    "mawps": Set(192, 24),
    "minif2f": Set(384, 1536, "test", "validation"),
    "mmlu_pro": Set(1792, 8),
    "numina_proof": Set(1536, 1536, "validation"),
    "proofnet": Set(256, 1920, "test", "validation"),
    "svamp": Set(192, 24),
    "tau2_telecom_expert": Set(4096, 64),
    "tau2_telecom_turns": Set(1792, 64),
    "tau2_telecom_turns_all": Set(1792, 64),
    "tau2_telecom_whole": Set(1024, 320),
    "telemath": Set(1024, 32),
    "teleqna": Set(512, 16),
    "teleqna_free": Set(512, 96),
}


def get_config(arg: str = "") -> ConfigDict:
    a = parse_arg(arg, name="mawps", data="", split="", **DEFAULTS)
    if a.name not in SETS:
        near = difflib.get_close_matches(a.name, SETS, 1)
        hint = f"did you mean {near[0]!r}? It" if near else "it"
        raise UserError(f"config argument name is {a.name!r}; {hint} must be one of {', '.join(SETS)}")
    a.data = a.data or f"data/{a.name}"
    one = SETS[a.name]
    c = settings(a)
    c.data.train_split, c.data.heldout_split = one.train, a.split or one.heldout
    c.data.fast_split = one.fast
    c.prompt.max_prompt, c.prompt.max_answer = one.max_prompt, one.max_answer
    c.sampler.max_chain = 384
    c.eval.prompts = 100_000  # all there are
    c.eval.grader = GRADERS[a.name]
    c.eval.batch_prompts = 25
    return c
