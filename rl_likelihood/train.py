"""Train: python -m rl_likelihood.train --config=configs/NAME.py --workdir=DIR [--config.a.b=v] [--print_config] [--dry_run].

Same workdir = resume. Read `learn` first: it is the whole loop.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from rl_likelihood import __version__
from rl_likelihood import config as configs
from rl_likelihood import mesh as meshes
from rl_likelihood.data import grading, sources
from rl_likelihood.data.prompts import completion_ids
from rl_likelihood.evaluate import evaluate
from rl_likelihood.learner.batching import given_rollout, to_batch
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.step import init_state, make_step, state_shardings
from rl_likelihood.model import decoder
from rl_likelihood.model.decoder import Params
from rl_likelihood.pod import checkpoint
from rl_likelihood.report import metrics as reports
from rl_likelihood.report.plots import curves
from rl_likelihood.report.table import side_by_side
from rl_likelihood.sampler import decode
from rl_likelihood.sampler.queue import RolloutQueue, WeightBox, start_sampler
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, TAG, Batch, Rollout, TrainState, UserError
from rl_likelihood.warm_start import warm_start, with_worked_examples
from rl_likelihood.world import SAMPLE, World, load, make_mesh

CONFIG, INITIAL = "config.json", "initial"
say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731


def main() -> None:
    c, overridden = configs.from_flags()
    if flags.FLAGS.print_config:
        print(configs.describe(c, overridden, configs.base()))
    settings = configs.build(c)
    if flags.FLAGS.print_config:
        return
    if flags.FLAGS.dry_run:
        return dry_run(settings)
    if flags.FLAGS.workdir is None:
        raise UserError("--workdir is missing; give the folder for this run's files, for example --workdir=runs/first")
    run(settings, Path(flags.FLAGS.workdir))


def run(settings: configs.Settings, workdir: Path) -> None:
    """One run from its workdir's last checkpoint, or from the start, to its last step."""
    c = settings.config
    claim(workdir, c)
    resume = checkpoint.latest_step(workdir)
    if resume is not None and resume >= c.train.steps:
        say(f"{workdir} is done: step {resume} of {c.train.steps}")
        return summary(workdir)
    with reports.MetricsWriter(
        workdir, c.train.steps, -1 if resume is None else resume, c.report.wandb, configs.flatten(c)
    ) as writer:
        writer.status("running", resume or 0)
        step = resume or 0
        try:
            world, params = load(settings)
            step, finished = learn(world, params, workdir, writer)
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            writer.status(state, checkpoint.latest_step(workdir) or 0, " ".join(str(error).split()) or repr(error))
            raise
        writer.status("done" if finished else "interrupted", step)
    if finished:
        summary(workdir)


