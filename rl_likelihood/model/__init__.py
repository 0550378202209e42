"""The decoder: specs, forward, attention, the fused head, and weights on disk."""
