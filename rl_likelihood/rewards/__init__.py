"""Rewards as pure functions. `table.REWARDS` lists all of them; `likelihood.OBJECTIVES` has the likelihood rewards."""