def learn(world: World, params: Params, workdir: Path, writer: reports.MetricsWriter) -> tuple[int, bool]:
    """The loop: rollout -> batch -> step -> metrics; weights back to the sampler. Returns (step, finished)."""
    c, s = world.config, world.settings
    mesh = make_mesh(c)
    optimizer = make_optimizer(s.optimizer)
    placed = state_shardings(mesh, world.model, optimizer)
    with_reference = c.loss.kl != "none"
    stop = StopRequest()
    manager = checkpoint.open_manager(workdir, s.checkpoint)
    announce(world, mesh, workdir, checkpoint.latest_step(workdir))

    # State: from the checkpoint, or step 0 after evaluation of the untouched model and the warm start.
    if checkpoint.latest_step(workdir) is None:
        params = jax.device_put(params, placed.params)
        if c.warm_start.steps:
            rows, shots = world.heldout, c.warm_start.examples if c.warm_start.chains == "own" else 0
            if shots:
                rows, _ = with_worked_examples(world, rows[: c.eval.prompts], shots)
            untouched = f"untouched ({shots} examples)" if shots else "untouched"
            evaluation(world, params, 0, untouched, writer, rows)
            params = warm_start(world, params, mesh, workdir, say)
            evaluation(world, params, 0, "after format SFT" if shots else "after warm start", writer)
            params = jax.device_put(params, placed.params)
        else:
            evaluation(world, params, 0, "untouched", writer)
        state = jax.jit(lambda p: init_state(p, optimizer), out_shardings=placed)(params)
        if c.warm_start.steps:
            checkpoint.save(manager, state, meta_of(world))
            if with_reference:
                checkpoint.save_initial(workdir / INITIAL, state, meta_of(world))
    else:
        abstract = jax.eval_shape(lambda p: init_state(p, optimizer), params)
        abstract = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), abstract, placed)
        state, _ = checkpoint.restore(manager, abstract)
    ref_params = None
    if with_reference:
        initial = checkpoint.restore_params(workdir / INITIAL)[1] if c.warm_start.steps else params
        ref_params = jax.device_put(initial, placed.params)
    del params

    # Sampler thread and learner loop.
    start, steps = int(state.step), c.train.steps
    rows_of = sources.order(len(world.train), c.train.prompts_per_step, s.data.seed)
    source = Source(world, rows_of, start, steps)
    source.publish(start, state.params)
    step_of: dict[tuple, Any] = {}  # one compiled step for each width
    began, last_eval = time.perf_counter(), {}
    step = start
    try:
        while step < steps and not stop.requested:
            t0 = time.perf_counter()
            rollout, waited = source.get(step)
            batch = to_batch(rollout, outside_reward(world, rollout, rows_of))
            if batch.completion.shape not in step_of:
                step_of[batch.completion.shape] = make_step(world.model, s.step, optimizer, mesh, batch, with_reference)
            t1 = time.perf_counter()
            state, out, per_row = step_of[batch.completion.shape](state, ref_params, batch)
            out = {k: float(v) for k, v in out.items()}
            t2 = time.perf_counter()
            out |= {
                "queue/lag": step - rollout.version,
                "queue/depth": len(source.queue),
                "queue/dropped": source.queue.dropped,
                "time/sample": rollout.seconds,
                "time/learn": t2 - t1,
                "time/wait": waited,
                "tokens_per_second": int((rollout.segment != 0).sum()) / (t2 - t0),
            }
            step += 1
            refuse_nan(step, out)
            writer.metrics(step, out)
            write_samples(world, writer, step, rollout, batch, per_row, rows_of)
            done = time.perf_counter() - began
            say(reports.line(step, steps, out | last_eval, done / (step - start) * (steps - step)))
            if c.train.eval_every and step % c.train.eval_every == 0 and step < steps:
                last_eval = evaluation(world, state.params, step, f"step {step}", writer)
            if checkpoint.due(s.checkpoint, step, steps) or stop.requested:
                checkpoint.save(manager, state, meta_of(world))
            if step < steps and not stop.requested:
                source.publish(step, state.params)
        if step >= steps:
            evaluation(world, state.params, step, f"after {c.reward.name}, {step} steps", writer)
    finally:
        source.close()
        checkpoint.close(manager)
        stop.restore()
    if stop.requested:
        say(f"stopped after step {step}, saved; the same command goes on from there")
    return step, step >= steps


class Source:
    """Where batches come from: the sampler's thread and queue, or the reference answers themselves (sft)."""

    def __init__(self, world: World, rows_of: Callable[[int], np.ndarray], start: int, steps: int) -> None:
        c = world.config
        self.world, self.rows_of = world, rows_of
        self.queue = RolloutQueue(c.sampler.queue_depth, c.sampler.max_staleness)
        self.box = WeightBox()
        self.thread = None
        if c.reward.name != "sft":
            stale = c.sampler.max_staleness
            self.thread = start_sampler(self.produce, self.box, self.queue, stale, start, steps)

    def collate(self, number: int):
        index = self.rows_of(number)
        uid = number * len(index) + np.arange(len(index))
        return self.world.collate([self.world.train[i] for i in index], uid)

    def produce(self, number: int, weights: Params, version: int) -> Rollout:
        """Rollout number `number`, on the sampler's thread."""
        start = time.perf_counter()
        # One key for all steps: uid, the row's place in the stream, makes each row's own.
        key = self.world.key(SAMPLE)
        rollout = decode.sample(weights, self.collate(number), key, self.world.sampler(), version)
        return rollout.replace(seconds=time.perf_counter() - start)

    def publish(self, version: int, params: Params) -> None:
        if self.thread is not None:
            self.box.publish(version, decode.prepare(params, self.world.model))

    def get(self, step: int) -> tuple[Rollout, float]:
        if self.thread is not None:
            return self.queue.get(step)
        w = self.world
        rows = [w.train[i] for i in self.rows_of(step)]
        targets = [completion_ids(row, row.example.chain or None, w.tokenizer, w.fmt) for row in rows]
        width = w.config.sampler.max_chain + len(w.fmt.close_think_ids) + w.config.prompt.max_answer
        return given_rollout(self.collate(step), targets, w.fmt.pad_id, width).replace(version=step), 0.0

    def close(self) -> None:
        self.box.close()
        self.queue.close()
        if self.thread is not None:
            self.thread.join(timeout=60)


def outside_reward(world: World, rollout: Rollout, rows_of: Callable[[int], np.ndarray]) -> np.ndarray | None:
    """base_rl: the score of each sampled answer by exact match; None for rewards computed in the graph."""
    if world.settings.step.objective != "outside":
        return None
    right, wrong, unreadable = world.config.reward.base_rl
    rewards = np.zeros(rollout.segment.shape[:2], np.float32)
    for i, (row, answers) in enumerate(zip(rows_behind(world, rollout, rows_of), world.sampled_answers(rollout), strict=True)):
        for j, answer in enumerate(answers):
            match = grading.exact_match(row.example.answer, answer)
            rewards[i, j] = unreadable if answer is None else right if match else wrong
    return rewards


