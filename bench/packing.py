"""What packing leaves of padding, on lengths as runs have them.

    python -m bench.packing [--questions=gsm8k/train.jsonl] [--report=experiments/results/cpu_grid/report.html]
    python -m bench.packing --cost [--model=W135] [--group=16]
    python -m bench.packing --rounds=3 [--model=W10] [--group=16] [--longest=1024]

First a table: tokens that matrix products compute (attention is not counted) over real ones, prompts included, as rows
are padded today (to a multiple of 16) and packed, and how many sizes of the step 100 batches ask for. Lengths are
log-normal (mean 300, at most 1,024), the reference solutions of GSM8K, or the chains that a report recorded. `one` is
one CPU, `eight` are eight devices with one micro-batch. `--cost` compiles one batch of the log-normal lengths, padded
and packed: operations and memory by XLA, nothing is run. `--rounds` times both steps, alternating.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bench import work
from rl_likelihood.data.tokenizer import load_tokenizer
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.packing import Whole, pack, real_tokens
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import init_reference, init_state, make_step, prompts_per_forward
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.architecture import ModelConfig, init
from rl_likelihood.planning.aot import count_flops, live
from rl_likelihood.runtime.devices import using
from rl_likelihood.shapes import CHAIN, PAD, Batch
from rl_likelihood.weights import assets

MEAN, SIGMA, LONGEST = 300, 0.6, 1024
MULTIPLE = 16  # of the width of rows, as configs have it
BATCHES = 100
PROMPT = (80, 180)  # tokens of a prompt, uniform
MODEL = "smollm2-135m-instruct"


class Lengths(NamedTuple):
    """Tokens of each chain with its answer [P, G], and of each prompt [P]."""

    chains: np.ndarray
    prompts: np.ndarray


def log_normal(p: int, g: int, seed: int, longest: int = LONGEST) -> Lengths:
    """Independent lengths with a mean of 300 before they are cut."""
    rng = np.random.default_rng(seed)
    chains = np.exp(rng.normal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, (p, g)))
    return Lengths(np.clip(chains * longest / LONGEST, 1, longest).astype(int), rng.integers(*PROMPT, p))


def solutions(path: Path) -> Lengths:
    """Tokens of GSM8K's questions and reference solutions."""
    tokenizer = load_tokenizer(str(assets.resolve(MODEL)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    counts = [[len(ids) for ids in tokenizer([x[k] for x in lines])["input_ids"]] for k in ("answer", "question")]
    return Lengths(np.array(counts[0])[:, None], np.array(counts[1]))


def of_solutions(all_of: Lengths, p: int, g: int, seed: int, alike: bool) -> Lengths:
    """Chains as long as reference solutions: each that of any question, or (`alike`) a group those of its own."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(all_of.prompts), p)
    chains = all_of.chains[np.repeat(rows[:, None], g, 1) if alike else rng.integers(0, len(all_of.prompts), (p, g)), 0]
    return Lengths(chains, all_of.prompts[rows])


def recorded(path: Path, p: int = 6) -> Iterator[Lengths]:
    """The groups that a report has of each run, p of them as a batch."""
    tokenizer = load_tokenizer(str(assets.resolve(MODEL)))
    block = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    if block is None:
        raise SystemExit(f"{path} is no report of ours: it holds no data")
    data = json.loads(block[1])
    for run in data["runs"]:
        groups = [x for x in run["groups"] if len(x["chains"]) == len(run["groups"][0]["chains"])]
        for i in range(0, len(groups) - p + 1, p):
            texts = [[c["chain"] + c["forced"] + c["sampled"] for c in x["chains"]] for x in groups[i : i + p]]
            chains = [[len(ids) for ids in tokenizer(row)["input_ids"]] for row in texts]
            answers = [[len(x["tokens"])] for x in groups[i : i + p]]
            prompts = tokenizer([x["prompt"] for x in groups[i : i + p]])["input_ids"]
            yield Lengths(np.array(chains) + answers, np.array([len(ids) for ids in prompts]))


def batch_of(lengths: Lengths, vocab: int = 100) -> Batch:
    """A padded batch of random ids with these lengths."""
    rng, up = np.random.default_rng(0), lambda n: -(-int(n) // MULTIPLE) * MULTIPLE
    (p, g), t, s = lengths.chains.shape, up(lengths.chains.max()), up(lengths.prompts.max())
    segment = np.where(np.arange(t) < lengths.chains[..., None], CHAIN, PAD)
    return Batch(
        prompt=rng.integers(3, vocab, (p, s)).astype(np.int32),
        prompt_length=lengths.prompts.astype(np.int32),
        completion=rng.integers(3, vocab, (p, g, t)).astype(np.int32),
        segment=segment.astype(np.int32),
        scored=np.zeros((p, g, t), bool),
        sampler_logp=np.zeros((p, g, t), np.float32),
        host_rewards={"math": rng.normal(size=(p, g)).astype(np.float32)},
        truncated=np.zeros((p, g), bool),
        keep=np.ones((p, g), bool),
    )


def shares(draw: Callable[[int], Lengths], devices: int, count: int = BATCHES) -> dict[str, float]:
    """Tokens of matrix products (attention is not counted) over real tokens, padded and packed, of all batches
    together; and the sizes that these have."""
    padded = packed = real = prompts = 0
    cfg, wide, sizes = StepConfig(), set(), set()
    mesh = make_mesh((devices, 1, 1), jax.devices()[:devices])
    for number in range(count):
        batch = batch_of(draw(number))
        with using(mesh):
            whole = pack(batch, cfg, whole=Whole(np.arange(len(batch.prompt)), len(batch.prompt), LONGEST))
        size = whole.packing
        assert size is not None
        p = len(batch.prompt)
        real += real_tokens(batch).sum() + batch.prompt_length.sum()
        prompts += batch.prompt.size
        padded += batch.completion.size
        packed += p // size.prompts * devices * size.tokens
        wide.add((batch.prompt.shape, batch.completion.shape))
        sizes.add((batch.prompt.shape, whole.completion.shape, size.prompts, size.tokens, size.rows, size.width))
    shares = {"padded": (padded + prompts) / real, "packed": (packed + prompts) / real}
    return shares | {"padded_sizes": len(wide), "packed_sizes": len(sizes)}


def table(questions: str, report: str) -> None:
    """One line a distribution."""
    cases: dict[str, tuple[Callable[[int], Lengths], int]] = {}
    for p, g in itertools.product((8, 64), (16, 32)):
        cases[f"log-normal, {p} x {g}"] = (functools.partial(log_normal, p, g), BATCHES)
    if questions:
        given = solutions(Path(questions))
        for alike in (False, True):
            name = f"GSM8K, {'a group alike' if alike else 'any question'}, 64 x 16"
            cases[name] = (functools.partial(of_solutions, given, 64, 16, alike=alike), BATCHES)
    if report:
        groups = list(recorded(Path(report)))
        cases[f"{Path(report).parent.name}, 6 x {len(groups[0].chains[0])}"] = (groups.__getitem__, len(groups))
    print("| lengths, prompts x chains | devices | padded | packed | sizes padded, packed |\n|---|---:|---:|---:|---:|")
    for name, (draw, count) in cases.items():
        for devices in (1, 8):
            if len(draw(0).prompts) % devices == 0:
                x = shares(draw, devices, min(count, BATCHES))
                ratios = f"{x['padded']:.2f} | {x['packed']:.2f} | {x['padded_sizes']}, {x['packed_sizes']}"
                print(f"| {name} | {devices} | {ratios} |", flush=True)


def traced(model: ModelConfig, cfg: StepConfig, batch: Batch):
    """The learner's step on one device, with a reference model."""
    mesh, optimizer = make_mesh((1, 1, 1), jax.devices()[:1]), make_optimizer(OptimizerConfig())
    params = jax.eval_shape(lambda key: init(key, model), jax.random.key(0))
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), params)
    reference = jax.eval_shape(lambda p: init_reference(p, mesh, model, cfg), params)
    with using(mesh):
        return make_step(model, cfg, optimizer, mesh, batch).trace(state, reference, batch)


