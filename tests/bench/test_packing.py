"""The bench of packing counts what it says."""

import numpy as np
import pytest

from bench.packing import Lengths, log_normal, shares


def test_shares_are_computed_over_real_tokens():
    lengths = Lengths(np.array([[16, 8], [8, 8]]), np.array([16, 12]))
    got = shares(lambda number: lengths, devices=1, count=2)
    real = 40 + 28
    assert got["padded"] == pytest.approx((4 * 16 + 2 * 16) / real)
    assert got["packed"] == pytest.approx((48 + 2 * 16) / real), "one micro-batch, its 40 tokens rounded to 48"
    assert got["padded_sizes"] == got["packed_sizes"] == 1


def test_lengths_are_those_that_are_said():
    chains = log_normal(64, 32, 0).chains
    assert chains.max() == 1024 and 280 < chains.mean() < 310
