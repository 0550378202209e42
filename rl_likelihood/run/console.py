"""What a person sees of a run: what starts, what came out, and how to stop it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rl_likelihood import __version__
from rl_likelihood.model import decoder
from rl_likelihood.pod import distributed
from rl_likelihood.report import metrics as reports
from rl_likelihood.report.plots import curves
from rl_likelihood.report.table import side_by_side
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.run.world import World, portion


def say(text: str) -> None:
    """One line to the console, at once, from the first of several processes."""
    if distributed.first():
        print(text, flush=True)


def say_at_once(text: str) -> None:
    """`say` for the handler of a signal, which may come in the middle of a print: past Python's buffer, which would
    refuse to be entered twice."""
    if distributed.first():
        os.write(1, f"{text}\n".encode())


def announce(world: World, workdir: Path | None, resume: int | None) -> None:
    """What runs, on what, with which reward, in words."""
    c, m, places = world.config, world.model, world.places
    mesh = places.learner
    specs = jax.tree.leaves(decoder.param_specs(m), is_leaf=decoder.is_spec)
    n = sum(int(np.prod(spec.shape)) for spec in specs)
    p, g = c.train.prompts_per_step, 1 if c.reward.name == "sft" else c.sampler.group_size
    shape = " x ".join(f"{k} {v}" for k, v in mesh.shape.items())
    reward, terms = (
        c.reward.name,
        [f"advantage {c.loss.advantage}", f"policy term on the {world.settings.step.policy_span}"],
    )
    if c.reward.name == "sft":
        chain = {"none": "without chain", "answer": "after the given chain", "both": "and the given chain before it"}
        reward, terms = f"none: supervised on the reference answer, {chain[c.reward.sft_chain]}", []
    elif any(t.name in OBJECTIVES for t in world.settings.step.reward.terms):
        reward += " of the reference answer after the chain" if c.reward.name in OBJECTIVES else ""
        terms.append(f"answer term x {c.loss.answer_term:g}")
    terms.append(f"KL {c.loss.kl} x {c.loss.kl_coef:g}" if c.loss.kl != "none" else "no KL")
    if c.filter.mode != "none":
        terms.append(f"groups filtered by {c.filter.mode}")
    devices = f"{jax.device_count()} {jax.default_backend()} device(s)"
    if jax.process_count() > 1:
        devices += f" of {jax.process_count()} processes"
    if places.apart:
        devices += f", {places.sampler.size} of each process for sampling"
    say(f"rl_likelihood {__version__}, jax {jax.__version__}, {devices}: {shape}")
    layers = "scanned" if m.scan_layers else "unrolled"
    computed = f"compute {m.compute_dtype}, attention {m.attention}, layers {layers}"
    say(f"model    {c.model.path or c.model.preset}: {m.family}, {n / 1e6:.1f} M parameters, {computed}")
    say(f"data     {world.data_line}")
    say(f"prompt   {c.prompt.examples} worked examples, at most {c.prompt.max_prompt} tokens")
    say(f"reward   {reward}; {', '.join(terms)}")
    if c.loss.kl == "k1":
        say("warning: loss.kl=k1 has no gradient in expectation; k2, or reward_k1, pulls to the initial model")
    say(f"scored   answer tokens, delimiters: {c.prompt.score_delims}; no answer tag: {c.reward.truncated}")
    schedule = f"{c.train.steps} steps, lr {c.optim.lr:g} {c.optim.schedule}"
    at_a_time = portion(world)
    measured = c.train.micro_batch_prompts < 0  # and said when it has been
    portions = "" if measured else f", {at_a_time} prompt{'s' * (at_a_time > 1)} at a time"
    say(f"batch    {p} prompts x {g} chains = {p * g} rows a step{portions}, {schedule}")
    layers = 1 - m.vocab_size * m.width * (2 - m.tied) / n  # of the parameters
    step, held = world.settings.step, {"parameters": 1, "gradient": 1, "two moments": 2, "the sampler's copy": 1}
    # A loop over portions sums gradients, and cuts unrolled layers apart before it begins.
    loops = at_a_time < p or (measured and p > 1)
    held |= ({"the sum of gradients": 1} if m.scan_layers else {"a copy of the layers": layers}) if loops else {}
    held |= {"the reference model": 1} if step.with_reference else {}
    held |= {"the proxy model": 1 + layers if loops and not m.scan_layers else 1} if step.with_proxy else {}
    gib, names = sum(held.values()) * 4 * n / 2**30, ", ".join(held)
    say(f"memory   at least {gib:.1f} GiB for {names}, over {mesh.size} device(s); activations come on top")
    if workdir is not None:
        where = f"goes on after step {resume}" if resume is not None else "new run"
        say(f"workdir  {workdir} ({where}): metrics.jsonl, samples.jsonl, eval.jsonl, checkpoints/")


def summary(workdir: Path) -> None:
    """Before and after side by side, the same questions answered by each, and the figure."""
    if not (workdir / reports.EVAL).exists():
        return
    rows = {row["stage"]: row for row in reports.read(workdir / reports.EVAL) if "stage" in row}
    rows = {stage: row for stage, row in rows.items() if not stage.startswith("step ")}
    if not rows:
        return
    say("\n" + side_by_side(rows))
    n = next(iter(rows.values()))["questions"]
    say(f"\n{n:.0f} held-out questions; a success rate has a standard error of at most {50 / n**0.5:.1f} points")
    say("\nGreedy answers to the first of them")
    columns = [row.get("examples", []) for row in rows.values()]
    for shown in zip(*columns, strict=False):
        say(f"  {shown[0]['prompt']}  [{shown[0]['reference']}]")
        for stage, example in zip(rows, shown, strict=True):
            mark = "right" if example["right"] else "wrong"
            say(f"    {stage:<{max(map(len, rows))}}  {mark}  {' '.join(example['text'].split())}")
    if (workdir / reports.METRICS).exists():
        say(f"\nfigure   {curves({workdir.name: workdir}, workdir)[0]}")
    say(f"chains   {workdir / reports.SAMPLES}")


class Stopped(Exception):
    """The user asked to stop, and what was going on need not be finished."""


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
        say_at_once("stopping after this step (again to stop at once)")

    def check(self) -> None:
        """Raise Stopped if asked to stop: called where nothing is lost by it, by all processes at the same point."""
        if distributed.any_of(self.requested):
            raise Stopped

    def restore(self) -> None:
        """The handlers from before."""
        for s, handler in self._old.items():
            signal.signal(s, handler)
