"""Evaluation: against a model whose probabilities are known, for any batch, interrupted and resumed, and in training.

`letters` is a decoder that sees only the id before: its layers add nothing, its embedding is one-hot and its head
holds log-probs, so every number of an evaluation can be written down.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build, changed, flatten
from rl_likelihood.datasets import prepare, sources
from rl_likelihood.datasets.sources import DataConfig, resolve_prompt
from rl_likelihood.evaluate import check_workdir
from rl_likelihood.evaluation import statistics
from rl_likelihood.evaluation.evaluate import Evaluation, _marks, _scores, evaluate, tokens_before_tags, votes
from rl_likelihood.evaluation.records import identity_of, records_path
from rl_likelihood.grading import graders
from rl_likelihood.grading.graders import extract_answer
from rl_likelihood.grading.pool import Pool
from rl_likelihood.model import splash
from rl_likelihood.model.decoder import forward, head_matrix, init, param_specs
from rl_likelihood.runtime import checkpoint, run_files
from rl_likelihood.runtime.devices import sampler_weights
from rl_likelihood.runtime.lock import lock
from rl_likelihood.runtime.workdir import EXAMPLES, digest_of_examples, keep_inputs
from rl_likelihood.sampler import decode
from rl_likelihood.shapes import CHAIN, SAMPLED, UserError
from rl_likelihood.task import EVALUATE, INIT, SAMPLE, WARM_START, load
from tests.programs import isolated
from tests.runs import config_file, small_config

ROOT = Path(__file__).parents[2]
TIMED = ("seconds", "records")

# What follows what. "think" and "answer" are single ids of the byte tokenizer.
BIGRAMS = {
    ">": {"\n": 0.2, "5": 0.5, "7": 0.3},
    "5": {"<": 0.9, "7": 0.1},
    "7": {"<": 0.8, "5": 0.2},
    "<": {"/": 0.55, "answer": 0.45},
    "/": {"think": 0.3, "answer": 0.7},
    "think": {">": 1.0},
    "answer": {">": 1.0},
    "\n": {"<": 1.0},
}


def logp(*ids: str) -> float:
    """Log-prob of a sequence after its first id."""
    return float(sum(np.log(BIGRAMS[a][b]) for a, b in zip(ids, ids[1:], strict=False)))


def evaluated(task, params, rows, fast=False, **where):
    return evaluate(Evaluation(task, params, rows, **where), fast=fast)


def letters(task):
    """(task, params) of the bigram model."""
    model = dataclasses.replace(task.model, tied=False)
    specs = param_specs(model)
    zeros = lambda s: (np.ones if s.init == "ones" else np.zeros)(s.shape, np.float32)
    params = jax.tree.map(zeros, specs, is_leaf=lambda s: hasattr(s, "axes"))
    number = {text: task.tokenizer(text, add_special_tokens=False)["input_ids"] for text in BIGRAMS}
    assert all(len(ids) == 1 for ids in number.values())
    scale = np.sqrt(1 / model.width + model.norm_eps)  # the final norm divides by it
    params["head"][:] = -60.0 * scale
    for i, (text, after) in enumerate(BIGRAMS.items()):
        params["embed"][number[text][0], i] = 1.0
        for follower, p in after.items():
            params["head"][number[follower][0], i] = np.log(p) * scale
    return dataclasses.replace(task, model=model), params


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    (path / "train.jsonl").write_text('{"prompt": "0 + 0", "answer": "0"}\n')
    answers = ["5", "57", "7", "5", "75", "5"]
    rows = [{"prompt": f"{i} + 5", "answer": answer} for i, answer in enumerate(answers, 1)]
    (path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "data__source": "jsonl",
        "data__train_path": str(path / "train.jsonl"),
        "data__train_size": 0,
        "data__heldout_path": str(path / "test.jsonl"),
        "data__heldout_size": 0,
        "eval__prompts": 6,
    }


def task_of(**overrides):
    return load(build(small_config(**overrides)))


def sharp(params):
    """Random weights large enough that the answer depends on the chain."""
    return jax.tree.map(lambda x: np.asarray(x) * 8, params)


def records_of(folder: Path, out: dict) -> list[dict]:
    return statistics.read_records(str(folder / out["records"]))[1]


def numbers(out: dict) -> dict:
    return {k: v for k, v in out.items() if k not in TIMED}


# ------------------------------------------------------------------------------------------- what is measured


def test_every_number_of_a_model_whose_probabilities_are_known(questions, tmp_path):
    task, params = letters(task_of(**questions, eval__samples=8)[0])
    out = evaluated(task, params, task.heldout, folder=tmp_path)
    records = records_of(tmp_path, out)
    assert [r["reference"] for r in records] == ["5", "57", "7", "5", "75", "5"]
    answered = [s for r in records for s in r["samples"] if s["answer"] is not None]
    assert 3 < len(answered) < 40, "some chains open and close an answer, some do not"
    for r in records:
        expected = logp(">", *r["reference"], "<")  # the default scores the answer and the token that ends it
        assert r["answer_tokens"] == len(r["reference"]) + 1
        for value in (r["greedy"]["log_prob"], r["no_chain"]["log_prob"], *(s["log_prob"] for s in r["samples"])):
            assert value == pytest.approx(expected, abs=1e-4)
        assert r["swapped"] == (None if r["index"] == 0 else pytest.approx(expected, abs=1e-4))
        # Always the likeliest id: a chain that closes an answer it never opened, and without a chain the answer 5.
        assert r["greedy"]["text"] == "5</answer" and r["greedy"]["truncated"]
        assert r["greedy"]["answer"] is None and r["greedy"]["right"] is False
        assert r["no_chain"]["answer"] == "5" and r["no_chain"]["right"] == (r["reference"] == "5")
        assert r["no_chain"]["chain_tokens"] == len(task.fmt.close_think_ids) and len(r["no_chain"]["samples"]) == 8
        for s in r["no_chain"]["samples"]:
            assert s["right"] == (s["answer"] == r["reference"])
        for s in r["samples"]:
            assert s["right"] == (s["answer"] == r["reference"])
            assert (s["vote"] is None) == (s["answer"] is None)
            first = next((x for x in r["samples"] if s["answer"] is not None and x["answer"] == s["answer"]), None)
            assert first is None or r["samples"].index(first) == s["vote"]
            assert s["chain_tokens"] >= s["own_tokens"] + 2 * (not s["truncated"])
    assert out["greedy_success"] == 0 and out["greedy_success_no_chain"] == 0.5
    # After no chain "<answer" is open: 5 and 7 as the bigrams say, and what follows until "</answer", in its own draws.
    direct = [s["answer"] for r in records for s in r["no_chain"]["samples"]]
    assert direct.count("5") / len(direct) == pytest.approx(0.5 * 0.9 * 0.55 * 0.7, abs=0.25) and "7" in direct
    share = np.mean([s["right"] for r in records for s in r["no_chain"]["samples"]])
    assert out["sampled_success_no_chain"] == pytest.approx(share, abs=1e-6) and share > 0
    assert out["chain_length_no_chain"] == len(task.fmt.close_think_ids)
    assert out["sampled_success"] > 0
    # It does not look at its chain: nothing is gained by one, nothing lost by another's.
    for name in ("chain_gain", "chain_swap_drop"):
        assert out[name] == pytest.approx(0, abs=1e-4)
    assert out["log_prob_mc8"] == pytest.approx(out["log_prob_mc1"], abs=1e-4)
    per_token = np.mean([logp(">", *r["reference"], "<") / (len(r["reference"]) + 1) for r in records])
    assert out["perplexity"] == pytest.approx(np.exp(-per_token), abs=1e-3)
    assert out["perplexity_no_chain"] == pytest.approx(out["perplexity"], abs=1e-3)
    assert out["examples"][0] == {
        "prompt": "1 + 5",
        "reference": "5",
        "text": records[0]["greedy"]["text"],
        "right": False,
    }


def stirred(task, params):
    """The bigram model, which opens answers, with layers that look at what came before."""
    task, bigrams = letters(task)
    return task, {**bigrams, "layers": jax.tree.map(lambda x: np.asarray(x) * 0.6, params["layers"])}


@pytest.mark.parametrize("opens", [False, True], ids=["chains that are closed for it", "answers of its own beside"])
def test_log_probs_are_those_of_the_plain_sequences(opens, tmp_path):
    """Prompt, chain of this or the question before, tags, answer: as one sequence each, nothing shared.

    Where the chain has an answer of its own, the reference does not see it.
    """
    task, params = task_of(eval__samples=1)
    task, params = stirred(task, params) if opens else (task, sharp(params))
    out = evaluated(task, params, task.heldout, folder=tmp_path)
    records = records_of(tmp_path, out)
    scaffold = list(task.fmt.close_think_ids)
    chains = [r["first_sampled"]["chain"] + r["first_sampled"]["tag"] for r in records]

    def scores(chains):
        """Of each question's answer after its prompt and one of these chains."""
        rows = task.heldout[: len(chains)]
        parts = [np.concatenate([r.prompt_ids, c, r.answer_ids]) for r, c in zip(rows, chains, strict=True)]
        lengths = np.asarray([len(ids) for ids in parts])
        ids = np.stack([np.pad(ids, (0, 64 - len(ids))) for ids in parts]).astype(np.int32)
        hidden = jax.jit(forward, static_argnums=1)(params, task.model, ids, lengths).prompt
        logp = np.asarray(jax.nn.log_softmax(hidden[:, :-1] @ head_matrix(params).T))
        token = np.take_along_axis(logp, ids[:, 1:, None], 2)[..., 0]
        return [
            x[n - 1 - len(r.answer_ids) : n - 1][r.answer_scored].sum()
            for x, n, r in zip(token, lengths, rows, strict=True)
        ]

    answered = [r["samples"][0]["answer"] is not None for r in records]
    assert any(answered) == opens
    for r in records:  # the tags that were forced on a chain count as its own do
        assert r["samples"][0]["chain_tokens"] == len(r["first_sampled"]["chain"]) + len(r["first_sampled"]["tag"])
    assert any(r["first_sampled"]["tag"] for r in records)
    near = lambda values: pytest.approx(np.asarray(values), abs=1e-3)
    assert [r["samples"][0]["log_prob"] for r in records] == near(scores(chains))
    assert [r["no_chain"]["log_prob"] for r in records] == near(scores([scaffold] * 5))
    assert [r["swapped"] for r in records[1:]] == near(scores([scaffold, *chains[:-1]])[1:])
    assert abs(out["chain_swap_drop"]) > 0.1, "these answers depend on their chains, or the test shows nothing"


