"""How much of the quickstart's untouched score is the choice of its worked examples?

    python -m experiments.worked_examples

Evaluates the untouched model on the quickstart's held-out questions with its two worked examples (one step, then
two), with the two in the other order, and with the first alone. Writes experiments/results/worked_examples.json.
About two minutes on two cores.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from configs.quickstart import get_config
from rl_likelihood.config import build
from rl_likelihood.data import prompts
from rl_likelihood.data.worked_examples import WORKED_EXAMPLES
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate
from rl_likelihood.task import load

ROOT = Path(__file__).parents[1]
KEPT = ("greedy_success", "sampled_success", "perplexity", "perplexity_no_chain", "chain_length", "truncated")


def main() -> None:
    settings = build(get_config())
    task, params = load(settings)
    params = jax.tree.map(jnp.asarray, params)
    one, two = WORKED_EXAMPLES["one_operation"][:2]
    results = {}
    for name, shots in (("one step, then two", (one, two)), ("two steps, then one", (two, one)), ("one step", (one,))):
        rows = [row.example for row in task.heldout]
        out = evaluate(
            Evaluation(task, params, prompts.encode_all(rows, task.tokenizer, settings.prompt, task.fmt, shots))
        )
        results[name] = {k: out[k] for k in (*KEPT, "questions")}
        print(name, json.dumps(results[name]), flush=True)
    path = ROOT / "experiments" / "results" / "worked_examples.json"
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
