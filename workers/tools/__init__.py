"""Tools: one module per kind."""