def test_on_a_tpu_the_reference_does_not_see_the_answer_beside_it(monkeypatch):
    """The kernel needs to be told that there are two branches. It is interpreted here, and gives dense attention's."""
    monkeypatch.setattr(splash, "attention", functools.partial(splash.attention, interpret=True))
    task, _ = task_of()
    task = dataclasses.replace(task, model=dataclasses.replace(task.model, head_dim=64, layers=1))
    task, params = stirred(task, init(jax.random.key(0), task.model))
    sampler = task.sampler(group_size=4, temperature=1.0, max_sampled_answer=10)
    rollout = decode.sample(params, task.collate(task.heldout[:2], np.arange(2)), task.key(EVALUATE), sampler)
    assert (rollout.segment == SAMPLED).any()
    dense, kernel = (
        _scores(Evaluation(other, params, []), params, task.heldout[:2], rollout, [None, None])
        for other in (task, dataclasses.replace(task, model=dataclasses.replace(task.model, attention="splash")))
    )
    np.testing.assert_allclose(kernel, dense, atol=1e-3)


def test_tokens_before_the_tags():
    task, _ = task_of()
    ids = lambda text: np.asarray(task.tokenizer(text, add_special_tokens=False)["input_ids"])
    cases = ("2+2", 3), ("2+2</think>\n<answer", 3), ("2+2<answer", 3), ("</think>9</think><answer", 0), ("", 0)
    for text, own in cases:
        assert tokens_before_tags(ids(text), task.fmt) == own
    assert tokens_before_tags(np.append(ids("22"), task.fmt.eos_ids[0]), task.fmt) == 2


