"""The learner's filter of drawn groups: two processes accept the groups that one accepts, padded or packed."""

import json

import jax
import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.mesh import put, replicated
from rl_likelihood.rewards import group_filter
from rl_likelihood.runtime.devices import make_devices
from rl_likelihood.shapes import TrainState
from rl_likelihood.task import load
from rl_likelihood.training.compiled_steps import StepPrograms
from tests.runs import small_config
from tests.runtime.processes import processes_of, said
from tests.small import random_batch, random_params

# Prompts over fsdp, or the chains of each prompt.
CASES = ({"train__prompts_per_step": 4, "train__packing": True}, {"train__prompts_per_step": 2})
THRESHOLD = 2.0
PROGRAM = """
import json, sys
from rl_likelihood.runtime import distributed
distributed.start(sys.argv[1], 2, int(sys.argv[2]), heartbeat=60.0)
from tests.runtime.test_groups import CASES, judged
print(json.dumps([judged(case) for case in CASES]), flush=True)
distributed.finish()
"""


def judged(case):
    """[indices of this process's prompts, whether each is accepted, the mean spread of all]."""
    how = {"filter__mode": "std_below", "filter__threshold": THRESHOLD, "filter__resample": 1} | case
    c = build(small_config(sampler__group_size=4, mesh__fsdp=4, mesh__tensor=2, **how))
    devices = make_devices(c)
    task, _ = load(c, mesh=devices.learner)
    params = random_params(task.model)
    batch = jax.tree.map(lambda x: x[devices.prompts], random_batch(1, p=c.train.prompts_per_step, g=4))
    state = TrainState(step=np.int32(0), params=params, opt_state=(), filter=group_filter.init_filter())
    state = put(state, jax.tree.map(lambda _: replicated(devices.learner), state))
    groups = StepPrograms(task, devices, None).groups(state, None, batch)
    return [devices.prompts.tolist(), groups.accepted.tolist(), groups.spread]


@pytest.mark.slow
def test_two_processes_accept_the_groups_of_one():
    both = processes_of(PROGRAM, 2)
    lines = [said(p) for p in both]
    assert [p.returncode for p in both] == [0, 0], lines
    for case, one, two in zip(CASES, *(json.loads(x[-1]) for x in lines), strict=True):
        prompts, accepted, spread = judged(case)
        split = len(prompts) == 4
        assert sorted({*one[0], *two[0]}) == prompts and (len(one[0]) == 2)
        assert (one[1] + two[1] if split else one[1]) == accepted and (split or one[:2] == two[:2])
        assert one[2] == two[2] == pytest.approx(spread, rel=1e-4)
    assert len({*judged(CASES[0])[1]}) == 2, "some are accepted, some are not"
