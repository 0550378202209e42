"""Conversations from sampler and environment: what a row holds, how it ends, what it is paid, whatever goes wrong."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest

from rl_likelihood.datasets import DATASETS, files, prepare
from rl_likelihood.envs.protocol import Reply, Start
from rl_likelihood.errors import UserError
from rl_likelihood.grading.countdown import evaluate
from rl_likelihood.mesh import make_mesh, replicated
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.rollouts.conversations import (
    Conversations,
    messages_of,
    number_of,
    say_compiled,
    say_longer,
    targets_of,
    task_of,
    written_by_model,
)
from rl_likelihood.rollouts.host_rewards import conversation_metrics
from rl_likelihood.sampler import decode, turns
from rl_likelihood.sampler.queue import from_bytes, to_bytes
from rl_likelihood.shapes import CHAIN, ENV, PAD, REFERENCE
from rl_likelihood.task import SAMPLE, _encode_conversations, load
from tests.envs.small_world import REAL, needs_tau2
from tests.rollouts.calculator import config


@pytest.fixture(scope="module")
def loaded():
    task, params = load(config())
    return task, decode.prepare(params, task.model)


class Words:
    """Replies with a number, and ends after `last` messages, which is paid with 1, and each message with 0.1."""

    def __init__(self, last=3, end="done"):
        self.last, self.end = last, end

    def start(self, task):
        return Start({"said": []}, [("user", "?")], "go")

    def step(self, state, text):
        state["said"].append(text)
        n = len(state["said"])
        return Reply(f"reply {n}", self.end if n == self.last else "", 1, ["no_call"], f"go {n}")

    def reward(self, state, end):
        return float(end == "done") + len(state["said"]) / 10


def sampled(task, weights, environment=None, rows=None, **changes):
    conversations = Conversations(task)
    conversations.environment = environment or conversations.environment
    rows = task.train[:2] if rows is None else rows
    cfg = task.sampler(**changes)
    prompts = task.collate(rows, np.arange(len(rows)))
    return conversations.sample(weights, prompts, rows, task.key(SAMPLE), cfg)


def test_a_row_is_references_messages_and_replies_in_turn(loaded):
    rollout = sampled(*loaded, Words())
    task = loaded[0]
    kinds = rollout.segment[0, 0]
    order_of = [int(kinds[i]) for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
    assert [k for k in order_of if k != PAD] == [REFERENCE, CHAIN, ENV, REFERENCE, CHAIN, ENV, REFERENCE, CHAIN]
    read = lambda kind: task.tokenizer.decode(rollout.completion[0, 0][kinds == kind], skip_special_tokens=True)
    assert read(REFERENCE) == "gogo 1go 2" and read(ENV) == "reply 1reply 2"
    assert (rollout.sampler_logp[rollout.segment != CHAIN] == 0).all()
    assert (rollout.sampler_logp[rollout.segment == CHAIN] < 0).all()
    messages = messages_of(task, rollout, 0, 0)
    assert [m["role"] for m in messages] == ["assistant", "environment"] * 2 + ["assistant"]
    assert messages[1]["text"] == "reply 1"
    assert written_by_model(messages) == " | ".join(messages[k]["text"] for k in (0, 2, 4))


def test_a_turn_is_compiled_and_said_once_for_a_width_whatever_the_turn_before(loaded, capsys):
    say_compiled.cache_clear()
    turns.turn.clear_cache()
    for _ in range(2):
        sampled(*loaded, Words())
    # At most 64 earlier tokens in the second turn and in the third, 64 for a reply, 8 for a message.
    assert capsys.readouterr().out.count("compiles a turn") == 1
    sampled(*loaded, Words(), loaded[0].train[:1])
    words = "compiles a turn: 64 earlier positions, 64 of a reply, 8 of a message"
    assert capsys.readouterr().out.count(words) == 1
    assert turns.turn._cache_size() == 2 * 2, "the first turn and the later ones, of two prompts and of one"


def test_how_a_conversation_ends_and_what_it_is_paid(loaded):
    ended, cut = sampled(*loaded, Words(last=2)), sampled(*loaded, Words(last=9))
    assert (ended.outcomes.turns == 2).all() and not ended.truncated.any()
    np.testing.assert_allclose(ended.outcomes.reward, 1.2)
    assert (cut.outcomes.turns == 3).all() and cut.truncated.all()
    np.testing.assert_allclose(cut.outcomes.reward, 0.3)
    assert (cut.outcomes.calls == 3).all() and (cut.outcomes.bad_calls == 3).all()
    assert cut.segment[0, 0][cut.segment[0, 0] > 0][-1] == CHAIN, "nothing is replied to the last message"


def test_each_end_of_conversations_is_counted_and_f1_is_absent_without_references(loaded):
    shares = ("env/done", "env/transfer", "env/out_of_turns", "env/no_call")
    wanted = {"done": [1, 0, 0, 0], "transfer": [0, 1, 0, 0]}
    for end, share in wanted.items():
        rollout = sampled(*loaded, Words(last=1, end=end), loaded[0].train[:1])
        logged = conversation_metrics(rollout.outcomes, rollout.truncated)
        assert [logged[name] for name in shares] == share and not unknown(logged)
    assert np.isnan(logged["env/calls_f1"]) and np.isnan(rollout.outcomes.calls_f1).all()
    outcomes = rollout.outcomes.replace(
        end=np.asarray([[3, 3, 1]]), calls=np.asarray([[0, 2, 0]]), calls_f1=np.asarray([[0.0, 0.5, 1.0]])
    )
    logged = conversation_metrics(outcomes, np.asarray([[True, True, False]]))
    np.testing.assert_allclose([logged[name] for name in shares], [1 / 3, 0, 2 / 3, 1 / 3])
    assert logged["env/calls_f1"] == 0.5


class Some(Words):
    """Words that fails in one conversation of each task whose number is given, each in its own way."""

    def __init__(self, tasks, **fails):
        super().__init__()
        self.tasks, self.fails, self.begun = tasks, fails, {}

    def start(self, task):
        number, me = self.tasks.index(task), object()
        if self.begun.setdefault(number, me) is not me:  # threads start a group's conversations at once
            number = None
        if number == self.fails.get("start"):
            raise ValueError("no such word")
        return Start({"said": [], "number": number}, [("user", "?")], "go")

    def step(self, state, text):
        reply = super().step(state, text)
        number = state["number"]
        if number == self.fails.get("step"):
            raise SystemExit("bye")
        if number == self.fails.get("hang"):
            time.sleep(5)
        if number == self.fails.get("text"):
            return "yes"
        return reply._replace(text="\ud800") if number == self.fails.get("surrogate") else reply

    def reward(self, state, end):
        if state["number"] == self.fails.get("reward"):
            raise ZeroDivisionError("nobody counted")
        return float("nan") if state["number"] == self.fails.get("nan") else super().reward(state, end)


FAILS = {"start": 0, "step": 1, "hang": 2, "text": 3, "surrogate": 4, "reward": 5, "nan": 6}


def test_whatever_fails_costs_its_own_row_and_is_said_once(loaded, capsys):
    task = dataclasses.replace(loaded[0], config=config(env__seconds=2.0))
    rows = task.train[:8]
    rollout = sampled(task, loaded[1], Some([task_of(row) for row in rows], **FAILS), rows, group_size=3)
    failed = rollout.outcomes.failed
    assert failed.sum(1).tolist() == [1] * 7 + [0] and not rollout.truncated.any()
    assert (rollout.outcomes.turns[~failed] == 3).all()
    np.testing.assert_allclose(rollout.outcomes.reward, np.where(failed, 0, 1.3), rtol=1e-6)
    out = capsys.readouterr().out
    for word in ("start (ValueError: no such word", "SystemExit: bye", "env.seconds = 2", "str and not Reply"):
        assert out.count(word) == 1
    assert out.count("surrogate") == 1 and out.count("in its method step") == 4
    assert "reward (ZeroDivisionError: nobody counted" in out and "its reward is nan" in out
    logged = conversation_metrics(rollout.outcomes, rollout.truncated)
    assert logged["env/failures"] == 7 and logged["env/turns"] == 3 and logged["env/reward"] == pytest.approx(1.3)


def test_failures_of_one_kind_are_said_once_whatever_their_words(loaded, capsys):
    class Unlike(Words):
        def start(self, task):
            raise ValueError(f"no such word in {id(object())} {time.monotonic_ns()}")

    rollout = sampled(*loaded, Unlike())
    assert rollout.outcomes.failed.all() and capsys.readouterr().out.count("ValueError") == 1
    logged = conversation_metrics(rollout.outcomes, rollout.truncated)
    assert logged.pop("env/failures") == 6 and np.isnan(list(logged.values())).all(), "no mean is 0"


def test_a_reward_beyond_float32_is_a_failure():
    assert number_of(-3e38) == -3e38
    with pytest.raises(TypeError, match="its reward is 1e\\+300; return a finite number"):
        number_of(1e300)
    with pytest.raises(TypeError, match="its calls_f1 is nan"):
        number_of(np.nan, "calls_f1")


def test_a_reward_of_text_is_a_failure():
    assert number_of(np.float32(0.5)) == 0.5
    with pytest.raises(TypeError, match="'0.5'"):
        number_of("0.5")


def test_rows_that_the_environment_refuses_are_left_out_where_that_is_asked_for(loaded):
    task = loaded[0]
    good = [row.example for row in task.train[:2]]
    bad = dataclasses.replace(good[0], id="r3", check=json.dumps({"environment": {"numbers": []}}))
    arguments = task.config, task.tokenizer, task.fmt
    rows, left_out = _encode_conversations([good[0], bad, good[1]], *arguments, skip=True)
    assert [row.example for row in rows] == good and len(left_out) == 1 and "row r3" in left_out[0]
    for examples, skip in (([good[0], bad], False), ([bad], True)):
        with pytest.raises(UserError, match="row r3: .*KeyError"):
            _encode_conversations(examples, *arguments, skip=skip)


@pytest.mark.parametrize("slots", [1, 3, 4])
def test_rows_do_not_depend_on_how_many_are_played_at_one_time(loaded, slots):
    rows = loaded[0].train[:3]
    wanted, got = sampled(*loaded, rows=rows), sampled(*loaded, rows=rows, slots=slots)
    np.testing.assert_array_equal(got.completion, wanted.completion)
    np.testing.assert_array_equal(got.segment, wanted.segment)
    np.testing.assert_allclose(got.sampler_logp, wanted.sampler_logp, atol=2e-5)


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_every_device_has_rows_of_its_own_whatever_the_slots(loaded, slots, monkeypatch):
    task, weights = loaded
    mesh = make_mesh((2, 2, 1), jax.devices()[:4])
    spread = jax.device_put(weights, replicated(mesh))
    started, shards = turns.start_rows, []

    def seen(*arguments):
        rows = started(*arguments)
        shards.append((rows.keys.shape, rows.keys.sharding.shard_shape(rows.keys.shape)))
        return rows

    monkeypatch.setattr(turns, "start_rows", seen)
    rows = task.train[:4]
    got = sampled(task, spread, Words(last=2), rows=rows, slots=slots, group_size=4)
    assert shards and all(4 * np.prod(part) == np.prod(whole) <= max(4, slots) for whole, part in shards)
    wanted = sampled(task, weights, Words(last=2), rows=rows, group_size=4)
    np.testing.assert_array_equal(got.completion, wanted.completion)


def test_a_rollout_with_outcomes_is_stored_whole(loaded):
    rollout = sampled(*loaded).replace(version=3, number=4)
    (back,) = from_bytes(to_bytes([rollout]))
    assert back.version == 3 and back.number == 4
    for name, value in vars(rollout.outcomes).items():
        np.testing.assert_array_equal(getattr(back.outcomes, name), value)
    np.testing.assert_array_equal(back.completion, rollout.completion)


def test_given_conversations_have_the_environment_s_real_replies(loaded):
    task = dataclasses.replace(loaded[0], config=config(sampler__max_chain=80, sampler__max_env_tokens=80))
    row = next(row for row in task.train if len(json.loads(row.example.chain)) == 2)
    ((ids, kinds),) = targets_of(task, [row], Conversations(task), learn_tags=False)
    tried = json.loads(row.example.chain)[0]["calls"][0]["arguments"]["expression"]
    replied = task.tokenizer.decode(ids[kinds == ENV], skip_special_tokens=True)
    assert replied == str(evaluate(tried)[0])
    assert set(kinds) == {CHAIN, ENV} and kinds[-1] == CHAIN and ids[-1] in task.fmt.eos_ids
    surrogate, named = '[{"calls": [], "thought": "\\ud800"}]', '[{"calls": [{"name": 5}]}]'
    for chain in ("I add.", "[]", "{}", "5", surrogate, named):
        bad = dataclasses.replace(task.train[0], example=dataclasses.replace(task.train[0].example, chain=chain))
        with pytest.raises(UserError, match="chain of row .* JSON list"):
            targets_of(task, [bad], Conversations(task), learn_tags=False)


def test_given_conversations_that_are_cut_are_named(loaded, capsys):
    task = loaded[0]
    short = [row for row in task.train if len(json.loads(row.example.chain)) <= 3]
    say_longer(task, short)
    assert not capsys.readouterr().out
    chain = json.dumps(json.loads(task.train[0].example.chain) * 4)
    long = dataclasses.replace(task.train[0], example=dataclasses.replace(task.train[0].example, chain=chain))
    say_longer(task, [*short, long])
    out = capsys.readouterr().out
    assert f"1 of {len(short) + 1}" in out and "sampler.max_turns = 3" in out and str(long.example.id) in out


OWN = """
import time
from rl_likelihood.envs.protocol import Reply, Start
class Mute:
    def start(self, task):
        if task["n"] == 99:
            time.sleep(20)
        return Start(task, [("user", "Speak.")])
    def step(self, state, text): return Reply("no")
    def reward(self, state, end): return 0.5