def test_votes_join_equal_numbers_and_equal_texts():
    assert votes(["0.5", None, "1/2", "x", " x ", "", None]) == [0, None, 0, 3, 3, 5, None]


@isolated
def test_a_grader_that_needs_more_than_the_answer_gets_it():
    """HumanEval's reference is scored, its tests grade."""
    task, _ = task_of(eval__grader="code_tests")
    program = {"prompt": "def f():\n", "test": "def check(f):\n    assert f() == 5", "entry_point": "f"}
    row = task.heldout[0]
    row = dataclasses.replace(row, example=dataclasses.replace(row.example, check=json.dumps(program)))
    with Pool() as pool:
        answers = ["    return 5", row.example.answer, None]
        assert _marks(task, pool, [row], [answers]) == [[True, False, False]]


# ------------------------------------------------------------------------------------------- the same numbers


def test_neither_batch_nor_number_of_questions_nor_of_samples_changes_a_chain(tmp_path):
    task, params = task_of(eval__samples=3)
    params = sharp(params)
    made = {}
    for name, changes in {
        "4": {},
        "1": {"batch_prompts": 1},
        "all": {"batch_prompts": 5},
        "few": {"prompts": 2},
        "one": {"samples": 1},
    }.items():
        c = small_config(eval__samples=3)
        c.eval.update(changes)
        other = dataclasses.replace(task, config=build(c))
        made[name] = records_of(tmp_path / name, evaluated(other, params, task.heldout, folder=tmp_path / name))
    assert [len(records) for records in made.values()] == [5, 5, 5, 2, 5]
    for records in made.values():
        for r, s in zip(made["4"], records, strict=False):
            assert (r["id"], r["first_sampled"], r["greedy"]["text"]) == (
                s["id"],
                s["first_sampled"],
                s["greedy"]["text"],
            )
            both = [([x["no_chain"], x["greedy"], *x["samples"]]) for x in (r, s)]
            for a, b in zip(*both, strict=False):
                assert a["log_prob"] == pytest.approx(b["log_prob"], abs=1e-3) and a["answer"] == b["answer"]
            assert r["swapped"] == (s["swapped"] and pytest.approx(s["swapped"], abs=1e-3))


