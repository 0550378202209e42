"""Chains of a teacher behind an address on this machine, or of a model here."""

import dataclasses
import json
import math

import numpy as np
import pytest

from rl_likelihood import reer
from rl_likelihood.config import build
from rl_likelihood.data.judged_text import JudgeSettings
from rl_likelihood.data.prompts import completion_ids
from rl_likelihood.distill import DISTILL, distill, finder
from rl_likelihood.errors import UserError
from rl_likelihood.grading.graders import Grader
from rl_likelihood.grading.pool import Pool
from rl_likelihood.rollouts.endpoint import Endpoint
from rl_likelihood.search.folder import DROPPED
from rl_likelihood.search.proposer import Ask, Drawing, Length, asks_of
from rl_likelihood.search.rounds import Finder, Journal, score
from rl_likelihood.search.teacher import chosen, http_proposer, parsed, text_of
from rl_likelihood.task import load
from tests.evaluation.bigrams import saved, sharp
from tests.runs import small_config
from tests.search.test_rounds import stubbed
from tests.servers import serving
from tests.small import kept_progress, log_softmax, reference_logits

# What follows what in the replies of a local teacher.
TEACHER = {
    "<|assistant|>": {"b": 1.0},
    "b": {"b": 0.5, "c": 0.3, "<": 0.2},
    "c": {"b": 1.0},
    "<": {"/": 0.5, "answer": 0.5},
    "/": {"think": 0.5, "answer": 0.5},
    "think": {">": 1.0},
    "answer": {">": 1.0},
    ">": {"<": 0.4, "5": 0.6},
    "5": {"<": 1.0},
}


def said(text, **more):
    return {"choices": [{"message": {"role": "assistant", "content": text, **more}}]}


def config(**changes):
    return build(small_config(**{"data__train_size": 6, "distill__replies": 2, **changes}))


def taught(folder, url, **changes) -> Finder:
    task, params = load(config(**changes))
    endpoint = Endpoint(JudgeSettings(url, name="teacher", attempts=1), str(folder / "cache.sqlite"))
    return Finder(task, params, asks_of(task), http_proposer(endpoint, Drawing(0.7), task.fmt), Journal(folder))


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_right_answers_are_taken_and_the_others_named(tmp_path, monkeypatch):
    """Six questions: right at the second reply, wrong, without a chain, no text, two errors, an error and right."""
    examples = [row.example for row in load(config())[0].train]
    number = {e.prompt: i for i, e in enumerate(examples)}

    def behave(handler, n, body):
        i = next(i for prompt, i in number.items() if body["messages"][0]["content"].endswith("\n\n" + prompt))
        right = f"<think>because {i}</think>\n<answer>{examples[i].answer}</answer>"
        second = body["seed"] % 2 == 1
        replies = [right if second else "<think>so</think><answer>-1</answer>", "<think>so</think><answer>-1</answer>"]
        replies += [f"<answer>{examples[i].answer}</answer>", "I do not know", None, right]
        if down and (i == 4 or (i == 5 and not second)):
            handler.reply(500, b"{}")
            return
        handler.reply(200, said(replies[i] if i != 4 else right))

    down, shown = True, kept_progress(monkeypatch, "rl_likelihood.distill.Progress")
    with serving(behave) as (url, requests):
        lines = []
        distill(dataclasses.replace(taught(tmp_path, url), say=lines.append), tmp_path)
        good, dropped = rows_in(tmp_path / DISTILL), rows_in(tmp_path / DROPPED)
        assert [row["chain"] for row in good] == ["because 0", "because 5"]
        assert [row["answer"] for row in good] == [examples[0].answer, examples[5].answer]
        assert [r["dropped"] for r in dropped] == ["no right answer", *["not in the format"] * 2, "no reply"]
        assert "2 chains" in lines[-1] and "2 (not in the format)" in lines[-1]
        asked, down = len(requests), False
        assert asked == 12
        distill(taught(tmp_path, url), tmp_path)  # only what failed is asked again
        assert len(requests) == asked + 3 and len(rows_in(tmp_path / DISTILL)) == 3
    graded = ("graded the replies to", 0, 6, 6)
    assert shown == [("asked the teacher", 0, 6, 6), graded, ("asked the teacher", 4, 6, 6), graded]


