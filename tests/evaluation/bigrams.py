"""A model whose probabilities are known, and evaluations of small models.

`letters` is a decoder that sees only the id before: its layers add nothing, its embedding is one-hot and its head
holds log-probs, so every number of an evaluation can be written down.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from rl_likelihood.config import build
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.evaluation import statistics
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate
from rl_likelihood.model.architecture import param_specs
from rl_likelihood.task import load
from rl_likelihood.weights import files
from tests.runs import small_config

TIMED = ("seconds", "records")

# What follows what. "think" and "answer" are single ids of the byte tokenizer.
BIGRAMS = {
    ">": {"\n": 0.2, "5": 0.5, "7": 0.3},
    "5": {"<": 0.9, "7": 0.1},
    "7": {"<": 0.8, "5": 0.2},
    "<": {"/": 0.55, "answer": 0.45},
    "/": {"think": 0.3, "answer": 0.7},
    "think": {">": 1.0},
    "answer": {">": 1.0},
    "\n": {"<": 1.0},
}


def logp(*ids: str) -> float:
    """Log-prob of a sequence after its first id."""
    return float(sum(np.log(BIGRAMS[a][b]) for a, b in zip(ids, ids[1:], strict=False)))


def evaluated(task, params, rows, fast=False, **where):
    return evaluate(Evaluation(task, params, rows, **where), fast=fast)


def letters(task, bigrams=BIGRAMS):
    """(task, params) of the bigram model."""
    model = dataclasses.replace(task.model, tied=False)
    specs = param_specs(model)
    zeros = lambda s: (np.ones if s.init == "ones" else np.zeros)(s.shape, np.float32)
    params = jax.tree.map(zeros, specs, is_leaf=lambda s: hasattr(s, "axes"))
    number = {text: task.tokenizer(text, add_special_tokens=False)["input_ids"] for text in bigrams}
    assert all(len(ids) == 1 for ids in number.values())
    scale = np.sqrt(1 / model.width + model.norm_eps)  # the final norm divides by it
    params["head"][:] = -60.0 * scale
    for i, (text, after) in enumerate(bigrams.items()):
        params["embed"][number[text][0], i] = 1.0
        for follower, p in after.items():
            params["head"][number[follower][0], i] = np.log(p) * scale
    return dataclasses.replace(task, model=model), params


def saved(folder: Path, bigrams) -> Path:
    """The folder with the weights of a bigram model and its tokenizer."""
    task, params = letters(task_of()[0], bigrams)
    files.save(folder, task.model, params)
    save_tokenizer(task.tokenizer, folder, task.fmt.eos_ids)
    return folder


def task_of(**overrides):
    return load(build(small_config(**overrides)))


def sharp(params):
    """Random weights large enough that the answer depends on the chain."""
    return jax.tree.map(lambda x: np.asarray(x) * 8, params)


def records_of(folder: Path, out: dict) -> list[dict]:
    return statistics.read_records(str(folder / out["records"]))[1]


def numbers(out: dict) -> dict:
    return {k: v for k, v in out.items() if k not in TIMED}
