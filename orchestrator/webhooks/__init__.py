"""Webhooks: their signed messages, and the loop that delivers them."""
