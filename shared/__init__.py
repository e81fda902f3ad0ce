"""What the orchestrator and the minions both know: settings, errors, the data model, definitions, the sandbox."""

from minions import __version__

__all__ = ["__version__"]
