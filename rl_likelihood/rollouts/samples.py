"""Writes a step's chains to samples.jsonl, and from time to time one to the console."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl_likelihood.envs.protocol import ENDS
from rl_likelihood.learner.surrogate import turn_of
from rl_likelihood.rollouts.batches import StepInput
from rl_likelihood.rollouts.conversations import messages_of, written_by_model
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import excerpt, say
from rl_likelihood.runtime.devices import Devices
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, TAG
from rl_likelihood.task import Task


def write_samples(task: Task, devices: Devices, writer, step: int, step_input: StepInput, per_row: dict) -> None:
    """Writes every chain of the first few prompts, with its rewards. With several processes, only the first writes."""
    c = task.config.report
    to_file = bool(c.samples_every) and step % c.samples_every == 0
    to_console = bool(c.console_samples) and step % c.console_samples == 0
    if not to_file and not to_console or not distributed.first():
        return
    n = min(len(step_input.rows), max(c.sample_prompts if to_file else 0, int(to_console)))
    values = {k: v[task.config.own_prompts(devices.prompts)[:n]] for k, v in per_row.items()}
    rows = []
    for i in range(n):
        for j in range(step_input.rollout.segment.shape[1]):
            row = sample_of(task, step_input, values, i, j)
            if to_file and i < c.sample_prompts:
                rows.append(row)
            if to_console and i == j == 0:
                chain = row["chain"].removesuffix(task.fmt.answer_open).rstrip().removesuffix(task.fmt.think_close)
                prompt, chain, answer = map(excerpt, (row["prompt"], chain, row["reference_answer"]))
                say(f"    {prompt}  {chain}  [{answer}]  reward {row['reward']:.2f}")
    writer.samples(step, rows)


def sample_of(task: Task, step_input: StepInput, values: dict[str, np.ndarray], i: int, j: int) -> dict[str, Any]:
    """Chain j of prompt i as a line of samples.jsonl. `values`: the step's values of each row [P, G, ...]."""
    rollout, batch, example = step_input.rollout, step_input.batch, step_input.rows[i].example
    kinds, ids, text = rollout.segment[i, j], rollout.completion[i, j], task.tokenizer.decode
    answer = kinds == REFERENCE
    rounded = lambda x: [round(float(v), 5) for v in x]
    digits = lambda x: float(f"{x:.6g}")  # significant digits, because a long answer's probability is 1e-40 or less
    no_chain = {}
    if batch.no_chain is not None:
        logp = values["no_chain_answer_logp"][i][batch.no_chain.segment[i, 0] == REFERENCE]
        no_chain["answer_logp_no_chain"] = rounded(logp)
    extra: dict[str, Any] = {}
    if rollout.outcomes is not None:
        if j == 0:
            extra["start"] = text(step_input.rows[i].prompt_ids)  # once a group: it may be long
        extra["messages"] = messages_of(task, rollout, i, j)
        extra |= {k: digits(v[i, j]) for k, v in vars(rollout.outcomes).items() if not np.isnan(v[i, j])}
        extra["end"] = ENDS[int(rollout.outcomes.end[i, j])]
        if "turn_advantage" in values:
            messages = sum(message["role"] == "assistant" for message in extra["messages"])
            extra["turn_advantage"] = [digits(v) for v in values["turn_advantage"][i, j][:messages]]
        extra["answer_turn"] = np.asarray(turn_of(rollout.segment[i : i + 1, j : j + 1]))[0, 0, answer].tolist()
    if batch.shown is not None:
        group = rollout.segment.shape[1]
        extra["after_answer"] = j >= group - task.config.posterior.rows(group)
    weights = {}
    if "answer_weights" in values:
        scored = np.asarray(batch.scored[i, j][answer])
        token_weights = np.zeros(len(scored))
        token_weights[scored] = values["answer_weights"][i, j][: scored.sum()]
        weights["answer_weights"] = rounded(token_weights)
    return {
        "id": example.id,
        "prompt": example.prompt,
        "chain": written_by_model(extra["messages"]) if "messages" in extra else text(ids[kinds == CHAIN]),
        "chain_tokens": int((kinds == CHAIN).sum()),
        "forced": text(ids[kinds == TAG]),
        "sampled_answer": text(ids[kinds == SAMPLED]),
        "reference_answer": example.answer,
        "answer_tokens": [text([t]) for t in ids[answer]],
        "answer_logp": rounded(values["answer_logp"][i, j][np.flatnonzero(answer)]),
        **no_chain,
        **extra,
        **weights,
        **({} if step_input.verdicts is None else {"verdicts": step_input.verdicts[i][j]}),
        "scored": batch.scored[i, j][answer].astype(int),
        **{k: digits(v[i, j]) for k, v in values.items() if k.startswith("reward")},
        "advantage": digits(values["advantage"][i, j]),
        "truncated": bool(rollout.truncated[i, j]),
        "version": rollout.version,
    }
