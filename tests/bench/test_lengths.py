"""The most that continuous batching can gain on given lengths."""

import numpy as np

from bench.batching import possible


def test_possible_is_steps_of_waiting_over_steps_of_continuous_batching():
    # Waiting: 4 + 1 + 4 steps. Continuous: one slot decodes 4, the other 1, 1, 1 and 4.
    assert possible(np.array([4, 1, 1, 1, 4]), 2) == (4 + 1 + 4) / 7
    assert possible(np.array([5, 5, 5, 5]), 2) == 1
    assert possible(np.array([3, 9]), 8) == 1, "all rows fit at once"