def cost(model: ModelConfig, group: int, longest: int) -> None:
    """Operations and memory of one batch's step. XLA counts the body of a loop once, so its operations are those of a
    step without micro-batches and with the vocabulary in one block; memory is that of the step as it runs."""
    cfg = work.setup(work.Case(model, work.Shape(1, group, 1, 1))).step
    padded = batch_of(log_normal(8, group, 0, longest), model.vocab_size)
    rows = {}
    for name in ("padded", "packed"):
        in_one = dataclasses.replace(cfg, micro_batch_prompts=8, head_chunk=2**30)
        whole, run = (pack(padded, c) if name == "packed" else padded for c in (in_one, cfg))
        program = traced(model, cfg, run)
        flops = count_flops(live(program.jaxpr.jaxpr))
        by_xla = traced(model, in_one, whole).lower().compile().cost_analysis()["flops"]
        temporary = program.lower().compile().memory_analysis().temp_size_in_bytes
        rows[name] = {"flops": flops, "flops_by_xla": by_xla, "temporary_gib": temporary / 2**30}
        print(json.dumps({"batch": name, **rows[name], "micro_batch": prompts_per_forward(run, cfg)}), flush=True)
    ratio = {k: round(rows["padded"][k] / rows["packed"][k], 2) for k in rows["padded"]}
    print(json.dumps({"padded_over_packed": ratio}))


def times(model: ModelConfig, group: int, longest: int, rounds: int) -> None:
    """Seconds of the step on one batch, padded and packed, alternating."""
    case = work.Case(model, work.Shape(8, group, PROMPT[1], longest))
    setup = work.setup(case)
    params, calls = setup.params(), {}
    padded = batch_of(log_normal(8, group, 0, longest), model.vocab_size)
    for name in ("padded", "packed"):
        with using(setup.mesh):
            batch = pack(padded, setup.step) if name == "packed" else padded
        calls[name] = work.learning_calls(setup, params, batch)["learner"]
    measured = work.rounds(calls, rounds)
    print(json.dumps({k: [round(t, 3) for t in v] for k, v in measured.items()}))
    ratios = [a / b for a, b in zip(measured["padded"], measured["packed"], strict=True)]
    print(json.dumps({"padded_over_packed": round(statistics.median(ratios), 2)}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--questions", default="", help="GSM8K's train.jsonl")
    arguments.add_argument("--report", default="experiments/results/cpu_grid/report.html", help="a report's page")
    arguments.add_argument("--cost", action="store_true")
    arguments.add_argument("--rounds", type=int, default=0)
    arguments.add_argument("--model", default="W10", choices=work.MODELS)
    arguments.add_argument("--group", type=int, default=16)
    arguments.add_argument("--longest", type=int, default=LONGEST)
    a = arguments.parse_args()
    if a.rounds:
        times(work.MODELS[a.model], a.group, a.longest, a.rounds)
    elif a.cost:
        cost(work.MODELS[a.model], a.group, a.longest)
    else:
        jax.config.update("jax_num_cpu_devices", 8)
        table(a.questions, a.report)


if __name__ == "__main__":
    main()
