"""Environments that a model talks to by calling tools. No model inside."""