def test_the_keys_of_evaluation_are_never_those_of_training(tmp_path):
    task, params = stirred(*task_of(eval__samples=2))
    uid = np.arange(5)

    def chains(purpose):
        sampler = task.sampler(group_size=3, temperature=(0.0, 1.0, 1.0), max_sampled_answer=10)
        rollout = decode.sample(params, task.collate(task.heldout[:5], uid), task.key(purpose), sampler)
        return [rollout.completion[i, 1][rollout.segment[i, 1] == CHAIN].tolist() for i in uid]

    out = evaluated(task, params, task.heldout, folder=tmp_path)
    chosen = [r["first_sampled"]["chain"] for r in records_of(tmp_path, out)]
    assert chosen == chains(EVALUATE)
    assert not [i for i in uid if chosen[i] == chains(SAMPLE)[i]]

    # Answers after no chain are draws of their own.
    empty = np.asarray(task.fmt.close_think_ids)
    rows = [dataclasses.replace(r, prompt_ids=np.append(r.prompt_ids, empty)) for r in task.heldout[:5]]
    sampler = task.sampler(group_size=3, temperature=(0.0, 1.0, 1.0))

    def answers(key):
        weights, prompts = sampler_weights(params, task.model, None), task.collate(rows, uid, 48)
        ids, _, length = decode.sample_ids(weights, prompts, key, sampler, task.fmt.answer_close, 10)
        texts = [
            task.tokenizer.decode(ids[i, j, : length[i, j]], skip_special_tokens=True) for i in uid for j in (1, 2)
        ]
        return [extract_answer(task.fmt.answer_open + text, task.fmt) for text in texts]

    drawn = [s["answer"] for r in records_of(tmp_path, out) for s in r["no_chain"]["samples"]]
    assert drawn == answers(task.key(EVALUATE, 1)) != answers(task.key(EVALUATE))

    # A row's key is folded from purpose, question and place: none of one purpose is one of another.
    def key_data(key, i, j):
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, i), j))

    key_of = jax.vmap(jax.vmap(key_data, (None, None, 0)), (None, 0, None))
    places = np.arange(512), np.arange(8)
    purposes = (INIT, SAMPLE, EVALUATE, WARM_START)
    keys = [{tuple(k) for k in np.asarray(key_of(task.key(p), *places)).reshape(-1, 2)} for p in purposes]
    assert len(set.union(*keys)) == 4 * 512 * 8


# ------------------------------------------------------------------------------------------- files


