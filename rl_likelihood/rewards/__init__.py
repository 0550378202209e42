"""Rewards: pure functions of log-probs. `likelihood.OBJECTIVES` is the table of the design."""
