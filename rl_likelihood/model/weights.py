"""The old import path of `rl_likelihood.weights.files`, kept for compatibility."""

from rl_likelihood.weights.files import load, save

__all__ = ["load", "save"]
