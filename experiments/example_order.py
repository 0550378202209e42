"""How much of the quickstart's untouched score is the order of its two worked examples?

    python experiments/example_order.py

Evaluates the untouched model on the quickstart's held-out questions with the two examples as they are (one
step, then two) and in the other order, and splits greedy success by the number of terms. Writes
experiments/results/example_order.json. About three minutes on two cores.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs.quickstart import get_config  # noqa: E402
from rl_likelihood import config as configs  # noqa: E402
from rl_likelihood.data import prompts  # noqa: E402
from rl_likelihood.data.examples import WORKED_EXAMPLES  # noqa: E402
from rl_likelihood.run import evaluation  # noqa: E402
from rl_likelihood.run.world import load  # noqa: E402

KEPT = ("greedy_success", "sampled_success", "greedy_success_no_chain", "perplexity", "truncated")


def main() -> None:
    settings = configs.build(get_config())
    world, params = load(settings)
    params = jax.tree.map(jnp.asarray, params)
    evaluation.EXAMPLES = len(world.heldout)  # keep every greedy answer, to count by number of terms
    shots = WORKED_EXAMPLES["basic_arithmetic"][:2]
    results = {}
    for name, order in (("as in the quickstart", shots), ("the other order", shots[::-1])):
        rows = [row.example for row in world.heldout]
        encoded = prompts.encode_all(rows, world.tokenizer, settings.prompt, world.fmt, order)
        out = evaluation.evaluate(world, params, encoded)
        by_terms: dict[int, list[bool]] = {2: [], 3: []}
        for e in out["examples"]:
            by_terms[len(re.findall(r" [-+*] ", e["prompt"])) + 1].append(e["right"])
        terms = {f"greedy_success_{k}_terms": round(sum(v) / len(v), 4) for k, v in by_terms.items()}
        results[name] = {k: out[k] for k in KEPT} | terms | {"questions": out["questions"]}
        print(name, json.dumps(results[name]), flush=True)
    path = ROOT / "experiments" / "results" / "example_order.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
