"""Does it learn? configs/tiny.py to its end: minutes, so `make test` leaves it out (`pytest -m slow`)."""

import pytest

from configs.tiny import get_config
from rl_likelihood import config as configs
from rl_likelihood import train
from rl_likelihood.report import metrics as reports


@pytest.mark.slow
def test_rl_on_the_likelihood_of_the_answer_makes_chains_right(tmp_path):
    train.run(configs.build(get_config()), tmp_path / "run")
    before, after = (
        next(row for row in reports.read(tmp_path / "run" / "eval.jsonl") if row["stage"].startswith(stage))
        for stage in ("after warm start", "after 60 steps")
    )
    assert after["perplexity"] < 0.8 * before["perplexity"]
    assert after["sampled_success"] > before["sampled_success"] + 2 * before["sampled_success_se"]
