"""Reinforcement learning of language-model reasoning with rewards from the model's own likelihoods."""

__version__ = "0.1.0"
