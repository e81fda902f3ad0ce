"""The core: how a task is submitted, changes its state, waits, and what limits it."""
