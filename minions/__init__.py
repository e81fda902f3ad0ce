"""The light client of Minions: `from minions import Client`."""