def rows_behind(world: World, rollout: Rollout, rows_of: Callable[[int], np.ndarray]) -> list:
    """The questions of a rollout, found by its uids."""
    number = int(rollout.prompts.uid[0]) // len(rollout.prompts.uid)
    return [world.train[i] for i in rows_of(number)]


def evaluation(world: World, params: Params, step: int, stage: str, writer: reports.MetricsWriter, rows=None) -> dict:
    """Evaluate, write eval.jsonl, and say it in one line."""
    rows = world.heldout if rows is None else rows
    if not world.config.eval.prompts or not rows:
        return {}
    out = evaluate(world, params, rows)
    writer.eval(step, {"stage": stage, **out})
    say(
        f"{stage}: greedy success {out['greedy_success']:.1%}, sampled {out['sampled_success']:.1%}, perplexity "
        f"{out['perplexity']:.3f} ({out['perplexity_no_chain']:.3f} without chain), chain {out['chain_length']:.1f} "
        f"tokens, {out['questions']:.0f} questions in {out['seconds']:.0f} s"
    )
    return {k: out[k] for k in ("greedy_success",)}


def write_samples(world: World, writer, step: int, rollout: Rollout, batch: Batch, per_row, rows_of) -> None:
    """samples.jsonl: every chain of the first few prompts, with all that it scored; now and then one to the console."""
    c = world.config.report
    if not c.samples_every or step % c.samples_every:
        return
    rows = rows_behind(world, rollout, rows_of)[: c.sample_prompts]
    values = {k: np.asarray(v[: len(rows)]) for k, v in per_row.items()}
    for i, row in enumerate(rows):
        for j in range(rollout.segment.shape[1]):
            kinds, ids = rollout.segment[i, j], rollout.completion[i, j]
            text = {kind: world.tokenizer.decode(ids[kinds == kind]) for kind in (CHAIN, TAG, SAMPLED)}
            scored = batch.scored[i, j]
            sample = {
                "id": row.example.id,
                "prompt": row.example.prompt,
                "chain": text[CHAIN],
                "forced": text[TAG],
                **({"sampled_answer": text[SAMPLED]} if world.config.sampler.max_sampled_answer else {}),
                "reference_answer": row.example.answer,
                "answer_tokens": [world.tokenizer.decode([t]) for t in ids[kinds == REFERENCE]],
                "answer_logp": [round(float(x), 5) for x in values["answer_logp"][i, j][kinds == REFERENCE]],
                "scored": scored[kinds == REFERENCE].astype(int),
                **{k: round(float(values[k][i, j]), 6) for k in values if k.startswith("reward")},
                "advantage": round(float(values["advantage"][i, j]), 6),
                "truncated": bool(rollout.truncated[i, j]),
                "version": rollout.version,
            }
            writer.sample(step, sample)
            if j == 0 and c.console_samples and step % c.console_samples == 0:
                chain = " ".join(sample["chain"].split())
                say(f"    {row.example.prompt}  ->  {chain} ...  [{row.example.answer}]  reward {sample['reward']:.2f}")


def refuse_nan(step: int, out: dict[str, float]) -> None:
    """A non-finite loss or gradient ends the run before it is saved."""
    bad = [k for k in ("loss/policy", "loss/answer", "loss/kl", "grad/norm") if not np.isfinite(out[k])]
    if bad:
        raise UserError(
            f"step {step}: {', '.join(bad)} is not finite; the last checkpoint is untouched: lower optim.lr, "
            "then start in a new workdir with model.path set to this one"
        )


# --------------------------------------------------------------------------- start and end of a run


def claim(workdir: Path, c: ConfigDict) -> None:
    """The workdir belongs to one config: write it, or refuse another."""
    path, new = workdir / CONFIG, configs.flatten(c)
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path}: not JSON; delete it, or choose another --workdir") from None
        names = configs.differences(old, new)
        if names:
            shown = ", ".join(f"{k} ({old.get(k, 'absent')!r} there, {new.get(k, 'absent')!r} here)" for k in names[:5])
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UserError(f"{workdir} belongs to a run with another config: {shown}{more}; choose another --workdir")
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(new, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); choose another --workdir") from None


def meta_of(world: World) -> dict[str, Any]:
    """What a checkpoint says beside its arrays."""
    return {"model_config": dataclasses.asdict(world.model), "model_path": world.model_path}


