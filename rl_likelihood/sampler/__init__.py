"""The sampler: decoding, stopping, splicing rollouts, and the queue between sampler and learner."""
