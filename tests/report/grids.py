"""Runs whose numbers are known, for tables, figures and the page."""

import numpy as np

from rl_likelihood.report import metrics
from rl_likelihood.report.table import Run
from rl_likelihood.runtime import run_files


def write_run(workdir, final, first=None, steps=4, done=True, samples=0, lag=0, seed=0):
    """A run whose numbers are known: `final` and `first` are evaluations, curves are straight lines."""
    rng = np.random.default_rng(seed)
    with metrics.MetricsWriter(workdir, steps) as writer:
        writer.eval(0, {"stage": "untouched", **(first or {"greedy_success": 0.25, "greedy_success_se": 0.04})})
        for step in range(1, steps + 1):
            row = {"reward/mean": step + seed, "answer/perplexity": 4.0, "chain/length": step + seed, "queue/lag": lag}
            writer.metrics(step, row | {"ratio/max": 1.5, "ratio/ess": 0.9})
            rows = [sample(f"q{step}", rng.normal(), 1 + i % 3, f"{'word ' * (i + 1)}") for i in range(samples)]
            writer.samples(step, rows)
        if done:
            writer.eval(steps, {"stage": f"after {steps} steps", **final})
            writer.status("done", steps)
        else:
            writer.status("running", steps)
    return workdir


def sample(name, log_prob, answer_tokens, chain):
    """A line of samples.jsonl."""
    return {
        "id": name,
        "prompt": "2+2?",
        "chain": chain,
        "forced": "",
        "sampled_answer": "",
        "reference_answer": "4",
        "answer_tokens": ["4"] * answer_tokens,
        "answer_logp": [log_prob] * answer_tokens,
        "scored": [1] * answer_tokens,
        "reward": log_prob,
        "reward/log_prob": log_prob,
        "reward/prob": float(np.exp(log_prob)),
        "advantage": 0.0,
        "truncated": False,
        "version": 0,
    }


def evaluation(greedy, perplexity):
    return {
        "greedy_success": greedy,
        "greedy_success_se": 0.02,
        "perplexity": perplexity,
        "chain_length": 10.0,
        "greedy_success_no_chain": 0.9,
        "perplexity_no_chain": 1.5,
        "ci95": {
            "perplexity": [perplexity - 1, perplexity + 1],
            "greedy_success": [greedy - 0.0392, greedy + 0.0392],
        },
        "questions": 96,
    }


def text_evaluation(level):
    """An evaluation with eval.texts."""
    of = {"perplexity": level, "perplexity_no_chain": level + 1, "perplexity_swapped": level + 2}
    answers = {"answered": 0.5, "distinct_1": 0.4, "distinct_2": 0.6, "self_bleu": 0.1, "compression": 0.7}
    answers |= {"copied": 0.02, "verse_lines": 0.25, "verse_syllables": 1.5, "verse_rhymes": 0.125}
    direct = {f"no_chain/{name}": value / 2 for name, value in answers.items()}
    return {**of, "chain_length": 9.0, "chain_length_no_chain": 3.0, **answers, **direct, "questions": 8}


def evaluate_by_initial(workdir, level, step=4, **other):
    """Adds the row of `evaluate --config.eval.by_initial=True` to eval.jsonl. The chains are drawn again."""
    names = ("perplexity", "perplexity_no_chain", "perplexity_swapped")
    by_initial = {f"{name}_by_initial": level + 10 + i for i, name in enumerate(names)}
    ends = {"ci95": {"perplexity": [0.0, 1.0], **{name: [x - 1, x + 1] for name, x in by_initial.items()}}}
    drawn = text_evaluation(level) | {"perplexity": level + 0.5}
    run_files.append(workdir / run_files.EVAL, {"step": step, "data": "poems", **drawn, **by_initial, **ends, **other})


def text_runs(folder):
    """A grid of texts: a reward with two seeds, then evaluated with the initial model, and sft, which is not."""
    runs = []
    for name, seed, level in [("r3", "0", 4.0), ("r3", "1", 6.0), ("sft", "0", 7.0)]:
        workdir = write_run(folder / f"{name}{seed}", text_evaluation(level), {"perplexity": 9.0})
        if name == "r3":
            evaluate_by_initial(workdir, level)
            evaluate_by_initial(workdir, 99.0, step=2)
            evaluate_by_initial(workdir, 99.0)  # of other questions
        runs.append(Run({"reward": name, "seed": seed}, workdir))
    return runs


def sft_run(folder):
    """A run of sft without a label that the others have; asked after a chain it would be wrong."""
    return Run({"data": "math", "reward": "sft", "seed": "0"}, write_run(folder, evaluation(0.1, 9.0)))
