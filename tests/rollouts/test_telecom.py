"""Conversations of a telecom world with a very small model, in one message and in two."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.envs.protocol import ENDS
from rl_likelihood.learner.step import gradients
from rl_likelihood.rollouts.batches import Batches
from rl_likelihood.rollouts.conversations import Conversations, messages_of, written_by_model
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import REFERENCE
from rl_likelihood.task import SAMPLE, load
from rl_likelihood.weights import files
from tests.envs import small_world
from tests.rollouts.calculator import config
from tests.small import random_params

RESEAT, DONE = {"name": "reseat_sim_card", "arguments": {}}, {"name": "done", "arguments": {}}
TRANSFER = {"name": "transfer_to_human_agents", "arguments": {"summary": "No idea."}}


def loaded(tmp_path, turns, **changes):
    """(a task of one row, its parameters). The SIM card is out of the phone."""
    gold = ("reseat_sim_card", {}, None)
    service = ("assert_service_status", {"expected_status": "connected"})
    record = small_world.record(("unseat_sim_card", {}), assertions=[service], actions=[gold], ticket="No service.")
    small_world.write(tmp_path, record)
    row = {"prompt": "p", "answer": "a", "environment": {"task": record["id"]}}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    model = dataclasses.replace(random_model("nano"), max_position=8192)
    files.save(tmp_path / "model", model, random_params(model))
    save_tokenizer(byte_tokenizer(), tmp_path / "model")
    of_data = {"data__source": "files", "data__train_path": str(tmp_path / "train.jsonl"), "data__tasks": ()}
    of_data |= {"data__train_size": 0, "data__heldout_size": 0, "eval__prompts": 0}
    of_env = {"env__name": "telecom", "env__path": str(tmp_path), "env__style": "llama3"}
    of_model = {"model__path": str(tmp_path / "model"), "model__preset": "", "reward__name": "environment + calls_f1"}
    lengths = {"prompt__max_prompt": 3600, "sampler__max_env_tokens": 400, "sampler__max_turns": turns}
    return load(config(**of_data, **of_env, **of_model, **lengths, prompt__max_answer=160, **changes))


@pytest.mark.parametrize("turns, pace", [(1, "all calls in one message"), (2, "one call at a time")])
def test_telecom_is_sampled_and_paid(turns, pace, tmp_path):
    """The model has random weights and makes no call, so it is paid 0."""
    task, params = loaded(tmp_path, turns)
    start = task.tokenizer.decode(task.train[0].prompt_ids)
    assert pace in start and "No service." in start and '{"name": "reboot_device", "parameters": {}}' in start
    prompts, cfg = task.collate(task.train, np.arange(1)), task.sampler(group_size=2)
    weights = decode.prepare(params, task.model)
    rollout = Conversations(task).sample(weights, prompts, task.train, task.key(SAMPLE), cfg)
    outcomes = rollout.outcomes
    assert (outcomes.turns == turns).all() and (outcomes.bad_calls == turns).all() and not outcomes.failed.any()
    assert not outcomes.reward.any() and not outcomes.calls_f1.any() and not outcomes.calls.any()
    assert rollout.truncated.all(), "out of turns"
    messages = messages_of(task, rollout, 0, 0)
    assert [m["role"] for m in messages] == ["assistant", "environment", "assistant"][: 2 * turns - 1]
    assert all("call" in m["text"] for m in messages if m["role"] == "environment")
    assert written_by_model(messages) == " | ".join(m["text"] for m in messages[::2])
    scored = task.tokenizer.decode(rollout.completion[0, 0][rollout.segment[0, 0] == REFERENCE])
    assert scored.count("reseat_sim_card") == scored.count("done") == turns  # before each message


def test_what_is_solved_is_paid_and_trained_on(tmp_path):
    """A conversation that repairs the fault in its second message, and one that transfers at once."""
    task, params = loaded(tmp_path, 2, sampler__max_chain=160, sampler__group_size=2)
    conversations, devices = Conversations(task), make_devices(task.config)
    (row,) = task.train
    chains = [json.dumps([{"calls": [call]} for call in calls]) for calls in ([TRANSFER], [RESEAT, DONE])]
    rows = [dataclasses.replace(row, example=dataclasses.replace(row.example, chain=chain)) for chain in chains]
    played = [conversations.given(row) for row in rows]
    rollout = conversations.rollout(task.collate([row], np.arange(1)), [played], 0)
    outcomes = rollout.outcomes
    assert outcomes.reward.tolist() == outcomes.calls_f1.tolist() == [[0, 1]]
    assert [ENDS[end] for end in outcomes.end[0]] == ["transfer", "done"]
    assert (outcomes.turns.tolist(), outcomes.calls.tolist()) == ([[1, 2]], [[1, 2]])
    batches = Batches(task, devices, tmp_path)
    try:
        batch, _ = batches.batch(rollout, [row], batches.grade(rollout, [row])[0])
    finally:
        batches.close()
    step = jax.jit(lambda params, batch: gradients(params, (None, None), batch, task.model, task.config.step)[0])
    norms = [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(step(params, batch))]
    assert np.isfinite(norms).all() and max(norms) > 0
