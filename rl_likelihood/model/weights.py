"""The old import path of `rl_likelihood.weights.files`."""

from rl_likelihood.weights.files import load, save

__all__ = ["load", "save"]
