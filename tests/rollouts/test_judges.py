"""A run whose reward a second model says: a reward model on this machine, a judge behind an address, refusals."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.judged_text import MARK, MEETS, SCORE, JudgeSettings
from rl_likelihood.data.rubrics import Criterion, Rubric, write_rubrics
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.datasets import sources
from rl_likelihood.errors import UserError
from rl_likelihood.grading import graders
from rl_likelihood.learner.judge import ValueHead
from rl_likelihood.model.decoder import forward
from rl_likelihood.reward_model import best_of
from rl_likelihood.rollouts.endpoint import Endpoint
from rl_likelihood.rollouts.host_rewards import HostRewards
from rl_likelihood.rollouts.http_judge import HttpJudge
from rl_likelihood.rollouts.judges import judge_of, judged, refuse_judge
from rl_likelihood.rollouts.local_judge import HEAD, load_decoder, local_judge, save_head
from rl_likelihood.rollouts.rubric_judge import RubricJudge, rubrics_of
from rl_likelihood.rollouts.source import make_source
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.task import load
from rl_likelihood.weights import files
from tests.runs import config_file, small_config
from tests.servers import serving
from tests.small import random_params

ROOT = Path(__file__).parents[2]
FEW = {"train__steps": 2, "eval__prompts": 0, "judge__max_prompt": 60, "judge__max_row": 40}


def few(**changes):
    return small_config(**{**FEW, **changes})


def other_tokenizer():
    """A byte tokenizer that gives every token another id than the policy's."""
    text = byte_tokenizer()
    state = json.loads(text.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    state["model"]["vocab"] = {token: (i + 7) % len(vocab) for token, i in vocab.items()}
    for added in state["added_tokens"]:
        added["id"] = state["model"]["vocab"][added["content"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token=text.pad_token,
        eos_token=text.eos_token,
        chat_template=text.chat_template,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """The folder of a reward model of random weights, with another tokenizer than the policy's."""
    folder, model = tmp_path_factory.mktemp("scorer"), random_model("nano")
    files.save(folder, model, random_params(model, seed=4, scale=0.1))
    save_tokenizer(other_tokenizer(), folder)
    head = ValueHead(np.random.default_rng(0).normal(size=model.width).astype(np.float32), np.float32(0.5))
    save_head(folder, head, 2.5)
    return folder


def judged_by(folder, **changes):
    c = build(few(reward__name="reward_model", judge__model=str(folder), **changes))
    devices = make_devices(c)
    return judge_of(load(c, mesh=devices.learner)[0], devices, folder)


def test_a_reward_model_scores_question_and_answer(scorer):
    """Against the plain sequence in the model's own template, in parts, divided by the spread if asked."""
    questions, answers = [f"{n}+1?" for n in range(9)], [[(str(n),), (f"no {n}",)] for n in range(9)]
    judge = judged_by(scorer)
    out = judge(questions, answers)
    assert out.keep.all() and out.cut == 0 and out.values.shape == (9, 2)
    model, params = load_decoder(str(scorer))
    text = other_tokenizer()
    assert set(text("7+1?")["input_ids"]).isdisjoint(byte_tokenizer()("7+1?")["input_ids"])
    with np.load(scorer / HEAD) as head:
        for i, j in ((0, 0), (8, 1)):
            ids = np.array(text(f"<|user|>{questions[i]}<|assistant|>{answers[i][j][0]}<|end|>")["input_ids"], np.int32)
            state = forward(params, model, ids[None], np.array([len(ids)])).prompt[0, -1]
            assert out.values[i, j] == pytest.approx(float(state @ head["weight"] + head["bias"]), abs=1e-4)
    whitened = judged_by(scorer, judge__normalise="whiten")(questions, answers)
    np.testing.assert_allclose(whitened.values, out.values / 2.5, rtol=1e-5)
    plain = local_judge(str(scorer), SCORE, 60, 40)
    np.testing.assert_allclose(plain(questions, answers).values, out.values, rtol=1e-5)
    assert judge(questions[:1], [[("x" * 90,), ("y",)]]).cut == 1


def test_the_best_of_n_is_judged_by_the_model_and_by_the_grader(scorer, tmp_path):
    shutil.copytree(scorer, tmp_path / "rm")
    out = best_of(build(few(eval__prompts=3, eval__batch_prompts=2)), tmp_path / "rm", 4)
    assert [row["n"] for row in out["best_of"]] == [1, 2, 4]
    assert out["questions"] == 3 and out["answered"] == 0  # random weights write no answer
    proxies = [row["proxy"] for row in out["best_of"]]
    assert proxies == sorted(proxies) and all(row["gold"] == 0 for row in out["best_of"])
    assert run_files.read(tmp_path / "rm" / "rm_eval.jsonl") == [out] and out["cut"] == 0
    with pytest.raises(UserError, match="no reward model"):
        best_of(build(few(eval__prompts=3)), tmp_path, 4)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"eval__grader": "none"}, "eval.grader is 'none'"),
        ({"eval__prompts": 0}, "eval.prompts is 0"),
        ({"judge__max_row": 3000}, "judge.max_row"),
    ],
)
def test_what_best_of_cannot_use_is_refused_before_the_policy_is_read(scorer, changes, words):
    c = build(few(model__preset="", model__path="nowhere", **{"eval__prompts": 3, **changes}))
    with pytest.raises(UserError, match=words):
        best_of(c, scorer, 4)


