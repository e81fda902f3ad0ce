"""Accepts tasks and decides where and when they run; never runs an agent."""
