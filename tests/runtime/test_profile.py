"""A trace of some steps, and the refusal of steps that are none."""

import jax.numpy as jnp
import pytest

from rl_likelihood.config import build
from rl_likelihood.runtime.profile import Profile
from rl_likelihood.shapes import UserError
from tests.runs import small_config


def test_a_trace_of_the_steps_asked_for_and_of_no_others(tmp_path, capsys):
    profile, off = Profile(tmp_path / "run", (2, 3)), Profile(tmp_path / "off", ())
    running = []
    for step in range(1, 6):
        profile.before(step)
        off.before(step)
        jnp.ones(3).sum().block_until_ready()
        running.append(profile.running)
        profile.after(step)
        off.after(step)
    profile.close()
    assert running == [False, True, True, False, False]
    assert len(list((tmp_path / "run").rglob("*.xplane.pb"))) == 1
    assert len(list((tmp_path / "run").rglob("perfetto_trace.json.gz"))) == 1
    assert "steps 2 to 3" in capsys.readouterr().out and not (tmp_path / "off").exists()


@pytest.mark.parametrize("steps", [(3,), (3, 2), (0, 1), (1, 2, 3)])
def test_steps_that_are_no_range_are_refused(steps):
    with pytest.raises(UserError, match="report.profile"):
        build(small_config(report__profile=steps))
