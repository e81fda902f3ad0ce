"""Schedules: when they run, how they are stored, and the loop that submits their tasks."""
