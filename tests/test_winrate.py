"""The winrate command: runs and files, a judge that can tell and one that cannot, both orders."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.judged_text import BETTER, JudgeSettings
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation.answers import Answered, common, read_answers, shuffled
from rl_likelihood.evaluation.records import FOLDER
from rl_likelihood.learner.judge import ValueHead
from rl_likelihood.model.architecture import init
from rl_likelihood.rollouts.endpoint import Endpoint
from rl_likelihood.rollouts.http_judge import HttpJudge
from rl_likelihood.rollouts.local_judge import Verdicts, save_head
from rl_likelihood.run_model import random_model
from rl_likelihood.runtime import run_files
from rl_likelihood.task import random_key
from rl_likelihood.weights import files
from rl_likelihood.winrate import calibrate, measured, measured_by_server
from tests.commands import command
from tests.runs import config_file
from tests.servers import serving

QUESTIONS = [f"What is {n} + {n}?" for n in range(30)]
A = {q: Answered(q, f"it is {2 * n}", f"it is {2 * n}") for n, q in enumerate(QUESTIONS)}
# B is right on every third question only.
B = {q: Answered(q, f"it is {2 * n + (n % 3 > 0)}", "") for n, q in enumerate(QUESTIONS)}


def knows(questions, pairs):
    """A judge that can add and prefers what it reads first a little."""
    right = [f"it is {2 * int(q.split()[2])}" for q in questions]
    marks = [[0.3 * (answer == goal) for answer in pair] for goal, pair in zip(right, pairs, strict=True)]
    return Verdicts(np.array([0.55 + x - y for x, y in marks]), np.ones(len(pairs), bool), 0)


def test_a_judge_that_can_tell_gives_a_win_rate():
    out = measured(knows, A, B)
    assert out["judge"]["shuffled"]["accuracy"] == 1 and out["judge"]["truncated"]["length_only"] == 1
    assert out["judge"]["shuffled"]["length_only"] == pytest.approx(0.5, abs=0.2)
    # 10 ties at one half, 20 wins by 0.3.
    assert out["win_rate"] == pytest.approx(100 * (10 * 0.5 + 20 * 0.8) / 30)
    assert (out["answered_a"], out["answered_b"]) == (1, 1)
    silent = {q: b._replace(answer="" if n % 2 else b.answer) for n, (q, b) in enumerate(B.items())}
    assert measured(knows, A, silent)["answered_b"] == 0.5
    with pytest.raises(UserError, match="--b has no answer to any of the 30"):
        measured(knows, A, {q: b._replace(answer=" ") for q, b in B.items()})
    assert out["first_bias"] == pytest.approx(0.05) and out["prompts"] == 30 and out["failures"] == 0
    other = measured(knows, {q: a._replace(reference=A[q].reference) for q, a in B.items()}, A)
    assert other["win_rate"] == pytest.approx(100 - out["win_rate"])


def test_a_judge_that_cannot_tell_gives_none():
    def first(questions, pairs):
        return Verdicts(np.full(len(pairs), 0.9), np.ones(len(pairs), bool), 0)

    out = measured(first, A, B)
    assert "win_rate" not in out and "not above chance" in out["refused"]
    assert out["judge"]["shuffled"]["accuracy"] == 0.5
    assert out["judge"]["shuffled"]["first_bias"] == pytest.approx(0.4)


def test_a_judge_that_cannot_tell_a_reference_from_its_half_gives_none():
    def first_words(questions, pairs):
        """Prefers what the right answer begins with, however little."""
        right = [f"it is {2 * int(q.split()[2])}" for q in questions]
        marks = [[0.3 * goal.startswith(x) for x in pair] for goal, pair in zip(right, pairs, strict=True)]
        return Verdicts(np.array([0.5 + x - y for x, y in marks]), np.ones(len(pairs), bool), 0)

    out = measured(first_words, A, B)
    assert out["judge"]["shuffled"]["accuracy"] == 1 and out["judge"]["truncated"]["accuracy"] == 0.5
    assert "win_rate" not in out and "to its own first half in 50.0 % of 30 pairs" in out["refused"]


def test_what_the_judge_failed_on_is_left_out_and_counted():
    def fails_on_some(questions, pairs):
        out = knows(questions, pairs)
        return out._replace(keep=np.array([q != QUESTIONS[1] for q in questions]))

    out = measured(fails_on_some, A, B)
    assert out["prompts"] == 29 and out["failures"] == 2 and out["judge"]["shuffled"]["pairs"] == 29
    assert out["win_rate"] == pytest.approx(100 * (10 * 0.5 + 19 * 0.8) / 29)


def test_length_alone_is_measured_on_the_pairs_that_the_judge_read():
    """It fails on all questions whose reference is short."""
    references = {q: "a b c d" if n % 2 else "a b" for n, q in enumerate(QUESTIONS[:8])}

    def fails_on_short_references(questions, pairs):
        keep = np.array([references[q] == "a b c d" for q in questions])
        return Verdicts(np.full(len(pairs), 0.5), keep, 0)

    found = calibrate(fails_on_short_references, [Answered(q, r, r) for q, r in references.items()])["shuffled"]
    chosen = list(references.values())
    others = [b for a, b in zip(chosen, shuffled(chosen), strict=True) if a == "a b c d" != b]
    assert found["pairs"] == len(others) > 0 and found["length_only"] == 1


def test_a_refusal_names_max_row_if_answers_were_cut():
    """Cut after two words, a reference and its half are the same for the judge."""
    references = {q: f"it is {2 * n} and no more" for n, q in enumerate(QUESTIONS)}

    def short_sighted(questions, pairs):
        seen = [[" ".join(x.split()[:3]) for x in pair] for pair in pairs]
        marks = [[0.3 * (x in references[q]) for x in pair] for q, pair in zip(questions, seen, strict=True)]
        cut = sum(any(len(x.split()) > 3 for x in pair) for pair in pairs)
        return Verdicts(np.array([0.5 + x - y for x, y in marks]), np.ones(len(pairs), bool), cut)

    out = measured(short_sighted, {q: Answered(q, r, r) for q, r in references.items()}, B)
    assert out["judge"]["shuffled"]["accuracy"] == 1 and out["judge"]["truncated"]["cut"] == 60
    assert out["judge"]["truncated"]["failures"] == 0
    assert "60 comparisons had a cut answer, so raise --max_row, or take another judge" in out["refused"]
    assert "--max_row" not in measured(lambda q, p: knows(q, p[::-1]), A, B)["refused"]


def test_a_reference_of_one_word_has_no_half():
    rows = {q: a._replace(reference=a.reference if n % 3 else str(2 * n)) for n, (q, a) in enumerate(A.items())}

    def longer(questions, pairs):
        return Verdicts(np.array([float(len(x) > len(y)) for x, y in pairs]), np.ones(len(pairs), bool), 0)

    judge = calibrate(longer, list(rows.values()))
    assert judge["truncated"]["pairs"] == 20 and judge["shuffled"]["pairs"] == 30
    with pytest.raises(UserError, match="of one word each"):
        calibrate(longer, [a._replace(reference=a.reference.split()[2]) for a in A.values()])


def test_a_shuffled_reference_is_another_one():
    for references in map(list, set(itertools.permutations("aaabcd"))):
        others = shuffled(references)
        assert sorted(others) == sorted(references)
        assert all(x != y for x, y in zip(others, references, strict=True)), references


def test_calls_are_those_of_this_command(tmp_path, monkeypatch):
    """Each call takes 50 tokens by the server's count. The second command finds all in the cache."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")

    def behave(handler, number, body):
        choice = {"message": {"content": "1"}}
        handler.reply(200, {"choices": [choice], "usage": {"total_tokens": 50}})

    few = {q: a for n, (q, a) in enumerate(A.items()) if n < 2}
    with serving(behave) as (url, requests):
        for calls in (8, 0):
            endpoint = Endpoint(JudgeSettings(url, name="m"), str(tmp_path / "cache"))
            out = measured_by_server(HttpJudge(endpoint, BETTER), few, B)
            assert (out["calls"], out["tokens"]) == (calls, 50 * calls)
        assert len(requests) == 8