def test_the_numbers_are_recomputed_from_the_file_exactly(questions, tmp_path, capsys):
    task, params = letters(task_of(**questions, eval__samples=4)[0])
    out = evaluated(task, params, task.heldout, folder=tmp_path, step=3)
    again = statistics.summary(records_of(tmp_path, out))
    assert again == {k: out[k] for k in again}
    assert set(out) - set(again) == {"samples", "seconds", "records", "examples"}
    assert statistics.main([str(tmp_path / out["records"])]) == 0
    assert json.loads(capsys.readouterr().out) == {"step": 3, **again}


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path):
    task, params = task_of(eval__batch_prompts=2)
    params = sharp(params)

    class Stop(Exception):
        pass

    def run(folder, stop_before=None):
        """The batches that were made, and the numbers."""
        batches = []

        def between():
            if len(batches) == stop_before:
                raise Stop
            batches.append(1)

        said = []
        out = evaluated(task, params, task.heldout, between=between, folder=folder, say=said.append)
        return len(batches), out, said

    whole, expected, _ = run(tmp_path / "unbroken")
    assert whole == 3
    folder = tmp_path / "broken"
    with pytest.raises(Stop):
        run(folder, stop_before=1)
    (path,) = (folder / "evaluations").iterdir()
    kept = path.read_bytes()
    assert kept.count(b"\n") == 1 + 2
    path.write_bytes(kept + b'{"step": 0, "index": 2, "half a')  # as a kill leaves it
    batches, out, said = run(folder)
    assert batches == 2 and "2 of 5 questions have been evaluated already" in said[0]
    assert path.read_bytes().startswith(kept)
    assert records_of(folder, out) == records_of(tmp_path / "unbroken", expected)
    assert numbers(out) == numbers(expected)
    batches, out, _ = run(folder)
    assert batches == 0 and numbers(out) == numbers(expected)


def test_records_belong_to_one_step_one_set_of_weights_and_one_way_to_ask(tmp_path):
    task, params = task_of(eval__prompts=2)

    def file_of(params=params, step=0, rows=task.heldout, **changes):
        """The file, and whether it was new."""
        there = set(tmp_path.rglob("*.jsonl"))
        c = small_config(eval__prompts=2)
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        other = dataclasses.replace(task, config=build(c))
        path = tmp_path / evaluated(other, params, rows, folder=tmp_path, step=step)["records"]
        return path, path not in there

    first, new = file_of()
    assert new and first.name.startswith("step_0-")
    assert file_of(eval__batch_prompts=1) == (first, False), "how many at once decides nothing"
    longer, new = file_of(eval__prompts=4)
    assert (longer, new) == (first, False) and len(statistics.read_records(str(first))[1]) == 4
    assert file_of() == (first, False), "the first two of them are there"
    moved = jax.tree.map(np.array, params)
    moved["layers"]["q"][0, 0, 0, 0] += 1e-6
    changes = [
        {"params": moved},
        {"step": 1},
        {"rows": task.heldout[1:]},
        {"eval__samples": 1},
        {"eval__grader": "numeric"},
        {"seed": 1},
        {"sampler__max_chain": 11},
    ]
    files = [file_of(**change) for change in changes]
    assert all(new for _, new in files) and len({path for path, _ in files} | {first}) == 8


def test_marks_of_older_rules_are_not_kept(tmp_path, monkeypatch):
    task, params = task_of()
    first = identity_of(task, params, task.heldout, 1)
    assert first == identity_of(task, params, task.heldout, 1)
    monkeypatch.setattr(graders, "VERSION", graders.VERSION + 1)
    again = identity_of(task, params, task.heldout, 1)
    assert records_path(tmp_path, 0, again) != records_path(tmp_path, 0, first)


def test_many_chains_of_the_first_questions_beside_one_of_all(questions, tmp_path):
    task, params = letters(task_of(**questions, eval__samples=1)[0])
    settings = build(small_config(**questions, eval__samples=1, eval__mc_samples=4, eval__mc_prompts=3))
    few = evaluated(task, params, task.heldout, folder=tmp_path)
    both = evaluated(dataclasses.replace(task, config=settings), params, task.heldout, folder=tmp_path)
    assert {k: v for k, v in numbers(both).items() if k in few and k not in ("ci95", "questions_of")} == {
        k: v for k, v in numbers(few).items() if k not in ("ci95", "questions_of")
    }
    more = statistics.summary(statistics.read_records(str(tmp_path / both["records_mc"]))[1])
    assert (both["questions"], more["questions"], both["mc_samples"], both["samples"]) == (6, 3, 4, 1)
    for name in ("log_prob_mc4", "log_prob_mc4_per_token", "pass@4", "majority@2"):
        assert name not in few and both[name] == more[name] and both["ci95"][name] == more["ci95"][name]
        assert both["questions_of"][name] == 3
    assert few["ci95"].items() <= both["ci95"].items() and few["questions_of"].items() <= both["questions_of"].items()
    first, second = (records_of(tmp_path, {"records": both[k]}) for k in ("records", "records_mc"))
    assert [r["first_sampled"] for r in first[:3]] == [r["first_sampled"] for r in second], (
        "the same chains, and more of them"
    )
    fast = evaluated(dataclasses.replace(task, config=settings), params, task.heldout, fast=True)
    assert "log_prob_mc4" not in fast


