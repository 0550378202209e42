"""Continuous batching compared with batches that wait for their longest row, on real lengths of at most 256 tokens.

    python -m bench.batching --questions=FILE.jsonl [--model=NAME] [--rows=96] [--slots=32] [--rounds=3]

FILE has lines {"question": ...}. Each question is asked as a chat, with one chain at temperature 1 until the model ends
it. Waiting: batches of `slots` rows, each until its last row has stopped. Continuous: `slots` rows, and the next
question as soon as one stops. Both use the same programs and threads, and sample the same tokens. `possible` is the
ratio of their steps: the most that continuous batching can gain on these lengths if steps take equally long.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rl_likelihood.data.tokenizer import eos_ids, load_tokenizer, set_template
from rl_likelihood.sampler import decode, engine
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.shapes import Prompts
from rl_likelihood.weights import assets, files

LONGEST = 256
PROMPT = 192  # tokens; longer questions are left out
Rows = tuple[np.ndarray, ...]  # ids, log-probs, lengths


def read_prompts(path: Path, model: str, rows: int) -> tuple[Prompts, tuple[int, ...]]:
    """The first `rows` questions as prompts, and the ids that end an answer."""
    tokenizer = load_tokenizer(model)
    set_template(tokenizer, "model", model)
    ids = []
    for line in path.read_text().splitlines():
        chat = [{"role": "user", "content": json.loads(line)["question"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        one = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += [one] if len(one) <= PROMPT else []
        if len(ids) == rows:
            break
    tokens = np.zeros((len(ids), PROMPT), np.int32)
    for i, one in enumerate(ids):
        tokens[i, : len(one)] = one
    none = np.zeros((len(ids), 1), np.int32)
    lengths = np.array([len(one) for one in ids], np.int32)
    return Prompts(tokens, lengths, none, none[:, 0], none.astype(bool), np.arange(len(ids))), eos_ids(tokenizer, model)


def possible(length: np.ndarray, slots: int) -> float:
    """Steps of batches that wait for their longest row, over steps of slots that take the next row when one stops."""
    free = [0] * min(slots, len(length))
    for tokens in length:
        heapq.heapreplace(free, free[0] + int(tokens))
    return sum(int(length[i : i + slots].max()) for i in range(0, len(length), slots)) / max(free)


def measure(ways: dict[str, Callable[[], Rows]], rounds: int) -> tuple[dict[str, Rows], dict[str, list[float]]]:
    """The rows of each way, and its times over rounds that alternate, after one that compiles."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    out = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            out[name] = way()
            if number:
                times[name].append(time.perf_counter() - start)
        print(json.dumps({k: [round(t, 2) for t in v] for k, v in times.items()}), flush=True)
    return out, times


def report(out: dict[str, Rows], times: dict[str, list[float]], slots: int) -> dict[str, Any]:
    """What is printed at the end."""
    length = out["waiting"][2]
    alike = float(np.mean([(x == y).all() for x, y in zip(out["waiting"][0], out["continuous"][0], strict=True)]))
    batches = [length[i : i + slots].max() * len(length[i : i + slots]) for i in range(0, len(length), slots)]
    rate = {k: length.sum() / statistics.median(v) for k, v in times.items()}
    return {
        "rows": len(length),
        "slots": slots,
        "mean_length": round(float(length.mean()), 1),
        "at_the_limit": round(float((length == LONGEST).mean()), 3),
        "rows_with_the_same_ids": round(alike, 3),
        "rows_decoding_while_waiting": round(float(length.sum() / sum(batches)), 3),
        "possible": round(possible(length[:, 0], slots), 3),
        "tokens_per_s": {k: round(v, 1) for k, v in rate.items()},
        "ratio": round(rate["continuous"] / rate["waiting"], 3),
        "ratio_of_fastest": round(min(times["waiting"]) / min(times["continuous"]), 3),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--questions", type=Path, required=True)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--rows", type=int, default=96)
    arguments.add_argument("--slots", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=3)
    a = arguments.parse_args()
    path = str(Path(assets.resolve(a.model)).resolve())
    cfg, params = files.load(path)
    weights = decode.prepare(params, cfg)
    del params
    prompts, eos = read_prompts(a.questions, path, a.rows)
    ends, key = Ends(np.zeros((cfg.vocab_size, 2), np.int8), np.asarray(eos, np.int32)), jax.random.key(0)

    def run(part: Prompts, slots: int) -> Rows:
        one, zero = np.ones(1, np.float32), np.int32(0)
        request = Request(part.tokens, part.length, part.uid, key, one, ends, pad_id=zero, first_chain=zero)
        return engine.sample_rows(weights, cfg, request, LONGEST, slots)

    def waiting() -> Rows:
        starts = range(0, len(prompts.length), a.slots)
        parts = [jax.tree.map(lambda x, at=i: x[at : at + a.slots], prompts) for i in starts]
        return tuple(np.concatenate(x) for x in zip(*(run(p, 0) for p in parts), strict=True))

    out, times = measure({"waiting": waiting, "continuous": lambda: run(prompts, a.slots)}, a.rounds)
    print(json.dumps(report(out, times, a.slots)))


if __name__ == "__main__":
    main()