def answer_in(sample):
    """The answer in a row of samples.jsonl; "" without one, as a judge reads it."""
    text = sample["sampled_answer"]
    return text[1:].partition("</answer")[0] if text.startswith(">") and "</answer" in text else ""


def metrics(workdir):
    return run_files.read(workdir / "metrics.jsonl")


@pytest.fixture(scope="module")
def outside(scorer, tmp_path_factory):
    """The workdir of a run whose judge is computed before the step."""
    workdir = tmp_path_factory.mktemp("outside")
    train.run(build(few(reward__name="reward_model", judge__model=str(scorer), eval__prompts=3)), workdir)
    return workdir


def test_a_run_on_a_reward_model_is_evaluated_without_it(scorer, outside, tmp_path):
    """Greedy answers are graded by what is known to be right; the judge is not asked."""
    during = run_files.read(outside / "eval.jsonl")
    assert [row["step"] for row in during] == [0, 2] and all(0 <= row["greedy_success"] <= 1 for row in during)
    values = {**FEW, "reward__name": "reward_model", "judge__model": str(scorer), "eval__prompts": 3}
    config = config_file(tmp_path, **values)
    command = [sys.executable, "-m", "rl_likelihood.evaluate", f"--config={config}", f"--workdir={outside}", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for name in ("step", "questions", "greedy_success", "perplexity"):
        assert again[name] == during[1][name], name


def test_a_run_on_a_reward_model(scorer, outside):
    rows, samples = metrics(outside), run_files.read(outside / "samples.jsonl")
    assert [row["judge/failures"] for row in rows] == [0, 0] and all("judge/cut" in row for row in rows)
    for row in rows:
        assert math.isfinite(row["reward/reward_model"]) and row["reward/mean"] == row["reward/reward_model"]
        assert "reward/exact_match" in row, "what is known to be right stands beside it"
    judge = judged_by(scorer)
    for s in samples[:3]:
        value = judge([s["prompt"]], [[(answer_in(s),)]]).values[0, 0]
        assert value == pytest.approx(s["reward/reward_model"], abs=1e-3)
    assert len(samples) >= 3


def test_the_judge_reads_the_answer_alone_of_each_sampled_text(scorer):
    c = build(few(reward__name="reward_model", judge__model=str(scorer)))
    devices = make_devices(c)
    task = load(c, mesh=devices.learner)[0]
    judge, rows = judge_of(task, devices, scorer), task.train[:2]
    texts = [["so 12</think><answer>12</answer", "12"], ["</think><answer>it is 3</answer", "</think><answer>4"]]
    out = judged(judge, task, HostRewards({}, np.ones((2, 2), bool), {}), rows, texts).values["reward_model"]
    want = judge([r.example.prompt for r in rows], [[("12",), ("",)], [("it is 3",), ("",)]]).values
    np.testing.assert_allclose(out, want, rtol=1e-5)
    assert abs(out[0, 0] - out[0, 1]) > 1e-3


@pytest.mark.parametrize("where, on_devices", [("outside", True), ("step", False)])
def test_a_judge_on_these_devices_takes_no_time_of_the_host(scorer, tmp_path, where, on_devices):
    c = build(few(reward__name="reward_model", judge__model=str(scorer), judge__where=where))
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner)
    source = make_source(task, devices, tmp_path, 0, None, judge_of(task, devices, scorer))
    try:
        given = source.next(0, params)
    finally:
        source.close()
    assert (source.batches.device_seconds > 0) == on_devices
    assert given.waited == pytest.approx(given.rollout.seconds + source.batches.device_seconds)


