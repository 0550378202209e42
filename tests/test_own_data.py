"""A stranger's own model and rows, from the commands of the README to an evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.base import get_config
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import load_tokenizer, save_tokenizer
from rl_likelihood.errors import UserError
from rl_likelihood.export import export
from rl_likelihood.model import architecture
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.workdir import tokenizer_path
from rl_likelihood.task import load
from rl_likelihood.training.warm_start import with_worked_examples
from rl_likelihood.weights import files

ROOT = Path(__file__).parents[1]
# What a model of two layers over bytes needs: nothing of it concerns the data.
SHORT = {
    "prompt.instruction": "Add.",
    "prompt.max_prompt": 64,
    "sampler.group_size": 2,
    "sampler.max_chain": 4,
    "train.steps": 1,
    "train.prompts_per_step": 2,
    "eval.batch_prompts": 4,
    "eval.samples": 0,
    "train.eval_first": False,
    "model.layers": "scan",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Hugging Face folder of random weights whose tokenizer has no chat template of its own."""
    folder = tmp_path_factory.mktemp("model")
    cfg = random_model("nano")
    params = jax.tree.map(np.asarray, architecture.init(jax.random.key(0), cfg))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    files.save(folder, cfg, params, "float32", {"eos_token_id": tokenizer.eos_token_id})
    save_tokenizer(tokenizer, folder)
    return folder


def rows(path, n, start=0, **more):
    lines = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), **more} for i in range(start, start + n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def train(workdir, config="configs/base.py", **fields):
    """The README's command."""
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    command = [sys.executable, "-m", "rl_likelihood.train", f"--config={config}", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in {**SHORT, **fields}.items()]
    one_device = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=one_device)


def test_the_readmes_command_takes_40_test_rows(tmp_path, model):
    rows(tmp_path / "train.jsonl", 60)
    rows(tmp_path / "test.jsonl", 40, start=60)
    config = f"configs/jsonl.py:model={model},data={tmp_path}/train.jsonl,heldout={tmp_path}/test.jsonl"
    refused = train(tmp_path / "refused", config)
    assert refused.returncode == 2 and "--config.prompt.template=plain" in refused.stderr
    done = train(tmp_path / "run", config, prompt__template="plain")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "60 training and 40 held-out questions" in done.stdout + done.stderr
    (evaluated,) = map(json.loads, (tmp_path / "run" / "eval.jsonl").read_text().splitlines())
    assert evaluated["questions"] == 40
    # What is exported asks as the run did: its tokenizer has the plain template.
    cfg, params, _, path = checkpoint.restore_params(tmp_path / "run")
    export(cfg, params, tokenizer_path(tmp_path / "run", path), tmp_path / "exported")
    exported = load_tokenizer(tmp_path / "exported")
    turn = [{"role": "user", "content": "What is 1 + 1?"}]
    asked = exported.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert asked == "Question: What is 1 + 1?\nAnswer: "


def loaded(model, path, **fields):
    """The task of a config on the rows of `path`, held-out ones by default."""
    c = get_config()
    named = {"model__path": str(model), "data__source": "files", "data__train_path": str(path)}
    for name, value in {**named, "prompt__template": "plain", "prompt__instruction": "Add.", **fields}.items():
        section, _, field = name.partition("__")
        c[section][field] = value
    return load(build(c))[0]


def test_worked_examples_are_training_rows_and_not_trained_on(tmp_path, model):
    rows(tmp_path / "train.jsonl", 60, chain="One more.")
    task = loaded(model, tmp_path / "train.jsonl", prompt__examples=2, prompt__max_prompt=256)
    assert (len(task.train), len(task.heldout)) == (53, 5), "two are shown, and a tenth of the others is held out"
    text = task.tokenizer.decode(task.train[0].prompt_ids)
    assert text.startswith("Add.\n\nQuestion: What is 0 + 1?\nAnswer: <think>One more.</think>\n<answer>1</answer>")


def test_a_warm_start_without_worked_examples_names_its_own_field(tmp_path, model):
    rows(tmp_path / "train.jsonl", 60)
    task = loaded(model, tmp_path / "train.jsonl", warm_start__steps=1)
    with pytest.raises(UserError, match="warm_start.examples is 2") as e:
        with_worked_examples(task, task.train, task.config.warm_start.examples)
    for words in ("--config.prompt.examples_path=", "--config.warm_start.examples=0"):
        assert words in str(e.value)


def test_log_prob_any_pays_for_every_answer_of_a_row(tmp_path, model):
    rows(tmp_path / "train.jsonl", 20, alternatives=["many", "many", "a lot"])
    task = loaded(model, tmp_path / "train.jsonl", reward__name="log_prob_any")
    text = [task.tokenizer.decode(ids) for ids, _ in task.train[0].alternatives]
    assert text == [">many</answer>", ">a lot</answer>"]
    done = train(
        tmp_path / "run",
        model__path=model,
        prompt__template="plain",
        data__source="files",
        data__train_path=tmp_path / "train.jsonl",
        data__heldout_size=4,
        eval__prompts=4,
        reward__name="log_prob_any",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (step,) = [line for line in lines if "reward/log_prob_any" in line]
    assert step["reward/log_prob_any"] > step["reward/log_prob"]
    rows(tmp_path / "none.jsonl", 20)
    with pytest.raises(UserError, match="no training row has a field 'alternatives'"):
        loaded(model, tmp_path / "none.jsonl", reward__name="log_prob_any")


def test_option_prob_reads_the_wrong_answers_of_a_row(tmp_path, model):
    rows(tmp_path / "train.jsonl", 20, rejected=["few", "none"], alternatives=["many"])
    task = loaded(model, tmp_path / "train.jsonl", reward__name="option_prob")
    assert [task.tokenizer.decode(ids) for ids, _ in task.train[0].alternatives] == [">few</answer>", ">none</answer>"]
    with pytest.raises(UserError, match="not both"):
        loaded(model, tmp_path / "train.jsonl", reward__name="option_prob + log_prob_any")
    rows(tmp_path / "texts.jsonl", 20, rejected="few")
    with pytest.raises(UserError, match="no training row has a field 'rejected'"):
        loaded(model, tmp_path / "texts.jsonl", reward__name="option_prob")
