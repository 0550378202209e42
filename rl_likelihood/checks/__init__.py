"""Every check that settings fit together, as far as it needs neither data nor model."""

from rl_likelihood.checks.run import validate

__all__ = ["validate"]
