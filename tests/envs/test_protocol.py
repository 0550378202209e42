"""Conversations from start to end: with an environment that a user writes, with the calculator, with telecom."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from rl_likelihood.envs import telecom
from rl_likelihood.envs.calculator import Calculator
from rl_likelihood.envs.calls import text_of
from rl_likelihood.envs.protocol import Reply, Start, play, problem_of
from rl_likelihood.envs.table import EnvConfig
from rl_likelihood.envs.telecom import Telecom, system_prompt
from rl_likelihood.envs.tools import Call
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import Example
from rl_likelihood.tables import begun
from tests.envs.small_world import REAL, needs_tau2, task, world


def call(name: str, **arguments) -> str:
    return f"<tool_call>{text_of(Call(name, arguments))}</tool_call>"


def script(*texts: str):
    left = list(texts)

    def policy(messages) -> str:
        return left.pop(0)

    return policy


class Guess:
    """A user's environment: guess a number."""

    def start(self, task) -> Start:
        return Start({"left": task["number"]}, [("user", "Guess a number.")])

    def step(self, state, text) -> Reply:
        state["right"] = text.strip() == str(state["left"])
        return Reply("", "done") if state["right"] else Reply("no")

    def reward(self, state, end) -> float:
        return float(end == "done")


def test_an_environment_of_three_methods_is_enough():
    played = play(Guess(), {"number": 7}, script("6", "7"), max_turns=5)
    assert (played.end, played.reward, played.turns) == ("done", 1.0, 2)
    assert played.messages == [("user", "Guess a number."), ("assistant", "6"), ("tool", "no"), ("assistant", "7")]


def test_a_conversation_that_does_not_end_is_out_of_turns():
    played = play(Guess(), {"number": 7}, script("1", "2", "3"), max_turns=2)
    assert (played.end, played.reward, played.turns) == ("out_of_turns", 0.0, 2)


SAID = [("user", "Speak.")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Start({}, [*SAID, ["tool", ""]], "go"), ""),
        (Start({}, "hello"), "hello"),
        (Start({}, []), "[]"),
        (Start({}, SAID[0]), "Speak."),
        (Start({}, [{"role": "user", "content": "x"}]), "(role, text)"),  # would be read as its keys
        (Start({}, [("robot", "x")]), "assistant or tool"),
        (Start({}, [("user", 5)]), "int"),
        (Start({}, [("user", "\ud800")]), "surrogate"),
        (Start({}, [("system", ""), ("user", "")]), "all texts of Start.messages are empty"),
        (Start({}, SAID, None), "NoneType"),
        (({}, SAID), "tuple and not Start"),
        (Reply("x", "transfer", 2**31 - 1, ["no_call"]), ""),
        (Reply("x", calls="1"), "calls='1'"),
        (Reply("x", calls=-3), "calls=-3"),
        (Reply("x", calls=10**20), f"calls={10**20}"),
        (Reply("x", "finished"), "end='finished'"),
        (Reply("x", bad="no_call"), "bad='no_call'"),
        (Reply("x", bad=[{}]), "bad=[{}]"),
        (Reply(None), "NoneType"),
    ],
)
def test_what_an_environment_returns_wrongly_is_named(value, words):
    kind = Reply if isinstance(value, Reply) else Start
    assert words in problem_of(value, kind) and bool(words) == bool(problem_of(value, kind))


