"""The lines before a run say what the run does."""

from configs.calculator import get_config
from rl_likelihood.config import build
from rl_likelihood.training.announcement import scored_line


def test_a_conversation_s_sizes_stand_in_place_of_the_scored_answer():
    c = get_config("credit=turn")
    line = scored_line(build(c))
    for word in ("calculator", "json", "credit turn", "3 messages of 32 tokens", "replies of 48"):
        assert word in line
    assert "</" not in line and "chain" not in line
    c = get_config()
    c.env.name, c.reward.name, c.sampler.max_turns = "none", "log_prob", 1
    assert "reference answer" in scored_line(build(c))
