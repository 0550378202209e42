"""Why do chains collapse on long answers, and what prevents it? (Kwiatkowski et al. 2602.03979, sec. 3.4, app. D, F.)

    python -m rl_likelihood.datasets.prepare --dataset=numina_proof --source=PATH --out=data --max_chars=3000
    python -m rl_likelihood.sweep experiments/length_study.py --run --only study=plain
    python -m experiments.length_study rates        # r = dR/dL of each plain run: results/length_rates.json
    python -m rl_likelihood.sweep experiments/length_study.py --run --only study=length
    python -m rl_likelihood.sweep experiments/length_study.py --run --only study=kl
    python -m rl_likelihood.sweep experiments/length_study.py --run --only study=chains
    python -m experiments.length_study chains       # data/numina_proof_chains.jsonl
    python -m rl_likelihood.sweep experiments/length_study.py --run --only study=warm
    python -m rl_likelihood.sweep experiments/length_study.py --run --only study=from_warm

To keep the runs in another folder, set ROOT=DIR in the environment of all these commands, and --root=DIR for the
sweeps.

Llama-3.2-3B-Instruct on NuminaProof, G = 4.

    plain      log_prob and avg_log_prob
    length     both with r * min(|z| - l0, 0) added, l0 in 100, 150, 300, 500; needs the rates first
    kl         k3 with five coefficients
    chains     the model's own chains; nothing is learned
    warm       supervised training on the answer after those chains
    from_warm  log_prob and sft, both starting from warm

Hardware: one v5p-8 slice (4 chips) a run. Time: not measured; 1 to 2 hours a run by the arithmetic of
paper_verifiable.py, 19 runs.

What to expect: plain chains fall from about 470 tokens to about 10, with sft's perplexity (3.04, table 2). The length
reward and KL keep chains longer at a cost in log-prob. From the warm start, chains end at 100 to 200 tokens with sft's
perplexity (in figures only).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

from experiments.paper_nonverifiable import LONG, SETS
from experiments.paper_verifiable import MODELS, SFT
from rl_likelihood.errors import UserError
from rl_likelihood.runtime import run_files
from rl_likelihood.sweeps.grid import Overrides, chain, named, point, product, sweep, zipped

HERE = Path(__file__).resolve().parent
RESOURCES = {"TPU": 4}
ROWS = "method"
ROOT = Path(os.environ.get("ROOT") or "runs/length_study")  # as tpu_setup/sweep.sh has it; from_warm starts from there
RATES = HERE / "results" / "length_rates.json"
OWN_CHAINS = "data/numina_proof_chains.jsonl"
DROP = 40  # steps: r is measured over the first 40 of the run without a length reward

BASE: Overrides = SETS["numina_proof"] | LONG | MODELS["llama"] | {"seed": 0}
NO_KL: Overrides = {"loss.kl": "none", "loss.kl_coef": 0.0}
REWARDS = ("log_prob", "avg_log_prob")
LENGTHS = (100, 150, 300, 500)  # the paper's
COEFFICIENTS = (0.001, 0.003, 0.01, 0.03, 0.1)  # the paper: larger than 0.001, shown in figures only


def plain() -> list[Overrides]:
    methods = {name: {"preset": f"kw_{name}"} for name in REWARDS}
    return product([BASE], [NO_KL], named("study", {"plain": {}}), named("method", methods))


def length(rates: dict[str, float]) -> list[Overrides]:
    methods = {
        f"{name}, l0 {l0}": {
            "preset": f"kw_{name}",
            "reward.name": f"{name} + {rates[name]}*length",
            "reward.length_min": float(l0),
        }
        for name in REWARDS
        if name in rates
        for l0 in LENGTHS
    }
    return product([BASE], [NO_KL], named("study", {"length": {}}), named("method", methods))


def kl() -> list[Overrides]:
    labels = named("method", {f"log_prob, kl {beta:g}": {"preset": "kw_log_prob"} for beta in COEFFICIENTS})
    methods = zipped(labels, sweep("loss.kl_coef", COEFFICIENTS))
    return product([BASE], named("study", {"kl": {"loss.kl": "k3"}}), methods)


def own_chains() -> list[Overrides]:
    """4,000 questions, two chains each, all written down. The learning rate is 0."""
    nothing = {"optim.lr": 0.0, "sampler.group_size": 2, "train.steps": 500, "train.eval_every": 0, "eval.prompts": 0}
    written = {"report.samples_every": 1, "report.sample_prompts": 8}
    methods = named("method", {"untouched": {"reward.name": "log_prob"}})
    return product([BASE | NO_KL | nothing | written], named("study", {"chains": {}}), methods)


def warm() -> list[Overrides]:
    """Rows of question, chain and answer, with the loss on the answer only."""
    rows = {"data.source": "jsonl", "data.train_path": OWN_CHAINS, "data.heldout_size": 1000, "eval.prompts": 1000}
    fields = rows | SFT["sft"] | {"reward.sft_chain": "answer", "train.steps": 400}
    return product([BASE | fields], named("study", {"warm": {}}), named("method", {"warm start": {}}))


def from_warm() -> list[Overrides]:
    start = {"model.path": str(ROOT / point(warm()[0]).name)}
    methods = {
        "log_prob, warm": {"preset": "kw_log_prob", **NO_KL},
        "sft, warm": SFT["sft"],  # the same start and as many steps
    }
    return product([BASE | start], named("study", {"from_warm": {}}), named("method", methods))


def get_sweep() -> list[Overrides]:
    rates = json.loads(RATES.read_text()) if RATES.exists() else {}
    return chain(plain(), length(rates), kl(), own_chains(), warm(), from_warm())


def rate(workdir: Path, reward: str) -> float:
    """r = dR / dL: what the reward gains, over the tokens that the chain loses, from the first to the 40th step.

    Each end is a mean of five steps, on training questions, which are new at every step of the first epoch.
    """
    rows = [row for row in _rows(workdir / run_files.METRICS) if row["step"] <= DROP]
    if len(rows) < DROP:
        raise UserError(f"{workdir} has {len(rows)} of the {DROP} steps that the rate is measured over; run it further")
    end = lambda key, part: statistics.fmean(row[key] for row in part)
    gained = end(f"reward/{reward}", rows[-5:]) - end(f"reward/{reward}", rows[:5])
    lost = end("chain/length", rows[:5]) - end("chain/length", rows[-5:])
    if gained <= 0 or lost <= 0:
        raise UserError(
            f"{workdir}: over {DROP} steps the reward changed by {gained:.3g} and the chain by {-lost:.3g} tokens; "
            "there is no drop to measure a rate on"
        )
    return float(f"{gained / lost:.2g}")


def _rows(path: Path) -> list[dict]:
    if not path.exists():
        raise UserError(f"{path} is not there; run its point first, or name the folder of the runs by ROOT=DIR")
    return run_files.read(path)


def rates() -> None:
    rates = {}
    for overrides in plain():
        p = point(overrides)
        rates[p.labels["method"]] = rate(ROOT / p.name, p.labels["method"])
    RATES.parent.mkdir(exist_ok=True)
    RATES.write_text(json.dumps(rates, indent=1) + "\n")
    print(f"{RATES}: {rates}")


def chains() -> None:
    """The first closed chain of each question that the study=chains run sampled, as JSON lines with "chain"."""
    samples = _rows(ROOT / point(own_chains()[0]).name / run_files.SAMPLES)
    rows: dict[str, dict[str, str]] = {}
    for s in samples:
        if not s["truncated"] and s["id"] not in rows:
            text = s["chain"].rpartition("</think>")[0].strip()
            if text:
                rows[s["id"]] = {"id": s["id"], "prompt": s["prompt"], "answer": s["reference_answer"], "chain": text}
    Path(OWN_CHAINS).write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    print(f"{OWN_CHAINS}: {len(rows)} questions with a chain of the untouched model")


if __name__ == "__main__":
    actions = {"rates": rates, "chains": chains}
    if sys.argv[1:] not in ([name] for name in actions):
        sys.exit(f"usage: python -m experiments.length_study {'|'.join(actions)}")
    try:
        actions[sys.argv[1]]()
    except UserError as error:
        sys.exit(f"error: {error}")
