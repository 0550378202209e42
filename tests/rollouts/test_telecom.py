"""Conversations of a telecom world with a very small model, in one message and in two."""

import dataclasses
import json

import numpy as np
import pytest

from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.rollouts.conversations import Conversations, messages_of, written_by_model
from rl_likelihood.run_model import random_model
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import REFERENCE
from rl_likelihood.task import SAMPLE, load
from rl_likelihood.weights import files
from tests.envs import small_world
from tests.rollouts.calculator import config
from tests.small import random_params


@pytest.mark.parametrize("turns, pace", [(1, "all calls in one message"), (2, "one call at a time")])
def test_telecom_is_sampled_and_paid(turns, pace, tmp_path):
    """The model has random weights and makes no call. The fault is in the phone, so the reward is 0 too."""
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
    task, params = load(config(**of_data, **of_env, **of_model, **lengths, prompt__max_answer=160))
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
    assert written_by_model(messages).count(" | ") >= turns - 1
    scored = task.tokenizer.decode(rollout.completion[0, 0][rollout.segment[0, 0] == REFERENCE])
    assert scored.count("reseat_sim_card") == scored.count("done") == turns  # before each message