def test_one_evaluation_at_a_time_writes_a_file_and_says_how_far_it_is(tmp_path, monkeypatch):
    task, params = task_of(eval__prompts=2)
    monkeypatch.setattr("rl_likelihood.runtime.progress.EVERY", 0.01)
    said = []
    out = evaluated(task, params, task.heldout, between=lambda: time.sleep(0.1), folder=tmp_path, say=said.append)
    assert said[0] == "evaluating 2 questions, 1 greedy and 2 sampled chains each"
    assert said[1].startswith("evaluated 0 of 2 questions, ")
    path = tmp_path / out["records"]
    assert [p.name for p in path.parent.iterdir()] == [path.name], "the lock is gone"
    with lock(path.parent, path.with_suffix(".lock").name):
        with pytest.raises(UserError, match=f"{path.stem}.lock .*process {os.getpid()} "):
            evaluated(task, params, task.heldout, folder=tmp_path)
        moved = jax.tree.map(lambda x: np.asarray(x) * 2, params)
        assert evaluated(task, moved, task.heldout, folder=tmp_path)["records"] != out["records"], "another file"


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


def test_damaged_records_and_folders_are_refused(tmp_path):
    task, params = task_of(eval__prompts=2)
    path = tmp_path / evaluated(task, params, task.heldout, folder=tmp_path)["records"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    with pytest.raises(UserError, match="delete it and evaluate again"):
        evaluated(task, params, task.heldout, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        evaluated(task, params, task.heldout, folder=tmp_path / "file")


# ------------------------------------------------------------------------------------------- less, and in training


def test_greedy_answers_alone_and_scores_alone(questions):
    task, params = letters(task_of(**questions)[0])

    def keys_of(**changes):
        other = dataclasses.replace(task, config=build(small_config(**questions, **changes)))
        return evaluated(other, params, task.heldout)

    full, greedy, scores = keys_of(), keys_of(eval__samples=0), keys_of(eval__grader="none")
    assert {k for k in full if k.startswith("greedy_") and "no_chain" not in k} == {
        k for k in greedy if k.startswith("greedy_")
    }
    assert "perplexity" not in greedy and "sampled_success" not in greedy and greedy["samples"] == 0
    assert scores["perplexity"] == pytest.approx(full["perplexity"], abs=1e-3)
    assert not [k for k in scores if "success" in k or "@" in k] and scores["examples"] == []
    assert "records" not in full


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


def test_the_command_goes_on_with_records_that_are_there(tmp_path):
    c = small_config()
    task, params = load(build(c))
    out = evaluated(task, params, task.heldout, folder=tmp_path / "out")
    arguments = f"--config={config_file(tmp_path)}", f"--out={tmp_path / 'out'}"
    process = subprocess.run(
        [sys.executable, "-m", "rl_likelihood.evaluate", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 0, process.stderr
    assert "5 of 5 questions have been evaluated already" in process.stderr
    row = json.loads(process.stdout)
    assert numbers(row) == {"step": 0, "data": "faulty_losses", **numbers(out)} and row["records"] == out["records"]
    assert run_files.read(tmp_path / "out" / "eval.jsonl") == [row]


def test_greedy_answers_are_sampled_ahead_and_are_the_same(tmp_path):
    """Several batches in the sampler at one time, on one device: rows that stop make room."""
    program = """
import json, sys
import jax, numpy as np
from rl_likelihood.config import build
from rl_likelihood.evaluation import evaluate
from rl_likelihood.task import load
from tests.runs import small_config

assert jax.device_count() == 1
c = small_config(eval__samples=0, eval__batch_prompts=1, mesh__fsdp=1, mesh__tensor=1, data__heldout_size=9)
c.eval.prompts = 9
task, params = load(build(c), training=False)
params = jax.tree.map(lambda x: np.asarray(x) * 8, params)
texts = []
for ahead in (1, 2, 4, 100):
    evaluate.AHEAD, calls, batches = ahead, [], []
    folder = f"{sys.argv[1]}/{ahead}"
    out = evaluate.evaluate(
        evaluate.Evaluation(task, params, task.heldout, folder=folder, between=lambda: batches.append(1))
    )
    records = evaluate.statistics.read_records(f"{folder}/{out['records']}")[1]
    texts.append([(r["index"], r["id"], r["greedy"]) for r in records])
    assert len(batches) == 9 and len(records) == 9
assert texts[0] == texts[1] == texts[2] == texts[3]
assert len({json.dumps(t[2]["text"]) for t in texts[0]}) > 1, "answers differ, or the test shows nothing"
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
