"""Deletion of finished tasks after their retention period, and their export before it."""
