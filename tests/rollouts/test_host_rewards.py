"""Rewards from text: which text, and what a grader's failure does to a row."""

import dataclasses
import json

import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.grading.gym import pack
from rl_likelihood.grading.pool import Pool
from rl_likelihood.rollouts.host_rewards import host_rewards, responses, sampled_texts, token_ends
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, Rollout
from rl_likelihood.tables import grader_table
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


def task_of(name, file=""):
    return load(build(small_config(reward__name=name, reward__file=str(file))))[0]


OWN = """
from rl_likelihood.grading.graders import Grader

def as_long(reference, answer):
    return None if answer == "fail" else answer is not None and len(answer) == len(reference)

GRADERS = {"as_long": Grader(as_long, "as many characters as the reference")}
"""


def test_a_row_whose_grader_fails_is_neither_right_nor_wrong(tmp_path):
    """A grader of the user's own: one row in a file of theirs, and nothing else."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    task = task_of("as_long", file)
    reference = task.heldout[0].example.answer
    opened = "1+1</think>\n<answer"
    texts = [f">{'9' * len(reference)}</answer", ">fail</answer", ">no such length</answer"]
    rollout, rows = rollout_of(task, [(opened, text) for text in texts])
    with Pool(table=grader_table(str(file))) as pool:
        rewards, keep, logged, *_ = host_rewards(task, pool, rollout, rows, sampled_texts(task, rollout))
    assert rewards["as_long"][0, 0] == 1 and rewards["as_long"][0, 2] == 0
    assert keep.tolist() == [[True, False, True]] and logged["grader/failures"] == 1


def test_a_grader_that_is_no_row_is_refused(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("GRADERS = {'mine': len}")
    with pytest.raises(UserError, match="own.py.* 'mine' .*Grader"):
        grader_table(str(file))


def test_a_prefix_of_tokens_is_judged_by_the_ids_of_the_reference():
    """Over bytes each beginning ends with a token; with ids of two bytes only every second one does."""
    task = task_of("prefix_token")
    row = task.heldout[0]
    row = dataclasses.replace(row, example=dataclasses.replace(row.example, answer="abcd"))
    ids = task.tokenizer(">abcd</answer>", add_special_tokens=False)["input_ids"]
    whole = dataclasses.replace(row, answer_ids=np.array(ids))
    assert token_ends(whole, task.fmt) == {1, 2, 3, 4}
    pairs = dataclasses.replace(task.fmt, vocab_bytes=(b">a", b"bc", b"d<", b"/answer>"))
    assert token_ends(dataclasses.replace(row, answer_ids=np.arange(4)), pairs) == {1, 3, 4}
    rollout, _ = rollout_of(task, [("1</think>\n<answer", f">{said}</answer") for said in ("ab", "ax", "abcd")])
    with Pool() as pool:
        rewards, _, _, *_ = host_rewards(task, pool, rollout, [whole], sampled_texts(task, rollout))
    assert rewards["prefix_token"].tolist() == [[1, 0, 1]]


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
        rewards, keep, _, *_ = host_rewards(task, pool, rollout, rows, sampled_texts(task, rollout))
    assert rewards["format"].tolist() == [[1, 0]] and keep.all()
    open_chain, rows = rollout_of(task, [("1+1", None)], truncated=True)
    assert responses(task, open_chain, rows, sampled_texts(task, open_chain)) == [["<think>1+1"]]
