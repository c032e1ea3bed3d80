"""Networks that learn: what they see, how they are updated, the pool."""