ENVIRONMENTS = {"mute": lambda cfg: Mute()}
"""


def mute(tmp_path, first=0, **changes):
    rows = [{"prompt": f"q{i}", "answer": "a", "environment": {"n": i}} for i in range(first, first + 4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mute.py").write_text(OWN)
    own = {"data__source": "files", "data__train_path": str(tmp_path / "rows.jsonl"), "data__train_size": 0}
    own |= {"data__heldout_size": 1, "eval__prompts": 1, "env__name": "mute", "env__file": str(tmp_path / "mute.py")}
    return config(**own | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward__name": "avg_log_prob"}, ["reward.name", "avg_log_prob", "Start.reference"]),
        ({"reward__name": "environment + 0.1*avg_prob"}, ["reward.name", "avg_prob", "Start.reference"]),
        ({"env__credit": "turn"}, ["env.credit", "Start.reference"]),
        ({"reward__name": "calls_f1"}, ["reward.name", "calls_f1"]),
    ],
)
def test_a_reward_that_the_environment_cannot_give_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError) as e:
        load(mute(tmp_path, **changes))
    assert all(word in str(e.value) for word in words)


def test_an_environment_that_hangs_at_the_start_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"row .*cannot begin with .*99.*env.seconds = 0.3"):
        load(mute(tmp_path, first=97, env__seconds=0.3, eval__prompts=0, data__heldout_size=0))


def test_a_beginning_that_is_new_each_time_is_refused(tmp_path, loaded):
    c = mute(tmp_path)
    (tmp_path / "mute.py").write_text(OWN.replace('"Speak."', "str(time.perf_counter_ns())"))
    row = dataclasses.replace(loaded[0].train[0].example, id="r7", check=json.dumps({"environment": {"n": 1}}))
    with pytest.raises(UserError, match="row r7: the environment mute begins differently .* method start"):
        _encode_conversations([row], c, loaded[0].tokenizer, loaded[0].fmt)


def test_own_rows_and_an_environment_of_one_s_own(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": "a", "environment": {"number": i, "exact": 0.5}} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "guess.py").write_text(
        "from rl_likelihood.envs.protocol import Reply, Start\n"
        "class Guess:\n"
        "    def start(self, task): return Start(task, [('user', 'Guess from ' + repr(task['number']))])\n"
        "    def step(self, state, text): return Reply('no')\n"
        "    def reward(self, state, end): return state['exact']\n"
        "ENVIRONMENTS = {'guess': lambda cfg: Guess()}\n"
    )
    c = config(
        data__source="files",
        data__train_path=str(tmp_path / "rows.jsonl"),
        data__train_size=0,
        data__heldout_size=1,
        eval__prompts=1,
        env__name="guess",
        env__file=str(tmp_path / "guess.py"),
    )
    task, params = load(c)
    assert "Guess from" in task.tokenizer.decode(task.train[0].prompt_ids)
    rollout = sampled(task, decode.prepare(params, task.model))
    assert (rollout.outcomes.reward == 0.5).all() and (rollout.outcomes.turns == 3).all()
    assert not (rollout.segment == REFERENCE).any()


@needs_tau2
def test_the_expert_s_conversations_of_the_real_telecom_are_paid(loaded):
    rows = prepare.read_rows(DATASETS["tau2_telecom"], files.locate([str(REAL)], DATASETS["tau2_telecom"]), False).rows
    c = config(
        env__name="telecom",
        env__path=str(REAL),
        env__style="hermes",
        sampler__max_turns=60,
        sampler__max_env_tokens=4000,
        data__tasks=("calculator",),
    )
    task = dataclasses.replace(loaded[0], config=c)
    conversations = Conversations(task)
    for row in rows[::10]:
        example = dataclasses.replace(row.example, check=json.dumps(row.extra))
        encoded = dataclasses.replace(loaded[0].train[0], example=example)
        played = conversations.given(encoded)
        conversations._pay([played])
        assert played.end in ("done", "transfer") and played.paid.reward == 1 and played.bad == 0
        assert played.paid.calls_f1 > 0


def test_where_no_conversation_can_begin_the_step_has_rows_without_tokens_and_no_messages(loaded):
    class Late(Words):
        def start(self, task):
            raise RuntimeError("late")

    rollout = sampled(*loaded, Late(), width_multiple=16)
    assert rollout.outcomes.failed.all() and rollout.completion.shape[-1] == 16 and not rollout.segment.any()
    assert messages_of(loaded[0], rollout, 0, 0) == []
