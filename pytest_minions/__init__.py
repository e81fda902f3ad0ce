"""The pytest plugin for repositories whose code uses Minions: docs/testing.md.

pytest loads `plugin`, which imports nothing heavy: the fixtures import the rest when a test asks for one.
"""
