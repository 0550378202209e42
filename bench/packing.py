"""What packing leaves of padding, on lengths as runs have them.

    python -m bench.packing [--questions=gsm8k/train.jsonl] [--grid=experiments/results/cpu_grid/report.html]
    python -m bench.packing --cost [--model=W135] [--group=16]
    python -m bench.packing --rounds=3 [--model=W10] [--group=16] [--longest=1024]

First a table: tokens that matrix products compute (attention is not counted) over real ones, prompts included, as rows
are padded with sampler.width_multiple=16 and packed (by default rows are as wide as possible), and how many sizes of
the step a run asks for. Lengths are log-normal (mean 300, at most 1,024), or the reference solutions of GSM8K after
its bare questions, both in a run of 100 batches; or those of chains that the grid's report recorded, after the prompts
of configs/cpu_grid.py. The beginning that these share is computed once and not counted. One device is a CPU; eight
have one micro-batch. `--cost` compiles one batch of the log-normal lengths, padded and packed: operations and memory
by XLA, nothing is run. `--rounds` times both steps, alternating.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from bench import work
from configs.cpu_grid import get_config
from experiments.cpu_grid import shown_messages
from rl_likelihood.config import Config, build
from rl_likelihood.data.prompts import render
from rl_likelihood.data.token_ids import common_ids
from rl_likelihood.data.tokenizer import load_tokenizer
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.packing import Whole, pack, packed_prompt_width, real_tokens
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import init_reference, init_state, make_step, prompts_per_forward
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model.architecture import ModelConfig, init
from rl_likelihood.planning.aot import count_flops, live
from rl_likelihood.planning.lengths import log_normal_lengths
from rl_likelihood.runtime.devices import using
from rl_likelihood.shapes import CHAIN, PAD, Batch, Example
from rl_likelihood.weights import assets

MEAN, LONGEST = 300, 1024
MULTIPLE = 16  # of the width of rows
BATCHES = 100
PROMPT = (80, 180)  # tokens of a prompt, uniform
MODEL = "smollm2-135m-instruct"


class Lengths(NamedTuple):
    """Tokens of each chain with its answer [P, G], and of each prompt [P]. All prompts begin with the same `common`."""

    chains: np.ndarray
    prompts: np.ndarray
    common: int = 0


def log_normal(p: int, g: int, seed: int, longest: int = LONGEST) -> Lengths:
    """Independent lengths with a mean of 300 before they are cut."""
    rng = np.random.default_rng(seed)
    chains = log_normal_lengths(rng, p, g, MEAN)
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


def prompts_of(groups: list[dict], c: Config, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """The prompts of recorded groups in ids, as configs/cpu_grid.py renders them."""
    before = tuple(shown_messages()) if c.data.source == "jsonl" else ()
    texts = [
        render(
            Example("", x["prompt"], "", task=c.data.tasks[0], messages=(*before, ("user", x["prompt"]))),
            tokenizer,
            c.prompt,
        )
        for x in groups
    ]
    return [np.array(ids) for ids in tokenizer(texts)["input_ids"]]


def recorded(path: Path, task: str) -> list[list[Lengths]]:
    """The batches of each run of a task that the grid's report recorded. A report has a group of each step, so a batch
    has groups of several steps. Runs of a single chain are left out."""
    c, tokenizer = build(get_config(f"task={task}")), load_tokenizer(str(assets.resolve(MODEL)))
    block = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    if block is None:
        raise SystemExit(f"{path} is no report of ours: it holds no data")
    runs = [x["groups"] for x in json.loads(block[1])["runs"] if x["name"].startswith(f"task {task},")]
    p, found = c.train.prompts_per_step, []
    for groups in (x for x in runs if len(x[0]["chains"]) > 1):
        texts = [[chain["chain"] + chain["forced"] + chain["sampled"] for chain in x["chains"]] for x in groups]
        chains = [
            [len(ids) + len(x["tokens"]) for ids in tokenizer(t)["input_ids"]]
            for x, t in zip(groups, texts, strict=True)
        ]
        prompts = prompts_of(groups, c, tokenizer)
        common, lengths = len(common_ids(prompts)), np.array([len(ids) for ids in prompts])
        starts = range(0, len(groups) - p + 1, p)
        found.append([Lengths(np.array(chains[i : i + p]), lengths[i : i + p], common) for i in starts])
    return found


def up(n: int) -> int:
    """`n` rounded up to a multiple of MULTIPLE."""
    return -(-int(n) // MULTIPLE) * MULTIPLE


def batch_of(lengths: Lengths, vocab: int = 100) -> Batch:
    """A padded batch of random ids with these lengths."""
    rng = np.random.default_rng(0)
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


def shares(runs: Sequence[Sequence[Lengths]], devices: int) -> dict[str, float]:
    """Tokens of matrix products (attention is not counted) over real tokens, padded and packed, of the batches of all
    runs together; and the sizes of the run that has most."""
    computed, real = {"padded": 0, "packed": 0}, 0
    sizes: dict[str, list[int]] = {"padded": [], "packed": []}
    mesh = make_mesh((devices, 1, 1), jax.devices()[:devices])
    for run in runs:
        wide, small = set(), set()
        for lengths in run:
            batch, common = batch_of(lengths), lengths.common
            p, longest = len(batch.prompt), int(lengths.prompts.max())
            with using(mesh):
                whole = pack(batch, StepConfig(), whole=Whole(np.arange(p), p, LONGEST))
            size = whole.packing
            assert size is not None
            real += real_tokens(batch).sum() + (lengths.prompts - common).sum()
            widths = batch.prompt.shape[1], up(packed_prompt_width(longest, common, LONGEST))
            computed["padded"] += batch.completion.size + p * (widths[0] - common)
            computed["packed"] += p // size.prompts * devices * size.tokens + p * (widths[1] - common)
            wide.add((widths[0], batch.completion.shape))
            small.add((widths[1], whole.completion.shape, size.prompts, size.tokens, size.rows, size.width))
        sizes["padded"].append(len(wide))
        sizes["packed"].append(len(small))
    most = {f"{name}_sizes": max(counts) for name, counts in sizes.items()}
    return {name: tokens / real for name, tokens in computed.items()} | most


def table(questions: str, grid: str) -> None:
    """One line a distribution."""
    cases: dict[str, list[list[Lengths]]] = {}
    for p, g in itertools.product((8, 64), (16, 32)):
        cases[f"log-normal, {p} x {g}"] = [[log_normal(p, g, seed) for seed in range(BATCHES)]]
    if questions:
        given = solutions(Path(questions))
        for alike in (False, True):
            name = f"GSM8K, {'a group alike' if alike else 'any question'}, 64 x 16"
            cases[name] = [[of_solutions(given, 64, 16, seed, alike) for seed in range(BATCHES)]]
    for task in ("short", "long") if grid else ():
        runs = recorded(Path(grid), task)
        cases[f"cpu_grid, {task}, {' x '.join(map(str, runs[0][0].chains.shape))}"] = runs
    print("| lengths, prompts x chains | devices | padded | packed | sizes padded, packed |\n|---|---:|---:|---:|---:|")
    for name, runs in cases.items():
        for devices in (1, 8):
            if len(runs[0][0].prompts) % devices == 0:
                x = shares(runs, devices)
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
    arguments.add_argument("--grid", default="experiments/results/cpu_grid/report.html", help="its report's page")
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
        table(a.questions, a.grid)


if __name__ == "__main__":
    main()
