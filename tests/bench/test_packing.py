"""The bench of packing counts what it says."""

import numpy as np
import pytest

from bench.packing import Lengths, log_normal, shares


def test_shares_are_computed_over_real_tokens():
    lengths = Lengths(np.array([[16, 8], [8, 8]]), np.array([16, 12]))
    got = shares([[lengths, lengths]], devices=1)
    real = 40 + 28
    assert got["padded"] == pytest.approx((4 * 16 + 2 * 16) / real)
    assert got["packed"] == pytest.approx((48 + 2 * 16) / real), "one micro-batch, its 40 tokens rounded to 48"
    assert got["padded_sizes"] == got["packed_sizes"] == 1


def test_sizes_are_those_of_one_run_and_common_tokens_are_not_counted():
    short, long = (Lengths(np.full((1, 2), n), np.array([48]), common=40) for n in (8, 100))
    got = shares([[short, long], [short], [long]], devices=1)
    assert got["padded_sizes"] == got["packed_sizes"] == 2
    assert got["packed"] == pytest.approx((2 * (16 + 8) + 2 * (208 + 8)) / (2 * (16 + 8) + 2 * (200 + 8)))


def test_lengths_are_those_that_are_said():
    chains = log_normal(64, 32, 0).chains
    assert chains.max() == 1024 and 280 < chains.mean() < 310
