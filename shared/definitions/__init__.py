"""Agents, tools and functions as they are stored: immutable versions, from files and back."""
