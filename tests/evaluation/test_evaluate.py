"""Evaluation: against a model whose probabilities are known, for any batch and number of samples."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.evaluation import statistics
from rl_likelihood.evaluation.evaluate import Evaluation, _scores, even_size, tokens_before_tags, votes
from rl_likelihood.grading.graders import extract_answer
from rl_likelihood.grading.pool import Pool
from rl_likelihood.learner.batching import without_sampled
from rl_likelihood.model import splash
from rl_likelihood.model.architecture import head_matrix, init
from rl_likelihood.model.decoder import forward
from rl_likelihood.runtime.devices import sampler_weights
from rl_likelihood.sampler import decode, engine
from rl_likelihood.shapes import CHAIN, SAMPLED
from rl_likelihood.task import EVALUATE, INIT, SAMPLE, WARM_START
from tests.evaluation.bigrams import evaluated, letters, logp, numbers, records_of, sharp, task_of
from tests.programs import isolated
from tests.runs import small_config

ROOT = Path(__file__).parents[2]


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
        assert r["swapped"] == pytest.approx(expected, abs=1e-4)
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
    for name in ("perplexity_no_chain", "perplexity_swapped"):
        assert out[name] == pytest.approx(out["perplexity"], abs=1e-3), "over the same questions"
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
    """Prompt, chain of this or the question before (of the first: the second), tags, answer: as one sequence each,
    nothing shared.

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
    assert [r["swapped"] for r in records] == near(scores([chains[1], *chains[:-1]]))
    drops = [abs(r["samples"][0]["log_prob"] - r["swapped"]) for r in records]
    assert max(drops) > 0.1, "these answers depend on their chains, or the test shows nothing"


def test_on_a_tpu_the_scores_are_the_same(monkeypatch):
    """The kernel is interpreted here."""
    monkeypatch.setattr(splash, "attention", functools.partial(splash.attention, interpret=True))
    task, _ = task_of()
    task = dataclasses.replace(task, model=dataclasses.replace(task.model, head_dim=64, layers=1))
    task, params = stirred(task, init(jax.random.key(0), task.model))
    sampler = task.sampler(group_size=4, temperature=1.0, max_sampled_answer=10)
    rollout = decode.sample(params, task.collate(task.heldout[:2], np.arange(2)), task.key(EVALUATE), sampler)
    assert (rollout.segment == SAMPLED).any()
    rollout = without_sampled(rollout, sampler.max_sampled_answer, task.fmt.pad_id)
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
    task, _ = task_of()
    program = {"prompt": "def f():\n", "test": "def check(f):\n    assert f() == 5", "entry_point": "f"}
    example = dataclasses.replace(task.heldout[0].example, check=json.dumps(program))
    with Pool() as pool:
        answers = ["    return 5", example.answer, None]
        assert pool.grade_groups("code_tests", [example], [answers]) == [[True, False, False]]


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
    for name, records in made.items():
        for r, s in zip(made["4"], records, strict=False):
            assert (r["id"], r["first_sampled"], r["greedy"]["text"]) == (
                s["id"],
                s["first_sampled"],
                s["greedy"]["text"],
            )
            both = [([x["no_chain"], x["greedy"], *x["samples"]]) for x in (r, s)]
            for a, b in zip(*both, strict=False):
                assert a["log_prob"] == pytest.approx(b["log_prob"], abs=1e-3) and a["answer"] == b["answer"]
            alone = name == "1" and r["index"] == 0  # in the first batch
            assert s["swapped"] == (None if alone else pytest.approx(r["swapped"], abs=1e-3))


def test_batches_are_even_so_that_the_last_is_not_padding():
    sizes = {(15, 10): 8, (16, 16): 16, (17, 16): 9, (3, 10): 3, (5, 1): 1, (96, 48): 48, (100, 48): 34}
    assert {(n, most): even_size(n, most) for n, most in sizes} == sizes


def test_one_program_reads_the_prompts_with_and_without_a_chain_and_one_samples():
    task, params = task_of(eval__samples=1, eval__batch_prompts=3, eval__prompts=3)
    programs = engine.prefill_jit, engine.decode_until
    for program in programs:
        program.clear_cache()
    evaluated(task, params, task.heldout)
    assert [program._cache_size() for program in programs] == [1, 1]


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


def test_sampled_chains_follow_the_settings_of_evaluation(tmp_path):
    """Cut to the likeliest id, they are the greedy ones, after a chain and without."""
    task, params = stirred(*task_of(eval__samples=2))
    for top_p, greedy in ((1.0, False), (1e-6, True)):
        cut = dataclasses.replace(task, config=build(small_config(eval__samples=2, eval__top_p=top_p)))
        records = records_of(tmp_path / str(top_p), evaluated(cut, params, task.heldout, folder=tmp_path / str(top_p)))
        same = [
            r["samples"][0]["text"] == r["greedy"]["text"]
            and {s["answer"] for s in r["samples"]} == {r["greedy"]["answer"]}
            and {s["answer"] for s in r["no_chain"]["samples"]} == {r["no_chain"]["answer"]}
            for r in records
        ]
        assert len(records) == 5 and all(same) == greedy


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


# ------------------------------------------------------------------------------------------- greedy answers


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
