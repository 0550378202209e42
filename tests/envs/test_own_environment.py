"""The environment that docs/tools.md shows, and what is said of a wrong Reply."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rl_likelihood.envs.protocol import ENDS, Reply, number_of, play, problem_of
from rl_likelihood.envs.table import EnvConfig
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import Example
from rl_likelihood.tables import begun, environment_of, try_out

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text("utf-8")


@pytest.fixture
def safe(tmp_path) -> EnvConfig:
    (code,) = re.findall(r"```python\n# safe.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "safe.py").write_text(code)
    return EnvConfig("safe", str(tmp_path / "safe.py"), style="json")


def test_the_documented_environment_is_played(safe):
    said = ["Hm.", '{"name": "turn", "arguments": {"dial": 12}}', '[{"name": "turn", "arguments": {"dial": 7}}]']
    said.append('{"name": "leave"}')
    policy = lambda messages: said[(len(messages) - 2) // 2]
    played = play(environment_of(safe), {"code": 7}, policy, max_turns=4)
    assert (played.end, played.reward, played.calls) == ("done", 1.0, 3)
    assert played.bad == {"not_json": 1, "refused": 1}
    hint, refused, click = [text for role, text in played.messages if role == "tool"]
    assert '{"arguments": {}, "name": "leave"}' in hint and click == "It clicks."
    assert refused == "Error: the dial has 0 to 9"
    assert play(environment_of(safe), {"code": 8}, policy, max_turns=4).reward == 0


def test_the_documented_environment_begins_from_a_row(safe):
    start = begun(safe, Example("r1", "?", "!", check='{"environment": {"code": 7}}'))
    assert start.messages[0][1].startswith("turn(dial): Turn the dial.") and "safe: 7" in start.messages[1][1]


def test_what_an_end_may_be_is_said_where_it_is_wrong():
    problem = problem_of(Reply("x", "finished"), Reply)
    assert "end='finished'" in problem and all(repr(end) in problem for end in ENDS)
    assert "bad" not in problem and "list of texts" in problem_of(Reply("x", bad="no_call"), Reply)


ROW = Example("r1", "?", "!", check='{"environment": {"code": 7}}')


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("return float(state", "float(state", ["row r1", "safe", "method reward", "its reward is None"]),
        ("return float(state", "return 1 / len([]) + float(state", ["method reward", "ZeroDivisionError"]),
        ("return Reply(reply,", "return (reply,", ["method step", "tuple and not Reply"]),
        ("left = any(", "left = broken(", ["method step", "NameError: name 'broken'"]),
    ],
)
def test_an_environment_that_fails_in_every_conversation_is_refused_at_the_start(old, new, words, safe):
    path = Path(safe.file)
    try_out(safe, ROW, begun(safe, ROW).state)
    assert path.read_text().count(old) == 1
    own = path.with_name("broken.py")
    own.write_text(path.read_text().replace(old, new))
    cfg = EnvConfig("safe", str(own), style="json")
    with pytest.raises(UserError) as e:
        try_out(cfg, ROW, begun(cfg, ROW).state)
    assert all(word in str(e.value) for word in words), e.value


@pytest.mark.parametrize("reward", [None, "0.5", [1, 2], {}])
def test_a_reward_that_is_no_number_is_named(reward):
    with pytest.raises(TypeError) as e:
        number_of(reward)
    assert str(e.value) == f"its reward is {reward!r}; return a finite number"
