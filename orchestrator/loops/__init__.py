"""The skeleton of the orchestrator's duties: a loop, one leader, wake-ups by the database."""
