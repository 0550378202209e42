"""What a run says of itself before it starts."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from rl_likelihood import __version__
from rl_likelihood.model import decoder
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.runtime.console import say
from rl_likelihood.task import World, portion


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
