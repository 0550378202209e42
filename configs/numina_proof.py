"""NuminaProof with any reward: the answer is a whole proof, as in Kwiatkowski et al. 2602.03979.

    python -m rl_likelihood.datasets.prepare --dataset=numina_proof --source=PATH --out=data --max_chars=3000
    python -m rl_likelihood.train --config=configs/numina_proof.py:model=PATH,reward=log_prob --workdir=runs/numina

About 50,000 theorem-proof items of NuminaMath-1.5, 1,000 held out; --max_chars leaves out what does not fit the
buffers (formulas have about two characters a token). All else is as in configs/alpaca.py. The paper keeps chains from
collapsing with --config.loss.kl=k3 --config.loss.kl_coef=0.01 or so (its coefficients are in figures only). To try it
on a small real set, prepare proofnet or minif2f and name their splits in data.train_split and data.heldout_split.

Hardware: one v5p-8 slice (4 chips) for 3 B parameters. Time (estimate, not measured): 1 to 2 hours for 1,000 steps.

What to expect (their table 2, Llama-3.2-3B-Instruct; not run here): perplexity 3.62 untouched and with prob, 3.04
log_prob, jepo and sft, 3.05 avg_prob; chains fall from 474 tokens to 9, 34 with jepo, 470 with prob. Not run on the
real files.

Arguments: model, reward, group (0: 4), data, steps, seed, as in configs/math.py.
"""

from ml_collections import ConfigDict

from configs.alpaca import settings
from configs.math import DEFAULTS
from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    c = settings(parse_arg(arg, data="data/numina_proof", **DEFAULTS))
    c.prompt.max_prompt = 1536
    c.prompt.max_answer = 1536
    return c
