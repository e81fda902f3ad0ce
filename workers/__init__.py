"""Claims a task, runs its agent, journals every step and writes the record."""