def test_half_of_a_surrogate_pair_is_a_failed_call(tmp_path):
    """A server may cut an emoji in two. Such a reply is not stored, and the next run asks again."""
    answer = load(config(data__train_size=1))[0].train[0].example.answer

    def behave(handler, n, body):
        handler.reply(200, said(f"<think>{chr(0xD83D) if n == 1 else 'so'}</think><answer>{answer}</answer>"))

    with serving(behave) as (url, requests):
        for asked, chains, dropped in ((1, [], ["no reply"]), (2, ["so"], [])):
            distill(taught(tmp_path, url, data__train_size=1, distill__replies=1), tmp_path)
            assert len(requests) == asked and [row["chain"] for row in rows_in(tmp_path / DISTILL)] == chains
            assert [row["dropped"] for row in rows_in(tmp_path / DROPPED)] == dropped


def test_a_failed_grader_is_not_called_a_wrong_answer(tmp_path):
    """The grader fails on "?". One question has a right reply beside it, one a wrong one; one has only wrong ones."""
    f = stubbed(tmp_path)
    odd = Grader(lambda reference, answer: None if answer == "?" else answer == "good", "right if good")
    replies = [[("a", "?"), ("b", "good")], [("c", "bad"), ("d", "?")], [("e", "bad"), ("f", "bad")]]
    with Pool(table={f.task.config.eval.grader: odd}) as pool:
        got = chosen(f, [0, 1, 2], replies, pool)
    assert got == [(("b", "good"), ""), (None, "grader failed"), (None, "no right answer")]


def test_a_chain_that_training_refuses_is_not_accepted(tmp_path):
    """Control tokens and an opened answer within a chain, whose answers are right."""
    f = stubbed(tmp_path)
    odd = Grader(lambda reference, answer: answer == "good", "right if good")
    control, opened = "a <|end|> b", "a <answer b"
    replies = [[(control, "good"), ("b", "good")], [(opened, "good"), ("d", "bad")], [(control, "bad")]]
    with Pool(table={f.task.config.eval.grader: odd}) as pool:
        got = chosen(f, [0, 1, 2], replies, pool)
    assert got == [(("b", "good"), ""), (None, "with markup"), (None, "no right answer")]
    for reply, why in chosen(f, [0, 1], [[(control, "x")], [(opened, "x")]], None):
        assert reply is None and "with markup" in why


def test_failed_calls_of_a_teacher_are_counted(tmp_path):
    with serving(lambda h, n, body: h.reply(400, b"no")) as (url, _):
        lines = []
        f = finder(config(distill__teacher=url, distill__name="teacher", data__train_size=1), tmp_path)
        distill(dataclasses.replace(f, say=lines.append), tmp_path)
    assert lines[-2:] == [f"2 calls to {url} failed (status 400: 2)", lines[-1]] and "1 (no reply)" in lines[-1]


def test_chains_that_make_the_reference_likelier_are_taken(tmp_path):
    """Chains of 2 and 40 tokens, and one that the model's positions do not hold; sampler.max_chain is 12."""
    chains = ["ab", "ab" * 20, "x" * 3000]

    def behave(handler, n, body):
        handler.reply(200, said(f"<think>{chains[body['seed']]}</think><answer>77</answer>"))

    with serving(behave) as (url, _):
        changes = {"distill__accept": "likelihood", "eval__grader": "none", "distill__replies": 3}
        f = finder(config(distill__teacher=url, distill__name="teacher", **changes), tmp_path)
        f = dataclasses.replace(f, params=sharp(f.params))
        distill(f, tmp_path)
    good, dropped = rows_in(tmp_path / DISTILL), rows_in(tmp_path / DROPPED)
    want = {}
    for row in f.task.train:
        ((none, *after),) = score(f, [row], [["", *chains[:2]]], clip=math.inf)
        want[row.example.id] = chains[int(np.argmin(after))] if min(after) < none else None
    assert set(want.values()) == {None, *chains[:2]}  # else the test says little
    assert {row["id"]: row["chain"] for row in good} == {i: chain for i, chain in want.items() if chain}
    assert {row["id"] for row in dropped} == {i for i, chain in want.items() if chain is None}
    assert all(row["dropped"] == "the reference is not likelier" for row in dropped)
    assert all(row["teacher_answer"] == "77" != row["answer"] for row in good)


