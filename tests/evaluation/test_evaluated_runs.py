"""Evaluations of a run: between its steps, and after it, of other questions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build, changed, flatten
from rl_likelihood.datasets import prepare, sources
from rl_likelihood.datasets.sources import DataConfig, resolve_prompt
from rl_likelihood.errors import UserError
from rl_likelihood.evaluate import check_workdir, initial_model
from rl_likelihood.evaluation import statistics
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.runtime.workdir import EXAMPLES, checkpoint_meta, digest_of_examples, keep_inputs
from rl_likelihood.shapes import TrainState
from rl_likelihood.task import load_model
from tests.runs import run, small_config


def test_a_run_evaluates_a_fixed_part_fast_between_the_full_ones(tmp_path):
    c = small_config(train__steps=2, train__eval_every=1, eval__fast_prompts=2, eval__fast_samples=1)
    train.run(build(c), tmp_path)
    rows = run_files.read(tmp_path / "eval.jsonl")
    assert [(r["step"], r["questions"], r["samples"]) for r in rows] == [(0, 5, 2), (1, 2, 1), (2, 5, 2)]
    for row in rows:
        again = statistics.summary(statistics.read_records(str(tmp_path / row["records"]))[1])
        assert again == {k: row[k] for k in again}
    first, fast, _ = (statistics.read_records(str(tmp_path / r["records"]))[1] for r in rows)
    assert [r["id"] for r in fast] == [r["id"] for r in first[:2]]


def test_training_watches_a_split_of_its_own_and_leaves_the_test_set_alone(tmp_path):
    for split, n in (("train", 20), ("test", 3)):
        rows = [{"problem": f"{split} {i}?", "solution": f"So $\\boxed{{{i}}}$."} for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = ",".join(str(tmp_path / f"{split}.jsonl") for split in ("train", "test"))
    prepare.prepare("math", source, str(tmp_path / "data"), heldout=4)
    wanted = {
        "data__source": "prepared",
        "data__train_path": str(tmp_path / "data"),
        "data__heldout_split": "test",
        "data__fast_split": "validation",
        "data__train_size": 0,
        "data__heldout_size": 0,
    }
    c = small_config(**wanted, train__steps=2, train__eval_every=1, eval__prompts=3, eval__samples=0)
    train.run(build(c), tmp_path / "run")
    rows = run_files.read(tmp_path / "run" / "eval.jsonl")
    asked = [[x["prompt"] for x in statistics.read_records(str(tmp_path / "run" / r["records"]))[1]] for r in rows]
    assert [row["step"] for row in rows] == [0, 1, 2] and [len(prompts) for prompts in asked] == [3, 3, 3]
    assert [{p.split()[0] for p in prompts} for prompts in asked] == [{"test"}, {"train"}, {"test"}]
    data = DataConfig(
        "prepared", train_path=str(tmp_path / "data"), fast_split="validation", train_size=0, heldout_size=0
    )
    trained = {e.prompt for e in sources.load(data)[0]}
    assert not trained & set(asked[1]) and len(trained) == 16
    for changes, words in (
        ({"fast_split": "train"}, "which is trained on"),
        ({"source": "jsonl"}, "has no splits"),
        ({"fast_split": "dev"}, "has no split 'dev'; it has"),
    ):
        with pytest.raises(UserError, match=words):
            sources.load_fast(dataclasses.replace(data, **changes))


def test_a_run_is_evaluated_on_other_questions_but_not_in_another_format(tmp_path, monkeypatch):
    old = build(small_config())
    (tmp_path / "config.json").write_text(json.dumps(flatten(old)))
    monkeypatch.setattr(checkpoint, "latest_step", lambda _: 3)
    other = {"prompt.max_prompt": 99, "prompt.max_answer": 9, "prompt.instruction": "Subtract.", "data.heldout_size": 7}
    check_workdir(tmp_path, changed(old, other))
    for name, value in {"prompt.answer_open": "<a", "prompt.score_delims": "both", "prompt.examples": 1}.items():
        with pytest.raises(UserError, match=f"was trained with {name} = "):
            check_workdir(tmp_path, changed(old, {name: value}))
    (tmp_path / "config.json").write_text(json.dumps(flatten(old))[:50])
    with pytest.raises(UserError, match="config.json: not JSON"):
        check_workdir(tmp_path, old)


def test_a_run_is_evaluated_where_its_worked_examples_are_now(tmp_path, monkeypatch):
    rows = [json.dumps({"prompt": f"{i} + 1", "answer": str(i + 1), "chain": f"{i + 1}."}) + "\n" for i in range(3)]
    (tmp_path / "moved.jsonl").write_text("".join(rows))
    (tmp_path / "other.jsonl").write_text("".join(rows[1:]))
    asked = {"prompt__examples": 2, "prompt__max_prompt": 200}
    of = lambda name: build(small_config(**asked, prompt__examples_path=str(tmp_path / name)))
    resolved = resolve_prompt(of("moved.jsonl").prompt, of("moved.jsonl").data, 2)
    keep_inputs(tmp_path, "", {EXAMPLES: digest_of_examples(dataclasses.replace(of("moved.jsonl"), prompt=resolved))})
    (tmp_path / "config.json").write_text(json.dumps(flatten(of("gone.jsonl"))))
    monkeypatch.setattr(checkpoint, "latest_step", lambda _: 3)
    check_workdir(tmp_path, of("moved.jsonl"))
    for config in (of("other.jsonl"), build(small_config(**asked))):
        with pytest.raises(UserError, match="was trained with prompt.examples_path = "):
            check_workdir(tmp_path, config)


def test_the_initial_model_is_the_one_that_the_run_began_with(tmp_path):
    short = {"train__steps": 1, "eval__prompts": 0}
    first = build(small_config(**short))
    mesh = make_devices(first).learner
    untouched = load_model(first, mesh)[1]
    workdir = run(tmp_path / "plain", **short)
    jax.tree.map(
        np.testing.assert_array_equal, initial_model(first, workdir, checkpoint.describe(workdir)[3], mesh), untouched
    )
    with pytest.raises(
        UserError, match="model.preset = nano with seed = 1 is not; .*model.preset = nano with seed = 0"
    ):
        initial_model(build(small_config(**short, seed=1)), workdir, checkpoint.describe(workdir)[3], mesh)
    stored = run(tmp_path / "with a reference", **short, loss__kl="k3", loss__kl_coef=0.1)
    gone = build(small_config(**short, model__preset="", model__path=str(tmp_path / "gone")))
    jax.tree.map(
        np.testing.assert_array_equal, initial_model(gone, stored, checkpoint.describe(stored)[3], mesh), untouched
    )


def test_the_initial_model_of_adapters_on_an_int8_base_is_the_rounded_one(tmp_path):
    c = build(small_config(lora__rank=2, lora__base_dtype="int8"))
    mesh = make_devices(c).learner
    model, params, path = load_model(c, mesh)
    stored = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    meta = checkpoint_meta(tmp_path, c, model, path)
    state = TrainState(step=jnp.int32(0), params=stored, opt_state={})
    checkpoint.close(checkpoint.save_initial(tmp_path / checkpoint.INITIAL, state, meta | {"lora": None}))
    up = np.asarray(initial_model(c, tmp_path, meta, mesh)["layers"]["up"])
    whole = np.asarray(stored["layers"]["up"].astype("float32"))
    steps = up / (np.abs(whole).max(1, keepdims=True) / 127)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert np.abs(up - whole).max() > 0
