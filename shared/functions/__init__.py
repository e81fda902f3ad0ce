"""Functions of unknown origin: validated, run in the sandbox, and watched."""
