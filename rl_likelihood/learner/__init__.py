"""The learner: the surrogate, the optimizer, and the one jitted step."""