def announce(world: World, mesh: jax.sharding.Mesh, workdir: Path, resume: int | None) -> None:
    """What runs, on what, with which reward, in words."""
    c, m = world.config, world.model
    n = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(decoder.param_specs(m), is_leaf=lambda x: hasattr(x, "axes")))
    p, g = c.train.prompts_per_step, c.sampler.group_size
    loss = c.loss
    term = f"answer term x {loss.answer_term:g}" if c.reward.name not in ("base_rl", "sft") else ""
    kl = f"KL {loss.kl} x {loss.kl_coef:g}" if loss.kl != "none" else "no KL"
    of = {"base_rl": "exact match of the sampled answer", "sft": "none: supervised on the reference answer"}
    reward = of.get(c.reward.name, f"{c.reward.name} of the reference answer after the chain")
    shape = " x ".join(f"{k} {v}" for k, v in mesh.shape.items())
    where = f"resumes after step {resume}" if resume is not None else "new run"
    say(f"rl_likelihood {__version__}, jax {jax.__version__}, {jax.device_count()} {jax.default_backend()} device(s): {shape}")
    say(f"model    {c.model.path or c.model.preset}: {m.family}, {n / 1e6:.1f} M parameters, compute {m.compute_dtype}")
    say(f"data     {world.data_line}")
    say(f"reward   {reward}; advantage {loss.advantage}, {', '.join(x for x in (term, kl) if x)}")
    say(f"scored   answer tokens, delimiters: {c.prompt.score_delims}; a chain without answer tag: {c.reward.truncated}")
    say(f"batch    {p} prompts x {g} chains = {p * g} rows a step, {c.train.steps} steps, lr {c.optim.lr:g} {c.optim.schedule}")
    say(f"memory   {4 * 4 * n / 2**30:.1f} GiB for parameters, gradient and two moments, over {mesh.size} device(s)")
    say(f"workdir  {workdir} ({where}): metrics.jsonl, samples.jsonl, eval.jsonl, checkpoints/")


def summary(workdir: Path) -> None:
    """Before and after side by side, and the figure."""
    if not (workdir / reports.EVAL).exists():
        return
    rows = {row["stage"]: row for row in reports.read(workdir / reports.EVAL) if "stage" in row}
    ends = [k for k in rows if not k.startswith("step ")]
    if not ends:
        return
    say("\n" + side_by_side({k: rows[k] for k in ends}))
    n = int(rows[ends[0]]["questions"])
    say(f"\n{n} held-out questions; standard error of a success rate at most {50 / n**0.5:.1f} points")
    files = curves({workdir.name: workdir}, workdir)
    say(f"figure   {files[0]}")
    say(f"chains   {workdir / reports.SAMPLES}")


def dry_run(settings: configs.Settings) -> None:
    """Load everything, build the mesh, compile the step, allocate and train nothing."""
    c = settings.config
    world, params = load(settings)
    mesh = make_mesh(c)
    announce(world, mesh, Path(flags.FLAGS.workdir or "(none)"), None)
    optimizer = make_optimizer(settings.optimizer)
    p, g = c.train.prompts_per_step, 1 if c.reward.name == "sft" else c.sampler.group_size
    tags = max(len(world.fmt.close_think_ids), len(world.fmt.open_answer_ids))
    t = c.sampler.max_chain + c.sampler.max_sampled_answer + tags + c.prompt.max_answer
    shape = lambda kind, *dims: jax.ShapeDtypeStruct(dims, kind)  # noqa: E731
    i, f, b = jnp.int32, jnp.float32, jnp.bool_
    batch = Batch(
        shape(i, p, c.prompt.max_prompt), shape(i, p), shape(i, p, g, t), shape(i, p, g, t), shape(b, p, g, t),
        shape(f, p, g, t), shape(f, p, g), shape(b, p, g), shape(b, p, g),
    )  # fmt: skip
    with_reference = c.loss.kl != "none"
    abstract = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    step = make_step(world.model, settings.step, optimizer, mesh, batch, with_reference)
    start = time.perf_counter()
    compiled = step.lower(abstract, abstract.params if with_reference else None, batch).compile()
    memory = compiled.memory_analysis()
    say(f"compiled in {time.perf_counter() - start:.1f} s; per device {memory.argument_size_in_bytes / 2**30:.2f} GiB of "
        f"state and batch, {memory.temp_size_in_bytes / 2**30:.2f} GiB of intermediate values")  # fmt: skip
    say(f"a step sees at most {p * (c.prompt.max_prompt + g * t):,} tokens; each prompt is computed once for its {g} chains")


class StopRequest:
    """Ctrl-C and SIGTERM finish the step and save; a second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, *_: Any) -> None:
        if self.requested:
            self.restore()
            raise KeyboardInterrupt
        self.requested = True
        say("stopping after this step (again to stop at once)")

    def restore(self) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run; the same folder again resumes")
    flags.DEFINE_bool("print_config", False, "print every field, with what was overridden, and exit")
    flags.DEFINE_bool("dry_run", False, "load, compile and report; train nothing")
    configs.run_main(main)
