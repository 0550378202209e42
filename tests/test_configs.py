"""Config files of data sets: what they say of themselves, what they take, and the papers' settings."""

import importlib

import pytest

from configs.math import GRADERS
from configs.prepared import SETS
from experiments import base_rates
from rl_likelihood.config import build
from rl_likelihood.data.prompts import INSTRUCTION
from rl_likelihood.datasets import DATASETS
from rl_likelihood.shapes import UserError

CHECKABLE = ("gsm8k", "math", "deepscaler", "countdown", "teleqna", "prepared")
WRITTEN = ("alpaca", "numina_proof")


def config(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", [*CHECKABLE, *WRITTEN, "jsonl"])
def test_a_config_says_its_command_hardware_time_and_what_to_expect(name):
    text = " ".join(importlib.import_module(f"configs.{name}").__doc__.split())
    assert f"python -m rl_likelihood.train --config=configs/{name}.py" in text
    for word in ("Hardware", "ime (estimate, not measured)", "hat to expect", "Arguments: "):
        assert word.lower() in text.lower() or (name == "jsonl" and word.startswith("ime")), word
    if name != "jsonl":
        assert "python -m rl_likelihood.datasets.prepare --dataset=" in text


@pytest.mark.parametrize("name", [*CHECKABLE, *WRITTEN, "jsonl"])
@pytest.mark.parametrize("reward", ["avg_prob", "jepo", "base_rl", "sft", "0.9*rlpr + 0.1*format"])
def test_model_reward_group_and_data_are_arguments(name, reward):
    c = config(name, f"model=some/folder,reward={reward},group=6,data=other/place,steps=7,seed=3")
    settings = build(c)
    assert (c.model.path, c.reward.name, c.sampler.group_size, c.data.train_path) == (
        "some/folder",
        reward,
        6,
        "other/place",
    )
    assert (c.train.steps, c.seed, settings.optimizer.total_steps) == (7, 3, 7)
    with pytest.raises(UserError, match="config argument 'modle' is unknown; this config takes .*model"):
        config(name, "modle=x")


@pytest.mark.parametrize("name", CHECKABLE)
def test_the_papers_settings_for_answers_that_can_be_checked(name):
    """methods.md 1.3 and 1.4: RLOO, 8 prompts of 32 chains, 1,024 tokens, AdamW 1e-5, cosine, clip 1, k3 x 0.001."""
    c = config(name)
    settings = build(c)
    assert (c.train.prompts_per_step, c.sampler.group_size, c.sampler.temperature) == (8, 32, 1.0)
    if name not in ("countdown", "gsm8k", "teleqna", "prepared"):  # not the paper's sets: shorter
        assert c.sampler.max_chain + c.prompt.max_answer == 1024
    assert (c.optim.lr, c.optim.schedule, c.optim.warmup_steps, c.optim.clip_norm) == (1e-5, "cosine", 20, 1.0)
    assert (c.loss.advantage, c.loss.kl, c.loss.kl_coef, c.loss.answer_term) == ("loo", "k3", 0.001, 1.0)
    assert settings.step.loss.clip_low == settings.step.loss.clip_high == 0
    assert config(name, "reward=jepo").sampler.group_size == 4
    base_rl = config(name, "reward=base_rl").reward.base_rl
    assert [x / base_rl[0] for x in base_rl] == pytest.approx([1, 0.1, 0]), "100 : 10 : 0"


@pytest.mark.parametrize("name", WRITTEN)
def test_the_papers_settings_for_answers_that_cannot(name):
    """methods.md 1.4 and 1.5: G = 4, no KL, 1,000 held out, no request to give the answer alone."""
    c = config(name)
    assert (c.train.prompts_per_step, c.sampler.group_size, c.loss.kl, c.loss.kl_coef) == (8, 4, "none", 0.0)
    assert (c.eval.grader, c.eval.prompts, DATASETS[name].heldout) == ("none", 1000, 1000)
    assert "only" not in c.prompt.instruction and "only the final answer" in INSTRUCTION


def test_every_data_set_has_a_config_by_its_name():
    assert set(SETS) == set(DATASETS)
    for name in SETS:
        c = config("prepared", f"name={name}")
        build(c)
        assert c.data.train_path == f"data/{name}" and c.data.source == "prepared"
        assert c.data.heldout_split in ("test", "validation")
    assert config("prepared", "name=math,split=math500,data=x").data.heldout_split == "math500"
    assert set(GRADERS) == set(SETS)


@pytest.mark.parametrize("name", ["gsm8k", "math", "deepscaler", "alpaca", "numina_proof", "countdown", "teleqna"])
def test_one_set_has_one_grader_and_its_test_split_is_not_watched(name):
    own, looked_up = config(name), config("prepared", f"name={name}")
    assert own.eval.grader == looked_up.eval.grader == GRADERS[name]
    assert own.data.fast_split == looked_up.data.fast_split
    assert own.data.heldout_split == looked_up.data.heldout_split
    if name == "math":
        assert (own.data.fast_split, own.data.heldout_split) == ("validation", "test")
    paper = name in ("math", "deepscaler")
    assert (own.eval.mc_samples, own.eval.mc_prompts) == ((32, 500) if paper else (0, 0))
    assert config("teleqna", "free=true").eval.grader == GRADERS["teleqna_free"]


def test_other_names_are_refused():
    with pytest.raises(UserError, match="name is 'mmlu'; did you mean 'mmlu_pro'"):
        config("prepared", "name=mmlu")


def test_the_table_of_base_rates():
    row = {"questions": 8, "greedy_success": [0.25, 0.1, 0.5], "greedy_truncated": [0.125, 0.0, 0.25], "pass@4": [0.5]}
    head, _, line = base_rates.table({"chain_sum": row}).splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert cells["greedy right, with chain"] == "25% (10% to 50%)" and cells["pass@4"] == "50%"
    assert cells["opens the answer"] == "88% (75% to 100%)" and cells["n"] == "8" and cells["chain helps"] == "-"
