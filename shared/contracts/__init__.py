"""Contracts of the data that processes exchange: definitions, requests, strict JSON and JSON Schema."""