def test_a_run_with_the_judge_in_the_step_is_that_with_it_outside(scorer, outside, tmp_path):
    train.run(build(few(reward__name="reward_model", judge__model=str(scorer), judge__where="step")), tmp_path)
    for a, b in zip(metrics(outside), metrics(tmp_path), strict=True):
        for name in ("reward/reward_model", "reward/mean", "judge/cut", "judge/failures", "loss/policy", "grad/norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name


def test_the_initial_model_judges_as_a_named_judge_of_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rl_likelihood.data.byte_tokenizer.WORDS", ("think", "answer", "yes", "no")
    )  # a judge's replies
    model = dataclasses.replace(random_model("nano"), vocab_size=len(byte_tokenizer()))
    files.save(tmp_path / "model", model, random_params(model, seed=4, scale=0.1))
    save_tokenizer(byte_tokenizer(), tmp_path / "model")
    about = {"reward__name": "judge", "judge__where": "step", "loss__kl": "k3", "loss__kl_coef": 0.1}
    about |= {"model__preset": "", "model__path": str(tmp_path / "model")}
    about |= {"judge__max_prompt": 100, "judge__max_row": 120}
    for name, judge in (("initial", "initial"), ("named", str(tmp_path / "model"))):
        train.run(build(few(**about, judge__model=judge)), tmp_path / name)
    initial, named = metrics(tmp_path / "initial"), metrics(tmp_path / "named")
    assert len(initial) == 2 and all(0 < row["reward/judge"] < 1 for row in initial)
    for a, b in zip(initial, named, strict=True):
        for name in ("reward/judge", "reward/mean", "judge/cut", "loss/policy", "loss/kl", "grad/norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name


def test_a_run_asks_an_address_and_a_resumed_one_asks_nothing_again(tmp_path, monkeypatch):
    def behave(handler, number, body):
        if number == 1:
            return handler.reply(400, b"")
        p = 0.5 + 0.4 * math.sin(len(body["messages"][0]["content"]))
        pairs = [{"token": "yes", "logprob": math.log(p)}, {"token": "no", "logprob": math.log(1 - p)}]
        return handler.reply(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": pairs}]}}]})

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(graders, "extract_answer", lambda text, fmt: text)  # random weights write no answer
    with serving(behave) as (url, requests):
        c = build(few(reward__name="judge", judge__model=url, judge__name="m"))
        train.run(c, tmp_path)
        rows = metrics(tmp_path)
        assert rows[0]["judge/failures"] >= 1 and rows[1]["judge/failures"] == 0
        assert 0 < rows[1]["reward/judge"] < 1 and (tmp_path / "judge.sqlite").exists()
        train.run(c, tmp_path / "whole")
        whole, before = metrics(tmp_path / "whole"), len(requests)
        assert [row["judge/failures"] for row in whole] == [0, 0]
        shutil.rmtree(tmp_path / "whole" / "checkpoints" / "2")
        train.run(c, tmp_path / "whole")
        assert len(requests) == before
        for name in ("reward/judge", "loss/policy", "grad/norm"):
            assert metrics(tmp_path / "whole")[1][name] == whole[1][name] != 0, name


def by_keyword(handler, number, body):
    """A judge that says .9 where the answer has what the criterion names between quotes, else .2."""
    text = body["messages"][0]["content"]
    wanted, answer = text.partition("has '")[2].partition("'")[0], text.partition("<<<")[2].partition(">>>")[0]
    p = 0.9 if wanted in answer else 0.2
    pairs = [{"token": "yes", "logprob": math.log(p)}, {"token": "no", "logprob": math.log(1 - p)}]
    return handler.reply(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": pairs}]}}]})


def rubric_file(path, c, *criteria):
    """The same criteria, (text, points), for every training question."""
    rows = [Rubric(e.prompt, e.id, tuple(Criterion(*x) for x in criteria)) for e in sources.load(c.data)[0]]
    write_rubrics(path, rows)
    return str(path)


def test_a_run_on_rubrics_writes_every_verdict_down(tmp_path, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    criteria = ("it has '1'", 5.0), ("it has 'zebra'", 3.0), ("it has '2'", -4.0)
    with serving(by_keyword) as (url, requests):
        about = {"reward__name": "rubric", "judge__model": url, "judge__name": "m"}
        path = rubric_file(tmp_path / "rubrics.jsonl", build(small_config()), *criteria)
        train.run(build(few(**about, rubric__path=path)), tmp_path / "run")
    samples = run_files.read(tmp_path / "run" / "samples.jsonl")
    assert all("judge/failures" in row and math.isfinite(row["reward/rubric"]) for row in metrics(tmp_path / "run"))
    assert samples
    for s in samples:
        met = [v["met"] for v in s["verdicts"]]
        assert [(v["criterion"], v["points"]) for v in s["verdicts"]] == list(criteria) and met[1] == 0.2
        assert met == [0.9 if x in answer_in(s) else 0.2 for x in ("1", "zebra", "2")]
        assert s["reward/rubric"] == pytest.approx(np.dot(met, [5, 3, -4]) / 8, abs=1e-3)


def test_a_resumed_run_judges_itself_without_the_model_that_it_began_with(tmp_path):
    about = {"reward__name": "judge", "judge__model": "initial", "judge__where": "step", "loss__kl": "k3"}
    c = build(few(**about, loss__kl_coef=0.1, model__path=str(tmp_path / "gone"), model__preset=""))
    with pytest.raises(UserError, match="gone"):
        refuse_judge(c, tmp_path)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    refuse_judge(c, tmp_path)


def test_rubrics_are_judged_one_by_one_or_by_one_mark():
    own = {q: Rubric(q, "", tuple(Criterion(f"it has '{w}'", p) for w, p in row)) for q, row in QUESTIONS.items()}
    with serving(by_keyword) as (url, requests):
        judge = HttpJudge(Endpoint(JudgeSettings(url, name="m")), MEETS)
        out, met = RubricJudge(judge, own, "signed")(list(own), [["ab", "b"], ["c", None]])
        np.testing.assert_allclose(out.values, [[0.9 * 2 - 0.9, 0.2 * 2 - 0.9], [0.9, 0.2]], atol=1e-6)
        assert [x.shape for x in met] == [(2, 2), (2, 1)] and out.keep.all()
        asked = [r[3]["messages"][0]["content"] for r in requests]  # in no certain order: several are asked at once
        assert [sum(q in text for text in asked) for q in own] == [4, 2]
        judge.close()

    def marks(handler, number, body):
        if "it has 'c'" in body["messages"][0]["content"]:
            return handler.reply(500, b"")
        assert all(f"it has '{w}' ({p:+g})" in body["messages"][0]["content"] for w, p in QUESTIONS["question one"])
        tops = [{"token": "9", "logprob": math.log(0.5)}, {"token": "3", "logprob": math.log(0.25)}]
        return handler.reply(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": tops}]}}]})

    with serving(marks) as (url, requests):
        judge = HttpJudge(Endpoint(JudgeSettings(url, name="m", attempts=1)), MARK)
        out, met = RubricJudge(judge, own, "implicit")(list(own), [["ab", "b"], ["c", None]])
        np.testing.assert_allclose(out.values, [[(2 * 1 + 3 / 9) / 3] * 2, [0, 0]], atol=1e-6)
        assert out.keep.tolist() == [[True, True], [False, False]], "a row without a verdict has no number"
        assert RubricJudge(judge, own, "implicit").verdicts("question two", met[1]) == [
            [{"mark": None}],
            [{"mark": None}],
        ]
        judge.close()


QUESTIONS = {"question one": (("a", 2.0), ("b", -1.0)), "question two": (("c", 1.0),)}


def test_what_cannot_be_judged_is_refused_before_weights_are_read(tmp_path, scorer):
    def refused(words, **changes):
        with pytest.raises(UserError, match=words):
            refuse_judge(build(few(**changes)), tmp_path)

    with serving(by_keyword) as (url, _):
        pass  # nobody is there any more
    refused("judge.model.*nobody answers", reward__name="judge", judge__model=url, judge__name="m")
    refused("2048 positions", reward__name="reward_model", judge__model=str(scorer), judge__max_row=2000)
    own = {"model__preset": "", "model__path": str(scorer)}
    refused("2048 positions", **own, reward__name="adversarial", judge__max_row=2000)
    (tmp_path / "model.safetensors").touch()  # it would fail if it were read
    refused("config.json", reward__name="judge", judge__model=str(tmp_path))
    about = {"reward__name": "rubric", "judge__model": url, "judge__name": "m"}
    refused("rubric.path is 'none'", **about, rubric__path="none")
    path = rubric_file(tmp_path / "r.jsonl", build(small_config()), ("x", -1.0))
    refused("negative points", **about, rubric__path=path)
    with pytest.raises(UserError, match="two rubrics for 'A'"):
        rubrics_of(build(few(**about, rubric__path=rubric_at(tmp_path / "a.jsonl", "A", "B", "A"))).rubric, ["A", "B"])


def test_a_judge_without_a_template_is_told_the_field_that_gives_one(tmp_path):
    model, text = random_model("nano"), byte_tokenizer()
    text.chat_template = None
    files.save(tmp_path, model, random_params(model))
    save_tokenizer(text, tmp_path)

    def refused(words, **changes):
        with pytest.raises(UserError, match=words) as refusal:
            refuse_judge(build(few(**changes)), tmp_path / "run")
        return str(refusal.value)

    named = {"reward__name": "judge", "judge__model": str(tmp_path)}
    assert "prompt.template" not in refused("no chat template.* set judge.template=plain", **named)
    own = {"reward__name": "adversarial", "model__preset": "", "model__path": str(tmp_path)}
    for template in ("model", "raw"):
        message = refused("no chat template.* set prompt.template=plain", **own, prompt__template=template)
        assert "judge." not in message
    refuse_judge(build(few(**own, adversarial__form="raro", prompt__template="raw")), tmp_path / "run")


def rubric_at(path, *questions):
    write_rubrics(path, [Rubric(q, "", (Criterion("x", 1.0),)) for q in questions])
    return str(path)


def test_scores_without_a_known_spread_are_not_divided_by_it(scorer, tmp_path):
    about = {"reward__name": "reward_model", "judge__normalise": "whiten"}
    refuse_judge(build(few(**about, judge__model=str(scorer))), tmp_path)
    shutil.copytree(scorer, tmp_path / "foreign")
    (tmp_path / "foreign" / HEAD).unlink()
    with pytest.raises(UserError, match="judge.normalise is 'whiten', but .*foreign has no reward_head.npz"):
        refuse_judge(build(few(**about, judge__model=str(tmp_path / "foreign"))), tmp_path)


def test_a_judge_that_does_not_fit_is_refused_before_its_weights_are_read(scorer, tmp_path):
    broken = shutil.copytree(scorer, tmp_path / "broken") / "model.safetensors"
    save_file({k: x for k, x in load_file(broken).items() if k != "model.norm.weight"}, broken)
    with pytest.raises(UserError, match="judge.max_prompt is 5"):
        judged_by(broken.parent, judge__max_prompt=5)
    model = random_model("nano")
    files.save(tmp_path, model, random_params(model))
    save_tokenizer(byte_tokenizer(), tmp_path)
    with pytest.raises(UserError, match="no reward model"):
        refuse_judge(build(few(reward__name="reward_model", judge__model=str(tmp_path))), tmp_path)
