"""The task for lm-eval: the prompts are ours, and its expression finds the answers that our grader finds."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments import lm_eval_task
from rl_likelihood.data.prompts import PromptConfig
from rl_likelihood.errors import UserError
from rl_likelihood.grading.graders import extract_answer
from rl_likelihood.weights.assets import cache_path

ROOT = Path(__file__).parents[1]
CFG = PromptConfig()
PIECES = ["</think>", "<answer>", "<answer", "</answer", ">", "5", " ", "\n", "a"]


def found(text: str, cfg: PromptConfig = CFG) -> str | None:
    """What lm-eval makes of a whole response: it stops before the closing tag, then takes the first match."""
    stopped = text.split(cfg.answer_close)[0]
    matches = re.findall(lm_eval_task.answer_pattern(cfg), stopped)
    return matches[0] if matches else None


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_the_expression_finds_what_our_grader_finds(text):
    if CFG.answer_close in text.split("<answer>")[0]:
        return  # a response that closes before it opens ends there
    ours = extract_answer(text.split(CFG.answer_close)[0] + CFG.answer_close, CFG)
    assert found(text) == (None if ours is None else ours.strip())


def test_other_tags():
    cfg = PromptConfig(think_close="[end]", answer_open="(ans", answer_close="(/ans")
    assert found("(ans>1 [end] so\n(ans> 4.5 (/ans> (ans>9(/ans", cfg) == "4.5"
    assert found("[end](ans 4(/ans", cfg) is None


def test_the_task_is_yaml_that_says_what_is_scored():
    task = yaml.safe_load(lm_eval_task.task(Path("/data/é.jsonl"), CFG, 40))
    assert task["dataset_kwargs"] == {"data_files": {"test": "/data/é.jsonl"}}
    assert task["generation_kwargs"] == {"until": ["</answer"], "do_sample": False, "max_gen_toks": 40}
    pattern = task["filter_list"][0]["filter"][0]["regex_pattern"]
    assert re.findall(pattern, "4 + 1 = 5.</think>\n<answer>5") == ["5"]
    assert (task["doc_to_text"], task["target_delimiter"]) == ("{{prompt}}", "")


def test_the_questions_are_the_held_out_ones_as_the_model_reads_them(tmp_path):
    if not cache_path("smollm2-135m-instruct").is_file():
        pytest.skip("SmolLM2 is not in the cache: python -m rl_likelihood.weights.assets smollm2-135m-instruct")
    command = [sys.executable, "-m", "experiments.lm_eval_task", "--config=configs/quickstart.py", f"--out={tmp_path}"]
    done = subprocess.run([*command, "--config.eval.prompts=3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 questions, up to 40 tokens each: ")
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["answer", "id", "prompt"]] * 3
    assert all(row["prompt"].endswith("<|im_start|>assistant\n<think>") for row in rows)
    assert all("Calculate 8 * 3." in row["prompt"] for row in rows), "the worked examples are there"
    done = subprocess.run([*command, "--config.eval.grader=numeric"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--config.eval.grader=exact_match" in done.stderr


def test_a_model_without_a_folder_is_refused():
    with pytest.raises(UserError, match="model.path is empty"):
        lm_eval_task.model_folder("")
