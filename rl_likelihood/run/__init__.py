"""What the mains share: a config's model, data and format; sources of batches; evaluation; the console."""