def test_chains_that_no_position_is_left_for_are_named(tmp_path):
    with serving(lambda h, n, body: h.reply(200, said(f"<think>{'x' * 3000}</think><answer>7</answer>"))) as (url, _):
        changes = {"distill__accept": "likelihood", "eval__grader": "none", "distill__replies": 1}
        f = finder(config(distill__teacher=url, distill__name="teacher", **changes), tmp_path)
        distill(f, tmp_path)
    prompt, answer = (
        max(map(len, ids)) for ids in zip(*((r.prompt_ids, r.answer_ids) for r in f.task.train), strict=True)
    )
    free = 2048 - prompt - answer - len(f.task.fmt.close_think_ids)
    assert {row["dropped"] for row in rows_in(tmp_path / DROPPED)} == {
        f"chain longer than {free} tokens, or with markup"
    }
    assert len(rows_in(tmp_path / DROPPED)) == 6
    assert np.isfinite(score(f, [f.task.train[0]], [["x" * free, "x" * (free + 1)]])).tolist() == [[True, False]]


def test_the_likelihood_is_that_of_the_whole_reference(tmp_path):
    """Answers of two segments and a model of random weights: each token has about 5.5 nats, far above reer.clip."""
    f = stubbed(tmp_path, reer__clip=2.0)
    f = dataclasses.replace(f, params=sharp(f.params))
    chains = ["ab", "two words", "zzz", "9", "Hm."]

    def likelihoods(i):
        """(of the whole reference, of its second segment) after no chain and after each chain."""
        row, out = f.task.train[i], []
        for chain in ("", *chains):
            ids, _ = completion_ids(row, chain, f.task.tokenizer, f.task.fmt)
            whole = np.concatenate([row.prompt_ids, ids])
            logp = log_softmax(reference_logits(f.params, f.task.model, whole))[np.arange(len(whole) - 1), whole[1:]]
            answer, later = logp[-len(row.answer_ids) :], f.row(i).answer_scored
            assert answer[later].min() < -2 and later.sum() < row.answer_scored.sum()
            out.append((answer[row.answer_scored].sum(), answer[later].sum()))
        return np.array(out).T

    part, others = [0, 1], 0
    replies = [[(chain, "x") for chain in chains]] * 2
    for i, (reply, why) in zip(part, chosen(f, part, replies, None), strict=True):
        whole, second = likelihoods(i)
        best = int(whole.argmax())
        assert reply == (None if best == 0 else (chains[best - 1], "x")) and bool(why) == (best == 0)
        others += best != int(second.argmax())
    assert others  # else the second segment alone would say the same


