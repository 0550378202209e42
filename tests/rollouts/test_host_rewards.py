"""Rewards from text: which text, and what a grader's failure does to a row."""

import dataclasses
import json

import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.grading.gym import pack
from rl_likelihood.grading.pool import Pool
from rl_likelihood.rollouts.host_rewards import host_rewards, responses, sampled_texts
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, Rollout
from rl_likelihood.task import load
from tests.programs import isolated
from tests.runs import small_config


def rollout_of(task, texts, truncated=False):
    """One prompt; its rows say these texts, (chain with its tags, sampled answer or None)."""
    row = task.heldout[0]
    ids = lambda text: task.tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = [(ids(chain), ids(answer or ""), list(row.answer_ids)) for chain, answer in texts]
    width = max(sum(map(len, part)) for part in parts)
    completion, segment = np.zeros((1, len(texts), width), np.int32), np.zeros((1, len(texts), width), np.int32)
    for j, part in enumerate(parts):
        whole = [i for piece in part for i in piece]
        completion[0, j, : len(whole)] = whole
        kinds = [k for piece, k in zip(part, (CHAIN, SAMPLED, REFERENCE), strict=True) for _ in piece]
        segment[0, j, : len(whole)] = kinds
    prompts = task.collate([row], np.array([0]))
    cut = np.full((1, len(texts)), truncated)
    return Rollout(prompts, completion, segment, np.zeros(segment.shape, np.float32), cut), [row]


def task_of(name):
    return load(build(small_config(reward__name=name)))[0]


def test_a_row_whose_grader_fails_is_neither_right_nor_wrong():
    pytest.importorskip("math_verify")
    task = task_of("math")
    reference = task.heldout[0].example.answer
    opened = "1+1</think>\n<answer"
    rollout, rows = rollout_of(
        task, [(opened, f">{reference}</answer"), (opened, ">9^{9^{9^9}}</answer"), (opened, ">none</answer")]
    )
    with Pool(deadline=4.0) as pool:  # a busy machine takes a second for what does not hang
        rewards, keep, logged = host_rewards(task, pool, rollout, rows, sampled_texts(task, rollout))
    assert rewards["math"][0, 0] == 1 and rewards["math"][0, 2] == 0
    assert keep.tolist() == [[True, False, True]] and logged["grader/failures"] == 1


@isolated
def test_a_grader_that_needs_more_than_the_answer_gets_it():
    task = task_of("code_tests + reasoning_gym")
    program = {"prompt": "def f():\n", "test": "def check(f):\n    assert f() == 5", "entry_point": "f"}
    opened = "1+1</think>\n<answer"
    rollout, rows = rollout_of(task, [(opened, f">{body}</answer") for body in (" return 5", " return 4", "9")])
    for check, name, marks in (
        (json.dumps(program), "code_tests", [1, 0, 0]),
        (pack("count_bits", {}, {"question": "?", "answer": "9", "metadata": {}}), "reasoning_gym", [0, 0, 1]),
    ):
        asked = [dataclasses.replace(rows[0], example=dataclasses.replace(rows[0].example, check=check))]
        with Pool(deadline=60.0) as pool:
            assert host_rewards(task, pool, rollout, asked, sampled_texts(task, rollout)).values[name].tolist() == [
                marks
            ]


def test_the_text_of_a_row_without_a_sampled_answer_ends_in_the_reference():
    task = task_of("log_prob + format")
    reference = task.heldout[0].example.answer
    rollout, rows = rollout_of(task, [("1+1</think>\n<answer", None), ("1+1</thought><answer", None)])
    assert responses(task, rollout, rows, sampled_texts(task, rollout)) == [
        [f"<think>1+1</think>\n<answer>{reference}</answer>", f"<think>1+1</thought><answer>{reference}</answer>"]
    ]
    with Pool() as pool:
        rewards, keep, _ = host_rewards(task, pool, rollout, rows, sampled_texts(task, rollout))
    assert rewards["format"].tolist() == [[1, 0]] and keep.all()
    open_chain, rows = rollout_of(task, [("1+1", None)], truncated=True)
    assert responses(task, open_chain, rows, sampled_texts(task, open_chain)) == [["<think>1+1"]]
