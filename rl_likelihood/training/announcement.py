"""The lines that a run prints before it starts."""

from __future__ import annotations

import functools
from pathlib import Path

import jax

from rl_likelihood import __version__
from rl_likelihood.evaluation.preference import RM_EVAL
from rl_likelihood.learner.adversarial import optimizers_of
from rl_likelihood.learner.optimizer import make_optimizer
from rl_likelihood.learner.reward_step import init_state
from rl_likelihood.model.architecture import abstract, count, param_specs
from rl_likelihood.model.decoding import decoding_layout
from rl_likelihood.model.lora import as_base, trained_specs
from rl_likelihood.progress import counted
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.rollouts.local_judge import describe_decoder
from rl_likelihood.run_model import rollout_model
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.console import say, size
from rl_likelihood.runtime.devices import Devices
from rl_likelihood.runtime.disk import disk_of_run, tree_bytes
from rl_likelihood.settings import Config
from rl_likelihood.task import Task, largest_forward

SCORED = {
    "none": "the reference answer's tokens",
    "close": "the reference answer's tokens and the </ after them",
    "both": "the reference answer's tokens with the brackets around them",
}
TRUNCATED = {
    "force_close": "a chain that never opens the answer gets the missing tags",
    "floor": "a chain that never opens the answer gets reward.floor for each answer token",
    "drop": "a chain that never opens the answer is dropped",
}

ADVANTAGE = {
    "loo": "leave-one-out",
    "mean": "reward minus the group's mean",
    "std": "reward minus the group's mean, over its standard deviation",
    "std_clip": "leave-one-out over the group's standard deviation, clipped",
}


def announce(task: Task, devices: Devices, workdir: Path | None, resume: int | None) -> None:
    """Print the model, devices, data, reward, sizes and workdir. `resume`: the checkpoint's step."""
    c, m = task.config, task.model
    parameters = count(abstract(param_specs(m)))
    of_devices = counted(jax.device_count(), f"{jax.default_backend()} device")
    if jax.process_count() > 1:
        of_devices += f" of {jax.process_count()} processes"
    if devices.separate:
        of_devices += f", {devices.sampler.size} per process for sampling"
    axes = " x ".join(f"{k} {v}" for k, v in devices.learner.shape.items())
    say(f"rl_likelihood {__version__}, jax {jax.__version__}, {of_devices}; learner: {axes}")
    layers = "scanned" if m.scan_layers else "unrolled"
    computed = f"compute {m.compute_dtype}, attention {m.attention}, layers {layers}"
    say(f"model    {c.model.path or c.model.preset}: {m.family}, {parameters:,} parameters, {computed}")
    if c.lora.rank:
        targets = " ".join(c.lora.targets)
        say(f"lora     rank {c.lora.rank}, alpha {c.lora.alpha:g}, of {targets}; base {c.lora.base_dtype}")
    say(f"data     {task.data_line}")
    say(f"prompt   {c.prompt.examples} worked examples, at most {c.prompt.max_prompt} tokens")
    say(f"reward   {reward_words(c)}")
    if c.reward.judged == "reward_model" and (known := accuracy_words(Path(c.judge.model) / RM_EVAL)):
        say(f"judge    {known}")
    if c.loss.kl == "k1":
        say("warning: loss.kl=k1 has no gradient in expectation; use k2, k3 or reward_k1")
    say(scored_line(c))
    p, g = c.batch_prompts, 1 if c.reward.supervised else c.sampler.group_size
    micro_size = largest_forward(c, task.fmt, devices.learner, task.longest_chain)
    measured = c.train.micro_batch_prompts < 0  # the size is then printed after its measurement
    # With packing the step chooses the size: shorter chains give larger micro-batches.
    least = "at least " * (c.train.packing and not c.train.micro_batch_prompts and micro_size < p)
    micro = "" if measured else f", micro-batches of {least}{micro_size} prompt{'s' * (micro_size > 1)}"
    schedule = f"{c.optim.name}, lr {c.optim.lr:g} {c.optim.schedule}"
    say(f"batch    {p} prompts x {g} chains = {p * g} rows a step{micro}, {schedule}")
    say(steps_line(c, len(task.train)))
    copies = memory_copies(task, parameters, loops=micro_size < p or (measured and p > 1))
    copy_words = f"{', '.join(copies)}, on {counted(devices.learner.size, 'device')}"
    say(f"memory   at least {size(sum(copies.values()) * 4 * parameters)} for {copy_words}, plus activations")
    most, finished = map(size, disk_of_run(c, m))
    without = "" if c.train.keep_optimizer else " without optimizer state"
    say(f"disk     at most {most} of checkpoints, {finished}{without} after the run")
    if workdir is not None:
        start_words = f"resumes after step {resume}" if resume is not None else "new run"
        say(f"workdir  {workdir} ({start_words}): metrics.jsonl, samples.jsonl, eval.jsonl, checkpoints/")


