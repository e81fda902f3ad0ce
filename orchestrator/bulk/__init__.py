"""Acts on all tasks that match a query: rows of `bulk_acts`, which the leading orchestrator works off."""
