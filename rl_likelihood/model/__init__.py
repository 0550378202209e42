"""The decoder: architecture, forward, attention, decoding, the fused head, and LoRA."""
