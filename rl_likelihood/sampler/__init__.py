"""The sampler: decoding, stop strings, conversations, and the queue between sampler and learner."""
