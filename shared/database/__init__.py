"""Connections to PostgreSQL, its schema, and its tables."""

from shared.database.connections import get_engine

__all__ = ["get_engine"]