def test_a_local_teacher(tmp_path):
    teacher = saved(tmp_path / "teacher", TEACHER)
    changes = {"distill__accept": "likelihood", "eval__grader": "none", "distill__replies": 6, "distill__max_new": 40}
    c = config(distill__teacher=str(teacher), **changes)
    (tmp_path / "w").mkdir()
    f = finder(c, tmp_path / "w")
    examples, tags = [row.example for row in f.task.train], f.task.fmt
    distill(f, tmp_path / "w")
    good, dropped = rows_in(tmp_path / "w" / DISTILL), rows_in(tmp_path / "w" / DROPPED)
    assert len(good) + len(dropped) == 6 and good
    for row in good:
        (line,) = (x for x in rows_in(tmp_path / "w" / "rounds.jsonl") if examples[x["index"]].id == row["id"])
        assert (row["chain"], row["teacher_answer"]) in [parsed(text, tags) for text in line["replies"]]
        assert set(row["chain"]) <= set("bc")
    assert all(row["dropped"] == "the reference is not likelier" for row in dropped)
    first = (tmp_path / "w" / DISTILL).read_bytes()
    asked = (tmp_path / "w" / "rounds.jsonl").read_bytes()
    distill(finder(c, tmp_path / "w"), tmp_path / "w")
    assert (tmp_path / "w" / DISTILL).read_bytes() == first
    assert (tmp_path / "w" / "rounds.jsonl").read_bytes() == asked
    too_many = config(distill__teacher=str(teacher), **{**changes, "distill__max_new": 2040})
    with pytest.raises(UserError, match=r"distill.max_new is 2040.*distill.teacher=.*2048 positions.*to \d+ or less"):
        finder(too_many, tmp_path / "w")


def test_a_reply_and_its_reasoning(tmp_path):
    tags = load(config())[0].fmt
    assert parsed("<think> a b </think>\n<answer> 4 </answer> more", tags) == ("a b", "4")
    assert parsed("a b</think><answer>4</answer>", tags) == ("a b", "4")
    beside = text_of(said("<answer>4</answer>", reasoning_content="why"), tags)
    assert beside == "<think>why</think>\n<answer>4</answer>"
    for bad in ("", "<think>a</think>4", "<think></think><answer>4</answer>", "<think>a</think><answer></answer>"):
        assert parsed(bad, tags) is None, bad
    assert text_of(said("a chain", reasoning_content="why"), None) == "a chain"  # reer asks for the text alone
    assert text_of({"choices": []}, tags) is text_of(said(None), tags) is text_of(3, tags) is None
    assert text_of(said("half \ud83d"), tags) is text_of(said("a", reasoning="\ud83d"), tags) is None
    assert text_of(said("a", reasoning="\ud83d"), None) == "a"


def test_replies_to_one_message_differ_and_a_proposer_can_be_an_address(tmp_path):
    seeds, cuts = [], set()

    def behave(handler, n, body):
        seeds.append(body["seed"])
        cuts.add(body.get("top_p"))
        handler.reply(200, said(f"reply {body['seed']}"))

    with serving(behave) as (url, _):
        c = config(reer__proposer=url, reer__proposer_name="m")
        f = taught(tmp_path, url)
        asked = [Ask(0, "a message", "<analysis>"), Ask(1, "a message", "")]
        groups = f.propose(asked, 3, Length(2, "</part>", 9))
        assert groups == [["reply 6", "reply 7"]] * 2 and sorted(seeds) == [6, 7] and cuts == {None}
        http_proposer(Endpoint(JudgeSettings(url, name="m")), Drawing(0.7, 0.85), f.task.fmt)(
            asked, 0, Length(1, "", 9)
        )
        assert cuts == {None, 0.85}
        with pytest.raises(UserError, match="reer.ask is 'resample'"):
            task = dataclasses.replace(f.task, config=config(reer__proposer=url, reer__ask="resample"))
            reer.proposer_of(task, f.params, None, tmp_path)
    assert c.reer.proposer == url


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="distill.teacher is empty"):
        finder(config(), tmp_path)
    with pytest.raises(UserError, match="eval.grader is none"):
        finder(config(distill__teacher="x", eval__grader="none"), tmp_path)
    with pytest.raises(UserError, match="prompt.template is 'raw', but distill"):
        finder(config(distill__teacher="x", prompt__template="raw", warm_start__examples=0), tmp_path)
    talks = config(env__name="calculator", reward__name="avg_log_prob", distill__teacher="x")
    for make, command in ((finder, "distill"), (reer.finder, "reer")):
        with pytest.raises(UserError, match=f"env.name is 'calculator', but {command}"):
            make(talks, tmp_path)
