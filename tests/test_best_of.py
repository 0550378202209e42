"""--best_of with the settings of configs/reward_model.py: long options fit, and the gold can be reached."""

import itertools
import json
import shutil

import numpy as np
import pytest

from configs.reward_model import get_config
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.datasets import DATASETS
from rl_likelihood.datasets.prepare import prepare
from rl_likelihood.grading import graders
from rl_likelihood.grading.graders import GRADERS, reference_of
from rl_likelihood.learner.judge import ValueHead
from rl_likelihood.reward_model import best_of
from rl_likelihood.rollouts.local_judge import save_head
from rl_likelihood.run_model import random_model
from rl_likelihood.task import load
from rl_likelihood.weights import files
from tests.runs import small_config
from tests.small import random_params


@pytest.fixture
def reward_model(tmp_path):
    folder, model = tmp_path / "rm", random_model("nano")
    files.save(folder, model, random_params(model, seed=4, scale=0.1))
    save_tokenizer(byte_tokenizer(), folder)
    save_head(folder, ValueHead(np.ones(model.width, np.float32), np.float32(0)), 2.5)
    return folder


def test_the_documented_command_answers_questions_with_long_options(reward_model, tmp_path):
    records = {
        f"question {i}": {
            "question": f"Who sends message {i}?",
            "option 1": f"The base station sends message {i} by itself",
            "option 2": f"The user equipment sends message {i} by itself",
            "answer": f"option 1: The base station sends message {i} by itself",
            "explanation": "",
            "category": "Lexicon",
        }
        for i in range(20)
    }
    (tmp_path / "TeleQnA.txt").write_text(json.dumps(records))
    prepare("teleqna_pairs", str(tmp_path / "TeleQnA.txt"), str(tmp_path / "data"), heldout=3)
    c = get_config(f"data={tmp_path / 'data' / 'teleqna_pairs'}")
    c.model.path, c.model.preset, c.data.heldout_size = "", "nano", 3
    c.eval.prompts, c.sampler.max_chain = 3, 8  # as few as the test can wait for
    c.judge.max_prompt = 200  # bytes
    c = build(c)
    task = load(c, training=False)[0]
    assert c.prompt.max_answer == DATASETS["teleqna_pairs"].max_answer == 96 and len(task.heldout) == 3
    assert all(len(row.answer_ids) > 16 for row in task.heldout)
    grade = GRADERS[c.eval.grader].grade
    references = [reference_of(c.eval.grader, row.example) for row in task.heldout]
    assert [grade(r, "the base station") for r in references] == [True] * 3
    shutil.copytree(reward_model, tmp_path / "copy")
    out = best_of(c, tmp_path / "copy", 2)
    assert out["questions"] == 3 and [row["n"] for row in out["best_of"]] == [1, 2]


def test_a_grader_of_the_users_own_marks_the_answers(reward_model, tmp_path):
    """Random weights write no answer, which only this grader calls right."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from rl_likelihood.grading.graders import Grader\n"
        "def silent(goal, answer): return answer is None\n"
        'GRADERS = {"silent": Grader(silent, "no answer")}\n'
    )
    c = small_config(reward__file=str(file), eval__grader="silent", eval__prompts=2, model__preset="nano")
    assert [row["gold"] for row in best_of(build(c), reward_model, 2)["best_of"]] == [1.0, 1.0]


def test_the_share_of_replies_with_an_answer(reward_model, monkeypatch):
    answers = itertools.cycle(["1", None, None])
    monkeypatch.setattr(graders, "extract_answer", lambda text, fmt: next(answers))
    c = build(small_config(eval__prompts=3, eval__batch_prompts=3, model__preset="nano"))
    assert best_of(c, reward_model, 4)["answered"] == pytest.approx(1 / 3)
