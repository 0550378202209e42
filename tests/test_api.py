"""The package from Python: what training, generation and scoring give equals what the commands and files say."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import nbclient
import nbformat
import numpy as np
import pandas
import pytest
import tensorstore

from rl_likelihood import api
from rl_likelihood.config import build, flatten
from rl_likelihood.errors import UserError
from rl_likelihood.model.architecture import head_matrix
from rl_likelihood.model.decoder import forward
from rl_likelihood.runtime import bucket, run_files
from rl_likelihood.shapes import Example
from tests.runs import small_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    c = small_config(train__steps=2, report__sample_prompts=2, eval__prompts=0)
    return api.train(c, tmp_path_factory.mktemp("api") / "run")


def test_a_config_of_a_file_with_other_fields(tmp_path):
    c = api.config(str(ROOT / "configs/tiny.py") + ":steps=7", {"optim.lr": 1e-3, "preset": "dr_grpo"})
    assert (c.train.steps, c.optim.lr, c.preset) == (7, 1e-3, "dr_grpo")
    assert flatten(api.config())["model.preset"] == ""
    with pytest.raises(UserError, match=r"no field optim.lrr; did you mean optim\.lr\?"):
        api.config(fields={"optim.lrr": 1.0})
    with pytest.raises(
        UserError, match="with log-probs of the whole distribution they would bias .*; eval.top_p is for"
    ):
        api.config(fields={"sampler.top_p": 0.9})
    with pytest.raises(UserError, match="optim is a group of fields; set one of them, such as optim.name"):
        api.config(fields={"optim": 1e-3})
    with pytest.raises(UserError, match="nowhere.py does not exist"):
        api.config("nowhere.py")
    (tmp_path / "nothing.py").write_text("")
    with pytest.raises(UserError, match="nothing.py has no function get_config()"):
        api.config(str(tmp_path / "nothing.py"))


def test_a_score_is_what_training_saw(run):
    """samples.jsonl has what each answer scored after an empty chain, by the model before the step."""
    before = api.Run(run.workdir, 0, run.task, api.load(run.task.config, training=False)[1])
    row = next(r for r in run_files.read(run.workdir / "samples.jsonl") if r["step"] == 1)
    got = api.score(before, row["prompt"], "", row["reference_answer"])
    np.testing.assert_allclose([x for _, x in got.answer], row["answer_logp_no_chain"], atol=2e-4)
    assert [token for token, _ in got.answer] == row["answer_tokens"]
    scored = np.asarray(row["scored"], bool)
    without = np.asarray(row["answer_logp_no_chain"])[scored].sum()
    assert got.without_chain["log_prob"] == pytest.approx(without, abs=1e-3) == got.rewards["log_prob"]
    assert {got.rewards[name] for name in ("self_certainty", "token_entropy", "trajectory_sum")} == {0}, "no chain"
    after = api.score(before, row["prompt"], "1 and 2", row["reference_answer"])
    assert after.without_chain == pytest.approx(got.without_chain) and after.rewards != got.rewards
    assert "".join(token for token, _ in after.chain).startswith("1 and 2")
    (encoded,), chain = (
        before.encoded([Example("prompt", row["prompt"], "0")]),
        run.task.tokenizer("1 and 2", add_special_tokens=False).input_ids,
    )
    ids = np.concatenate([encoded.prompt_ids, chain]).astype(np.int32)
    hidden = forward(before.params, run.task.model, ids[None], np.array([len(ids)])).prompt[0]
    logp = np.asarray(jax.nn.log_softmax(hidden @ head_matrix(before.params).T))[-len(chain) - 1 : -1]
    of_chain = {
        "self_certainty": -logp.mean() - np.log(logp.shape[1]),
        "token_entropy": (np.exp(logp) * logp).sum(1).mean(),
        "trajectory_sum": logp[np.arange(len(chain)), chain].sum(),
    }
    assert {name: after.rewards[name] for name in of_chain} == pytest.approx(of_chain, abs=1e-3)
    page = after._repr_html_()
    assert page.count("<span") == len(after.chain) + len(after.answer) and "log_prob" in page


def test_generated_texts_are_those_of_the_sampler_and_follow_the_seed(run):
    prompts = ["What is 2 + 2?", "And 3?"]
    one, again, other = (api.generate(run, prompts, samples=2, seed=s, max_chain=6) for s in (0, 0, 1))
    assert [len(group) for group in one] == [3, 3] and one == again
    assert [group[0] for group in one] == [group[0] for group in other], "the greedy ones"
    assert one != other and api.generate(run, []) == []


@pytest.mark.parametrize("heldout", [6, 0])
def test_questions_are_asked_with_the_run_s_worked_examples(heldout, tmp_path):
    few_shot = {"data__tasks": ("one_operation",), "prompt__examples": 2, "prompt__max_prompt": 600}
    task, params = api.load(build(small_config(**few_shot, data__heldout_size=heldout, eval__prompts=0)))
    run = api.Run(tmp_path, 0, task, params)
    row = (task.heldout or task.train)[0]
    question, answer = row.example.prompt, row.example.answer
    (got,) = run.encoded([Example("prompt", question, answer)])
    assert got.prompt_ids.tolist() == row.prompt_ids.tolist()
    assert "7 + 4 = 11. Then 11 - 5 = 6." in task.tokenizer.decode(got.prompt_ids)
    score = api.score(run, question, "", answer)
    assert len(score.answer) == len(row.answer_ids)
    (line,) = [line for line in (ROOT / "docs/python.md").read_text().splitlines() if "api.score(" in line]
    assert set(re.findall(r"`(\w+)`", line)) == set(score.rewards)


def test_a_prompt_that_just_fits_is_not_refused(run, monkeypatch):
    def sample(*_):
        raise InterruptedError("reached")

    monkeypatch.setattr(api.decode, "sample", sample)
    (row,) = run.encoded([Example("prompt", "3 + 4", "0")])
    most = len(row.prompt_ids) + 6 + run.task.config.eval_answer
    for limit, error in ((most, InterruptedError), (most - 1, UserError)):
        model = dataclasses.replace(run.task.model, max_position=limit)
        with pytest.raises(error):
            short = dataclasses.replace(run, task=dataclasses.replace(run.task, model=model))
            api.generate(short, ["3 + 4"], max_chain=6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda run: api.generate(run, "3 + 4"), "prompts is '3 \\+ 4'; give a list"),
        (lambda run: api.generate(run, ["3 + 4"], samples=-1), "samples is -1"),
        (lambda run: api.generate(run, ["3 + 4"], max_chain=-1), "max_chain is -1"),
        (lambda run: api.generate(run, ["3 + 4"], max_chain=5000), "more than the model's 2048"),
        (lambda run: api.generate(run, ["3" * 3000]), "max_prompt"),
        (lambda run: api.score(run, "3 + 4", "is 7 </think>", "7"), "chain of row prompt contains '</think>'"),
        (lambda run: api.score(run, "3 + 4", "7" * 2048, "7"), "more than the model's 2048"),
        (lambda run: api.score(run, "3 + 4", "", ""), "empty answer"),
        (lambda run: api.load_run(run.workdir, 9), "no checkpoint of step 9"),
        (lambda run: api.load_run("gs://bucket"), "as gs://bucket/run"),
        (lambda run: api.load_run(Path("gs://bucket/run")), "workdir is gs:/bucket/run, which is no folder"),
        (lambda run: api.train("configs/tiny.py", run.workdir), "api.config"),
        (lambda run: api.train(api.config(), "gs:/bucket/run"), "workdir is gs:/bucket/run"),
        (lambda run: api.train(api.config(fields={"optim.lr": "high"}), run.workdir), "optim.lr is 'high'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(run, call, words):
    with pytest.raises(UserError, match=words):
        call(run)


def test_a_run_is_loaded_from_its_workdir_alone(run):
    loaded = api.load_run(run.workdir)
    assert loaded.step == 2 and loaded.task.config == run.task.config
    metrics = loaded.metrics
    assert isinstance(metrics, pandas.DataFrame) and list(metrics.index) == [1, 2]
    assert metrics["reward/mean"].tolist() == [r["reward/mean"] for r in run_files.read(run.workdir / "metrics.jsonl")]
    with pytest.raises(UserError, match="holds no config.json"):
        api.load_run(run.workdir / "checkpoints")


def test_a_run_in_a_bucket_is_loaded_from_a_copy(run, tmp_path, monkeypatch):
    store = tensorstore.KvStore.open({"driver": "memory", "path": "run/"}).result()
    monkeypatch.setenv("RL_LIKELIHOOD_CACHE", str(tmp_path))
    monkeypatch.setattr(bucket, "open_store", lambda address: store)
    copy = bucket.download("gs://bucket/run", store, tmp_path / "copy")
    shutil.copytree(run.workdir, copy.folder, dirs_exist_ok=True)
    copy.upload()
    loaded = api.load_run("gs://bucket/run", step=1)
    assert loaded.step == 1 and loaded.task.config == run.task.config
    assert loaded.metrics["reward/mean"].tolist() == run.metrics["reward/mean"].tolist()
    assert list(tmp_path.glob("run-*")) == [loaded.workdir], "while Python runs"
    (copy.folder / "config.json").unlink()
    copy.upload()
    with pytest.raises(UserError, match="holds no config.json"):
        api.load_run("gs://bucket/run")
    assert list(tmp_path.glob("run-*")) == [loaded.workdir], "none is left of a failed load"


def test_importing_sets_what_the_commands_set(tmp_path):
    """XLA reads its flags, and jax looks for its cache, when they start."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    code = "from rl_likelihood import api; print(api.jax.config.jax_compilation_cache_dir, api.os.environ['XLA_FLAGS'])"
    several = "--xla_force_host_platform_device_count=2"
    own = {"RL_LIKELIHOOD_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": several}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | own, cwd=ROOT)
    in_order = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    assert done.stdout.split() == [str(tmp_path / "programs"), several, in_order], done.stderr


def test_the_notebook_runs(monkeypatch):
    monkeypatch.setenv("STEPS", "3")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    shown = [o["data"] for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    assert any("image/png" in data for data in shown), "the curves"
    assert any("hsl(" in data.get("text/html", "") for data in shown), "the coloured answer"


def test_the_notebook_is_committed_without_outputs():
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", 4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
