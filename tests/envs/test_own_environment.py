"""The environment that docs/tools.md shows, and what is said of a wrong Reply."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rl_likelihood.envs.protocol import ENDS, Reply, play, problem_of
from rl_likelihood.envs.table import EnvConfig
from rl_likelihood.shapes import Example
from rl_likelihood.tables import begun, environment_of

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
