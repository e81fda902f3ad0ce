"""Model clients: one module per provider."""
