"""Connections to PostgreSQL, its schema, and its tables."""

from shared.database.connections import get_engine, statement, transaction

__all__ = ["get_engine", "statement", "transaction"]
