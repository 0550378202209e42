"""The group filters: what they leave out, and RLPR's moving threshold step by step."""

import jax
import numpy as np
import pytest

from rl_likelihood.rewards import group_filter
from rl_likelihood.rewards.group_filter import FilterConfig, init_filter
from rl_likelihood.rewards.shaping import group_std

filter_groups = jax.jit(group_filter.filter_groups, static_argnums=1)
update = jax.jit(group_filter.update, static_argnums=3)
threshold = jax.jit(group_filter.threshold, static_argnums=2)


def test_the_filters_without_state():
    std = np.float32([0.0, 1e-8, 1e-5, 0.1, 0.5])
    state = init_filter()
    for cfg, expected in (
        (FilterConfig(), [True] * 5),
        (FilterConfig(mode="std_zero"), [False, False, True, True, True]),
        (FilterConfig(mode="std_below", threshold=0.1), [False, False, False, True, True]),
        (FilterConfig(mode="ema"), [True] * 5),
    ):
        np.testing.assert_array_equal(filter_groups(std, cfg, state, 0), expected, err_msg=cfg.mode)
    # A group of equal rewards or of one kept row has no std.
    keep = np.array([[True] * 4, [True, False, False, False]])
    std = group_std(np.float32([[0.1] * 4, [5, 1, 2, 3]]), keep)
    assert not np.asarray(filter_groups(std, FilterConfig(mode="std_zero"), state, 0)).any()


@pytest.mark.parametrize(
    "cfg", [FilterConfig(mode="ema"), FilterConfig(mode="ema", beta=0.9, start=4, record_from=2, decay=0.8)]
)
def test_the_moving_threshold_step_by_step(cfg):
    """RLPR's loop told again in plain Python: the average is formed when a step begins, from the steps before it."""
    means = np.random.default_rng(0).uniform(0.05, 0.3, 21).astype(np.float32)  # of steps 1, 2, ...; 0 is not used
    recorded, average, previous = [], None, None
    state = init_filter()
    for step in range(1, 21):
        if step > cfg.start:
            average = np.mean(recorded) if average is None else cfg.decay * average + (1 - cfg.decay) * previous
        expected = 0.0 if average is None else cfg.beta * average
        done = np.array(step - 1, np.int32)  # TrainState.step: a traced number, as in training
        assert float(threshold(state, done, cfg)) == pytest.approx(expected, rel=1e-5), step
        std = np.float32([0.0, expected * 0.999, expected * 1.001])
        np.testing.assert_array_equal(filter_groups(std, cfg, state, done), [step <= cfg.start] * 2 + [True])
        if cfg.record_from <= step <= cfg.start:
            recorded.append(float(means[step]))
        previous = float(means[step])
        state = update(state, done, np.array(means[step]), cfg)
    assert int(state.count) == len(recorded)
    assert [x.dtype for x in state] == [np.float32, np.float32, np.int32] and all(x.shape == () for x in state)


def test_the_first_threshold_is_the_mean_of_steps_six_to_ten():
    cfg, state = FilterConfig(mode="ema"), init_filter()
    thresholds = []
    for done in range(12):
        thresholds.append(float(threshold(state, done, cfg)))
        state = update(state, done, 0.1 * (done + 1), cfg)  # 0.1 in step 1, 0.2 in step 2, ...
    assert thresholds[:10] == [0] * 10
    assert thresholds[10] == pytest.approx(0.5 * 0.8, rel=1e-6)  # step 11
    assert thresholds[11] == pytest.approx(0.5 * (0.99 * 0.8 + 0.01 * 1.1), rel=1e-6)


def test_a_filter_that_recorded_nothing_starts_from_the_first_mean_it_sees():
    cfg, state = FilterConfig(mode="ema"), init_filter()
    assert float(threshold(state, 50, cfg)) == 0
    state = update(state, 50, 0.2, cfg)
    assert float(threshold(state, 51, cfg)) == pytest.approx(0.1, rel=1e-6)
    state = update(state, 51, 0.4, cfg)
    assert float(threshold(state, 52, cfg)) == pytest.approx(0.5 * (0.99 * 0.2 + 0.01 * 0.4), rel=1e-6)


def test_large_rewards_give_a_finite_threshold():
    cfg, state = FilterConfig(mode="ema", start=3, record_from=1), init_filter()
    for step in range(8):
        state = update(state, step, np.array(3e38, np.float32), cfg)
        assert all(np.isfinite(v) for v in (*state, threshold(state, step + 1, cfg)))