OWN = """
from rl_likelihood.envs.protocol import Start
class Mute:
    def start(self, task): return Start({}, task["messages"])
    def step(self, state, text): raise NotImplementedError
    def reward(self, state, end): return 0.5
class Unpaid:
    start = step = Mute.start
"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ENVIRONMENTS = {'own': lambda cfg: Mute()}", ["row r1", "hello", "(role, text)", "method start"]),
        ("ENVIRONMENTS = {'own': lambda cfg: Unpaid()}", ["'own'", "method reward", "start, step, reward"]),
        ("ENVIRONMENTS = {'own': lambda cfg: Mute}", ["'own'", "Mute", "return an object"]),
        ("ENVIRONMENTS = {'own': lambda cfg: None}", ["'own'", "None", "return an object"]),
        (
            "Mute.step = lambda self, text: 0\nENVIRONMENTS = {'own': lambda cfg: Mute()}",
            ["method step", "(state, text)"],
        ),
        ("ENVIRONMENTS = {'own': Mute}", ["'own'", "cannot be made", "lambda cfg: Yours()"]),
        ("ENVIRONMENTS = {'none': lambda cfg: Mute()}", ["env.file", "lambda cfg"]),
        ("ENVIRONMENTS = ['own']", ["env.file", "['own']", "lambda cfg"]),
        ("raise SystemExit(3)", ["env.file", "SystemExit: 3"]),
        ("ENVIRONMENTS = {'own': lambda cfg: Mute() if cfg.max_turns == 7 else None}", ["row r1", "hello"]),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_in_words(line, words, tmp_path):
    (tmp_path / "own.py").write_text(OWN + line)
    cfg = EnvConfig("own", str(tmp_path / "own.py"), max_turns=7)
    with pytest.raises(UserError) as e:
        begun(cfg, Example("r1", "?", "!", check=json.dumps({"environment": {"messages": "hello"}})))
    assert all(word in str(e.value) for word in words), e.value


def test_an_environment_of_its_own_file_begins(tmp_path):
    (tmp_path / "own.py").write_text(OWN + "ENVIRONMENTS = {'own': lambda cfg: Mute()}")
    row = Example("r1", "?", "!", check=json.dumps({"environment": {"messages": SAID}}))
    assert begun(EnvConfig("own", str(tmp_path / "own.py")), row).messages == [["user", "Speak."]]


COUNTDOWN = {"nums": [2, 3, 4], "target": 14}


@pytest.mark.parametrize(
    "texts, reward, end",
    [
        ([call("calculate", expression="2+3*4"), call("submit", expression="2+3*4")], 1.0, "done"),
        ([call("submit", expression="7+7")], 0.0, "done"),
        ([call("submit", expression="2*7 = 14")], 0.0, "done"),
        ([call("calculate", expression="2+3*4")], 0.0, "out_of_turns"),
    ],
)
def test_the_calculator_pays_for_the_submitted_expression(texts, reward, end):
    played = play(Calculator(), COUNTDOWN, script(*texts), max_turns=len(texts))
    assert (played.reward, played.end, played.calls, played.bad) == (reward, end, len(texts), {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nums": ["2", 3, 4]}, "whole numbers"),
        ({"nums": "234"}, "whole numbers"),
        ({"target": 14.0}, "14.0"),
        ({"solution": "2+3+4"}, "2[+]3[+]4' is wrong"),
        ({"solution": "14"}, "'14' is wrong"),
    ],
)
def test_a_task_that_the_calculator_cannot_pose_is_refused(change, words):
    assert Calculator().start(COUNTDOWN | {"solution": "2+3*4"}).reference
    with pytest.raises(UserError, match=words):
        Calculator().start(COUNTDOWN | change)


def test_the_calculator_calculates_exactly_and_refuses_in_words():
    texts = [
        call("calculate", expression=e) for e in ("1/3+1/6", "1/0", "9*" * 40 + "9", "__import__('os')", "1" * 600)
    ]
    played = play(Calculator(), COUNTDOWN, script(*texts, "I give up."), max_turns=6)
    replies = [content for role, content in played.messages if role == "tool"]
    assert replies[0] == "1/2" and all(reply.startswith("Error: ") for reply in replies[1:])
    assert played.bad == {"refused": 4, "no_call": 1}


def test_telecom_ends_by_done_and_by_transfer():
    job = task(("unseat_sim_card", {}), assertions=[("assert_service_status", {"expected_status": "connected"})])
    environment = Telecom(world(), {job.id: job}, "Solve it.")
    row = {"task": job.id}
    played = play(environment, row, script(call("reseat_sim_card"), call("done")), max_turns=9)
    assert (played.end, played.reward, played.turns, played.calls) == ("done", 1.0, 2, 2)
    assert played.messages[:2] == [("system", "Solve it."), ("user", job.ticket)]
    for texts, end in (
        (["What?", call("done")], "done"),
        ([call("transfer_to_human_agents", summary="x")], "transfer"),
        ([call("reseat_sim_card"), call("reboot_device")], "out_of_turns"),
    ):
        played = play(environment, row, script(*texts), max_turns=len(texts))
        assert (played.end, played.reward) == (end, 0.0)
    with pytest.raises(UserError, match="'other'"):
        environment.start({"task": "other"})


def test_all_calls_in_one_message_are_paid_as_in_several():
    """Stage 2 of docs/tools.md: max_turns=1. The reference is then that message."""
    connected = ("assert_service_status", {"expected_status": "connected"})
    job = task(("unseat_sim_card", {}), assertions=[connected], actions=[("reseat_sim_card", {}, None)])
    environment = Telecom(world(), {job.id: job}, "")
    row = {"task": job.id}
    for texts in ([call("reseat_sim_card") + call("done")], [environment.start(row).reference]):
        state = environment.start(row).state
        played = play(environment, row, script(*texts), max_turns=1)
        environment.step(state, texts[0])
        assert (played.end, played.reward, played.turns, environment.calls_f1(state)) == ("done", 1.0, 1, 1.0)


def test_a_transfer_agrees_with_the_reference_whatever_its_summary():
    transfer = ("transfer_to_human_agents", {"summary": "I cannot fix the issue."}, [])
    job = task(("unseat_sim_card", {}), actions=[transfer])
    environment = Telecom(world(), {job.id: job}, "")
    for extra, f1 in ((), 1.0), ((call("toggle_data"),), 2 / 3):
        state = environment.start({"task": job.id}).state
        environment.step(state, "".join([*extra, call("transfer_to_human_agents", summary="Their SIM is broken.")]))
        assert environment.calls_f1(state) == pytest.approx(f1)


@needs_tau2
def test_always_transferring_scores_20_of_the_114_base_tasks():
    environment, splits = telecom.read(REAL), telecom.read_json(Path(REAL) / "split_tasks.json")
    transfer = call("transfer_to_human_agents", summary="I cannot.")
    paid = {}
    for name in ("train", "test", "base"):
        played = [play(environment, {"task": id}, lambda messages: transfer, max_turns=1) for id in splits[name]]
        assert {p.end for p in played} == {"transfer"}
        paid[name] = sum(p.reward for p in played), len(played)
    assert paid == {"train": (8, 74), "test": (12, 40), "base": (20, 114)}


def test_a_conversation_can_be_stored_and_goes_on_where_it_was():
    job = task(("unseat_sim_card", {}), assertions=[("assert_service_status", {"expected_status": "connected"})])
    environment = Telecom(world(), {job.id: job}, "")
    state, *_ = environment.start({"task": job.id})
    environment.step(state, call("check_sim_status"))
    again = pickle.loads(pickle.dumps(state))
    assert again == state
    for each in (state, again):
        assert "📶" in environment.step(each, call("reseat_sim_card")).text
        assert environment.reward(each, environment.step(each, call("done")).end) == 1.0


def test_prompts_name_every_tool_and_how_to_call_it(tmp_path):
    for name, text in (("main_policy_solo.md", "Be {kind}."), ("tech_support_workflow_solo.md", "Step 1.")):
        (tmp_path / name).write_text(text)
    for prompt in ("compact", "full"):
        for style, field in (("hermes", "<tool_call>"), ("llama3", '"parameters"'), ("json", '"arguments"')):
            text = system_prompt(prompt, style, tmp_path)
            assert all(tool in text for tool in telecom.CONVERSATION_TOOLS) and field in text.rsplit("Write", 1)[1]
            at_once = system_prompt(prompt, style, tmp_path, at_once=True)
            kept = [line for line in text.splitlines() if not line.startswith("- Look the customer")]
            assert "\n".join(kept).replace("one call at a time", "all calls in one message") == at_once != text
    text = system_prompt("full", "hermes", tmp_path)
    assert "Be {kind}." in text and "Step 1." in text
    schemas = [json.loads(line) for line in text.splitlines() if line.startswith('{"type"')]
    assert len(schemas) == 44
    with pytest.raises(UserError, match="prompt full"):
        system_prompt("full", "hermes", tmp_path / "none")
