"""The real model runs long enough here that compiling it well pays."""

import jax

jax.config.update("jax_disable_most_optimizations", False)