def write(path, answered):
    path.write_text("".join(json.dumps(a._asdict()) + "\n" for a in answered.values()))
    return path


def test_files_are_read_and_what_is_wrong_is_named(tmp_path):
    a = read_answers(str(write(tmp_path / "a.jsonl", A)), "a")
    assert a == A and len(common(a, B)) == 30
    for text, words in (
        ('{"prompt": "q"}', "'answer' or 'output'"),
        ('{"instruction": 1, "output": "x"}', "'prompt' or 'instruction'"),
        ("", "holds no answers"),
        ('{"prompt": "q", "answer": "a"}\n' * 2, "twice"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(UserError, match=words):
            read_answers(str(tmp_path / "bad.jsonl"), "b")
    with pytest.raises(UserError, match="--b=.*nowhere"):
        read_answers(str(tmp_path / "nowhere"), "b")
    with pytest.raises(UserError, match="no evaluation"):
        read_answers(str(tmp_path), "b")
    with pytest.raises(UserError, match="1 questions in common"):
        common(A, {QUESTIONS[0]: B[QUESTIONS[0]]})


def test_the_command_refuses_a_judge_of_random_weights(tmp_path):
    model = random_model("nano")
    files.save(tmp_path / "judge", model, init(random_key(0, 0), model))
    save_tokenizer(byte_tokenizer(), tmp_path / "judge")
    a, b = write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", B)
    command = [sys.executable, "-m", "rl_likelihood.winrate", f"--a={a}", f"--b={b}", f"--out={tmp_path / 'out.jsonl'}"]
    command += [f"--judge={tmp_path / 'judge'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "not above chance" in done.stderr, done.stderr
    row = json.loads(done.stdout)
    assert row["judge"]["shuffled"]["pairs"] == 30 and 0 <= row["judge"]["shuffled"]["accuracy"] <= 1
    assert json.loads((tmp_path / "out.jsonl").read_text()) == row
    bare = byte_tokenizer()
    bare.chat_template = None
    files.save(tmp_path / "bare", model, init(random_key(0, 0), model))
    save_tokenizer(bare, tmp_path / "bare")
    refused = subprocess.run([*command[:-1], f"--judge={tmp_path / 'bare'}"], capture_output=True, text=True)
    assert refused.returncode == 2 and "no chat template; for a base model set --template=plain" in refused.stderr
    long = subprocess.run([*command, "--max_prompt=20"], capture_output=True, text=True)
    assert long.returncode == 2 and "--max_prompt is 20, but the question 'What is 0 + 0?'" in long.stderr
    save_head(tmp_path / "judge", ValueHead(np.ones(model.width, np.float32), np.float32(0)), 1.0)
    told = subprocess.run([*command, "--task=A story."], capture_output=True, text=True)
    assert told.returncode == 2 and "--task is 'A story.', but --judge is a reward model" in told.stderr
    unnamed = subprocess.run([*command, "--judge=http://127.0.0.1:1/v1"], capture_output=True, text=True)
    assert unnamed.returncode == 2 and "--judge is an address, but --judge_name is empty" in unnamed.stderr
    bare = write(tmp_path / "bare.jsonl", B)
    untested = subprocess.run([*command, f"--a={bare}", "--judge=nowhere"], capture_output=True, text=True)
    assert untested.returncode == 2 and "have no reference answers" in untested.stderr
    template = subprocess.run([*command, "--template=foo"], capture_output=True, text=True)
    assert template.returncode and "--template=foo" in template.stderr and "model|plain" in template.stderr
    missing = subprocess.run(command[:-1], capture_output=True, text=True)
    assert missing.returncode == 2 and "--judge is missing" in missing.stderr


def test_limits_of_a_server_are_named_as_the_flags_are(tmp_path):
    a, b = write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", B)
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}

    def refusal(url, *flags):
        command = [sys.executable, "-m", "rl_likelihood.winrate", f"--a={a}", f"--b={b}", f"--judge={url}"]
        command += ["--judge_name=m", f"--out={tmp_path / 'out.jsonl'}", *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 2, done.stderr
        return done.stderr

    with serving(lambda handler, number, body: handler.reply(200, {})) as (url, _):
        assert "--max_calls is 3, and" in refusal(url, "--max_calls=3", f"--cache={tmp_path / 'new'}")
        (tmp_path / "broken").write_bytes(b"not a database, but long enough to be read as one" * 30)
        assert f"--cache is {tmp_path / 'broken'}" in refusal(url, f"--cache={tmp_path / 'broken'}")


def test_a_run_against_the_outputs_of_a_baseline_as_alpacaeval_stores_them(tmp_path, monkeypatch):
    """The commands of docs/judges.md. The judge's server prefers the baseline's output to any other text."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    outputs = {f"Describe the colour {n}.": f"colour {n} is warm" for n in range(8)}
    rows = [{"instruction": q, "output": text, "generator": "base", "dataset": "x"} for q, text in outputs.items()]
    (tmp_path / "baseline.json").write_text(json.dumps(rows))
    data = {"data__source": "files", "data__prompt_column": "instruction", "data__answer_column": "output"}
    data |= {f"data__{side}_path": str(tmp_path / "baseline.json") for side in ("train", "heldout")}
    sizes = {"data__heldout_size": 8, "eval__prompts": 8, "eval__samples": 1, "prompt__max_answer": 24}
    config = config_file(tmp_path, **data, **sizes)

    def behave(handler, number, body):
        text = body["messages"][0]["content"]
        known = next(output for question, output in outputs.items() if question in text)
        first, second = (part.partition(">>>")[0].strip() == known for part in text.split("<<<")[1:3])
        verdict = "1" if first and not second else "2" if second and not first else "neither"
        handler.reply(200, {"choices": [{"message": {"content": verdict}}]})

    evaluated = command("evaluate", f"--config={config}", f"--out={tmp_path / 'run'}")
    _, err = evaluated.communicate()
    assert evaluated.returncode == 0, err
    (records,) = (tmp_path / "run" / FOLDER).glob("*.jsonl")
    first, *rows = run_files.read(records)
    with pytest.raises(UserError, match="--a has no answer"):  # random weights write none
        common(read_answers(str(tmp_path / "run"), "a"), read_answers(str(tmp_path / "baseline.json"), "b"))
    rows[0]["greedy"]["answer"] = "warm"
    records.write_text("".join(json.dumps(row) + "\n" for row in (first, *rows)))
    with serving(behave) as (url, _):
        sides = [f"--a={tmp_path / 'run'}", f"--b={tmp_path / 'baseline.json'}", f"--out={tmp_path / 'out.jsonl'}"]
        done = command("winrate", *sides, f"--judge={url}", "--judge_name=m", f"--cache={tmp_path / 'cache'}")
        out, err = done.communicate()
    assert done.returncode == 0, err
    row = json.loads(out)
    assert row["judge"]["shuffled"]["accuracy"] == row["judge"]["truncated"]["accuracy"] == 1
    assert (row["win_rate"], row["prompts"], row["failures"]) == (0, 8, 0)
    assert (row["answered_a"], row["answered_b"]) == (1 / 8, 1)
    del rows[3]["greedy"]["answer"]  # as in records of conversations
    records.write_text("".join(json.dumps(row) + "\n" for row in (first, *rows)))
    with pytest.raises(UserError, match="--a=.*conversations"):
        read_answers(str(tmp_path / "run"), "a")
