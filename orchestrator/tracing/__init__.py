"""Traces: committed rows as spans, sent to an OpenTelemetry collector, at least once each and with the same ids."""
