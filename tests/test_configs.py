"""Config files of data sets: what they say of themselves, what they take, and the papers' settings."""

import importlib
import sys

import pytest

from experiments import base_rates
from rl_likelihood.config import build, from_file
from rl_likelihood.data.prompts import INSTRUCTION
from rl_likelihood.datasets import DATASETS
from rl_likelihood.errors import UserError

CONFIGS = ("math", "prepared", "jsonl")
CHECKABLE = [name for name, dataset in DATASETS.items() if dataset.grader != "none"]
WRITTEN = [name for name, dataset in DATASETS.items() if dataset.grader == "none"]


def config(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def prepared(name, arg=""):
    return config("prepared", ",".join(filter(None, (f"name={name}", arg))))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_its_command_hardware_time_and_what_to_expect(name):
    text = " ".join(importlib.import_module(f"configs.{name}").__doc__.split()).lower()
    assert f"--config=configs/{name}.py" in text
    for word in ("hardware", "time", "not measured", "to expect", "arguments"):
        assert word in text, word
    if name != "jsonl":
        assert "python -m rl_likelihood.datasets.prepare --dataset=" in text


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("reward", ["avg_prob", "jepo", "base_rl", "sft", "0.9*rlpr + 0.1*format"])
def test_model_reward_group_and_data_are_arguments(name, reward):
    c = config(name, f"model=some/folder,reward={reward},group=6,data=other/folder,steps=7,seed=3")
    settings = build(c)
    assert (c.model.path, c.reward.name, c.sampler.group_size) == ("some/folder", reward, 6)
    assert (c.data.train_path, c.train.steps, c.seed, settings.optimizer.total_steps) == ("other/folder", 7, 3, 7)
    with pytest.raises(UserError, match="'modle'"):
        config(name, "modle=x")


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_a_config_by_its_name(name):
    c, one = prepared(name), DATASETS[name]
    build(c)
    assert (c.data.source, c.data.train_path, c.eval.grader) == ("prepared", f"data/{name}", one.grader)
    assert (c.prompt.max_prompt, c.prompt.max_answer, c.sampler.max_chain) == (
        one.max_prompt,
        one.max_answer,
        one.max_chain,
    )
    assert c.data.heldout_split in ("test", "validation") and c.data.heldout_split != c.data.train_split
    for width, multiple in (
        (one.max_prompt, c.prompt.width_multiple),
        (one.max_chain + one.max_answer, c.sampler.width_multiple),
    ):
        assert multiple % 128 == 0 and width <= 3 * multiple < width + 3 * 128
    assert prepared(name, "split=other,data=x").data.heldout_split == "other"


@pytest.mark.parametrize("name", CHECKABLE)
def test_the_papers_settings_for_answers_that_can_be_checked(name):
    """Kwiatkowski et al., sec. 3.1 and app. B: RLOO, 8 prompts of 32 chains, AdamW 1e-5, cosine, clip 1, k3 x 0.001."""
    c = prepared(name)
    settings = build(c)
    assert (c.train.prompts_per_step, c.sampler.group_size, c.sampler.temperature) == (8, 32, 1.0)
    assert (c.optim.lr, c.optim.schedule, c.optim.warmup_steps, c.optim.clip_norm) == (1e-5, "cosine", 20, 1.0)
    assert (c.loss.advantage, c.loss.kl, c.loss.kl_coef, c.loss.answer_term) == ("loo", "k3", 0.001, 1.0)
    assert settings.step.loss.clip_low == settings.step.loss.clip_high == 0
    assert prepared(name, "reward=jepo").sampler.group_size == 4
    base_rl = prepared(name, "reward=base_rl").reward.base_rl
    assert [x / base_rl[0] for x in base_rl] == pytest.approx([1, 0.1, 0]), "100 : 10 : 0"


@pytest.mark.parametrize("name", WRITTEN)
def test_the_papers_settings_for_answers_that_cannot(name):
    """The same paper on long answers: G = 4, no KL."""
    c = prepared(name)
    assert (c.train.prompts_per_step, c.sampler.group_size, c.loss.kl, c.loss.kl_coef) == (8, 4, "none", 0.0)
    assert prepared(name, "group=6,reward=sft").sampler.group_size == 6


def test_the_papers_own_sets():
    """The same paper: 1,024 tokens; MATH on its official test split, watched on the held-out tenth; 1,000 held out."""
    math = config("math")
    assert (math.data.fast_split, math.data.heldout_split, math.eval.grader) == ("validation", "test", "exact_match")
    assert (math.eval.mc_samples, math.eval.mc_prompts) == (32, 500)
    for name in ("math", "deepscaler"):
        assert DATASETS[name].max_chain + DATASETS[name].max_answer == 1024
    for name in ("alpaca", "numina_proof"):
        assert DATASETS[name].heldout == 1000 and prepared(name).data.heldout_split == "validation"
        assert "only" not in prepared(name).prompt.instruction and "only the final answer" in INSTRUCTION


def test_other_names_are_refused():
    with pytest.raises(UserError, match="name is 'mmlu'.*did you mean 'mmlu_pro'"):
        config("prepared", "name=mmlu")


def test_the_table_of_base_rates():
    row = {"questions": 8, "greedy_success": [0.25, 0.1, 0.5], "greedy_truncated": [0.125, 0.0, 0.25], "pass@4": [0.5]}
    row_of = lambda table: dict(zip(*(line.strip("| ").split(" | ") for line in table.splitlines()[::2]), strict=True))
    cells = row_of(base_rates.table({"chain_sum": row}, base_rates.ANSWERS))
    assert cells["greedy right, with chain"] == "25% (10% to 50%)" and cells["pass@4"] == "50%"
    assert cells["opens the answer"] == "88% (75% to 100%)" and cells["n"] == "8" and cells["mixed groups"] == "-"
    row = {"questions": 8, "greedy_chain_helps": [0.25]}
    cells = row_of(base_rates.table({"chain_sum": row}, base_rates.LIKELIHOODS))
    assert cells["chain helps"] == "25%" and cells["answer tokens"] == "-"


def test_a_config_file_takes_arguments_and_imports_its_neighbours_and_is_read_again_when_it_changes(tmp_path):
    (tmp_path / "neighbours").mkdir()
    file = tmp_path / "neighbours" / "mine.py"
    (tmp_path / "neighbours" / "with_lr.py").write_text("LR = 0.5\n")
    text = (
        "from neighbours.with_lr import LR\n"
        "from configs.base import get_config as base\n"
        "def get_config(arg=''):\n    c = base()\n    c.optim.lr, c.seed = LR, int(arg or 3)\n    return c\n"
    )
    before = list(sys.path)
    file.write_text(text)
    c = from_file(f"{file}:4")
    assert (c.optim.lr, c.seed, from_file(str(file)).seed) == (0.5, 4, 3)
    file.write_text(text.replace("or 3", "or 55"))
    assert from_file(str(file)).seed == 55 and sys.path == before


@pytest.mark.parametrize(
    "text, words",
    [
        (None, ["config file", "mine.py does not exist"]),
        ("", ["config file", "mine.py has no function get_config()"]),
        (
            "def get_config(arg):\n    return {'seed': 1}\n",
            ["mine.py: get_config() gives {'seed': 1}", "configs/base.py"],
        ),
        ("def get_config(arg):\n    return unknown\n", ["mine.py:2: NameError", "unknown"]),
        ("import sys\nsys.exit(3)\n", ["mine.py:2: SystemExit"]),
    ],
)
def test_what_is_wrong_with_a_config_file_is_named(tmp_path, text, words):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as refusal:
        from_file(str(file))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
