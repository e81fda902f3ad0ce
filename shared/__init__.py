"""Code that the orchestrator and the minions share: settings, errors, the data model, definitions, the sandbox."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("minions")
except PackageNotFoundError:  # running from a source tree that is not installed
    __version__ = "0+unknown"
