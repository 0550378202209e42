"""Does it learn? configs/tiny.py to its end: two minutes, so `make test` leaves it out and `make learn` runs it."""

import pytest

from configs.tiny import get_config
from rl_likelihood import config as configs
from rl_likelihood import train
from rl_likelihood.report import metrics as reports


@pytest.mark.slow
def test_rl_makes_the_held_out_answers_likelier(tmp_path):
    train.run(configs.build(get_config()), tmp_path / "run")
    before, after = (
        next(row for row in reports.read(tmp_path / "run" / "eval.jsonl") if row["stage"].startswith(stage))
        for stage in ("after warm start", "after 40 steps")
    )
    # Nats per token, on questions that were never trained on: several standard errors.
    gain = after["log_prob_mc1"] - before["log_prob_mc1"]
    assert gain > 0.3 and gain > 3 * before["log_prob_mc1_se"]
