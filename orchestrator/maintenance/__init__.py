"""Duties that keep tasks moving after losses of messages, workers or signals. One duty per module."""
