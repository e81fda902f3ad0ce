"""Code that the orchestrator and the minions share: settings, errors, the data model, definitions, the sandbox."""

from minions import __version__

__all__ = ["__version__"]
