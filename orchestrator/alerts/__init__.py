"""Alerts: conditions and anomalies that an operator should know of, as rows, and their delivery."""
