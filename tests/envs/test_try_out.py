"""`load` tries an environment out before a run begins."""

import json

import pytest

from configs.calculator import get_config
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.task import load

OWN = """
from rl_likelihood.envs.protocol import Reply, Start
class Mute:
    def start(self, task): return Start(task, [("user", "Speak.")])
    def step(self, state, text): return Reply("no")
    def reward(self, state, end): state["n"]
ENVIRONMENTS = {"mute": lambda cfg: Mute()}
"""


def test_a_run_whose_conversations_would_all_be_left_out_does_not_begin(tmp_path):
    rows = [{"prompt": "?", "answer": "!", "environment": {"n": n}} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mute.py").write_text(OWN)
    c = get_config()
    c.model.path, c.model.preset, c.warm_start.steps = "", "nano", 0
    c.data.source, c.data.train_path = "files", str(tmp_path / "rows.jsonl")
    c.data.train_size, c.data.heldout_size, c.eval.prompts = 0, 1, 1
    c.env.name, c.env.file = "mute", str(tmp_path / "mute.py")
    with pytest.raises(UserError, match=r"row rows.jsonl:\d: .*mute fails in its method reward .*its reward is None"):
        load(build(c))
    (tmp_path / "mended.py").write_text(OWN.replace('): state["n"]', "): return 1"))
    c.env.file = str(tmp_path / "mended.py")
    assert len(load(build(c))[0].train) == 3
