"""What the orchestrator and the minions both know: settings, errors, the data model, definitions, the sandbox."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("minions")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