def accuracy_words(file: Path) -> str:
    """What the last evaluation of a reward model found, beside what the length of an answer alone gets; "" if it was
    never evaluated."""
    rows = run_files.read(file) if file.is_file() else []
    evaluations = [row for row in rows if "pair_accuracy" in row]  # best_of writes other lines
    if not evaluations:
        return ""
    last = evaluations[-1]
    shown = ("pair_accuracy", "length_only_pair_accuracy", "accuracy_when_shorter")
    return ", ".join(f"{name} {last[name]:.1%}" for name in shown if name in last) + f" ({file})"


def steps_line(c: Config, questions: int) -> str:
    """The length of the run. Its time is unknown until two steps are done: the first one also compiles."""
    least, asked = "at least " * (c.filter.mode != "none"), c.train.steps * c.train.prompts_per_step
    many = f"{asked:,} of" if asked <= questions else f"{asked / questions:,.1f} times the"
    later = "; the time left is printed from the second on" * (c.train.steps > 1)
    return f"steps    {c.train.steps}, {least}{many} {questions:,} questions{later}"


def reward_words(c: Config) -> str:
    terms = [f"advantage: {ADVANTAGE[c.loss.advantage]}", f"policy term on the {c.step.policy_span}"]
    name = c.reward.name
    if c.reward.supervised:
        chain = {"none": "without a chain", "answer": "after the data's chain", "both": "and on the data's chain"}
        name, terms = f"none: supervised on the reference answer {chain[c.reward.sft_chain]}", []
    elif any(t.reward.differentiable for t in c.reward.terms):
        name += " of the reference answer after the chain" if name in OBJECTIVES else ""
        terms.append(f"answer term x {c.loss.answer_term:g}")
    terms.append(f"KL {c.loss.kl} x {c.loss.kl_coef:g}" if c.loss.kl != "none" else "no KL")
    if c.filter.mode != "none":
        terms.append(f"filter {c.filter.mode}")
    return f"{name}; {', '.join(terms)}"


def scored_line(c: Config) -> str:
    """What is scored of the one answer, or how long a conversation may be."""
    if not c.converses:
        return f"scored   {SCORED[c.prompt.score_delims]}; {TRUNCATED[c.reward.truncated]}"
    s, e = c.sampler, c.env
    sizes = f"at most {s.max_turns} messages of {s.max_chain} tokens and replies of {s.max_env_tokens}"
    return f"tools    environment {e.name}, calls in the style {e.style}, credit {e.credit}, {sizes}"


def memory_copies(task: Task, parameters: int, loops: bool) -> dict[str, float]:
    """The arrays that a run holds, in units of the parameters' size. `loops`: the step loops over micro-batches."""
    m, step, lora = task.model, task.config.step, task.config.lora
    params = abstract(trained_specs(m, lora))
    optimizer = tree_bytes(jax.eval_shape(make_optimizer(task.config.optimizer).init, params)) / (4 * parameters)
    trained = tree_bytes(params) / (4 * parameters)
    whole = abstract(param_specs(m))
    sampled = jax.eval_shape(functools.partial(decoding_layout, cfg=rollout_model(task.config, m)), whole)
    held = jax.eval_shape(lambda p: as_base(p, lora), whole) if lora.rank else whole
    layers = tree_bytes(held["layers"]) / (4 * parameters)
    copies = {"parameters": tree_bytes(held) / (4 * parameters)} | ({"adapters": trained} if lora.rank else {})
    copies |= {"gradient": trained, "the optimizer's state": optimizer}
    copies["the sampler's copy"] = tree_bytes(sampled) / (4 * parameters)
    # A loop over micro-batches sums gradients, and unstacks unrolled layers first.
    if loops:
        copies |= {"the sum of gradients": trained} if m.scan_layers else {"a copy of the layers": layers}
    if (step.with_reference and not lora.rank) or step.moving_reference:  # with LoRA the base is the reference
        copies["the reference model"] = trained
    if step.needs("proxy"):
        unstacked = layers if loops and not m.scan_layers and not lora.rank else 0
        copies["the proxy model"] = trained + unstacked
    if step.critic:
        critic = jax.eval_shape(lambda p: init_state(p, optimizers_of(step.critic)), whole)
        copies["the critic with its optimizer's state"] = tree_bytes(critic) / (4 * parameters)
    if task.config.judge_in_step and task.config.judge.model != "initial":
        judge = abstract(param_specs(describe_decoder(task.config.judge.model)[0]))
        copies["the judge"] = tree_bytes(judge) / (4 * parameters)
    return copies
